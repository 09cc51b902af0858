"""Opens what a victim left behind and compares it with what the victim was told."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from runner.task import Status
from tests.crash.forks import ask_child
from tests.crash.victim import open_service


@dataclass
class Told:
    """What an oracle says: ids of accepted tasks, and how often each was told to have completed."""

    accepted: set[str] = field(default_factory=set)
    completed: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, oracle: Path, until: float = float("inf")) -> Told:
        """What was written before the instant `until`; the last line may be torn by the death."""
        told = cls()
        if not oracle.exists():
            return told
        for line in oracle.read_text().splitlines():
            kind, _, rest = line.partition(" ")
            task_id, _, at = rest.partition(" ")
            if at and float(at) < until:
                told._note(kind, task_id)
        return told

    def _note(self, kind: str, task_id: str) -> None:
        if kind == "A":
            self.accepted.add(task_id)
        elif kind == "C":
            self.completed[task_id] += 1


@dataclass
class Verdict:
    """What a suite counts. `lost`: accepted, and not there. `uncompleted`: told to have completed, and not so any more.
    `torn`: files that were not what they should be."""

    deaths: int = 0
    acked: int = 0
    lost: int = 0
    uncompleted: int = 0
    completed_twice: int = 0
    torn: int = 0
    rerun: int = 0

    @property
    def violations(self) -> int:
        """How many promises were broken."""
        return self.lost + self.uncompleted + self.completed_twice + self.torn

    def __str__(self) -> str:
        names = ("acked", "lost", "uncompleted", "completed_twice", "torn", "rerun")
        return f"deaths {self.deaths}, " + ", ".join(f"{name} {getattr(self, name)}" for name in names)


def judge(root: Path, data: Path, told: Told, durability: str, verdict: Verdict) -> None:
    """Adds to `verdict` what is found in `data`, where nothing runs.

    In a process of its own: whoever goes on to fork victims must not have had threads.
    """
    found = Verdict(**ask_child(lambda: asdict(_judge(root, data, told, durability))))
    for part in fields(Verdict):
        setattr(verdict, part.name, getattr(verdict, part.name) + getattr(found, part.name))


def _judge(root: Path, data: Path, told: Told, durability: str) -> Verdict:
    logging.disable()
    verdict = Verdict()
    service = open_service(root, data, durability)
    service.open()
    try:
        verdict.acked += len(told.accepted)
        verdict.torn += len(os.listdir(data / "corrupt"))
        for task_id in told.accepted:
            task = service.store.find(task_id)
            if task is None:
                verdict.lost += 1
            else:
                verdict.uncompleted += told.completed[task_id] > 0 and task.status is not Status.COMPLETED
                verdict.rerun += task.attempt > 1
        verdict.completed_twice += sum(count > 1 for count in told.completed.values())
    finally:
        service.close()
    return verdict
