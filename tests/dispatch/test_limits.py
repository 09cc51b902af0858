import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.dispatch.limits import GLOBAL, MANY_LANES, Lane, Limit, LimitRules, Limits, Scope


def lane(type: str = "resize", user: str = "ann", queue: str = "default", priority: int = 0) -> Lane:
    """A lane, of which a test says only what it is about."""
    return Lane(queue, priority, user, type)


@pytest.mark.parametrize(
    ("rules", "blocker"),
    [
        (LimitRules(1), GLOBAL),
        (LimitRules(9, per_queue={"default": 1}), Limit(Scope.QUEUE, "default")),
        (LimitRules(9, per_type={"resize": 1}), Limit(Scope.TYPE, "resize")),
        (LimitRules(9, per_user=1), Limit(Scope.USER, "ann")),
        (LimitRules(9, per_type_and_user={"resize": 1}), Limit(Scope.TYPE_AND_USER, "resize/ann")),
    ],
)
def test_a_full_limit_is_named_as_the_blocker_until_an_attempt_ends(rules: LimitRules, blocker: Limit) -> None:
    """Each limit on its own stops the second attempt, and the end of the first one makes room again."""
    limits = Limits(rules)
    limits.acquire(lane())
    assert limits.blocker(lane()) == blocker
    assert limits.running(blocker) == 1
    assert blocker in limits.release(lane())
    assert limits.blocker(lane()) is None
    assert limits.running(blocker) == 0


def test_a_limit_counts_only_what_it_is_about() -> None:
    """Another type, another user and another queue have room while the first of each is full."""
    limits = Limits(LimitRules(9, 1, per_type={"resize": 1}, per_queue={"default": 1}))
    limits.acquire(lane())
    assert limits.blocker(lane("merge", "bob", "high")) is None
    assert limits.blocker(lane("merge", "bob")) == Limit(Scope.QUEUE, "default")
    assert limits.blocker(lane("resize", "bob", "high")) == Limit(Scope.TYPE, "resize")
    assert limits.blocker(lane("merge", "ann", "high")) == Limit(Scope.USER, "ann")


def test_an_exempt_user_has_no_limit_of_their_own() -> None:
    """`exempt_users` are held to neither kind of limit per user."""
    limits = Limits(LimitRules(9, 1, frozenset({"local"}), per_type_and_user={"resize": 1}))
    limits.acquire(lane(user="local"))
    assert limits.blocker(lane(user="local")) is None


def test_new_rules_count_what_runs_already() -> None:
    """A limit that comes into being while attempts run counts them from the start, and their ends."""
    limits = Limits(LimitRules(9))
    limits.acquire(lane())
    limits.acquire(lane())
    limits.change(LimitRules(9, per_type={"resize": 2}))
    assert limits.blocker(lane()) == Limit(Scope.TYPE, "resize")
    limits.release(lane())
    assert limits.blocker(lane()) is None
    limits.change(LimitRules(1))
    assert not limits.allow_any()


def test_lanes_that_nobody_uses_are_forgotten_and_those_that_run_are_not() -> None:
    """A user for each browser must not fill the memory, and counts survive the tidying."""
    limits = Limits(LimitRules(9, per_user=1))
    limits.acquire(lane(user="ann"))
    for number in range(MANY_LANES + 1):
        limits.blocker(lane(user=f"user-{number}"))
    assert len(limits._counts) < 10
    assert limits.blocker(lane("merge", "ann")) == Limit(Scope.USER, "ann")
    assert limits.running(GLOBAL) == 1


def test_limits_read_well_in_messages() -> None:
    """A limit is shown as its scope and whose it is."""
    assert [str(GLOBAL), str(Limit(Scope.TYPE, "resize"))] == ["global", "type:resize"]


NAMES = st.sampled_from("abc")
LANES = st.builds(lane, NAMES, NAMES, NAMES)
MAXIMA = st.dictionaries(NAMES, st.integers(1, 3))
RULES = st.builds(
    LimitRules, st.integers(1, 5), st.none() | st.integers(1, 3), st.frozensets(NAMES), MAXIMA, MAXIMA, MAXIMA
)


@given(RULES, RULES, st.lists(LANES, max_size=20))
def test_counts_are_the_same_whether_rules_came_before_or_after(
    old: LimitRules, new: LimitRules, ran: list[Lane]
) -> None:
    """Changing the rules and running under them from the start come to the same thing."""
    changed, fresh = Limits(old), Limits(new)
    for limits in (changed, fresh):
        for one in ran:
            limits.acquire(one)
        for one in ran[::2]:
            limits.release(one)
    changed.change(new)
    assert [changed.blocker(one) for one in ran] == [fresh.blocker(one) for one in ran]
    assert [changed.running(limit) for one in ran for limit, _ in new.of(one)] == [
        fresh.running(limit) for one in ran for limit, _ in new.of(one)
    ]
