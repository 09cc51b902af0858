"""Whatever lies in the place of what a runner keeps beside its tasks, it serves, and the tasks go on.

What the store itself makes of damage is in `store/test_corrupt.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.intake.admission import Origin, Submission
from runner.service import Role
from runner.store import TaskQuery
from runner.task import Source, Status
from tests.store.samples import until
from tests.store.test_corrupt import ruin
from tests.test_formats import EXPECTED, Old, copy_to, expected, named, taken

KINDS = ("link", "pipe", "directory", "noise", "deep", "list")
PLACES = (
    "schedules.json",
    "outbox/.published",
    "locks/owner.json",
    "seen/*.jsonl",
    "logs/*.jsonl",
    "uploads/ann/*/*.txt",
)


@pytest.fixture(params=KINDS)
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Old:
    """Data that a runner has left, in which all these places hold something else."""
    old = copy_to(tmp_path)
    (old.data / "locks").mkdir(mode=0o700)
    (old.data / "locks" / "owner.json").touch()
    for pattern in PLACES:
        for path in sorted(old.data.glob(pattern)):
            ruin(path, request.param)
    return old


def test_a_runner_serves_whatever_its_memories_hold(damaged: Old) -> None:
    """It starts, takes what is dropped, fires its schedule, says what logs there are, and ends."""
    (damaged.root / "scans" / "new.txt").write_text("new")
    service = damaged.serve(Role.SERVE)
    service.start()
    try:
        task = service.submit(Submission(type="count"), Origin(Source.HTTP, "ann"))
        until(lambda: service.get(task.id).status is Status.COMPLETED)
        until(lambda: any(one.original_filename == "new.txt" and one.is_terminal for one in taken(service)))
        until(lambda: service.get(named("once")).is_terminal)
        for task_id in EXPECTED["tasks"]:
            list(service.events.history(task_id))
        assert [event.data["message"] for event in service.events.history(task.id)] == ["half way", "counting"]
        untouched = ("completed", "failed", "cancelled", "draft", "delayed", "retrying", "keyed", "batch-0")
        assert {name: service.get(named(name)) for name in untouched} == {
            name: expected(named(name)) for name in untouched
        }
        assert service.count(TaskQuery(source=Source.SCHEDULE)) <= 1
    finally:
        service.close()
