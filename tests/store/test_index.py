"""Lists are filtered, sorted and cut into pages by the index, which is a cache and may be damaged."""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runner.errors import Degraded, FormatError
from runner.store import Layout, TaskQuery
from runner.store.index import Index
from runner.store.rows import connect, microseconds
from runner.store.scribe import Batch, DirectPen
from runner.task import Source, Status, Task, TaskError, to_json
from tests.store.samples import LATER, NOW, FaultyFiles, make_task

TASKS = (
    make_task("t1", type="resize", user_id="u", queue="high", original_filename="100%_a!.png"),
    make_task("t2", type="merge", user_id="u", source=Source.INBOX, client_id="c", created_at=NOW + timedelta(1)),
    make_task("t3", user_id="v", status=Status.COMPLETED, completed_at=LATER, file_size=7, batch_id="b"),
    make_task(
        "t4",
        status=Status.FAILED,
        completed_at=LATER + timedelta(1),
        error=TaskError(code="e", message="disc 100% broken"),
        parent_id="t3",
        created_at=NOW - timedelta(1),
    ),
)


@pytest.fixture
def index(layout: Layout, files: FaultyFiles) -> Iterator[Index]:
    """An index with four rows."""
    index = Index(layout.index)
    index.open()
    index.mark_complete()
    write(layout, files, *TASKS)
    yield index
    index.close()


def write(layout: Layout, files: FaultyFiles, *tasks: Task) -> None:
    """Rows of these tasks."""
    pen = DirectPen(files, layout)
    pen.write(Batch(rows=[to_json(task) for task in tasks]))
    pen.close()


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["t2", "t3", "t1", "t4"]),
        ({"type": "merge"}, ["t2"]),
        ({"user_id": "v"}, ["t3"]),
        ({"queue": "high"}, ["t1"]),
        ({"source": Source.INBOX}, ["t2"]),
        ({"client_id": "c"}, ["t2"]),
        ({"batch_id": "b"}, ["t3"]),
        ({"parent_id": "t3"}, ["t4"]),
        ({"status": (Status.COMPLETED, Status.FAILED)}, ["t3", "t4"]),
        ({"created_after": NOW}, ["t2", "t3", "t1"]),
        ({"created_before": NOW}, ["t4"]),
        ({"completed_after": LATER + timedelta(seconds=1)}, ["t4"]),
        ({"completed_before": LATER + timedelta(seconds=1)}, ["t3"]),
        ({"text": "100%"}, ["t1", "t4"]),
        ({"text": "%_A!"}, ["t1"]),
        ({"text": "0_"}, []),
        ({"user_id": "u", "status": (Status.PENDING,), "type": "resize"}, ["t1"]),
        ({"type": "resize'; DROP TABLE tasks; --"}, []),
    ],
)
def test_filters_must_all_hold_and_the_newest_comes_first(index: Index, filters: Any, found: list[str]) -> None:
    """What people type is a value, never SQL and never a pattern."""
    query = TaskQuery(**filters)
    assert index.page(query) == (found, None)
    assert index.count(query) == len(found)


ASKED = {
    "status": ((), (Status.COMPLETED,), (Status.COMPLETED, Status.FAILED), (Status.FAILED, Status.FAILED)),
    "user_id": (None, "u", "w"),
    "type": (None, "resize", "merge"),
    "queue": (None, "low"),
    "source": (None, Source.INBOX),
    "completed_after": (None, NOW + timedelta(minutes=20)),
    "created_before": (None, NOW + timedelta(minutes=30)),
}
"""Values of filters; some combinations of them are asked for."""


def test_whatever_index_leads_to_an_answer_it_is_the_same(
    layout: Layout, files: FaultyFiles, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice among several is one of speed alone; here all of them are taken for long, then for short."""
    tasks = [*TASKS, *map(make_one_of_many, range(60))]
    write(layout, files, *tasks)
    tasks.sort(key=newest_first)
    for values in random.Random(1).sample(list(itertools.product(*ASKED.values())), 60):
        asked: dict[str, Any] = dict(zip(ASKED, values, strict=True))
        query = TaskQuery(**asked, size=7)
        expected = [task.id for task in tasks if fulfils(task, query)]
        for few in (1, 1000):
            monkeypatch.setattr("runner.store.index.FEW", few)
            assert (index.page(query)[0], index.count(query)) == (expected[:7], len(expected)), asked


def make_one_of_many(number: int) -> Task:
    """Tasks of several kinds, a minute apart, of which two are made in each minute."""
    at = NOW + timedelta(minutes=number // 2)
    status = (Status.COMPLETED, Status.FAILED, Status.PENDING)[number % 3]
    return make_task(
        f"n{number:02}", user_id="uvw"[number % 3], type=("resize", "merge")[number % 2], status=status,
        queue=("default", "low")[number % 5 == 0], source=(Source.HTTP, Source.INBOX)[number % 7 == 0], created_at=at,
        completed_at=None if status is Status.PENDING else at,
    )  # fmt: skip


def newest_first(task: Task) -> tuple[float, int]:
    """The order of lists: tasks of one instant by when they got their row."""
    rows = [*(one.id for one in TASKS), *(f"n{number:02}" for number in range(60))]
    return -task.created_at.timestamp(), -rows.index(task.id)


def fulfils(task: Task, query: TaskQuery) -> bool:
    """Whether the query asks for that task."""
    ended = task.completed_at is not None and (
        query.completed_after is None or task.completed_at >= query.completed_after
    )
    same = (getattr(query, name) in (None, getattr(task, name)) for name in ("user_id", "type", "queue", "source"))
    return (
        all(same)
        and (not query.status or task.status in query.status)
        and (query.completed_after is None or ended)
        and (query.created_before is None or task.created_at < query.created_before)
    )


def test_a_filter_that_few_fulfil_reads_few_rows(layout: Layout, files: FaultyFiles, index: Index) -> None:
    """Whatever it is combined with: a list of a million must not be read to find out that nothing is in it."""
    write(layout, files, *(make_task(f"n{number}", created_at=NOW) for number in range(5_000)))
    steps = 0

    def count_steps() -> int:
        nonlocal steps
        steps += 1
        return 0

    assert index._connection is not None
    index._connection.set_progress_handler(count_steps, 100)
    rarities: tuple[dict[str, Any], ...] = (
        {"type": "merge"}, {"queue": "low"}, {"source": "inbox"}, {"user_id": "v"}, {"status": ("failed",)}
    )  # fmt: skip
    for rare in rarities:
        index.page(TaskQuery(**rare))
        index.page(TaskQuery(**{"type": "resize", "source": "http", **rare}))
    index.oldest_pending()
    index._connection.set_progress_handler(None, 0)
    assert steps < 1000


def test_pages_by_cursor_and_by_number_are_the_same_list(index: Index) -> None:
    """However deep; the cursor of the last page is None."""
    seen, cursor = [], None
    for number in range(4):
        by_number = index.page(TaskQuery(size=1, page=number))[0]
        ids, cursor = index.page(TaskQuery(size=1, cursor=cursor))
        assert ids == by_number
        seen += ids
    assert (seen, cursor) == (["t2", "t3", "t1", "t4"], None)


def test_a_page_beyond_the_end_is_empty(index: Index) -> None:
    """Also the last one that can be asked for."""
    assert index.page(TaskQuery(page=1_000_000_000, size=1000)) == ([], None)


def test_a_row_is_replaced_when_its_task_changes(index: Index, layout: Layout, files: FaultyFiles) -> None:
    """One task, one row."""
    write(layout, files, make_task("t1", status=Status.CANCELLED, completed_at=NOW))
    assert index.count(TaskQuery()) == 4
    assert index.page(TaskQuery(status=(Status.CANCELLED,)))[0] == ["t1"]


def test_totals_are_by_queue_type_and_status(index: Index) -> None:
    """What the statistics are made of."""
    assert sorted(index.totals()) == [
        ("default", "merge", "pending", 1),
        ("default", "resize", "completed", 1),
        ("default", "resize", "failed", 1),
        ("high", "resize", "pending", 1),
    ]
    assert sorted(index.oldest_pending()) == [
        ("default", microseconds(NOW + timedelta(1))),
        ("high", microseconds(NOW)),
    ]


def test_the_newest_task_of_a_key_is_found(index: Index, layout: Layout, files: FaultyFiles) -> None:
    """Of that user; None if there is none."""
    write(
        layout,
        files,
        make_task("k1", unique_key="k"),
        make_task("k2", unique_key="k", created_at=LATER),
        make_task("k3", unique_key="k", created_at=LATER),
    )
    assert (index.find_key("u", "k"), index.find_key("v", "k")) == ("k3", None)


def test_unfinished_tasks_are_told_oldest_first(index: Index) -> None:
    """They are queued again in this order."""
    assert index.live_ids() == ["t1", "t2"]


def test_finished_tasks_are_told_oldest_first_a_slice_at_a_time(index: Index) -> None:
    """Cleanup goes on behind the place where it was."""
    (first,) = index.completed_before(datetime(2030, 1, 1, tzinfo=UTC), (0, 0), 1)
    assert (first.id, first.bytes, first.status) == ("t3", 7, "completed")
    (second,) = index.completed_before(datetime(2030, 1, 1, tzinfo=UTC), first.place, 1)
    assert second.id == "t4"
    assert index.completed_before(LATER, (0, 0), 9) == []
    assert index.usage() == (2, 7)


def test_all_ids_are_told(index: Index) -> None:
    """For whoever compares them with the files."""
    assert sorted(index.all_ids()) == ["t1", "t2", "t3", "t4"]


def test_instants_are_exact_to_the_microsecond() -> None:
    """Before 1970 too, and in any time zone."""
    assert microseconds(datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC)) == 1_000_005
    assert microseconds(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1


# Opening


def test_a_new_index_is_to_be_rebuilt_until_it_is_said_to_be_complete(layout: Layout) -> None:
    """A crash in the midst of a rebuild must not be taken for the end of it."""
    index = Index(layout.index)
    complete = []
    for _ in range(3):
        complete.append(index.open())
        if len(complete) == 2:
            index.mark_complete()
        index.close()
    assert complete == [False, False, True]


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_index_is_damaged(layout: Layout, content: bytes) -> None:
    """Recovery makes it anew."""
    Path(layout.index).write_bytes(content)
    index = Index(layout.index)
    with pytest.raises(FormatError, match="damaged"):
        index.open()
    index.close()


def test_an_index_of_another_schema_is_not_used(layout: Layout) -> None:
    """Older or newer: it is a cache."""
    connection = connect(layout.index)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    index = Index(layout.index)
    with pytest.raises(FormatError, match="format 99, not 2"):
        index.open()
    index.close()


def test_an_index_whose_tables_were_left_half_made_is_damaged(layout: Layout) -> None:
    """Its version comes last."""
    connection = connect(layout.index)
    connection.execute("CREATE TABLE tasks (row INTEGER)")
    connection.close()
    index = Index(layout.index)
    with pytest.raises(FormatError, match="already exists"):
        index.open()
    index.close()


def test_a_disk_that_fails_is_no_damage(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rebuild the index would not help it."""

    def fail(path: str) -> sqlite3.Connection:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        raise error

    monkeypatch.setattr("runner.store.index.connect", fail)
    with pytest.raises(OSError, match="disk I/O error"):
        Index(layout.index).open()


def test_an_index_that_cannot_be_read_is_told_as_such(index: Index, layout: Layout) -> None:
    """Lists are refused with 503; tasks go on."""
    connection = connect(layout.index)
    connection.execute("DROP TABLE tasks")
    connection.close()
    for ask in (lambda: index.page(TaskQuery()), lambda: index.find_key("u", "k")):
        with pytest.raises(Degraded, match="no such table"):
            ask()
