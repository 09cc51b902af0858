"""The one process that owns a data directory.

The lock is the kernel's: it is released at the very moment its holder dies, so nobody has to guess by a clock whether
an owner is alive. `locks/owner.json` beside it only says to people who that is.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime

from filelock import FileLock, Timeout

from runner.errors import CorruptRecord, OwnerExists
from runner.store.files import Files, Layout

POLL_SECONDS = 0.05


class Owner:
    """Holds `locks/owner.lock` between `acquire` and `release`."""

    def __init__(self, files: Files, layout: Layout) -> None:
        self._files = files
        self._layout = layout
        self._card = f"{layout.locks}/owner.json"
        # Shared by all threads of this process: whoever opens the store may close it from another one.
        self._lock = FileLock(f"{layout.locks}/owner.lock", thread_local=False, mode=0o600)

    def acquire(self) -> None:
        """Becomes the owner. Raises `OwnerExists` at once if another process is."""
        self._files.make_directory(self._layout.locks)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise self._exists() from None
        self._sign()

    def wait(self, announce: Callable[[OwnerExists], None]) -> None:
        """Becomes the owner, as a hot standby if need be: says once for whom it waits, takes over within moments."""
        try:
            self.acquire()
        except OwnerExists as error:
            announce(error)
            self._lock.acquire(timeout=-1, poll_interval=POLL_SECONDS)
            self._sign()

    def release(self) -> None:
        """Somebody else may be the owner. The lock file stays: to unlink it would let two in."""
        self._lock.release()

    def _sign(self) -> None:
        card = {"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        # On a full disk nobody learns who owns the directory; that is no reason not to start.
        with contextlib.suppress(OSError):
            self._files.replace(self._card, json.dumps(card).encode(), f"{self._card}.tmp")

    def _exists(self) -> OwnerExists:
        try:
            card = json.loads(self._files.read(self._card))
            pid, since = int(card["pid"]), str(card["since"])
        except (OSError, CorruptRecord, ValueError, KeyError, TypeError):
            return OwnerExists(f"another process owns {self._layout.data}")
        return OwnerExists(f"process {pid} owns {self._layout.data} since {since}", pid, since)
