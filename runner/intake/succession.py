"""Where a newer file takes the place of an older one of the same name: the older one's task is cancelled."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import partial
from typing import Final

from runner import task as transitions
from runner.errors import IllegalTransition, NotFound, Unavailable
from runner.intake.folders import Folders
from runner.intake.names import path_of
from runner.store import Store, Update
from runner.task import Task

MAX_PATHS: Final = 10_000

_log = logging.getLogger(__name__)


class Succession:
    """Knows the latest task of each path. The inbox's thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._latest: dict[str, str] = {}

    def recover(self, folders: Folders) -> None:
        """What was cut off between a task and the cancelling of the one before it is done."""
        for task in sorted(self._store.live(), key=lambda task: task.created_at):
            if task.drop is None:
                continue
            path = self._store.layout.absolute(path_of(task.drop.path, task.drop.raw))
            folder = folders.locate(path).folder
            if folder is not None and folder.supersede:
                self.follow(path, task)

    def follow(self, path: str, task: Task) -> None:
        """A file from `path` became a task: the task of the one before it is not wanted any more."""
        older = self._latest.pop(path, None)
        self._latest[path] = task.id
        if older is not None:
            self._cancel(older, task)
        if len(self._latest) > MAX_PATHS:
            live = {task.id for task in self._store.live()}
            self._latest = {path: task_id for path, task_id in self._latest.items() if task_id in live}

    def _cancel(self, older: str, newer: Task) -> None:
        reason = f"a newer file of the same name came, and is task {newer.id}"
        cancel = partial(transitions.cancel, now=datetime.now(UTC), reason=reason)
        try:
            self._store.commit((Update(older, cancel),))
        except (IllegalTransition, NotFound):
            return  # it has ended, or was deleted
        except Unavailable as error:
            _log.warning("task %s is superseded and could not be cancelled: %s", older, error)
