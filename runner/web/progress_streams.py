"""Progress as contract 001 streams it: of one task with its history, or of up to ten at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.errors import RunnerError
from runner.events import Event, Kind, Watcher, parse_stream_id
from runner.service import Service
from runner.task import Status, Task
from runner.web.crossing import in_thread
from runner.web.door import caller_of
from runner.web.parameters import task_id_in, task_id_of
from runner.web.problems import HttpProblem
from runner.web.progress import (
    ProgressRecord,
    final_record,
    find_latest,
    history,
    progress_record,
    retry_record,
)
from runner.web.streams import HEARTBEAT, WatchedStream, listen, sse

MAX_TASKS_AT_ONCE: Final = 10


class ProgressEndpoints:
    """`/api/v1/tasks/{id}/progress` and what is below it, and `/api/v1/progress/stream`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def latest(self, request: Request) -> Response:
        """`GET /tasks/{id}/progress`."""
        task = await self._find(request)
        record = await in_thread(lambda: find_latest(task, self._said(task)))
        return _json({**record.entry, "status": record.status})

    async def history(self, request: Request) -> Response:
        """`GET /tasks/{id}/progress/history`."""
        after = _place(request.query_params.get("start_id", "-")) or 0
        task = await self._find(request)
        records = await in_thread(lambda: history(task, self._said(task), after))
        return _json({"task_id": task.id, "count": len(records), "history": [record.entry for record in records]})

    async def info(self, request: Request) -> Response:
        """`GET /tasks/{id}/progress/info`."""
        task = await self._find(request)
        ids = await in_thread(lambda: [record.stream_id for record in history(task, self._said(task), 0)])
        first, last = (ids[0], ids[-1]) if ids else ("", "")
        shown = {"has_progress": bool(ids), "length": len(ids), "first_entry": first, "last_entry": last}
        return _json({"task_id": task.id, **shown})

    async def stream(self, request: Request) -> Response:
        """`GET /tasks/{id}/progress/stream`."""
        asked = request.query_params.get("history", "").lower()
        past = Past.AS_HISTORY if asked in ("true", "1") else Past.AS_PROGRESS
        after = _asked_place(request)
        task = await self._find(request)
        follower = Follower(self._service, task.id, caller_of(request).sees)
        return WatchedStream(
            lambda: self._service.events.subscribe({task.id}),
            lambda watcher: stream_progress(follower, watcher, after, past),
        )

    async def stream_many(self, request: Request) -> Response:
        """`GET /progress/stream`."""
        ids = list(dict.fromkeys(filter(None, request.query_params.get("task_ids", "").split(","))))
        if not 1 <= len(ids) <= MAX_TASKS_AT_ONCE:
            raise HttpProblem(400, "validation_error", f"task_ids must be 1 to {MAX_TASKS_AT_ONCE} ids, with commas")
        after, sees = _asked_place(request), caller_of(request).sees
        followers = [Follower(self._service, task_id, sees) for task_id in ids]
        return WatchedStream(
            lambda: self._service.events.subscribe(ids), lambda watcher: stream_many(followers, watcher, after)
        )

    async def _find(self, request: Request) -> Task:
        return await in_thread(self._service.get, task_id_of(request), caller_of(request).sees)

    def _said(self, task: Task) -> Iterable[Event]:
        return self._service.events.history(task.id)


class Past(StrEnum):
    """As which event a stream tells what was there before it."""

    AS_PROGRESS = "progress"
    AS_HISTORY = "history"


class Follower:
    """One task's records: first those that are there, then each as it comes, none twice.

    It is over with the last record of a task that has ended (`final`), or when the task is gone (`error`).
    """

    def __init__(self, service: Service, task_id: str, sees: str | None = None) -> None:
        self.task_id = task_id
        self.final: ProgressRecord | None = None
        self.error: RunnerError | None = None
        self._service = service
        self._sees = sees
        self._last = 0
        self._retries_told = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.final is not None or self.error is not None

    async def catch_up(self, after: int | None) -> list[ProgressRecord]:
        """The records above `after`, the latest thousand of them; None: only the last one of a task that has ended."""
        return await in_thread(self._told, lambda: self._catch_up(after))

    async def take(self, event: Event) -> list[ProgressRecord]:
        """The record that an event is, if it is one that has not been told."""
        if event.kind is Kind.PROGRESS and event.number > self._last:
            self._last = event.number
            return [progress_record(event)]
        return [] if event.kind in (Kind.PROGRESS, Kind.LOG) else await in_thread(self._told, self._changed)

    def _told(self, look: Callable[[], list[ProgressRecord]]) -> list[ProgressRecord]:
        try:
            return look()
        except RunnerError as error:
            self.error = error
            return []

    def _catch_up(self, after: int | None) -> list[ProgressRecord]:
        task = self._service.get(task_id_in(self.task_id), self._sees)
        known = history(task, self._service.events.history(self.task_id), 0)
        self._last = known[-1].number if known else 0
        self._retries_told = len(task.attempts) - (task.status is Status.PROCESSING)
        self.final = known[-1] if task.is_terminal else None
        if after is None:
            return [] if self.final is None else [self.final]
        return [record for record in known if record.number > after]

    def _changed(self) -> list[ProgressRecord]:
        task = self._service.get(task_id_in(self.task_id), self._sees)
        if task.is_terminal:
            record = self.final = final_record(task, self._last)
        elif task.status is Status.PENDING and len(task.attempts) > self._retries_told:
            self._retries_told = len(task.attempts)
            record = retry_record(task.id, task.attempts[-1], self._last)
        else:
            return []
        self._last = record.number
        return [record]


async def stream_progress(follower: Follower, watcher: Watcher, after: int | None, past: Past) -> AsyncIterator[bytes]:
    """One task's records as `progress`; those that were there before as `past` says. `done` after the last one."""
    with_history = past is Past.AS_HISTORY
    for record in await follower.catch_up(0 if with_history and after is None else after):
        yield sse(past, record.progress, record.stream_id)
    if with_history and follower.final is not None:
        yield sse("progress", follower.final.progress, follower.final.stream_id)
    async for event in listen(watcher, lambda: follower.is_over):
        if event is None:
            yield HEARTBEAT
            continue
        for record in await follower.take(event):
            yield sse("progress", record.progress, record.stream_id)
    if follower.error is not None:
        yield sse("error", {"message": str(follower.error)})
    elif follower.final is not None:
        yield sse("done", {"task_id": follower.task_id, "status": follower.final.status})
    elif watcher.was_reset:
        yield sse("reset", {"task_ids": [follower.task_id]})


async def stream_many(followers: Sequence[Follower], watcher: Watcher, after: int | None) -> AsyncIterator[bytes]:
    """Several tasks' records as `progress`, until all have ended; `error` for one that is not there (any more)."""
    for follower in followers:
        yield _entries(follower, await follower.catch_up(after))
    by_id = {follower.task_id: follower for follower in followers}
    async for event in listen(watcher, lambda: all(follower.is_over for follower in followers)):
        if event is None:
            yield HEARTBEAT
        elif not (follower := by_id[event.task_id]).is_over:
            yield _entries(follower, await follower.take(event))
    if watcher.was_reset:
        yield sse("reset", {"task_ids": list(by_id)})


def _entries(follower: Follower, records: Iterable[ProgressRecord]) -> bytes:
    """Some records of one of several tasks, and its error."""
    told = b"".join(map(_entry, records))
    if follower.error is None:
        return told
    return told + sse("error", {"task_id": follower.task_id, "message": str(follower.error)})


def _entry(record: ProgressRecord) -> bytes:
    ended = {"is_final": True, "status": record.status} if record.is_final else {}
    return sse("progress", {"task_id": record.task_id, "progress": record.progress, **ended}, record.stream_id)


def _asked_place(request: Request) -> int | None:
    return _place(request.headers.get("last-event-id") or request.query_params.get("start_id", ""))


def _place(text: str) -> int | None:
    """After which record: `$` is None, only what is new; `-` is before everything."""
    if text in ("", "$"):
        return None
    try:
        return parse_stream_id("0" if text == "-" else text)
    except ValueError:
        raise HttpProblem(
            400, "validation_error", f"start_id must be the id of a record, 0 or $, not {text!r}"
        ) from None


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
