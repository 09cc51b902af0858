"""One look at a file in a watched folder, and all that follows from it without changing anything.

A finding is one of: `Ready` (take it now), `Held` (look again later), `Refusal` (never as it is), `Inner` (it is a
directory), `GONE`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from itertools import groupby
from typing import Any, Final

from runner.errors import InvalidSubmission
from runner.intake.folders import DONE, SUM, Folder
from runner.intake.holds import WHY_OF_STATE, Holds, Why
from runner.intake.mounts import Mounts
from runner.intake.names import ERROR_FOLDER, REASON, entry_of, shown, with_suffix
from runner.intake.porter import Glance, Place, Porter
from runner.intake.readiness import (
    Decision,
    Patience,
    Sighting,
    State,
    Trust,
    Watched,
    decide,
    look,
    open_folder,
)
from runner.intake.sidecar import SUFFIX, partner_of, read_object, sidecar_of

MAX_SUM_BYTES: Final = 4096
FOLLOWS_SECONDS: Final = 2.0
"""Parameters in the error folder may follow their file for so long; then it is taken with them from there."""


@dataclass(slots=True)
class Ready:
    """A whole file. `payload`: what its sidecar, or the document, says. `sidecar`: the sidecar's name, if any.
    `companions`: the names of its marker and checksum file. `is_alone`: it is known to have no sidecar;
    `is_new`: the outbox was seen to have nothing of its name."""

    folder: Folder
    name: str
    seen: Sighting
    payload: dict[str, Any] | None = None
    sidecar: str | None = None
    companions: tuple[str, ...] = ()
    is_alone: bool = False
    is_new: bool = False


@dataclass(slots=True)
class Held:
    """A file that is not to be taken yet. `watched` and `beside` are what is known of it and of its sidecar."""

    why: Why
    reason: str
    watched: Watched | None = None
    beside: Watched | None = None


@dataclass(slots=True)
class Refusal:
    """A file that cannot be taken as it is."""

    code: str
    problems: tuple[str, ...]
    sidecar: str | None = None


@dataclass(slots=True)
class Inner:
    """A directory: its files are to be looked at."""


class Gone(Enum):
    """The file is not there any more."""

    GONE = "gone"


GONE: Final = Gone.GONE
Finding = Ready | Held | Refusal | Inner | Gone


@dataclass(slots=True)
class Inspector:
    """Looks at files. One thread. `unfinished`: inodes, by folder path, that scans saw under names never taken."""

    mounts: Mounts
    holds: Holds
    settle_seconds: float
    porter: Porter
    uid: int = field(default_factory=os.geteuid)
    unfinished: dict[str, set[int]] = field(default_factory=dict)

    def inspect(self, folder: Folder, names: Iterable[str], now: float) -> Iterator[tuple[str, Finding]]:
        """What is found of each file of a folder; `now` is an instant of the monotonic clock."""
        for below, group in groupby(names, _directory_of):
            group_names = list(group)
            try:
                fd = open_folder(folder.path, below)
            except (FileNotFoundError, NotADirectoryError):
                yield from ((name, GONE) for name in group_names)
            except OSError as error:
                yield from ((name, _unreadable(error)) for name in group_names)
            else:
                yield from self._inspect_directory(fd, folder, group_names, now)

    def _inspect_directory(
        self, fd: int, folder: Folder, names: list[str], now: float
    ) -> Iterator[tuple[str, Finding]]:
        try:
            fixed = None if folder.is_kept else _why_fixed(fd)
            plain = {} if fixed or folder.documents or folder.companions else self._find_plain(folder, names)
            has_errors = not folder.documents and not folder.is_kept and os.access(folder.error_path, os.F_OK)
            trusted = self._find_trusted(folder, plain)
            for name in names:
                glance = plain.get(name.rpartition("/")[2])
                if glance is not None and glance.seen.device in trusted:
                    yield name, Ready(folder, name, glance.seen, is_alone=True, is_new=glance.is_new)
                    continue
                finding = fixed or self._inspect_file(fd, folder, name, now, glance)
                if has_errors and glance is None and isinstance(finding, Ready) and finding.sidecar is None:
                    finding = self._read_left(finding, now)
                yield name, finding
        finally:
            os.close(fd)

    def look_ahead(self, folder: Folder, names: Iterable[str]) -> None:
        """These are inspected next, if nothing comes in between."""
        _, group = next(groupby(names, _directory_of), ("", ()))
        if not (folder.documents or folder.companions) and (alike := list(group)):
            self.porter.look_ahead(*_look_of(folder, alike))

    def _find_plain(self, folder: Folder, names: list[str]) -> dict[str, Glance]:
        """Of many files in a directory, those that are plain, by the last part of their names."""
        return self.porter.look(*_look_of(folder, names))

    def _find_trusted(self, folder: Folder, plain: Mapping[str, Glance]) -> Set[int]:
        """The devices on which a plain file is ready."""
        if folder.settle_seconds is not None:
            return frozenset()
        devices = {glance.seen.device for glance in plain.values()}
        return {device for device in devices if self.mounts.trust(device) is Trust.LOCAL}

    def _inspect_file(self, fd: int, folder: Folder, name: str, now: float, glance: Glance | None) -> Finding:
        if glance is not None:
            return self._judge(fd, Ready(folder, name, glance.seen, is_alone=True, is_new=glance.is_new), now)
        base = name.rpartition("/")[2]
        try:
            seen = look(fd, base)
        except FileNotFoundError:
            return GONE
        except OSError as error:
            return _unreadable(error)
        if stat.S_ISDIR(seen.mode):
            return Inner()
        if (held := _held_by_others(fd, folder, base, seen)) is not None:
            return held
        return self._judge(
            fd, Ready(folder, name, seen, companions=tuple(name + end for end in folder.companions)), now
        )

    def _judge(self, fd: int, file: Ready, now: float) -> Finding:
        hold = self.holds.find(file.folder.absolute(file.name))
        decision, watched = self._decide(file.folder, file.seen, hold.watched if hold else None, now)
        if decision.state is State.READY:
            return self._read_beside(fd, file, Held(Why.WRITING, "", watched, hold.beside if hold else None), now)
        if decision.state is State.REFUSED:
            return Refusal("not_a_file", (decision.reason,))
        return Held(WHY_OF_STATE[decision.state], decision.reason, watched)

    def _decide(
        self, folder: Folder, seen: Sighting, watched: Watched | None, now: float
    ) -> tuple[Decision, Watched | None]:
        if watched is not None:
            watched.look(seen, now)
        patience = Patience(self.settle_seconds, folder.settle_seconds)
        trust = self.mounts.trust(seen.device)
        # Who puts a marker beside a file has renamed or closed it before.
        renamed = folder.done_marker or seen.inode in self.unfinished.get(folder.path, ())
        decision = decide(seen, watched, now, patience=patience, trust=trust, renamed=renamed, uid=self.uid)
        if watched is None and decision.state is not State.READY:
            watched = Watched.begin(seen, now)
        return decision, watched

    def _read_beside(self, fd: int, ready: Ready, held: Held, now: float) -> Finding:
        """The file is whole: what its sidecar says, if it has one, or what it says itself as a document.
        `held`: how it would be held."""
        base = ready.name.rpartition("/")[2]
        if ready.folder.documents:
            return _read_document(fd, ready, base)
        if ready.folder.checksum and (finding := check_sum(fd, base)) is not None:
            return finding
        beside = sidecar_of(base)
        if (
            ready.is_alone
            or partner_of(beside) is None
            or not os.access(beside, os.F_OK, dir_fd=fd, follow_symlinks=False)
        ):
            return ready
        return self._read_sidecar(fd, ready, beside, held, now)

    def _read_sidecar(self, fd: int, ready: Ready, beside: str, held: Held, now: float) -> Finding:
        sidecar = sidecar_of(ready.name)
        try:
            seen = look(fd, beside)
            decision, held.beside = self._decide(ready.folder, seen, held.beside, now)
            if decision.state is State.REFUSED:
                return Refusal("not_a_file", (f"{shown(beside)}: {decision.reason}",), sidecar)
            if decision.state is not State.READY:
                held.why = WHY_OF_STATE[decision.state]
                held.reason = f"its parameters in {shown(beside)} are not ready: {decision.reason}"
                return held
            ready.payload, ready.sidecar = read_object(fd, beside), sidecar
        except InvalidSubmission as error:
            return Refusal(error.code, tuple(f"{shown(beside)} {problem}" for problem in error.problems), sidecar)
        except OSError as error:
            return _unreadable(error)
        return ready

    def _read_left(self, ready: Ready, now: float) -> Finding:
        """The file with its parameters, if it came back from the error folder, and they have stayed there."""
        below, slash, base = ready.name.rpartition("/")
        try:
            fd = open_folder(ready.folder.path, f"{ERROR_FOLDER}{slash}{below}")
        except OSError:
            return ready
        try:
            if not _was_left(fd, base):
                return ready
            hold = self.holds.find(ready.folder.absolute(ready.name))
            if now - (hold.first_seen if hold else now) < FOLLOWS_SECONDS:
                return Held(Why.PARAMETERS, "its parameters are in the error folder still, and may follow")
            ready.payload = read_object(fd, sidecar_of(base))
        except InvalidSubmission as error:
            return Refusal(error.code, tuple(f"{shown(sidecar_of(base))} {problem}" for problem in error.problems))
        except OSError as error:
            return _unreadable(error)
        finally:
            os.close(fd)
        ready.sidecar = f"{ERROR_FOLDER}/{sidecar_of(ready.name)}"
        return ready


def _was_left(error_fd: int, base: str) -> bool:
    """Whether an error folder holds the reason and the parameters of a file of that name, and not the file."""
    beside = sidecar_of(base)
    return (
        partner_of(beside) is not None
        and os.access(beside, os.F_OK, dir_fd=error_fd, follow_symlinks=False)
        and os.access(with_suffix(base, REASON), os.F_OK, dir_fd=error_fd, follow_symlinks=False)
        and not os.access(base, os.F_OK, dir_fd=error_fd, follow_symlinks=False)
    )


def _held_by_others(fd: int, folder: Folder, base: str, seen: Sighting) -> Held | None:
    """A sidecar waits for its file; see `_held_by_companions` for what else waits for others."""
    partner = None if folder.documents else partner_of(base)
    if partner is not None and stat.S_ISREG(seen.mode):
        return _wait_for_file(fd, partner, "holds the parameters of")
    return _held_by_companions(fd, folder, base) if folder.companions else None


def _wait_for_file(fd: int, partner: str, what: str) -> Held:
    if os.access(partner, os.F_OK, dir_fd=fd, follow_symlinks=False):
        return Held(Why.PARTNER, f"it {what} {shown(partner)} and is taken with it")
    return Held(Why.FILE, f"it {what} {shown(partner)}, which is not there yet")


def _held_by_companions(fd: int, folder: Folder, base: str) -> Held | None:
    """A marker or checksum file waits for its file, and a file for those."""
    for ending, what in ((DONE, "says that all is there of"), (SUM, "holds the checksum of")):
        if ending in folder.companions and base.endswith(ending) and base != ending:
            return _wait_for_file(fd, base.removesuffix(ending), what)
    for ending in folder.companions:
        if not os.access(base + ending, os.F_OK, dir_fd=fd, follow_symlinks=False):
            return Held(Why.MARKER, f"it waits for {shown(base + ending)}")
    return None


def check_sum(fd: int, base: str) -> Held | Refusal | None:
    """What is wrong between a file and its checksum file, in the form of sha256sum(1); None if nothing is."""
    try:
        with os.fdopen(_open_beside(fd, base + SUM), "rb") as file:
            said = file.read(MAX_SUM_BYTES).split()
        if not said:
            return Held(Why.MARKER, f"{shown(base + SUM)} has no content yet")
        with os.fdopen(_open_beside(fd, base), "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return _unreadable(error)
    if said[0].lower() == found.encode():
        return None
    return Refusal("checksum_mismatch", (f"its SHA-256 is {found}, and {shown(base + SUM)} says otherwise",))


def _open_beside(fd: int, name: str) -> int:
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)


def _read_document(fd: int, ready: Ready, base: str) -> Finding:
    if not base.endswith(SUFFIX):
        return Held(Why.STRAY, "it lies beside the handlers' folders, not in one of them; move it into one")
    try:
        ready.payload = read_object(fd, base)
    except InvalidSubmission as error:
        return Refusal(error.code, tuple(f"the document {problem}" for problem in error.problems))
    except OSError as error:
        return _unreadable(error)
    return ready


def _look_of(folder: Folder, names: Sequence[str]) -> tuple[Place, list[str]]:
    """What to ask the porter about files of one directory."""
    below = _directory_of(names[0])
    entries = entry_of(folder.user_id, folder.handler, f"{below}/" if below else "")
    return Place(folder.path, below, entries), [name.rpartition("/")[2] for name in names]


def _unreadable(error: OSError) -> Held:
    return Held(Why.UNREADABLE, f"it cannot be read: {error.strerror}")


def _why_fixed(directory_fd: int) -> Held | None:
    """A directory that lets no file go would make a task, and its failure, of each look at each file."""
    if os.access(".", os.W_OK | os.X_OK, dir_fd=directory_fd):
        return None
    return Held(Why.FIXED, "its folder is read-only or not ours to write to, so it cannot be taken out of it")


def _directory_of(name: str) -> str:
    return name.rpartition("/")[0]
