"""Files to look at next: a lane for each folder, served in turn, so that 10,000 files in one never starve another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from runner.intake.folders import Folder

FIRST_BACKOFF_SECONDS: Final = 0.5
LONGEST_BACKOFF_SECONDS: Final = 60.0


@dataclass(slots=True)
class Lane:
    """The files of one folder in the order of their coming; `first` go before `names`.

    `blocked_until`: seconds of a monotonic clock, while the folder as a whole cannot be served; `reason` and `code`
    say why, `backoff_seconds` how long the last wait was.
    """

    folder: Folder
    first: dict[str, None] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    blocked_until: float = 0.0
    backoff_seconds: float = 0.0
    code: str = ""
    reason: str = ""

    def __len__(self) -> int:
        return len(self.first) + len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self.names or name in self.first


class Lanes:
    """All lanes. Changed by the inbox's thread; `find` and `all` from any."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._turn: list[str] = []

    def add(self, folder: Folder, names: Iterable[str]) -> int:
        """Puts files at the end of their folder's lane; returns how many were not in it."""
        lane = self._lane(folder)
        before = len(lane.names)
        new = [name for name in names if name not in lane.first] if lane.first else names
        lane.names.update(dict.fromkeys(new))
        return len(lane.names) - before

    def put_first(self, folder: Folder, names: Iterable[str]) -> None:
        """Puts files at the head of the lane: they have waited already."""
        lane = self._lane(folder)
        lane.first.update(dict.fromkeys(names))

    def block(self, folder: Folder, code: str, reason: str, now: float, seconds: float | None = None) -> None:
        """Nothing of this folder can be taken for a while: `seconds`, or twice as long as the last time."""
        lane = self._lane(folder)
        doubled = min(max(lane.backoff_seconds * 2, FIRST_BACKOFF_SECONDS), LONGEST_BACKOFF_SECONDS)
        lane.backoff_seconds = doubled
        lane.blocked_until = now + (doubled if seconds is None else seconds)
        lane.code, lane.reason = code, reason

    def clear(self, folder: Folder) -> None:
        """A file of this folder was taken: whatever blocked it is over."""
        lane = self._lane(folder)
        if not lane.code:
            return
        lane.blocked_until = lane.backoff_seconds = 0.0
        lane.code = lane.reason = ""

    def unblock(self) -> None:
        """What blocked some folder may be over: each is tried again at the next turn."""
        for lane in self._lanes.values():
            lane.blocked_until = 0.0

    def next(self, limit: int, now: float) -> list[tuple[Folder, list[str]]]:
        """Takes out up to `limit` files to look at: equal shares of the lanes that are not blocked, the lane that
        had the longest wait first."""
        open_lanes = [lane for path in self._turn if (lane := self._lanes[path]) and lane.blocked_until <= now]
        shares = []
        for place, lane in enumerate(open_lanes):
            share = _take(lane, -(-limit // (len(open_lanes) - place)))
            limit -= len(share)
            shares.append((lane.folder, share))
            if limit <= 0:
                break
        self._move_back({folder.path for folder, _ in shares})
        return shares

    def peek(self, limit: int) -> tuple[Folder, list[str]] | None:
        """The first files of the lane that is served next, as far as can be said now; they stay."""
        lane = next((lane for path in self._turn if (lane := self._lanes[path])), None)
        return None if lane is None else (lane.folder, list(islice(lane.first or lane.names, limit)))

    def next_due(self, now: float) -> float | None:
        """When there is something to look at: now, when a block ends, or None if all lanes are empty."""
        waits = [max(lane.blocked_until, now) for lane in self._lanes.values() if lane]
        return min(waits, default=None)

    def find(self, folder: Folder) -> Lane | None:
        """The lane of one folder, or None if nothing was ever in it."""
        return self._lanes.get(folder.path)

    def all(self) -> list[Lane]:
        """All lanes."""
        return list(self._lanes.values())

    def __len__(self) -> int:
        return sum(len(lane) for lane in self.all())

    def _lane(self, folder: Folder) -> Lane:
        lane = self._lanes.get(folder.path)
        if lane is None:
            lane = self._lanes[folder.path] = Lane(folder)
            self._turn.append(folder.path)
        return lane

    def _move_back(self, served: set[str]) -> None:
        if served:
            self._turn.sort(key=served.__contains__)


def _take(lane: Lane, count: int) -> list[str]:
    first = _take_from(lane.first, count)
    return first + _take_from(lane.names, count - len(first))


def _take_from(names: dict[str, None], count: int) -> list[str]:
    taken = list(islice(names, count))
    for name in taken:
        del names[name]
    return taken
