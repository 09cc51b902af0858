"""News of tasks, for what Video-In-Chinese keeps of them elsewhere."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from runner.dialects.video_tasks import VideoTasks
from runner.errors import NotFound, RunnerError
from runner.events import Event, Kind, Watcher
from runner.service import Service
from runner.web.crossing import in_thread

_log = logging.getLogger(__name__)


class Mirror:
    """Tells `tasks` what happens, one thing after the other, in the event loop that serves HTTP.

    What happens while Redis does not answer is not told again: whoever asks the runner itself is told right.
    """

    def __init__(self, service: Service, tasks: VideoTasks) -> None:
        self._service = service
        self._tasks = tasks
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
                is_open = await self._hear(watcher)

    async def _hear(self, watcher: Watcher) -> bool:
        """Until the watcher is closed. Whether there is more to come, for it was only too slow."""
        while True:
            event = await watcher.receive(60)
            if event is not None:
                await self._tell(event)
            elif watcher.is_closed:
                return watcher.was_reset

    async def _tell(self, event: Event) -> None:
        try:
            if event.kind is Kind.STATUS and event.data["type"] == self._tasks.type:
                await in_thread(self._changed, event.task_id)
            elif event.kind is Kind.REMOVED:
                await in_thread(self._tasks.forget, event.task_id)
        except (RunnerError, OSError) as error:
            _log.warning("the record of task %s was not changed: %s", event.task_id, error)

    def _changed(self, task_id: str) -> None:
        with suppress(NotFound):
            self._tasks.follow(self._service.get(task_id))
