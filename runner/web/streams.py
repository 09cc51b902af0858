"""What comes bit by bit: a task's events as server-sent events, its log as JSON lines, and waiting for its end.

A stream begins with the task as it stands, goes on with what its handler said after the last id that the client has
seen (the log), and then with what happens. It ends with the task, or when the client is too slow: then it comes back
with its last id and misses nothing. Nothing here holds a thread while it waits.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, NamedTuple

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from runner.events import Event, Kind, Watcher, describe
from runner.service import Service
from runner.task import TERMINAL, Task
from runner.web.crossing import in_thread
from runner.web.door import caller_of
from runner.web.parameters import read_place, task_id_of

HEARTBEAT_SECONDS: Final = 15.0
EVENTS_AT_ONCE: Final = 256
CHARACTERS_AT_ONCE: Final = 64 * 1024
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
            lambda: self._service.events.subscribe({task.id}),
            lambda watcher: stream_events(watcher, tell_task(self._service, watcher, task.id, after)),
        )

    async def all_events(self, request: Request) -> Response:
        """`GET /events`."""
        sees = caller_of(request).sees
        return WatchedStream(
            lambda: self._service.events.subscribe(None, sees),
            lambda watcher: stream_events(watcher, tell_all(watcher)),
        )

    async def log(self, request: Request) -> Response:
        """`GET /tasks/{id}/log`."""
        after = read_place(request) or 0
        task = await in_thread(self._service.get, task_id_of(request), caller_of(request).sees)
        said = await in_thread(self._service.events.history, task.id, after)
        return StreamingResponse(_lines(said), media_type="application/x-ndjson")


class WatchedStream(StreamingResponse):
    """What `render` makes of what a watcher is told. It watches for exactly as long as it is sent.

    A client that goes closes the watcher, by which the stream ends: that takes a third of the memory of the group of
    tasks that Starlette has for it, and there may be very many streams.
    """

    def __init__(self, subscribe: Callable[[], Watcher], render: Callable[[Watcher], AsyncIterator[bytes]]) -> None:
        self._subscribe = subscribe
        self._render = render
        super().__init__(iter(()), headers=SSE_HEADERS, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it; to HEAD its head alone, or the connection could never be used again."""
        if scope["method"] == "HEAD":
            await Response(headers=self.headers)(scope, receive, send)
            return
        with self._subscribe() as watcher:
            self.body_iterator = self._render(watcher)
            leaving = asyncio.create_task(_close_when_left(receive, watcher))
            try:
                await self.stream_response(send)
            finally:
                leaving.cancel()


async def _close_when_left(receive: Receive, watcher: Watcher) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    watcher.close()


class Told(NamedTuple):
    """One event as it is sent. `stream_id` None: the log does not keep it."""

    name: str
    data: dict[str, Any]
    stream_id: str | None = None


async def stream_events(watcher: Watcher, told: AsyncIterator[list[Told]]) -> AsyncIterator[bytes]:
    """What is told, as server-sent events; a comment where there is nothing, and `reset` where too much was."""
    async for batch in told:
        yield b"".join(sse(*one) for one in batch) or HEARTBEAT
    if watcher.was_reset:
        yield sse("reset", {"task_ids": sorted(watcher.task_ids or ())})


async def tell_task(
    service: Service, watcher: Watcher, task_id: str, after: int | None, sees: str | None = None
) -> AsyncIterator[list[Told]]:
    """A task's events from `after` on (None: only new ones), until the task ends, the watcher is reset or the runner
    hangs up; an empty list where there was nothing for a while. Raises `NotFound` at once."""
    # Watched first, looked at second: what happens in between is then in the queue.
    task = await in_thread(service.get, task_id, sees)
    yield [Told("status", {"task_id": task.id, "at": task.updated_at, **describe(task)})]
    seen = after or 0
    if after is not None:
        said = await in_thread(service.events.history, task.id, after)
        while batch := await in_thread(_take, said):
            seen = batch[-1].number
            yield [told for event in batch for told in _told(event)]
            if watcher.is_closed:
                return
    if task.is_terminal:
        yield [_done(task.id, task.status)]
        return
    async for event in listen(watcher):
        if event is None:
            yield []
        elif not _is_known(event, seen, task.version):
            yield _told(event)
            if _is_end(event):
                return


async def tell_all(watcher: Watcher) -> AsyncIterator[list[Told]]:
    """The news of all tasks that the watcher is for, from now on."""
    async for event in listen(watcher):
        yield [] if event is None else _told(event)


async def listen(watcher: Watcher, is_over: Callable[[], bool] = lambda: False) -> AsyncIterator[Event | None]:
    """What the watcher is told until it is closed, or `is_over`; None where there was nothing for a while."""
    while not is_over():
        event = await watcher.receive(HEARTBEAT_SECONDS)
        if event is None and watcher.is_closed:
            return
        yield event


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


def _told(event: Event) -> list[Told]:
    """One event; the last one of a task is followed by `done`."""
    told = Told(event.kind, {"task_id": event.task_id, "at": event.at, **event.data}, event.stream_id)
    if event.kind is Kind.STATUS and _is_end(event):
        return [told, _done(event.task_id, event.data["status"])]
    return [told]


def _done(task_id: str, status: str) -> Told:
    return Told("done", {"task_id": task_id, "status": status})


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
    """The next events: a client that does not read holds no more of them than these in memory."""
    batch, size = [], 0
    for event in itertools.islice(said, EVENTS_AT_ONCE):
        batch.append(event)
        size += len(event.data.get("message", ""))
        if size >= CHARACTERS_AT_ONCE:
            break
    return batch
