"""Run one handler here and now, without a server: to develop it, and to test it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

from runner.execute.assignment import Assignment, Ending, Haste, Stop
from runner.execute.attempt import stopped
from runner.execute.executors import Executors
from runner.handlers import Handler
from runner.task import Attempt, FileState, Outcome, Progress, Source, Status, Task

Say: TypeAlias = Callable[[str], None]

_LAST_CALL_SECONDS: Final = 10.0
_LOOK_UP_SECONDS: Final = 0.2


@dataclass(frozen=True)
class Run:
    """What came of a run: its ending, the files that it wrote, and the children that it handed in (none was run)."""

    ending: Ending
    outputs: tuple[Path, ...]
    submitted: tuple[tuple[str, dict[str, Any]], ...] = ()


def run_once(
    handler: Handler,
    inputs: Sequence[Path] = (),
    payload: Mapping[str, Any] | None = None,
    *,
    output_dir: Path,
    config: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
) -> Run:
    """Run the handler as it would run in a server, with its isolation and its timeout, and wait for it.

    Its results get into `output_dir` if it completes, in the place of files of the same name; `say` gets its progress
    and its log, a line each, from another thread. Inputs may be relative. Raises InvalidSubmission, and
    KeyboardInterrupt after the handler was stopped.
    """
    submission = dict(payload or {})
    handler.validate(submission)
    with TemporaryDirectory(prefix="runner-") as private:
        assignment = Assignment(
            task=_task(handler, submission, inputs),
            handler=handler,
            input_paths=tuple(str(Path(path).absolute()) for path in inputs),
            private=str(Path(private, "attempt.1")),
            config=config or {},
        )
        onlooker = _Onlooker(say)
        ending = _run(assignment, onlooker)
        completed = ending.outcome is Outcome.COMPLETED
        outputs = _publish(assignment.output_dir, output_dir.absolute()) if completed else ()
    return Run(ending, outputs, tuple(onlooker.children))


def _run(assignment: Assignment, onlooker: _Onlooker) -> Ending:
    executors = Executors()
    key = (assignment.task.id, assignment.task.attempt)
    try:
        executors.run(assignment, onlooker)
        if not _wait(onlooker.done, assignment.handler.options.timeout_seconds):
            executors.stop(*key, Stop.TIMED_OUT)
            onlooker.done.wait(_LAST_CALL_SECONDS)
    except KeyboardInterrupt:
        executors.stop(*key, Stop.CANCELLED)
        raise
    finally:
        executors.close(grace_seconds=0)
    return onlooker.ending or stopped(Stop.TIMED_OUT)


def _wait(event: threading.Event, seconds: float | None) -> bool:
    """Wait, looking up now and then: Ctrl-C does not wake the main thread if the kernel gave it to another one."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while not event.wait(_LOOK_UP_SECONDS):
        if deadline is not None and time.monotonic() >= deadline:
            return False
    return True


def _publish(private: Path, output_dir: Path) -> tuple[Path, ...]:
    """Move the results to where they were asked for; their paths, by name."""
    if not private.is_dir():
        return ()
    output_dir.mkdir(parents=True, exist_ok=True)
    return tuple(Path(shutil.move(path, output_dir / path.name)) for path in sorted(private.iterdir()))


@dataclass
class _Onlooker:
    """Shows what a handler says, and waits for its end."""

    say: Say
    children: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    ending: Ending | None = None

    def progressed(self, _: Assignment, progress: Progress, /) -> None:
        """See Monitor."""
        self.say(" ".join(part for part in (f"{progress.percentage:3.0f} %", progress.stage, progress.message) if part))

    def logged(self, _: Assignment, level: str, message: str, /) -> None:
        """See Monitor."""
        self.say(f"{level}: {message}")

    def filed(self, _: Assignment, files: tuple[FileState, ...], /) -> None:
        """See Monitor."""
        for file in files:
            self.say(f"{file.path}: {file.status}")

    def submitted(self, _: Assignment, type: str, payload: dict[str, Any], inputs: tuple[Path, ...], /) -> str:
        """See Monitor. Nothing runs the child here."""
        self.children.append((type, payload))
        self.say(f"would submit {type} {json.dumps(payload, default=str)} with {len(inputs)} files")
        return str(uuid.uuid4())

    def ended(self, _: Assignment, ending: Ending, /) -> None:
        """See Monitor."""
        self.ending = ending
        self.done.set()

    def settle(self, _: Haste, /) -> None:
        """See Monitor."""


def _task(handler: Handler, payload: dict[str, Any], inputs: Sequence[Path]) -> Task:
    now = datetime.now(UTC)
    return Task(
        id=str(uuid.uuid4()),
        type=handler.name,
        user_id="local",
        status=Status.PROCESSING,
        payload=payload,
        source=Source.CLI,
        original_filename=os.fsencode(Path(inputs[0]).name).decode("utf-8", "replace") if inputs else None,
        attempt=1,
        attempts=(Attempt(number=1, started_at=now),),
        timeout_seconds=handler.options.timeout_seconds,
        created_at=now,
        updated_at=now,
        started_at=now,
    )
