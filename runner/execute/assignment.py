"""The seam between deciding that an attempt runs and running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from pathlib import Path
from typing import Any, Protocol

from runner.handlers import Handler
from runner.task import FileState, Outcome, Progress, Task, TaskError


@dataclass(slots=True)
class Assignment:
    """One attempt to run: `task` is processing and its `attempt` is the number of this one.

    `private` is the path, absolute, below whose name the attempt has its own two directories; neither exists yet.
    Paths are text, because most attempts ask for none, and making a `Path` costs more than starting one.
    """

    task: Task
    handler: Handler
    input_paths: tuple[str, ...]
    private: str
    config: Mapping[str, Any]

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Its input files, absolute."""
        return tuple(map(Path, self.input_paths))

    @property
    def output_dir(self) -> Path:
        """Where its results are written before they are published."""
        return Path(self.private)

    @property
    def scratch_dir(self) -> Path:
        """Where it may write anything else."""
        return Path(f"{self.private}.scratch")

    @property
    def kept_dir(self) -> Path:
        """Where it may write what further attempts are to find: beside `private`, without the attempt's number."""
        return Path(self.private).with_suffix(".kept")


@dataclass(slots=True)
class Ending:
    """How an attempt ended. `result` is plain JSON values; `after_seconds` is what Retry or Snooze asked for;
    `has_outputs` is False only if it is known that there is no `output_dir`."""

    outcome: Outcome
    result: Any = None
    error: TaskError | None = None
    after_seconds: float | None = None
    traceback: str = ""
    has_outputs: bool = field(default=True, compare=False)


class Stop(StrEnum):
    """Why an attempt is told to stop."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    DRAINED = "drained"


class Haste(Enum):
    """How soon an executor wants to hear of what comes next: `NOW`, since it has nothing else to do, or `SOON`."""

    NOW = auto()
    SOON = auto()


class Monitor(Protocol):
    """Whoever handed out an assignment.

    Called from any thread; each method is quick, and `ended` does not raise. What the others raise, the handler gets.
    """

    def progressed(self, assignment: Assignment, progress: Progress, /) -> None:
        """The attempt is that far."""

    def logged(self, assignment: Assignment, level: str, message: str, /) -> None:
        """The attempt says something; `level` is debug, info, warning or error."""

    def filed(self, assignment: Assignment, files: tuple[FileState, ...], /) -> None:
        """These are the items of work inside the task now."""

    def submitted(self, assignment: Assignment, type: str, payload: dict[str, Any], inputs: tuple[Path, ...], /) -> str:
        """The attempt hands in a child task; its id. May wait for the disk. Raises Refused."""

    def ended(self, assignment: Assignment, ending: Ending, /) -> None:
        """The attempt is over. Called exactly once for each `run`; for a thread that has not obeyed, maybe long after.

        No process of it is left. Threads that a handler of the loop or a thread left behind may still say something.
        """

    def settle(self, haste: Haste, /) -> None:
        """Called after each `ended`, or after a few of them, by the same thread: what the ends lead to, their records
        and the next starts, is wanted at once, or may wait a moment for more of them."""


class Executor(Protocol):
    """Somewhere to run attempts. Every method may be called from any thread."""

    def run(self, assignment: Assignment, monitor: Monitor) -> None:
        """Begin the attempt and return at once. Raises ShuttingDown after `close`."""

    def stop(self, task_id: str, attempt: int, reason: Stop) -> None:
        """Tell the attempt to stop and return at once; nothing happens if it is over. The first reason counts."""

    def close(self, grace_seconds: float) -> None:
        """Take nothing more and wait for what runs: `grace_seconds` to finish by itself, then stop it (DRAINED).

        Processes are killed if they do not obey; a thread that ignores the stop is left behind, and dies with us.
        """
