"""A segment is dropped only when what it says is on the disk elsewhere, in this order, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from runner.errors import Degraded
from runner.store import Remove, RemoveUser, SaveUser, Store, User
from runner.store import writer as writer_module
from runner.store.checkpoint import Checkpointer, CheckpointRule
from runner.store.journal import Kind, encode
from runner.task import Status, from_json
from tests.store.samples import LATER, LAZY, NOW, FaultyFiles, Stores, crash, create, finish, until


class OrderedFiles(FaultyFiles):
    """Remembers in which order the steps of a checkpoint came."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []

    def rename(self, source: str, target: str) -> None:
        if "/tasks/" in target:
            self.steps.append("file")
        super().rename(source, target)

    def syncfs(self, fd: int) -> None:
        self.steps.append("sync")
        super().syncfs(fd)

    def unlink(self, path: str) -> None:
        if path.endswith(".log"):
            self.steps.append("drop")
        super().unlink(path)


def make_user(user_id: str, last_accessed: datetime = NOW) -> User:
    """A user since noon."""
    return User(user_id=user_id, created_at=NOW, last_accessed=last_accessed)


def segments(store: Store) -> list[str]:
    """The names of the segments."""
    return sorted(path.name[-5:] for path in Path(store.layout.journal).glob("*.log"))


def test_files_come_first_then_the_sync_then_the_drop(stores: Stores, data: Path) -> None:
    """In any other order a power cut loses tasks."""
    files = OrderedFiles()
    store = stores.open(data, LAZY, files=files)
    create(store, "t1", "t2")
    files.steps.clear()
    assert store.checkpointer.checkpoint() == 1
    assert files.steps == ["file", "file", "sync", "drop"]
    assert segments(store) == ["2.log"]


def test_without_syncfs_every_written_file_is_synced_for_itself(
    lazy_store: Store, files: FaultyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index too: unfinished tasks are found by their rows."""
    from runner.store import files as files_module

    monkeypatch.setattr(files_module, "HAS_SYNCFS", False)
    monkeypatch.setattr(writer_module, "HAS_SYNCFS", False)
    synced: list[str] = []
    monkeypatch.setattr(files, "sync_path", lambda path: synced.append(Path(path).name))
    create(lazy_store, "t1")
    lazy_store.checkpointer.checkpoint()
    assert {"t1.json", "tasks", "index.db", "index.db-wal"} <= set(synced)


@pytest.mark.parametrize("call", ["open", "write", "rename"])
def test_files_that_cannot_be_written_keep_their_segment(lazy_store: Store, files: FaultyFiles, call: str) -> None:
    """The next checkpoint tries again, without a further segment for each try."""
    create(lazy_store)
    files.fail(call, "tasks" if call == "rename" else "tmp/.write", errno.ENOSPC)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            lazy_store.checkpointer.checkpoint()
    assert segments(lazy_store) == ["1.log", "2.log"]
    files.heal()
    lazy_store.checkpointer.checkpoint()
    assert segments(lazy_store) == ["2.log"]


def test_after_a_failed_sync_nothing_is_dropped_and_nothing_changed(lazy_store: Store, files: FaultyFiles) -> None:
    """The kernel may have given up the pages; that the next sync succeeds would say nothing."""
    create(lazy_store, "t1")
    files.fail("syncfs", times=1)
    with pytest.raises(OSError, match="Input/output error"):
        lazy_store.checkpointer.checkpoint()
    with pytest.raises(Degraded):
        create(lazy_store, "t2")
    with pytest.raises(Degraded):
        lazy_store.checkpointer.checkpoint()
    lazy_store.close()
    assert "1.log" in segments(lazy_store)


def test_the_owner_after_a_failed_sync_writes_everything_again(
    stores: Stores, data: Path, lazy_store: Store, files: FaultyFiles
) -> None:
    """What the page cache shows of a file says nothing about the disk."""
    create(lazy_store, "t1", "t2")
    files.fail("syncfs", times=1)
    with pytest.raises(OSError, match="Input/output error"):
        lazy_store.checkpointer.checkpoint()
    inode = Path(lazy_store.layout.task("t1")).stat().st_ino
    lazy_store.close()
    later = stores.open(data)
    assert stores.found.rewritten == 2
    assert Path(later.layout.task("t1")).stat().st_ino != inode
    later.checkpointer.checkpoint()
    assert not Path(later.layout.rewrite).exists()


def test_even_a_note_that_cannot_be_left_does_not_hide_the_failure(lazy_store: Store, files: FaultyFiles) -> None:
    """Then the disk is beyond help, and said to be."""
    create(lazy_store)
    files.fail("syncfs", times=1)
    files.fail("open", "rewrite")
    with pytest.raises(OSError, match="Input/output error"):
        lazy_store.checkpointer.checkpoint()
    assert lazy_store.committer.failure is not None


@pytest.fixture
def full(lazy_store: Store, files: FaultyFiles) -> Store:
    """A store with one task whose checkpoint has just found that there is no room for what was written."""
    create(lazy_store, "t1")
    files.fail("syncfs", code=errno.ENOSPC, times=1)
    with pytest.raises(OSError, match="No space left"):
        lazy_store.checkpointer.checkpoint()
    return lazy_store


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_sync_without_room_drops_nothing_and_pauses_intake(lazy_store: Store, files: FaultyFiles, code: int) -> None:
    """Until a checkpoint finds room; what runs is recorded all the while."""
    create(lazy_store, "t1")
    files.fail("syncfs", code=code)
    for _ in range(3):
        with pytest.raises(OSError, match=os.strerror(code)):
            lazy_store.checkpointer.checkpoint()
        assert lazy_store.space.check() == "the disk has no room for what was written to it"
    finish(lazy_store, "t1")
    assert "1.log" in segments(lazy_store)
    files.heal()
    assert lazy_store.checkpointer.checkpoint() == 2
    assert segments(lazy_store) == ["3.log"]
    assert lazy_store.space.check() is None


def test_what_a_sync_had_no_room_for_is_written_again(full: Store) -> None:
    """A second sync that succeeds says nothing of what the first one has given up."""
    inode = Path(full.layout.task("t1")).stat().st_ino
    full.checkpointer.checkpoint()
    assert Path(full.layout.task("t1")).stat().st_ino != inode
    assert segments(full) == ["2.log"]


def test_what_is_lost_without_room_comes_from_the_journal(full: Store) -> None:
    """The kernel may have thrown the pages away."""
    full.save_user(make_user("ann"))
    full.writer.flush()
    for path in (full.layout.task("t1"), full.layout.user("ann")):
        Path(path).write_bytes(bytes(Path(path).stat().st_size))
    full.checkpointer.checkpoint()
    assert from_json(Path(full.layout.task("t1")).read_bytes()).id == "t1"
    assert full.get_user("ann").user_id == "ann"
    assert os.listdir(full.layout.corrupt) == []


def test_what_is_newer_or_gone_since_is_not_written_again(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a checkpoint writes the tasks go on."""
    create(full, "t2", status=Status.CREATED)
    full.save_user(make_user("ann"))
    full.save_user(make_user("bob"))
    newer = make_user("ann", last_accessed=LATER)
    rotate = full.committer.rotate

    def go_on() -> int:
        sealed = rotate()
        finish(full, "t1")
        full.commit((Remove("t2"), SaveUser(newer), RemoveUser("bob")))
        return sealed

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(full.committer, "rotate", go_on)
        full.checkpointer.checkpoint()
    assert from_json(Path(full.layout.task("t1")).read_bytes()).status is Status.COMPLETED
    assert full.get_user("ann") == newer
    assert full.user_ids() == ("ann",)
    assert full.find("t2") is None


def test_the_owner_after_a_sync_without_room_rebuilds_the_index(stores: Stores, data: Path, full: Store) -> None:
    """Nobody has written it again: a row may be missing of which no record is left."""
    full.checkpointer.checkpoint()
    full.close()
    with closing(sqlite3.connect(full.layout.index)) as index:
        index.execute("DELETE FROM tasks")
        index.commit()
    later = stores.open(data)
    assert later.live_ids() == ("t1",)
    later.checkpointer.checkpoint()
    create(later, "t2")
    later.checkpointer.checkpoint()
    assert not Path(later.layout.rewrite).exists()


@pytest.mark.parametrize("call", ["open", "sync"])
def test_a_journal_that_had_no_room_either_degrades(full: Store, files: FaultyFiles, call: str) -> None:
    """With durability `process` nobody has synced it; then nothing is left to write from."""
    files.fail(call, "1.log", errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        full.checkpointer.checkpoint()
    with pytest.raises(Degraded):
        create(full, "t2")
    assert "1.log" in segments(full)


def test_a_journal_that_cannot_be_read_back_degrades(full: Store) -> None:
    """Its record is damaged, and the next one is whole."""
    create(full, "t2")
    create(full, "t3")
    path = Path(full.layout.journal) / f"{2:016d}.log"
    path.write_bytes(path.read_bytes().replace(b'"t2"', b'"T2"'))
    with pytest.raises(OSError, match="damaged"):
        full.checkpointer.checkpoint()
    assert full.committer.failure is not None
    assert "1.log" in segments(full)


def test_a_journal_that_says_nonsense_degrades(full: Store) -> None:
    """With a right checksum: somebody else has written it."""
    create(full, "t2")
    path = Path(full.layout.journal) / f"{2:016d}.log"
    path.write_bytes(encode(2, Kind.TASK, b'{"id":"t1","type":7}'))
    with pytest.raises(OSError, match="no task"):
        full.checkpointer.checkpoint()
    assert full.committer.failure is not None


def test_without_a_note_for_the_next_owner_nothing_is_dropped(full: Store, files: FaultyFiles) -> None:
    """It could not know that the index is not to be trusted."""
    Path(full.layout.rewrite).unlink()
    files.fail("open", "rewrite", errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        full.checkpointer.checkpoint()
    assert "1.log" in segments(full)


def test_a_sync_without_room_is_tried_again_by_itself(full: Store) -> None:
    """However long it is until a checkpoint would be due."""
    full.checkpointer.run_once()
    assert segments(full) == ["2.log"]
    assert full.space.shortage is None


def due(stores: Stores, data: Path, rule: CheckpointRule) -> tuple[Store, Checkpointer]:
    """A store whose checkpointer looks when the test says so."""
    store = stores.open(data, replace(LAZY, checkpoint=rule))
    return store, store.checkpointer


def test_a_full_segment_is_due(stores: Stores, data: Path) -> None:
    """Recovery costs what the journal holds."""
    store, checkpointer = due(stores, data, CheckpointRule(max_bytes=1000, interval_seconds=3600))
    create(store, "t1")
    checkpointer.run_once()
    assert segments(store) == ["1.log"]
    create(store, "t2")
    checkpointer.run_once()
    assert segments(store) == ["2.log"]


def test_an_old_one_is_due_and_an_empty_one_never(stores: Stores, data: Path) -> None:
    """An idle runner leaves the disk alone."""
    store, checkpointer = due(stores, data, CheckpointRule(max_bytes=10**9, interval_seconds=0))
    checkpointer.run_once()
    assert segments(store) == ["1.log"]
    create(store)
    checkpointer.run_once()
    checkpointer.run_once()
    assert segments(store) == ["2.log"]


def test_what_an_earlier_owner_left_is_due_though_nothing_happens(
    stores: Stores, data: Path, lazy_store: Store
) -> None:
    """Or every start would replay it again."""
    create(lazy_store)
    copy = crash(lazy_store, data.parent / "crashed")
    store, checkpointer = due(stores, copy, CheckpointRule(max_bytes=10**9, interval_seconds=0))
    checkpointer.run_once()
    assert segments(store) == ["2.log"]


def test_a_checkpoint_that_fails_by_itself_is_tried_by_itself(stores: Stores, data: Path, files: FaultyFiles) -> None:
    """The thread goes on, and says what was wrong."""
    rule = CheckpointRule(max_bytes=10**9, interval_seconds=0)
    store = stores.open(data, replace(LAZY, checkpoint=rule), files=files)
    create(store)
    files.fail("rename", "tasks")
    store.checkpointer.run_once()
    assert isinstance(store.checkpointer.failure, OSError)
    files.heal()
    store.checkpointer.run_once()
    assert segments(store) == ["2.log"]
    assert store.checkpointer.failure is None


def test_a_degraded_store_makes_no_checkpoint_by_itself(lazy_store: Store) -> None:
    """Nor fails once a second."""
    create(lazy_store)
    lazy_store.committer.degrade(OSError(errno.EIO, "broken"))
    lazy_store.checkpointer.run_once()
    assert lazy_store.checkpointer.failure is None


def test_the_thread_measures_the_room(stores: Stores, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that intake resumes by itself."""
    monkeypatch.setattr(Checkpointer, "LOOK_SECONDS", 0.001)
    store = stores.open(data)
    store.space.report_full()
    until(lambda: store.space.shortage is None)


def test_a_directory_that_is_gone_is_a_failure_not_an_end(lazy_store: Store) -> None:
    """Somebody unmounted it."""
    aside = f"{lazy_store.layout.data}.aside"
    Path(lazy_store.layout.data).rename(aside)
    lazy_store.checkpointer.run_once()
    assert isinstance(lazy_store.checkpointer.failure, FileNotFoundError)
    Path(aside).rename(lazy_store.layout.data)


def test_a_clean_end_leaves_nothing_to_replay(stores: Stores, data: Path) -> None:
    """And the next start rewrites nothing."""
    store = stores.open(data)
    create(store, "t1")
    finish(store, "t1")
    store.close()
    store.checkpointer.close()
    stores.open(data)
    assert (stores.found.records, stores.found.rewritten) == (0, 0)


def test_a_full_disk_does_not_keep_the_store_from_ending(
    stores: Stores, data: Path, files: FaultyFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """The journal keeps what the files lack; the next start writes it."""
    store = stores.open(data, LAZY, files=files)
    create(store, "t1")
    files.fail("open", "tmp/.write", errno.ENOSPC)
    store.close()
    assert "no last checkpoint" in caplog.text
    assert "not every task file is up to date" in caplog.text
    shutil.rmtree(f"{store.layout.tasks}")
    later = stores.open(data)
    assert [task.id for task in later.live()] == ["t1"]
