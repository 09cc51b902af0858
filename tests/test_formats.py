"""Data that earlier versions wrote loads for ever: every kind of task, and all that belongs to them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from runner.config import Config
from runner.service import Role, Service
from runner.store import Files, TaskQuery
from runner.store.recovery import FORMAT
from runner.task import Outcome, Source, Status, Task, from_json
from runner.web.tokens import Tokens
from tests.store.samples import until

FIXTURES = Path(__file__).parent / "fixtures"
SERVED = FIXTURES / "format-1-served"
EXPECTED: dict[str, Any] = json.loads((SERVED / "EXPECTED.json").read_text(encoding="utf-8"))
MORNING = datetime(2026, 11, 23, 3, tzinfo=UTC)
"""Half an hour after the schedule should have fired, which the runner of the data did not live to see."""


@dataclass
class Old:
    """A copy of the data, and where its runner's folders are now."""

    root: Path
    data: Path

    def serve(self, role: Role) -> Service:
        """Today's runner on it; the clock stands."""
        settings = {
            "data_dir": str(self.data),
            "handlers_dir": str(self.root / "handlers"),
            "storage.min_free_bytes": 0,
            "storage.min_free_inodes": 0,
            "storage.ballast_bytes": 0,
            "drain.grace_period": 0.1,
            "limits.per_user": None,
            "schedules": {"nightly": {"cron": "30 2 * * *", "type": "echo"}},
            "inbox.folders": [
                {"path": str(self.root / "scans"), "handler": "count", "after": "keep", "remember": "content"}
            ],
        }
        return Service(Config.load(None, settings, {}), role, lambda: MORNING)


def copy_to(root: Path) -> Old:
    """As the runner left it when it was killed; the folder that it watched has moved, and its memory with it."""
    data = Path(shutil.copytree(SERVED, root / "data"))
    data.chmod(0o700)
    (data / "inbox").mkdir(mode=0o700)
    for name in ("handlers", "scans"):
        (root / name).mkdir()
    shutil.copy(SERVED / "HANDLERS.py.txt", root / "handlers" / "all.py")
    (memory,) = (data / "seen").iterdir()
    memory.rename(memory.with_name(hashlib.sha256(os.fsencode(root / "scans")).hexdigest()[:16] + ".jsonl"))
    return Old(root, data)


@pytest.fixture
def old(tmp_path: Path) -> Old:
    """A copy of it."""
    return copy_to(tmp_path)


def named(name: str) -> str:
    """The id of the task that EXPECTED.json calls so."""
    (task_id,) = (task_id for task_id, task in EXPECTED["tasks"].items() if task["name"] == name)
    return str(task_id)


def expected(task_id: str) -> Task:
    """The task as it was."""
    return from_json(json.dumps({key: at for key, at in EXPECTED["tasks"][task_id].items() if key != "name"}).encode())


def test_every_task_is_as_it_was(old: Old) -> None:
    """Finished, failed, cancelled, drafts, delayed, retrying, chained, keyed, of a batch, running; some only in the
    journal, whose end is torn."""
    service = old.serve(Role.VISIT)
    service.open()
    try:
        assert {task_id: service.get(task_id) for task_id in EXPECTED["tasks"]} == {
            task_id: expected(task_id) for task_id in EXPECTED["tasks"]
        }
        assert {task.id for task in service.all_tasks(TaskQuery(size=100))} == EXPECTED["tasks"].keys()
        assert service.store.find(EXPECTED["removed"]) is None
        assert sorted(service.store.user_ids()) == EXPECTED["users"]
        assert service.store.get_user("ann").metadata == {"theme": "dark"}
        assert os.listdir(old.data / "corrupt") == []
    finally:
        service.close()


def test_what_belongs_to_the_tasks_is_found(old: Old) -> None:
    """Inputs, outputs, logs, and the tokens of those who sent them."""
    service = old.serve(Role.VISIT)
    service.open()
    try:
        done, late = service.get(named("completed")), service.get(named("late"))
        assert service.output(done, "count.txt").read_text() == "counted"
        assert [Path(service.store.layout.absolute(path)).read_text() for path in late.input_files] == ["late"]
        assert [event.data.get("message") for event in service.events.history(done.id)] == ["half way", "counting"]
        tokens = Tokens(Files(), str(old.data / "tokens.json"))
        assert [token.name for token in tokens] == ["ci"]
    finally:
        service.close()


def test_the_next_runner_goes_on_where_the_old_one_was_killed(old: Old) -> None:
    """Lost attempts are counted, a missed fire is made up for once, and what was taken is not taken again."""
    (old.root / "scans" / "scan.txt").write_text("kept")
    (old.root / "scans" / "new.txt").write_text("new")
    service = old.serve(Role.SERVE)
    service.start()
    try:
        is_ended: Callable[[str], bool] = lambda name: service.get(named(name)).is_terminal  # noqa: E731
        until(lambda: len(service.get(named("running")).attempts) == 2 and is_ended("once"))
        until(lambda: any(task.original_filename == "new.txt" for task in taken(service)))
        until(lambda: bool(service.count(TaskQuery(source=Source.SCHEDULE))))
        lost, once = service.get(named("running")), service.get(named("once"))
        assert (lost.attempts[0].outcome, lost.attempt) == (Outcome.LOST, 2)
        assert (once.status, once.error and once.error.code) == (Status.FAILED, "interrupted")
        assert sorted(task.original_filename or "" for task in taken(service)) == ["drop.txt", "new.txt", "scan.txt"]
        (fired,) = service.list_tasks(TaskQuery(source=Source.SCHEDULE)).tasks
        assert fired.metadata["fired_for"] == "2026-11-23T02:30:00+00:00"
        waiting = ("delayed", "retrying", "chained", "keyed", "batch-0", "batch-1", "late", "draft", "uploaded")
        assert {name: service.get(named(name)) for name in waiting} == {name: expected(named(name)) for name in waiting}
    finally:
        service.close()


def taken(service: Service) -> tuple[Task, ...]:
    """The tasks that came by a watched folder."""
    return service.list_tasks(TaskQuery(source=Source.INBOX)).tasks


def test_every_format_has_its_data_kept() -> None:
    """Whoever makes a new one keeps a directory of it, or nobody would notice when it cannot be read any more."""
    assert {int(path.name.split("-")[1]) for path in FIXTURES.glob("format-*")} == set(range(1, FORMAT + 1))
