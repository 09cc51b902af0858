"""Room on the disk: floors that pause intake before the disk is full, and the ballast that lets running tasks end.

On a full ext4 nothing can be written, but an unlink works (measured); so a file of some MiB is kept to be given up, and
some empty ones: without an inode no file can be replaced, and no runner started.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import dataclass
from typing import Final

from runner.store.files import Files

BALLAST_INODES = 16
"""What a start needs: a segment, the index's log and shared memory, a temporary file; and some to spare."""

UNSYNCED: Final = "the disk has no room for what was written to it"


@dataclass(frozen=True, slots=True)
class Floors:
    """Below these, intake pauses: free bytes, free inodes. `ballast_bytes` is the size of the ballast; 0: there
    is none."""

    min_free_bytes: int
    min_free_inodes: int
    ballast_bytes: int

    @property
    def for_ballast(self) -> Floors:
        """Above these, there is room for the ballast, and for as much again."""
        free_bytes = self.min_free_bytes + 2 * self.ballast_bytes
        return Floors(free_bytes, self.min_free_inodes + 2 * BALLAST_INODES, self.ballast_bytes)


@dataclass(frozen=True, slots=True)
class Room:
    """What a filesystem has left for us; inodes are None where it does not count them."""

    free_bytes: int
    free_inodes: int | None


def measure(path: str) -> Room:
    """The room on the filesystem of `path`."""
    status = os.statvfs(path)
    return Room(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)


def is_full(error: OSError) -> bool:
    """Whether it says that there is no room, for anybody or for this user."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def shortage(room: Room, floors: Floors) -> str | None:
    """Why intake must pause, or None."""
    if room.free_bytes < floors.min_free_bytes:
        return f"{room.free_bytes} bytes are free, fewer than the floor of {floors.min_free_bytes}"
    if room.free_inodes is not None and room.free_inodes < floors.min_free_inodes:
        return f"{room.free_inodes} inodes are free, fewer than the floor of {floors.min_free_inodes}"
    return None


class Space:
    """Watches one filesystem. `check` is called about every second; the other methods from any thread."""

    def __init__(self, files: Files, directory: str, floors: Floors) -> None:
        self._files = files
        self._directory = directory
        self._ballast = f"{directory}/locks/ballast"
        self._inodes = tuple(f"{directory}/locks/ballast.{number}" for number in range(BALLAST_INODES))
        self._floors = floors
        self._lock = threading.Lock()
        self._is_unsynced = False
        self.shortage: str | None = None

    def check(self) -> str | None:
        """Measures again, restores the ballast where there is room, and says why intake must pause, if it must.
        Raises `OSError` when the filesystem cannot be asked."""
        with self._lock:
            room = measure(self._directory)
            self.shortage = shortage(room, self._floors) or (UNSYNCED if self._is_unsynced else None)
            # Not as soon as there is room, or it would take from those for whom it was given up.
            if not self._is_unsynced and shortage(room, self._floors.for_ballast) is None:
                self._restore_ballast()
            return self.shortage

    def report_full(self) -> None:
        """A write found the disk full before `check` did."""
        self.shortage = "the disk is full"

    def report_unsynced(self) -> None:
        """What was written found no room when it was to be synced; there may seem to be some all the while. Whoever is
        served by such a disk waits for `report_synced`."""
        with self._lock:
            self._is_unsynced = True
            self.shortage = self.shortage or UNSYNCED

    def report_synced(self) -> None:
        """It has found some; the next check says whether that is all."""
        with self._lock:
            self._is_unsynced = False

    def release_ballast(self) -> None:
        """Gives the ballast's bytes back to whoever must write now. A disk that refuses even that has none to give."""
        with self._lock, contextlib.suppress(OSError):
            self.report_full()
            self._remove_ballast()

    def _restore_ballast(self) -> None:
        if self._floors.ballast_bytes == 0 or os.path.exists(self._ballast):
            return
        try:
            self._fill_ballast()
        except OSError:
            # No room for it after all; the next check tries again.
            with contextlib.suppress(OSError):
                self._remove_ballast()

    def _fill_ballast(self) -> None:
        """The file of bytes comes last: where it is, all of it is."""
        for path in self._inodes:
            self._files.close(self._files.open(path, os.O_WRONLY | os.O_CREAT))
        fd = self._files.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self._files.allocate(fd, self._floors.ballast_bytes)
        finally:
            self._files.close(fd)

    def _remove_ballast(self) -> None:
        for path in (self._ballast, *self._inodes):
            self._files.remove(path)
