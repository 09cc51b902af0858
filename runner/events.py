"""News of tasks: numbered events, watchers, and each task's log with its replay.

Whatever happens is told once, by one thread, in this order: written to `logs/<task id>.jsonl` (only what the handler
said: progress and log lines, never a silent task's status), then offered to whoever watches. So a watcher that
lost its place finds in the log all that it has missed.

Events are hints: a watcher that falls 256 behind is reset and closed, and its owner resumes from the last number that
it saw. Numbers grow for ever, across restarts too: the millisecond in the upper bits, the nanosecond within it in the
lower 20. As text (`stream_id`) they are `<ms>-<rest>`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from pydantic_core import from_json, to_json

from runner.store import Transition
from runner.task import Progress, Status, Task, to_values

WATCHER_CAPACITY: Final = 256
PROGRESS_INTERVAL_SECONDS: Final = 0.1
MAX_UNTOLD: Final = 8192
MAX_MESSAGE_CHARACTERS: Final = 64 * 1024

_REST_BITS: Final = 20
_REST_MASK: Final = (1 << _REST_BITS) - 1

_log = logging.getLogger(__name__)


class Kind(StrEnum):
    """What an event tells: the task reached a `STATUS` or was `REMOVED`; the rest is what its handler said."""

    STATUS = "status"
    PROGRESS = "progress"
    LOG = "log"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of news. `user_id` is the task's owner, empty in what `Events.history` returns.

    `data` by kind: status `{type, status, version, attempt, ...}`, progress `{attempt, percentage, stage, message}`,
    log `{attempt, level, message}`, removed `{}`. It is shared by all watchers and must not be changed.
    """

    number: int
    task_id: str
    user_id: str
    kind: Kind
    at: datetime
    data: dict[str, Any]

    @property
    def stream_id(self) -> str:
        """The number as text, `<ms>-<rest>`."""
        return stream_id_of(self.number)


def stream_id_of(number: int) -> str:
    """A number as text, `<ms>-<rest>`."""
    return f"{number >> _REST_BITS}-{number & _REST_MASK}"


def parse_stream_id(text: str) -> int:
    """The number that `text` stands for; "0" is before everything. Raises ValueError."""
    milliseconds, _, rest = text.partition("-")
    if not (milliseconds.isdecimal() and (rest.isdecimal() or not rest) and text.isascii() and len(text) <= 40):
        raise ValueError(f"not an event id: {text!r}")
    return int(milliseconds) << _REST_BITS | min(int(rest or 0), _REST_MASK)


@dataclass(frozen=True, slots=True)
class _Said:
    """News before it is numbered."""

    task_id: str
    user_id: str
    kind: Kind
    data: dict[str, Any]


_Untold = _Said | Transition | threading.Event
"""What waits to be told. An Event asks to be set when all before it has been."""


class Watcher:
    """One listener's bounded queue. Read it from one thread with `get`, or from one coroutine with `receive`.

    `was_reset` says that the queue overflowed: the watcher is then closed, and what it missed is in the history. There
    may be thousands, nearly all of them read by coroutines, so what a thread needs to wait is made when one comes.
    """

    __slots__ = ("_changed", "_closed", "_events", "_lock", "_queue", "_waiting", "task_ids", "user_id", "was_reset")

    def __init__(self, events: Events, task_ids: frozenset[str] | None, user_id: str | None) -> None:
        self.task_ids = task_ids
        self.user_id = user_id
        self.was_reset = False
        self._events = events
        self._queue: deque[Event] = deque()
        self._lock = threading.Lock()
        self._changed: threading.Condition | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come, once the queue is empty."""
        return self._closed

    def get(self, timeout_seconds: float | None = None) -> Event | None:
        """The next event, or None after `timeout_seconds` or when the watcher is closed and empty. Blocks."""
        with self._lock:
            changed = self._changed = self._changed or threading.Condition(self._lock)
            changed.wait_for(lambda: self._queue or self._closed, timeout_seconds)
            return self._queue.popleft() if self._queue else None

    async def receive(self, timeout_seconds: float | None = None) -> Event | None:
        """The same for a coroutine."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            if self._closed:
                return None
            self._waiting = waiting
        await asyncio.wait((waiting,), timeout=timeout_seconds)
        with self._lock:
            return self._queue.popleft() if self._queue else None

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self.receive()) is not None:
            yield event

    def offer(self, event: Event) -> asyncio.Future[None] | None:
        """Queues `event` if it is wanted; returns a future to be resolved in its own loop. Never blocks for long."""
        if not self._wants(event):
            return None
        with self._lock:
            if len(self._queue) < WATCHER_CAPACITY:
                self._queue.append(event)
                return self._wake()
        return self.reset()

    def reset(self) -> asyncio.Future[None] | None:
        """Too much has happened: drops what is queued and closes. Returns as `offer`."""
        with self._lock:
            self._queue.clear()
            self.was_reset = self._closed = True
            return self._wake()

    def close(self) -> None:
        """Nothing more is offered; what is queued can still be read. Any thread, any number of times."""
        self._events.unsubscribe(self)
        with self._lock:
            self._closed = True
            waiting = self._wake()
        if waiting is not None:
            _resolve_in_loops([waiting])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wants(self, event: Event) -> bool:
        return not self._closed and self.user_id in (None, event.user_id)

    def _wake(self) -> asyncio.Future[None] | None:
        if self._changed is not None:
            self._changed.notify_all()
        waiting, self._waiting = self._waiting, None
        return waiting


class Events:
    """Tells what happens. Every method may be called from any thread.

    The thread that tells is started by the first thing that there is to tell and ends with `close`. `is_gone` says
    whether a task has been removed.
    """

    def __init__(self, logs: Path, is_gone: Callable[[str], bool] = lambda task_id: False) -> None:
        self._logs = TaskLogs(logs, is_gone)
        self._untold: deque[_Untold] = deque()
        self._changed = threading.Condition()
        self._index = threading.Lock()
        self._by_task: dict[str, list[Watcher]] = {}
        self._of_all: list[Watcher] = []
        self._held: dict[str, _Said] = {}
        self._quiet_until: dict[str, float] = {}
        self._last_number = 0
        self._thread: threading.Thread | None = None
        self._closed = False
        self._hung_up = False

    def publish_transitions(self, transitions: Iterable[Transition]) -> None:
        """Tasks reached new versions. Costs next to nothing while nobody watches; never waits.

        Where more happens than can be told, whoever watches everything is reset.
        """
        if self._of_all and len(self._untold) >= MAX_UNTOLD:
            self._reset_watchers_of_all()
        elif self._of_all:
            self._tell(transitions)
        elif by_task := self._by_task:
            self._tell([transition for transition in transitions if transition.task.id in by_task])

    def progress(self, task: Task, progress: Progress) -> None:
        """A handler says how far it is. Told at most ten times a second for each task; the last value always is."""
        data: dict[str, Any] = {
            "attempt": task.attempt,
            "percentage": progress.percentage,
            "stage": progress.stage,
            "message": progress.message,
        }
        if progress.metadata:
            data["metadata"] = progress.metadata
        self._wait_for_room()
        self._tell([_Said(task.id, task.user_id, Kind.PROGRESS, data)])

    def log(self, task: Task, level: str, message: str) -> None:
        """A handler says something. `level` is debug, info, warning or error."""
        data = {"attempt": task.attempt, "level": level, "message": _shortened(message)}
        self._wait_for_room()
        self._tell([_Said(task.id, task.user_id, Kind.LOG, data)])

    def subscribe(self, task_ids: Collection[str] | None = None, user_id: str | None = None) -> Watcher:
        """A watcher of the given tasks (None: all), of one user's tasks only where `user_id` is given.

        It sees everything told from now on. After `hang_up` it is closed from the start.
        """
        watcher = Watcher(self, None if task_ids is None else frozenset(task_ids), user_id)
        with self._index:
            if not self._hung_up:
                for watchers in self._places(watcher):
                    watchers.append(watcher)
                return watcher
        watcher.close()
        return watcher

    @property
    def watcher_count(self) -> int:
        """How many watchers there are."""
        with self._index:
            return len({*self._of_all, *(watcher for some in self._by_task.values() for watcher in some)})

    def unsubscribe(self, watcher: Watcher) -> None:
        """`watcher` gets nothing more; `Watcher.close` is how to ask for that."""
        with self._index:
            for watchers in self._places(watcher):
                if watcher in watchers:
                    watchers.remove(watcher)
            for task_id in watcher.task_ids or ():
                if not self._by_task[task_id]:
                    del self._by_task[task_id]

    def history(self, task_id: str, after: int = 0) -> Iterator[Event]:
        """What the task's handler has said so far, with numbers above `after`, oldest first. Reads a file."""
        self.flush()
        return self._logs.read(task_id, after)

    def flush(self) -> None:
        """Returns when all that was said before has been written and told, held-back progress too."""
        if self._thread is None:
            return
        told = threading.Event()
        if self._tell([told]):
            told.wait()
        else:
            self._thread.join()

    def hang_up(self) -> None:
        """Closes every watcher, and those that still come: the process is about to end."""
        with self._index:
            self._hung_up = True
            watchers = {*self._of_all, *(watcher for some in self._by_task.values() for watcher in some)}
        for watcher in watchers:
            watcher.close()

    def close(self) -> None:
        """Tells what is left, hangs up and ends the thread. Nothing said later is told."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self.hang_up()

    def _reset_watchers_of_all(self) -> None:
        with self._index:
            watchers, self._of_all = self._of_all, []
        _resolve_in_loops([waiting for watcher in watchers if (waiting := watcher.reset()) is not None])

    def _places(self, watcher: Watcher) -> list[list[Watcher]]:
        if watcher.task_ids is None:
            return [self._of_all]
        return [self._by_task.setdefault(task_id, []) for task_id in watcher.task_ids]

    def _wait_for_room(self) -> None:
        """A handler that talks faster than the disk writes is slowed down, rather than memory filled."""
        if len(self._untold) >= MAX_UNTOLD:
            with self._changed:
                self._changed.wait_for(lambda: len(self._untold) < MAX_UNTOLD or self._closed)

    def _tell(self, news: Iterable[_Untold]) -> bool:
        """Hands `news` to the thread; False if it is too late for that."""
        with self._changed:
            if self._closed:
                return False
            self._untold.extend(news)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self.run, name="events", daemon=True)
                self._thread.start()
            return True

    def run(self) -> None:
        """Tells until closed; the thread's body."""
        try:
            while not self._closed:
                with self._changed:
                    self._changed.wait_for(lambda: self._untold or self._closed, self._seconds_to_held())
                self.run_once()
            self.run_once()
        finally:
            self._stop_telling()

    def _stop_telling(self) -> None:
        """Whoever waits for the thread goes on, even where a fault ended it."""
        with self._changed:
            self._closed = True
            untold = list(self._untold)
            self._changed.notify_all()
        for told in untold:
            if isinstance(told, threading.Event):
                told.set()

    def run_once(self) -> int:
        """Tells all that waits and is due; returns how many events that were."""
        with self._changed:
            untold = list(self._untold)
            self._untold.clear()
            self._changed.notify_all()
        asked = [news for news in untold if isinstance(news, threading.Event)]
        events = [self._number(said) for said in self._due(_said_in(untold), time.monotonic())]
        if asked or self._closed:
            events += map(self._number, self._held.values())
            self._held.clear()
        self._logs.append(events)
        self._deliver(events)
        for told in asked:
            told.set()
        return len(events)

    def _due(self, untold: Iterable[_Said], now: float) -> Iterator[_Said]:
        """What is to be told now, of `untold` and of what was held back; progress that comes too soon is held back."""
        for said in untold:
            if said.kind is Kind.PROGRESS:
                self._held[said.task_id] = said
                yield from self._released(said.task_id, now)
                continue
            if said.kind is not Kind.LOG and said.task_id in self._held:
                yield self._held.pop(said.task_id)
            yield said
        for task_id in list(self._held):
            yield from self._released(task_id, now)
        self._quiet_until = {task_id: until for task_id, until in self._quiet_until.items() if until > now}

    def _released(self, task_id: str, now: float) -> Iterator[_Said]:
        if self._quiet_until.get(task_id, 0) <= now:
            self._quiet_until[task_id] = now + PROGRESS_INTERVAL_SECONDS
            yield self._held.pop(task_id)

    def _number(self, said: _Said) -> Event:
        milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
        self._last_number = max(self._last_number + 1, milliseconds << _REST_BITS | nanoseconds)
        at = datetime.fromtimestamp((self._last_number >> _REST_BITS) / 1000, UTC)
        return Event(self._last_number, said.task_id, said.user_id, said.kind, at, said.data)

    def _seconds_to_held(self) -> float | None:
        if not self._held:
            return None
        return max(0.0, min(self._quiet_until.get(task_id, 0) for task_id in self._held) - time.monotonic())

    def _deliver(self, events: Iterable[Event]) -> None:
        woken = []
        for event in events:
            with self._index:
                watchers = [*self._by_task.get(event.task_id, ()), *self._of_all]
            woken += [waiting for watcher in watchers if (waiting := watcher.offer(event)) is not None]
        _resolve_in_loops(woken)


class TaskLogs:
    """The files `logs/<task id>.jsonl`: one JSON object a line, append-only, not durable on their own.

    Disk trouble loses lines, never a task: it is logged once until an append succeeds again. A task that `is_gone` has
    no log: an attempt that nobody waits for may go on talking long after it.
    """

    def __init__(self, directory: Path, is_gone: Callable[[str], bool] = lambda task_id: False) -> None:
        self._directory = str(directory)
        self._is_gone = is_gone
        self._failed = False

    def append(self, events: Iterable[Event]) -> None:
        """Adds what handlers said; status and removal are in the task itself."""
        lines: dict[str, list[bytes]] = {}
        for event in events:
            if event.kind in (Kind.PROGRESS, Kind.LOG):
                lines.setdefault(event.task_id, []).append(_line_of(event))
        for task_id, said in lines.items():
            path = self._path(task_id)
            # Asked after the file was made: a removal that comes later takes it away, as it does all of the task's.
            if self._append(path, b"".join(said)) and self._is_gone(task_id):
                self._remove(path)

    def read(self, task_id: str, after: int = 0) -> Iterator[Event]:
        """The events with numbers above `after`; lines that a crash cut short are passed over."""
        try:
            fd = _open_regular(self._path(task_id), os.O_RDONLY)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                _log.warning("the log of task %s cannot be read: %s", task_id, error)
            return
        with open(fd, "rb") as lines:
            for line in lines:
                event = _event_in(line, task_id)
                if event is not None and event.number > after:
                    yield event

    def _path(self, task_id: str) -> str:
        return f"{self._directory}/{task_id}.jsonl"

    def _append(self, path: str, data: bytes) -> bool:
        """Whether the file is a new one."""
        is_new = False
        try:
            fd = _open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            try:
                is_new = os.fstat(fd).st_size == 0
                os.write(fd, data if is_new or _ends_with_newline(fd) else b"\n" + data)
            finally:
                os.close(fd)
            self._failed = False
        except OSError as error:
            if not self._failed:
                _log.warning("cannot write %s, its lines are lost: %s", path, error)
            self._failed = True
        return is_new

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108 a Path for one system call is not worth it


def _shortened(message: str) -> str:
    missing = len(message) - MAX_MESSAGE_CHARACTERS
    return message if missing <= 0 else f"{message[:MAX_MESSAGE_CHARACTERS]}… ({missing} more)"


def _open_regular(path: str, flags: int) -> int:
    """A descriptor of a file of its own: no link is followed, no pipe waited for. Raises `OSError`."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return fd


def _ends_with_newline(fd: int) -> bool:
    return os.pread(fd, 1, os.fstat(fd).st_size - 1) == b"\n"


def _line_of(event: Event) -> bytes:
    return to_json({"id": event.stream_id, "at": event.at, "kind": event.kind, **event.data}) + b"\n"


def _event_in(line: bytes, task_id: str) -> Event | None:
    """The event that `line` holds, or None if it holds none."""
    try:
        data = from_json(line)
        number, at = parse_stream_id(data.pop("id")), datetime.fromisoformat(data.pop("at"))
        return Event(number, task_id, "", Kind(data.pop("kind")), at, data)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _said_in(untold: Iterable[_Untold]) -> Iterator[_Said]:
    for news in untold:
        if isinstance(news, _Said):
            yield news
        elif isinstance(news, Transition) and (said := _status_of(news)) is not None:
            yield said


def _status_of(transition: Transition) -> _Said | None:
    """What a transition tells; None for a running task's progress, which is told as such."""
    before, task, removed = transition
    if removed:
        return _Said(task.id, task.user_id, Kind.REMOVED, {})
    if before is task.status is Status.PROCESSING:
        return None
    return _Said(task.id, task.user_id, Kind.STATUS, describe(task))


def describe(task: Task) -> dict[str, Any]:
    """The data of a status event: what a watcher needs to know of a task, as plain JSON values."""
    fields = {"type", "status", "version", "attempt", "error", "progress", "run_after", "output_files", "updated_at"}
    return to_values(task, fields)


def _resolve_in_loops(waiting: Iterable[asyncio.Future[None]]) -> None:
    """Wakes coroutines from this thread: one call into each loop, however many wait in it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for future in waiting:
        by_loop.setdefault(future.get_loop(), []).append(future)
    for loop, futures in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, futures)


def _resolve(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
