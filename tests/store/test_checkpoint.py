"""A segment is dropped only when what it says is on the disk elsewhere, in this order, or not at all."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from runner.errors import Degraded
from runner.store import Store
from runner.store import writer as writer_module
from runner.store.checkpoint import Checkpointer, CheckpointRule
from tests.store.samples import LAZY, FaultyFiles, Stores, crash, create, finish, until


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
