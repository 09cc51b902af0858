"""Taking dropped files: each batch is looked at, handed in as one, and each file's fate settled by the answer.

A refusal that is the file's own fault moves it to the error folder. A limit, a handler that does not load, a full
disk are nobody's fault here: the files stay in their lane, and the folder or the whole inbox waits with back-off.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple

from runner.errors import InvalidSubmission, KeyConflict, LimitReached, RunnerError, Unavailable, UnknownHandler
from runner.handlers import Handlers
from runner.intake.admission import Origin, Submission
from runner.intake.claims import Claims
from runner.intake.door import Haul
from runner.intake.duplicates import Duplicates
from runner.intake.folders import DONE, SUM, Folder
from runner.intake.holds import Hold, Why, next_look
from runner.intake.inspection import Finding, Gone, Held, Inner, Inspector, Ready, Refusal
from runner.intake.keeping import Keeping
from runner.intake.lanes import Lanes
from runner.intake.names import is_utf8, shown
from runner.intake.outbox import Outbox, Wanted
from runner.intake.rejects import Reject, Rejects, problems_of
from runner.intake.sidecar import SUFFIX, sidecar_of
from runner.intake.succession import Succession
from runner.store import Store
from runner.task import Status, Task

MAX_BATCH: Final = 512
MANY: Final = 64
"""A batch of so many files is worth making way for."""
SIDECAR_GRACE_SECONDS: Final = 2.0
"""A file whose payload does not suffice waits so long for its sidecar, in case the two are being copied."""
IDLE_SECONDS: Final = 30.0
LONGEST_PAUSE_SECONDS: Final = 2.0
"""So long after nothing could be taken it is tried again: a look costs us less than it would a client."""
REMEMBERED: Final = 10_000
"""So many taken files are remembered by their path, for `why`."""

Take = Callable[[Sequence[tuple[Submission, Origin]], Callable[[], None]], Haul]
"""Hands in a batch, each on its own, durable when it returns; the files may still be moving then. What is to be done
while they are on their way to the disk is called once."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Summary:
    """What one pass did, in files. `found`: new ones that a scan brought to light."""

    taken: int = 0
    refused: int = 0
    held: int = 0
    found: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class Pause:
    """Why nothing at all is taken, until an instant of the monotonic clock."""

    code: str
    reason: str
    until: float


@dataclass(slots=True)
class Claim:
    """A file on its way in."""

    file: Ready
    entry: str | None
    drop: tuple[Submission, Origin]


class UnderWay(NamedTuple):
    """Files that were handed in, and may still lie in their folders. `names`: by the path of the folder."""

    claims: Sequence[Claim]
    haul: Haul
    names: dict[str, set[str]]


class Taking:
    """From the lanes to `take`. While files move to their tasks, the next ones are looked at.

    One thread; `pause` and `taken` (path → task id) may be read by any. `batch`: how many files at a time, at least
    `MANY`.
    """

    def __init__(
        self,
        store: Store,
        handlers: Handlers,
        lanes: Lanes,
        inspector: Inspector,
        outbox: Outbox,
        take: Take,
        keeping: Keeping,
        batch: int = MAX_BATCH,
    ) -> None:
        self._files = store.files
        self._handlers = handlers
        self._lanes = lanes
        self._holds = inspector.holds
        self._inspector = inspector
        self._claims = Claims(store.layout.data)
        self._rejects = Rejects(store.files, f"{store.layout.tmp}/.inbox-reason")
        self._outbox = outbox
        self._take = take
        self.keeping = keeping
        self.batch = min(max(batch, MANY), MAX_BATCH)
        self.duplicates = Duplicates(store, handlers, self._rejects)
        self.succession = Succession(store)
        self.pause: Pause | None = None
        self.taken: OrderedDict[str, str] = OrderedDict()
        self.new_directories: list[tuple[Folder, str]] = []
        self._emptied: set[tuple[str, str]] = set()
        self._retaken: dict[str, tuple[Folder, list[str]]] = {}
        self._under_way: UnderWay | None = None
        self._come_again: list[tuple[Folder, str]] = []

    @property
    def is_under_way(self) -> bool:
        """Whether `run_once` or `finish` must be called soon: some files are tasks that nobody has let start."""
        return self._under_way is not None

    def run_once(self, limit: int, now: float, summary: Summary) -> None:
        """Takes at most `limit` files, at most one batch. `now`: seconds of the monotonic clock."""
        if self.pause is not None and now < self.pause.until:
            self.finish(now, summary)
            return
        ready: list[Ready] = []
        for folder, names in self._lanes.next(min(limit, self.batch), now):
            if self._is_served(folder, names, now):
                ready += self._inspect(folder, self._leave_out(folder, names), now, summary)
        if ready:
            self._hand_in(ready, now, summary)
        if not (ready and self._lanes and self._under_way and self._under_way.haul.moving):
            self.finish(now, summary)

    def finish(self, now: float, summary: Summary) -> None:
        """Waits until the files of the last batch have moved, and settles the fate of each."""
        if self._under_way is None:
            return
        claims, haul, _ = self._under_way
        self._under_way = None
        for claim, answer in zip(claims, haul.answers(), strict=True):
            self._settle_answer(claim, answer, now, summary)
        self._forget_reasons()
        for folder, name in self._come_again:
            self._lanes.add(folder, (name,))
        self._come_again.clear()

    def _leave_out(self, folder: Folder, names: list[str]) -> list[str]:
        """The files without those that are under way, of which it is seen later whether they have come again."""
        moving = self._under_way.names.get(folder.path) if self._under_way else None
        if moving is None or moving.isdisjoint(names):
            return names
        self._come_again += ((folder, name) for name in names if name in moving)
        return [name for name in names if name not in moving]

    def _is_served(self, folder: Folder, names: list[str], now: float) -> bool:
        if folder.documents:
            return True
        try:
            self._handlers.get(folder.handler)
        except UnknownHandler as error:
            self._lanes.put_first(folder, names)
            self._lanes.block(folder, error.code, str(error), now)
            return False
        return True

    def _inspect(self, folder: Folder, names: list[str], now: float, summary: Summary) -> list[Ready]:
        ready = []
        for name, finding in self._inspector.inspect(folder, names, now):
            if isinstance(finding, Ready):
                if not (folder.is_kept and self._was_taken(finding)):
                    ready.append(finding)
            else:
                self._settle(folder, name, finding, now, summary)
        return ready

    def _was_taken(self, file: Ready) -> bool:
        """Whether a file that stays was taken already."""
        try:
            known = self.keeping.seen.knows(file.folder, file.name, file.seen)
        except OSError:
            return True  # gone or away since it was looked at; the next scan sees it again
        if known:
            self._holds.release(file.folder.absolute(file.name))
        return known

    def _settle(self, folder: Folder, name: str, finding: Finding, now: float, summary: Summary) -> None:
        """What becomes of a file that is not to be handed in."""
        if isinstance(finding, Held):
            if finding.why is Why.PARTNER:
                # Its input may be held because it was missing.
                partner = next(name.removesuffix(end) for end in (SUFFIX, DONE, SUM) if name.endswith(end))
                self._lanes.put_first(folder, (partner,))
            self._hold(folder, name, finding, now, summary)
        elif isinstance(finding, Refusal):
            self._reject(Reject(folder, name, finding.code, finding.problems), finding.sidecar, now, summary)
        elif isinstance(finding, Inner):
            self.new_directories.append((folder, name))
        elif isinstance(finding, Gone):
            self._holds.release(folder.absolute(name))

    def _hold(self, folder: Folder, name: str, held: Held, now: float, summary: Summary) -> None:
        hold = self._holds.find(folder.absolute(name))
        if hold is None or hold.why is not held.why:
            first_seen = hold.first_seen if hold else now
            since = hold.since if hold else datetime.now(UTC)
            hold = Hold(folder, name, held.why, held.reason, since, first_seen)
        hold.reason, hold.watched, hold.beside = held.reason, held.watched, held.beside
        settle_seconds = folder.settle_seconds or self._inspector.settle_seconds
        self._holds.keep(hold, next_look(self._holds, hold, now, settle_seconds))
        summary.held += 1

    def _hand_in(self, ready: list[Ready], now: float, summary: Summary) -> None:
        entries = self._outbox.reserve([_wanted(file) for file in ready])
        claims = [
            claim
            for file, entry in zip(ready, entries, strict=True)
            if (claim := self._claim(file, entry, now, summary)) is not None
        ]
        if claims:
            self.pause = None
        self._take_all([claim for claim in claims if not claim.file.folder.is_kept], now, summary)
        for claim in claims:
            if claim.file.folder.is_kept:
                self._settle_answer(claim, self.keeping.take(claim.file, *claim.drop), now, summary)

    def _turn_over(self, now: float, summary: Summary) -> None:
        """The last batch is done with, and the next one looked at."""
        self.finish(now, summary)
        if (coming := self._lanes.peek(self.batch)) is not None:
            self._inspector.look_ahead(*coming)

    def _take_all(self, claims: Sequence[Claim], now: float, summary: Summary) -> None:
        """All of them become tasks in one commit."""
        if not claims:
            self._turn_over(now, summary)
            return
        if len(claims) >= MANY:
            self._outbox.make_way(len(self._lanes))
        haul = self._take([claim.drop for claim in claims], partial(self._turn_over, now, summary))
        if len(claims) >= MANY:
            self._outbox.make_way()
        names: dict[str, set[str]] = {}
        for claim in claims:
            names.setdefault(claim.file.folder.path, set()).add(claim.file.name)
        self._under_way = UnderWay(claims, haul, names)

    def _settle_answer(self, claim: Claim, answer: Task | RunnerError | Held, now: float, summary: Summary) -> None:
        if claim.file.folder.dedupe and _lost_race(claim, answer):
            self._outbox.release(claim.entry)
            self._lanes.put_first(claim.file.folder, (claim.file.name,))
        elif isinstance(answer, Task):
            self._note_taken(claim, answer, now, summary)
        elif isinstance(answer, Held):
            self._outbox.release(claim.entry)
            self._hold(claim.file.folder, claim.file.name, answer, now, summary)
        else:
            self._outbox.release(claim.entry)
            self._note_refused(claim.file, answer, now, summary)

    def _forget_reasons(self) -> None:
        """Of files that were in the error folder before; a look for each folder, not for each file."""
        for folder, names in self._retaken.values():
            self._rejects.forget(folder, names)
        self._retaken.clear()

    def _claim(self, file: Ready, entry: str | None, now: float, summary: Summary) -> Claim | None:
        try:
            claim = Claim(file, entry, self._claims.make(file, entry))
            if not (file.folder.dedupe and entry):
                return claim
            found = self.duplicates.look(file, claim.drop[0])
            if isinstance(found, Submission):
                claim.drop = found, claim.drop[1]
                return claim
            self._settle_duplicate(claim, found, now, summary)
        except RunnerError as error:
            self._note_refused(file, error, now, summary)
        except OSError as error:
            reason = f"it cannot be read: {error.strerror or error}"
            self._hold(file.folder, file.name, Held(Why.UNREADABLE, reason), now, summary)
        self._outbox.release(entry)
        return None

    def _settle_duplicate(self, claim: Claim, found: Task | Held, now: float, summary: Summary) -> None:
        """It has the content of an earlier task: of one that runs, or of one whose result is there."""
        file = claim.file
        if isinstance(found, Held):
            self._hold(file.folder, file.name, found, now, summary)
            return
        assert claim.entry is not None
        path = file.folder.absolute(file.name)
        if not self.duplicates.show(file, found, claim.entry):
            self._lanes.add(file.folder, (file.name,))
            return
        self._holds.release(path)
        self._remove_beside(file)
        self._remember(path, found.id)
        summary.duplicates += 1
        _log.info("%s has the same content as task %s, whose result it gets", path, found.id)

    def _wait(self, error: Unavailable, now: float) -> None:
        """Nothing can be taken now: all folders wait."""
        if self.pause is None:
            _log.warning("no file is taken from the inbox until this is over: %s", error)
        self.pause = Pause(error.code, str(error), now + min(error.retry_after_seconds, LONGEST_PAUSE_SECONDS))

    def _note_taken(self, claim: Claim, task: Task, now: float, summary: Summary) -> None:
        file, folder = claim.file, claim.file.folder
        path = folder.absolute(file.name)
        self._holds.release(path)
        self._lanes.clear(folder)
        if folder.is_kept:
            if task.drop is None or task.drop.outbox != claim.entry:
                self._outbox.release(claim.entry)  # it was taken before a crash
            if folder.supersede:
                self.succession.follow(path, task)
            summary.taken += 1
            return
        if file.sidecar is not None:
            self._forget_sidecar(folder.absolute(file.sidecar))
        if task.status is Status.FAILED:
            self._note_not_taken(file, task, now, summary)
            return
        if "/" in file.name:
            self._emptied.add((folder.path, file.name.rpartition("/")[0]))
        if file.companions:
            self._remove_beside(file)
        self._remember(path, task.id)
        if folder.supersede:
            self.succession.follow(path, task)
        summary.taken += 1
        self._retaken.setdefault(folder.path, (folder, []))[1].append(file.name)

    def _remember(self, path: str, task_id: str) -> None:
        self.taken[path] = task_id
        if len(self.taken) > REMEMBERED:
            self.taken.popitem(last=False)

    def _remove_beside(self, file: Ready) -> None:
        """The marker and the checksum of a file that was taken have done their work."""
        for name in file.companions:
            self._files.try_remove(file.folder.absolute(name))
            self._holds.release(file.folder.absolute(name))

    def _note_not_taken(self, file: Ready, task: Task, now: float, summary: Summary) -> None:
        """The task was recorded, and then its file could not be moved. One that has changed or is gone is looked at
        anew; one that is still the same would fail the same way again at once."""
        try:
            status = os.lstat(file.folder.absolute(file.name))
            same = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) == file.seen.content
        except OSError:
            same = False
        if same and task.error is not None:
            self._hold(file.folder, file.name, Held(Why.FIXED, task.error.message), now, summary)
        else:
            self._lanes.add(file.folder, (file.name,))

    def remove_emptied(self, now: float) -> None:
        """Directories that files were taken from go when they are empty and nothing has happened in them for a while.
        `now`: seconds since 1970, as in file times."""
        for top, below in sorted(self._emptied, key=lambda place: -len(place[1])):
            if remove_if_idle(f"{top}/{below}", now):
                self._emptied.discard((top, below))
                if "/" in below:
                    self._emptied.add((top, below.rpartition("/")[0]))

    def _forget_sidecar(self, path: str) -> None:
        self._holds.release(path)
        if not is_utf8(path):
            # The task cannot name it exactly, so whoever took the input could not remove it.
            self._files.try_remove(path)

    def _note_refused(self, file: Ready, error: RunnerError, now: float, summary: Summary) -> None:
        if self._is_circumstance(file, error, now):
            self._lanes.put_first(file.folder, (file.name,))
        elif self._may_get_a_sidecar(file, error, now):
            reason = f"its parameters do not suffice, and no {shown(sidecar_of(file.name))} is there: {error}"
            self._hold(file.folder, file.name, Held(Why.PARAMETERS, reason), now, summary)
        else:
            self._refuse(file, Reject(file.folder, file.name, error.code, problems_of(error)), now, summary)

    def _is_circumstance(self, file: Ready, error: RunnerError, now: float) -> bool:
        """Whether the file is not at fault; then its folder, or everything, waits."""
        if isinstance(error, Unavailable):
            self._wait(error, now)
        elif isinstance(error, LimitReached):
            self._lanes.block(file.folder, error.code, str(error), now, error.retry_after_seconds)
        elif isinstance(error, UnknownHandler) and not file.folder.documents:
            self._lanes.block(file.folder, error.code, str(error), now)
        else:
            return False
        return True

    def _may_get_a_sidecar(self, file: Ready, error: RunnerError, now: float) -> bool:
        if file.sidecar is not None or file.folder.documents or not isinstance(error, InvalidSubmission):
            return False
        if not any(problem.pointer.startswith("/payload") for problem in error.problems):
            return False
        hold = self._holds.find(file.folder.absolute(file.name))
        return hold is None or now - hold.first_seen < SIDECAR_GRACE_SECONDS

    def _refuse(self, file: Ready, reject: Reject, now: float, summary: Summary) -> None:
        if not file.folder.is_kept:
            self._reject(reject, file.sidecar, now, summary)
            return
        reason = "; ".join(reject.problems)
        self.keeping.refuse(file, reason)
        self._holds.release(file.folder.absolute(file.name))
        summary.refused += 1
        _log.info("%s was not taken: %s", file.folder.absolute(file.name), reason)

    def _reject(self, reject: Reject, sidecar: str | None, now: float, summary: Summary) -> None:
        if reject.folder.is_kept:
            reason = f"it is refused: {'; '.join(reject.problems)}"
            self._hold(reject.folder, reject.name, Held(Why.FIXED, reason), now, summary)
            return
        try:
            self._rejects.move(reject, datetime.now(UTC), sidecar)
        except FileNotFoundError:
            self._holds.release(reject.folder.absolute(reject.name))
        # Around one dropped file: the folder may be read-only or full, and the others must not wait for it.
        except OSError as error:
            reason = f"it is refused ({'; '.join(reject.problems)}) and cannot be moved aside: {error.strerror}"
            self._hold(reject.folder, reject.name, Held(Why.UNREADABLE, reason), now, summary)
        else:
            self._holds.release(reject.folder.absolute(reject.name))
            self.taken.pop(reject.folder.absolute(reject.name), None)
            if sidecar is not None:
                self._holds.release(reject.folder.absolute(sidecar))
            summary.refused += 1
            _log.info("%s was not taken: %s", reject.folder.absolute(reject.name), "; ".join(reject.problems))


def _wanted(file: Ready) -> Wanted:
    handler = file.folder.handler or str((file.payload or {}).get("type", ""))
    return Wanted(file.folder.user_id, handler, file.name, file.is_new)


def _lost_race(claim: Claim, answer: Task | RunnerError | Held) -> bool:
    """Whether another file of the same content became a task just before; this one is still in its folder."""
    submission, origin = claim.drop
    if submission.unique_key is None:
        return False
    return isinstance(answer, KeyConflict) or (isinstance(answer, Task) and answer.id != origin.task_id)


def remove_if_idle(directory: str, now: float) -> bool:
    """Whether the directory is not there any more: it is removed if it is empty and at rest. Somebody may be about to
    put something into a fresh one."""
    try:
        if now - os.stat(directory).st_mtime < IDLE_SECONDS:
            return False
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        return error.errno not in (errno.ENOTEMPTY, errno.EEXIST)
    return True
