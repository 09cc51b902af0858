"""The Starlette application: which path is which endpoint, and which error is which answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, cast

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from runner.config import Config
from runner.errors import RunnerError
from runner.service import Service
from runner.web import problems
from runner.web.access import AccessLog
from runner.web.auth import make_auth
from runner.web.bulk import BulkEndpoints
from runner.web.door import Door, allowed_hosts, caller_of
from runner.web.incoming import UploadSpace
from runner.web.limits import StreamLimit, Throttle
from runner.web.live import LiveEndpoint
from runner.web.metrics import MetricsEndpoint, RequestCounts
from runner.web.openapi import OpenApiEndpoints
from runner.web.progress_streams import ProgressEndpoints
from runner.web.streams import StreamEndpoints
from runner.web.submissions import Roots, SubmissionReader
from runner.web.system import SystemEndpoints
from runner.web.tasks import TaskEndpoints
from runner.web.tokens import TokenEndpoints, Tokens
from runner.web.uploads import UploadEndpoints, UploadFiles
from runner.web.users import UserEndpoints, Users

PREFIX: Final = "/api/v1"

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(service: Service, config: Config) -> ASGIApp:
    """The app over a service that has been started. It owns nothing; closing the service is the caller's."""
    users = Users(service.store)
    tokens = Tokens(service.store.files, f"{service.store.layout.data}/tokens.json")
    auth = make_auth(config.auth, service.store, users, tokens)
    http, exempt = config.http, frozenset(config.limits.exempt_users)
    throttle = Throttle(http.rate_per_address, http.rate_per_user, exempt)
    # Around all of Starlette, for its own answer to a defect is made outside of any middleware.
    counts = RequestCounts()
    api = create_api(service, config, users, tokens, counts)
    door = Door(api, allowed_hosts(http), auth, throttle, AccessLog(config.log.requests, counts.count))
    if not http.trusted_proxies:
        return door
    return cast("ASGIApp", ProxyHeadersMiddleware(cast("Any", door), trusted_hosts=list(http.trusted_proxies)))


def create_api(service: Service, config: Config, users: Users, tokens: Tokens, counts: RequestCounts) -> Starlette:
    """The same without its door: the routes and the errors."""
    http, data = config.http, Path(config.data_dir)
    space = UploadSpace(data / "tmp", http.max_upload_bytes, lambda: service.store.space.shortage)
    space.clean_up()
    reader = SubmissionReader(Roots.resolved(http.allowed_roots, data))
    tasks = TaskEndpoints(service, reader, space, http.max_body_bytes)
    uploads = UploadEndpoints(service, space, UploadFiles(data / "tmp", http.upload_expires))
    bulk = BulkEndpoints(service, http.max_body_bytes)
    streams = StreamEndpoints(service)
    progress = ProgressEndpoints(service)
    system = SystemEndpoints(service)
    app = Starlette(
        routes=[
            *_task_routes(tasks, streams),
            *_bulk_routes(bulk),
            *_upload_routes(uploads),
            *_progress_routes(progress),
            *_user_routes(users, tokens),
            *_system_routes(system),
            _route("/metrics", GET=MetricsEndpoint(service, counts).metrics),
            *_description_routes(OpenApiEndpoints(service.handlers)),
            WebSocketRoute("/ws", LiveEndpoint(service).connect),
        ],
        exception_handlers={
            RunnerError: problems.answer_runner_error,
            ValidationError: problems.answer_validation_error,
            HTTPException: problems.answer_http_exception,
            ClientDisconnect: problems.answer_disconnect,
            Exception: problems.answer_defect,
        },
    )
    app.router.redirect_slashes = False
    app.state.stream_limit = StreamLimit(config.http.streams_per_user, frozenset(config.limits.exempt_users))
    return app


def _task_routes(tasks: TaskEndpoints, streams: StreamEndpoints) -> list[BaseRoute]:
    one = f"{PREFIX}/tasks/{{id}}"
    return [
        _route(f"{PREFIX}/tasks", POST=tasks.submit, GET=tasks.list),
        _route(f"{PREFIX}/tasks:batch", POST=tasks.submit_many),
        _route(f"{PREFIX}/tasks/count", GET=tasks.count),
        _route(one, GET=tasks.show, DELETE=tasks.delete),
        _route(f"{one}/cancel", POST=tasks.cancel),
        _route(f"{one}/retry", POST=tasks.retry),
        _route(f"{one}/rerun", POST=tasks.rerun),
        _route(f"{one}/start", POST=tasks.start),
        _route(f"{one}/events", GET=streams.events),
        _route(f"{PREFIX}/events", GET=streams.all_events),
        _route(f"{one}/log", GET=streams.log),
        _route(f"{one}/inputs/{{name}}", PUT=tasks.put_input),
        _route(f"{one}/outputs/{{name:path}}", GET=tasks.output),
    ]


def _user_routes(users: Users, tokens: Tokens) -> list[BaseRoute]:
    people, keys = UserEndpoints(users), TokenEndpoints(tokens)
    return [
        _route(f"{PREFIX}/users/me", GET=people.me),
        _route(f"{PREFIX}/tokens", POST=keys.add, GET=keys.list),
        _route(f"{PREFIX}/tokens/{{name}}", DELETE=keys.remove),
    ]


def _bulk_routes(bulk: BulkEndpoints) -> list[BaseRoute]:
    return [
        _route(f"{PREFIX}/tasks:cancel", POST=bulk.cancel),
        _route(f"{PREFIX}/tasks:retry", POST=bulk.retry),
        _route(f"{PREFIX}/tasks:delete", POST=bulk.delete),
    ]


def _upload_routes(uploads: UploadEndpoints) -> list[BaseRoute]:
    one = f"{PREFIX}/uploads/{{id}}"
    return [
        _route(f"{PREFIX}/tasks/{{id}}/uploads", POST=uploads.create, OPTIONS=uploads.options),
        _route(one, HEAD=uploads.look, PATCH=uploads.append, DELETE=uploads.remove, POST=uploads.overridden),
    ]


def _progress_routes(progress: ProgressEndpoints) -> list[BaseRoute]:
    one = f"{PREFIX}/tasks/{{id}}/progress"
    return [
        _route(one, GET=progress.latest),
        _route(f"{one}/history", GET=progress.history),
        _route(f"{one}/info", GET=progress.info),
        _route(f"{one}/stream", GET=progress.stream),
        _route(f"{PREFIX}/progress/stream", GET=progress.stream_many),
    ]


def _system_routes(system: SystemEndpoints) -> list[BaseRoute]:
    return [
        _route(f"{PREFIX}/handlers", GET=system.handlers),
        _route(f"{PREFIX}/handlers/{{name}}", GET=system.handler),
        _route(f"{PREFIX}/queues/stats", GET=system.queue_stats),
        _route(f"{PREFIX}/why", GET=system.why),
        _route(f"{PREFIX}/inbox", GET=system.inbox),
        _route(f"{PREFIX}/gc", POST=system.gc),
        _route("/health", GET=system.health),
        _route("/ready", GET=system.ready),
        _route("/live", GET=system.live),
    ]


def _description_routes(description: OpenApiEndpoints) -> list[BaseRoute]:
    return [_route("/openapi.json", GET=description.document), _route("/docs", GET=description.page)]


def _route(path: str, **endpoints: Endpoint) -> Route:
    """One route for each path, so that a 405 lists every method that the path has."""

    async def dispatch(request: Request) -> Response:
        endpoint = endpoints.get(request.method) or endpoints["GET"]  # HEAD is GET, unless it is said otherwise
        response = await endpoint(request)
        limit: StreamLimit = request.app.state.stream_limit
        return limit.counted(caller_of(request), response)

    return Route(path, dispatch, methods=list(endpoints))
