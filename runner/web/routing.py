"""Routes: an endpoint for each method of a path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send

from runner.web.door import caller_of
from runner.web.heads import Head
from runner.web.limits import StreamLimit

Endpoint = Callable[[Request], Awaitable[Response]]


class Routes(Router):
    """ASGI: which path is which endpoint. What an endpoint raises is for the door to answer, and so is a path that
    there is not. One without parameters is found at once; for others the routes are looked through in turn."""

    def __init__(self, routes: Sequence[BaseRoute], streams: StreamLimit) -> None:
        super().__init__(routes, redirect_slashes=False)
        self.streams = streams
        fixed = [route for route in routes if isinstance(route, Route) and not route.param_convertors]
        self._fixed = {(route.path, method): route for route in reversed(fixed) for method in route.methods or ()}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        """Passes a request on. Raises `HTTPException` 404 and 405, and whatever the endpoint does."""
        scope["app"] = self
        route = self._fixed.get((scope["path"], scope.get("method", "")))
        if route is None:
            return self.app(scope, receive, send)
        scope["route"], scope["path_params"] = route, {}
        return route.app(scope, receive, send)


class Asked(Request):
    """A request whose head has been read already."""

    @property
    def headers(self) -> Head:
        """See `Request`."""
        head: Head = self.scope["head"]
        return head


class _Endpoints:
    """ASGI: one path's endpoints, by method."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Asked(scope, receive, send)
        # HEAD is GET, unless it is said otherwise.
        endpoint = self._endpoints.get(scope["method"]) or self._endpoints["GET"]
        response = await endpoint(request)
        if response.media_type == "text/event-stream":
            response = streams_of(scope).counted(caller_of(request), response)
        await response(scope, receive, send)


def route(path: str, **endpoints: Endpoint) -> Route:
    """One route for each path, so that a 405 lists every method that the path has; GET answers HEAD, too."""
    return Route(path, _Endpoints(endpoints), methods=list(endpoints))


def streams_of(scope: Scope) -> StreamLimit:
    """How many streams each user may hold open, here."""
    routes: Routes = scope["app"]
    return routes.streams
