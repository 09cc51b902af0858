"""Random names, drawn many at a time: each call of the system gives up the interpreter, and takes as long as all the
rest. From any thread."""

from __future__ import annotations

import os
from collections import deque
from typing import Final

AT_ONCE: Final = 256


class Digits:
    """Gives out so many random hexadecimal digits at a time; `count` is even."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._drawn: deque[str] = deque()

    def next(self) -> str:
        """Others."""
        while True:
            try:
                return self._drawn.popleft()
            except IndexError:
                drawn = os.urandom(self._count // 2 * AT_ONCE).hex()
                self._drawn.extend(drawn[at : at + self._count] for at in range(0, len(drawn), self._count))


class Ids:
    """Gives out task ids: UUIDs of version 4 (RFC 9562) as text, at a quarter of what `uuid.uuid4` takes."""

    def __init__(self) -> None:
        self._digits = Digits(32)

    def next(self) -> str:
        """A new one."""
        digits = self._digits.next()
        variant = "89ab"[int(digits[16], 16) & 3]  # with the version, six of the bits are not random
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
