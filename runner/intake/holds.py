"""Files that are there and cannot be taken yet: why, since when, and when to look again."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from runner.intake.folders import Folder
from runner.intake.readiness import State, Watched

SOONEST_SECONDS: Final = 0.01
LATEST_SECONDS: Final = 1.0
RARELY_SECONDS: Final = 10.0
FIXED_SECONDS: Final = 600.0
_SECONDS_A_LOOK: Final = 0.0002
"""The looks at all files held may take about a twentieth of one core: a look costs 10 µs."""


class Why(StrEnum):
    """What a held file waits for. `FILE`: it is a sidecar and its input is not there. `PARTNER`: its input is there.
    `PARAMETERS`: the payload does not suffice, and a sidecar may yet come. `STRAY`: no handler's folder holds it.
    `FIXED`: it cannot be moved out of its folder. `MARKER`: the file is not there that says that it is whole.
    `DUPLICATE`: a task of the same content has not ended."""

    EMPTY = "empty"
    WRITING = "writing"
    SETTLING = "settling"
    FILE = "file"
    PARTNER = "partner"
    PARAMETERS = "parameters"
    STRAY = "stray"
    UNREADABLE = "unreadable"
    FIXED = "fixed"
    MARKER = "marker"
    DUPLICATE = "duplicate"


_RARELY: Final = frozenset({Why.FILE, Why.PARTNER, Why.STRAY, Why.UNREADABLE, Why.MARKER, Why.DUPLICATE})
"""No look can end these: something else must happen first, and a scan or an event tells of it."""
WHY_OF_STATE: Final = {State.EMPTY: Why.EMPTY, State.WRITING: Why.WRITING, State.SETTLING: Why.SETTLING}


@dataclass(slots=True)
class Hold:
    """One held file. `due`, and the instants in `watched`, are seconds of a monotonic clock; `since` is for people."""

    folder: Folder
    name: str
    why: Why
    reason: str
    since: datetime
    first_seen: float
    watched: Watched | None = None
    beside: Watched | None = None
    due: float = 0.0
    looks: int = 0

    @property
    def path(self) -> str:
        """Where the file lies."""
        return self.folder.absolute(self.name)


@dataclass(slots=True)
class Holds:
    """All held files by their path. Changed by the inbox's thread; single lookups and `all` from any."""

    _by_path: dict[str, Hold] = field(default_factory=dict)
    _queue: list[tuple[float, int, str]] = field(default_factory=list)
    _turn: Iterator[int] = field(default_factory=itertools.count)

    def __len__(self) -> int:
        return len(self._by_path)

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def find(self, path: str) -> Hold | None:
        """The hold on one file, or None."""
        return self._by_path.get(path)

    def all(self) -> list[Hold]:
        """All of them."""
        return list(self._by_path.values())

    def keep(self, hold: Hold, due: float) -> None:
        """The file is held, and looked at again at `due`."""
        hold.due = due
        hold.looks += 1
        self._by_path[hold.path] = hold
        heapq.heappush(self._queue, (due, next(self._turn), hold.path))

    def release(self, path: str) -> Hold | None:
        """The file is not held any more, because it is taken, refused or gone."""
        return self._by_path.pop(path, None)

    def due(self, now: float) -> list[Hold]:
        """Those to look at again. Each must be kept again or released."""
        ready = []
        while self._queue and self._queue[0][0] <= now:
            due, _, path = heapq.heappop(self._queue)
            hold = self._by_path.get(path)
            # One that was kept again meanwhile has a later entry.
            if hold is not None and hold.due == due:
                ready.append(hold)
        return ready

    def next_due(self) -> float | None:
        """When the next one is due."""
        return self._queue[0][0] if self._queue else None

    def interval(self, quiet_seconds: float) -> float:
        """How long to wait before looking again at a file that has not changed for so long: a tenth of that, so that
        the end of a steady writer is seen within some 10 ms, and less often the more files are held."""
        soonest = max(SOONEST_SECONDS, len(self._by_path) * _SECONDS_A_LOOK)
        return max(soonest, min(quiet_seconds / 10, LATEST_SECONDS))


def next_look(holds: Holds, hold: Hold, now: float, settle_seconds: float) -> float:
    """When to look again at a held file."""
    if hold.why is Why.FIXED:
        return now + FIXED_SECONDS
    if hold.why in _RARELY:
        return now + min(0.5 * 2.0 ** min(hold.looks, 10), RARELY_SECONDS)
    watched = hold.beside or hold.watched
    if watched is None:
        return now + LATEST_SECONDS
    if hold.why is Why.SETTLING:
        return max(watched.unchanged_since + settle_seconds, now + SOONEST_SECONDS)
    return now + holds.interval(now - watched.unchanged_since)
