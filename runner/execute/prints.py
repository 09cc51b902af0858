"""What handlers print that run in this process, for their tasks' logs.

A process has a standard output of its own; threads and the loop share ours. Who prints there is told by a context
variable, which every thread and every coroutine has to itself, and which `asyncio.to_thread` hands on. A thread that a
handler starts by itself is nobody's: what it prints is only seen on the terminal.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from enum import Enum, auto
from typing import Any, Final, TextIO, cast

from runner.context import Context
from runner.execute.transcript import Transcript

SPEAKER: Final[ContextVar[Context | None]] = ContextVar("speaker", default=None)
"""The context of the handler that runs here; None: none does."""


class Echo(Enum):
    """What else becomes of what a handler prints: it is shown on our own output, too, or `NONE` of it."""

    SHOWN = auto()
    NONE = auto()


@contextmanager
def overheard(echo: Echo) -> Iterator[None]:
    """From here on, what handlers print is in their logs. Costs nothing while none prints."""
    with redirect_stdout(cast("TextIO", _Overheard(sys.stdout, echo))):
        yield


def end_line(context: Context) -> None:
    """The handler has returned: what it printed last without an end of line is a line."""
    if context.printed is not None:
        _log(context, context.printed.finish())


class _Overheard:
    """Our standard output, which listens to whom it gets its text from. In all else it is the stream itself."""

    def __init__(self, stream: TextIO, echo: Echo) -> None:
        self._stream = stream
        self._echo = echo
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """See TextIO."""
        speaker = SPEAKER.get()
        if speaker is not None:
            with self._lock:  # a handler may print from several threads
                speaker.printed = speaker.printed or Transcript()
                lines = speaker.printed.feed(text.encode("utf-8", "replace"))
            _log(speaker, lines)
        if speaker is None or self._echo is Echo.SHOWN:
            self._stream.write(text)
        return len(text)


def _log(context: Context, lines: list[str]) -> None:
    for line in lines:
        context.log.info(line)
