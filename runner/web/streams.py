"""What comes bit by bit: a task's events as server-sent events, its log as JSON lines, and waiting for its end.

A stream begins with the task as it stands, goes on with what its handler said after the last id that the client has
seen (the log), and then with what happens. It ends with the task, or when the client is too slow: then it comes back
with its last id and misses nothing. Nothing here holds a thread while it waits.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from runner.events import Event, Events, Kind, Watcher, describe
from runner.service import Service
from runner.task import TERMINAL, Task
from runner.web.crossing import in_thread
from runner.web.door import caller_of
from runner.web.parameters import read_place, task_id_of

HEARTBEAT_SECONDS: Final = 15.0
EVENTS_AT_ONCE: Final = 256
HEARTBEAT: Final = b": nothing new\n\n"
SSE_HEADERS: Final = {"Cache-Control": "no-cache", "Connection": "keep-alive", "X-Accel-Buffering": "no"}

_TERMINAL_NAMES: Final = frozenset(map(str, TERMINAL))


class StreamEndpoints:
    """The endpoints that stream."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def events(self, request: Request) -> Response:
        """`GET /tasks/{id}/events`."""
        after = read_place(request)
        task = await in_thread(self._service.get, task_id_of(request), caller_of(request).sees)
        return WatchedStream(
            self._service.events, {task.id}, lambda watcher: stream_events(self._service, watcher, task.id, after)
        )

    async def log(self, request: Request) -> Response:
        """`GET /tasks/{id}/log`."""
        after = read_place(request) or 0
        task = await in_thread(self._service.get, task_id_of(request), caller_of(request).sees)
        said = await in_thread(self._service.events.history, task.id, after)
        return StreamingResponse(_lines(said), media_type="application/x-ndjson")


class WatchedStream(StreamingResponse):
    """What `render` makes of the news of some tasks. It watches for exactly as long as it is sent."""

    def __init__(
        self, events: Events, task_ids: Collection[str], render: Callable[[Watcher], AsyncIterator[bytes]]
    ) -> None:
        self._events = events
        self._task_ids = task_ids
        self._render = render
        super().__init__(iter(()), headers=SSE_HEADERS, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        with self._events.subscribe(self._task_ids) as watcher:
            self.body_iterator = self._render(watcher)
            await super().__call__(scope, receive, send)


async def stream_events(service: Service, watcher: Watcher, task_id: str, after: int | None) -> AsyncIterator[bytes]:
    """A task's events from `after` on (None: only new ones), until the task ends, the watcher is reset or the runner
    hangs up."""
    # Watched first, looked at second: what happens in between is then in the queue.
    task = await in_thread(service.get, task_id)
    yield sse("status", {"task_id": task.id, "at": task.updated_at, **describe(task)})
    seen = after or 0
    if after is not None:
        said = await in_thread(service.events.history, task.id, after)
        while batch := await in_thread(_take, said):
            seen = batch[-1].number
            yield b"".join(map(_rendered, batch))
    if task.is_terminal:
        yield _done(task.id, task.status)
        return
    while event := await next_of(watcher):
        if isinstance(event, bytes):
            yield event
        elif not _is_known(event, seen, task.version):
            yield _rendered(event)
            if _is_end(event):
                return
    if watcher.was_reset:
        yield sse("reset", {"task_id": task.id})


async def next_of(watcher: Watcher) -> Event | bytes | None:
    """The next event; a comment to send where there is none for long; None when the watcher is closed."""
    event = await watcher.receive(HEARTBEAT_SECONDS)
    return event if event is not None or watcher.is_closed else HEARTBEAT


async def wait_for_end(service: Service, task_id: str, user_id: str | None, seconds: float) -> Task:
    """The task when it has ended, or as it stands after `seconds` or at shutdown. Raises `NotFound`."""
    with service.events.subscribe({task_id}) as watcher:
        task = await in_thread(service.get, task_id, user_id)
        until = time.monotonic() + seconds
        while not task.is_terminal and (event := await watcher.receive(max(0.0, until - time.monotonic()))):
            if _is_end(event):
                break
    return task if task.is_terminal else await in_thread(service.get, task_id, user_id)


def _is_known(event: Event, seen: int, version: int) -> bool:
    """Whether the client has had this event already: from the log, or with the task as it stood."""
    if event.kind is Kind.STATUS:
        return bool(event.data["version"] <= version)
    return event.number <= seen


def _is_end(event: Event) -> bool:
    return event.kind is Kind.REMOVED or (event.kind is Kind.STATUS and event.data["status"] in _TERMINAL_NAMES)


def _rendered(event: Event) -> bytes:
    """One event; the last one of a task is followed by `done`."""
    shown = sse(event.kind, {"task_id": event.task_id, "at": event.at, **event.data}, event.stream_id)
    if event.kind is Kind.STATUS and _is_end(event):
        return shown + _done(event.task_id, event.data["status"])
    return shown


def _done(task_id: str, status: str) -> bytes:
    return sse("done", {"task_id": task_id, "status": status})


def sse(name: str, data: dict[str, Any], stream_id: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"id: {stream_id}\n" if stream_id else ""
    return f"{head}event: {name}\ndata: ".encode() + to_json(data) + b"\n\n"


async def _lines(said: Iterator[Event]) -> AsyncIterator[bytes]:
    while batch := await in_thread(_take, said):
        yield b"".join(
            to_json({"id": event.stream_id, "at": event.at, "kind": event.kind, **event.data}) + b"\n"
            for event in batch
        )


def _take(said: Iterator[Event]) -> list[Event]:
    return list(itertools.islice(said, EVENTS_AT_ONCE))
