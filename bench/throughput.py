"""How many tasks a second go through the whole runner: admitted, started, run, recorded, written."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from bench.filling import past_option, workspace_with_past
from bench.machine import peak_mb
from bench.report import NotMeasured, Report, print_report
from bench.workspace import Place, Workspace, place_options
from runner.cli.serve import spare_the_collector
from runner.config import Config
from runner.errors import RunnerError
from runner.intake.admission import Origin, Submission
from runner.service import Service
from runner.store import TaskQuery, Transition
from runner.task import Source, Status, Task

STALLED_SECONDS: Final = 60.0


class Tally:
    """Counts tasks that have ended, until there are `expected`."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._all_ended = threading.Event()
        self.ended = 0
        self.completed = 0

    def add(self, transitions: Sequence[Transition]) -> None:
        """These are durable. One thread."""
        for transition in transitions:
            if transition.task.is_terminal:
                self.ended += 1
                self.completed += transition.task.status is Status.COMPLETED
        if self.ended >= self._expected:
            self._all_ended.set()

    def wait(self) -> None:
        """Until all have ended. Raises `NotMeasured` when none does for a minute."""
        before = -1
        while not self._all_ended.wait(STALLED_SECONDS):
            if self.ended == before:
                raise NotMeasured(f"only {self.ended} of {self._expected} tasks have ended")
            before = self.ended


class CountingService(Service):
    """A service that counts what ends."""

    def __init__(self, config: Config, tally: Tally) -> None:
        super().__init__(config)
        self._tally = tally

    def committed(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""
        super().committed(transitions)
        self._tally.add(transitions)


@dataclass(frozen=True)
class Run:
    """One run: instants on the performance counter, and seconds of CPU, the scribe's apart."""

    began: float
    submitted: float
    ended: float
    written: float
    user: float
    system: float
    scribe: float


@click.command()
@click.option("--tasks", type=click.IntRange(1), default=50_000, help="How many tasks.")
@click.option("--durability", type=click.Choice(["full", "process"]), default="full")
@click.option("--batch", type=click.IntRange(1), default=100, help="Submit so many at once; 1: one by one, pipelined.")
@click.option("--finished", type=click.IntRange(0), default=0, help="Finished tasks that the store has already.")
@past_option
@place_options
def throughput(place: Place, tasks: int, durability: str, batch: int, finished: int, past: Path | None) -> None:
    """Tasks per second, from the first submission until all have completed and every task file is written.

    The handler does nothing; 8 run at once, in threads; all in one process, as an application would embed it.
    """
    with workspace_with_past(place, "throughput", finished, past, durability) as (workspace, filled):
        run = _run(workspace, tasks, batch)
        settings = {"tasks": tasks, "durability": durability, "batch": batch, "finished": finished}
        print_report(_report(run, settings, tasks, filled), place)


def _run(workspace: Workspace, tasks: int, batch: int) -> Run:
    tally = Tally(tasks)
    service = CountingService(workspace.config, tally)
    # When something fails it is not closed: that would wait for what will not come. All its threads are daemons.
    service.start()
    before = _count(service, workspace)
    spare_the_collector()  # as `runner serve` does
    cpu, began = os.times(), time.perf_counter()
    _submit(service, tasks, batch)
    submitted = time.perf_counter()
    tally.wait()
    ended = time.perf_counter()
    service.store.writer.flush()
    written, spent = time.perf_counter(), os.times()
    _check(before, _count(service, workspace), tally, tasks)
    service.close()
    # A child's CPU is known when it has ended.
    scribe = os.times().children_user + os.times().children_system - cpu.children_user - cpu.children_system
    return Run(began, submitted, ended, written, spent.user - cpu.user, spent.system - cpu.system, scribe)


def _submit(service: Service, tasks: int, batch: int) -> None:
    origin = Origin(Source.CLI)
    pairs = ((Submission(type="noop", payload={"x": number}), origin) for number in range(tasks))
    if batch > 1:
        _submit_batches(service, pairs, batch)
    else:
        refused: list[RunnerError] = []
        done = _note_refusals(refused)
        for submission, _ in pairs:
            service.submit_soon(submission, origin, done)
        if refused:
            raise NotMeasured(f"{len(refused)} submissions were refused: {refused[0]}")


def _submit_batches(service: Service, pairs: Iterator[tuple[Submission, Origin]], batch: int) -> None:
    while some := list(itertools.islice(pairs, batch)):
        service.submit_many(some)


def _note_refusals(refused: list[RunnerError]) -> Callable[[Sequence[Task | None], RunnerError | None], None]:
    def done(_: Sequence[Task | None], error: RunnerError | None) -> None:
        if error is not None:
            refused.append(error)

    return done


def _count(service: Service, workspace: Workspace) -> tuple[int, int]:
    """How many completed tasks are in the list, and how many tasks have a file."""
    with os.scandir(workspace.data / "tasks") as entries:
        return service.count(TaskQuery(status=(Status.COMPLETED,))), sum(1 for _ in entries)


def _check(before: tuple[int, int], after: tuple[int, int], tally: Tally, tasks: int) -> None:
    """Every task has completed, is in the list, and has its file."""
    listed, files = (now - then for now, then in zip(after, before, strict=True))
    if not tally.completed == listed == files == tasks:
        raise NotMeasured(f"of {tasks} tasks {tally.completed} completed, {listed} are listed, {files} have a file")


def _report(run: Run, settings: dict[str, object], tasks: int, filled: float) -> Report:
    micro = 1e6 / tasks
    figures = {
        "tasks_per_second": round(tasks / (run.written - run.began)),
        "submitted_per_second": round(tasks / (run.submitted - run.began)),
        "completed_per_second": round(tasks / (run.ended - run.began)),
        "user_us_per_task": round(run.user * micro, 1),
        "system_us_per_task": round(run.system * micro, 1),
        "scribe_us_per_task": round(run.scribe * micro, 1),
        "rss_mb": round(peak_mb(os.getpid()), 1),
        "fill_seconds": round(filled, 1),
    }
    rows = [
        ("tasks/s, submitted", f"{figures['submitted_per_second']:,}"),
        ("tasks/s, completed", f"{figures['completed_per_second']:,}"),
        ("tasks/s, completed and written", f"{figures['tasks_per_second']:,}"),
        ("CPU µs/task, user", f"{figures['user_us_per_task']:.0f}"),
        ("CPU µs/task, system", f"{figures['system_us_per_task']:.0f}"),
        ("CPU µs/task, scribe process", f"{figures['scribe_us_per_task']:.0f}"),
        ("peak memory MB", f"{figures['rss_mb']:.0f}"),
    ]
    return Report("throughput", settings, figures, rows)
