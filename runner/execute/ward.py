"""One child process as its owner sees it: what it says, what it prints, and when it is signalled."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections import deque
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from runner.execute.assignment import Assignment, Ending, Monitor, Stop
from runner.execute.attempt import crashed, stopped
from runner.execute.transcript import Transcript
from runner.execute.wire import decode_ending, decode_files, decode_progress, line, send_fork, text_to_path, write_brief
from runner.task import Outcome

_CHUNK: Final = 256 * 1024
_MAX_LINE: Final = 64 * 1024**2


class Ward:
    """A child, from the request to fork it until it is gone. Belongs to the supervisor's thread."""

    def __init__(self, assignment: Assignment, monitor: Monitor, token: int) -> None:
        self.assignment = assignment
        self.monitor = monitor
        self.token = token
        self.pid = 0
        """The process id; 0 until the zygote has told it."""
        self.reason: Stop | None = None
        self.signals: deque[tuple[float, signal.Signals]] = deque()
        """What to send, and when (monotonic), unless the child ends before."""
        self._ending: Ending | None = None
        self._said = bytearray()
        self._transcript = Transcript()
        self.channel, self._childs_channel = socket.socketpair()
        self.output, self._childs_output = os.pipe()
        self.channel.setblocking(False)
        os.set_blocking(self.output, False)

    def fork(self, zygote: socket.socket) -> None:
        """Ask the zygote for the process. Raises OSError."""
        brief = write_brief(self.assignment)
        try:
            send_fork(zygote, self.token, (brief, self._childs_channel.fileno(), self._childs_output))
        finally:
            os.close(brief)
            self._childs_channel.close()
            os.close(self._childs_output)
            self._childs_output = -1

    def close(self) -> None:
        """Close what is open."""
        self.channel.close()
        self._childs_channel.close()
        os.close(self.output)
        if self._childs_output >= 0:
            os.close(self._childs_output)

    def ask(self, reason: Stop) -> None:
        """Ask the handler to stop."""
        self.reason = reason
        self._tell(f"C{reason}\n".encode())

    def hear(self) -> list[tuple[str, dict[str, Any], tuple[Path, ...]]]:
        """Pass on what the child said since; the submissions in it are left to the caller, as they may take a while.

        Raises EOFError when nothing more will come. A child whose line never ends is to be killed.
        """
        self._said += self._receive()
        *lines, rest = bytes(self._said).split(b"\n") if b"\n" in self._said else (self._said,)
        self._said = bytearray(rest)
        if len(rest) > _MAX_LINE:
            self.signals = deque([(0.0, signal.SIGKILL)])
            raise EOFError
        return [submission for text in _latest_progress(lines) if (submission := self._understand(text))]

    def listen_to_output(self) -> None:
        """Pass on what the child printed since. Raises EOFError when nothing more will come."""
        try:
            data = os.read(self.output, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            raise EOFError
        self._log(self._transcript.feed(data))

    def reply(self, answer: dict[str, str]) -> None:
        """Answer the child's submission; from any thread."""
        self._tell(line(b"R", answer))

    def finish(self, code: int) -> Ending:
        """How the attempt ended, now that the process is gone, with this exit status or minus this signal."""
        self._log(self._transcript.finish())
        if self.reason and (self._ending is None or self._ending.outcome is not Outcome.COMPLETED):
            return stopped(self.reason)
        return self._ending or crashed(self._describe(code))

    def _receive(self) -> bytes:
        try:
            data = self.channel.recv(_CHUNK)
        except BlockingIOError:
            return b""
        except ConnectionError:
            raise EOFError from None
        if not data:
            raise EOFError
        return data

    def _understand(self, text: bytes) -> tuple[str, dict[str, Any], tuple[Path, ...]] | None:
        kind, said = text[:1], text[1:]
        # The handler can reach the channel as anyone can reach a descriptor; what is no sentence is no news.
        with contextlib.suppress(ValueError, TypeError):
            if kind == b"P":
                self.monitor.progressed(self.assignment, decode_progress(said))
            elif kind == b"L":
                level, message = json.loads(said)
                self.monitor.logged(self.assignment, level, message)
            elif kind == b"F":
                self.monitor.filed(self.assignment, decode_files(said))
            elif kind == b"E":
                self._ending = decode_ending(said)
            elif kind == b"S":
                type, payload, inputs = json.loads(said)
                return type, payload, tuple(map(text_to_path, inputs))
        return None

    def _log(self, lines: list[str]) -> None:
        for text in lines:
            self.monitor.logged(self.assignment, "info", text)

    def _tell(self, text: bytes) -> None:
        # A child that is dead, or stopped and 200 KB behind, is not waited for; signals reach it.
        with contextlib.suppress(BlockingIOError, ConnectionError, OSError):
            self.channel.send(text)

    def _describe(self, code: int) -> str:
        memory_mb = self.assignment.handler.options.memory_mb
        limit = f"; its memory_mb is {memory_mb}" if memory_mb else ""
        if code >= 0:
            return f"the process exited with status {code} before the handler returned"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            guess = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"the process was killed by signal {-code}, {name}{guess}{limit}"
        return f"the process was killed by signal {-code}{limit}"


def _latest_progress(lines: list[bytes]) -> list[bytes]:
    """The lines without those progress lines that the next one makes obsolete: a handler may report in a tight loop."""
    pairs = zip_longest(lines, lines[1:], fillvalue=b"")
    return [text for text, after in pairs if text[:1] != b"P" or after[:1] != b"P"]
