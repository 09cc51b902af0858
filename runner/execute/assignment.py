"""The seam between deciding that an attempt runs and running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from runner.handlers import Handler
from runner.task import FileState, Outcome, Progress, Task, TaskError


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt to run: `task` is processing and its `attempt` is the number of this one.

    `output_dir` and `scratch_dir` are private to the attempt and may not exist yet; paths are absolute.
    """

    task: Task
    handler: Handler
    inputs: tuple[Path, ...]
    output_dir: Path
    scratch_dir: Path
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended. `result` is plain JSON values; `after_seconds` is what Retry or Snooze asked for."""

    outcome: Outcome
    result: Any = None
    error: TaskError | None = None
    after_seconds: float | None = None
    traceback: str = ""


class Stop(StrEnum):
    """Why an attempt is told to stop."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    DRAINED = "drained"


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
