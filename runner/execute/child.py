"""What runs in a forked process: one attempt.

The first thread calls the handler; a second one listens to the owner. When the owner's end of the channel closes, the
owner is dead, and the second thread kills this process and its group; the zygote does the same from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import io
import json
import linecache
import os
import queue
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from runner.context import Cancelled, Context
from runner.errors import Refused
from runner.execute.assignment import Assignment, Ending, Stop
from runner.execute.attempt import OUT_OF_MEMORY, broken, exhausted, explain, perform, perform_async
from runner.execute.kernel import free_memory_limit, limit_memory, volunteer_for_the_out_of_memory_killer
from runner.execute.wire import (
    Brief,
    encode_ending,
    encode_files,
    encode_progress,
    line,
    path_to_text,
    read_brief,
)
from runner.handlers.loading import Handler, LoadError, LoadFailure, declarations, load_module, make_handler
from runner.task import FileState, Progress

ALONE: Final = 86
"""Exit status: the ending is told, and no other process descends from this one. Spares the zygote a search."""

DONE: Final = 0
"""Exit status: the ending is told, but there may be processes left."""

FAILED: Final = 70
"""Exit status: something went wrong before the handler could be called (EX_SOFTWARE)."""

_MIB: Final = 1024**2


def main(brief: int, channel: int, output: int) -> NoReturn:
    """Run the attempt that `brief` describes, tell the owner on `channel` how it ended, and exit.

    Called in a new session, with default signals and no descriptors but these and the standard ones.
    """
    for standard in (1, 2):
        os.dup2(output, standard)
    for mine in (brief, channel, output):
        os.set_inheritable(mine, False)
    os.close(output)
    # The zygote's own were made for /dev/null, which can seek and is not written line by line.
    sys.stdout, sys.stderr = _line_writer(1), _line_writer(2)
    faulthandler.enable()  # a segmentation fault leaves its traceback in the task's log
    volunteer_for_the_out_of_memory_killer()
    work = read_brief(brief)
    _settle_in(work.scratch_dir)
    link = Link(socket.socket(fileno=channel))
    ending = _attempt(work, link)
    # It has ended: a request to stop comes too late, and must not break the news.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _leave(work.scratch_dir)
    link.tell(ending)
    os._exit(ALONE if _is_alone() else DONE)


class Link:
    """The owner, as the handler's listener. Safe from any thread of the handler."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._replies: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._asking = threading.Lock()

    def listen(self, stop: Callable[[Stop], None]) -> None:
        """Hear the owner until it dies, and then die too."""
        with self._channel.makefile("rb") as lines:
            for text in lines:
                if text.startswith(b"C"):
                    stop(Stop(text[1:].decode().strip()))
                elif text.startswith(b"R"):
                    self._replies.put(json.loads(text[1:]))
        os.killpg(0, signal.SIGKILL)

    def progressed(self, _: Assignment, progress: Progress) -> None:
        """See Listener."""
        self._send(encode_progress(progress))

    def logged(self, _: Assignment, level: str, message: str) -> None:
        """See Listener."""
        self._send(line(b"L", [level, message]))

    def filed(self, _: Assignment, files: tuple[FileState, ...]) -> None:
        """See Listener."""
        self._send(encode_files(files))

    def submitted(self, _: Assignment, type: str, payload: dict[str, Any], inputs: tuple[Path, ...]) -> str:
        """See Listener."""
        with self._asking:
            self._send(line(b"S", [type, payload, [path_to_text(Path.cwd() / path) for path in inputs]]))
            reply = self._replies.get()
        if "id" not in reply:
            refusal = Refused(reply["message"])
            refusal.code = reply["code"]
            raise refusal
        return str(reply["id"])

    def tell(self, ending: Ending) -> None:
        """Say how the attempt ended."""
        self._send(encode_ending(ending))

    def _send(self, text: bytes) -> None:
        with self._lock:
            self._channel.sendall(text)


def _line_writer(descriptor: int) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _settle_in(scratch: Path) -> None:
    """Run in the scratch folder; what the handler makes is its own, and its temporary files go with the folder."""
    os.umask(0o077)
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chdir(scratch)
    os.environ["TMPDIR"] = str(scratch)
    tempfile.tempdir = None
    # Preloaded modules were seeded once, before the fork; all children would draw the same numbers.
    numpy = sys.modules.get("numpy.random")
    if numpy:
        numpy.seed()


def _attempt(work: Brief, link: Link) -> Ending:
    try:
        handler = _load(work)
    except LoadError as error:
        return broken(str(error))
    assignment = work.assign(handler)
    context = Context(assignment, link)
    context.has_scratch = True
    stopper = _Stopper(context)
    threading.Thread(target=link.listen, args=(stopper.stop,), daemon=True).start()
    try:
        return _within_memory(handler.options.memory_mb, lambda: stopper.run(assignment))
    except Cancelled as error:  # TERM came between the handler's end and here
        return explain(error, context.stopped)


def _within_memory(memory_mb: int | None, run: Callable[[], Ending]) -> Ending:
    if memory_mb is None:
        return run()
    limit_memory(memory_mb * _MIB)
    try:
        ending = run()
    except MemoryError:  # there was not even enough to explain the first one
        ending = exhausted(memory_mb)
    free_memory_limit()
    return exhausted(memory_mb) if ending.error and ending.error.code == OUT_OF_MEMORY else ending


class _Stopper:
    """Passes the owner's stop on to the handler, however it runs."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._cancel: Callable[[], object] | None = None
        signal.signal(signal.SIGTERM, self._interrupt)

    def run(self, assignment: Assignment) -> Ending:
        """Call the handler."""
        if assignment.handler.is_async:
            return asyncio.run(self._await(perform_async(assignment, self._context)))
        return perform(assignment, self._context)

    def stop(self, reason: Stop) -> None:
        """The owner asks to stop: `ctx.cancelled` and `ctx.check()` say so, and a coroutine is cancelled."""
        self._context.stop(reason)
        if self._cancel:
            self._cancel()

    async def _await(self, attempt: Coroutine[Any, Any, Ending]) -> Ending:
        loop = asyncio.get_running_loop()
        task = loop.create_task(attempt)
        await asyncio.sleep(0)  # a task that is cancelled before its first step has no ending
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        if self._context.stopped:
            task.cancel()
        return await task

    def _interrupt(self, number: int, _: object) -> None:
        """TERM: the owner asked before, and the handler did not look; so it is interrupted wherever it is."""
        if self._context.stopped:
            raise Cancelled(f"told to stop: {self._context.stopped}")
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _load(work: Brief) -> Handler:
    """The handler from the code that its owner had, which is no longer that of the file if it was changed since."""
    path, text = str(work.edition.path), work.edition.text
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    for function, declaration in declarations(load_module(work.edition)):
        if declaration.name == work.name:
            return make_handler(work.name, function, work.options, work.edition)
    raise LoadError(LoadFailure(work.edition.path, f"no longer defines {work.name!r}", None, datetime.now(UTC)))


def _leave(scratch: Path) -> None:
    """Leave nothing behind: not what was said, and no files."""
    with contextlib.suppress(OSError, ValueError):  # the handler may have closed them
        sys.stdout.flush()
        sys.stderr.flush()
    os.chdir("/")
    shutil.rmtree(scratch, ignore_errors=True)


def _is_alone() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False
