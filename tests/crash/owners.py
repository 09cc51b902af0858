"""Eight processes fight for one directory, and whoever owns it is killed every 50 ms.

There must be one owner at a time, the next one within a second, and what any of them was told must be so for the last.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from runner.errors import FormatError
from runner.intake.admission import Submission
from runner.store.owner import Owner
from runner.task import Status
from tests.crash.day import ORIGIN, Oracle, Said, make_service, prepare
from tests.crash.forks import Child, ask_child

RIVALS = 8
REIGN_SECONDS = 0.05
LOOK_SECONDS = 0.005
HANDOVER_LOOKS = 200
"""So often, which is 1 second, until there is a next owner. Looks are counted and not time: the machine may be busy
with something else."""
PATIENCE_LOOKS = 12_000


class Sabotage(StrEnum):
    """What is broken on purpose. `NO_LOCK`: nobody asks whether somebody else is the owner."""

    NONE = "none"
    NO_LOCK = "no_lock"


@dataclass
class Counters:
    """`overlaps`: somebody did something after the next owner had begun. `late`: hand-overs that took more than a
    second; `slowest` is in seconds. `failed`: owners that ended before they were killed."""

    reigns: int = 0
    acked: int = 0
    overlaps: int = 0
    late: int = 0
    failed: int = 0
    lost: int = 0
    completed_twice: int = 0
    slowest: float = 0.0

    @property
    def violations(self) -> int:
        """How many promises were broken."""
        return self.overlaps + self.late + self.failed + self.lost + self.completed_twice

    def __str__(self) -> str:
        return (
            f"reigns {self.reigns}, acked {self.acked}, overlaps {self.overlaps}, late {self.late}, "
            f"failed {self.failed}, lost {self.lost}, completed_twice {self.completed_twice}, "
            f"slowest hand-over {self.slowest:.3f} s"
        )


def run_rivals(root: Path, reigns: int, sabotage: Sabotage = Sabotage.NONE) -> Counters:
    """Kills so many owners."""
    prepare(root)
    fight = _Fight(root, sabotage)
    try:
        for _ in range(reigns):
            fight.end_a_reign()
    finally:
        fight.close()
    return _judge(root, fight.counters)


@dataclass
class _Fight:
    """The rivals, and who has owned the directory."""

    root: Path
    sabotage: Sabotage
    counters: Counters = field(default_factory=Counters)
    _rivals: dict[int, Child] = field(default_factory=dict)
    _past: set[int] = field(default_factory=set)
    _killed_at: float | None = None

    def __post_init__(self) -> None:
        self._oracle = Oracle(self.root / "oracle")
        for _ in range(RIVALS):
            self._add_rival()

    def close(self) -> None:
        """Nobody fights any more; whoever owns it while they are killed one by one does not count."""
        self._oracle.note("Z", "the end")
        for rival in self._rivals.values():
            rival.kill()
            rival.wait()

    def end_a_reign(self) -> None:
        """Waits for an owner, lets it reign, kills it, and puts another rival in its place."""
        pid = self._await_owner()
        if self.counters.reigns % 2:
            self._await_line("O", pid)  # else it may die while it recovers
        time.sleep(REIGN_SECONDS)
        self._past.add(pid)
        rival = self._rivals.pop(pid)
        self.counters.failed += rival.poll() is not None
        self._killed_at = time.monotonic()
        self._oracle.note("K", f"{pid} {self._killed_at:.6f}")
        rival.kill()
        rival.wait()
        self._add_rival()
        self.counters.reigns += 1

    def _add_rival(self) -> None:
        rival = Child(lambda: _fight_and_reign(self.root, self.sabotage), self.root / "stderr")
        self._rivals[rival.pid] = rival

    def _await_owner(self) -> int:
        looks, pid, began = self._await_line("B")
        if self._killed_at is not None:
            self.counters.late += looks > HANDOVER_LOOKS
            self.counters.slowest = max(self.counters.slowest, began - self._killed_at)
        return pid

    def _await_line(self, kind: str, wanted: int | None = None) -> tuple[int, int, float]:
        """After how many looks somebody has said that, who, and when. `wanted` None: anybody who is still there."""
        for look in range(PATIENCE_LOOKS):
            for line in Said.read(self.root / "oracle").of(kind):
                pid, at = line.split()
                if int(pid) == wanted or (wanted is None and int(pid) not in self._past):
                    return look, int(pid), float(at)
            if wanted is not None and self._rivals[wanted].poll() is not None:
                return look, wanted, time.monotonic()
            time.sleep(LOOK_SECONDS)
        raise AssertionError(f"nobody takes over: {(self.root / 'stderr').read_text()[-2000:]}")


def _fight_and_reign(root: Path, sabotage: Sabotage) -> None:
    """Waits for its turn, then works until it is killed."""
    logging.disable()
    if sabotage is Sabotage.NO_LOCK:
        Owner.acquire = lambda self: None  # type: ignore[method-assign]
    oracle, pid = Oracle(root / "oracle"), os.getpid()
    service = make_service(root, root / "data")
    oracle.hear(service)
    service._owner.wait(lambda error: None)
    oracle.note("B", f"{pid} {time.monotonic():.6f}")
    service._owner.wait = lambda announce: None  # type: ignore[method-assign]
    service.open(announce=lambda error: None)
    oracle.note("O", f"{pid} {time.monotonic():.6f}")
    service.run_tasks()
    while True:
        oracle.note("A", f"{service.submit(Submission(type='noop'), ORIGIN).id} {pid}")


def _judge(root: Path, counters: Counters) -> Counters:
    counters.overlaps = sum(_find_overlaps(root / "oracle"))
    lost, acked = ask_child(lambda: _count_lost(root))
    counters.acked, counters.lost = acked, lost
    counters.completed_twice = sum(times > 1 for times in Counter(Said.read(root / "oracle").of("C")).values())
    return counters


def _find_overlaps(oracle: Path) -> Iterator[bool]:
    """For each line whether whoever wrote it did so while somebody else was the owner: from when they began until just
    before they were killed. Appending keeps the order in which things happened, whoever did them."""
    owner, is_alive = "", False
    for kind, *rest in (line.split() for line in oracle.read_text().splitlines()):
        if kind == "Z":
            return
        if kind == "B":
            yield is_alive
            owner, is_alive = rest[0], True
        elif kind == "A":
            yield rest[1] != owner
        elif kind == "K" and rest[0] == owner:
            is_alive = False


def _count_lost(root: Path) -> tuple[int, int]:
    """What the last owner has lost, of all that was accepted: tasks, and completions; all, if nobody can open it."""
    said = Said.read(root / "oracle")
    accepted, completed = [line.split()[0] for line in said.of("A")], set(said.of("C"))
    service = make_service(root, root / "data")
    try:
        service.open()
    except FormatError:  # several owners at once have torn `VERSION`
        return len(accepted), len(accepted)
    found = {task_id: service.store.find(task_id) for task_id in accepted}
    lost = sum(task is None for task in found.values())
    lost += sum(
        task is not None and task.id in completed and task.status is not Status.COMPLETED for task in found.values()
    )
    service.close()
    return lost, len(accepted)
