"""The store as its users see it: reads, lists, changes, ends."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import runner.store
from runner import task as transitions
from runner.errors import NotFound
from runner.store import Create, Durability, Remove, Store, TaskQuery, Update
from runner.store.store import ScribePlace
from runner.task import Progress, Status, to_json
from tests.store.samples import (
    LATER,
    LAZY,
    NOW,
    OPTIONS,
    FaultyFiles,
    News,
    Stores,
    crash,
    create,
    fail,
    finish,
    make_task,
    start,
    until,
)


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("place", ScribePlace)
def test_a_task_lives_in_every_mode(stores: Stores, data: Path, durability: Durability, place: ScribePlace) -> None:
    """From its submission to its end, over a restart, and to its removal."""
    options = replace(OPTIONS, durability=durability, scribe=place)
    store = stores.open(data, options)
    create(store, "t1")
    finish(store, "t1")
    store.close()
    store = stores.open(data, options)
    assert store.get_task("t1").status is Status.COMPLETED
    store.commit((Remove("t1"),))
    assert store.find("t1") is None
    until(lambda: not Path(store.layout.task("t1")).exists())


def test_a_listener_is_told_once_of_each_change_in_order(lazy_store: Store, news: News) -> None:
    """Of the status before, of what it is now, and of what is gone."""
    create(lazy_store, "t1")
    fail(lazy_store, "t1")
    lazy_store.commit((Remove("t1"),))
    told = [(one.before, one.task.status, one.removed) for one in news.durable]
    assert told == [
        (None, "pending", False),
        ("pending", "processing", False),
        ("processing", "failed", False),
        ("failed", "failed", True),
    ]
    assert news.written == news.durable


@pytest.mark.parametrize("task_id", ["", "../VERSION", "a/b", "\0", "x" * 65, "x" * 300, "\udcff", "T1", "t1.json"])
def test_what_cannot_be_an_id_never_touches_the_disk(lazy_store: Store, task_id: str) -> None:
    """It is not there, like any other."""
    create(lazy_store, "t1")
    with pytest.raises(NotFound):
        lazy_store.get_task(task_id)
    assert os.listdir(lazy_store.layout.corrupt) == []


def test_a_file_with_another_id_is_not_the_task(lazy_store: Store) -> None:
    """On a disk that does not tell cases apart, T1 would find t1."""
    Path(lazy_store.layout.task("T1")).write_bytes(to_json(make_task("t1")))
    assert lazy_store.find("T1") is None
    assert Path(lazy_store.layout.task("T1")).exists()


def test_waiting_tasks_are_kept_small_and_read_the_same(lazy_store: Store) -> None:
    """Most of a million tasks wait; once written, they are kept as JSON."""
    create(lazy_store, "t1", payload={"a": [1, 2.5, None]})
    start(lazy_store, "t1")
    create(lazy_store, "t2", payload={"a": [1, 2.5, None]})
    before = {task.id: task for task in lazy_store.live()}
    lazy_store.writer.flush()
    assert {task.id: task for task in lazy_store.live()} == before
    assert (lazy_store.find("t2"), lazy_store.live_count) == (before["t2"], 2)
    assert [type(live) for live in lazy_store._live.values()] == [transitions.Task, bytes]


def test_a_task_that_goes_while_all_are_told_is_left_out(lazy_store: Store) -> None:
    """As of some moment during the iteration."""
    create(lazy_store, "t1", "t2")
    telling = lazy_store.live()
    next(telling)
    lazy_store.commit([Update(task_id, lambda task: transitions.cancel(task, NOW)) for task_id in ("t1", "t2")])
    assert list(telling) == []


def test_a_task_is_gone_when_it_was_removed_and_not_while_the_disk_does_not_say(
    lazy_store: Store, files: FaultyFiles
) -> None:
    """Whoever asks is about to remove something."""
    create(lazy_store, "wait", "done", "removed")
    finish(lazy_store, "done")
    finish(lazy_store, "removed")
    lazy_store.commit((Remove("removed"),))
    lazy_store.writer.flush()
    files.fail("open", "done.json")
    assert [lazy_store.is_gone(task_id) for task_id in ("wait", "done", "removed", "never")] == [
        False, False, True, True,
    ]  # fmt: skip


def test_progress_is_seen_at_once_while_its_attempt_runs(lazy_store: Store) -> None:
    """It is not durable until it is reported; and belongs to one attempt."""
    create(lazy_store, "t1")
    start(lazy_store, "t1")
    lazy_store.note_progress("t1", 1, Progress(percentage=50, updated_at=LATER))
    seen = lazy_store.get_task("t1")
    assert seen.progress is not None
    assert (seen.progress.percentage, seen.estimated_completion_at) == (50, LATER + (LATER - NOW))
    lazy_store.note_progress("t1", 7, Progress(percentage=90))
    assert lazy_store.get_task("t1").progress is None


def test_progress_of_what_is_not_running_is_forgotten(lazy_store: Store) -> None:
    """Late news of a task that has ended would stay for ever."""
    create(lazy_store, "t1")
    finish(lazy_store, "t1")
    lazy_store.note_progress("t1", 1, Progress(percentage=50))
    lazy_store.note_progress("unknown", 1, Progress(percentage=50))
    assert lazy_store._progress == {}


def test_a_list_has_what_was_just_committed(lazy_store: Store) -> None:
    """Read your writes; with a total where a page is asked for."""
    create(lazy_store, *[f"t{number}" for number in range(5)])
    page = lazy_store.list(TaskQuery(size=2, page=0))
    assert (len(page.tasks), page.total, lazy_store.count(TaskQuery())) == (2, 5, 5)
    assert lazy_store.list(TaskQuery()).total is None


def test_every_task_can_be_told_a_page_at_a_time(lazy_store: Store) -> None:
    """Those of one user too."""
    create(lazy_store, *[f"t{number}" for number in range(5)])
    create(lazy_store, "other", user_id="v")
    assert [task.id for task in lazy_store.all(TaskQuery(size=2, type="resize"))] == [
        "other", "t4", "t3", "t2", "t1", "t0",
    ]  # fmt: skip
    assert [task.id for task in lazy_store.query_user_tasks("v")] == ["other"]


def test_a_list_on_a_full_disk_is_older_and_no_error(lazy_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads go on."""
    create(lazy_store, "t1")
    lazy_store.writer.flush()
    create(lazy_store, "t2")

    def full(batch: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lazy_store.writer._pen, "write", full)
        assert [task.id for task in lazy_store.list(TaskQuery()).tasks] == ["t1"]
        assert lazy_store.writer.failure is not None
    assert [task.id for task in lazy_store.list(TaskQuery()).tasks] == ["t2", "t1"]


def test_a_damaged_file_that_cannot_be_set_aside_is_no_task_all_the_same(
    store: Store, files: FaultyFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays where it is, and the log says so."""
    Path(store.layout.task("t1")).write_bytes(b"{")
    files.fail("rename", "corrupt")
    assert store.find("t1") is None
    assert "t1.json is damaged and stays where it is" in caplog.text


def test_a_file_that_comes_back_to_life_is_found_at_every_moment(lazy_store: Store) -> None:
    """Nobody is told that a task is not there because it is just being retried."""
    create(lazy_store, "t1")
    fail(lazy_store, "t1")
    missing: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            if lazy_store.find("t1") is None:
                missing.append(1)

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(300):
        lazy_store.commit((Update("t1", lambda task: transitions.retry(task, NOW)),))
        lazy_store.commit((Update("t1", lambda task: transitions.cancel(task, NOW)),))
    done.set()
    looking.join()
    assert missing == []


def test_a_finished_task_is_found_while_it_moves_to_its_file(store: Store) -> None:
    """Memory, writer, disk: there is no gap between them."""
    missing: list[str] = []
    for number in range(100):
        create(store, f"t{number}")
        finish(store, f"t{number}")
        missing += [f"t{past}" for past in range(number + 1) if store.find(f"t{past}") is None]
    assert missing == []


def test_a_task_can_be_saved_whole(lazy_store: Store) -> None:
    """For those who keep tasks behind the narrow interface: new or known."""
    lazy_store.save_task(make_task("t1"))
    lazy_store.save_task(make_task("t1", priority=5, version=9))
    task = lazy_store.get_task("t1")
    assert (task.priority, task.version) == (5, 9)


def test_settling_waits_for_all_that_was_submitted(lazy_store: Store) -> None:
    """Durable, and told."""
    told: list[object] = []
    for number in range(50):
        lazy_store.submit((Create(make_task(f"t{number}")),), lambda tasks, error: told.append(error))
    lazy_store.settle()
    assert told == [None] * 50


def test_what_an_earlier_owners_attempts_wrote_is_not_found_by_others(stores: Stores, lazy_store: Store) -> None:
    """A power cut may take an attempt's start and leave its folder: the next attempt has the same number."""
    create(lazy_store, "t1")
    copy = crash(lazy_store, Path(f"{lazy_store.layout.data}.crashed"))
    for name in ("t1.1", "t1.1.scratch"):
        (copy / "tmp" / name).mkdir()
        (copy / "tmp" / name / "stale.txt").touch()
    (copy / "tmp" / "upload-7.part").touch()
    stores.open(copy)
    assert {name for name in os.listdir(copy / "tmp") if not name.startswith(".")} == {"upload-7.part"}


def test_what_was_submitted_is_kept_when_the_store_ends(stores: Stores, data: Path) -> None:
    """Also what nobody waited for; and it may be closed twice."""
    store = stores.open(data, LAZY)
    for number in range(50):
        store.submit((Create(make_task(f"t{number}")),))
    store.close()
    store.close()
    assert len(stores.open(data).list(TaskQuery(size=100)).tasks) == 50


def test_the_threads_end_with_the_store(stores: Stores, data: Path) -> None:
    """None is left, none is waited for."""
    before = set(threading.enumerate())
    store = stores.open(data)
    assert len(set(threading.enumerate()) - before) == 4
    store.close()
    assert set(threading.enumerate()) <= before


def test_a_store_that_cannot_be_opened_lets_go_of_everything(stores: Stores, layout: runner.store.Layout) -> None:
    """And can be opened when the reason is gone."""
    Path(layout.tmp).rmdir()
    Path(layout.tmp).touch()
    with pytest.raises(OSError, match="tmp"):
        stores.open(Path(layout.data))
    Path(layout.tmp).unlink()
    stores.open(Path(layout.data))


def test_the_package_gives_out_what_it_lists_and_nothing_else() -> None:
    """Loaded on first use: the scribe's process needs a few small modules only."""
    for name in runner.store.__all__:
        assert getattr(runner.store, name).__name__ == name or name == "Done"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        runner.store.Nothing  # noqa: B018


def test_a_task_that_waits_or_has_just_ended_is_recalled_without_the_disk(
    lazy_store: Store, files: FaultyFiles
) -> None:
    """Another one is not, even if it is there."""
    create(lazy_store, "waits", "ended", "written")
    finish(lazy_store, "written")
    lazy_store.writer.flush()
    finish(lazy_store, "ended")
    files.fail("open")
    found = {name: lazy_store.recall(name) for name in ("waits", "ended", "written", "unknown")}
    files.heal()
    assert {name: task.status for name, task in found.items() if task} == {
        "waits": Status.PENDING,
        "ended": Status.COMPLETED,
    }
