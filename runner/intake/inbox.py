"""The inbox: notices dropped files, and hands each one in when it is whole.

A watcher hints, a scan of everything every few seconds is the truth. What either finds goes into the lane of its
folder; from the lanes files are looked at in turn, and each is taken, held (to be looked at again), or moved to the
error folder. Files that only the circumstances keep from being taken stay where they are, and in their lane.

All of this happens on one thread, in `run`. The watcher's thread and the committer's only put notices into a queue.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from runner.config import InboxConfig
from runner.handlers import Handlers
from runner.intake.admission import Origin, Submission
from runner.intake.door import Haul
from runner.intake.explanation import Explanation, Forecaster, Knowledge, explain, report
from runner.intake.folders import Folder, Folders
from runner.intake.holds import Holds
from runner.intake.inspection import Inspector
from runner.intake.keeping import Keeping
from runner.intake.lanes import Lanes
from runner.intake.mounts import Mounts
from runner.intake.outbox import Outbox
from runner.intake.porter import Porter
from runner.intake.rounds import SOON_SECONDS, Rounds
from runner.intake.taking import MANY, MAX_BATCH, Summary, Taking
from runner.intake.watcher import Watcher
from runner.store import Store, Transition
from runner.task import Source, Status, Task

MANY_HINTS: Final = 2048
"""After more hints than this at once the kernel's queue may have overflowed: everything is scanned when they stop."""

FULL_SECONDS: Final = 2.0
"""Room for a whole batch is waited for so long; then what there is room for is taken."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    """What another thread tells the inbox. `scan`: everything must be scanned, no event having announced it. `retry`:
    what blocked a folder may be over."""

    changed: frozenset[str] | set[str] = frozenset()
    removed: frozenset[str] | set[str] = frozenset()
    scan: bool = False
    retry: bool = False
    stop: bool = False


class Takes(Protocol):
    """Where files are handed in: many that move, each on its own, and one that was copied."""

    def take_ahead(self, pairs: Sequence[tuple[Submission, Origin]], meanwhile: Callable[[], None]) -> Haul:
        """See `taking.Take`."""

    def submit(self, submission: Submission, origin: Origin) -> Task:
        """See `keeping.Submit`."""


class Inbox:
    """Feeds `door` with dropped files. `prepare`, `start` and `close` are called once, the others from any thread.

    `failed` is called on the inbox's thread if its loop ends by an error: nothing is noticed any more.
    """

    def __init__(
        self,
        config: InboxConfig,
        store: Store,
        handlers: Handlers,
        folders: Folders,
        outbox: Outbox,
        door: Takes,
        porter: Porter,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._claim_ahead = config.claim_ahead
        self._store = store
        self._handlers = handlers
        self._failed = failed
        self.folders = folders
        self.lanes = Lanes()
        self.holds = Holds()
        keeping = Keeping(store, door.submit)
        self.rounds = Rounds(
            folders, self.lanes, self.holds, Mounts(), config.rescan_seconds, config.force_polling, keeping.seen
        )
        inspector = Inspector(
            self.rounds.mounts, self.holds, config.settle_seconds, porter, unfinished=self.rounds.unfinished
        )
        self._porter = porter
        # One of them may wait for its slots, one move, and one be on its way to the disk.
        self._batch = min(MAX_BATCH, (config.claim_ahead + 3) // 4)
        self.taking = Taking(store, handlers, self.lanes, inspector, outbox, door.take_ahead, keeping, self._batch)
        self.watcher = None if config.force_polling is True else self._make_watcher(config)
        self._notices: SimpleQueue[Notice] = SimpleQueue()
        self._thread = threading.Thread(target=self._run_guarded, name="inbox", daemon=True)
        self._roots: dict[str, tuple[int, int]] = {}
        self._ahead = 0
        self._is_full = False
        self._took_at = time.monotonic()
        self.trouble = ""

    def prepare(self) -> None:
        """Makes the folders and counts what was taken earlier; before tasks are started. Raises `OSError`."""
        self.taking.succession.recover(self.folders)
        self._ahead = sum(task.source is Source.INBOX and task.status is Status.PENDING for task in self._store.live())
        self._prepare_folders()

    def start(self) -> None:
        """Begins to take files."""
        self._thread.start()
        if self.watcher is not None:
            self.watcher.start()

    def close(self) -> None:
        """Ends after the batch at hand; files stay where they are."""
        if self.watcher is not None:
            self.watcher.close()
        self._notices.put(Notice(stop=True))
        if self._thread.ident is not None:
            self._thread.join()

    def run(self) -> None:
        """Takes files until `close`; the thread's body."""
        while self._receive(self._seconds_to_wait()):
            self.run_once()
        self.taking.finish(time.monotonic(), Summary())

    def run_once(self) -> Summary:
        """One pass: scans what is due, looks again at what is held, and takes at most one batch."""
        now, summary = time.monotonic(), Summary()
        if now >= self.rounds.next_due():
            # What is under way is still in its folder, and would be taken for something that no event had announced.
            self.taking.finish(now, summary)
            summary.found = self._scan(now)
            self._porter.expect(summary.found)
        for hold in self.holds.due(now):
            self.lanes.put_first(hold.folder, (hold.name,))
        self._take(now, summary)
        summary.found += self._look_into_new(now)
        self._porter.rest()
        return summary

    def _take(self, now: float, summary: Summary) -> None:
        # What is in the lanes may never be taken, and what waits never start: that must not keep others out for ever.
        if self._may_take() or (self._room() > 0 and now >= self._took_at + FULL_SECONDS):
            self._took_at = now
            self.taking.run_once(self._room(), now, summary)
        else:
            self.taking.finish(now, summary)

    def _run_guarded(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self._porter.close()

    # What other threads tell

    def hear(self, transitions: Iterable[Transition]) -> None:
        """Tasks reached new versions. On the thread that has synced; quick."""
        for before, task, removed in transitions:
            waits, has_waited = task.status is Status.PENDING and not removed, before is Status.PENDING
            if waits is not has_waited and task.source is Source.INBOX:
                self._ahead += waits - has_waited
        if self._is_full and self._may_take():
            self._notices.put(Notice())

    def explain(self, path: str, forecast: Forecaster = lambda _type, _user_id: None) -> Explanation:
        """Why the file at `path` (absolute) is not a task, or which task it is. `forecast`: who knows how long tasks
        of a type and user take. Any thread."""
        return explain(os.path.normpath(path), self._knowledge(), time.monotonic(), forecast)

    def report(self) -> dict[str, Any]:
        """The inbox as JSON: what waits in each folder and why, and how files are noticed. Any thread."""
        return report(self._knowledge(), self.trouble)

    def _knowledge(self) -> Knowledge:
        return Knowledge(
            self.folders, self.lanes, self.holds, self.rounds, self.taking, self.watcher, self._claim_ahead, self._ahead
        )

    def refresh(self) -> None:
        """Handlers came, changed or went: their folders are made, and waiting files tried again."""
        self._notices.put(Notice(scan=True, retry=True))

    def _receive(self, timeout_seconds: float) -> bool:
        """Waits for notices and works them into the lanes; False when it is time to stop."""
        try:
            notice = self._notices.get(timeout=timeout_seconds) if timeout_seconds > 0 else self._notices.get_nowait()
            while not notice.stop:
                self._heed(notice)
                notice = self._notices.get_nowait()
        except Empty:
            return True
        return False

    def _heed(self, notice: Notice) -> None:
        now = time.monotonic()
        if notice.scan:
            self.rounds.ask(now, fresh=True)
        if notice.retry:
            self.lanes.unblock()
        if len(notice.changed) > MANY_HINTS:
            self.rounds.ask(now + SOON_SECONDS)
        if not self._roots.keys().isdisjoint(notice.removed):
            self.rounds.ask(now)
        for folder, names in self.folders.sort(notice.changed):
            self.rounds.heard(folder)
            if names:
                self.lanes.add(folder, names)
        if len(notice.changed) >= MANY:
            self._porter.expect(len(self.lanes))
        for path in notice.removed if len(self.holds) else ():
            self.holds.release(path)

    # How much, and when

    def _room(self) -> int:
        return self._claim_ahead - self._ahead

    def _may_take(self) -> bool:
        """Whether `claim_ahead` leaves room for all that is to be looked at, or for a batch worth its commit."""
        if self._room() < self._wanted():
            self._is_full = True
        # Read again: room made before the flag was up has not been announced, and is seen here.
        if self._is_full and self._room() >= self._wanted():
            self._is_full = False
        return not self._is_full

    def _wanted(self) -> int:
        return min(self._batch, max(len(self.lanes), 1))

    def _seconds_to_wait(self) -> float:
        if self.taking.is_under_way:
            return 0.0
        now = time.monotonic()
        self.rounds.is_watching = self.watcher is not None and self.watcher.is_watching
        due = [self.rounds.next_due()]
        if (hold := self.holds.next_due()) is not None:
            due.append(hold)
        patience = 0.0 if self._may_take() else self._took_at + FULL_SECONDS
        if self._room() > 0 and (lane := self.lanes.next_due(now)) is not None:
            pause = self.taking.pause
            due.append(max(lane, patience, pause.until if pause else 0.0))
        return max(min(due) - now, 0.0)

    # Folders

    def _make_watcher(self, config: InboxConfig) -> Watcher:
        return Watcher(
            self._existing_roots,
            lambda changed, removed: self._notices.put(Notice(changed, removed)),
            lambda: self._notices.put(Notice(scan=True)),
            step_ms=config.watch_step_ms,
            debounce_ms=config.watch_debounce_ms,
        )

    def _existing_roots(self) -> list[str]:
        paths = [self.folders.root, *(folder.path for folder in self.folders.further)]
        return [path for path in paths if os.path.isdir(path)]

    def _scan(self, now: float) -> int:
        try:
            self._prepare_folders()
            self.trouble = ""
        # The disk may be read-only or away for a while; that is no fault of the files, and the next scan tries again.
        except OSError as error:
            self.trouble = f"the inbox cannot be prepared: {error}"
            _log.warning("%s", self.trouble)
        self.taking.remove_emptied(time.time())
        return self.rounds.run_once(now)

    def _prepare_folders(self) -> None:
        """The inbox and a folder for each handler exist; the watch is on the folders that are there now."""
        files = self._store.files
        files.make_directory(self.folders.root)
        for handler in self._handlers:
            files.make_directory(self.folders.of_handler(handler.name).path)
        roots = {path: _identity(path) for path in self._existing_roots()}
        if self.watcher is not None and self._roots and roots != self._roots:
            self.watcher.restart()
        self._roots = roots

    def _look_into_new(self, now: float) -> int:
        """Directories that appeared: what was in them before the watch reached them, no event tells."""
        new, self.taking.new_directories = self.taking.new_directories, []
        if new:
            self.rounds.ask(now + SOON_SECONDS)
        return sum(self._look_into(folder, name) for folder, name in new)

    def _look_into(self, folder: Folder, name: str) -> int:
        if not folder.documents:
            return self.rounds.look_into(folder, name)
        # What is new beside the handlers' folders is one of those, or a user's, which the scan asked for looks through.
        inner = self.folders.of_handler(name, folder.user_id)
        return 0 if name.startswith("@") else self.rounds.look_into(inner, "")


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
