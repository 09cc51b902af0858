"""Limits on how many attempts run at once: in all, of a type, of a user, of a user's tasks of a type, of a queue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

MANY_LANES = 10_000
"""With more lanes than this known, those of which nothing runs are forgotten."""


class Lane(NamedTuple):
    """Tasks that are alike in all that a limit or the order between users can depend on; they run first come, first
    served."""

    queue: str
    priority: int
    user_id: str
    type: str


class Scope(StrEnum):
    """What a limit counts."""

    GLOBAL = "global"
    QUEUE = "queue"
    TYPE = "type"
    USER = "user"
    TYPE_AND_USER = "type_and_user"


class Limit(NamedTuple):
    """One limit: a scope and whose it is, for example `(TYPE, "thumbnail")`."""

    scope: Scope
    name: str = ""

    def __str__(self) -> str:
        return f"{self.scope}:{self.name}" if self.name else str(self.scope)


GLOBAL = Limit(Scope.GLOBAL)


@dataclass(frozen=True)
class LimitRules:
    """How many attempts may run at once. None, or no entry, is no limit. `exempt_users` have no per-user limit."""

    global_: int
    per_user: int | None = None
    exempt_users: frozenset[str] = frozenset()
    per_type: Mapping[str, int] = field(default_factory=dict)
    per_type_and_user: Mapping[str, int] = field(default_factory=dict)
    per_queue: Mapping[str, int] = field(default_factory=dict)

    def of(self, lane: Lane) -> Iterator[tuple[Limit, int]]:
        """The limits that hold for a lane's attempts, and the largest count that each allows."""
        yield GLOBAL, self.global_
        if lane.queue in self.per_queue:
            yield Limit(Scope.QUEUE, lane.queue), self.per_queue[lane.queue]
        if lane.type in self.per_type:
            yield Limit(Scope.TYPE, lane.type), self.per_type[lane.type]
        if lane.user_id in self.exempt_users:
            return
        if self.per_user is not None:
            yield Limit(Scope.USER, lane.user_id), self.per_user
        if lane.type in self.per_type_and_user:
            yield Limit(Scope.TYPE_AND_USER, f"{lane.type}/{lane.user_id}"), self.per_type_and_user[lane.type]


@dataclass(slots=True, eq=False)
class _Gauge:
    """How many attempts a limit counts now, and how many it allows."""

    limit: Limit
    maximum: int
    running: int = 0


@dataclass(slots=True, eq=False)
class _Count:
    """How many attempts of a lane run now, and the limits that count them."""

    gauges: tuple[_Gauge, ...]
    limits: tuple[Limit, ...]
    running: int = 0


class Limits:
    """Counts what runs. Not thread-safe: its owner locks."""

    def __init__(self, rules: LimitRules) -> None:
        self._many = MANY_LANES
        self._set(rules)

    def change(self, rules: LimitRules) -> None:
        """Other rules from now on; what runs is not stopped, and is counted by the limits that hold now."""
        running = [(lane, count.running) for lane, count in self._counts.items() if count.running]
        self._set(rules)
        for lane, number in running:
            for _ in range(number):
                self.acquire(lane)

    def allow_any(self) -> bool:
        """Whether the limit on all attempts allows one more."""
        return self._all.running < self._all.maximum

    def blocker(self, lane: Lane) -> Limit | None:
        """The first limit that keeps the lane's next task from starting; None if it may start."""
        for gauge in (self._counts.get(lane) or self._learn(lane)).gauges:
            if gauge.running >= gauge.maximum:
                return gauge.limit
        return None

    def running(self, limit: Limit) -> int:
        """How many attempts a limit counts now; 0 where there is no such limit."""
        gauge = self._gauges.get(limit)
        return 0 if gauge is None else gauge.running

    def acquire(self, lane: Lane) -> None:
        """One more attempt of the lane runs."""
        count = self._counts.get(lane) or self._learn(lane)
        count.running += 1
        for gauge in count.gauges:
            gauge.running += 1

    def release(self, lane: Lane) -> tuple[Limit, ...]:
        """One attempt fewer runs; returns the limits that counted it."""
        count = self._counts[lane]
        count.running -= 1
        for gauge in count.gauges:
            gauge.running -= 1
        return count.limits

    def _set(self, rules: LimitRules) -> None:
        self._rules = rules
        self._all = _Gauge(GLOBAL, rules.global_)
        self._gauges = {GLOBAL: self._all}
        self._counts: dict[Lane, _Count] = {}

    def _learn(self, lane: Lane) -> _Count:
        if len(self._counts) >= self._many:
            self._forget_idle()
        gauges = tuple(self._gauge(limit, maximum) for limit, maximum in self._rules.of(lane))
        count = self._counts[lane] = _Count(gauges, tuple(gauge.limit for gauge in gauges))
        return count

    def _gauge(self, limit: Limit, maximum: int) -> _Gauge:
        gauge = self._gauges.get(limit)
        if gauge is None:
            gauge = self._gauges[limit] = _Gauge(limit, maximum)
        return gauge

    def _forget_idle(self) -> None:
        self._counts = {lane: count for lane, count in self._counts.items() if count.running}
        self._gauges = {limit: gauge for limit, gauge in self._gauges.items() if gauge.running or gauge is self._all}
        self._many = max(MANY_LANES, 2 * len(self._counts))
