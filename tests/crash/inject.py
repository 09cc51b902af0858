"""The Nth disk call fails, for N = 1, 2, … until a life passes untouched: the method of SQLite's tests.

A life takes over a directory that a kill has left, and then does everything once: see `day.py`. In each life one call
through `runner.store.Files` fails in one way. Whatever comes of that, the next owner must find what this one was told.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from runner.errors import RunnerError
from runner.service import Service
from runner.store.committer import Committer
from runner.store.journal import Journal
from runner.store.writer import Writer
from runner.task import Status, from_json
from tests.crash.day import CONTENT, Day, Oracle, Said, await_end, make_service, prepare
from tests.crash.faulty import Fault, FaultyFiles
from tests.crash.forks import FAULT, Child, ask_child

HANG_SECONDS = 150.0
"""Long, for a machine that does something else for a while: only what hangs takes so long."""
UNTOUCHED = 3
"""The exit status of a life in which nothing failed."""
NEVER = 10**9


class Sabotage(StrEnum):
    """What is broken on purpose. `NOT_WAITED_FOR`: a checkpoint drops segments before their files are written.
    `ERROR_SWALLOWED`: what could not be appended to the journal is acknowledged all the same. `TAIL_LEFT`: what a
    failed append has left is not cut off."""

    NONE = "none"
    NOT_WAITED_FOR = "not_waited_for"
    ERROR_SWALLOWED = "error_swallowed"
    TAIL_LEFT = "tail_left"


@dataclass
class Counters:
    """`points` were tried, a call and a way to fail. `acked`: tasks that were accepted. `faults`: what promises were
    broken, and where."""

    points: int = 0
    acked: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """How many promises were broken."""
        return len(self.faults)

    def __str__(self) -> str:
        return f"points {self.points}, acked {self.acked}, violations {self.violations}"


@dataclass(frozen=True)
class Points:
    """Which calls fail, and how: of those that can fail in each of these ways every `every`th, from the `first` on,
    until a life has fewer. `call`: only calls of that name, as `Files` has them."""

    faults: tuple[Fault, ...] = tuple(Fault)
    every: int = 1
    first: int = 1
    call: str | None = None


def run_points(root: Path, points: Points, sabotage: Sabotage = Sabotage.NONE) -> Counters:
    """A life and a judgement for each point."""
    suite = _Suite(root, sabotage)
    for fault in points.faults:
        nth = points.first
        while suite.run_point(FaultyFiles(nth, fault, points.call), f"{fault}-{nth}"):
            nth += points.every
    return suite.counters


class _Suite:
    """The suite, in a directory of its own."""

    def __init__(self, root: Path, sabotage: Sabotage) -> None:
        self._root = root
        self._template = root / "template"
        self._told = root / "told"
        self._sabotage = sabotage
        self.counters = Counters()
        prepare(root)
        self._make_template()

    def run_point(self, files: FaultyFiles, name: str) -> bool:
        """One life with one fault, and the judgement. False if nothing failed."""
        folder = self._root / name
        data, oracle, stderr = folder / "data", folder / "oracle", folder / "stderr"
        shutil.copytree(self._template, data)
        shutil.copyfile(self._told, oracle)
        status = Child(lambda: self._live(data, oracle, files), stderr).wait_for(HANG_SECONDS)
        faults = [*_faults_of(status, stderr), *ask_child(lambda: judge(self._root, data, oracle))]
        self.counters.points += 1
        said = Said.read(oracle)
        self.counters.acked += len(said.of("A"))
        self.counters.faults += [f"{name}, {' '.join(said.of('H'))}: {one}" for one in faults]
        shutil.rmtree(folder)
        return status != UNTOUCHED

    def _make_template(self) -> None:
        """What a kill left, with something to recover."""
        whole, oracle = self._root / "whole", self._root / "oracle"
        status = Child(lambda: self._live(whole, oracle, FaultyFiles(NEVER, Fault.KILL_AFTER))).wait_for(HANG_SECONDS)
        assert status == UNTOUCHED, f"a life in which nothing fails ends with {status}"
        victim = FaultyFiles(int(Said.read(oracle).of("N")[-1]) * 3 // 4, Fault.KILL_AFTER)
        Child(lambda: self._live(self._template, self._told, victim)).wait_for(HANG_SECONDS)

    def _live(self, data: Path, oracle: Path, files: FaultyFiles) -> None:
        break_on_purpose(self._sabotage)
        told = Oracle(oracle)
        files.tell = lambda call: told.note("H", call)
        live(make_service(self._root, data, files), told, data, files)


def live(service: Service, oracle: Oracle, data: Path, files: FaultyFiles) -> None:
    """Everything once; then the process ends, with `UNTOUCHED` or 0."""
    oracle.hear(service)
    threading.excepthook = lambda end: oracle.note("E", f"{end.thread and end.thread.name} ended: {end.exc_value!r}")
    try:
        service.open()
        service._open_intake()
    except (OSError, RunnerError):
        os._exit(0)  # it could not start: so it has said nothing
    service.run_tasks()
    day = Day(service, oracle, data)
    day.run()
    if files.has_passed:
        day.run_again()
        os._exit(0)  # what the fault has left is still there for the next owner to read
    service.close()
    oracle.note("N", str(files.calls))
    os._exit(UNTOUCHED if files.failed is None else 0)


def break_on_purpose(sabotage: Sabotage) -> None:
    """Breaks one of the things that the store's protocol depends on."""
    if sabotage is Sabotage.NOT_WAITED_FOR:
        Writer.flush = lambda self: None  # type: ignore[method-assign]
        Writer.run_once = lambda self: 0  # type: ignore[method-assign]  # which may take as long as it likes
    elif sabotage is Sabotage.ERROR_SWALLOWED:
        Committer._append_again = lambda self, records, error: None  # type: ignore[method-assign]
        Committer._sync = lambda self, batches: None  # type: ignore[method-assign]
    elif sabotage is Sabotage.TAIL_LEFT:
        Journal.undo = lambda self: None  # type: ignore[method-assign]


# The judge


def judge(root: Path, data: Path, oracle: Path) -> list[str]:
    """The next owner: every promise that it finds broken, a line each. In a process of its own."""
    said = Said.read(oracle)
    service = make_service(root, data)
    Oracle(oracle).hear(service)
    service.open()
    faults = [*_find_lost(service, said), *(f"unexpected: {line}" for line in said.of("E"))]
    service.run_tasks()
    faults += _find_stuck(service)
    faults += _find_bad_outputs(service, data)
    service.close()
    faults += _find_repeated(Said.read(oracle))
    return [*faults, *_find_strays(data, said)]


def _faults_of(status: int | None, stderr: Path) -> Iterator[str]:
    if status is None:
        yield f"it hangs: {stderr.read_text()}"
    elif status == FAULT:
        yield f"it ended by an error of its own: {stderr.read_text().strip()}"


def _find_lost(service: Service, said: Said) -> Iterator[str]:
    unsure, gone = set(said.of("?")), set(said.of("X"))
    wanted = dict.fromkeys(said.of("C"), Status.COMPLETED)
    wanted |= dict.fromkeys(said.of("D"), Status.CANCELLED)
    for task_id in said.of("A"):
        task = service.store.find(task_id)
        if task is None:
            if task_id not in unsure:
                yield f"lost: {task_id}"
        elif task_id in gone:
            yield f"deleted, and there again: {task_id}"
        elif task.status is not wanted.get(task_id, task.status):
            yield f"was {wanted[task_id]}, and now {task.status}: {task_id}"
    for user_id in said.of("U"):
        try:
            service.store.get_user(user_id)
        except RunnerError as error:
            yield f"user lost: {error}"


def _find_stuck(service: Service) -> Iterator[str]:
    """What is left to do gets done."""
    for task in list(service.store.live()):
        is_waiting = task.status in (Status.PENDING, Status.PROCESSING) and task.run_after is None
        if is_waiting and not (ended := await_end(service, task)).is_terminal:
            yield f"stuck: {ended.id} is {ended.status}"


def _find_bad_outputs(service: Service, data: Path) -> Iterator[str]:
    """Outputs are there, and whole, when their task has completed."""
    for path in (data / "tasks").glob("*.json"):
        task = service.store.find(path.stem)
        for name in task.output_files if task is not None and task.status is Status.COMPLETED else ():
            output = data / name
            if not output.is_file() or output.read_text() != CONTENT:
                yield f"an output is not what was written: {name}"


def _find_repeated(said: Said) -> Iterator[str]:
    for kind, verb in (("C", "completed"), ("S", "started, at most once,")):
        for task_id, times in Counter(said.of(kind)).items():
            if times > 1:
                yield f"{verb} {times} times: {task_id}"


def _find_strays(data: Path, said: Said) -> Iterator[str]:
    """The directory is in order: every file is a task's, every dropped file is in one place."""
    for path in (data / "tasks").iterdir():
        try:
            from_json(path.read_bytes())
        except RunnerError as error:
            yield f"torn: {path.name}: {error}"
    for path in (data / "corrupt").iterdir():
        yield f"in corrupt/: {path.name}"
    taken = Counter(path.name for path in (data / "uploads").rglob("*.txt"))
    for name in said.of("F"):
        places = taken[name] + sum(1 for _ in (data / "inbox").rglob(name))
        if places != 1:
            yield f"a dropped file is in {places} places: {name}"
