"""Whoever deletes a task's file has deleted the task."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runner.dispatch import vanished as module
from runner.dispatch.vanished import Vanished
from runner.errors import NotFound
from runner.store import TaskQuery
from runner.task import Status, Task
from tests.dispatch.test_attempts import free_slots
from tests.dispatch.test_dispatcher import running
from tests.rig import Rig


def delete_file(rig: Rig, task: Task) -> None:
    """As a person would, when the runner has written it."""
    rig.settle()
    rig.it.store.writer.flush()
    rig.data.joinpath("tasks", f"{task.id}.json").unlink()


def look(rig: Rig) -> list[str]:
    """What one look finds."""
    return Vanished(rig.it.store, rig.clock).run_once()


def test_an_unfinished_task_whose_file_is_deleted_is_gone(rig: Rig) -> None:
    """Whether it waits, is a draft, or runs; it does not come back by what happens to it later."""
    task, gate = running(rig, outputs=["out"])
    tasks = [rig.submit("echo", delay=60), rig.submit("echo", draft=True), task]
    for one in tasks:
        delete_file(rig, one)
    assert set(look(rig)) == {one.id for one in tasks}
    for one in tasks:
        with pytest.raises(NotFound):
            rig.it.get(one.id)
    gate.open()
    rig.advance(120)
    free_slots(rig)
    assert (look(rig), rig.it.count(TaskQuery())) == ([], 0)
    assert [path for path in rig.data.rglob("*") if path.name.startswith(tuple(one.id for one in tasks))] == []


def test_a_finished_task_whose_file_is_deleted_is_gone_at_once(rig: Rig) -> None:
    """Every verb says so, lists and counts follow, and nothing goes on about it."""
    task = rig.until(rig.submit("echo"))
    delete_file(rig, task)
    for verb in (rig.it.get, rig.it.retry, rig.it.rerun, rig.it.cancel, rig.it.delete):
        with pytest.raises(NotFound):
            verb(task.id)
    assert (rig.it.list_tasks(TaskQuery()).tasks, rig.it.count(TaskQuery())) == ((), 0)
    assert rig.it.health().ready


def test_a_task_whose_file_is_not_written_yet_has_not_vanished(rig: Rig) -> None:
    """It may be a while until it is, on a busy or a full disk."""
    task = rig.submit("echo", delay=60)
    rig.it.store.writer._pace = rig.it.store.writer._pace.__class__(3600, 3600)
    later = [rig.submit("echo", delay=60) for _ in range(3)]
    assert look(rig) == []
    assert {one.id for one in rig.it.unfinished()} == {task.id, *(one.id for one in later)}


def test_a_folder_that_is_away_takes_no_task_with_it(rig: Rig, tmp_path: Path) -> None:
    """Somebody moved it; what was accepted is kept."""
    task = rig.submit("echo", delay=60)
    rig.it.store.writer.flush()
    shutil.move(rig.data / "tasks", tmp_path / "away")
    assert look(rig) == []
    shutil.move(tmp_path / "away", rig.data / "tasks")
    assert rig.it.get(task.id).status is Status.PENDING


def test_many_are_looked_for_a_few_at_a_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the end all of them."""
    monkeypatch.setattr(module, "SLICE", 2)
    tasks = [rig.submit("echo", delay=60) for _ in range(5)]
    for task in tasks:
        delete_file(rig, task)
    looks = Vanished(rig.it.store, rig.clock)
    assert sum(len(looks.run_once()) for _ in range(8)) == 5
