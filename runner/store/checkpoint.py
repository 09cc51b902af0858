"""The checkpoint: makes task files and index durable, so that old journal segments may go.

If the disk refuses to sync, the kernel may already have given up what was to be synced, and a second sync that succeeds
says nothing. So nothing is dropped, and a note is left for the next owner, who writes everything that the journal says
again and rebuilds the index.

* For want of room (thin disks, quotas: a file may be written long before it gets a place) intake pauses, and the next
  checkpoints write all of it again, too, before they sync. Only the index they leave to the next owner.
* After any other error the disk cannot be trusted, and the store takes no further changes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from dataclasses import dataclass

from runner.errors import CorruptRecord, Degraded, Unavailable
from runner.store.committer import Committer
from runner.store.files import Files, Layout
from runner.store.journal import Journal
from runner.store.recovery import say_again
from runner.store.scribe import Batch
from runner.store.space import Space, is_full
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
        self._is_unsynced = False
        self._trusts_index = True
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
                self._space.check()
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
            self._write(sealed)
            self._sync()
            self._journal.drop(sealed)
            self._finish()
            return sealed

    def _write(self, sealed: int) -> None:
        if not self._is_unsynced:
            self._writer.flush()
            return
        self._leave_note("a sync found no room")  # before anything is dropped, should that have failed the first time
        self._check_journal(sealed)
        self._writer.repeat(lambda: self._say_again(sealed))

    def _check_journal(self, sealed: int) -> None:
        """With durability `process` nobody has synced it, and it may be what found no room."""
        try:
            self._journal.sync_sealed(sealed)
        except OSError as error:
            self._committer.degrade(error)
            raise

    def _say_again(self, sealed: int) -> Batch:
        try:
            return say_again(self._files, self._layout, sealed)
        except CorruptRecord as error:
            damage = OSError(errno.EIO, str(error), self._layout.journal)
            self._committer.degrade(damage)
            raise damage from error

    def _sync(self) -> None:
        try:
            self._files.sync_filesystem(self._fd, self._writer.take_paths())
        except OSError as error:
            if is_full(error):
                self._pause()
            else:
                self._committer.degrade(error)
            with contextlib.suppress(OSError):
                self._leave_note(str(error))
            raise

    def _pause(self) -> None:
        """Until a checkpoint has written all of it again, and there was room for that."""
        self._is_unsynced = True
        self._trusts_index = False
        self._space.release_ballast()
        self._space.report_unsynced()

    def _leave_note(self, reason: str) -> None:
        self._files.replace_durably(self._layout.rewrite, f"{reason}\n".encode())

    def _finish(self) -> None:
        if self._trusts_index:
            self._files.remove(self._layout.rewrite)
        self._is_unsynced = False
        self._space.report_synced()
        self._last = time.monotonic()
        self._has_leftovers = False
        self.failure = None

    def _is_due(self) -> bool:
        if self._committer.failure is not None:
            return False
        if self._is_unsynced or self._journal.size >= self._rule.max_bytes:
            return True
        has_something = self._journal.size > 0 or self._has_leftovers
        return has_something and time.monotonic() - self._last >= self._rule.interval_seconds
