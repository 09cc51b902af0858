"""PixivTailor's WebSocket. Everybody is told of every task that they may see, in both families of messages, until they
subscribe to some: from then on of those, and of what is said to all."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.websockets import WebSocket, WebSocketDisconnect

from runner.dialects.pixivtailor import words
from runner.dialects.pixivtailor.tasks import Finder
from runner.dialects.pixivtailor.webui import WebUi
from runner.events import Event, Kind, Watcher
from runner.service import Service
from runner.task import Task
from runner.web.bodies import parse_json
from runner.web.crossing import in_thread
from runner.web.door import Caller
from runner.web.limits import Rate
from runner.web.live import INVALID_DATA, MESSAGES_PER_SECOND, POLICY_VIOLATION, UNSUPPORTED_DATA
from runner.web.problems import HttpProblem, answer
from runner.web.routing import streams_of

SILENCE_SECONDS: Final = 60.0
"""Its pages say something every 30 seconds; who says nothing for so long is gone."""

MAX_SUBSCRIPTIONS: Final = 1000
TRY_AGAIN_LATER: Final = 1013
GOING_AWAY: Final = 1001


class SocketEndpoint:
    """The endpoint."""

    def __init__(
        self, service: Service, finder: Finder, webui: WebUi, silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        self._service = service
        self._finder = finder
        self._webui = webui
        self._silence_seconds = silence_seconds

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
            await Session(websocket, self._service, self._finder, self._webui, self._silence_seconds).run()
        finally:
            limit.leave(caller)


class Session:
    """One client: it is listened to here, and told in a coroutine of its own."""

    def __init__(
        self, websocket: WebSocket, service: Service, finder: Finder, webui: WebUi, silence_seconds: float
    ) -> None:
        self._websocket = websocket
        self._service = service
        self._finder = finder
        self._webui = webui
        self._silence_seconds = silence_seconds
        self._caller: Caller = websocket.scope["caller"]
        self._rate = Rate(MESSAGES_PER_SECOND)
        self._wanted: set[str] | None = None

    async def run(self) -> None:
        """Until the client goes, or is sent away."""
        with self._service.events.subscribe(None, self._caller.sees) as watcher:
            await self._say([{"type": "welcome", "message": "connected"}])
            telling = asyncio.create_task(self._tell(watcher))
            hearing = asyncio.create_task(self._hear())
            try:
                done, _ = await asyncio.wait((telling, hearing), return_when=asyncio.FIRST_COMPLETED)
                code = next((task.result() for task in done if not task.cancelled()), None)
            finally:
                for task in (telling, hearing):
                    task.cancel()
                await asyncio.gather(telling, hearing, return_exceptions=True)
            if code is not None:
                with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                    await self._websocket.close(code)

    async def _hear(self) -> int | None:
        """Listens; the code to close with, None: it is closed."""
        while True:
            try:
                async with asyncio.timeout(self._silence_seconds):
                    frame = await self._websocket.receive()
            except TimeoutError:
                return GOING_AWAY
            if frame["type"] == "websocket.disconnect":
                return None
            if self._rate.take("", time.monotonic()) > 0:
                return POLICY_VIOLATION
            if frame.get("text") is None:
                return UNSUPPORTED_DATA
            try:
                message = parse_json(frame["text"].encode("utf-8", "surrogatepass"))
            except HttpProblem:
                return INVALID_DATA
            with contextlib.suppress(WebSocketDisconnect):
                await self._take(message if isinstance(message, dict) else {})

    async def _take(self, message: Mapping[str, Any]) -> None:
        """Does what one message says."""
        kind, task_id = message.get("type"), message.get("task_id")
        if kind == "ping":
            await self._say([{"type": "pong"}])
        elif kind == "subscribe_task":
            await self._subscribe(task_id)
        elif kind == "unsubscribe_task":
            task = await self._find(task_id)
            if task is not None and self._wanted is not None:
                self._wanted.discard(task.id)
        elif kind == "get_task_status":
            task = await self._find(task_id)
            if task is not None:
                await self._say(words.updates_of(task, datetime.now(UTC)))
        elif kind == "get_system_status":
            health = await in_thread(self._service.health)
            data = {"status": "healthy" if health.ready else "unhealthy", **health.details, "reasons": health.reasons}
            await self._say([{"type": "system_status", "data": data}])
        elif kind == "get_webui_status":
            await self._say([{"type": "webui_status", "data": await self._webui.look()}])
        else:
            await self._say([{"type": "error", "message": f"unknown message type: {kind}"}])

    async def _subscribe(self, task_id: Any) -> None:
        task = await self._find(task_id)
        if task is None:
            return
        wanted = set() if self._wanted is None else self._wanted
        if len(wanted) < MAX_SUBSCRIPTIONS:
            wanted.add(task.id)
        self._wanted = wanted
        await self._say(words.updates_of(task, datetime.now(UTC)))

    async def _find(self, task_id: Any) -> Task | None:
        """The task that is meant; where there is none, the client is told."""
        try:
            return await in_thread(self._finder.find, str(task_id).lower(), self._caller)
        except HttpProblem as problem:
            await self._say([{"type": "error", "task_id": task_id, "message": problem.detail}])
            return None

    async def _tell(self, watcher: Watcher) -> int | None:
        """Tells what happens; the code to close with when that is over."""
        try:
            async for event in watcher:
                await self._say(await self._messages_of(event))
        except WebSocketDisconnect:
            return None
        return TRY_AGAIN_LATER if watcher.was_reset else GOING_AWAY

    async def _messages_of(self, event: Event) -> list[dict[str, Any]]:
        is_wanted = self._wanted is None or event.task_id in self._wanted
        if event.kind is Kind.LOG:
            return words.logs_of(event) if is_wanted else []
        if event.kind is Kind.PROGRESS and not is_wanted:
            return []
        task = await in_thread(self._service.store.find, event.task_id)
        updates = [] if task is None or not is_wanted else words.updates_of(task, event.at)
        return updates if event.kind is Kind.PROGRESS else [*updates, words.news_of(event, task)]

    async def _say(self, messages: Iterable[Mapping[str, Any]]) -> None:
        for message in messages:
            await self._websocket.send_text(to_json(message).decode())
