"""Limits on how many attempts run at once: in all, of a type, of a user, of a user's tasks of a type, of a queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


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

    def maximum(self, limit: Limit) -> int | None:
        """The largest count that a limit allows."""
        if limit.scope is Scope.GLOBAL:
            return self.global_
        if limit.scope is Scope.USER:
            return None if limit.name in self.exempt_users else self.per_user
        if limit.scope is Scope.TYPE:
            return self.per_type.get(limit.name)
        if limit.scope is Scope.QUEUE:
            return self.per_queue.get(limit.name)
        type, _, user_id = limit.name.partition("/")
        return None if user_id in self.exempt_users else self.per_type_and_user.get(type)


class Limits:
    """Counts what runs. Not thread-safe: its owner locks."""

    def __init__(self, rules: LimitRules) -> None:
        self.rules = rules
        self._running: Counter[Limit] = Counter()
        self._applying: dict[Lane, tuple[tuple[Limit, int], ...]] = {}

    def change(self, rules: LimitRules) -> None:
        """Other rules from now on; what runs is not stopped."""
        self.rules = rules
        self._applying.clear()

    def blocker(self, lane: Lane) -> Limit | None:
        """The first limit that keeps the lane's next task from starting; None if it may start."""
        running = self._running
        for limit, maximum in self._limits_of(lane):
            if running[limit] >= maximum:
                return limit
        return None

    def is_full(self, limit: Limit) -> bool:
        """Whether a limit allows no further attempt."""
        maximum = self.rules.maximum(limit)
        return maximum is not None and self._running[limit] >= maximum

    def running(self, limit: Limit) -> int:
        """How many attempts a limit counts now."""
        return self._running[limit]

    def acquire(self, lane: Lane) -> None:
        """One more attempt of the lane runs."""
        for limit, _ in self._limits_of(lane):
            self._running[limit] += 1

    def release(self, lane: Lane) -> tuple[Limit, ...]:
        """One attempt fewer runs; returns the limits that now have room for one more."""
        limits = tuple(limit for limit, _ in self._limits_of(lane))
        for limit in limits:
            self._running[limit] -= 1
        return limits

    def recount(self, lanes: list[Lane]) -> None:
        """Counts anew, from the lanes of all attempts that run: after a change of rules other limits may apply."""
        self._running.clear()
        for lane in lanes:
            self.acquire(lane)

    def _limits_of(self, lane: Lane) -> tuple[tuple[Limit, int], ...]:
        known = self._applying.get(lane)
        if known is None:
            candidates = (
                GLOBAL,
                Limit(Scope.QUEUE, lane.queue),
                Limit(Scope.TYPE, lane.type),
                Limit(Scope.USER, lane.user_id),
                Limit(Scope.TYPE_AND_USER, f"{lane.type}/{lane.user_id}"),
            )
            maxima = ((limit, self.rules.maximum(limit)) for limit in candidates)
            known = tuple((limit, maximum) for limit, maximum in maxima if maximum is not None)
            if len(self._applying) > 10_000:
                self._applying.clear()
            self._applying[lane] = known
        return known
