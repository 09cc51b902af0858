"""Which dialects are spoken at which ports, and whose request is whose."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from socket import socket
from typing import Final

from starlette.routing import BaseRoute, Match, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from runner.config import Config, DialectsConfig
from runner.dialects import embedder, mediacraft, pixivtailor, taskflow, video_in_chinese
from runner.dialects.dialect import Dialect
from runner.web.app import PREFIX, Site
from runner.web.door import Manners
from runner.web.sockets import listen_on_port

MAKERS: Final[Mapping[str, Callable[[Site], Dialect]]] = {
    "embedder": embedder.make,
    "mediacraft": mediacraft.make,
    "pixivtailor": pixivtailor.make,
    "taskflow": taskflow.make,
    "video_in_chinese": video_in_chinese.make,
}
"""Every dialect, by the name of its section."""


def make_dialects(site: Site) -> tuple[Dialect, ...]:
    """Those that are enabled."""
    return tuple(MAKERS[name](site) for name, _ in _enabled(site.config.dialects))


@contextmanager
def listening_for_dialects(config: Config) -> Iterator[dict[str, socket]]:
    """The listeners of the dialects that have ports of their own. Raises `ConfigError` for one that is taken."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(listen_on_port(config.http.host, port))
            for name, port in _enabled(config.dialects)
            if port is not None
        }


def make_app(site: Site, dialects: Sequence[Dialect], ports: Mapping[int, str]) -> ASGIApp:
    """The app for all listeners: at a port of `ports` only the dialect of that name, elsewhere everything."""
    directory = Directory(site.routes, dialects)
    whole = site.app((*site.routes, *directory.routes), directory.find)
    by_name = {dialect.name: dialect for dialect in dialects}
    return ByPort(whole, {port: _alone(site, by_name[name]) for port, name in ports.items()})


class ByPort:
    """ASGI: passes a request on to the app of the port that it came in by."""

    def __init__(self, otherwise: ASGIApp, by_port: Mapping[int | None, ASGIApp]) -> None:
        self._otherwise = otherwise
        self._by_port = by_port

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Passes it on."""
        # The port of the socket, as the system says it: the client's Host header has no say in this.
        server = scope.get("server")
        app = self._by_port.get(server[1], self._otherwise) if server is not None else self._otherwise
        return app(scope, receive, send)


class Directory:
    """Whose a request is, before it is routed. The API's own paths are nobody else's."""

    def __init__(self, own: Sequence[BaseRoute], dialects: Sequence[Dialect]) -> None:
        self._own = frozenset(_path(route) for route in own)
        pairs = [(route, dialect.manners) for dialect in dialects for route in dialect.routes]
        self._routes = sorted(pairs, key=lambda pair: _order(pair[0]))
        self._prefixes = tuple((prefix, dialect.manners) for dialect in dialects for prefix in dialect.prefixes)

    @property
    def routes(self) -> tuple[BaseRoute, ...]:
        """Those of all dialects, fixed paths first."""
        return tuple(route for route, _ in self._routes)

    def find(self, scope: Scope) -> Manners | None:
        """The manners of the dialect whose path, and where several have it whose method, is asked for."""
        path: str = scope["path"]
        if path in self._own or path.startswith(f"{PREFIX}/"):
            return None
        return self._match(_as_meant(scope)) or next(
            (manners for prefix, manners in self._prefixes if path.startswith(prefix)), None
        )

    def _match(self, scope: Scope) -> Manners | None:
        partial: Manners | None = None
        for route, manners in self._routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                return manners
            if match is Match.PARTIAL:
                partial = partial or manners
        return partial


def _alone(site: Site, dialect: Dialect) -> ASGIApp:
    manners = dialect.manners
    routes = (*dialect.own_routes, *sorted(dialect.routes, key=_order))
    return site.app(routes, lambda scope: manners)


def _enabled(config: DialectsConfig) -> Iterator[tuple[str, int | None]]:
    """The names and ports of those that are enabled."""
    for name in MAKERS:
        section = getattr(config, name)
        if section.enabled:
            yield name, section.port


def _as_meant(scope: Scope) -> Scope:
    """A browser's question whether it may ask is for whom it wants to ask."""
    if scope.get("method") != "OPTIONS":
        return scope
    wanted = next((value for name, value in scope["headers"] if name == b"access-control-request-method"), b"OPTIONS")
    return {**scope, "method": wanted.decode("latin-1")}


def _order(route: BaseRoute) -> tuple[bool, ...]:
    """Where a route stands among others: at the first difference, a fixed part comes before a parameter."""
    return tuple(part.startswith("{") for part in _path(route).split("/"))


def _path(route: BaseRoute) -> str:
    return route.path if isinstance(route, Route | WebSocketRoute) else ""
