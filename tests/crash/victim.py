"""A runner that is going to die: it works on a data directory and writes down, elsewhere, what it was told.

Every line of the oracle is written by one `write` to a file opened with O_APPEND, after the acknowledgement and before
anything else: `A <id> <time>` for a task that was accepted, `C <id> <time>` for one that completed. Times are on the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path

from runner.config import Config
from runner.intake.admission import Origin, Submission
from runner.service import Role, Service
from runner.store import Transition
from runner.store.checkpoint import Checkpointer
from runner.store.files import Files
from runner.store.journal import Journal, Kind
from runner.store.writer import Writer
from runner.task import Source, Status
from tests.crash.forks import Child, looks

HANDLER = '''
from runner import handler

@handler(retries=1000)
def noop(ctx, number: int) -> int:
    """Nothing."""
    return number
'''
ORIGIN = Origin(Source.CLI)
OPEN_SECONDS = 20.0


class Sabotage(StrEnum):
    """What is broken on purpose, to see that the suite notices. `JOURNAL_NOT_SYNCED`: acknowledged before it is on the
    disk. `DROPPED_BEFORE_SYNC`: a checkpoint drops segments whose files are not on the disk. `NOT_WAITED_FOR`: it drops
    them while the files that they describe are still being written. `WRITTEN_LATE`: acknowledged before it is even
    written to the journal, which `kill -9` shows, too."""

    NONE = "none"
    JOURNAL_NOT_SYNCED = "journal_not_synced"
    DROPPED_BEFORE_SYNC = "dropped_before_sync"
    NOT_WAITED_FOR = "not_waited_for"
    WRITTEN_LATE = "written_late"


def prepare(root: Path) -> None:
    """Lays out the handlers beside where the data will be."""
    (root / "handlers").mkdir(parents=True, exist_ok=True)
    (root / "handlers" / "noop.py").write_text(HANDLER)


def make_config(root: Path, data: Path, durability: str) -> Config:
    """The configuration of a victim: everything happens often."""
    return Config.load(
        None,
        {
            "data_dir": str(data),
            "handlers_dir": str(root / "handlers"),
            "durability": durability,
            "limits.global": 4,
            "storage.min_free_bytes": 0,
            "storage.min_free_inodes": 0,
            "storage.ballast_bytes": 0,
            "storage.write_behind_seconds": 0.02,
            "storage.checkpoint_seconds": 0.03,
            "storage.checkpoint_bytes": 20_000,
            "drain.grace_period": 5,
        },
        {},
    )


def open_service(root: Path, data: Path, durability: str) -> Service:
    """A service for a visit: its files are written on a thread, since a start would cost more than a life lasts."""
    return Service(make_config(root, data, durability), Role.VISIT)


def live_and_die(root: Path, data: Path, oracle: Path, durability: str, sabotage: Sabotage) -> None:
    """Works until somebody kills this process."""
    logging.disable()
    break_on_purpose(sabotage)
    Checkpointer.LOOK_SECONDS = 0.003
    told = os.open(oracle, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(kind: str, task_id: str) -> None:
        os.write(told, f"{kind} {task_id} {time.monotonic():.6f}\n".encode())

    service = open_service(root, data, durability)
    listen(service, note)
    service.open()
    note("O", "open")
    service.run_tasks()
    number = 0
    while True:
        number += 1
        for task in service.submit_many([(Submission(type="noop", payload={"number": number}), ORIGIN)] * 3):
            note("A", task.id)


def await_opening(oracle: Path, said: int, victim: Child, stderr: Path) -> None:
    """Until the victim says that it has opened its directory: more than the `said` bytes that were there before it.
    Raises `AssertionError` if it ends or hangs."""
    for _ in looks(OPEN_SECONDS):
        if size_of(oracle) > said:
            return
        if victim.poll() is not None:
            break
    status = victim.wait_for(0)
    raise AssertionError(f"the victim did not open its directory: status {status}\n{stderr.read_text()}")


def size_of(oracle: Path) -> int:
    """How many bytes have been said so far."""
    return oracle.stat().st_size if oracle.exists() else 0


def listen(service: Service, note: Callable[[str, str], None]) -> None:
    """Has completions written down once they are durable, before anybody else hears of them."""
    committed = service.committed

    def hear(news: list[Transition]) -> None:
        for transition in news:
            if transition.task.status is Status.COMPLETED and not transition.removed:
                note("C", transition.task.id)
        committed(news)

    service.committed = hear  # type: ignore[method-assign,assignment]


def break_on_purpose(sabotage: Sabotage) -> None:
    """Breaks one of the orders that the store's protocol depends on."""
    if sabotage is Sabotage.JOURNAL_NOT_SYNCED:
        Files.datasync = lambda self, fd: None  # type: ignore[method-assign]
    elif sabotage is Sabotage.DROPPED_BEFORE_SYNC:
        Files.sync_filesystem = lambda self, fd, written: None  # type: ignore[method-assign]
    elif sabotage is Sabotage.NOT_WAITED_FOR:
        Writer.flush = lambda self: None  # type: ignore[method-assign]
    elif sabotage is Sabotage.WRITTEN_LATE:
        _append_one_batch_late()


def _append_one_batch_late() -> None:
    append, waiting = Journal.append, list[tuple[Kind, bytes]]()

    def append_late(self: Journal, records: Iterable[tuple[Kind, bytes]]) -> None:
        append(self, waiting)
        waiting[:] = records

    Journal.append = append_late  # type: ignore[method-assign]
