"""News of tasks, for what Video-In-Chinese keeps of them elsewhere."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

from runner.dialects.processor_queue import QueueDown
from runner.dialects.video_tasks import VideoTasks
from runner.errors import NotFound, RunnerError
from runner.events import Event, Kind, Watcher
from runner.service import Service
from runner.web.crossing import in_thread

RETRY_SECONDS: Final = 2.0
"""How long Redis is left alone when it does not answer."""

MAX_UNTOLD: Final = 100_000
"""So many tasks are remembered meanwhile; of more, those that ended first are told at the next start."""

_log = logging.getLogger(__name__)


class Mirror:
    """Tells `tasks` what happens, one thing after the other, in the event loop that serves HTTP.

    What happens while Redis does not answer is told when it does again. What nobody has heard of, because the runner
    was down or far behind, is found in the records themselves.
    """

    def __init__(self, service: Service, tasks: VideoTasks) -> None:
        self._service = service
        self._tasks = tasks
        self._untold: dict[str, Kind] = {}
        self._is_behind = True
        self._not_before = 0.0
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to follow, if anybody cares."""
        if self._tasks.wants_news:
            self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Ends."""
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        await in_thread(self._tasks.close)

    async def _follow(self) -> None:
        is_open = True
        while is_open:
            with self._service.events.subscribe(None) as watcher:
                self._is_behind = True
                is_open = await self._hear(watcher)

    async def _hear(self, watcher: Watcher) -> bool:
        """Until the watcher is closed. Whether there is more to come, for it was only too slow."""
        while True:
            await self._tell()
            event = await watcher.receive(RETRY_SECONDS if self._untold or self._is_behind else 60)
            if event is not None:
                self._note(event)
            elif watcher.is_closed:
                return watcher.was_reset

    def _note(self, event: Event) -> None:
        is_ours = event.kind is Kind.STATUS and event.data["type"] == self._tasks.type
        if is_ours or event.kind is Kind.REMOVED:
            self._untold[event.task_id] = event.kind
            if len(self._untold) > MAX_UNTOLD:
                del self._untold[next(iter(self._untold))]

    async def _tell(self) -> None:
        """Tells what has not been told, unless Redis did not answer just now."""
        now = asyncio.get_running_loop().time()
        if now < self._not_before:
            return
        try:
            if self._is_behind:
                await in_thread(self._tasks.catch_up)
                self._is_behind = False
            while self._untold:
                task_id, kind = next(iter(self._untold.items()))
                await self._tell_of(task_id, kind)
                del self._untold[task_id]
        except QueueDown as error:
            if not self._not_before:
                _log.warning("the processor's records fall behind: %s", error)
            self._not_before = now + RETRY_SECONDS
        else:
            self._not_before = 0.0

    async def _tell_of(self, task_id: str, kind: Kind) -> None:
        try:
            await in_thread(self._changed if kind is Kind.STATUS else self._tasks.forget, task_id)
        except QueueDown:
            raise
        except (RunnerError, OSError) as error:
            _log.warning("the record of task %s was not changed: %s", task_id, error)

    def _changed(self, task_id: str) -> None:
        with suppress(NotFound):
            self._tasks.follow(self._service.get(task_id))
