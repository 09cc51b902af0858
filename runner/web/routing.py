"""Routes: an endpoint for each method of a path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runner.web.door import caller_of
from runner.web.limits import StreamLimit

Endpoint = Callable[[Request], Awaitable[Response]]


def route(path: str, **endpoints: Endpoint) -> Route:
    """One route for each path, so that a 405 lists every method that the path has; GET answers HEAD, too."""

    async def dispatch(request: Request) -> Response:
        endpoint = endpoints.get(request.method) or endpoints["GET"]  # HEAD is GET, unless it is said otherwise
        response = await endpoint(request)
        limit: StreamLimit = request.app.state.stream_limit
        return limit.counted(caller_of(request), response)

    return Route(path, dispatch, methods=list(endpoints))
