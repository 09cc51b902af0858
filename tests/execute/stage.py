"""A folder of handlers written by a test, and someone who hears all that their attempts say."""

import os
import select
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Any

from runner.config import HandlerConfig
from runner.errors import UnknownHandler
from runner.execute import Assignment, Ending, Executor, Haste
from runner.handlers import Handler, Handlers
from runner.task import FileState, Progress, Status, Task

PATIENCE_SECONDS = 20

DAEMONIZE = """
import os, signal

def daemonize():
    # As daemons do it: fork, a session of its own, fork again. Its parent is dead, its group and session are new.
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.write(write, str(os.getpid()).encode())
            while True:
                signal.pause()
        os._exit(0)
    return int(os.read(read, 20))
"""


class Recorder:
    """A monitor that remembers, and on which a test can wait."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.log: list[tuple[str, str]] = []
        self.files: tuple[FileState, ...] = ()
        self.children: list[tuple[str, dict[str, Any], tuple[Path, ...]]] = []
        self.endings: list[Ending] = []
        self._news = threading.Condition()

    @property
    def lines(self) -> list[str]:
        return [message for _, message in self.log]

    def progressed(self, assignment: Assignment, progress: Progress, /) -> None:
        self._note(lambda: self.progress.append(progress))

    def logged(self, assignment: Assignment, level: str, message: str, /) -> None:
        self._note(lambda: self.log.append((level, message)))

    def filed(self, assignment: Assignment, files: tuple[FileState, ...], /) -> None:
        self.files = files

    def submitted(self, assignment: Assignment, type: str, payload: dict[str, Any], inputs: tuple[Path, ...], /) -> str:
        if type == "nobody":
            raise UnknownHandler(type, "no handler 'nobody'")
        self.children.append((type, payload, inputs))
        return f"child-{len(self.children)}"

    def ended(self, assignment: Assignment, ending: Ending, /) -> None:
        self._note(lambda: self.endings.append(ending))

    def settle(self, haste: Haste, /) -> None:
        pass

    def wait(self) -> Ending:
        """The ending, once there is one; there is never a second."""
        self.until(lambda: self.endings)
        (ending,) = self.endings
        return ending

    def until(self, happened: Callable[[], object]) -> None:
        """Wait until something has been said."""
        with self._news:
            assert self._news.wait_for(happened, PATIENCE_SECONDS), (self.log, self.progress, self.endings)

    def line_after(self, prefix: str) -> str:
        """What was said behind `prefix`, once it was."""
        self.until(lambda: any(line.startswith(prefix) for line in self.lines))
        return next(line.removeprefix(prefix) for line in self.lines if line.startswith(prefix))

    def _note(self, note: Callable[[], None]) -> None:
        with self._news:
            note()
            self._news.notify_all()


class Stage:
    """Writes handlers into a folder and puts them to work on an executor."""

    def __init__(self, folder: Path, executor: Executor) -> None:
        self.folder = folder
        self.executor = executor
        self._count = 0

    def write(self, source: str, config: HandlerConfig | None = None) -> Handler:
        """The one handler in `source`."""
        return write_handler(self.folder / "handlers", source, config)

    def assign(
        self,
        handler: Handler,
        payload: Mapping[str, Any] | None = None,
        inputs: tuple[Path, ...] = (),
        config: Mapping[str, Any] | None = None,
    ) -> Assignment:
        """An attempt of a new task."""
        self._count += 1
        private = self.folder / f"attempt-{self._count}"
        task = make_task(handler.name, f"task-{self._count}", dict(payload or {}))
        return Assignment(task, handler, tuple(map(str, inputs)), str(private), config or {})

    def begin(self, source: str, **parts: Any) -> tuple[Assignment, Recorder]:
        """Start an attempt of the handler in `source`."""
        recorder = Recorder()
        assignment = self.assign(self.write(source), **parts)
        self.executor.run(assignment, recorder)
        return assignment, recorder

    def run(self, source: str, **parts: Any) -> Ending:
        """The ending of an attempt of the handler in `source`."""
        _, recorder = self.begin(source, **parts)
        return recorder.wait()


def write_handler(folder: Path, source: str, config: HandlerConfig | None = None) -> Handler:
    """The one handler in `source`, which becomes the only file of the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "stage.py").write_text("from runner import *\n" + dedent(source), encoding="utf-8")
    handlers = Handlers(folder)
    handlers.load()
    assert not handlers.errors, handlers.errors
    (handler,) = handlers
    if config is None:
        return handler
    handlers = Handlers(folder, {handler.name: config})
    handlers.load()
    assert not handlers.errors, handlers.errors
    return handlers.get(handler.name)


def make_task(type: str, id: str, payload: dict[str, Any]) -> Task:
    """A task whose first attempt runs."""
    now = datetime.now(UTC)
    return Task(
        id=id,
        type=type,
        user_id="local",
        status=Status.PROCESSING,
        payload=payload,
        attempt=1,
        created_at=now,
        updated_at=now,
    )


def wait_for_death(pid: int, seconds: float) -> bool:
    """Whether the process is gone, or goes within that time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        readable, _, _ = select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    return bool(readable)


def kill(pid: int, signal: int) -> None:
    """Send a signal to whoever may be gone already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal)
