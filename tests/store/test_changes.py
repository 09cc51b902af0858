"""What one batch is about to make true: groups happen whole or not at all, keys belong to one task."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from runner import task as transitions
from runner.errors import IllegalTransition, InvalidSubmission, NotFound, RunnerError
from runner.store import Create, KeyTaken, Remove, RemoveUser, SaveUser, Store, Update, User
from runner.store import changes as module
from runner.store.changes import Stage, Unpublished, apply
from runner.store.journal import Kind
from runner.task import Status, Task
from tests.store.samples import LATER, NOW, create, fail, finish, make_task, start


@pytest.fixture
def below(lazy_store: Store) -> Unpublished:
    """Nothing unpublished over an empty store."""
    return Unpublished(lazy_store)


@pytest.fixture
def stage(below: Unpublished) -> Stage:
    """A batch that begins."""
    return Stage(below)


def stage_all(stage: Stage, *changes: Any) -> RunnerError | None:
    """Stages a group; why not."""
    return apply(stage, changes)[1]


def test_a_group_happens_whole(stage: Stage) -> None:
    """Each change sees those before it."""
    group = (Create(make_task()), Update("t1", lambda task: transitions.start(task, NOW)))
    tasks, error = apply(stage, group)
    assert ([task.status for task in tasks if task], error) == ([Status.PENDING, Status.PROCESSING], None)
    assert [kind for kind, _ in stage.records] == [Kind.TASK, Kind.TASK]


def test_a_group_that_fails_stages_nothing(stage: Stage) -> None:
    """Neither records nor news, users nor keys; what was staged before stays."""
    user = User(user_id="u", created_at=NOW, last_accessed=NOW)
    stage_all(stage, Create(make_task("t0")))
    error = stage_all(stage, SaveUser(user), Create(make_task("t1", unique_key="k")), Remove("missing"))
    assert isinstance(error, NotFound)
    assert (len(stage.records), len(stage.transitions), list(stage.documents)) == (1, 1, ["t0"])
    assert (stage.users, stage.keys) == ({}, {})


def test_a_change_that_changes_nothing_makes_no_record(stage: Stage) -> None:
    """A function may say that all is well."""
    stage_all(stage, Create(make_task()))
    assert stage_all(stage, Update("t1", lambda task: task)) is None
    assert len(stage.records) == 1


def test_what_a_change_raises_is_its_makers_alone(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """A fault in one function must not end the thread that commits for everybody. It is logged: nobody may wait for
    it."""

    def fault(task: Task) -> Task:
        raise ZeroDivisionError("at night")

    stage_all(stage, Create(make_task()))
    error = stage_all(stage, Update("t1", fault))
    assert str(error) == "ZeroDivisionError: at night"
    assert isinstance(error.__cause__ if error else None, ZeroDivisionError)
    assert "a change of a task failed" in caplog.text


@pytest.mark.parametrize("status", [Status.PENDING, Status.PROCESSING])
def test_a_task_that_waits_or_runs_cannot_be_removed(stage: Stage, status: Status) -> None:
    """It is cancelled first."""
    stage_all(stage, Create(make_task(status=status)))
    assert isinstance(stage_all(stage, Remove("t1")), IllegalTransition)


def test_a_removed_task_is_gone_for_the_changes_behind_it(stage: Stage) -> None:
    """In the same batch, before anything is durable."""
    stage_all(stage, Create(make_task(status=Status.CREATED)), Remove("t1"))
    assert isinstance(stage_all(stage, Update("t1", lambda task: task)), NotFound)
    assert isinstance(stage_all(stage, Remove("t1")), NotFound)


def test_what_is_appended_is_seen_until_it_is_published_or_changed_again(below: Unpublished) -> None:
    """By the batches behind it; a later version stays when an earlier one is published."""
    first, second, third = Stage(below), Stage(below), Stage(below)
    stage_all(first, Create(make_task("t1", unique_key="k")), Create(make_task("t2", status=Status.CREATED)))
    below.add(first)
    stage_all(second, Update("t1", lambda task: transitions.start(task, NOW)), Remove("t2"))
    below.add(second)
    below.forget(first)
    assert stage_all(third, Update("t1", lambda task: transitions.cancel(task, NOW))) is None
    assert isinstance(stage_all(third, Update("t2", lambda task: task)), NotFound)
    below.forget(second)
    assert below.find("t1") is None  # nothing published it to the store


def test_a_key_is_forgotten_when_its_own_task_is_published(below: Unpublished) -> None:
    """Not when that of an earlier holder is."""
    first, second = Stage(below), Stage(below)
    stage_all(first, Create(make_task("t1", unique_key="k", unique_until=NOW)))
    below.add(first)
    stage_all(second, Create(make_task("t2", unique_key="k")))
    below.add(second)
    below.forget(first)
    holder = below.find_key("u", "k")
    assert holder is not None
    assert holder.id == "t2"
    below.forget(second)
    assert below.find_key("u", "k") is None


def test_users_are_saved_and_removed(stage: Stage) -> None:
    """As records of their own kinds."""
    stage_all(stage, SaveUser(User(user_id="u", created_at=NOW, last_accessed=NOW)))
    stage_all(stage, RemoveUser("u"))
    assert [kind for kind, _ in stage.records] == [Kind.USER, Kind.USER_REMOVAL]


# Keys


def taken_by(store: Store, **changes: Any) -> str | None:
    """Which task holds the key `k` of user `u` against a new one; None: the new one is made."""
    try:
        create(store, changes.pop("id", "new"), unique_key="k", **changes)
    except KeyTaken as taken:
        return taken.task.id
    return None


def test_a_key_belongs_to_one_task_of_its_user(stage: Stage) -> None:
    """In one batch as over many; another user's key is another key."""
    stage_all(stage, Create(make_task("t1", unique_key="k")))
    assert isinstance(stage_all(stage, Create(make_task("t2", unique_key="k"))), KeyTaken)
    assert stage_all(stage, Create(make_task("t3", unique_key="k", user_id="v"))) is None


def test_the_holder_of_a_key_is_told_as_it_is_now(stage: Stage) -> None:
    """Not as it was made."""
    stage_all(stage, Create(make_task("t1", unique_key="k")), Update("t1", lambda task: transitions.start(task, NOW)))
    error = stage_all(stage, Create(make_task("t2", unique_key="k")))
    assert isinstance(error, KeyTaken)
    assert error.task.status is Status.PROCESSING


def test_a_key_is_kept_after_its_task_has_ended(lazy_store: Store) -> None:
    """Written or not, the same submission gets the same task."""
    create(lazy_store, "t1", unique_key="k")
    finish(lazy_store, "t1")
    assert taken_by(lazy_store) == "t1"
    lazy_store.writer.flush()
    assert taken_by(lazy_store) == "t1"


def test_a_key_is_free_when_its_window_is_over(lazy_store: Store) -> None:
    """`unique`: no second one for that long."""
    create(lazy_store, "t1", unique_key="k", unique_until=LATER)
    assert taken_by(lazy_store) == "t1"
    assert taken_by(lazy_store, created_at=LATER) is None


def test_the_newest_holder_keeps_a_key_whatever_becomes_of_an_older_one(lazy_store: Store) -> None:
    """The older one's progress, end and retry do not bring its expired claim back."""
    create(lazy_store, "old", unique_key="k", unique_until=LATER)
    start(lazy_store, "old")
    create(lazy_store, "new", unique_key="k", unique_until=LATER + timedelta(hours=1), created_at=LATER)
    lazy_store.commit((Update("old", lambda task: transitions.report(task, 1, LATER, progress=None)),))
    assert taken_by(lazy_store, id="t3", created_at=LATER) == "new"
    lazy_store.commit((Update("old", lambda task: transitions.cancel(task, LATER)),))
    lazy_store.commit((Update("old", lambda task: transitions.retry(task, LATER)),))
    lazy_store.writer.flush()
    assert taken_by(lazy_store, id="t3", created_at=LATER) == "new"


def test_a_removed_draft_gives_its_key_back(lazy_store: Store) -> None:
    """At once, in the same batch, and later."""
    for _ in range(2):
        create(lazy_store, "t1", unique_key="k", status=Status.CREATED)
        lazy_store.commit((Remove("t1"), Create(make_task("t2", unique_key="k", status=Status.CREATED))))
        lazy_store.commit((Remove("t2"),))
    assert taken_by(lazy_store) is None


def test_a_key_whose_task_is_removed_before_it_has_a_row_is_forgotten(lazy_store: Store) -> None:
    """Whether that comes in one batch with it or later: nobody would ever take it out of memory."""
    create(lazy_store, "t1", unique_key="k", status=Status.CREATED)
    lazy_store.commit((Create(make_task("t2", unique_key="l", status=Status.CREATED)), Remove("t2"), Remove("t1")))
    lazy_store.writer.flush_rows()
    assert lazy_store._keys == {}


def test_a_key_survives_a_failed_task_that_is_retried(lazy_store: Store) -> None:
    """It is the same task still."""
    create(lazy_store, "t1", unique_key="k")
    fail(lazy_store, "t1")
    lazy_store.writer.flush()
    lazy_store.commit((Update("t1", lambda task: transitions.retry(task, LATER)),))
    assert taken_by(lazy_store) == "t1"


# What could not be read back


def nested(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("payload", [{"x": "\ud800"}, {"x": nested(220)}, {"x": nested(400)}, {"x": object()}])
def test_a_task_that_could_not_be_read_back_is_not_kept(lazy_store: Store, payload: Any) -> None:
    """Else it would be damaged at the next start."""
    task = replace(make_task(), payload=payload)
    with pytest.raises(InvalidSubmission, match="cannot be kept as JSON"):
        lazy_store.commit((Create(task),))
    assert lazy_store.find("t1") is None


@pytest.mark.parametrize("payload", [{"x": nested(150)}, {"x": [[]] * 500}, {"x": "[" * 1000}])
def test_a_task_that_is_only_wide_is_kept(lazy_store: Store, payload: Any) -> None:
    """Brackets alone say nothing."""
    create(lazy_store, payload=payload)
    lazy_store.writer.flush()
    assert lazy_store.get_task("t1").payload == payload


def test_a_task_larger_than_a_record_may_be_is_refused(lazy_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next start its record would end the segment, and all behind it would be lost."""
    monkeypatch.setattr(module, "MAX_BODY", 2000)
    with pytest.raises(InvalidSubmission, match="2000 may be"):
        create(lazy_store, payload={"x": "y" * 2000})
