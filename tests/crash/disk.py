"""The disk fills up under a working runner, and empties again: bytes or inodes, on tmpfs and on an ext4 of 8 MiB; and
an ext4 whose own disk fills up (`thin.py`).

Intake must pause, what runs must be recorded, a start must work, and within 5 seconds of room coming back all must go
on by itself. Needs root, to mount.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from runner.config import Config
from runner.errors import DiskFull, RunnerError
from runner.intake.admission import Submission
from runner.service import Role, Service
from runner.store import TaskQuery
from runner.store.checkpoint import Checkpointer
from runner.store.space import Space
from runner.task import Status, Task
from tests.crash import mounts, thin
from tests.crash.day import ORIGIN
from tests.crash.forks import ask_child
from tests.crash.mounts import make_ext4, mounted

MEBI = 1024**2
RUNNING = 8
LOOK_SECONDS = 0.05
HEALING_LOOKS = 100
"""So often, which is 5 seconds, until all goes on. Looks are counted and not time: the machine may be busy."""
PATIENCE_LOOKS = 1200
FEW_INODES = 400
FLOORS = {"min_free_bytes": MEBI, "min_free_inodes": 100, "ballast_bytes": MEBI}
HANDLERS = '''
import time
from pathlib import Path

from runner import Context, handler

@handler
def noop(ctx: Context) -> None:
    """Nothing."""

@handler
def wait_for(ctx: Context, gate: str) -> dict[str, str]:
    """Until a file is there; its result is not small."""
    while not Path(gate).exists():
        time.sleep(0.005)
    return {"text": "x" * 20_000}
'''


class Disk(StrEnum):
    """Which disk, and what of it runs out."""

    TMPFS_BYTES = "tmpfs_bytes"
    TMPFS_INODES = "tmpfs_inodes"
    EXT4_BYTES = "ext4_bytes"
    EXT4_INODES = "ext4_inodes"
    EXT4_THIN = "ext4_thin"

    @property
    def lacks_inodes(self) -> bool:
        """Whether it is the inodes that run out."""
        return self in (Disk.TMPFS_INODES, Disk.EXT4_INODES)


class Sabotage(StrEnum):
    """What is broken on purpose. `NO_BALLAST`: nothing is kept to be given up. `NEVER_MEASURED`: nobody looks again.
    `NOT_WRITTEN_AGAIN`: after a sync for which there was no room a checkpoint only syncs again."""

    NONE = "none"
    NO_BALLAST = "no_ballast"
    NEVER_MEASURED = "never_measured"
    NOT_WRITTEN_AGAIN = "not_written_again"


@dataclass
class Counters:
    """`refused`: submissions to a full disk. `recorded`: completions on it. `slowest`: how long after room came back a
    task was accepted, in seconds. `faults`: what promises were broken, and where."""

    rounds: int = 0
    refused: int = 0
    recorded: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """How many promises were broken."""
        return len(self.faults)

    def __str__(self) -> str:
        return (
            f"rounds {self.rounds}, refused {self.refused}, recorded {self.recorded}, violations {self.violations}, "
            f"slowest healing {self.slowest:.1f} s"
        )

    def add(self, other: Counters) -> None:
        """One more round."""
        self.rounds += other.rounds
        self.refused += other.refused
        self.recorded += other.recorded
        self.slowest = max(self.slowest, other.slowest)
        self.faults += other.faults


def obstacle() -> str | None:
    """Why no disk can be filled here, or None."""
    return mounts.obstacle("mkfs.ext4")


def run_rounds(
    root: Path, rounds: int = 1, sabotage: Sabotage = Sabotage.NONE, disks: tuple[Disk, ...] = tuple(Disk)
) -> Counters:
    """Fills each of these disks so many times."""
    counters = Counters()
    (root / "handlers").mkdir()
    (root / "handlers" / "all.py").write_text(HANDLERS)
    for number in range(rounds):
        for disk in disks:
            folder = root / f"{disk}-{number}"
            if disk is Disk.EXT4_THIN:
                counters.add(_run_thin_round(root, folder, sabotage))
                continue
            with _mounted(disk, folder) as mount:
                counters.add(_run_round(root, mount, disk, sabotage))
    return counters


def _run_thin_round(root: Path, folder: Path, sabotage: Sabotage) -> Counters:
    found = thin.run_round(root, folder, lambda: _break_on_purpose(sabotage))
    faults = [f"{Disk.EXT4_THIN}: {fault}" for fault in found.faults]
    return Counters(1, found.refused, found.recorded, found.slowest, faults)


def _break_on_purpose(sabotage: Sabotage) -> None:
    if sabotage is Sabotage.NOT_WRITTEN_AGAIN:
        Checkpointer._write = lambda self, sealed: self._writer.flush()  # type: ignore[method-assign]


def _run_round(root: Path, mount: Path, disk: Disk, sabotage: Sabotage) -> Counters:
    """In a child: whoever forks must have no threads."""
    return Counters(**ask_child(lambda: asdict(_Round(root, mount, disk, sabotage).run())))


@contextmanager
def _mounted(disk: Disk, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    source, options = _make(disk, folder)
    with mounted(source, folder / "mount", *options) as mount:
        yield mount


def _make(disk: Disk, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """What to mount, and how."""
    if disk is Disk.TMPFS_BYTES:
        return Path("none"), ("-t", "tmpfs", "-o", "size=8m")
    if disk is Disk.TMPFS_INODES:
        return Path("none"), ("-t", "tmpfs", "-o", f"size=64m,nr_inodes={FEW_INODES}")
    inodes = ("-N", str(FEW_INODES)) if disk.lacks_inodes else ()
    return make_ext4(folder / "image", 8 * MEBI, "-m", "0", *inodes), ("-o", "loop")


def _say_full(space: Space) -> str | None:
    """What a check says that does not look."""
    space.report_full()
    return space.shortage


class _Round:
    """One disk filled once, in eight steps."""

    def __init__(self, root: Path, mount: Path, disk: Disk, sabotage: Sabotage) -> None:
        self._root = root
        self._mount = mount
        self._disk = disk
        self._floors = FLOORS | ({"ballast_bytes": 0} if sabotage is Sabotage.NO_BALLAST else {})
        self._filling = mount / "filling"
        self._gate = mount.parent / "gate"
        self._counters = Counters(rounds=1)
        logging.disable()
        self._sabotage = sabotage

    def run(self) -> Counters:
        """What came of it."""
        service = self._open()
        running = self._start(service)
        self._fill()
        if self._sabotage is Sabotage.NEVER_MEASURED:
            Space.check = _say_full  # type: ignore[method-assign,assignment]
        self._until(lambda: not service.health().ready, "a full disk is not noticed")
        self._expect_refusal(service)
        self._expect_records(service, running)
        service = self._restart(service)
        self._empty()
        self._expect_healing(service)
        for task in running:
            if service.get(task.id).status is not Status.COMPLETED:
                self._blame(f"a completion was lost: {service.get(task.id).status}")
        service.close()
        return self._counters

    def _open(self) -> Service:
        values = {"data_dir": self._mount / "data", "handlers_dir": self._root / "handlers", "storage": self._floors}
        service = Service(Config.model_validate({**values, "limits": {"global": RUNNING}}), Role.VISIT)
        try:
            service.open()
        except (OSError, RunnerError):
            service._owner.release()  # the process would end here, and with it the lock
            raise
        service.run_tasks()
        return service

    def _start(self, service: Service) -> list[Task]:
        submission = Submission(type="wait_for", payload={"gate": str(self._gate)})
        running = [service.submit(submission, ORIGIN) for _ in range(RUNNING)]
        query = TaskQuery(status=(Status.PROCESSING,))
        self._until(lambda: service.count(query) == RUNNING, "the tasks do not start")
        service.store.writer.flush()
        return running

    def _fill(self) -> None:
        """To the last byte, or the last inode."""
        self._filling.mkdir()
        with suppress(OSError):
            self._add_files() if self._disk.lacks_inodes else self._add_bytes()
        assert self._is_full(), "the disk was not to be filled"

    def _add_files(self) -> None:
        for number in range(100 * FEW_INODES):
            (self._filling / str(number)).touch()

    def _add_bytes(self) -> None:
        with (self._filling / "bytes").open("wb", buffering=0) as file:
            for size in (64 * 1024, 1024, 1):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def _is_full(self) -> bool:
        try:
            (self._filling / "last").write_bytes(bytes(64 * 1024))
        except OSError as error:
            return error.errno == errno.ENOSPC
        return False

    def _empty(self) -> None:
        for path in self._filling.iterdir():
            path.unlink()
        self._filling.rmdir()

    def _expect_refusal(self, service: Service) -> None:
        try:
            service.submit(Submission(type="noop"), ORIGIN)
        except DiskFull:
            self._counters.refused += 1
        else:
            self._blame("a task was accepted on a full disk")

    def _expect_records(self, service: Service, running: list[Task]) -> None:
        self._gate.touch()
        has_ended = self._until(
            lambda: all(service.get(task.id).is_terminal for task in running),
            "what runs is not recorded",
            HEALING_LOOKS,
        )
        self._counters.recorded += RUNNING * has_ended
        service.list_tasks(TaskQuery())

    def _restart(self, service: Service) -> Service:
        """On the full disk."""
        service.close()
        try:
            return self._open()
        except (OSError, RunnerError) as error:
            self._blame(f"no start on a full disk: {error!r}")
            self._empty()
            self._filling.mkdir()
            return self._open()

    def _expect_healing(self, service: Service) -> None:
        began, accepted = time.monotonic(), list[Task]()

        def submit() -> bool:
            with suppress(DiskFull):
                accepted.append(service.submit(Submission(type="noop"), ORIGIN))
            return bool(accepted)

        if self._until(submit, "it does not heal", HEALING_LOOKS):
            self._counters.slowest = time.monotonic() - began
            self._until(lambda: service.get(accepted[0].id).is_terminal, "it accepts and does not run")
            self._until(lambda: service.health().ready, "it is not ready again")

    def _until(self, condition: Callable[[], bool], otherwise: str, looks: int = PATIENCE_LOOKS) -> bool:
        for _ in range(looks):
            if condition():
                return True
            time.sleep(LOOK_SECONDS)
        self._blame(otherwise)
        return False

    def _blame(self, fault: str) -> None:
        self._counters.faults.append(f"{self._disk}: {fault}")
