"""What every request passes first: who asks, through which door, and whether a browser was tricked into asking.

Through the Unix socket comes the admin: the file's permissions have let nobody else in. Through TCP in `auth.mode`
`local` comes the person at this machine, and with them every web page that their browser shows; in the other modes
whoever a cookie or a token says it is (`auth.py`). So a request must name a host of ours (a page that rebinds its DNS
name to 127.0.0.1 does not) and, if it changes anything, must not come from another site (Fetch Metadata, W3C; `Origin`,
RFC 6454, where a browser sends none).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple, Protocol

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runner.config import HttpConfig
from runner.ids import Digits
from runner.task import Source
from runner.web.heads import Head
from runner.web.problems import EXPECTED, Envelope, HttpProblem, answer, answer_to
from runner.web.ranges import drop_bad_range

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_HEADER_BYTES: Final = 16 * 1024
DEFAULT_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
"""Of every answer that does not say otherwise."""

_DEFAULT_NAMES: Final = frozenset(name for name, _ in DEFAULT_HEADERS)
PREFLIGHT_HEADERS: Final = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Authorization, X-Request-ID, X-Requested-With, Last-Event-ID",
    "Access-Control-Max-Age": "600",
}
NOWHERE: Final[frozenset[str]] = frozenset()
CLI_AGENT: Final = "runner-cli"
LOCAL_USER: Final = "local"

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9a-z_.-]+))(?::[0-9]{1,5})?")
_REQUEST_ID: Final = re.compile(r"[0-9A-Za-z._-]{1,64}")


class Entrance(StrEnum):
    """Which listener a request came in by."""

    SOCKET = "socket"
    TCP = "tcp"


class Standing(Enum):
    """Whether somebody has been here before. What a `NEW` visitor looks for can only be somebody else's."""

    KNOWN = auto()
    NEW = auto()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `sees` is the user whose tasks they may see and change, None for everybody's."""

    entrance: Entrance
    user_id: str
    source: Source
    sees: str | None = None
    standing: Standing = Standing.KNOWN

    @property
    def is_admin(self) -> bool:
        """Whether everything is theirs to see and to change."""
        return self.sees is None

    @property
    def is_new(self) -> bool:
        """Whether nothing here can be theirs yet."""
        return self.standing is Standing.NEW

    @property
    def scope(self) -> str:
        """What they may do, in one word."""
        return "admin" if self.is_admin else "user"

    @property
    def may_name_files(self) -> bool:
        """Whether a submission may name files of this machine as its inputs."""
        return self.entrance is Entrance.SOCKET


class Admitted(NamedTuple):
    """Who was let in, and the values of `Set-Cookie` by which to know them again, if they need any."""

    caller: Caller
    set_cookies: tuple[str, ...] = ()


class Auth(Protocol):
    """How callers through TCP are known."""

    async def identify(self, scope: Scope, headers: Headers) -> Admitted:
        """Who asks. Raises `HttpProblem` 401 where that must be known and is not."""


class Turnstile(Protocol):
    """Who asks too often. Both raise `HttpProblem` 429."""

    def check_address(self, scope: Scope) -> None:
        """Before anything is known of the caller."""

    def check_user(self, caller: Caller) -> None:
        """When they are known."""


class Register(Protocol):
    """Who is told of each request that is over."""

    def note(self, scope: Scope, status: int | None, seconds: float) -> None:
        """`status` None: it was not answered."""


@dataclass(frozen=True, slots=True)
class Manners:
    """How those are met who come for a part of the paths that is not our own: in whose words they are refused, how they
    are known (None: as everybody is), and pages of which other origins may ask, with cookies (CORS)."""

    envelope: Envelope
    auth: Auth | None = None
    origins: frozenset[str] = frozenset()


MannersOf = Callable[[Scope], Manners | None]
"""Which manners a request is met with; None: ours."""


class Door:
    """ASGI middleware: lets a request in with its `Caller` and request id in the scope, or answers it."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str],
        auth: Auth,
        turnstile: Turnstile,
        register: Register,
        manners_of: MannersOf = lambda scope: None,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._auth = auth
        self._turnstile = turnstile
        self._register = register
        self._manners_of = manners_of
        self._digits = Digits(16)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or passes it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        head = Head(scope)
        given = head.get("x-request-id")
        answered = _Answered(send, given if given and _REQUEST_ID.fullmatch(given) else self._digits.next())
        scope["head"] = head
        scope["request_id"] = answered.request_id
        began = time.perf_counter()
        try:
            await self._pass(scope, head, receive, answered)
        finally:
            self._register.note(scope, answered.status, time.perf_counter() - began)

    async def _pass(self, scope: Scope, head: Head, receive: Receive, answered: _Answered) -> None:
        manners = self._manners_of(scope)
        if manners is not None:
            scope["envelope"] = manners.envelope
            answered.origin = _foreign_origin(manners, head)
        try:
            self._check(scope, head, manners)
            if answered.origin is not None and _is_preflight(scope, head):
                await Response(status_code=204, headers=PREFLIGHT_HEADERS)(scope, receive, answered.send)
                return
            admitted = await self._admit(scope, head, (manners and manners.auth) or self._auth)
        except HttpProblem as problem:
            await _refuse(problem, scope, receive, answered.send)
            return
        answered.set_cookies = admitted.set_cookies
        scope["caller"] = admitted.caller
        if "range" in head:
            drop_bad_range(scope, head)
            scope["head"] = Head(scope)
        await self._lead_in(scope, receive, answered)

    async def _lead_in(self, scope: Scope, receive: Receive, answered: _Answered) -> None:
        """Has it answered. Raises defects, so that the server logs them, and what comes too late for an answer."""
        try:
            await self._app(scope, receive, answered.send)
        except EXPECTED as error:
            if answered.status is not None or scope["type"] != "http":
                raise
            await (await answer_to(Request(scope, receive), error))(scope, receive, answered.send)
        except Exception as error:
            if answered.status is None and scope["type"] == "http":
                await (await answer_to(Request(scope), error))(scope, receive, answered.send)
            raise

    def _check(self, scope: Scope, headers: Headers, manners: Manners | None) -> None:
        """What can be said before it is known who asks. Raises `HttpProblem`."""
        if is_socket(scope):
            return
        self._turnstile.check_address(scope)
        fault = find_fault(scope, headers, self._hosts, NOWHERE if manners is None else manners.origins)
        if fault is not None:
            raise fault

    async def _admit(self, scope: Scope, headers: Headers, auth: Auth) -> Admitted:
        if is_socket(scope):
            return Admitted(admin(headers))
        admitted = await auth.identify(scope, headers)
        self._turnstile.check_user(admitted.caller)
        if scope["type"] == "websocket" and _lacks_origin(admitted.caller, headers):
            raise HttpProblem(403, "cross_site_request", "a WebSocket without an Origin needs a token")
        return admitted


def caller_of(request: Request) -> Caller:
    """Who the door let in."""
    caller: Caller = request.scope["caller"]
    return caller


def allowed_hosts(config: HttpConfig) -> frozenset[str]:
    """The names that a `Host` header may say, without ports."""
    given = config.allowed_hosts or (config.host, *LOOPBACK_NAMES)
    return frozenset(host.lower().strip("[]") for host in given)


def is_socket(scope: Scope) -> bool:
    """Whether a request came by the Unix socket: uvicorn gives its address as its path without a port."""
    server = scope.get("server")
    return server is not None and server[1] is None


def admin(headers: Headers) -> Caller:
    """Whoever comes by the socket."""
    by_cli = headers.get("user-agent", "").startswith(CLI_AGENT)
    return Caller(Entrance.SOCKET, LOCAL_USER, Source.CLI if by_cli else Source.HTTP)


def require_admin(request: Request) -> None:
    """Raises `HttpProblem` 403 for anybody else."""
    if not caller_of(request).is_admin:
        raise HttpProblem(403, "forbidden", "only an admin may do that: the Unix socket, or a token of scope admin")


def find_fault(
    scope: Scope, headers: Headers, hosts: frozenset[str], origins: frozenset[str] = NOWHERE
) -> HttpProblem | None:
    """Why a request through TCP is refused before anything of it is read, or None. Pages of `origins` may ask."""
    if header_bytes(scope) > MAX_HEADER_BYTES:
        return HttpProblem(431, "header_too_large", f"the header is larger than {MAX_HEADER_BYTES} bytes")
    if "transfer-encoding" in headers and "content-length" in headers:
        # RFC 9112 6.3: servers that take one and proxies that take the other see different requests.
        return HttpProblem(400, "ambiguous_length", "both Content-Length and Transfer-Encoding are given")
    if host_name(headers) not in hosts:
        return HttpProblem(400, "invalid_host", "this host name is not served here; see http.allowed_hosts")
    if scope.get("method") in SAFE_METHODS or (origins and headers.get("origin", "").lower() in origins):
        return None
    if is_cross_site(scope, headers):
        return HttpProblem(403, "cross_site_request", "another site's page must not change anything here")
    return None


def header_bytes(scope: Scope) -> int:
    """The size of a request's line and header. The server counts only what comes in pieces."""
    target = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
    fields = scope.get("headers", ())
    return target + sum(map(len, chain.from_iterable(fields))) + 4 * len(fields)


def is_cross_site(scope: Scope, headers: Headers) -> bool:
    """Whether a page of another origin makes this request. Programs that are no browsers send neither header."""
    fetch_site = headers.get("sec-fetch-site")
    if fetch_site is not None:
        return fetch_site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.lower() != own_origin(scope, headers).lower()


def own_origin(scope: Scope, headers: Headers) -> str:
    """The origin of our own pages. A page opens its WebSockets from http or https (RFC 6455, 10.2)."""
    scheme: str = scope["scheme"]
    host = headers.get("host", "")
    return f"{scheme.replace('ws', 'http', 1) if scheme.startswith('ws') else scheme}://{host}"


def host_name(headers: Headers) -> str | None:
    """The name by which we are called, without its port; None for what is no name."""
    return _name_in(headers.get("host", ""))


@lru_cache(maxsize=64)
def _name_in(host: str) -> str | None:
    match = _HOST.fullmatch(host.lower())
    return match and (match[1] or match[2])


def _lacks_origin(caller: Caller, headers: Headers) -> bool:
    """Whether a WebSocket is opened by a cookie and not, so it seems, by a browser."""
    return not caller.is_admin and "origin" not in headers and "authorization" not in headers


def _foreign_origin(manners: Manners, headers: Headers) -> str | None:
    """The other origin whose page asks, if it may."""
    origin = headers.get("origin")
    return origin if origin is not None and origin.lower() in manners.origins else None


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """Whether a browser asks if it may ask (Fetch, 3.3.2)."""
    return scope.get("method") == "OPTIONS" and "access-control-request-method" in headers


async def _refuse(problem: HttpProblem, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        # Before it is accepted: the server answers the handshake with 403.
        await send({"type": "websocket.close", "code": 1008, "reason": problem.code})
        return
    refusal = answer(Request(scope), problem.status_code, problem.code, problem.detail, problem.headers)
    await refusal(scope, receive, send)


class _Answered:
    """The way out: what every answer says is added on it, and its status is remembered."""

    __slots__ = ("_send", "origin", "request_id", "set_cookies", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.set_cookies: tuple[str, ...] = ()
        self.origin: str | None = None
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        """Passes it on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message.setdefault("headers", [])
            if _DEFAULT_NAMES.isdisjoint([name for name, _ in headers]):
                headers += DEFAULT_HEADERS
            else:
                said = {name for name, _ in headers}
                headers += [default for default in DEFAULT_HEADERS if default[0] not in said]
            headers.append((b"x-request-id", self.request_id.encode()))
            if self.set_cookies:
                headers += [(b"set-cookie", cookie.encode()) for cookie in self.set_cookies]
            if self.origin is not None:
                headers.extend(_cors_headers(self.origin))
        elif message["type"] == "websocket.accept":
            self.status = 101
        await self._send(message)


def _cors_headers(origin: str) -> tuple[tuple[bytes, bytes], ...]:
    """What lets a browser show an answer to a page of another origin."""
    return (
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", b"Content-Disposition, X-Request-ID"),
        (b"vary", b"Origin"),
    )
