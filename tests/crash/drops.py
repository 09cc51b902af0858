"""`kill -9` while files are dropped: into the inbox, into a folder whose files stay, one that knows content that comes
again, and one where a newer file of a name takes the place of the older one.

Whatever happened, each file is one task in the end, or stands for the earlier one with the same content.
"""

from __future__ import annotations

import itertools
import logging
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from runner.config import Config
from runner.intake.door import Door
from runner.intake.porter import MANY
from runner.service import Service
from runner.store import TaskQuery
from runner.task import Status, Task
from tests.crash.forks import Child, ask_child, looks

LIVES_A_DIRECTORY = 25
LONGEST_LIFE_SECONDS = 0.08
FILES_A_LIFE = 6
NAMES_OF_REPLACED = 10
LONGEST_SECONDS = 60.0
STUCK_LOOKS = 16
HANDLER = '''
from runner import handler

@handler(retries=1000)
def keep(ctx) -> str:
    """Reads its file."""
    return ctx.inputs[0].read_text()
'''
PLACES = ("plain", "kept", "thrifty", "replaced")


class Sabotage(StrEnum):
    """What is broken on purpose. `NOT_TAKEN_AGAIN`: recovery does not redo the rename of a file that was recorded."""

    NONE = "none"
    NOT_TAKEN_AGAIN = "not_taken_again"


@dataclass
class Findings:
    """What a run counts. `missed`: files that are neither there nor a task; `doubled`: that are two tasks; `left`: that
    were not run to their end; `undelivered`: without their folder in the outbox."""

    deaths: int = 0
    dropped: int = 0
    missed: int = 0
    doubled: int = 0
    left: int = 0
    undelivered: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """How many promises were broken."""
        return self.missed + self.doubled + self.left + self.undelivered

    def count(self, faults: list[str]) -> None:
        """Each fault begins with the name of its counter."""
        self.faults += faults
        for fault in faults:
            name = fault.partition(":")[0]
            setattr(self, name, getattr(self, name) + 1)

    def __str__(self) -> str:
        names = ("deaths", "dropped", "missed", "doubled", "left", "undelivered")
        return ", ".join(f"{name} {getattr(self, name)}" for name in names)


@dataclass(frozen=True)
class Yard:
    """One directory with everything in it."""

    root: Path

    def lay_out(self) -> None:
        """Makes the handler and the folders."""
        (self.root / "handlers").mkdir(parents=True)
        (self.root / "handlers" / "keep.py").write_text(HANDLER)
        for place in PLACES:
            self.place(place).mkdir(parents=True)

    def place(self, name: str) -> Path:
        """One of the folders that are watched."""
        return self.root / "data" / "inbox" / "keep" if name == "plain" else self.root / name

    def config(self) -> Config:
        """Everything happens often, and the disk may be nearly full."""
        kept = {"path": str(self.place("kept")), "handler": "keep", "after": "keep"}
        thrifty = {"path": str(self.place("thrifty")), "handler": "keep", "dedupe": "content"}
        replaced = {"path": str(self.place("replaced")), "handler": "keep", "supersede": True}
        values: dict[str, Any] = {
            "data_dir": str(self.root / "data"),
            "handlers_dir": str(self.root / "handlers"),
            "limits.global": 4,
            "inbox.rescan_seconds": 0.2,
            "inbox.folders": [kept, thrifty, replaced],
            "storage.min_free_bytes": 0,
            "storage.min_free_inodes": 0,
            "storage.ballast_bytes": 0,
            "storage.checkpoint_seconds": 0.05,
            "drain.grace_period": 5,
        }
        return Config.load(None, values, {})

    def drop(self, place: str, name: str, content: str) -> None:
        """A whole file appears, by rename, and replaces one of its name."""
        aside = self.root / "aside"
        aside.write_text(content)
        aside.rename(self.place(place) / name)


def run_drops(
    root: Path, kills: int, seed: int = 0, sabotage: Sabotage = Sabotage.NONE, files: int = FILES_A_LIFE
) -> Findings:
    """Kills a runner so many times while files come in, and judges what it left behind every 25 times. `files`: how
    many come into each place in a life; if they are many, porters take them."""
    findings, chance = Findings(), random.Random(seed)
    while findings.deaths < kills:
        lives = min(LIVES_A_DIRECTORY, kills - findings.deaths)
        yard = Yard(root / f"yard-{findings.deaths}")
        yard.lay_out()
        names = itertools.count()
        for _ in range(lives):
            _live_and_die(yard, names, chance, sabotage, files)
        findings.deaths += lives
        dropped = next(names)
        findings.dropped += dropped * len(PLACES)
        found = ask_child(partial(_judge, yard, dropped))
        findings.count(found)
        shutil.rmtree(yard.root)
    return findings


def _live_and_die(yard: Yard, names: Iterator[int], chance: random.Random, sabotage: Sabotage, files: int) -> None:
    runner = Child(lambda: _run(yard, sabotage, files), yard.root / "stderr")
    began = yard.root / "began"
    dies_early = chance.random() < 0.2
    for _ in () if dies_early else looks(LONGEST_SECONDS):
        if began.exists():
            break
        assert runner.poll() is None, (yard.root / "stderr").read_text()
    assert dies_early or began.exists(), "the runner does not begin"
    began.unlink(missing_ok=True)
    for _ in range(files):
        number = next(names)
        yard.drop("plain", f"{number}.txt", f"plain {number}")
        yard.drop("kept", f"{number}.txt", f"kept {number}")
        yard.drop("thrifty", f"{number}.txt", f"thrifty {number // 2}")
        yard.drop("replaced", f"{number % NAMES_OF_REPLACED}.txt", f"replaced {number}")
        time.sleep(chance.random() * LONGEST_LIFE_SECONDS / files)
    runner.kill()
    runner.wait()


def _run(yard: Yard, sabotage: Sabotage, files: int) -> None:
    logging.disable()
    _break_on_purpose(sabotage)
    service = Service(yard.config())
    service.open()
    if files >= MANY:
        _use_porters(service)
    service.run_tasks()
    (yard.root / "began").touch()
    time.sleep(LONGEST_SECONDS)


def _use_porters(service: Service) -> None:
    """For whatever comes, and from the beginning."""
    porters = service.inbox._porter, service.outbox._porter
    for porter in porters:
        porter._many = porter._storm = 1
        porter.start()
    for porter in porters:
        porter.await_start()


def _break_on_purpose(sabotage: Sabotage) -> None:
    if sabotage is Sabotage.NOT_TAKEN_AGAIN:
        Door.take_again = lambda self, live: None  # type: ignore[method-assign]


def _judge(yard: Yard, dropped: int) -> list[str]:
    """Lets all that is left be run, and says what is wrong then: `missed: …`, `doubled: …`."""
    logging.disable()
    service = Service(yard.config())
    service.start()
    try:
        _await_quiet(service, yard)
        tasks = list(service.store.all(TaskQuery(size=1000)))
        return [*_faults_of_content(tasks, dropped), *_faults_of_ends(tasks, yard)]
    finally:
        service.close()


def _await_quiet(service: Service, yard: Yard) -> None:
    """Until no file waits and no task runs, twice in a row, or until nothing has changed for long."""
    quiet, before, stuck = 0, (-1, -1), 0
    while quiet < 2 and stuck < STUCK_LOOKS:
        now = (service.store.live_count, len(_waiting(yard)))
        quiet = quiet + 1 if now == (0, 0) else 0
        stuck = stuck + 1 if now == before else 0
        before = now
        time.sleep(0.5)


def _waiting(yard: Yard) -> list[str]:
    return [path.name for place in PLACES if place != "kept" for path in yard.place(place).glob("*.txt")]


def _faults_of_content(tasks: list[Task], dropped: int) -> Iterator[str]:
    """What every file said must have been read, by one task."""
    read = Counter(str(task.result) for task in tasks if task.status is Status.COMPLETED)
    newest = {number % NAMES_OF_REPLACED: f"replaced {number}" for number in range(dropped)}
    wanted = [f"{kind} {number}" for number in range(dropped) for kind in ("plain", "kept")]
    for text in (*wanted, *(f"thrifty {number // 2}" for number in range(dropped)), *newest.values()):
        if not read[text]:
            yield f"missed: {text}"
    for text, count in read.items():
        # Two files with one content that come in together are one task; `replaced` was cancelled or read, at most once.
        if count > 1:
            yield f"doubled: {text} was read by {count} tasks"


def _faults_of_ends(tasks: list[Task], yard: Yard) -> Iterator[str]:
    for name in _waiting(yard):
        yield f"left: {name} waits"
    for task in tasks:
        place, code = _place_of(task, yard), task.error and task.error.code
        # Whoever is replaced may be cancelled, or have found another file in its place: that is a task of its own.
        gave_way = task.status is Status.CANCELLED or code == "input_missing"
        if task.status is not Status.COMPLETED and not (place == "replaced" and gave_way):
            yield f"left: {task.drop and task.drop.path} is {task.status}: {task.error}"
    for task in tasks:
        if task.drop and _place_of(task, yard) == "plain":
            entry = yard.root / "data" / "outbox" / "keep" / task.drop.name / "task.json"
            if not entry.is_file():
                yield f"undelivered: {entry}"


def _place_of(task: Task, yard: Yard) -> str:
    path = "" if task.drop is None else task.drop.path
    return next((place for place in PLACES[1:] if path.startswith(str(yard.place(place)))), "plain")
