"""How quick the disk is: whether a thread that has other things to do may wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

QUICK_SECONDS: Final = 0.002
"""What takes no longer on average is quick: most disks without moving parts are, none with them is."""
REMEMBERED: Final = 8
"""Of so many flushes the average is about. One that takes a second says that it is slow for the next fifty."""
KNOWN_SECONDS: Final = 60.0
"""After so long a rest nobody knows: it may have gone to sleep, or have become another one's."""


class Quickness:
    """A sliding average of how long the disk took. One thread at a time may note, any may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._average = QUICK_SECONDS * REMEMBERED
        self._noted_at = float("-inf")

    def began(self) -> float:
        """To be handed to `note` when the disk has answered."""
        return self._clock()

    def note(self, began: float) -> None:
        """What began then is over."""
        self._noted_at = self._clock()
        self._average += (self._noted_at - began - self._average) / REMEMBERED

    def __bool__(self) -> bool:
        """Whether it was quick lately."""
        return self._average <= QUICK_SECONDS and self._clock() - self._noted_at <= KNOWN_SECONDS
