"""Where each item of work inside a task stands, told to whoever watches. The handlers of this folder share it."""

import time
from collections.abc import Sequence
from dataclasses import replace

from runner import Context, FileState

MAX_SHOWN = 1000
FEW = 100
TELL_SECONDS = 0.5


class Items:
    """The items of one task, by their places from 0; all are pending at first.

    They are part of the task's record: of very many only the first are shown, and not each change on its own.
    """

    def __init__(self, ctx: Context, names: Sequence[str], operate: str) -> None:
        self._ctx = ctx
        self._states = [FileState(path=name, operate=operate) for name in names[:MAX_SHOWN]]
        self._told_at = 0.0
        self.flush()

    def tell(self, place: int, status: str) -> None:
        """An item is `processing`, `completed` or `failed`."""
        if place >= len(self._states):
            return
        self._states[place] = replace(self._states[place], status=status)
        if len(self._states) <= FEW or time.monotonic() >= self._told_at + TELL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Tell how all of them stand."""
        self._ctx.files(self._states)
        self._told_at = time.monotonic()
