"""The checkpoint: makes task files and index durable, so that old journal segments may go."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from runner.store.committer import Committer
from runner.store.files import Files, Layout
from runner.store.journal import Journal
from runner.store.writer import Writer


@dataclass(frozen=True, slots=True)
class CheckpointRule:
    """When: once the segment has this many bytes, or something was written and this many seconds have passed."""

    max_bytes: int
    interval_seconds: float


class Checkpointer:
    """Looks about every second whether a checkpoint is due. `run` is its own thread."""

    LOOK_SECONDS = 1.0

    def __init__(
        self,
        files: Files,
        layout: Layout,
        journal: Journal,
        committer: Committer,
        writer: Writer,
        rule: CheckpointRule,
    ) -> None:
        self._files = files
        self._layout = layout
        self._journal = journal
        self._committer = committer
        self._writer = writer
        self._rule = rule
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self.failure: OSError | None = None

    def run(self) -> None:
        """Makes checkpoints until `stop`. One that the disk refuses is tried again: the journal keeps what it would
        have dropped."""
        while not self._stop.wait(self.LOOK_SECONDS):
            if self._is_due():
                try:
                    self.checkpoint()
                except OSError as error:
                    self.failure = error

    def stop(self) -> None:
        """Ends `run`."""
        self._stop.set()

    def checkpoint(self) -> int:
        """Makes one now; returns the number of the last segment that is gone. Blocks; raises `OSError`."""
        with self._lock:
            sealed = self._committer.rotate()
            # These three lines in this order, or a power cut loses tasks: what the segments say is written, it is
            # synced, and only then are they dropped.
            self._writer.flush()
            self._files.sync_filesystem(self._layout.data, self._writer.take_paths())
            self._journal.drop(sealed)
            self._last = time.monotonic()
            self.failure = None
            return sealed

    def _is_due(self) -> bool:
        if self._journal.size >= self._rule.max_bytes:
            return True
        return self._journal.size > 0 and time.monotonic() - self._last >= self._rule.interval_seconds
