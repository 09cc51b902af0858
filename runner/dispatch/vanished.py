"""Forgets unfinished tasks whose files somebody has deleted.

They are in memory, so nobody would notice otherwise, and each would have a file again as soon as something happens to
it. What has ended is looked for on the disk anyway.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from runner import task as transitions
from runner.dispatch.delays import Clock
from runner.errors import IllegalTransition, NotFound, Unavailable
from runner.store import Remove, Store, Update

LOOK_SECONDS: Final = 5.0
SLICE: Final = 500
"""So many are looked for at a time: where more wait it takes several looks to see them all."""


class Vanished:
    """Looks by `run_once`. One thread at a time."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._place = 0

    def run_once(self) -> list[str]:
        """The ids of the tasks that are forgotten now: cancelled, and removed with all that was theirs."""
        ids = self._store.live_ids()
        self._place = self._place if self._place < len(ids) else 0
        looked_at = ids[self._place : self._place + SLICE]
        self._place += SLICE
        return [task_id for task_id in looked_at if self._store.has_vanished(task_id) and self._forget(task_id)]

    def _forget(self, task_id: str) -> bool:
        """Whether it went: it may have ended, and so been written again, since it was looked for."""
        cancel = partial(transitions.cancel, now=self._clock(), reason="its file was deleted")
        try:
            self._store.commit((Update(task_id, cancel), Remove(task_id)))
        except (IllegalTransition, NotFound, Unavailable):
            return False
        return True
