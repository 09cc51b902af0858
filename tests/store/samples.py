"""Tasks, options and listeners that the store's tests are made of, and a disk that fails when it is told to."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from runner import task as transitions
from runner.store import Create, Durability, Files, Store, StoreOptions, Transition, Update
from runner.store.checkpoint import CheckpointRule
from runner.store.quickness import Quickness
from runner.store.recovery import Recovered
from runner.store.space import Floors
from runner.store.writer import Pace
from runner.task import Status, Task, TaskError, from_values

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)

OPTIONS = StoreOptions(
    durability=Durability.FULL,
    pace=Pace(write_behind_seconds=0.001, overload_seconds=0.05),
    checkpoint=CheckpointRule(max_bytes=64 * 1024**2, interval_seconds=60),
    floors=Floors(min_free_bytes=0, min_free_inodes=0, ballast_bytes=0),
)
LAZY = replace(OPTIONS, pace=Pace(write_behind_seconds=3600, overload_seconds=3600))
"""Nothing is written behind by itself."""


def make_task(task_id: str = "t1", **changes: Any) -> Task:
    """A task that waits, made at noon."""
    fields = {"id": task_id, "type": "resize", "user_id": "u", "status": Status.PENDING}
    return from_values(fields | {"created_at": NOW, "updated_at": NOW} | changes)


def create(store: Store, *task_ids: str, **changes: Any) -> None:
    """Durable tasks of these ids; `t1` if none is given."""
    store.commit([Create(make_task(task_id, **changes)) for task_id in task_ids or ("t1",)])


def until(condition: Callable[[], bool]) -> None:
    """Returns when it holds; the store's threads see to that."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)


def start(store: Store, task_id: str = "t1") -> None:
    """Its next attempt begins."""
    store.commit((Update(task_id, lambda task: transitions.start(task, NOW)),))


def finish(store: Store, task_id: str = "t1", now: datetime = LATER) -> None:
    """It runs, and completes."""
    start(store, task_id)
    store.commit((Update(task_id, lambda task: transitions.complete(task, task.attempt, now)),))


def fail(store: Store, task_id: str = "t1") -> None:
    """It runs, and fails for good."""
    error = TaskError(code="broken", message="it broke")
    start(store, task_id)
    store.commit((Update(task_id, lambda task: transitions.fail(task, task.attempt, LATER, error=error)),))


def crash(store: Store, to: Path) -> Path:
    """A copy of the data directory as a kill would leave it now."""
    return Path(shutil.copytree(store.layout.data, to, symlinks=True))


class News:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.written: list[Transition] = []
        self.durable: list[Transition] = []

    def staged(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""

    def appended(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""
        self.written.extend(transitions)

    def refused(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""

    def committed(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""
        self.durable.extend(transitions)


class Quick(Quickness):
    """Of a disk that never needs long, whatever the machine is up to."""

    def __bool__(self) -> bool:
        return True


class FaultyFiles(Files):
    """A disk on which some calls fail: `fail("datasync", "journal")`, all of them or the first `times`, from now on."""

    def __init__(self) -> None:
        self.faults: list[list[Any]] = []
        self.names_of: dict[int, str] = {}

    def fail(self, call: str, part: str = "", code: int = errno.EIO, times: int = 1_000_000) -> None:
        """Calls of that name fail with that error where the path contains `part`."""
        self.faults.append([call, part, code, times])

    def heal(self) -> None:
        """Nothing fails any more."""
        self.faults.clear()

    def _check(self, call: str, path: str) -> None:
        for fault in self.faults:
            if fault[0] == call and fault[1] in path and fault[3] > 0:
                fault[3] -= 1
                raise OSError(fault[2], os.strerror(fault[2]), path)

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self._check("open", path)
        fd = super().open(path, flags, mode)
        self.names_of[fd] = path
        return fd

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._check("write", self.names_of[fd])
        return super().write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        self._check("truncate", self.names_of[fd])
        super().truncate(fd, size)

    def datasync(self, fd: int) -> None:
        self._check("datasync", self.names_of[fd])
        super().datasync(fd)

    def sync(self, fd: int) -> None:
        self._check("sync", self.names_of[fd])
        super().sync(fd)

    def syncfs(self, fd: int) -> None:
        self._check("syncfs", self.names_of[fd])
        super().syncfs(fd)

    def allocate(self, fd: int, size: int) -> None:
        self._check("allocate", self.names_of[fd])
        super().allocate(fd, size)

    def rename(self, source: str, target: str) -> None:
        self._check("rename", target)
        super().rename(source, target)

    def link(self, source: str, target: str) -> None:
        self._check("link", target)
        super().link(source, target)

    def unlink(self, path: str) -> None:
        self._check("unlink", path)
        super().unlink(path)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        self._check("mkdir", path)
        super().mkdir(path, mode)


class Stores:
    """The stores of one test. `found` is what the recovery of the latest one found."""

    def __init__(self) -> None:
        self.found = Recovered()
        self._open: list[Store] = []

    def open(
        self, data: Path, options: StoreOptions = OPTIONS, news: News | None = None, files: Files | None = None
    ) -> Store:
        """A store on that directory."""
        store = Store(data, options, news or News(), files)
        self.found = store.open()
        self._open.append(store)
        return store

    def close(self) -> None:
        """Closes all of them."""
        for store in self._open:
            store.close()
