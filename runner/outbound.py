"""Calls to other servers, at addresses that somebody else chose: none gets to where the runner alone should get.

A name is resolved once, every address that it has is checked, and the connection goes to one of those that were
checked: a name that means another address a moment later (rebinding) gains nothing. That happens wherever a connection
is made, so each hop of a redirect goes through it, too. Proxies, .netrc and the rest of the environment play no part.

    with open_client(policy, check_cancelled=ctx.check) as client, call(client, "GET", url) as response:
        for chunk in response.iter_bytes():
            …

Bodies come uncompressed, as is asked for: what is small on the wire and fills the memory is no answer.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeAlias

import httpcore2
import httpx2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from runner.errors import AnswerTooLarge, ConfigError, OutboundError, Unreachable, UrlNotAllowed
from runner.units import Duration, Size, format_duration, format_size

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve: TypeAlias = Callable[[str, int], Sequence[str]]
Check: TypeAlias = Callable[[], None]

_LOOK_UP_SECONDS: Final = 0.25
_HOST: Final = re.compile(r"[a-z0-9._-]+|\[?[0-9a-f:.]+\]?")
_OF_THE_BODY: Final = frozenset({"content-type", "content-length"})
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_PLATFORM: Final = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Public by its number, and yet the inside of a cloud: where Azure talks to its machines."""


def _check_pattern(pattern: str) -> str:
    name = pattern.removeprefix("*.")
    if not name or any(sign in name for sign in "*/:@ "):
        raise ValueError(f'must be a name such as "api.example.com" or "*.example.com", not {pattern!r}')
    return pattern.lower().rstrip(".")


def _check_proxy(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL()
    if parsed.scheme not in ("http", "https") or not _HOST.fullmatch(_host(parsed)):
        raise ValueError("must be an address such as http://127.0.0.1:3128; user:password@ may stand before the host")
    return url


HostPattern = Annotated[str, AfterValidator(_check_pattern)]
ProxyUrl = Annotated[str, AfterValidator(_check_proxy)]


class Redirects(StrEnum):
    """What to do where an answer points elsewhere: go there, or take it for the answer."""

    FOLLOW = "follow"
    ANSWER = "answer"


class Policy(BaseModel):
    """Which servers may be called, and how long and how much they may answer.

    `hosts`: names, or `*.example.com` for all below one; empty: any. `networks`: ranges of addresses that are allowed
    although they are not public, such as 10.0.0.0/8. `silence_seconds` is the longest wait for the next byte,
    `total_seconds` counts from a request to the end of its answer. `ca_file`: certificates to trust in place of the
    system's. `proxy`: the address of an HTTP proxy to go through. It looks up names itself, so `hosts` has to name all
    that may be called, and `networks` plays no part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_by_name=True)

    hosts: tuple[HostPattern, ...] = ()
    networks: tuple[Network, ...] = ()
    max_redirects: int = Field(default=5, ge=0, le=20)
    connect_seconds: Annotated[Duration, Field(gt=0)] = Field(default=10.0, alias="connect_timeout")
    silence_seconds: Annotated[Duration, Field(gt=0)] = Field(default=10.0, alias="silence_timeout")
    total_seconds: Annotated[Duration, Field(gt=0)] = Field(default=60.0, alias="total_timeout")
    max_body_bytes: Size = 16 * 1024**2
    ca_file: Path | None = None
    proxy: ProxyUrl | None = None

    @model_validator(mode="after")
    def _require_hosts(self) -> Self:
        if self.proxy and not self.hosts:
            raise ValueError("a proxy needs hosts: addresses cannot be checked behind it, but names can")
        return self


def read_policy(section: Mapping[str, Any] | None) -> Policy:
    """The policy that part of a handler's configuration describes; None: the defaults. Raises `ConfigError`."""
    try:
        return Policy.model_validate(section or {})
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        lines = (
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}" for fault in faults
        )
        raise ConfigError("the rules for calls to other servers cannot be used:", tuple(lines)) from error


def check_url(url: str | httpx2.URL, policy: Policy | None = None) -> httpx2.URL:
    """The URL, if it may be called as far as its text tells: http or https, no user name in it, a host of the policy
    or an address that it allows.

    Where the host's name leads to is checked when it is connected to. Raises `UrlNotAllowed`.
    """
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError, ValueError) as error:
        raise UrlNotAllowed(f"not a URL: {error}") from error
    if parsed.scheme not in ("http", "https"):
        raise UrlNotAllowed(f"must begin with http:// or https://, not {parsed.scheme or 'without a scheme'}")
    if parsed.userinfo:
        raise UrlNotAllowed("must not hold a user name or a password")
    if not _HOST.fullmatch(_host(parsed)):
        raise UrlNotAllowed(f"{parsed.host!r} is no host" if parsed.host else "names no host")
    if not 0 < (parsed.port or 80) < 65536:
        raise UrlNotAllowed(f"{parsed.port} is no port")
    if policy and policy.hosts and not any(_is_named(_host(parsed), pattern) for pattern in policy.hosts):
        raise UrlNotAllowed(f"{parsed.host} is not among the hosts that may be called")
    if policy:
        with contextlib.suppress(ValueError):  # a name
            check_address(parsed.host, policy)
    return parsed


def check_address(address: str, policy: Policy) -> None:
    """Raise `UrlNotAllowed` unless the address is public, or in one of the policy's networks."""
    for meant in _meanings(ipaddress.ip_address(address)):
        if not is_public(meant) and not any(meant in network for network in policy.networks):
            raise UrlNotAllowed(f"{address} is not a public address")


def is_public(address: Address) -> bool:
    """Whether an address is one of the open network: not of this machine, its neighbourhood or any special range."""
    special = address.is_multicast or address.is_reserved or address.is_unspecified or address in _PLATFORM
    return address.is_global and not special and not getattr(address, "is_site_local", False)


def resolve(host: str, port: int) -> list[str]:
    """Every address of a host, as the system knows it. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def open_client(policy: Policy, *, check_cancelled: Check = lambda: None, resolve: Resolve = resolve) -> httpx2.Client:
    """A client that calls only what the policy allows; keeps connections open for the next request to the same server.

    It follows no redirect unless told, and checks each hop then. `check_cancelled` is called several times a second
    while it waits; what that raises comes out of the call. May be used from several threads. Raises `UrlNotAllowed`
    and `AnswerTooLarge` beside what httpx2 raises; `call` is for who wants neither httpx2's errors nor its redirects.
    """
    timeout = httpx2.Timeout(policy.silence_seconds, connect=policy.connect_seconds)
    return httpx2.Client(
        transport=_Gate(policy, check_cancelled, resolve),
        trust_env=False,
        timeout=timeout,
        max_redirects=policy.max_redirects,
        headers={"accept-encoding": "identity", "user-agent": "file-runner"},
    )


@contextlib.contextmanager
def call(
    client: httpx2.Client,
    method: str,
    url: str | httpx2.URL,
    *,
    headers: Mapping[str, str] | None = None,
    content: bytes | Iterable[bytes] | None = None,
    redirects: Redirects = Redirects.FOLLOW,
) -> Iterator[httpx2.Response]:
    """The answer to a request, after as many redirects as the policy allows; its body is read by whoever called.

    `headers` go to the server that was named and to no other one that it points to. `content` that is not bytes is
    gone through again for each redirect. Raises `UrlNotAllowed`, `AnswerTooLarge`, and `Unreachable` for a server that
    cannot be reached, is too slow or breaks off; also inside the `with`, where the body is read. An answer with an
    error status is an answer.
    """
    try:
        request = client.build_request(method, check_url(url), headers=headers, content=content)
        private = () if headers is None else tuple(name for name in headers if name.lower() not in _OF_THE_BODY)
        with contextlib.closing(_follow(client, request, private, redirects)) as response:
            yield response
    except httpx2.TimeoutException as error:
        raise Unreachable(f"no answer in time: {type(error).__name__}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error


def _follow(
    client: httpx2.Client, request: httpx2.Request, private: Iterable[str], redirects: Redirects
) -> httpx2.Response:
    first = request.url
    for _ in range(client.max_redirects + 1):
        response = client.send(request, stream=True)
        if response.next_request is None or redirects is Redirects.ANSWER:
            return response
        response.close()
        request = response.next_request
        if _origin(request.url) != _origin(first):
            for name in private:
                request.headers.pop(name, None)
    raise Unreachable(f"more than {client.max_redirects} redirects")


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, _host(url), url.port


def _host(url: httpx2.URL) -> str:
    return url.raw_host.decode("ascii").lower().rstrip(".")


def _is_named(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _meanings(address: Address) -> tuple[Address, ...]:
    """The address, and the one of IPv4 that is written in it and that a router or the kernel may turn it into."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    if address.ipv4_mapped:
        return (address.ipv4_mapped,)
    if address.sixtofour:
        return (address, address.sixtofour)
    if address in _NAT64:
        return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
    return (address,)


class _Clock:
    """When the request that a thread makes has to be over. Each thread has its own."""

    def __init__(self, policy: Policy, check_cancelled: Check) -> None:
        self._total_seconds = policy.total_seconds
        self._check_cancelled = check_cancelled
        self._own = threading.local()

    def start(self) -> float:
        """Begin a request; the moment (monotonic) at which it has to be over."""
        return self.resume(time.monotonic() + self._total_seconds)

    def resume(self, deadline: float) -> float:
        """Go on with a request that has to be over then."""
        self._own.deadline = deadline
        return deadline

    def left(self) -> float:
        """Seconds that the request may still take. Raises `Unreachable` if there are none, and what stops the call."""
        self._check_cancelled()
        left: float = self._own.deadline - time.monotonic()
        if left <= 0:
            raise Unreachable(f"the answer took longer than {format_duration(self._total_seconds)}")
        return left


class _Gate(httpx2.BaseTransport):
    """What every request of a client goes through, redirected ones too."""

    def __init__(self, policy: Policy, check_cancelled: Check, resolve: Resolve) -> None:
        self._policy = policy
        self._clock = _Clock(policy, check_cancelled)
        self._pool = _open_pool(policy, _Network(policy, self._clock, resolve))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request. Raises as `open_client` says."""
        check_url(request.url, self._policy)
        deadline = self._clock.start()
        with _translated():
            answer = self._pool.handle_request(_lower(request))
        assert isinstance(answer.stream, Iterable)
        headers = httpx2.Headers(answer.headers)
        body = _Body(answer.stream, self._clock, deadline, self._policy.max_body_bytes, _refusal(headers, self._policy))
        return httpx2.Response(answer.status, headers=headers, stream=body, extensions=answer.extensions)

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


def _open_pool(policy: Policy, network: httpcore2.NetworkBackend) -> httpcore2.ConnectionPool:
    """Where connections are kept."""
    open_pool: Callable[..., httpcore2.ConnectionPool] = httpcore2.ConnectionPool
    if policy.proxy:
        url = httpx2.URL(policy.proxy)
        where = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/")
        auth = (url.username, url.password) if url.userinfo else None
        open_pool = functools.partial(httpcore2.HTTPProxy, where, auth)
    return open_pool(
        ssl_context=_trust(policy.ca_file),
        max_connections=100,
        max_keepalive_connections=20,
        keepalive_expiry=5.0,
        network_backend=network,
    )


class _Body(httpx2.SyncByteStream):
    """An answer's body: so many bytes at most, and for so long. Whoever wants it is told of a `refusal`."""

    def __init__(
        self, stream: Iterable[bytes], clock: _Clock, deadline: float, limit: int, refusal: OutboundError | None
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._deadline = deadline
        self._limit = limit
        self._refusal = refusal

    def __iter__(self) -> Iterator[bytes]:
        if self._refusal:
            raise self._refusal
        taken = 0
        self._clock.resume(self._deadline)
        with _translated():
            for chunk in self._stream:
                taken += len(chunk)
                if taken > self._limit:
                    raise _too_large(self._limit)
                yield chunk
                # Between two chunks the same thread may have made another request.
                self._clock.resume(self._deadline)

    def close(self) -> None:
        """Give the connection back, or up."""
        close = getattr(self._stream, "close", None)
        if close:
            close()


class _Network(httpcore2.NetworkBackend):
    """Makes connections to addresses that were checked."""

    def __init__(self, policy: Policy, clock: _Clock, resolve: Resolve) -> None:
        self._policy = policy
        self._clock = clock
        self._resolve = resolve
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """A connection to one of the host's addresses, all of which are allowed. Raises `UrlNotAllowed`."""
        failure: httpcore2.NetworkError | httpcore2.TimeoutException = httpcore2.ConnectError(f"{host} has no address")
        for address in self._addresses(host, port):
            left = min(self._clock.left(), timeout or self._policy.connect_seconds)
            try:
                return _Stream(
                    self._sockets.connect_tcp(address, port, left, local_address, socket_options), self._clock
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    def _addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} cannot be resolved: {error}") from error
        if not self._policy.proxy:  # with one, it is the only server that is ever connected to
            for address in addresses:
                check_address(address, self._policy)
        return addresses


class _Stream(httpcore2.NetworkStream):
    """A connection that waits in short steps, so that whoever waits can be told to stop."""

    def __init__(self, stream: httpcore2.NetworkStream, clock: _Clock) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next bytes."""
        give_up_at = None if timeout is None else time.monotonic() + timeout
        while True:
            step = min(self._clock.left(), _LOOK_UP_SECONDS)
            try:
                return self._stream.read(max_bytes, step)
            except httpcore2.ReadTimeout:
                if give_up_at is not None and time.monotonic() >= give_up_at:
                    raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        left = self._clock.left()
        self._stream.write(buffer, left if timeout is None else min(left, timeout))

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """The same connection, encrypted; the certificate must be that of the name that was asked for."""
        left = self._clock.left()
        wait = left if timeout is None else min(left, timeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, wait), self._clock)

    def get_extra_info(self, info: str) -> Any:
        """See httpcore2."""
        return self._stream.get_extra_info(info)


@functools.lru_cache(maxsize=8)
def _trust(ca_file: Path | None) -> ssl.SSLContext:
    """Whom to believe; kept, because reading the system's certificates takes longer than most calls."""
    if ca_file is None:
        return httpx2.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file {ca_file} cannot be used: {error}") from error


def _lower(request: httpx2.Request) -> httpcore2.Request:
    """The request as the layer below wants it."""
    url = request.url
    target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    assert isinstance(request.stream, httpx2.SyncByteStream)
    return httpcore2.Request(
        request.method, target, headers=request.headers.raw, content=request.stream, extensions=request.extensions
    )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of the layer below as those of httpx2, which have the same names."""
    try:
        yield
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.ProxyError) as error:
        raise getattr(httpx2, type(error).__name__, httpx2.TransportError)(str(error)) from error


def _refusal(headers: httpx2.Headers, policy: Policy) -> OutboundError | None:
    """Why a body is not to be read, as far as the headers tell."""
    encoding, length = headers.get("content-encoding", "identity"), headers.get("content-length", "")
    if encoding != "identity":
        return Unreachable(f"the answer is compressed ({encoding[:20]}), although it was asked for as it is")
    if length.isdecimal() and int(length) > policy.max_body_bytes:
        return _too_large(policy.max_body_bytes)
    return None


def _too_large(limit: int) -> AnswerTooLarge:
    return AnswerTooLarge(f"the answer is larger than {format_size(limit)}")
