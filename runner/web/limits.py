"""How often somebody may ask, and how many streams they may hold open. The event loop's thread only."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runner.web.crossing import in_thread
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


class OpenLimit:
    """At most so many of something open at once for each user; None: any number. `code` and `what` tell of which."""

    def __init__(self, per_user: int | None, exempt_users: frozenset[str], code: str, what: str) -> None:
        self._per_user = per_user
        self._exempt_users = exempt_users
        self._code = code
        self._what = what
        self._open: Counter[str] = Counter()

    def enter(self, caller: Caller) -> None:
        """One more. Raises `HttpProblem` 429."""
        self.check(caller, caller.user_id, self._open[caller.user_id])
        self._open[caller.user_id] += 1

    def leave(self, caller: Caller) -> None:
        """One less."""
        self._open[caller.user_id] -= 1
        if not self._open[caller.user_id]:
            del self._open[caller.user_id]

    @contextmanager
    def held(self, caller: Caller) -> Iterator[None]:
        """One more while the block lasts. Raises `HttpProblem` 429."""
        self.enter(caller)
        try:
            yield
        finally:
            self.leave(caller)

    def holds(self, caller: Caller, user_id: str) -> bool:
        """Whether what is to be `user_id`'s is limited when this caller asks."""
        is_exempt = caller.entrance is Entrance.SOCKET or user_id in self._exempt_users
        return self._per_user is not None and not is_exempt

    def check(self, caller: Caller, user_id: str, known: int, more: int = 1) -> None:
        """`more` beside `known` of a user's. Raises `HttpProblem` 429."""
        if self.holds(caller, user_id) and known + more > (self._per_user or 0):
            raise HttpProblem(429, self._code, self._what.format(self._per_user), {"Retry-After": "5"})


class StreamLimit(OpenLimit):
    """At most so many open streams for each user."""

    def __init__(self, per_user: int | None, exempt_users: frozenset[str]) -> None:
        what = "{} streams are open already; close one, or watch several tasks in one"
        super().__init__(per_user, exempt_users, "too_many_streams", what)

    def counted(self, caller: Caller, stream: Response) -> Response:
        """An answer that counts while it is sent."""
        return _Held(self, caller, stream)


class DraftLimit:
    """At most so many drafts for each user. Those on their way in count, so that many at once do not get past it."""

    def __init__(self, limit: OpenLimit, count: Callable[[str], int]) -> None:
        self._limit = limit
        self._count = count
        self._coming: Counter[str] = Counter()

    @asynccontextmanager
    async def room(self, caller: Caller, drafts: int) -> AsyncIterator[None]:
        """There is room for so many more while they are made. Raises `HttpProblem` 429."""
        if not drafts or not self._limit.holds(caller, caller.user_id):
            yield
            return
        self._coming[caller.user_id] += drafts
        coming = self._coming[caller.user_id]  # before it is counted: who arrives meanwhile is counted there, or twice
        try:
            stored = await in_thread(self._count, caller.user_id)
            self._limit.check(caller, caller.user_id, stored + coming, more=0)
            yield
        finally:
            self._coming[caller.user_id] -= drafts
            if not self._coming[caller.user_id]:
                del self._coming[caller.user_id]


class _Held(Response):
    """A streaming answer that counts for as long as it is sent."""

    def __init__(self, limit: StreamLimit, caller: Caller, stream: Response) -> None:
        self._limit = limit
        self._caller = caller
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it. Raises `HttpProblem` 429 before anything was sent."""
        with self._limit.held(self._caller):
            await self._stream(scope, receive, send)


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
