"""A process of this program that does as it is told: one request comes in, one answer goes out, nothing is remembered.

What is many short system calls belongs there: each of them gives up the interpreter lock, and beside busy threads each
then waits to get it back. It must never outlive its owner and change what a new owner has made: it shares
`locks/scribe.lock`, which the kernel releases when it dies, and a new owner waits for all of it before it recovers.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from runner.store.files import Layout

_LENGTH = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1


class Servant:
    """Runs `module` as a process, which calls `serve`; starts it anew if it has died.

    Must be started, by `start` or the first `ask`, on a thread that lives as long as it is needed: Linux kills the
    process when that thread ends. One thread at a time. Requests and answers are what marshal(3) knows.
    """

    def __init__(self, module: str, layout: Layout, *arguments: str) -> None:
        self._module = module
        self._arguments = (layout.data, str(os.getpid()), *arguments)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Has the process begin. Raises `OSError`."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", self._module, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )

    def ask(self, request: Any) -> Any:
        """Waits for the answer. Raises `EOFError` or `BrokenPipeError` if the process dies meanwhile."""
        self.send(request)
        return self.receive()

    def send(self, request: Any) -> None:
        """`receive` will have the answer, and must be called before anything else is sent. Raises as `ask` does."""
        to_servant, _ = self._pipes()
        with self._whole():
            _send(to_servant, marshal.dumps(request))

    def has_answered(self) -> bool:
        """Whether `receive` would not wait."""
        _, from_servant = self._pipes()
        return bool(select.select([from_servant], [], [], 0)[0])

    def receive(self) -> Any:
        """The answer to what was sent. Raises as `ask` does."""
        _, from_servant = self._pipes()
        with self._whole():
            return marshal.loads(_receive(from_servant))  # noqa: S302 - the other end is this program too

    def close(self) -> None:
        """Ends the process, after the request at hand; idempotent."""
        if self.process is None:
            return
        to_servant, from_servant = self._pipes()
        with suppress(BrokenPipeError):
            to_servant.close()
        self.process.wait()
        from_servant.close()
        self.process = None

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """An answer that nobody has heard would be taken for that to the next request."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self.process is None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout


def serve(layout: Layout, owner: int, answer: Callable[[Any], Any]) -> None:
    """The process's life: requests come in on standard input, answers go out on standard output, until its owner, the
    process of that id, closes them or dies."""
    _die_with(owner)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = _lock(layout, fcntl.LOCK_SH)
    try:
        while True:
            request = marshal.loads(_receive(sys.stdin.buffer))  # noqa: S302 - our owner wrote it
            _send(sys.stdout.buffer, marshal.dumps(answer(request)))
    except (EOFError, BrokenPipeError):
        os.close(lock)


def wait_for_servants(layout: Layout) -> int:
    """Blocks until no servant of an earlier owner is alive; returns the descriptor that holds the lock."""
    return _lock(layout, fcntl.LOCK_EX)


def _lock(layout: Layout, how: int) -> int:
    fd = os.open(f"{layout.locks}/scribe.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, how)
    return fd


def _die_with(owner: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        raise SystemExit(0)


def _send(stream: Any, message: bytes) -> None:
    stream.write(_LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()


def _receive(stream: Any) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    return _exactly(stream, length)


def _exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
