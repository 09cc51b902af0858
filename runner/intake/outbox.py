"""The outbox: for every dropped file a folder with what became of it, so that a person needs nothing but folders.

The entry's name is settled when the file is taken and kept in the task (`drop.outbox`), so that whatever is done again
after a crash lands in the same place: `<name>`, or `<name>.2` where that is taken. What a failed task was made from
goes back to the error folder of its inbox. How an entry looks is in `entries`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

from pydantic_core import to_json

from runner.config import OutboxConfig
from runner.errors import Degraded
from runner.intake.entries import Entries, Mark, number_entry
from runner.intake.folders import After, Folders
from runner.intake.names import entry_of, is_plain, path_of
from runner.intake.porter import Porter
from runner.intake.rejects import Reject, Rejects, problems_of_task
from runner.store import Layout, Store, TaskQuery, Transition
from runner.store.query import MAX_PAGE_SIZE
from runner.task import Drop, Source, Status, Task

LIVE_AFTER_SECONDS: Final = 1.0
"""A task that runs for so long gets its entry while it runs, refreshed as often."""
RETRY_SECONDS: Final = 5.0
MAX_BATCH: Final = 1024
WAY_SECONDS: Final = 0.5
"""For so long after a large batch of files, in case another follows, entries are written now and then only."""
FEW: Final = 256
"""So many of them at a time by this process, whose system calls would be in the way."""
FEW_SECONDS: Final = 0.1
MAX_REMEMBERED: Final = 4096
"""So many ended tasks are kept until their entries are written; of more only the ids, and they are read again."""
MAX_BEHIND: Final = 50_000
"""With more entries to write than this, the files that are being taken get no precedence any more."""
MAX_FAILED: Final = 10_000
CLOSE_SECONDS: Final = 2.0
"""So long a stop waits for entries; what is not written then is caught up with at the next start."""
NOT_TAKEN: Final = "input_missing"
"""The code of a task whose file was changed or gone when it was to be taken: what is in the inbox now is another."""

_log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """A file that is to have an entry. `name`: its path below its folder; `is_new`: no entry of that name is there."""

    user_id: str
    handler: str
    name: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """What one pass did: entries of ended tasks, and of running ones."""

    ended: int = 0
    refreshed: int = 0


class Names:
    """Gives out the names of entries. `reserve` on the inbox's thread, `release` on any."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._reserved: set[str] = set()
        self._released: deque[str] = deque()

    def reserve(self, wanted: Iterable[Wanted]) -> list[str]:
        """The entries for files about to be taken, relative to the data directory. `is_new` is believed if it was seen
        after the last call, when there was no such entry and nobody has let go of one since."""
        released = {self._released.popleft() for _ in range(len(self._released))}
        self._reserved -= released
        return [
            self._reserve(entry_of(user_id, handler, name), is_new, released)
            for user_id, handler, name, is_new in wanted
        ]

    def _reserve(self, entry: str, is_new: bool, released: set[str]) -> str:
        is_free = is_new and entry not in released and entry not in self._reserved
        if not is_free and self._is_taken(entry):
            entry = number_entry(entry, self._free_number(entry))
        self._reserved.add(entry)
        return entry

    def keep(self, entries: Iterable[str]) -> None:
        """These are given out already, to tasks from before the start."""
        self._reserved.update(entries)

    def release(self, entry: str | None) -> None:
        """From here on the disk says whether it is taken."""
        if entry is not None:
            self._released.append(entry)

    def _is_taken(self, entry: str) -> bool:
        return entry in self._reserved or os.path.lexists(f"{self._layout.data}/{entry}")

    def _free_number(self, entry: str) -> int:
        """A free one above 1, by doubling and halving: a name that comes ten thousand times costs some 28 looks."""
        taken, free = 1, 2
        while self._is_taken(number_entry(entry, free)):
            taken, free = free, free * 2
        while free - taken > 1:
            middle = (taken + free) // 2
            taken, free = (middle, free) if self._is_taken(number_entry(entry, middle)) else (taken, middle)
        return free


class Outbox:
    """Writes entries in a thread of its own. `hear` is told of transitions and only queues them.

    Its system calls compete with those by which files are taken. So while many are (`make_way`) it writes only a few
    entries now and then, until the porter does that, and the rest when it is over: what waits to become a task comes
    first.
    """

    def __init__(
        self,
        config: OutboxConfig,
        store: Store,
        folders: Folders,
        porter: Porter,
        flush_logs: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._enabled = config.enabled
        self._store = store
        self._layout = store.layout
        self._folders = folders
        self._flush_logs = flush_logs
        self._clock = clock
        files, layout = store.files, store.layout
        self._porter = porter
        self._names = Names(layout)
        self._entries = Entries(files, layout, link=files.link_or_copy if config.link == "hard" else files.copy)
        self._mark = Mark(files, layout)
        self._rejects = Rejects(files, f"{layout.tmp}/.outbox-reason")
        self._news: SimpleQueue[list[Transition] | None] = SimpleQueue()
        self._ended: dict[str, Task | None] = {}
        self._way_until = 0.0
        self._coming = 0
        self._closing = threading.Event()
        self._running: dict[str, tuple[Task, float]] = {}
        self._failed: dict[str, Task | None] = {}
        self._next_live = self._next_retry = 0.0
        self._thread = threading.Thread(target=self.run, name="outbox", daemon=True)
        self.failure: Exception | None = None

    def reserve(self, wanted: Sequence[Wanted]) -> list[str | None]:
        """The entry for each file about to be taken; None if there is to be none. The inbox's thread."""
        if not self._enabled:
            return [None] * len(wanted)
        plain = {handler for handler in {one.handler for one in wanted} if is_plain(handler)}
        has_entry = [one.handler in plain for one in wanted]
        entries = iter(self._names.reserve([one for one, has in zip(wanted, has_entry, strict=True) if has]))
        return [next(entries) if has else None for has in has_entry]

    def release(self, entry: str | None) -> None:
        """The file was not taken after all."""
        self._names.release(entry)

    def make_way(self, coming: int = 0) -> None:
        """Many files are being taken, and at least so many more after them. The inbox's thread."""
        self._coming = max(self._coming, coming)
        self._way_until = self._clock() + WAY_SECONDS

    def hear(self, transitions: Iterable[Transition]) -> None:
        """Tasks reached new versions. On the thread that has synced; quick."""
        # What has just come waits, and has no entry yet.
        news = [it for it in transitions if it.task.drop is not None and it.before is not None]
        if news:
            self._news.put(news)

    def recover(self) -> int:
        """Before anything is taken: the names that live tasks have are reserved, and the entries that a crash
        prevented are written. Returns how many ended tasks were looked at."""
        self._names.keep(task.drop.outbox for task in self._store.live() if task.drop and task.drop.outbox)
        if not self._enabled:
            self._mark.remove()
            return 0
        since = self._mark.read()
        ended = [task for task in self._ended_since(since) if task.drop] if since else []
        for task in ended:
            self._settle(task)
        self._mark.write(clean=False, now=datetime.now(UTC))
        return len(ended)

    def _ended_since(self, since: datetime) -> Iterator[Task]:
        query = TaskQuery(source=Source.INBOX, completed_after=since, size=MAX_PAGE_SIZE)
        while True:
            page = self._store.list(query)
            yield from page.tasks
            if page.next_cursor is None:
                return
            query = query.model_copy(update={"cursor": page.next_cursor})

    def start(self) -> None:
        """Begins to write entries."""
        self._thread.start()

    def close(self) -> None:
        """Writes what is left, as far as two seconds suffice, and ends the thread."""
        self._news.put(None)
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def run(self) -> None:
        """Writes entries until `close`; the thread's body."""
        goes_on = True
        while goes_on:
            batch, goes_on = self._next_batch()
            self.run_once(batch)
        deadline = self._clock() + CLOSE_SECONDS
        while self._ended and self._clock() < deadline:
            self.run_once(())
        self._write_mark(clean=not self._ended)
        self._porter.close()

    def run_once(self, transitions: Sequence[Transition]) -> Summary:
        """Deals with a batch of news, with running tasks, and with what failed before, as far as that is due."""
        now = self._clock()
        self._sort(transitions, now)
        coming, self._coming = self._coming, 0
        if self._enabled:
            self._porter.expect(coming)
        ended = {**self._take_ended(now), **self._take_failed(now)}
        if ended:
            self._flush_logs()
        for task_id in self._deliver_many(tuple(ended)):
            del ended[task_id]
        for task in self._find_all(ended):
            self._settle(task)
        refreshed = self._refresh_running(now)
        if self._news.empty() and not self._ended:
            self._write_mark(clean=False)
            self._porter.rest()
        return Summary(len(ended), refreshed)

    def _next_batch(self) -> tuple[list[Transition], bool]:
        batch: list[Transition] = []
        if self._makes_way(self._clock()):
            self._closing.wait(FEW_SECONDS)
        try:
            news = self._news.get(timeout=self._patience())
            while news is not None:
                batch += news
                if len(batch) >= MAX_BATCH:
                    return batch, True
                news = self._news.get_nowait()
        except Empty:
            return batch, True
        return batch, False

    def _patience(self) -> float | None:
        """How long to wait for news, in seconds."""
        if self._ended:
            return 0.0
        return LIVE_AFTER_SECONDS if self._running or self._failed or self._porter.is_up else None

    def _makes_way(self, now: float) -> bool:
        return now < self._way_until and len(self._ended) < MAX_BEHIND and not self._closing.is_set()

    def _sort(self, transitions: Iterable[Transition], now: float) -> None:
        """What ended gets its entry when its turn comes; what runs is remembered, what was deleted is removed."""
        for _, task, removed in transitions:
            if task.status is Status.PROCESSING and not removed:
                self._running[task.id] = task, self._running.get(task.id, (task, now))[1]
                continue
            self._running.pop(task.id, None)
            if removed:
                self._ended.pop(task.id, None)
                self._remove(task)
            elif task.is_terminal:
                self._ended[task.id] = task if len(self._ended) < MAX_REMEMBERED else None

    def _take_ended(self, now: float) -> dict[str, Task | None]:
        """Those whose entries are to be written now, the first to end first."""
        count = MAX_BATCH
        if self._makes_way(now) and not self._porter.is_ready:
            count = 0 if self._porter.is_up else FEW
        return {task_id: self._ended.pop(task_id) for task_id in list(islice(self._ended, count))}

    def _find_all(self, wanted: Mapping[str, Task | None]) -> list[Task]:
        found = (task or self._find(task_id) for task_id, task in wanted.items())
        return [task for task in found if task is not None and task.is_terminal]

    def _find(self, task_id: str) -> Task | None:
        try:
            return self._store.find(task_id)
        except Degraded as error:
            self._try_later(task_id, None, error)
            return None

    def _take_failed(self, now: float) -> dict[str, Task | None]:
        if not self._failed or now < self._next_retry:
            return {}
        failed, self._failed = self._failed, {}
        return failed

    def _deliver_many(self, task_ids: Sequence[str]) -> Iterable[str]:
        """Of very many, those whose entries were written by the porter."""
        delivered = self._porter.deliver(task_ids) if self._enabled else {}
        for task_id, said in delivered.items():
            self._dispose(task_id, said.user_id, said.path)
            self._mark.note(datetime.fromisoformat(said.completed_at))
            self._names.release(said.entry)
        return delivered

    def _settle(self, task: Task) -> None:
        entry = task.drop.outbox if task.drop else None
        if task.status is Status.FAILED and not task.attempts and task.error and task.error.code == NOT_TAKEN:
            self._names.release(entry)
            return
        try:
            if task.status is Status.FAILED:
                self._give_back(task)
            if self._enabled and entry is not None:
                self._entries.publish(task, entry)
            if task.status is Status.COMPLETED and task.drop:
                self._dispose(task.id, task.user_id, path_of(task.drop.path, task.drop.raw))
        # Around one dropped file: its folder may be full, read-only or gone, and the others must not wait for it.
        except OSError as error:
            self._note_failure(task, error)
        else:
            self._mark.note(task.completed_at)
            self._names.release(entry)

    def _note_failure(self, task: Task, error: OSError) -> None:
        if self.failure is None or str(self.failure) != str(error):
            _log.warning("the outbox entry of task %s cannot be written; trying again: %s", task.id, error)
        self._try_later(task.id, task, error)

    def _try_later(self, task_id: str, task: Task | None, error: Exception) -> None:
        self.failure = error
        self._next_retry = self._clock() + RETRY_SECONDS
        # What no longer fits is found again at the next start, because the mark stays before it.
        if len(self._failed) < MAX_FAILED:
            self._failed[task_id] = task

    def _refresh_running(self, now: float) -> int:
        if now < self._next_live or not self._enabled:
            return 0
        self._next_live = now + LIVE_AFTER_SECONDS
        long_running = [task for task, since in self._running.values() if now - since >= LIVE_AFTER_SECONDS]
        if long_running:
            self._flush_logs()
        for task in long_running:
            self._refresh(task)
        return len(long_running)

    def _refresh(self, task: Task) -> None:
        try:
            now = self._store.find(task.id)
            if now is not None and now.drop and now.drop.outbox and not now.is_terminal:
                self._entries.publish(now, now.drop.outbox)
        except (OSError, Degraded) as error:
            self.failure = error

    def _remove(self, task: Task) -> None:
        self._failed.pop(task.id, None)
        if task.drop and task.drop.outbox:
            self._names.release(task.drop.outbox)
            self._entries.remove(task, task.drop.outbox)

    def _write_mark(self, *, clean: bool) -> None:
        if not self._enabled or self._failed or not (clean or self._mark.is_due):
            return
        try:
            self._mark.write(clean=clean, now=datetime.now(UTC))
        except OSError as error:
            self.failure = error
        else:
            self.failure = None

    def _dispose(self, task_id: str, user_id: str, path: str) -> None:
        """What a completed task was made from goes, where its folder is to be so. `path`: where it lay."""
        if not self._folders.further:
            return
        folder = self._folders.find_further(self._layout.absolute(path))
        if folder is not None and folder.after is After.DELETE:
            self._store.files.remove_tree(self._layout.upload(user_id, task_id))

    def _give_back(self, task: Task) -> None:
        """What a failed task was made from lies in the error folder too."""
        drop = task.drop
        place = self._folders.locate(self._layout.absolute(path_of(drop.path, drop.raw))) if drop else None
        if drop is None or place is None or place.folder is None or place.folder.is_kept or task.error is None:
            return
        reject = Reject(place.folder, place.name, task.error.code, problems_of_task(task), task.id)
        if place.folder.documents:
            self._rejects.explain(reject, datetime.now(UTC))
            return
        source = self._layout.absolute(task.input_files[0]) if task.input_files else None
        if source and os.path.exists(source) and not self._rejects.is_back(reject, source):
            self._rejects.give_back(reject, source, _parameters(task, drop), datetime.now(UTC))


def _parameters(task: Task, drop: Drop) -> bytes | None:
    return to_json(task.payload, indent=2) + b"\n" if drop.sidecar is not None else None
