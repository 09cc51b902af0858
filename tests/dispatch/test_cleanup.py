"""Cleanup removes what its retention is over for, and nothing else."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.config import RetentionConfig, RetentionRule
from runner.dispatch.cleanup import Cleanup, GcMode
from runner.store import Create, Durability, Store, StoreOptions, Transition, User
from runner.store.checkpoint import CheckpointRule
from runner.store.space import Floors
from runner.store.writer import Pace
from runner.task import Status, Task

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = 86400.0


class Deaf:
    """Hears nothing."""

    def staged(self, transitions: list[Transition]) -> None:
        """See Listener."""

    def appended(self, transitions: list[Transition]) -> None:
        """See Listener."""

    def refused(self, transitions: list[Transition]) -> None:
        """See Listener."""

    def committed(self, transitions: list[Transition]) -> None:
        """See Listener."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store in which nothing runs."""
    options = StoreOptions(Durability.PROCESS, Pace(0.0, 0.1), CheckpointRule(1 << 20, 60), Floors(0, 0, 0))
    store = Store(tmp_path, options, Deaf())
    store.open()
    yield store
    store.close()


def add(store: Store, name: str, status: Status, days_old: float, *, size: int = 0, type: str = "noop") -> None:
    """A task that got its status so many days ago, with an output of `size` bytes."""
    at = NOW - timedelta(days=days_old)
    ended = at if status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED) else None
    user_id = name.partition("-")[0]
    task = Task(id=name, type=type, user_id=user_id, status=status, created_at=at, updated_at=at, completed_at=ended)
    store.commit((Create(task),))
    if size:
        folder = Path(store.layout.result(user_id, name))
        folder.mkdir(parents=True)
        (folder / "out").write_bytes(b"x" * size)


def cleanup(store: Store, retention: RetentionConfig, rule: RetentionRule | None = None) -> Cleanup:
    """The cleanup of a store, at NOW."""
    return Cleanup(store, retention, lambda type: rule, lambda: NOW)


def ids(store: Store, retention: RetentionConfig, rule: RetentionRule | None = None) -> list[str]:
    """What a cleanup removes."""
    return [one.id for one in cleanup(store, retention, rule).run_once().removed]


def test_each_status_has_its_own_retention(store: Store) -> None:
    """What completed goes after a week, what failed after a month."""
    for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        add(store, f"u-{status}-8", status, 8)
        add(store, f"u-{status}-6", status, 6)
    assert sorted(ids(store, RetentionConfig())) == ["u-cancelled-8", "u-completed-8"]
    assert store.find("u-completed-8") is None
    assert store.find("u-failed-8") is not None


def test_unfinished_tasks_are_never_outdated(store: Store) -> None:
    """A task that waits for years still waits."""
    add(store, "u-waits", Status.PENDING, 4000)
    add(store, "u-runs", Status.PROCESSING, 4000)
    assert ids(store, RetentionConfig(max_tasks=0)) == []


def test_the_narrowest_rule_wins(store: Store) -> None:
    """User before type before handler before the general rule; None keeps for ever."""
    add(store, "u-1", Status.COMPLETED, 2)
    add(store, "keeper-1", Status.COMPLETED, 2)
    add(store, "u-2", Status.COMPLETED, 2, type="photo")
    retention = RetentionConfig(
        per_user={"keeper": RetentionRule(completed=None)}, per_type={"photo": RetentionRule(completed=10 * DAY)}
    )
    assert ids(store, retention, RetentionRule(completed=DAY)) == ["u-1"]


def test_a_dry_run_says_the_same_and_removes_nothing(store: Store) -> None:
    """What it lists is what would go, and why."""
    add(store, "u-old", Status.COMPLETED, 9, size=1000)
    report = cleanup(store, RetentionConfig()).run_once(GcMode.DRY_RUN)
    assert [(one.id, one.bytes, one.reason) for one in report.removed] == [("u-old", 1000, "completed 9 days ago")]
    assert store.find("u-old") is not None


def test_over_the_quota_of_tasks_the_oldest_go(store: Store) -> None:
    """Until as many are left as may be."""
    for age in (1, 2, 3, 4):
        add(store, f"u-{age}", Status.COMPLETED, age)
    assert ids(store, RetentionConfig(max_tasks=2)) == ["u-4", "u-3"]


@pytest.mark.parametrize("mode", list(GcMode))
def test_over_the_quota_of_bytes_the_oldest_go(store: Store, mode: GcMode) -> None:
    """Counted after what goes anyway has gone, in a dry run too."""
    add(store, "u-9", Status.COMPLETED, 9, size=5000)
    for age in (1, 2, 3):
        add(store, f"u-{age}", Status.COMPLETED, age, size=1000)
    report = cleanup(store, RetentionConfig(max_bytes=2000)).run_once(mode)
    assert [one.id for one in report.removed] == ["u-9", "u-3"]
    assert report.bytes == 6000


def test_what_is_removed_leaves_no_files(store: Store) -> None:
    """Task, log, inputs and outputs go together."""
    add(store, "u-old", Status.COMPLETED, 9, size=10)
    Path(store.layout.log("u-old")).write_text("{}")
    cleanup(store, RetentionConfig()).run_once()
    store.writer.flush()
    kept = (path for name in ("tasks", "logs", "results") for path in Path(store.layout.data, name).rglob("*"))
    assert not any(path.is_file() for path in kept)


def test_a_forgotten_draft_goes(store: Store) -> None:
    """One that somebody works on stays."""
    add(store, "u-forgotten", Status.UPLOADED, 2)
    add(store, "u-fresh", Status.CREATED, 0.5)
    assert ids(store, RetentionConfig()) == ["u-forgotten"]


def test_idle_users_without_tasks_go(store: Store) -> None:
    """A user with tasks, or who was here lately, stays."""
    add(store, "busy-1", Status.FAILED, 1)
    for name, days in (("busy", 40), ("idle", 40), ("here", 1)):
        seen = NOW - timedelta(days=days)
        store.save_user(User(user_id=name, created_at=seen, last_accessed=seen))
    store.writer.flush()
    assert ids(store, RetentionConfig()) == ["idle"]
    store.writer.flush()
    assert sorted(store.user_ids()) == ["busy", "here"]
