"""The application: which path is which endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from runner.config import Config
from runner.service import Service
from runner.web.access import AccessLog
from runner.web.auth import make_auth
from runner.web.bulk import BulkEndpoints
from runner.web.crossing import Submitter
from runner.web.door import Door, MannersOf, Register, allowed_hosts
from runner.web.incoming import UploadSpace
from runner.web.index import show_index
from runner.web.limits import DraftLimit, OpenLimit, StreamLimit, Throttle
from runner.web.live import LiveEndpoint
from runner.web.metrics import MetricsEndpoint, RequestCounts
from runner.web.openapi import OpenApiEndpoints
from runner.web.progress_streams import ProgressEndpoints
from runner.web.routing import Routes, route
from runner.web.spans import TracedRegister
from runner.web.streams import StreamEndpoints
from runner.web.submissions import Roots, SubmissionReader
from runner.web.system import SystemEndpoints
from runner.web.tasks import TaskEndpoints
from runner.web.tokens import TokenEndpoints, Tokens
from runner.web.uploads import UploadEndpoints, UploadFiles
from runner.web.users import UserEndpoints, Users

PREFIX: Final = "/api/v1"
TOO_MANY_WAITS: Final = "{} of your requests wait for a task already; ask again without ?wait=, or watch a stream"
TOO_MANY_DRAFTS: Final = "you have {} drafts already; start some of them, or delete them"
TOO_MANY_UPLOADS: Final = "{} of your uploads have not ended; go on with one, or delete it"


class Site:
    """What all listeners have in common: who is who, how much they may ask, where their files come in.

    For the coroutines of one event loop, over a service that has been started. It owns nothing: whoever started the
    service closes it.
    """

    def __init__(self, service: Service, config: Config) -> None:
        self.service = service
        self.config = config
        self.users = Users(service.store, service.quota)
        self.tokens = Tokens(service.store.files, f"{service.store.layout.data}/tokens.json")
        self.auth = make_auth(config.auth, service.store, self.users, self.tokens)
        self.space = upload_space(service, config)
        self.submitter = Submitter(service)
        exempt = frozenset(config.limits.exempt_users)
        self.throttle = Throttle(config.http.rate_per_address, config.http.rate_per_user, exempt)
        self._streams = StreamLimit(config.http.streams_per_user, exempt)
        self.waits = OpenLimit(config.http.waits_per_user, exempt, "too_many_waits", TOO_MANY_WAITS)
        drafts = OpenLimit(config.http.drafts_per_user, exempt, "too_many_drafts", TOO_MANY_DRAFTS)
        self.drafts = DraftLimit(drafts, service.drafts_of)
        self.uploads = OpenLimit(config.http.uploads_per_user, exempt, "too_many_uploads", TOO_MANY_UPLOADS)
        self._counts = RequestCounts()
        self.register: Register = AccessLog(config.log.requests, self._counts.count)
        if service.traces is not None:
            self.register = TracedRegister(self.register, service.traces)
        self.routes: tuple[BaseRoute, ...] = tuple(api_routes(self, self._counts))

    def app(self, routes: Sequence[BaseRoute], manners_of: MannersOf = lambda scope: None) -> ASGIApp:
        """The app that serves these routes, behind its door."""
        hosts = allowed_hosts(self.config.http)
        door = Door(Routes(routes, self._streams), hosts, self.auth, self.throttle, self.register, manners_of)
        trusted = list(self.config.http.trusted_proxies)
        return cast("ASGIApp", ProxyHeadersMiddleware(cast("Any", door), trusted_hosts=trusted)) if trusted else door


def create_app(service: Service, config: Config) -> ASGIApp:
    """The app of the API alone, over a service that has been started."""
    site = Site(service, config)
    return site.app(site.routes)


def upload_space(service: Service, config: Config) -> UploadSpace:
    """Where files lie while they come in."""
    tmp = Path(config.data_dir) / "tmp"
    return UploadSpace(tmp, config.http.max_upload_bytes, lambda: service.store.space.shortage, service.quota)


def api_routes(site: Site, counts: RequestCounts) -> Iterator[BaseRoute]:
    """Every route of the API."""
    service, config = site.service, site.config
    site.space.clean_up()
    reader = SubmissionReader(Roots.resolved(config.http.allowed_roots, Path(config.data_dir)))
    tasks = TaskEndpoints(service, reader, site.space, site.waits, site.drafts, config.http.max_body_bytes)
    files = UploadFiles(site.space.directory, config.http.upload_expires)
    service.quota.count_also(files.promised_to)
    yield from _task_routes(tasks, StreamEndpoints(service))
    yield from _bulk_routes(BulkEndpoints(service, config.http.max_body_bytes))
    yield from _upload_routes(UploadEndpoints(service, site.space, files, site.uploads))
    yield from _progress_routes(ProgressEndpoints(service))
    yield from _user_routes(site.users, site.tokens)
    yield from _system_routes(SystemEndpoints(service))
    yield route("/", GET=show_index)
    yield route("/metrics", GET=MetricsEndpoint(service, counts).metrics)
    yield from _description_routes(OpenApiEndpoints(service.handlers))
    yield WebSocketRoute("/ws", LiveEndpoint(service).connect)


def _task_routes(tasks: TaskEndpoints, streams: StreamEndpoints) -> list[BaseRoute]:
    one = f"{PREFIX}/tasks/{{id}}"
    return [
        route(f"{PREFIX}/tasks", POST=tasks.submit, GET=tasks.list),
        route(f"{PREFIX}/tasks:batch", POST=tasks.submit_many),
        route(f"{PREFIX}/tasks/count", GET=tasks.count),
        route(one, GET=tasks.show, DELETE=tasks.delete),
        route(f"{one}/cancel", POST=tasks.cancel),
        route(f"{one}/retry", POST=tasks.retry),
        route(f"{one}/rerun", POST=tasks.rerun),
        route(f"{one}/start", POST=tasks.start),
        route(f"{one}/events", GET=streams.events),
        route(f"{PREFIX}/events", GET=streams.all_events),
        route(f"{one}/log", GET=streams.log),
        route(f"{one}/inputs/{{name}}", PUT=tasks.put_input),
        route(f"{one}/outputs/{{name:path}}", GET=tasks.output),
    ]


def _user_routes(users: Users, tokens: Tokens) -> list[BaseRoute]:
    people, keys = UserEndpoints(users), TokenEndpoints(tokens)
    return [
        route(f"{PREFIX}/users/me", GET=people.me),
        route(f"{PREFIX}/tokens", POST=keys.add, GET=keys.list),
        route(f"{PREFIX}/tokens/{{name}}", DELETE=keys.remove),
    ]


def _bulk_routes(bulk: BulkEndpoints) -> list[BaseRoute]:
    return [
        route(f"{PREFIX}/tasks:cancel", POST=bulk.cancel),
        route(f"{PREFIX}/tasks:retry", POST=bulk.retry),
        route(f"{PREFIX}/tasks:delete", POST=bulk.delete),
    ]


def _upload_routes(uploads: UploadEndpoints) -> list[BaseRoute]:
    one = f"{PREFIX}/uploads/{{id}}"
    return [
        route(f"{PREFIX}/tasks/{{id}}/uploads", POST=uploads.create, OPTIONS=uploads.options),
        route(one, HEAD=uploads.look, PATCH=uploads.append, DELETE=uploads.remove, POST=uploads.overridden),
    ]


def _progress_routes(progress: ProgressEndpoints) -> list[BaseRoute]:
    one = f"{PREFIX}/tasks/{{id}}/progress"
    return [
        route(one, GET=progress.latest),
        route(f"{one}/history", GET=progress.history),
        route(f"{one}/info", GET=progress.info),
        route(f"{one}/stream", GET=progress.stream),
        route(f"{PREFIX}/progress/stream", GET=progress.stream_many),
    ]


def _system_routes(system: SystemEndpoints) -> list[BaseRoute]:
    return [
        route(f"{PREFIX}/handlers", GET=system.handlers),
        route(f"{PREFIX}/handlers/{{name}}", GET=system.handler),
        route(f"{PREFIX}/queues/stats", GET=system.queue_stats),
        route(f"{PREFIX}/why", GET=system.why),
        route(f"{PREFIX}/inbox", GET=system.inbox),
        route(f"{PREFIX}/gc", POST=system.gc),
        route("/health", GET=system.health),
        route("/ready", GET=system.ready),
        route("/live", GET=system.live),
    ]


def _description_routes(description: OpenApiEndpoints) -> list[BaseRoute]:
    return [route("/openapi.json", GET=description.document), route("/docs", GET=description.page)]
