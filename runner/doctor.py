"""What keeps a runner from being well: its data, and the machine that it runs on.

Looking changes nothing and needs nobody's leave; whoever owns the directory goes on meanwhile. Mending is done as the
owner. What the store's own checks are is in `store/checkup.py`; here is the rest.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from runner.config import Config
from runner.handlers import Handlers
from runner.handlers.catalog import remedy
from runner.intake.mounts import Mounts, is_remote
from runner.service import Role, store_options
from runner.store import Files, Layout, Store, Transition
from runner.store.access import find_faults
from runner.store.checkup import Checkup, Exists
from runner.store.findings import Finding
from runner.store.space import measure
from runner.units import format_duration, format_size

MAX_ROUNDS: Final = 4
"""What was mended may bring more to light: the uploads of a task that was set aside belong to nobody."""
CLOCK_SLACK_SECONDS: Final = 60.0
FIRST_YEAR: Final = 1_735_689_600.0
"""No clock that is right says less: 2025 in seconds since 1970."""
FEWEST_INSTANCES: Final = 4
INOTIFY: Final = Path("/proc/sys/fs/inotify")
VOLATILE: Final = frozenset(("tmpfs", "ramfs"))


@dataclass(frozen=True, slots=True)
class Mended:
    """One thing that was done; `failure` says why it could not be, empty where it was."""

    finding: Finding
    failure: str = ""


class Doctor:
    """Examines the data directory of a configuration. `exists`: whether its owner knows a task; None: there is no
    owner, or none that answers."""

    def __init__(self, config: Config, exists: Exists | None = None) -> None:
        self._config = config
        self._exists = exists
        self._files = Files()
        self._layout = Layout(config.data_dir)

    def examine(self) -> Iterator[Finding]:
        """Everything that can be seen, and what a repair would do."""
        yield self._check_access()
        yield from Checkup(self._files, self._layout, self._exists).run()
        yield from self._check_room()
        yield from self._check_filesystems()
        yield self._check_clock()
        yield from self._check_inotify()
        yield from self._check_handlers()

    def mend(self) -> list[Mended]:
        """Does what `examine` proposes, and brings files and index up to date. The caller owns the directory."""
        done: list[Mended] = []
        tried: set[str] = set()
        for _ in range(MAX_ROUNDS):
            ill = [one for one in self.examine() if not one.is_well and one.repair and one.text not in tried]
            if not ill:
                break
            tried.update(one.text for one in ill)
            done += [_mend(one) for one in ill]
            self._settle()
        return done

    def _settle(self) -> None:
        """What the journal says is written into files, and the index made, by the store itself."""
        store = Store(self._config.data_dir, store_options(self._config, Role.VISIT), _Deaf())
        store.open()
        store.close()

    # The directory

    def _check_access(self) -> Finding:
        faults = tuple(find_faults(self._layout))
        if not faults:
            mode = stat.S_IMODE(Path(self._layout.data).stat().st_mode)
            return Finding("data", True, f"{self._layout.data}, mode {mode:04o}")
        own = [path for path in map(Path, (self._layout.data, self._layout.inbox)) if _is_own(path)]
        remedy, repair = ("take from others the right to write", partial(_close_to_others, own)) if own else ("", None)
        return Finding("data", False, "; ".join(faults), faults, remedy, repair)

    def _check_room(self) -> Iterator[Finding]:
        room, floors = measure(self._layout.data), self._config.storage
        free = f"{format_size(room.free_bytes)} free, the floor is {format_size(floors.min_free_bytes)}"
        yield Finding("space", room.free_bytes >= floors.min_free_bytes, free)
        if room.free_inodes is not None:
            text = f"{room.free_inodes} free, the floor is {floors.min_free_inodes}"
            yield Finding("inodes", room.free_inodes >= floors.min_free_inodes, text)

    # The machine

    def _check_filesystems(self) -> Iterator[Finding]:
        mounts = Mounts()
        yield _judge_home(self._layout.data, mounts.type_of(Path(self._layout.data).stat().st_dev))
        for folder in self._inboxes():
            if not folder.is_dir():
                is_made = str(folder) == self._layout.inbox
                yield Finding("inbox", is_made, f"{folder} is not there{' yet' if is_made else ''}")
                continue
            kind = mounts.type_of(folder.stat().st_dev)
            manner = "looked at every few seconds, since it tells nothing" if is_remote(kind) else "watched"
            can_take = os.access(folder, os.R_OK | os.X_OK)
            text = f"{folder} on {kind or 'an unknown filesystem'}: {manner}"
            yield Finding("inbox", can_take, text if can_take else f"{folder} cannot be read")

    def _inboxes(self) -> list[Path]:
        return [Path(self._layout.inbox), *(folder.path for folder in self._config.inbox.folders)]

    def _check_clock(self) -> Finding:
        now, newest = time.time(), max(map(_mtime, self._latest_files()), default=0.0)
        if now < FIRST_YEAR:
            return Finding("clock", False, f"it says {time.strftime('%Y-%m-%d', time.gmtime(now))}; set it")
        if newest > now + CLOCK_SLACK_SECONDS:
            text = (
                f"it is {format_duration(newest - now)} behind what was written last; delays and schedules wait so long"
            )
            return Finding("clock", False, text)
        return Finding("clock", True, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)))

    def _latest_files(self) -> list[Path]:
        journal = Path(self._layout.journal)
        return [Path(self._layout.version), Path(self._layout.tasks), journal, *journal.glob("*.log")]

    def _check_inotify(self) -> Iterator[Finding]:
        watches, instances = _limit("max_user_watches"), _limit("max_user_instances")
        if watches is None or instances is None:
            return
        folders = sum(1 for inbox in self._inboxes() for _ in os.walk(inbox))
        text = f"folders to watch: {folders}; allowed are {watches} watches and {instances} instances"
        is_well = folders < watches and instances >= FEWEST_INSTANCES
        advice = f"; raise fs.inotify.max_user_watches to {2 * folders + 1024} or more by sysctl"
        yield Finding("inotify", is_well, text if is_well else text + advice)

    def _check_handlers(self) -> Iterator[Finding]:
        handlers = Handlers(Path(self._config.handlers_dir), self._config.handlers)
        handlers.load()
        for failure in handlers.errors.values():
            yield Finding("handlers", False, f"{failure.path}:{failure.line or 1}: {failure.message}")
        names = ", ".join(handler.name for handler in handlers)
        yield Finding("handlers", bool(names), names or f"none in {self._config.handlers_dir}")
        for handler in handlers:
            if missing := handler.missing():
                yield Finding(handler.name, True, f"unavailable, it lacks {remedy(handler, missing)}")


class _Deaf:
    """Hears of no change: none is made."""

    def staged(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""

    def appended(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""

    def refused(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""

    def committed(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""


def _mend(finding: Finding) -> Mended:
    assert finding.repair is not None
    try:
        finding.repair()
    except OSError as error:
        return Mended(finding, f"{error.filename or ''}: {error.strerror or error}")
    return Mended(finding)


def _is_own(path: Path) -> bool:
    return path.is_dir() and path.stat().st_uid == os.geteuid()


def _close_to_others(paths: list[Path]) -> None:
    for path in paths:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))


def _judge_home(path: str, kind: str) -> Finding:
    if is_remote(kind):
        text = f"{path} is on {kind}: locks and syncs cannot be relied on there, and tasks may be lost; move it"
        return Finding("filesystem", False, text, (path,))
    note = ", which is empty after a restart of the machine" if kind in VOLATILE else ""
    return Finding("filesystem", True, f"{path} is on {kind or 'an unknown filesystem'}{note}")


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _limit(name: str) -> int | None:
    try:
        return int((INOTIFY / name).read_text())
    except (OSError, ValueError):
        return None
