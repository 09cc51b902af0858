"""What a handler holds while it runs: its task, its files, a way to say how far it is, and to be told to stop.

What a handler may raise:

    Retry      this attempt failed; try again, after a time if it says one
    Snooze     nothing to do yet; call again later, no attempt is used up
    Fail       it will never work; no further attempt
    Cancelled  raised by `Context.check` when the attempt was told to stop
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from runner.task import FileState, Progress, Task
from runner.units import parse_duration

_MAX_NAME_BYTES: Final = 255
_FORBIDDEN: Final = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")


class Retry(Exception):
    """The attempt failed and another may succeed, not before `after`; None: as the handler's backoff says.

    `after` is a number of seconds, or a text such as "5m"; likewise for Snooze. Raises ValueError for anything else.
    `code` is for machines, should it have been the last attempt.
    """

    after: float | None = None
    code: str = "retry"

    def __init__(
        self,
        after: str | float | None = None,
        message: str = "the handler asks for another attempt",
        code: str = "retry",
    ) -> None:
        super().__init__(message)
        self.after = None if after is None else parse_duration(after)
        self.code = code


class Snooze(Exception):
    """Nothing can be done yet: run the task again after `seconds`, without using up an attempt."""

    seconds: float = 0.0

    def __init__(self, seconds: str | float) -> None:
        self.seconds = parse_duration(seconds)
        super().__init__(f"snoozed for {self.seconds:g}s")


class Fail(Exception):
    """The task can never succeed: it fails now, with this message, and `code` for machines."""

    code: str = "failed"

    def __init__(self, message: str, code: str = "failed") -> None:
        super().__init__(message)
        self.code = code


class Cancelled(Exception):
    """The attempt was told to stop. Let it pass; what it was told decides how the attempt ends."""


class Work(Protocol):
    """What a context needs to know of its attempt."""

    @property
    def task(self) -> Task:
        """The task, with `attempt` the number of this run."""

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Its input files."""

    @property
    def output_dir(self) -> Path:
        """The attempt's own folder for results; may not exist yet."""

    @property
    def scratch_dir(self) -> Path:
        """The attempt's own folder for anything else; may not exist yet."""

    @property
    def kept_dir(self) -> Path:
        """The task's own folder, the same for all of its attempts; may not exist yet."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The handler's free section of the configuration."""


class Listener(Protocol):
    """Whoever is told what a handler says. `work` is the object that its context was made with."""

    def progressed(self, work: Any, progress: Progress, /) -> None:
        """The attempt is that far."""

    def logged(self, work: Any, level: str, message: str, /) -> None:
        """The attempt says something; `level` is debug, info, warning or error."""

    def filed(self, work: Any, files: tuple[FileState, ...], /) -> None:
        """These are the items of work inside the task now."""

    def submitted(self, work: Any, type: str, payload: dict[str, Any], inputs: tuple[Path, ...], /) -> str:
        """The attempt hands in a child task; its id. Raises Refused."""


class Log:
    """The task's log, for people who look at the task. Arguments are put in as by `%`, if there are any."""

    __slots__ = ("_listener", "_work")

    def __init__(self, work: Work, listener: Listener) -> None:
        self._work = work
        self._listener = listener

    def debug(self, message: object, *arguments: object) -> None:
        """What helps to find a fault."""
        self._say("debug", message, arguments)

    def info(self, message: object, *arguments: object) -> None:
        """What happened."""
        self._say("info", message, arguments)

    def warning(self, message: object, *arguments: object) -> None:
        """What may be wrong."""
        self._say("warning", message, arguments)

    def error(self, message: object, *arguments: object) -> None:
        """What is wrong, although the attempt goes on."""
        self._say("error", message, arguments)

    def _say(self, level: str, message: object, arguments: tuple[object, ...]) -> None:
        self._listener.logged(self._work, level, str(message) % arguments if arguments else str(message))


class Context:
    """The first argument of every handler. May be used from any thread of the handler while the attempt runs."""

    __slots__ = ("_listener", "_work", "has_outputs", "has_scratch", "printed", "stopped")

    def __init__(self, work: Work, listener: Listener) -> None:
        self._work = work
        self._listener = listener
        self.has_outputs = False
        """Whether `output` was called."""
        self.has_scratch = False
        """Whether the scratch folder was asked for."""
        self.printed: Any = None
        """What was printed, where whoever runs the handler listens to that; None: nothing."""
        self.stopped = ""
        """Why the attempt was told to stop; empty while it was not."""

    @property
    def task(self) -> Task:
        """The task; `task.attempt` is the number of this run, from 1."""
        return self._work.task

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The task's files, absolute. They may be the user's own: read them, do not change them."""
        return self._work.inputs

    @property
    def config(self) -> Mapping[str, Any]:
        """`handlers.<name>.config` of the configuration."""
        return self._work.config

    @property
    def scratch(self) -> Path:
        """A private folder, empty at first and gone after the attempt. A process runs in it."""
        if not self.has_scratch:
            self._work.scratch_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.has_scratch = True
        return self._work.scratch_dir

    @property
    def kept(self) -> Path:
        """A private folder that the next attempt finds as this one left it: what was done need not be done again.

        It outlives crashes of the runner too, and is gone when the task has completed with outputs, or is removed. A
        file in it may be half written: give it its name when it is whole.
        """
        self._work.kept_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._work.kept_dir

    def output(self, name: str) -> Path:
        """Where to write the result called `name`. Nobody sees it before the attempt completes, or if it does not.

        Bytes of the name that are not UTF-8 are replaced, so that the name of an input can be reused. Raises ValueError
        unless it is the name of a file: no folder, no leading dot, no control characters, at most 255 bytes.
        """
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        _check_name(name)
        directory = self._work.output_dir
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.has_outputs = True
        return directory / name

    def progress(
        self, percentage: float, message: str = "", stage: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        """Say how far the attempt is, 0 to 100, what it does just now, and in which stage; `metadata` is for programs
        that watch. Cheap; call it often."""
        # Written so that NaN, from a division of nothing by nothing, becomes 0.
        percentage = min(percentage, 100.0) if percentage > 0 else 0.0
        self._listener.progressed(
            self._work,
            Progress(
                percentage=float(percentage),
                stage=str(stage),
                message=str(message),
                metadata={str(key): str(value) for key, value in metadata.items()} if metadata else {},
                updated_at=datetime.now(UTC),
            ),
        )

    @property
    def log(self) -> Log:
        """The task's log: `ctx.log.info("read %d rows", n)`; also debug, warning and error."""
        return Log(self._work, self._listener)

    def files(self, states: Sequence[FileState]) -> None:
        """Say where each item of work inside the task stands; replaces what was said before."""
        self._listener.filed(self._work, tuple(states))

    @property
    def cancelled(self) -> bool:
        """Whether the attempt was told to stop: cancelled, out of time, or the runner shuts down."""
        return bool(self.stopped)

    def check(self) -> None:
        """Raise Cancelled if the attempt was told to stop; call it wherever it is safe to stop."""
        if self.stopped:
            raise Cancelled(f"told to stop: {self.stopped}")

    def submit(self, type: str, payload: Mapping[str, Any] | None = None, inputs: Sequence[Path] = ()) -> str:
        """Hand in another task, a child of this one; its id, once it is durable.

        Waits for the disk: an `async def` calls it with `asyncio.to_thread`. Raises Refused.
        """
        return self._listener.submitted(self._work, type, dict(payload or {}), tuple(map(Path, inputs)))

    def stop(self, reason: str) -> None:
        """Tell the handler to stop; for whoever runs it. The first reason stays."""
        self.stopped = self.stopped or reason

    def close(self) -> None:
        """Remove the scratch folder; for whoever ran the handler."""
        if self.has_scratch:
            shutil.rmtree(self._work.scratch_dir, ignore_errors=True)


def _check_name(name: str) -> None:
    if not name or name.startswith(".") or _FORBIDDEN.search(name):
        raise ValueError(f"an output is a file's name without a folder or a leading dot, not {name!r}")
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise ValueError(f"an output's name has at most {_MAX_NAME_BYTES} bytes: {name[:40]!r}…")
