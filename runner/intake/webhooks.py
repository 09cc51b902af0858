"""Webhooks: when a task ends, whoever asked for it is told, by a task of type `http_call`.

So a message survives crashes, is repeated until it is taken, and can be looked at, like any task. What ended is heard
of as it is committed; what a crash kept from becoming a message is found at the next start, by the instant up to which
all is known to be told. A unique key, made of the task and its version, keeps a message from being handed in twice.

The message is that of Standard Webhooks: `type` is task.completed, task.failed or task.cancelled, `timestamp` when that
was, `data` the task, without what is large.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any, Final

from pydantic_core import to_json

from runner.config import WebhooksConfig
from runner.errors import (
    ConfigError,
    CorruptRecord,
    KeyConflict,
    LimitReached,
    Problem,
    RunnerError,
    Unavailable,
    UrlNotAllowed,
)
from runner.intake.admission import Origin, Submission
from runner.store import Store, TaskQuery, Transition
from runner.store.aside import quarantine
from runner.store.committer import Done, Ticket
from runner.store.query import MAX_PAGE_SIZE
from runner.task import Source, Task, to_values
from runner.units import read_instant

HANDLER: Final = "http_call"
METADATA: Final = "webhook"
"""The key of a task's metadata that may hold a URL."""
EVERY: Final = "*"
OPERATOR: Final = "local"
"""Whose the messages are: whoever runs the runner. A user's own limits and turns are for that user's work."""
KEY_PREFIX: Final = "webhook:"
MAX_RESULT_BYTES: Final = 64 * 1024
MAX_BATCH: Final = 256
RETRY_SECONDS: Final = 5.0
MARK_SECONDS: Final = 5.0
DOUBT: Final = timedelta(seconds=60)
"""Tasks are not told of in the order in which they ended; so much before the mark is looked at again."""
LONG_AGO: Final = timedelta(days=1)

_TOLD: Final = frozenset(
    {
        "id", "type", "status", "user_id", "client_id", "queue", "metadata", "source", "original_filename",
        "created_at", "started_at", "completed_at", "attempt", "error", "result", "parent_id", "batch_id", "version",
    }
)  # fmt: skip

_log = logging.getLogger(__name__)

Submit = Callable[[Submission, Origin, Done], None]
Say = Callable[[Task, str, str], None]


@dataclass(frozen=True, slots=True)
class Notice:
    """A message to be handed in: what ended, and who is to be told."""

    task: Task
    url: str

    def submission(self, retries: int) -> Submission:
        """The task that delivers it."""
        event = f"{self.task.id}-{self.task.version}"
        payload = {"url": self.url, "json": message_of(self.task), "sign": True, "insist": True, "message_id": event}
        address = hashlib.sha256(self.url.encode()).hexdigest()[:32]  # a key is shorter than many a URL
        key = f"{KEY_PREFIX}{event}:{address}"
        return Submission(type=HANDLER, payload=payload, unique_key=key, max_retries=retries)


def message_of(task: Task) -> dict[str, Any]:
    """What is said of a task that ended, as plain JSON values."""
    data = to_values(task, set(_TOLD))
    if len(to_json(data["result"])) > MAX_RESULT_BYTES:
        data |= {"result": None, "result_left_out": True}
    data["output_files"] = [path.rpartition("/")[2] for path in task.output_files]
    return {"type": f"task.{task.status}", "timestamp": data["completed_at"], "data": data}


def addresses_of(task: Task, config: WebhooksConfig) -> list[str]:
    """Who is to be told that a task ended; nobody of a message."""
    if not config.enabled or (task.unique_key or "").startswith(KEY_PREFIX):
        return []
    wanted = [config.on_complete.get(task.type), config.on_complete.get(EVERY)]
    if config.from_metadata:
        wanted.append(task.metadata.get(METADATA))
    return list(dict.fromkeys(url for url in wanted if url))


def problems_of(
    metadata: Mapping[str, str], config: WebhooksConfig, outbound: Mapping[str, Any] | None = None
) -> Iterator[Problem]:
    """What is wrong with the address in a submission's metadata, as far as its text tells; `outbound` is the policy in
    the configuration of what delivers."""
    if config.enabled and config.from_metadata and (url := metadata.get(METADATA)):
        from runner.outbound import check_url, read_policy  # they bring a client along, which few submissions need

        try:
            check_url(url, read_policy(outbound))
        except (UrlNotAllowed, ConfigError) as error:
            yield Problem(f"/metadata/{METADATA}", str(error))


class Webhooks:
    """Hands messages in, in a thread of its own. `hear` is told of transitions and only queues them.

    `submit` makes a task durable and says so; `say` writes a line into a task's log.
    """

    def __init__(self, config: WebhooksConfig, store: Store, submit: Submit, say: Say) -> None:
        self._config = config
        self._store = store
        self._submit = submit
        self._say = say
        self._mark = _Mark(store)
        self._news: SimpleQueue[Task | None] = SimpleQueue()
        self._later: list[Notice] = []
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self.run, name="webhooks", daemon=True)

    def hear(self, transitions: Iterable[Transition]) -> None:
        """Tasks reached new versions. On the thread that has synced; quick."""
        if not self._config.enabled:
            return
        for before, task, removed in transitions:
            if task.is_terminal and before is not task.status and not removed and addresses_of(task, self._config):
                self._news.put(task)

    def start(self) -> None:
        """Begins to hand in; first what an earlier owner did not get to."""
        if self._config.enabled:
            self._thread.start()
        else:
            self._mark.remove()

    def close(self) -> None:
        """Hands in what is left, as far as it is taken, and ends the thread; the rest is found at the next start."""
        if self._thread.ident is not None:
            self._news.put(None)
            self._thread.join()

    def run(self) -> None:
        """Hands in until `close`; the thread's body."""
        try:
            self._catch_up()
        except Unavailable as error:
            # Nothing can be made durable either; the mark stays, and the next start looks again.
            _log.error("webhooks are not sent until the runner is restarted: %s", error)
            return
        goes_on = True
        while goes_on:
            batch, goes_on = self._next_batch()
            self.run_once(batch)
        if not self._later:
            self._mark.write()

    def run_once(self, tasks: Iterable[Task]) -> int:
        """Hands in what is to be said of these tasks, and what was not taken before; how many messages were taken."""
        notices = [Notice(task, url) for task in tasks for url in addresses_of(task, self._config)]
        if time.monotonic() >= self._retry_at:
            notices, self._later = self._later + notices, []
        begun = [(notice, ticket) for notice in notices if (ticket := self._begin(notice))]
        taken = sum(self._finish(notice, ticket) for notice, ticket in begun)
        if not self._later and self._news.empty():
            self._mark.write_if_due()
        return taken

    def _next_batch(self) -> tuple[list[Task], bool]:
        batch: list[Task] = []
        patience = max(0.0, self._retry_at - time.monotonic()) if self._later else self._mark.patience()
        try:
            task = self._news.get(timeout=patience)
            while task is not None:
                batch.append(task)
                if len(batch) >= MAX_BATCH:
                    return batch, True
                task = self._news.get_nowait()
        except Empty:
            return batch, True
        return batch, False

    def _catch_up(self) -> None:
        since = self._mark.read()
        query = TaskQuery(completed_after=since, size=MAX_PAGE_SIZE)
        for task in self._store.all(query) if since else ():
            if task.is_terminal and addresses_of(task, self._config):
                self._news.put(task)
        if since is None:
            self._mark.write()

    def _begin(self, notice: Notice) -> Ticket | None:
        ticket = Ticket()
        try:
            origin = Origin(Source.CHAIN, OPERATOR, parent_id=notice.task.id)
            self._submit(notice.submission(self._config.retries), origin, ticket)
        except RunnerError as error:
            self._give_up(notice, error)
            return None
        return ticket

    def _finish(self, notice: Notice, ticket: Ticket) -> bool:
        try:
            ticket.wait()
        except KeyConflict:
            pass  # it was handed in before a change of the configuration
        except RunnerError as error:
            self._give_up(notice, error)
            return False
        self._mark.note(notice.task)
        return True

    def _give_up(self, notice: Notice, error: RunnerError) -> None:
        """For now, or for good if it would be refused for ever."""
        if isinstance(error, Unavailable | LimitReached):
            self._later.append(notice)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return
        _log.warning("the webhook of task %s was refused: %s", notice.task.id, error)
        self._say(notice.task, "error", f"the webhook was refused: {error}")


class _Mark:
    """Up to when all that ended was told of: a small file. One thread."""

    def __init__(self, store: Store) -> None:
        self._files = store.files
        self._layout = store.layout
        self._path = f"{store.layout.data}/webhooks.json"
        self._until: datetime | None = None
        self._written_at = 0.0
        self._is_due = False

    def note(self, task: Task) -> None:
        """What is to be said of a task is handed in."""
        self._until, self._is_due = task.completed_at, True

    def patience(self) -> float | None:
        """How long until it is to be written, in seconds; None if it is not."""
        return max(0.0, self._written_at + MARK_SECONDS - time.monotonic()) if self._is_due else None

    def write_if_due(self) -> None:
        """Writes it, every few seconds at most."""
        if self._is_due and time.monotonic() >= self._written_at + MARK_SECONDS:
            self.write()

    def write(self) -> None:
        """Writes it. One that is too old only costs a longer look at the next start."""
        data = to_json({"until": self._until or datetime.now(UTC)})
        try:
            self._files.replace_durably(self._path, data)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error)
        else:
            self._is_due = False
        self._written_at = time.monotonic()

    def read(self) -> datetime | None:
        """From when on something may not have been told; None where there were no webhooks before."""
        try:
            self._until = read_instant(json.loads(self._files.read(self._path))["until"])
            return self._until - DOUBT
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, CorruptRecord) as error:
            _log.warning("%s cannot be read, so the last day is looked at again: %s", self._path, error)
            self._set_aside(error)
            self._until = datetime.now(UTC) - LONG_AGO
            return self._until - DOUBT

    def _set_aside(self, error: Exception) -> None:
        """What is in its place may be something that no file can be renamed over."""
        if not isinstance(error, OSError):
            with suppress(OSError):
                quarantine(self._files, self._layout, self._path, f"no mark of the webhooks: {error}")

    def remove(self) -> None:
        """There are no webhooks; what ends from now on will not be told of later."""
        self._files.remove(self._path)
