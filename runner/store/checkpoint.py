"""The checkpoint: makes task files and index durable, so that old journal segments may go.

If the disk refuses to sync, the kernel may already have given up what was to be synced, and a second sync that succeeds
says nothing. So nothing is dropped any more, the store takes no further changes, and a note is left for the next owner,
who writes everything that the journal says again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass

from runner.errors import Degraded, Unavailable
from runner.store.committer import Committer
from runner.store.files import Files, Layout
from runner.store.journal import Journal
from runner.store.space import Space
from runner.store.writer import Writer


@dataclass(frozen=True, slots=True)
class CheckpointRule:
    """When: once the segment has this many bytes, or something was written and this many seconds have passed."""

    max_bytes: int
    interval_seconds: float


class Checkpointer:
    """Looks about every second whether a checkpoint is due, and how much room there is. `run` is its own thread."""

    LOOK_SECONDS = 1.0

    def __init__(
        self,
        files: Files,
        layout: Layout,
        journal: Journal,
        committer: Committer,
        writer: Writer,
        space: Space,
        rule: CheckpointRule,
    ) -> None:
        self._files = files
        self._layout = layout
        self._journal = journal
        self._committer = committer
        self._writer = writer
        self._space = space
        self._rule = rule
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._has_leftovers = False
        self._fd = -1
        self.failure: OSError | Unavailable | None = None

    def open(self, has_leftovers: bool) -> None:
        """Begins to watch the filesystem. `has_leftovers`: the last owner left records. Before anything is written."""
        self._fd = self._files.open(self._layout.data, os.O_RDONLY)
        self._has_leftovers = has_leftovers

    def run(self) -> None:
        """Makes checkpoints until `stop`."""
        while not self._stop.wait(self.LOOK_SECONDS):
            self.run_once()

    def run_once(self) -> None:
        """Measures the room, and makes a checkpoint if one is due. One that the disk refuses is tried again: the
        journal keeps what it would have dropped."""
        try:
            self._space.check()
            if self._is_due():
                self.checkpoint()
        except (OSError, Unavailable) as error:
            self.failure = error

    def stop(self) -> None:
        """Ends `run`."""
        self._stop.set()

    def close(self) -> None:
        """Lets go of the filesystem; idempotent."""
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1

    def checkpoint(self) -> int:
        """Makes one now; returns the number of the last segment that is gone. Blocks; raises `OSError`,
        `Unavailable`."""
        with self._lock:
            if self._committer.failure is not None:
                raise Degraded("what the journal holds is kept: the disk failed")
            sealed = self._committer.rotate()
            self._has_leftovers = True
            # These three lines in this order, or a power cut loses tasks: what the segments say is written, it is
            # synced, and only then are they dropped.
            self._writer.flush()
            self._sync()
            self._journal.drop(sealed)
            self._files.remove(self._layout.rewrite)
            self._last = time.monotonic()
            self._has_leftovers = False
            self.failure = None
            return sealed

    def _sync(self) -> None:
        try:
            self._files.sync_filesystem(self._fd, self._writer.take_paths())
        except OSError as error:
            self._committer.degrade(error)
            with contextlib.suppress(OSError):
                self._files.replace_durably(self._layout.rewrite, f"{error}\n".encode())
            raise

    def _is_due(self) -> bool:
        if self._committer.failure is not None:
            return False
        if self._journal.size >= self._rule.max_bytes:
            return True
        has_something = self._journal.size > 0 or self._has_leftovers
        return has_something and time.monotonic() - self._last >= self._rule.interval_seconds
