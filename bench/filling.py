"""A store with a past: finished tasks, written as the store would have written them, without running any.

Task files are written here, their rows of the index by a scribe process at the same time; no journal is needed, since
the files say all of it. Afterwards the store is opened and asked for what it has.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click

from bench.report import NotMeasured
from bench.workspace import Place, Workspace, fresh_workspace, mark_as_top
from runner import task as moves
from runner.store import Durability, Files, Layout, Store, StoreOptions, TaskQuery, Transition
from runner.store.checkpoint import CheckpointRule
from runner.store.scribe import Batch, DirectPen, ScribePen
from runner.store.space import Floors
from runner.store.writer import Pace
from runner.task import Source, Status, Task, TaskError, to_json

USERS: Final = 10
FAILED_EVERY: Final = 20
SPAN: Final = timedelta(hours=24)
"""How long ago the oldest task ended: less than any retention."""

_BATCH: Final = 5_000
_ID, _USER, _AT = str(uuid.UUID(int=0)), "placeholder", datetime(2001, 1, 1, 1, 1, 1, 1, tzinfo=UTC)

Record = tuple[str, bytes]


class _Silent:
    """A listener that nobody listens to."""

    def staged(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""

    def appended(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""

    def refused(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""

    def committed(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""


def past_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--past` to a command's function."""
    return click.option(
        "--past",
        type=click.Path(file_okay=False, path_type=Path),
        help="A folder in which filled stores are kept. The one of that size is measured in, and grows by it.",
    )(command)


@contextmanager
def workspace_with_past(
    place: Place, name: str, finished: int, past: Path | None, durability: str = "full"
) -> Iterator[tuple[Workspace, float]]:
    """A workspace whose store has at least `finished` finished tasks, and how many seconds it took to fill it."""
    if past is None or not finished:
        with fresh_workspace(place, name, durability) as workspace:
            # Nothing is opened for nothing: threads that were there before would keep what the service shares out.
            yield workspace, fill(workspace.data, finished) if finished else 0.0
    else:
        data = past.absolute() / str(finished)
        filled = _fill_once(data, finished)
        with fresh_workspace(place, name, durability, data) as workspace:
            yield workspace, filled


def _fill_once(data: Path, finished: int) -> float:
    stamp = data.with_suffix(".filled")
    if stamp.exists():
        return 0.0
    if data.exists():
        raise NotMeasured(f"{data} was not filled to its end: remove it")
    data.parent.mkdir(parents=True, exist_ok=True)
    mark_as_top(data.parent)
    seconds = fill(data, finished)
    stamp.touch()
    return seconds


def fill(data: Path, finished: int) -> float:
    """Puts `finished` tasks of ten users, one in twenty failed, into an empty data directory; how many seconds that
    took. All of it is on the disk when this returns."""
    began = time.monotonic()
    store = _store(data)
    store.open()
    store.close()
    if finished:
        _write(store.files, store.layout, _records(finished))
        _check(data, finished)
        # Or the disk would still be at it while something else is measured.
        os.sync()
    return time.monotonic() - began


def _write(files: Files, layout: Layout, records: Iterator[Record]) -> None:
    with ThreadPoolExecutor(1) as beside, closing(ScribePen(layout)) as scribe:
        rows: Future[None] | None = None
        while tasks := list(islice(records, _BATCH)):
            if rows is not None:
                rows.result()
            rows = beside.submit(scribe.write, Batch(rows=[body for _, body in tasks]))
            DirectPen(files, layout).write(Batch(tasks=tasks))
        if rows is not None:
            rows.result()


def _records(number: int) -> Iterator[Record]:
    """Ids and bodies, oldest first. Made from two patterns: a million real transitions would take two minutes."""
    completed, failed = (to_json(task) for task in (_completed(), _failed()))
    began, step = datetime.now(UTC) - SPAN, SPAN / number
    for n in range(number):
        task_id, body = str(uuid.uuid4()), completed if n % FAILED_EVERY else failed
        instant = (began + n * step).isoformat(timespec="microseconds").replace("+00:00", "Z")
        user = f"user{n % USERS}"
        for pattern, text in ((_ID, task_id), (_USER, user), (_INSTANT, instant)):
            body = body.replace(pattern.encode(), text.encode())
        yield task_id, body


def _begun() -> Task:
    task = Task(
        id=_ID, type="noop", user_id=_USER, status=Status.PENDING, payload={"x": 1}, source=Source.HTTP,
        max_retries=3, timeout_seconds=1800, created_at=_AT, updated_at=_AT,
    )  # fmt: skip
    return moves.start(task, _AT)


def _completed() -> Task:
    return moves.complete(_begun(), 1, _AT)


def _failed() -> Task:
    return moves.fail(_begun(), 1, _AT, error=TaskError(code="failed", message="it was made to fail"))


_INSTANT: Final = moves.to_values(_begun(), {"created_at"})["created_at"]


def _check(data: Path, finished: int) -> None:
    """What was written is what the store takes it for."""
    store = _store(data)
    found = store.open()
    try:
        counted = store.count(TaskQuery(status=(Status.COMPLETED, Status.FAILED)))
        newest = store.list(TaskQuery(size=50)).tasks
        if (counted, len(newest), found.live, found.notes) != (finished, min(50, finished), [], []):
            raise NotMeasured(f"the store has {counted} of {finished} tasks, {len(found.live)} live: {found.notes}")
    finally:
        store.close()


def _store(data: Path) -> Store:
    options = StoreOptions(
        durability=Durability.PROCESS,
        pace=Pace(0.05, 2.0),
        checkpoint=CheckpointRule(1 << 26, 60.0),
        floors=Floors(0, 0, 0),
    )
    return Store(data, options, _Silent())
