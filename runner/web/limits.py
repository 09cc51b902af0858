"""How often somebody may ask, and how many streams they may hold open. The event loop's thread only."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runner.web.door import Caller, Entrance
from runner.web.problems import HttpProblem

BURST_SECONDS: Final = 4
"""Whoever was quiet may ask as often at once as is allowed in so many seconds."""

MAX_REMEMBERED: Final = 10_000
_IPV6_NETWORK: Final = 64


class Rate:
    """So many requests a second for each key, by the generic cell rate algorithm (ITU-T I.371): one instant a key.

    A key that nothing was heard of for a while is as new; of very many, those seen first are forgotten first.
    """

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        self._tolerance = BURST_SECONDS - self._interval
        self._due_at: OrderedDict[str, float] = OrderedDict()

    def take(self, key: str, now: float) -> float:
        """0 if a request is allowed now (a monotonic clock's seconds), else after how many seconds the next one is."""
        due_at = max(self._due_at.get(key, now), now)
        if due_at - now > self._tolerance:
            return due_at - now - self._tolerance
        self._due_at[key] = due_at + self._interval
        self._due_at.move_to_end(key)
        if len(self._due_at) > MAX_REMEMBERED:
            self._due_at.popitem(last=False)
        return 0.0


class Throttle:
    """Refuses who asks too often: by address, before anything is known of them, and by user. None: no limit.

    This machine's own addresses are not counted: it is a proxy's there, or the person's who sits at it.
    """

    def __init__(
        self,
        per_address: float | None,
        per_user: float | None,
        exempt_users: frozenset[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._by_address = None if per_address is None else Rate(per_address)
        self._by_user = None if per_user is None else Rate(per_user)
        self._exempt_users = exempt_users
        self._clock = clock

    def check_address(self, scope: Scope) -> None:
        """Raises `HttpProblem` 429."""
        address = network_of(scope["client"][0]) if scope.get("client") else None
        if self._by_address is not None and address is not None:
            _refuse_until(self._by_address.take(address, self._clock()))

    def check_user(self, caller: Caller) -> None:
        """Raises `HttpProblem` 429. Of who is new, only the address is known to be theirs."""
        if self._by_user is not None and not caller.is_new and caller.user_id not in self._exempt_users:
            _refuse_until(self._by_user.take(caller.user_id, self._clock()))


class StreamLimit:
    """At most so many open streams for each user."""

    def __init__(self, per_user: int | None, exempt_users: frozenset[str]) -> None:
        self._per_user = per_user
        self._exempt_users = exempt_users
        self._open: Counter[str] = Counter()

    def counted(self, caller: Caller, response: Response) -> Response:
        """An answer that counts while it is sent, if it is a stream of events; others stay as they are."""
        return _Held(self, caller, response) if response.media_type == "text/event-stream" else response

    def enter(self, caller: Caller) -> None:
        """One more stream. Raises `HttpProblem` 429."""
        if not self._is_exempt(caller) and self._open[caller.user_id] >= (self._per_user or math.inf):
            detail = f"{self._per_user} streams are open already; close one, or watch several tasks in one"
            raise HttpProblem(429, "too_many_streams", detail, {"Retry-After": "5"})
        self._open[caller.user_id] += 1

    def leave(self, caller: Caller) -> None:
        """One stream less."""
        self._open[caller.user_id] -= 1
        if not self._open[caller.user_id]:
            del self._open[caller.user_id]

    def _is_exempt(self, caller: Caller) -> bool:
        return caller.entrance is Entrance.SOCKET or caller.user_id in self._exempt_users


class _Held(Response):
    """A streaming answer that counts for as long as it is sent."""

    def __init__(self, limit: StreamLimit, caller: Caller, stream: Response) -> None:
        self._limit = limit
        self._caller = caller
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it. Raises `HttpProblem` 429 before anything was sent."""
        self._limit.enter(self._caller)
        try:
            await self._stream(scope, receive, send)
        finally:
            self._limit.leave(self._caller)


@lru_cache(maxsize=1024)
def network_of(address: str) -> str | None:
    """What is counted together: an IPv4 address, the network of an IPv6 one, from which a client has its pick."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback:
        return None
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, _IPV6_NETWORK), strict=False))


def _refuse_until(seconds: float) -> None:
    if seconds > 0:
        headers = {"Retry-After": str(math.ceil(seconds))}
        raise HttpProblem(429, "rate_limited", "too many requests; ask again later", headers)
