"""Owners die with attempts of every kind under way: two of them never overlap, and no result of a lost one counts.

Attempts, and all that descends from them, write into one file, a line every few milliseconds; the kernel appends in
order. A standby waits, so that the next attempt begins as soon as it can. What was stopped is woken up then.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from runner import task as transitions
from runner.dispatch import attempts, verdict
from runner.execute.assignment import Assignment, Ending
from runner.intake.admission import Submission
from runner.service import Service
from runner.task import Status, Task
from tests.crash.day import ORIGIN, await_end, make_service
from tests.crash.forks import Child, ask_child

LOOK_SECONDS = 0.01
PATIENCE_LOOKS = 6000
END_SECONDS = 150.0
MAX_OWNERS = 7
HANDLERS = """
import json, os, signal, time
from pathlib import Path

from runner import Context, handler

def note(path, kind, attempt):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{kind} {attempt} {os.getpid()}\\n".encode())
    os.close(fd)

def tick(path, attempt, times):
    for _ in range(times):
        note(path, "T", attempt)
        time.sleep(0.005)

def spawn(path, attempt, as_daemon=False, stops=False):
    if os.fork():
        return
    try:
        if as_daemon:
            os.setsid()
            if os.fork():
                os._exit(0)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note(path, "T", attempt)
        if stops:
            os.kill(os.getpid(), signal.SIGSTOP)
        tick(path, attempt, 6000)
    finally:
        os._exit(0)

def run(ctx, path, begin=lambda: None):
    number = ctx.task.attempt
    note(path, "B", number)
    if number == 1:
        begin()
    tick(path, number, 6000 if number == 1 else 20)
    return number

def spawn_all(path, stops=False):
    spawn(path, 1, stops=stops)
    spawn(path, 1, as_daemon=True, stops=stops)

def stop(path):
    spawn_all(path, stops=True)
    os.kill(os.getpid(), signal.SIGSTOP)

def kill_owner(data):
    os.kill(json.loads((Path(data) / "locks/owner.json").read_text())["pid"], signal.SIGKILL)
    signal.pause()

@handler(retries=5)
def thread(ctx: Context, path: str, data: str) -> int:
    return run(ctx, path)

@handler(retries=5)
async def loop(ctx: Context, path: str, data: str) -> int:
    return run(ctx, path)

@handler(retries=5, isolation="process")
def process(ctx: Context, path: str, data: str) -> int:
    return run(ctx, path)

@handler(retries=5, isolation=ISOLATION)
def family(ctx: Context, path: str, data: str) -> int:
    return run(ctx, path, lambda: spawn_all(path))

@handler(retries=5, isolation="process")
def stopped(ctx: Context, path: str, data: str) -> int:
    return run(ctx, path, lambda: stop(path))

@handler(retries=0)
def poison(ctx: Context, path: str, data: str) -> None:
    note(path, "B", ctx.task.attempt)
    kill_owner(data)

@handler(retries=3, isolation="process")
def poisonous_process(ctx: Context, path: str, data: str) -> None:
    note(path, "B", ctx.task.attempt)
    kill_owner(data)

@handler(retries=1, timeout="100ms", backoff={"base": 0.001})
def deaf(ctx: Context, path: str, data: str) -> int:
    number = ctx.task.attempt
    note(path, "B", number)
    if number == 1:
        tick(path, number, 60)
    return number
"""
KILLED = ("thread", "loop", "process", "family", "stopped")
"""Handlers whose owner is killed during the first attempt."""
POISON = {"poison": verdict.MAX_LOST, "poisonous_process": 4}
"""Handlers that kill their owner, and after how many attempts nobody tries any more."""
DEAF = "deaf"
"""A handler that does not hear that its time is over, and returns later."""
KINDS = (*KILLED, *POISON, DEAF)


class Sabotage(StrEnum):
    """What is broken on purpose. `NOT_ISOLATED`: an attempt that makes processes has none of its own. `NOT_FENCED`: the
    result of a lost attempt is taken. `NOT_COUNTED`: nobody counts the owners that died."""

    NONE = "none"
    NOT_ISOLATED = "not_isolated"
    NOT_FENCED = "not_fenced"
    NOT_COUNTED = "not_counted"


@dataclass
class Counters:
    """`attempts` were begun, `deaths` of owners were seen. `faults`: what promises were broken, and where."""

    rounds: int = 0
    attempts: int = 0
    deaths: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """How many promises were broken."""
        return len(self.faults)

    def __str__(self) -> str:
        return f"rounds {self.rounds}, attempts {self.attempts}, deaths {self.deaths}, violations {self.violations}"


class Line(NamedTuple):
    """`B`: an attempt began; `T`: it, or what descends from it, is alive."""

    kind: str
    attempt: int
    pid: int


def run_rounds(
    root: Path, rounds: int = 1, sabotage: Sabotage = Sabotage.NONE, kinds: tuple[str, ...] = KINDS
) -> Counters:
    """Runs a task of each of these kinds so many times."""
    counters = Counters()
    (root / "handlers").mkdir()
    isolation = "thread" if sabotage is Sabotage.NOT_ISOLATED else "process"
    (root / "handlers" / "all.py").write_text(HANDLERS.replace("ISOLATION", repr(isolation)))
    for number in range(rounds):
        for kind in kinds:
            folder = root / f"{kind}-{number}"
            folder.mkdir()
            _Round(root, folder, kind, sabotage, counters).run()
    return counters


@dataclass
class _Round:
    """One task in a directory of its own."""

    root: Path
    folder: Path
    kind: str
    sabotage: Sabotage
    counters: Counters

    def run(self) -> None:
        """From its submission to its end, through the hands of some owners."""
        owners = [self._start()]
        try:
            self._await(lambda: bool(self._lines()), "the first attempt does not begin")
            if self.kind in KILLED:
                owners.append(self._start())
                owners[0].kill()
                self._await(lambda: self._begun() > 1, "there is no second attempt")
                self._wake_up()
            while owners[-1].wait_for(END_SECONDS) == -signal.SIGKILL and len(owners) < MAX_OWNERS:
                self.counters.deaths += 1
                owners.append(self._start())
        finally:
            for owner in owners:
                owner.kill()
                owner.wait()
        self.counters.deaths += self.kind in KILLED
        self._judge()

    def _start(self) -> Child:
        return Child(lambda: _own(self.root, self.folder, self.kind, self.sabotage), self.folder / "stderr")

    def _judge(self) -> None:
        """In a process of its own, as everything that opens a directory; what was left behind is ended."""
        self._wake_up()
        time.sleep(10 * LOOK_SECONDS)
        lines = self._lines()
        self.counters.rounds += 1
        self.counters.attempts += self._begun()
        status, result, code, number = ask_child(lambda: _end_of(self.root, self.folder))
        if self.kind in POISON:
            if (status, code, number) != (Status.FAILED, "crash_loop", POISON[self.kind]):
                self._blame(f"after {number} attempts it is {status}, {code}: {self._stderr()}")
        elif (status, result, number) != (Status.COMPLETED, 2, 2):
            self._blame(f"after {number} attempts it is {status}, with result {result}: {self._stderr()}")
        if overlaps := _count_overlaps(lines):
            self._blame(f"an attempt was alive {overlaps} times after the next one had begun")
        for line in lines:
            with suppress(ProcessLookupError):
                os.kill(line.pid, signal.SIGKILL)

    def _wake_up(self) -> None:
        """What was stopped goes on, if it is still there."""
        for pid in {line.pid for line in self._lines()}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _lines(self) -> list[Line]:
        path = self.folder / "lines"
        words = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [Line(kind, int(attempt), int(pid)) for kind, attempt, pid in words]

    def _begun(self) -> int:
        return sum(line.kind == "B" for line in self._lines())

    def _await(self, condition: Callable[[], bool], otherwise: str) -> None:
        for _ in range(PATIENCE_LOOKS):
            if condition():
                return
            time.sleep(LOOK_SECONDS)
        self._blame(f"{otherwise}: {self._stderr()}")

    def _stderr(self) -> str:
        return (self.folder / "stderr").read_text()[-2000:]

    def _blame(self, fault: str) -> None:
        self.counters.faults.append(f"{self.kind}: {fault}")


def _count_overlaps(lines: list[Line]) -> int:
    newest, overlaps = 0, 0
    for line in lines:
        newest = max(newest, line.attempt)
        overlaps += line.attempt < newest
    return overlaps


def _own(root: Path, folder: Path, kind: str, sabotage: Sabotage) -> None:
    """One owner: the first one submits the task; each runs it until it has ended."""
    logging.disable()
    _break_on_purpose(sabotage)
    service = make_service(root, folder / "data")
    service.open(announce=lambda owner: None)
    task = _find(service) or _submit(service, folder, kind)
    service.run_tasks()
    ended = await_end(service, task)
    assert ended.is_terminal, f"the task is {ended.status} and does not end"
    service.close()


def _submit(service: Service, folder: Path, kind: str) -> Task:
    payload = {"path": str(folder / "lines"), "data": str(folder / "data")}
    return service.submit(Submission(type=kind, payload=payload), ORIGIN)


def _find(service: Service) -> Task | None:
    """The one task, if there is any."""
    names = os.listdir(service.store.layout.tasks)
    return service.store.find(names[0].removesuffix(".json")) if names else None


def _end_of(root: Path, folder: Path) -> tuple[str, object, str | None, int]:
    """The status of the task, its result, the code of its error, and how many attempts it has had."""
    service = make_service(root, folder / "data")
    service.open()
    task = _find(service)
    service.close()
    assert task is not None, "the task is gone"
    return task.status, task.result, task.error.code if task.error else None, task.attempt


def _break_on_purpose(sabotage: Sabotage) -> None:
    if sabotage is Sabotage.NOT_COUNTED:
        verdict.MAX_LOST = 1000
    elif sabotage is Sabotage.NOT_FENCED:
        ended = attempts.Attempts.ended

        def take_it(self: attempts.Attempts, assignment: Assignment, ending: Ending) -> None:
            self._running[assignment.task.id].told = None
            ended(self, assignment, ending)

        attempts.Attempts.ended = take_it  # type: ignore[method-assign]
        transitions._check_current = lambda task, attempt: None
        transitions._move = _move_from_anywhere(transitions._move)


def _move_from_anywhere(move: Callable[..., Task]) -> Callable[..., Task]:
    def move_it(task: Task, *arguments: object, **fields: object) -> Task:
        running = replace(task, status=Status.PROCESSING)
        return move(running if task.status is Status.PENDING else task, *arguments, **fields)

    return move_it
