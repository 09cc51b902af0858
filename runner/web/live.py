"""`/ws`: the events of many tasks over one WebSocket, with the same names and data as the streams have.

The client says what it wants, `{"action": "subscribe", "task_ids": ["…"], "after": "$"}`, and is told
`{"event": "progress", "id": "…", "data": {…}}`. Whoever reads too slowly is told `reset`, and subscribes again from the
last id that it has; nothing grows meanwhile. The door has refused foreign pages before it comes to this.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, MutableMapping
from contextlib import suppress
from typing import Any, Final, Literal

from pydantic import Field, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.websockets import WebSocket, WebSocketDisconnect

from runner.errors import InvalidSubmission, NotFound
from runner.events import Watcher
from runner.record import Record
from runner.service import Service
from runner.web.bodies import parse_json
from runner.web.door import Caller
from runner.web.limits import Rate
from runner.web.parameters import parse_place, task_id_in
from runner.web.problems import HttpProblem, answer, problems_in
from runner.web.routing import streams_of
from runner.web.streams import Told, tell_all, tell_task

MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_TASKS: Final = 100
MESSAGES_PER_SECOND: Final = 10.0
PING_SECONDS: Final = 20.0
ALL: Final = "*"

UNSUPPORTED_DATA: Final = 1003
INVALID_DATA: Final = 1007
POLICY_VIOLATION: Final = 1008
"""Why a WebSocket is closed (RFC 6455, 7.4.1); 1009, a message too large, is the server's."""


_log = logging.getLogger(__name__)


class Message(Record):
    """What a client says. `all`: every task that it may see, from now on. `after` as in the streams."""

    action: Literal["subscribe", "unsubscribe"]
    task_ids: tuple[str, ...] = Field(default=(), max_length=MAX_TASKS)
    all: bool = False
    after: str = "0"


class LiveEndpoint:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def connect(self, websocket: WebSocket) -> None:
        """`/ws`. It counts as one stream."""
        caller: Caller = websocket.scope["caller"]
        limit = streams_of(websocket.scope)
        try:
            limit.enter(caller)
        except HttpProblem as problem:
            request = Request({**websocket.scope, "type": "http", "method": "GET"})
            refusal = answer(request, problem.status_code, problem.code, problem.detail, problem.headers)
            await websocket.send_denial_response(refusal)
            return
        try:
            await websocket.accept()
            await Session(websocket, self._service, caller.sees).run()
        finally:
            limit.leave(caller)


class Session:
    """One client. It reads what the client says; each subscription tells in a coroutine of its own."""

    def __init__(self, websocket: WebSocket, service: Service, sees: str | None) -> None:
        self._websocket = websocket
        self._service = service
        self._sees = sees
        self._rate = Rate(MESSAGES_PER_SECOND)
        self._telling: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until the client goes, or is sent away."""
        try:
            while (code := await self._take(await self._websocket.receive())) is None:
                pass
            if code:
                await self._websocket.close(code)
        except WebSocketDisconnect:
            pass
        finally:
            await self._stop(list(self._telling))

    async def _take(self, frame: MutableMapping[str, Any]) -> int | None:
        """Does what a message says; the code to close with if there is nothing more to say, 0: it is closed."""
        if frame["type"] == "websocket.disconnect":
            return 0
        if self._rate.take("", time.monotonic()) > 0:
            return POLICY_VIOLATION
        if frame.get("text") is None:
            return UNSUPPORTED_DATA
        try:
            message = Message.model_validate(parse_json(frame["text"].encode("utf-8", "surrogatepass")))
            await self._do(message, parse_place(message.after))
        except HttpProblem:
            return INVALID_DATA
        except ValidationError as error:
            await self._say_error("validation_error", "; ".join(map(str, problems_in(error))))
        except InvalidSubmission as error:
            await self._say_error(error.code, str(error))
        return None

    async def _do(self, message: Message, after: int | None) -> None:
        asked = [*message.task_ids, *([ALL] if message.all else [])]
        await self._stop(asked)
        if message.action == "unsubscribe":
            await self._say([Told("unsubscribed", {"task_ids": message.task_ids, "all": message.all})])
            return
        if len(self._telling) + len(asked) > MAX_TASKS:
            await self._say_error("too_many_streams", f"{MAX_TASKS} subscriptions may be open")
            return
        await self._say([Told("subscribed", {"task_ids": message.task_ids, "all": message.all})])
        for name in asked:
            self._telling[name] = asyncio.create_task(self._tell(name, after))

    async def _stop(self, names: list[str]) -> None:
        stopped = [task for name in names if (task := self._telling.pop(name, None)) is not None]
        for task in stopped:
            task.cancel()
        for ended in await asyncio.gather(*stopped, return_exceptions=True):
            if isinstance(ended, Exception):
                _log.error("a subscription failed", exc_info=ended)

    async def _tell(self, name: str, after: int | None) -> None:
        """One subscription. It ends with its task, or when the client does not keep up."""
        wanted = None if name == ALL else {name}
        with suppress(WebSocketDisconnect), self._service.events.subscribe(wanted, self._sees) as watcher:
            try:
                async for batch in self._told(name, watcher, after):
                    await self._say(batch)
            except NotFound as error:
                await self._say_error(error.code, str(error), name)
            # Before the news of its end: who hears that may subscribe again.
            if self._telling.get(name) is asyncio.current_task():
                del self._telling[name]
            if watcher.was_reset:
                await self._say([Told("reset", {} if name == ALL else {"task_id": name})])

    def _told(self, name: str, watcher: Watcher, after: int | None) -> AsyncIterator[list[Told]]:
        if name == ALL:
            return tell_all(watcher)
        return tell_task(self._service, watcher, task_id_in(name), after, self._sees)

    async def _say_error(self, code: str, message: str, task_id: str | None = None) -> None:
        about = {} if task_id is None else {"task_id": task_id}
        await self._say([Told("error", {**about, "code": code, "message": message})])

    async def _say(self, batch: list[Told]) -> None:
        for name, data, stream_id in batch:
            identified = {"id": stream_id} if stream_id else {}
            await self._websocket.send_text(to_json({"event": name, **identified, "data": data}).decode())
