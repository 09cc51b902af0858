"""Which filesystems tell everything, and which are shared with machines that this kernel does not see.

On a network or FUSE mount changes made elsewhere raise no event here and no lease tells of a writer there; such a
mount is scanned often instead of being watched. What a mount does not admit is learned: where scans go on finding
files that no event announced, it is treated as remote from then on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from runner.errors import UnsafeAccess
from runner.intake.readiness import Trust

MOUNT_TABLE: Final = "/proc/self/mountinfo"
REMOTE_TYPES: Final = frozenset(
    (
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "vboxsf", "prl_fs", "vmhgfs", "afs", "ceph", "gfs2",
        "glusterfs", "lustre", "ocfs2", "drvfs", "davfs", "sshfs", "acfs", "gpfs", "beegfs", "orangefs", "fuseblk",
    )
)  # fmt: skip
MISSED_BEFORE_DOUBT: Final = 3
"""This many files found by scans alone, while no event at all arrived, and the mount's events are not trusted."""

_LINE: Final = re.compile(r"\d+ \d+ (\d+):(\d+) \S+ (\S+) .* - (\S+) ")


class Mounts:
    """What is known of the filesystems by their device numbers. Changed by one thread, read by any."""

    def __init__(self, table: str = MOUNT_TABLE) -> None:
        self._table = table
        self._types: dict[int, str] = {}
        self._trust: dict[int, Trust] = {}
        self._heard: set[int] = set()
        self._missed: dict[int, int] = {}
        self.doubted: set[int] = set()

    def trust(self, device: int) -> Trust:
        """What the answers of the filesystem with that device number are worth."""
        trust = self._trust.get(device)
        if trust is None:
            doubtful = device in self.doubted or is_remote(self.type_of(device))
            trust = self._trust[device] = Trust.REMOTE if doubtful else Trust.LOCAL
        return trust

    def type_of(self, device: int) -> str:
        """The filesystem's type, such as `ext4`; empty where the mount table does not say."""
        if device not in self._types:
            self._types.update(read_types(self._table))
            self._types.setdefault(device, "")
        return self._types[device]

    def heard(self, device: int) -> None:
        """An event arrived from this mount."""
        self._heard.add(device)

    def scanned(self, found: Mapping[int, int]) -> list[int]:
        """A scan of everything found, by device, so many files that no event had announced. Returns the devices whose
        events are not trusted any more. Some events and not all is an overflow, not a mount without events."""
        newly_doubted = []
        for device, count in found.items():
            if device in self._heard or self.trust(device) is Trust.REMOTE:
                self._missed.pop(device, None)
                continue
            self._missed[device] = self._missed.get(device, 0) + count
            if self._missed[device] >= MISSED_BEFORE_DOUBT:
                self.doubted.add(device)
                self._trust.pop(device, None)
                newly_doubted.append(device)
        self._heard.clear()
        return newly_doubted


def check_local(directory: str, table: str = MOUNT_TABLE) -> None:
    """Raises `UnsafeAccess` for a directory, or the place where it will be made, on a filesystem whose locks and syncs
    cannot be relied on."""
    place = directory
    while not os.path.exists(place):
        place = os.path.dirname(place)
    kind = read_types(table).get(os.stat(place).st_dev, "")
    if is_remote(kind):
        raise UnsafeAccess(
            f"{directory} is on {kind}, where locks and syncs cannot be relied on, and tasks may be lost. Keep it on a "
            "disk of this machine; a folder to be watched may lie anywhere (inbox.folders).\n"
            "storage.allow_network lets the runner start all the same"
        )


def is_remote(kind: str) -> bool:
    """Whether a filesystem type may change without this kernel's knowledge. Everything in user space may."""
    return kind in REMOTE_TYPES or kind.startswith("fuse.") or kind == "fuse"


def read_types(table: str) -> dict[int, str]:
    """Device number → type from a mount table in the form of proc_pid_mountinfo(5); empty where there is none."""
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as lines:
            matches = [match for line in lines if (match := _LINE.match(line))]
    except FileNotFoundError:
        return {}
    return {os.makedev(int(match[1]), int(match[2])): match[4] for match in matches}
