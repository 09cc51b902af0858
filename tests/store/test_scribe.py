"""The scribe writes what it is told, may die at any moment, and never writes for an owner that is gone."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.store import Layout
from runner.store import servant as module
from runner.store.records import Removal
from runner.store.rows import connect, create_schema
from runner.store.scribe import Batch, DirectPen, Pen, ScribePen
from runner.store.servant import wait_for_servants
from runner.store.store import ScribePlace
from runner.store.users import User
from runner.task import to_json, to_pretty_json
from tests.store.samples import NOW, OPTIONS, FaultyFiles, Stores, create, finish, make_task, until

USER = User(user_id="u", created_at=NOW, last_accessed=NOW)


@pytest.fixture
def indexed(layout: Layout) -> Layout:
    """A directory with an empty index."""
    connection = connect(layout.index)
    create_schema(connection)
    connection.close()
    return layout


@pytest.fixture(params=["direct", "process"])
def pen(request: pytest.FixtureRequest, indexed: Layout, files: FaultyFiles) -> Iterator[Pen]:
    """Either pen."""
    pen: Pen = DirectPen(files, indexed) if request.param == "direct" else ScribePen(indexed)
    yield pen
    pen.close()


@pytest.fixture
def scribe(indexed: Layout) -> Iterator[ScribePen]:
    """A scribe process."""
    pen = ScribePen(indexed)
    yield pen
    pen.close()


def task_of(pen: ScribePen) -> subprocess.Popen[bytes]:
    """The process itself."""
    assert pen._scribe.process is not None
    return pen._scribe.process


def rows(layout: Layout) -> list[str]:
    """The ids in the index."""
    connection = sqlite3.connect(layout.index)
    found = [row[0] for row in connection.execute("SELECT id FROM tasks ORDER BY id")]
    connection.close()
    return found


def of(*task_ids: str) -> Batch:
    """Tasks and their rows."""
    bodies = [(task_id, to_json(make_task(task_id))) for task_id in task_ids]
    return Batch(tasks=bodies, rows=[body for _, body in bodies])


def test_a_batch_is_written_to_files_and_rows(pen: Pen, indexed: Layout) -> None:
    """As people read them."""
    pen.write(replace(of("t1", "t2"), users=[("u", USER.to_json())]))
    assert Path(indexed.task("t1")).read_bytes() == to_pretty_json(make_task("t1"))
    assert User.model_validate_json(Path(indexed.user("u")).read_bytes()) == USER
    assert rows(indexed) == ["t1", "t2"]


def test_what_is_removed_goes_with_all_that_belongs_to_it(pen: Pen, indexed: Layout) -> None:
    """And it may be removed twice."""
    for _ in range(2):
        pen.write(replace(of("t1"), users=[("u", USER.to_json())]))
        for path in (indexed.upload("u", "t1"), indexed.result("u", "t1")):
            Path(path, "deep").mkdir(parents=True)
        Path(indexed.log("t1")).touch()
        for _ in range(2):
            pen.write(Batch(removals=[Removal("t1", "u")], removed_users=["u"], gone=["t1"]))
    left = [path for path in (indexed.task("t1"), indexed.log("t1"), indexed.user("u")) if Path(path).exists()]
    assert (left, os.listdir(f"{indexed.uploads}/u"), os.listdir(f"{indexed.results}/u")) == ([], [], [])
    assert rows(indexed) == []


def test_an_error_of_the_disk_comes_back_as_what_it_is(pen: Pen, indexed: Layout) -> None:
    """Out of the other process too."""
    Path(indexed.tasks).rmdir()
    with pytest.raises(FileNotFoundError) as failed:
        pen.write(of("t1"))
    assert failed.value.errno == errno.ENOENT
    Path(indexed.tasks).mkdir()
    pen.write(of("t1"))
    assert rows(indexed) == ["t1"]


def test_a_damaged_index_is_an_error_of_the_disk(pen: Pen, indexed: Layout) -> None:
    """The store says that it cannot write, and goes on."""
    Path(indexed.index).write_bytes(b"no database at all" * 1000)
    for suffix in ("-wal", "-shm"):
        Path(indexed.index + suffix).unlink(missing_ok=True)
    with pytest.raises(OSError, match="not a database"):
        pen.write(of("t1"))
    assert Path(indexed.task("t1")).exists()


def test_rows_are_written_all_or_none(indexed: Layout, files: FaultyFiles) -> None:
    """A batch that fails in its midst leaves the index as it was."""
    pen = DirectPen(files, indexed)
    body = to_json(make_task("t1"))
    with pytest.raises(KeyError):
        pen.write(Batch(rows=[body, b"{}"]))
    pen.write(Batch(rows=[to_json(make_task("t2"))]))
    pen.close()
    assert rows(indexed) == ["t2"]


def test_a_pen_without_rows_opens_no_index(layout: Layout, files: FaultyFiles) -> None:
    """Recovery writes files before there is one."""
    pen = DirectPen(files, layout)
    pen.write(Batch(tasks=[("t1", to_json(make_task()))]))
    pen.close()
    assert not Path(layout.index).exists()


def test_a_scribe_that_was_killed_is_started_again(scribe: ScribePen, indexed: Layout) -> None:
    """Between two batches, and while it waits for the first."""
    for number in range(3):
        task_of(scribe).kill()
        scribe.write(of(f"t{number}"))
    assert rows(indexed) == ["t0", "t1", "t2"]


def test_a_scribe_that_dies_in_the_midst_of_a_batch_does_it_again(scribe: ScribePen, indexed: Layout) -> None:
    """A batch may be done twice; it says what is, not what changes."""
    scribe.write(of("t0"))
    task_of(scribe).send_signal(signal.SIGSTOP)
    killing = threading.Timer(0.05, task_of(scribe).kill)
    killing.start()
    scribe.write(of("t1", "t2"))
    killing.join()
    assert rows(indexed) == ["t0", "t1", "t2"]


def test_a_scribe_that_always_dies_is_an_error_of_the_disk(scribe: ScribePen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an endless loop, and not the end of the writer's thread; with the next batch it is tried again."""
    task_of(scribe).kill()
    task_of(scribe).wait()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(OSError, match="the scribe process dies"):
            scribe.write(of("t1"))
    scribe.write(of("t1"))


def test_a_scribe_that_cannot_be_started_is_tried_again(scribe: ScribePen, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process and no descriptor may be left for a moment."""
    task_of(scribe).kill()
    task_of(scribe).wait()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                scribe.write(of("t1"))
    scribe.write(of("t1"))


def test_an_interrupted_conversation_is_not_taken_up_again(
    scribe: ScribePen, indexed: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the old batch, good or bad, would be heard as that to the next."""

    def interrupted(stream: Any) -> bytes:
        raise KeyboardInterrupt

    Path(indexed.tasks).rmdir()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scribe.write(of("t1"))
    Path(indexed.tasks).mkdir()
    scribe.write(of("t2"))
    assert rows(indexed) == ["t2"]


def test_a_pen_may_be_closed_twice(pen: Pen) -> None:
    """The fixture does it a second time."""
    pen.close()


def test_an_interrupt_for_the_owner_does_not_end_the_scribe(scribe: ScribePen, indexed: Layout) -> None:
    """Ctrl-C drains; what is drained is to be written."""
    scribe.write(of("t1"))
    process = task_of(scribe)
    process.send_signal(signal.SIGINT)
    scribe.write(of("t2"))
    assert task_of(scribe) is process


OWNER = """
import os, sys, signal
from runner.store.files import Layout
from runner.store.scribe import Batch, ScribePen
pen = ScribePen(Layout(sys.argv[1]))
pen.write(Batch())
print(pen._scribe.process.pid, flush=True)
signal.pause()
"""


def test_the_scribe_dies_with_its_owner_and_its_lock_is_free(indexed: Layout) -> None:
    """However the owner dies; the next one recovers only then."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, indexed.data], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with owner.stdout as said:
        scribe = int(said.readline())
        with pytest.raises(BlockingIOError):
            take_lock(indexed)
        owner.kill()
        owner.wait()
    os.close(wait_for_servants(indexed))
    until(lambda: not Path(f"/proc/{scribe}").exists() or "Z" in Path(f"/proc/{scribe}/stat").read_text())


def take_lock(layout: Layout) -> None:
    """Takes the scribe's lock if it is free."""
    fd = os.open(f"{layout.locks}/scribe.lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def test_a_scribe_whose_owner_is_gone_before_it_looks_ends(indexed: Layout) -> None:
    """The parent is not who started it any more."""
    ended = subprocess.run(
        [sys.executable, "-m", "runner.store.scribe", indexed.data, "1"], stdin=subprocess.PIPE, timeout=20, check=False
    )
    assert ended.returncode == 0
    assert not Path(indexed.locks, "scribe.lock").exists()


def test_an_owner_waits_for_the_scribe_of_the_last_one(indexed: Layout) -> None:
    """It might still write an old version over a new one."""
    held = wait_for_servants(indexed)
    waiting = threading.Thread(target=lambda: os.close(wait_for_servants(indexed)))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    os.close(held)
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_store_with_a_scribe_of_its_own_loses_nothing_when_it_is_killed(stores: Stores, data: Path) -> None:
    """Its death alone is survived, and nobody sees it."""
    store = stores.open(data, replace(OPTIONS, scribe=ScribePlace.PROCESS))
    pen = store.writer._pen
    assert isinstance(pen, ScribePen)
    for number in range(5):
        task_of(pen).kill()
        create(store, f"t{number}")
        finish(store, f"t{number}")
        store.writer.flush()
    statuses = {store.get_task(f"t{number}").status for number in range(5)}
    assert (statuses, len(os.listdir(store.layout.tasks))) == ({"completed"}, 5)
