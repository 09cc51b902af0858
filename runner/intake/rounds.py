"""When the watched folders are scanned, and what a scan brings to light."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from runner.intake.folders import Folder, Folders
from runner.intake.holds import Holds
from runner.intake.lanes import Lanes
from runner.intake.mounts import Mounts
from runner.intake.readiness import Trust
from runner.intake.scan import Listing, find_folders, list_folder
from runner.intake.seen import Seen

POLL_SECONDS: Final = 1.0
"""How often folders without trusted events are scanned, and all of them while no watcher stands."""
SOON_SECONDS: Final = 0.2

Polling = bool | Literal["auto"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class FolderCount:
    """What the last scan counted in one folder: files that wait, names never taken, and why it could not be read."""

    files: int = 0
    ignored: int = 0
    trouble: str = ""


@dataclass(slots=True)
class Rounds:
    """Scans into the lanes. One thread, the counts from any.

    `is_watching`: whether events are expected at all now. `unfinished`: by folder, the inodes seen under names that
    are never taken; a file that then has another name came to it by a rename.
    """

    folders: Folders
    lanes: Lanes
    holds: Holds
    mounts: Mounts
    rescan_seconds: float
    force_polling: Polling = "auto"
    seen: Seen | None = None
    unfinished: dict[str, set[int]] = field(default_factory=dict)
    counts: dict[str, FolderCount] = field(default_factory=dict)
    is_watching: bool = False
    found_unannounced: int = 0
    _next_scan: float = 0.0
    _next_poll: float = 0.0
    _again: list[float] = field(default_factory=list)
    _fresh: bool = True
    _devices: dict[str, int] = field(default_factory=dict)
    _polled: frozenset[str] = frozenset()
    _unfinished_before: dict[str, set[int]] = field(default_factory=dict)

    def next_due(self) -> float:
        """When the next scan is due, in seconds of the monotonic clock."""
        due = min(self._next_scan, *self._again) if self._again else self._next_scan
        return min(due, self._next_poll) if self._polled or not self.is_watching else due

    def ask(self, at: float, *, fresh: bool = False) -> None:
        """Everything is to be scanned at an instant. `fresh`: no event can have announced what is there."""
        if fresh:
            self._fresh = True
        self._again.append(at)

    def run_once(self, now: float) -> int:
        """Scans what is due; returns how many files were new."""
        if now >= min(self._next_scan, *self._again, float("inf")) or (not self.is_watching and now >= self._next_poll):
            return self._scan_all(now)
        return self._poll(now) if self._polled and now >= self._next_poll else 0

    def look_into(self, folder: Folder, below: str) -> int:
        """Scans one directory and all under it, because it appeared; returns how many files were new."""
        return sum(self._note(listing, self.counts.get(folder.path)) for listing in self._list(folder, below))

    def is_polled(self, folder: Folder) -> bool:
        """Whether the folder is scanned often because its events are not to be trusted."""
        return folder.path in self._polled

    def heard(self, folder: Folder) -> None:
        """An event came from this folder."""
        device = self._devices.get(folder.path)
        if device is not None:
            self.mounts.heard(device)

    def _scan_all(self, now: float) -> int:
        self._again = [at for at in self._again if at > now]
        self._next_scan = now + self.rescan_seconds
        self._next_poll = now + POLL_SECONDS
        found = self._scan(find_folders(self.folders))
        announced, self._fresh = self._fresh or not self.is_watching, False
        for device in self.mounts.scanned({} if announced else found):
            self._note_doubt(device)
        self._polled = self._find_polled()
        self.found_unannounced += 0 if announced else sum(found.values())
        return sum(found.values())

    def _poll(self, now: float) -> int:
        self._next_poll = now + POLL_SECONDS
        return sum(self._scan(folder for folder in find_folders(self.folders) if self.is_polled(folder)).values())

    def _find_polled(self) -> frozenset[str]:
        if self.force_polling != "auto":
            return frozenset(self._devices) if self.force_polling else frozenset()
        remote = (path for path, device in self._devices.items() if self.mounts.trust(device) is Trust.REMOTE)
        return frozenset(remote)

    def _scan(self, folders: Iterable[Folder]) -> dict[int, int]:
        found: dict[int, int] = {}
        for folder in folders:
            device = self._find_device(folder)
            if device is None:
                continue
            count = self.counts[folder.path] = FolderCount()
            # Those of the scan before this one: what now has a good name and one of these inodes was renamed.
            self.unfinished[folder.path] = self._unfinished_before.pop(folder.path, set())
            new = sum(self._note(listing, count) for listing in self._list(folder, ""))
            found[device] = found.get(device, 0) + new
        return {device: count for device, count in found.items() if count}

    def _find_device(self, folder: Folder) -> int | None:
        try:
            device = self._devices[folder.path] = os.stat(folder.path).st_dev
        except OSError as error:
            self._devices.pop(folder.path, None)
            self.counts[folder.path] = FolderCount(trouble=str(error.strerror))
            return None
        return device

    def _list(self, folder: Folder, below: str) -> Iterable[Listing]:
        lane = self.lanes.find(folder)
        return list_folder(folder, self.folders.ignored, below, lane.names if lane else {})

    def _note(self, listing: Listing, count: FolderCount | None) -> int:
        folder = listing.folder
        if listing.unfinished:
            self._unfinished_before.setdefault(folder.path, set()).update(listing.unfinished)
        paths = map(listing.name_of, listing.names)
        new = [name for name in paths if folder.absolute(name) not in self.holds]
        if folder.is_kept and self.seen is not None:
            new = [name for name in new if not self.seen.is_unchanged(folder, name)]
        if count is not None:
            count.files += listing.known + len(listing.names) + listing.beyond
            count.ignored += len(listing.ignored)
            count.trouble = count.trouble or (str(listing.trouble.strerror) if listing.trouble else "")
        return self.lanes.add(folder, new)

    def _note_doubt(self, device: int) -> None:
        _log.warning(
            "no events come from the filesystem %s, only scans find its files: it is scanned every %g s from now on",
            self.mounts.type_of(device) or device,
            POLL_SECONDS,
        )
