"""A disk that promises more than it has, and finds out when what was written to it is to be synced.

An ext4 in a file with holes, on a tmpfs that somebody else fills: the file system has room, and its disk has none for
the blocks that are new. The kernel tells of that once, by ENOSPC, and then takes what it could not write for written
(`fsync` in "Can Applications Recover from fsync Failures?", Rebello et al. 2020): a checkpoint that only asks again
loses it. What the disk really holds is seen after the filesystem has been mounted anew.
"""

from __future__ import annotations

import errno
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runner.config import Config
from runner.errors import DiskFull, RunnerError
from runner.intake.admission import Submission
from runner.service import Role, Service
from runner.store import Files
from tests.crash.day import ORIGIN
from tests.crash.forks import ask_child, looks
from tests.crash.mounts import make_ext4, mounted

MEBI = 1024**2
HELD_BYTES, PROMISED_BYTES = 24 * MEBI, 64 * MEBI
TABLES_BYTES = MEBI // 2
TASKS = 100
TEXT = "x" * 40_000
HEALING_SECONDS = 5.0
LOOK_SECONDS = 0.05
HANDLER = '''
from runner import handler

@handler
def keep(ctx, text: str) -> None:
    """Nothing; it does not run."""
'''


@dataclass
class Finding:
    """What came of one round. `slowest`: how long after room came back a task was accepted, in seconds."""

    refused: int = 0
    recorded: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


def run_round(root: Path, folder: Path, break_on_purpose: Callable[[], None]) -> Finding:
    """One such disk, filled and emptied."""
    folder.mkdir()
    (root / "handlers" / "keep.py").write_text(HANDLER)
    with mounted("none", folder / "held", "-t", "tmpfs", "-o", f"size={HELD_BYTES}") as held:
        # Without a journal of its own: that would turn the filesystem read-only, and be another fault.
        image = make_ext4(held / "image", PROMISED_BYTES, "-b", "4096", "-N", "1024", "-O", "^has_journal")
        with image.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, TABLES_BYTES)
        with mounted(image, folder / "mount", "-o", "loop") as mount:
            found = ask_child(lambda: asdict(_Round(root, mount, held / "filling", break_on_purpose).run()))
        with mounted(image, folder / "mount", "-o", "loop") as mount:
            lost = ask_child(lambda: list(_find_lost(root, mount)))
    finding = Finding(**found)
    finding.recorded = TASKS - sum(fault.startswith("lost") for fault in lost)
    finding.faults += lost
    return finding


class _Round:
    """Until it has healed; then the process ends as it is."""

    def __init__(self, root: Path, mount: Path, filling: Path, break_on_purpose: Callable[[], None]) -> None:
        self._service = _open(root, mount)
        _grow(mount / "data" / "tasks")
        self._filling = filling
        self._finding = Finding()
        break_on_purpose()

    def run(self) -> Finding:
        """What came of it."""
        submission = Submission(type="keep", payload={"text": TEXT})
        self._service.submit_many([(submission, ORIGIN)] * TASKS)
        self._fill()
        self._expect_no_room()
        self._expect_refusal()
        self._filling.unlink()
        self._expect_healing()
        return self._finding

    def _fill(self) -> None:
        with self._filling.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def _expect_no_room(self) -> None:
        try:
            self._service.store.checkpointer.checkpoint()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                self._blame(f"the sync is refused for another reason: {error}")
        else:
            self._blame("what has no room is synced")

    def _expect_refusal(self) -> None:
        try:
            self._service.submit(Submission(type="keep", payload={"text": ""}), ORIGIN)
        except DiskFull:
            self._finding.refused += 1
        except RunnerError as error:
            self._blame(f"refused for another reason: {error}")
        else:
            self._blame("a task was accepted on a full disk")

    def _expect_healing(self) -> None:
        for number, _ in enumerate(looks(HEALING_SECONDS, LOOK_SECONDS)):
            with suppress(RunnerError):
                self._service.submit(Submission(type="keep", payload={"text": ""}), ORIGIN)
                self._finding.slowest = number * LOOK_SECONDS
                return
        self._blame(f"it does not heal: {'; '.join(self._service.health().reasons)}")

    def _blame(self, fault: str) -> None:
        self._finding.faults.append(fault)


def _grow(directory: Path) -> None:
    """It gets the blocks for its names while there is room for them: without them the filesystem itself is broken."""
    paths = [directory / f"{uuid.uuid4()}.json" for _ in range(2 * TASKS)]
    for path in paths:
        path.touch()
    for path in paths:
        path.unlink()
    fd = os.open(directory, os.O_RDONLY)
    Files().syncfs(fd)
    os.close(fd)


def _find_lost(root: Path, mount: Path) -> Iterator[str]:
    """Once more from the disk, and not from memory."""
    service = _open(root, mount)
    whole = [task for task in service.store.live() if task.payload["text"] == TEXT]
    for number in range(len(whole), TASKS):
        yield f"lost: task {number}"
    for name in service.store.files.names(service.store.layout.corrupt):
        yield f"torn: {name}"
    service.close()


def _open(root: Path, mount: Path) -> Service:
    """A runner that starts no task, and writes files only when there is a checkpoint: it must be the first to sync
    them."""
    logging.disable()
    storage = {"min_free_bytes": 0, "min_free_inodes": 0, "ballast_bytes": 0, "write_behind_seconds": 3600}
    values = {"data_dir": mount / "data", "handlers_dir": root / "handlers", "storage": storage}
    service = Service(Config.model_validate(values), Role.VISIT)
    service.open()
    return service
