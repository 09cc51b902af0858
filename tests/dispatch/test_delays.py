from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from runner.dispatch.delays import MANY_VOID, Delays, utc_now

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
OPERATIONS = st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(0, 20)), max_size=40)


def after(seconds: float) -> datetime:
    """An instant so many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def test_what_is_due_is_taken_out_earliest_first_and_once() -> None:
    """What is due at the very instant is due; the rest waits."""
    delays = Delays()
    for task_id, seconds in (("late", 9), ("second", 5), ("first", 1)):
        delays.put(task_id, after(seconds), "ann")
    assert delays.take_due(after(5)) == ["first", "second"]
    assert delays.take_due(after(5)) == []
    assert delays.next_at() == after(9)


def test_only_the_last_instant_that_was_said_counts() -> None:
    """Earlier, later, the same again: a task is due once."""
    delays = Delays()
    for seconds in (5, 1, 9, 5, 9, 3):
        delays.put("a", after(seconds), "ann")
    assert (len(delays), delays.next_at()) == (1, after(3))
    assert delays.take_due(after(20)) == ["a"]


def test_what_was_discarded_is_never_due() -> None:
    """Discarding what is not there is no error."""
    delays = Delays()
    delays.put("a", after(1), "ann")
    delays.discard("a")
    delays.discard("b")
    assert "a" not in delays
    assert (delays.next_at(), delays.take_due(after(9))) == (None, [])


def test_tasks_are_counted_by_user_for_as_long_as_they_wait() -> None:
    """And a user who has none is forgotten."""
    delays = Delays()
    delays.put("a", after(1), "ann")
    delays.put("a", after(2), "ann")
    delays.put("b", after(3), "ann")
    assert (delays.count_of_user("ann"), delays.count_of_user("bob")) == (2, 0)
    delays.take_due(after(9))
    assert not delays._per_user


def test_changing_ones_mind_for_ever_does_not_fill_the_memory() -> None:
    """Void entries are thrown out before they are many."""
    delays = Delays()
    for number in range(10 * MANY_VOID):
        delays.put("a", after(number), "ann")
    assert len(delays._heap) <= MANY_VOID + 2
    assert delays.next_at() == after(10 * MANY_VOID - 1)


@given(OPERATIONS, st.lists(st.integers(0, 25), max_size=5))
def test_it_does_what_a_sorted_list_would_do(operations: list[tuple[str, int | None]], looks: list[int]) -> None:
    """Any puts and discards, then looks at any instants, also earlier ones: a clock may be set back."""
    delays, expected = Delays(), dict[str, int]()
    for task_id, seconds in operations:
        expected.pop(task_id, None)
        if seconds is None:
            delays.discard(task_id)
        else:
            delays.put(task_id, after(seconds), "ann")
            expected[task_id] = seconds
    for look in looks:
        due = sorted((seconds, task_id) for task_id, seconds in expected.items() if seconds <= look)
        assert delays.take_due(after(look)) == [task_id for _, task_id in due]
        for _, task_id in due:
            del expected[task_id]
        assert len(delays) == len(expected)


def test_the_wall_clock_is_aware() -> None:
    """Instants in UTC, as everywhere."""
    assert utc_now().tzinfo is UTC
