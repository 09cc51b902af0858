"""Which waiting task is next.

Queues share by weight (stride scheduling, Waldspurger 1995): the queue that has had the least for its weight goes
first. Inside a queue the higher priority goes first; inside a priority users take turns; a user's tasks of one type go
first come, first served. Tasks that are alike in all of this form a lane, and the order is one of lanes, so that
choosing costs O(log lanes) however many tasks wait.

A lane that a limit blocks is set aside under that limit, and taken up again when one attempt that the limit counts has
ended: one lane for one freed slot, so that a thousand users behind one full type do not cost a thousand looks.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from runner.dispatch.limits import GLOBAL, Lane, Limit, Limits

DEFAULT_WEIGHT = 3

Rank = tuple[int, int, int, Lane]
"""How soon a lane's turn comes: minus its priority, its user's turn, the order in which lanes queued up, itself."""


@dataclass
class _Line:
    """One queue: the lanes that may be next, best first, and its share so far."""

    stride: float
    passed: float = 0.0
    ready: list[Rank] = field(default_factory=list)
    turns: dict[tuple[int, str], int] = field(default_factory=dict)
    lanes_of: Counter[tuple[int, str]] = field(default_factory=Counter)
    now: Counter[int] = field(default_factory=Counter)


@dataclass
class _Waiting:
    """The tasks of one lane, oldest first; some may have been discarded since. `after` is the limit whose freed slot
    took the lane up again."""

    ids: deque[str] = field(default_factory=deque)
    after: Limit | None = None


class TaskQueue:
    """The waiting tasks. Not thread-safe: its owner locks."""

    def __init__(self, limits: Limits, weights: Mapping[str, int]) -> None:
        self._limits = limits
        self._weights = weights
        self._lines: dict[str, _Line] = {}
        self._lanes: dict[Lane, _Waiting] = {}
        self._lane_of: dict[str, Lane] = {}
        self._aside: dict[tuple[Limit, str], list[Rank]] = {}
        self._order = count()
        self._per_user: Counter[str] = Counter()
        self._per_queue: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._lane_of)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._lane_of

    def count_of_user(self, user_id: str) -> int:
        """How many tasks of a user wait."""
        return self._per_user[user_id]

    def count_of_queue(self, queue: str) -> int:
        """How many tasks wait in a queue."""
        return self._per_queue[queue]

    def push(self, task_id: str, lane: Lane) -> None:
        """A task waits. One that waits already stays where it is."""
        if task_id in self._lane_of:
            return
        self._lane_of[task_id] = lane
        self._per_user[lane.user_id] += 1
        self._per_queue[lane.queue] += 1
        waiting = self._lanes.get(lane)
        if waiting is None:
            waiting = self._lanes[lane] = _Waiting()
            self._enter(lane)
        waiting.ids.append(task_id)

    def discard(self, task_id: str) -> None:
        """A task waits no longer; its place in the line is skipped later."""
        lane = self._lane_of.pop(task_id, None)
        if lane is not None:
            self._per_user[lane.user_id] -= 1
            self._per_queue[lane.queue] -= 1

    def pop(self) -> tuple[str, Lane] | None:
        """The next task that may start, with its slot acquired; None if none may."""
        if self._limits.is_full(GLOBAL):
            return None
        for name, line in sorted(self._ready_lines(), key=_share):
            chosen = self._pop_from(name, line)
            if chosen is not None:
                return chosen
        return None

    def release(self, lane: Lane) -> None:
        """An attempt of the lane has ended; one lane behind each limit that it freed is taken up again."""
        for limit in self._limits.release(lane):
            self._take_up(limit)

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """Other weights from now on."""
        self._weights = weights
        for name, line in self._lines.items():
            line.stride = self._stride(name)

    def take_up_all(self) -> None:
        """Other limits hold: every lane that was set aside is looked at again."""
        for (_, queue), ranks in self._aside.items():
            for rank in ranks:
                heappush(self._lines[queue].ready, rank)
        self._aside.clear()

    def place_of(self, task_id: str) -> int | None:
        """How many tasks of its queue go before a waiting task if nothing changes: 0 is next. O(waiting)."""
        lane = self._lane_of.get(task_id)
        if lane is None:
            return None
        ahead = sum(
            len(self._alive(other))
            for other in self._lanes
            if other.queue == lane.queue and other.priority > lane.priority
        )
        own = self._alive(lane).index(task_id)
        peers = (
            min(own + 1, len(self._alive(other)))
            for other in self._lanes
            if other != lane and other.queue == lane.queue and other.priority == lane.priority
        )
        return ahead + own + sum(peers)

    def lane_of(self, task_id: str) -> Lane | None:
        """The lane in which a task waits."""
        return self._lane_of.get(task_id)

    def ids(self) -> Iterator[str]:
        """Every waiting task, in no order."""
        return iter(tuple(self._lane_of))

    def _ready_lines(self) -> list[tuple[str, _Line]]:
        return [item for item in self._lines.items() if item[1].ready]

    def _alive(self, lane: Lane) -> list[str]:
        return [task_id for task_id in self._lanes[lane].ids if self._lane_of.get(task_id) == lane]

    def _stride(self, queue: str) -> float:
        return 1 / self._weights.get(queue, DEFAULT_WEIGHT)

    def _line(self, queue: str) -> _Line:
        line = self._lines.get(queue)
        if line is None:
            line = self._lines[queue] = _Line(self._stride(queue))
        return line

    def _enter(self, lane: Lane) -> None:
        """A lane queues up: its user's turn is after the others' of its priority, its queue's share starts now."""
        line = self._line(lane.queue)
        if not line.ready:
            busy = (other.passed for other in self._lines.values() if other.ready)
            line.passed = max(line.passed, min(busy, default=0.0))
        key = (lane.priority, lane.user_id)
        line.lanes_of[key] += 1
        line.turns.setdefault(key, line.now[lane.priority] + 1)
        heappush(line.ready, self._rank(line, lane))

    def _leave(self, lane: Lane) -> None:
        line = self._lines[lane.queue]
        key = (lane.priority, lane.user_id)
        del self._lanes[lane]
        line.lanes_of[key] -= 1
        if line.lanes_of[key] == 0:
            del line.lanes_of[key], line.turns[key]

    def _rank(self, line: _Line, lane: Lane) -> Rank:
        return (-lane.priority, line.turns[lane.priority, lane.user_id], next(self._order), lane)

    def _pop_from(self, name: str, line: _Line) -> tuple[str, Lane] | None:
        while line.ready:
            rank = heappop(line.ready)
            lane = rank[3]
            turn = line.turns[lane.priority, lane.user_id]
            if turn > rank[1]:  # its user has been served since, in another lane
                heappush(line.ready, (rank[0], turn, rank[2], lane))
                continue
            if not self._skip_discarded(lane):
                continue
            blocker = self._limits.blocker(lane)
            if blocker is None:
                return self._serve(line, lane)
            self._set_aside(blocker, name, rank)
        return None

    def _skip_discarded(self, lane: Lane) -> bool:
        """Whether the lane still has a task; it leaves if not."""
        ids = self._lanes[lane].ids
        while ids and self._lane_of.get(ids[0]) != lane:
            ids.popleft()
        if not ids:
            self._leave(lane)
        return bool(ids)

    def _serve(self, line: _Line, lane: Lane) -> tuple[str, Lane]:
        waiting = self._lanes[lane]
        waiting.after = None
        task_id = waiting.ids.popleft()
        self.discard(task_id)
        self._limits.acquire(lane)
        line.passed += line.stride
        key = (lane.priority, lane.user_id)
        line.now[lane.priority] = line.turns[key]
        line.turns[key] += 1
        if waiting.ids:
            heappush(line.ready, self._rank(line, lane))
        else:
            self._leave(lane)
        return task_id, lane

    def _set_aside(self, blocker: Limit, queue: str, rank: Rank) -> None:
        waiting = self._lanes[rank[3]]
        freed, waiting.after = waiting.after, None
        heappush(self._aside.setdefault((blocker, queue), []), rank)
        if freed is not None and freed != blocker:
            # The slot that this lane was taken up for is still free: let the next one behind that limit have it.
            self._take_up(freed)

    def _take_up(self, limit: Limit) -> None:
        for queue, line in self._lines.items():
            ranks = self._aside.get((limit, queue))
            if not ranks:
                continue
            rank = heappop(ranks)
            if not ranks:
                del self._aside[limit, queue]
            self._lanes[rank[3]].after = limit
            heappush(line.ready, rank)


def _share(item: tuple[str, _Line]) -> float:
    return item[1].passed
