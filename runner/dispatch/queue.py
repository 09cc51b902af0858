"""Which waiting task is next.

Queues share by weight (stride scheduling, Waldspurger 1995): the queue that has had the least for its weight goes
first. Inside a queue the higher priority goes first; inside a priority users take turns; a user's types take turns
inside that; and a user's tasks of one type go first come, first served. Tasks that are alike in all of this form a
lane, and the order is one of users and lanes, so that choosing costs O(log users) however many tasks wait.

A lane that a limit blocks is set aside under that limit, and taken up again when one attempt that the limit counts has
ended: one lane for one freed slot, so that a thousand users behind one full type do not cost a thousand looks. If the
lane cannot use the slot after all, the next one behind the same limit is taken up in its stead. Whoever could not be
served for a while has no claim to what others got meanwhile: it goes on from where they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain, count

from runner.dispatch.limits import Lane, Limit, Limits

DEFAULT_WEIGHT = 3
MANY_DISCARDED = 1000
"""With more discarded tasks than this in a lane, and more than are left in it, they are thrown out."""


@dataclass(slots=True, eq=False)
class _Level:
    """One priority in one queue: its users, and the latest turn that any of them had."""

    users: dict[str, _User] = field(default_factory=dict)
    turn: int = 0


@dataclass(slots=True, eq=False)
class _User:
    """One user's lanes of one priority in one queue, which share its turns.

    `turn` is the number of its next turn; equal turns go by `order`. `ready` are the lanes that no limit is known to
    block, next first; while there are some, the user is in the heap of its line, and `is_queued`.
    """

    level: _Level
    turn: int
    order: int = 0
    lanes: list[_Waiting] = field(default_factory=list)
    ready: list[_Waiting] = field(default_factory=list)
    is_queued: bool = False


@dataclass(slots=True, eq=False)
class _Line:
    """One queue: the users that may be next, best first, the lanes set aside, and its share so far."""

    stride: float
    passed: float = 0.0
    waiting: int = 0
    ready: list[tuple[int, int, int, _User]] = field(default_factory=list)
    aside: dict[Limit, list[tuple[int, int, int, _Waiting]]] = field(default_factory=dict)
    levels: dict[int, _Level] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Waiting:
    """The tasks of one lane, oldest first. `discarded` counts places in `ids` that are void, by task; they are always
    before a valid one of the same task. `after` is the limit whose freed slot took the lane up again."""

    lane: Lane
    line: _Line
    user: _User
    ids: deque[str] = field(default_factory=deque)
    discarded: dict[str, int] = field(default_factory=dict)
    after: Limit | None = None

    def __len__(self) -> int:
        return len(self.ids) - sum(self.discarded.values())

    def has_next(self) -> bool:
        """Whether a task is left; the void places before it are gone then."""
        while self.discarded and _take_one(self.discarded, self.ids[0]):
            self.ids.popleft()
        return bool(self.ids)

    def discard(self, task_id: str) -> None:
        """The task's place is void."""
        self.discarded[task_id] = self.discarded.get(task_id, 0) + 1
        if len(self.discarded) > max(MANY_DISCARDED, len(self.ids) // 2):
            self.ids, self.discarded = deque(self.alive()), {}

    def alive(self) -> list[str]:
        """The tasks that wait, oldest first."""
        void = self.discarded.copy()
        return [task_id for task_id in self.ids if not _take_one(void, task_id)]


class TaskQueue:
    """The waiting tasks. Not thread-safe: its owner locks."""

    def __init__(self, limits: Limits, weights: Mapping[str, int]) -> None:
        self._limits = limits
        self._weights = weights
        self._lines: dict[str, _Line] = {}
        self._lanes: dict[Lane, _Waiting] = {}
        self._places: dict[str, _Waiting] = {}
        self._per_user: dict[str, int] = {}
        self._order = count()
        self._passed = 0.0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._places

    def count_of_user(self, user_id: str) -> int:
        """How many tasks of a user wait."""
        return self._per_user.get(user_id, 0)

    def count_of_queue(self, queue: str) -> int:
        """How many tasks wait in a queue."""
        line = self._lines.get(queue)
        return 0 if line is None else line.waiting

    def push(self, task_id: str, lane: Lane) -> None:
        """A task waits. One that waits already stays where it is."""
        if task_id in self._places:
            return
        waiting = self._lanes.get(lane)
        if waiting is None:
            waiting = self._enter(lane)
        waiting.ids.append(task_id)
        waiting.line.waiting += 1
        self._places[task_id] = waiting
        self._per_user[lane.user_id] = self._per_user.get(lane.user_id, 0) + 1

    def discard(self, task_id: str) -> None:
        """A task waits no longer; its place in the line is skipped later."""
        waiting = self._places.get(task_id)
        if waiting is not None:
            self._uncount(task_id, waiting)
            waiting.discard(task_id)

    def pop(self) -> tuple[str, Lane] | None:
        """The next task that may start, with its slot acquired; None if none may."""
        if not self._limits.allow_any():
            return None
        lines = [line for line in self._lines.values() if line.ready]
        if len(lines) > 1:
            lines.sort(key=_passed)
        for line in lines:
            chosen = self._pop_from(line)
            if chosen is not None:
                return chosen
        return None

    def release(self, lane: Lane) -> None:
        """An attempt of the lane has ended; one lane of each queue behind each limit that counted it is taken up."""
        limits = self._limits.release(lane)
        for line in self._lines.values():
            if line.aside:
                for limit in limits:
                    self._take_up(limit, line)

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """Other weights from now on."""
        self._weights = weights
        for name, line in self._lines.items():
            line.stride = self._stride(name)

    def take_up_all(self) -> None:
        """Other limits hold: every lane that was set aside is looked at again."""
        for line in self._lines.values():
            ranks = sorted(chain.from_iterable(line.aside.values()))
            line.aside.clear()
            for rank in ranks:
                self._make_ready(rank[3])

    def place_of(self, task_id: str) -> int | None:
        """How many tasks of its queue go before a waiting task, if nothing changes and no limit blocks: 0 is next.
        None if it does not wait. O(lanes + its lane)."""
        waiting = self._places.get(task_id)
        if waiting is None:
            return None
        user, line = waiting.user, waiting.line
        ahead = _ahead_of_own(waiting, task_id)
        turn = _next_turn(user) + ahead
        for other in user.level.users.values():
            if other is not user:
                turns = turn - _next_turn(other) + (_tie(other) < _tie(user))
                ahead += min(max(turns, 0), _tasks_of(other))
        higher = (level for priority, level in line.levels.items() if priority > waiting.lane.priority)
        return ahead + sum(_tasks_of(other) for level in higher for other in level.users.values())

    def lane_of(self, task_id: str) -> Lane | None:
        """The lane in which a task waits."""
        waiting = self._places.get(task_id)
        return None if waiting is None else waiting.lane

    def _uncount(self, task_id: str, waiting: _Waiting) -> None:
        del self._places[task_id]
        waiting.line.waiting -= 1
        user_id = waiting.lane.user_id
        left = self._per_user[user_id] - 1
        if left:
            self._per_user[user_id] = left
        else:
            del self._per_user[user_id]

    def _stride(self, queue: str) -> float:
        return 1 / self._weights.get(queue, DEFAULT_WEIGHT)

    def _enter(self, lane: Lane) -> _Waiting:
        """A lane queues up; a new user's turn is after those that the others of its priority have now."""
        line = self._lines.get(lane.queue)
        if line is None:
            line = self._lines[lane.queue] = _Line(self._stride(lane.queue))
        level = line.levels.setdefault(lane.priority, _Level())
        user = level.users.setdefault(lane.user_id, _User(level, level.turn + 1))
        waiting = self._lanes[lane] = _Waiting(lane, line, user)
        user.lanes.append(waiting)
        self._make_ready(waiting)
        return waiting

    def _leave(self, waiting: _Waiting) -> None:
        lane, user = waiting.lane, waiting.user
        del self._lanes[lane]
        user.lanes.remove(waiting)
        if not user.lanes:
            del user.level.users[lane.user_id]
        if not user.level.users:
            del waiting.line.levels[lane.priority]

    def _make_ready(self, waiting: _Waiting) -> None:
        line, user = waiting.line, waiting.user
        user.ready.append(waiting)
        if user.is_queued:
            return
        if not line.ready:
            line.passed = max(line.passed, self._passed)
        user.turn = _next_turn(user)
        self._queue_up(line, user, waiting.lane.priority)

    def _queue_up(self, line: _Line, user: _User, priority: int) -> None:
        user.order = next(self._order)
        user.is_queued = True
        heappush(line.ready, (-priority, user.turn, user.order, user))

    def _pop_from(self, line: _Line) -> tuple[str, Lane] | None:
        while line.ready:
            user = heappop(line.ready)[3]
            if self._find_startable(user):
                return self._serve(line, user)
            user.is_queued = False
        return None

    def _find_startable(self, user: _User) -> bool:
        """Whether a lane of the user may start; it is then its first one that is ready."""
        while user.ready:
            waiting = user.ready[0]
            blocker = self._limits.blocker(waiting.lane) if waiting.has_next() else None
            if blocker is None and waiting.ids:
                return True
            del user.ready[0]
            self._put_away(waiting, blocker)
        return False

    def _put_away(self, waiting: _Waiting, blocker: Limit | None) -> None:
        """The lane cannot start a task: a limit blocks it, or it has none left."""
        freed, waiting.after = waiting.after, None
        if blocker is None:
            self._leave(waiting)
        else:
            rank = (-waiting.lane.priority, waiting.user.turn, next(self._order), waiting)
            heappush(waiting.line.aside.setdefault(blocker, []), rank)
        if freed is not None and freed != blocker:
            # The slot that this lane was taken up for is still free: let the next one behind that limit have it.
            self._take_up(freed, waiting.line)

    def _serve(self, line: _Line, user: _User) -> tuple[str, Lane]:
        waiting = user.ready.pop(0)
        waiting.after = None
        task_id, lane = waiting.ids.popleft(), waiting.lane
        self._uncount(task_id, waiting)
        self._limits.acquire(lane)
        self._passed = line.passed
        line.passed += line.stride
        user.level.turn = user.turn
        user.turn += 1
        if waiting.ids:
            user.ready.append(waiting)
        else:
            self._leave(waiting)
        if user.ready:
            self._queue_up(line, user, lane.priority)
        else:
            user.is_queued = False
        return task_id, lane

    def _take_up(self, limit: Limit, line: _Line) -> None:
        """The best lane of a queue that waits for this limit is looked at again."""
        ranks = line.aside.get(limit)
        if ranks is None:
            return
        waiting = heappop(ranks)[3]
        if not ranks:
            del line.aside[limit]
        waiting.after = limit
        self._make_ready(waiting)


def _passed(line: _Line) -> float:
    return line.passed


def _take_one(counts: dict[str, int], task_id: str) -> bool:
    """Whether one of the id was left; it is not any more."""
    left = counts.get(task_id, 0)
    if left > 1:
        counts[task_id] = left - 1
    elif left:
        del counts[task_id]
    return left > 0


def _next_turn(user: _User) -> int:
    return user.turn if user.is_queued else max(user.turn, user.level.turn)


def _tie(user: _User) -> tuple[int, int]:
    """The order in which users have turns of the same number: who is ahead by a turn now has queued up before."""
    return -_next_turn(user), user.order


def _tasks_of(user: _User) -> int:
    return sum(map(len, user.lanes))


def _ahead_of_own(waiting: _Waiting, task_id: str) -> int:
    """How many tasks of the same user and priority go before this one."""
    own = waiting.alive().index(task_id)
    lanes = [*waiting.user.ready, *(lane for lane in waiting.user.lanes if lane not in waiting.user.ready)]
    number = lanes.index(waiting)
    earlier = sum(min(own + 1, len(lane)) for lane in lanes[:number])
    return own + earlier + sum(min(own, len(lane)) for lane in lanes[number + 1 :])
