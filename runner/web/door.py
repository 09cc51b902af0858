"""What every request passes first: who asks, through which door, and whether a browser was tricked into asking.

Through the Unix socket comes the admin: the file's permissions have let nobody else in. Through TCP in `auth.mode`
`local` comes the person at this machine, and with them every web page that their browser shows. So a request
must name a host of ours (a page that rebinds its DNS name to 127.0.0.1 does not) and, if it changes anything, must not
come from another site (Fetch Metadata, W3C; `Origin`, RFC 6454, where a browser sends none).
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runner.config import HttpConfig
from runner.task import Source
from runner.web.problems import HttpProblem, answer

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
CLI_AGENT: Final = "runner-cli"
LOCAL_USER: Final = "local"

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9a-z_.-]+))(?::[0-9]{1,5})?")
_REQUEST_ID: Final = re.compile(r"[0-9A-Za-z._-]{1,64}")


class Entrance(StrEnum):
    """Which listener a request came in by."""

    SOCKET = "socket"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `sees` is the user whose tasks they may see and change, None for everybody's."""

    entrance: Entrance
    user_id: str
    source: Source
    sees: str | None = None

    @property
    def may_name_files(self) -> bool:
        """Whether a submission may name files of this machine as its inputs."""
        return self.entrance is Entrance.SOCKET


class Door:
    """ASGI middleware: lets a request in with its `Caller` and request id in the scope, or answers it."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or passes it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope["request_id"] = request_id = _request_id(headers)
        scope["caller"] = caller = identify(scope, headers)
        fault = find_fault(scope, headers, self._hosts) if caller.entrance is Entrance.TCP else None
        if fault is None:
            await self._app(scope, receive, _signed(send, request_id))
            return
        refusal = answer(Request(scope), fault.status_code, fault.code, fault.detail)
        await refusal(scope, receive, _signed(send, request_id))


def caller_of(request: Request) -> Caller:
    """Who the door let in."""
    caller: Caller = request.scope["caller"]
    return caller


def allowed_hosts(config: HttpConfig) -> frozenset[str]:
    """The names that a `Host` header may say, without ports."""
    given = config.allowed_hosts or (config.host, *LOOPBACK_NAMES)
    return frozenset(host.lower().strip("[]") for host in given)


def identify(scope: Scope, headers: Headers) -> Caller:
    """The caller, by listener: uvicorn gives a Unix socket's address as its path without a port."""
    server = scope.get("server")
    if server is not None and server[1] is None:
        by_cli = headers.get("user-agent", "").startswith(CLI_AGENT)
        return Caller(Entrance.SOCKET, LOCAL_USER, Source.CLI if by_cli else Source.HTTP)
    return Caller(Entrance.TCP, LOCAL_USER, Source.HTTP)


def find_fault(scope: Scope, headers: Headers, hosts: frozenset[str]) -> HttpProblem | None:
    """Why a request through TCP is refused before anything of it is read, or None."""
    if "transfer-encoding" in headers and "content-length" in headers:
        # RFC 9112 6.3: servers that take one and proxies that take the other see different requests.
        return HttpProblem(400, "ambiguous_length", "both Content-Length and Transfer-Encoding are given")
    host = headers.get("host", "")
    if _name_of(host) not in hosts:
        return HttpProblem(400, "invalid_host", "this host name is not served here; see http.allowed_hosts")
    if scope["method"] not in SAFE_METHODS and is_cross_site(headers, f"{scope['scheme']}://{host}"):
        return HttpProblem(403, "cross_site_request", "another site's page must not change anything here")
    return None


def is_cross_site(headers: Headers, own_origin: str) -> bool:
    """Whether a page of another origin makes this request. Programs that are no browsers send neither header."""
    fetch_site = headers.get("sec-fetch-site")
    if fetch_site is not None:
        return fetch_site not in ("same-origin", "none")
    return headers.get("origin", own_origin).lower() != own_origin.lower()


def _name_of(host: str) -> str | None:
    match = _HOST.fullmatch(host.lower())
    return match and (match[1] or match[2])


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _signed(send: Send, request_id: str) -> Send:
    async def signed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = request_id
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return signed
