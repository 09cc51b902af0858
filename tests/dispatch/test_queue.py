import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.dispatch import queue
from runner.dispatch.limits import GLOBAL, Lane, Limit, LimitRules, Limits
from runner.dispatch.queue import MANY_DISCARDED, TaskQueue

T = TypeVar("T")


class Bench:
    """A queue, its limits, and what it has let run: enough to say what it should have done."""

    def __init__(self, rules: LimitRules | None = None, weights: dict[str, int] | None = None) -> None:
        self.rules = rules or LimitRules(10**6)
        self.limits = Limits(self.rules)
        self.queue = TaskQueue(self.limits, weights or {})
        self.running: list[Lane] = []
        self._count = 0

    def push(self, user: str = "ann", number: int = 1, *, priority: int = 0, type: str = "t", queue: str = "q") -> None:
        for _ in range(number):
            self._count += 1
            self.queue.push(f"{user}{self._count}", Lane(queue, priority, user, type))

    def pop(self) -> str:
        item = self.queue.pop()
        assert item is not None
        self.running.append(item[1])
        return item[0]

    def pop_users(self, number: int) -> str:
        """The users of the next tasks, a letter each."""
        return "".join(self.pop()[0] for _ in range(number))

    def pop_all(self) -> list[str]:
        return [self.pop() for _ in range(len(self.queue))]

    def start_all(self) -> int:
        """Starts what may start; how many that were."""
        before = len(self.running)
        while (item := self.queue.pop()) is not None:
            self.running.append(item[1])
        return len(self.running) - before

    def end(self, lane: Lane | None = None) -> None:
        """One attempt ends: the oldest, or one of a lane."""
        ended = self.running.pop(0 if lane is None else self.running.index(lane))
        self.queue.release(ended)


def test_tasks_that_are_alike_run_first_come_first_served() -> None:
    """Within a user, a type and a priority the order of arrival holds."""
    bench = Bench()
    bench.push(number=5)
    assert bench.pop_all() == ["ann1", "ann2", "ann3", "ann4", "ann5"]


def test_an_empty_queue_has_nothing_to_start() -> None:
    """No task, no slot taken."""
    bench = Bench()
    assert bench.queue.pop() is None
    assert bench.limits.running(GLOBAL) == 0


def test_ten_thousand_tasks_of_one_user_do_not_starve_one_of_another() -> None:
    """Whoever comes late with one task is second at the latest."""
    bench = Bench()
    bench.push("ann", 10_000)
    bench.pop_users(500)
    bench.push("bob")
    assert "b" in bench.pop_users(2)


def test_a_user_who_comes_back_again_and_again_gets_every_second_turn() -> None:
    """Handing in one task at a time is no way past those who handed in many."""
    bench = Bench()
    bench.push("ann", 10)
    users = ""
    for _ in range(10):
        bench.push("bob", 1 - bench.queue.count_of_user("bob"))
        users += bench.pop_users(1)
    assert users.count("a") == 5


def test_users_take_turns_whatever_their_number_of_types() -> None:
    """Ten types give a user no more turns than one."""
    bench = Bench()
    for type in "0123456789":
        bench.push("ann", 5, type=type)
    bench.push("bob", 10)
    bench.push("cat", 10)
    assert Counter(bench.pop_users(30)) == {"a": 10, "b": 10, "c": 10}


def test_a_users_types_take_turns_too() -> None:
    """A thousand thumbnails do not hold up the same user's one video."""
    bench = Bench()
    bench.push("ann", 100, type="thumbnail")
    bench.push("ann", 1, type="video")
    assert "ann101" in [bench.pop() for _ in range(2)]


def test_a_higher_priority_goes_first() -> None:
    """Also when it comes later, and whoever's turn it is."""
    bench = Bench()
    bench.push("ann", 2)
    bench.push("bob", 1, priority=5)
    bench.push("cat", 1, priority=-5)
    assert bench.pop_users(4) == "baac"


def test_queues_share_by_their_weights() -> None:
    """While all of them have tasks, each gets its share, to within one start."""
    bench = Bench(weights={"critical": 10, "high": 5, "low": 1})
    for name in ("low", "high", "critical", "unknown"):
        bench.push(name, 400, queue=name)
    assert Counter(bench.pop_users(190)) == {"c": 100, "h": 50, "u": 30, "l": 10}


def test_changed_weights_hold_from_the_next_start_on() -> None:
    """Weights can be changed while tasks wait."""
    bench = Bench(weights={"a": 1, "b": 1})
    bench.push("a", 100, queue="a")
    bench.push("b", 100, queue="b")
    bench.pop_users(2)
    bench.queue.change_weights({"a": 3, "b": 1})
    assert Counter(bench.pop_users(40)) == {"a": 30, "b": 10}


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_queue_that_was_empty_has_saved_up_nothing(first: str) -> None:
    """Neither does a queue that was busy alone have to make up for it."""
    bench = Bench(weights={"a": 1, "b": 1})
    bench.push("a", 1000, queue="a")
    bench.pop_users(1000)
    bench.push(first, 100, queue=first)
    bench.push("c", 100, queue="a" if first == "b" else "b")
    assert Counter(bench.pop_users(20)) == {first: 10, "c": 10}


def test_a_queue_that_a_limit_held_back_has_saved_up_nothing() -> None:
    """When its limit is lifted it gets its share, not all that it missed."""
    bench = Bench(LimitRules(10**6, per_type={"t": 1}), {"a": 1, "b": 1})
    bench.push("a", 1000, queue="a")
    bench.push("b", 2000, queue="b", type="other")
    bench.pop_users(1001)
    bench.limits.change(LimitRules(10**6))
    bench.queue.take_up_all()
    assert bench.pop_users(20).count("a") <= 11


def test_a_user_whom_a_limit_held_back_has_saved_up_no_turns() -> None:
    """When the limit is lifted everybody goes on by turns; nobody waits while one catches up."""
    bench = Bench(LimitRules(10**6, per_type={"t": 1}))
    bench.push("ann", 1000)
    bench.push("bob", 2000, type="other")
    bench.pop_users(1001)
    bench.limits.change(LimitRules(10**6))
    bench.queue.take_up_all()
    assert bench.pop_users(20).count("a") <= 11


def test_users_behind_a_full_type_take_turns() -> None:
    """A slot of a type goes round its users as any other slot does."""
    bench = Bench(LimitRules(9, per_type={"t": 1}))
    for user in ("ann", "bob", "cat"):
        bench.push(user, 3)
    users = bench.pop_users(1)
    for _ in range(8):
        bench.end()
        users += bench.pop_users(1)
    assert users == "abcabcabc"


def test_the_highest_priority_behind_a_limit_gets_the_freed_slot() -> None:
    """Being set aside does not lose a task its priority."""
    bench = Bench(LimitRules(9, per_type={"t": 1}))
    bench.push("ann", 2)
    bench.pop()
    bench.push("bob", 1, priority=1)
    bench.push("cat", 1, priority=2)
    assert bench.queue.pop() is None
    bench.end()
    assert bench.pop_users(1) == "c"


def test_a_slot_offered_to_a_task_that_was_cancelled_goes_to_the_next() -> None:
    """A freed slot is not lost with the lane that was to have it."""
    bench = Bench(LimitRules(9, per_type={"t": 1}))
    bench.push("ann", 1)
    bench.pop()
    bench.push("bob", 1)
    bench.push("cat", 1)
    assert bench.queue.pop() is None
    bench.end()
    bench.queue.discard("bob2")
    assert bench.pop() == "cat3"


def test_a_slot_that_its_first_choice_cannot_use_goes_to_the_next() -> None:
    """Two limits at once: the type has room, the user whose turn it is has not, another has."""
    bench = Bench(LimitRules(9, per_user=1, per_type={"t": 1}))
    bench.push("ann", 1)
    bench.push("bob", 1, type="other")
    assert bench.pop_users(2) == "ab"
    bench.push("bob", 1, priority=1)
    bench.push("cat", 1)
    assert bench.queue.pop() is None
    bench.end(Lane("q", 0, "ann", "t"))
    assert bench.pop() == "cat4"


def test_a_discarded_task_never_starts_and_is_not_counted() -> None:
    """Cancelled while it waits: it is gone at once from every count."""
    bench = Bench()
    bench.push("ann", 3)
    bench.queue.discard("ann2")
    bench.queue.discard("unknown")
    assert (len(bench.queue), bench.queue.count_of_user("ann"), bench.queue.count_of_queue("q")) == (2, 2, 2)
    assert bench.pop_all() == ["ann1", "ann3"]
    assert (bench.queue.count_of_user("ann"), bench.queue.count_of_queue("none")) == (0, 0)


def test_a_task_that_waits_again_is_last_in_its_lane_and_starts_once() -> None:
    """Cancelled and retried: its old place is void, however often that happens."""
    bench = Bench()
    bench.push("ann", 2)
    lane = Lane("q", 0, "ann", "t")
    for _ in range(3):
        bench.queue.discard("ann1")
        bench.queue.push("ann1", lane)
    bench.queue.push("ann1", lane)
    assert [bench.queue.place_of(task_id) for task_id in ("ann2", "ann1")] == [0, 1]
    assert bench.pop_all() == ["ann2", "ann1"]
    assert bench.queue.pop() is None


def test_the_places_of_many_discarded_tasks_are_thrown_out() -> None:
    """Submitting and cancelling for ever behind a full limit does not fill the memory."""
    bench = Bench(LimitRules(1))
    bench.push("ann", 1)
    for _ in range(5 * MANY_DISCARDED):
        bench.push("bob", 1)
        bench.queue.discard(f"bob{bench._count}")
    (lane,) = (lane for lane in bench.queue._lanes.values() if lane.lane.user_id == "bob")
    assert len(lane.ids) <= MANY_DISCARDED + 1
    assert bench.pop_all() == ["ann1"]


def test_nothing_is_remembered_of_users_who_have_left() -> None:
    """A user for each browser must not fill the memory."""
    bench = Bench()
    for number in range(100):
        bench.push(f"user-{number}", 2, priority=number)
    bench.pop_all()
    assert not bench.queue._lanes
    assert not bench.queue._per_user
    assert not any(line.levels for line in bench.queue._lines.values())


def test_a_place_in_line_is_the_number_of_tasks_that_go_before() -> None:
    """What `why` says is what happens when nothing changes."""
    bench = Bench()
    chance = random.Random(7)
    for _ in range(60):
        bench.push(chance.choice("abcd"), priority=chance.choice((0, 0, 1)), type=chance.choice("tu"))
        if chance.random() < 0.3:
            bench.pop()
    waiting = list(bench.queue._places)
    said = {task_id: bench.queue.place_of(task_id) for task_id in waiting}
    assert [said[task_id] for task_id in bench.pop_all()] == list(range(len(waiting)))


def test_a_task_that_does_not_wait_has_neither_place_nor_lane() -> None:
    """Asking for one that is gone is no error."""
    bench = Bench()
    bench.push("ann")
    assert bench.queue.lane_of("ann1") == Lane("q", 0, "ann", "t")
    assert "ann1" in bench.queue
    bench.pop()
    assert bench.queue.place_of("ann1") is None
    assert bench.queue.lane_of("ann1") is None


def test_choosing_costs_the_same_however_many_users_wait_behind_a_full_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand users, one slot of the type they want, one user who is served meanwhile: a few heap operations for
    each start, and never a look at everybody."""
    operations = count_heap_operations(monkeypatch)
    bench = Bench(LimitRules(8, per_user=2, per_type={"t": 1}))
    for number in range(1000):
        bench.push(f"user-{number}", 3)
    bench.push("zoe", 3000, type="other")
    chance, starts = random.Random(1), 0
    while len(bench.queue) or bench.running:
        starts += bench.start_all()
        bench.end(chance.choice(bench.running))
    assert starts == 6000
    assert operations.total() < 6 * starts


def count_heap_operations(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the queue calls what costs more the longer a heap is, by name, from now on."""
    operations = Counter[str]()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            operations[function.__name__] += 1
            return function(*arguments)

        return call

    for function in (heapq.heappush, heapq.heappop):
        monkeypatch.setattr(queue, function.__name__, counted(function))
    return operations


NAMES = st.sampled_from("abc")
MAXIMA = st.dictionaries(NAMES, st.integers(1, 2), max_size=2)
RULES = st.builds(
    LimitRules, st.integers(1, 6), st.none() | st.integers(1, 3), st.frozensets(NAMES), MAXIMA, MAXIMA, MAXIMA
)


class Trial:
    """Pushes, cancels, starts and ends at random, and compares each choice with a look at everything."""

    def __init__(self, rules: LimitRules, chance: random.Random) -> None:
        self.rules = rules
        self.chance = chance
        self.limits = Limits(rules)
        self.queue = TaskQueue(self.limits, {"a": 5, "b": 1})
        self.waiting: dict[str, Lane] = {}
        self.running: list[Lane] = []
        self.count = 0

    def push(self) -> None:
        lane = Lane(self.any("aab"), self.any((0, 0, 1)), self.any("abc"), self.any("abc"))
        for _ in range(self.any((1, 1, 3))):
            self.count += 1
            self.waiting[str(self.count)] = lane
            self.queue.push(str(self.count), lane)

    def discard(self) -> None:
        if self.waiting:
            task_id = self.any(list(self.waiting))
            del self.waiting[task_id]
            self.queue.discard(task_id)

    def push_again(self) -> None:
        if self.waiting:
            task_id = self.any(list(self.waiting))
            self.queue.discard(task_id)
            self.queue.push(task_id, self.waiting[task_id])

    def end(self) -> None:
        if self.running:
            self.queue.release(self.running.pop(self.chance.randrange(len(self.running))))

    def start(self) -> None:
        item = self.queue.pop()
        if item is None:
            startable = [task_id for task_id, lane in self.waiting.items() if self.may_start(lane)]
            assert not startable, f"{startable} could start"
            return
        task_id, lane = item
        assert self.waiting.pop(task_id) == lane
        assert self.may_start(lane), f"{lane} is over a limit"
        self.running.append(lane)

    def change(self, rules: LimitRules) -> None:
        self.rules = rules
        self.limits.change(rules)
        self.queue.take_up_all()

    def check_counts(self) -> None:
        assert len(self.queue) == len(self.waiting)
        users = Counter(lane.user_id for lane in self.waiting.values())
        queues = Counter(lane.queue for lane in self.waiting.values())
        assert all(self.queue.count_of_user(name) == users[name] for name in "abc")
        assert all(self.queue.count_of_queue(name) == queues[name] for name in "ab")
        assert all(self.limits.running(limit) == number for limit, number in self.counts().items())

    def check_places(self) -> None:
        for task_id, lane in self.waiting.items():
            place = self.queue.place_of(task_id)
            assert place is not None
            assert 0 <= place < self.queue.count_of_queue(lane.queue)

    def counts(self) -> Counter[Limit]:
        return Counter(limit for lane in self.running for limit, _ in self.rules.of(lane))

    def may_start(self, lane: Lane) -> bool:
        counts = self.counts()
        return all(counts[limit] < maximum for limit, maximum in self.rules.of(lane))

    def any(self, values: Sequence[T]) -> T:
        return self.chance.choice(values)


@given(RULES, RULES, st.integers())
def test_no_limit_is_ever_exceeded_and_no_task_waits_that_could_start(
    soak: int, rules: LimitRules, other: LimitRules, seed: int
) -> None:
    """Whatever happens in whatever order: a look at everything would have found nothing better to do."""
    trial = Trial(rules, random.Random(seed))
    steps = [trial.push, trial.discard, trial.push_again, trial.start, trial.start, trial.start, trial.end, trial.end]
    for _ in range(150 * soak):
        trial.any(steps)()
    trial.check_places()
    trial.change(other)
    for _ in range(50):
        trial.any(steps)()
        trial.check_counts()
