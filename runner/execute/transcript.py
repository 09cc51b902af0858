"""What a handler prints, as lines for its task's log."""

from __future__ import annotations

import re
from typing import Final

MAX_BYTES: Final = 1024**2
"""How much of what an attempt prints is kept."""

_MAX_LINE: Final = 4096
_END_OF_LINE: Final = re.compile(rb"\r\n|\n|\r")


class Transcript:
    """Turns pieces of output into lines; after `MAX_BYTES` says once that the rest is not kept."""

    def __init__(self) -> None:
        self._rest = b""
        self._room = MAX_BYTES

    def feed(self, data: bytes) -> list[str]:
        """The lines that are complete now. A progress bar's carriage returns end lines too; empty ones are left out."""
        if self._room <= 0:
            return []
        kept, self._room = data[: self._room], self._room - len(data)
        *whole, self._rest = _END_OF_LINE.split(self._rest + kept)
        lines = [piece for line in whole for piece in _pieces(line)]
        if len(self._rest) > _MAX_LINE:
            lines += _pieces(self._rest)
            self._rest = b""
        if self._room <= 0:
            lines += [*_pieces(self._rest), f"(more than {MAX_BYTES // 1024} KiB was printed; the rest is not kept)"]
            self._rest = b""
        return lines

    def finish(self) -> list[str]:
        """What was printed last without an end of line."""
        rest, self._rest = self._rest, b""
        return _pieces(rest)


def _pieces(line: bytes) -> list[str]:
    """A line as text, in parts that a log can hold."""
    text = line.decode("utf-8", "replace")
    return [text[start : start + _MAX_LINE] for start in range(0, len(text), _MAX_LINE)]
