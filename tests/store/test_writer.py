"""Files and rows come behind what is durable, latest version only, and no reader sees that they do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from runner import task as transitions
from runner.store import Layout, Remove, RemoveUser, SaveUser, Store, TaskQuery, Update, User
from runner.store import writer as module
from runner.store.records import Removal, RemovedUser
from runner.store.scribe import Batch
from runner.store.writer import Document, Pace, Version, Writer, sort
from runner.task import Status, Task, to_json
from tests.store.samples import LATER, NOW, FaultyFiles, create, fail, finish, make_task, start, until

QUICK = Pace(write_behind_seconds=0.001, overload_seconds=0.01)
PATIENT = Pace(write_behind_seconds=0.001, overload_seconds=3600)


class Paper:
    """A pen that only remembers what it was to write; it can be held, and it can break."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.writing = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.error: OSError | None = None
        self.closed = False

    def write(self, batch: Batch) -> None:
        self.writing.release()
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        self.batches.append(batch)

    def close(self) -> None:
        self.closed = True

    @property
    def tasks(self) -> list[str]:
        """The ids in the order in which they were written."""
        return [task_id for batch in self.batches for task_id, _ in batch.tasks]


class Desk:
    """A writer with its paper, and what it told."""

    def __init__(self, pace: Pace = QUICK) -> None:
        self.paper = Paper()
        self.written: list[Version] = []
        self.indexed: list[Document] = []
        self.writer = Writer(Layout("/nowhere"), lambda: self.paper, pace, self.written.extend, self._index)
        self.writer.open()

    def _index(self, documents: Collection[Document]) -> None:
        self.indexed.extend(documents)

    def note(self, *tasks: Task, users: dict[str, User | RemovedUser] | None = None) -> None:
        """These versions are durable."""
        documents: dict[str, Document] = {task.id: Version(task, to_json(task)) for task in tasks}
        self.writer.note(*sort(documents), users or {})


@pytest.fixture
def desk() -> Desk:
    """A writer that nobody runs."""
    return Desk()


def ended(task_id: str) -> Task:
    """A task that has ended."""
    return make_task(task_id, status=Status.CANCELLED, completed_at=NOW)


def fails(act: Callable[[], object]) -> None:
    """It is refused by the disk."""
    with pytest.raises(OSError, match="no"):
        act()


def test_the_latest_version_is_written_and_no_other(desk: Desk) -> None:
    """A short task costs one file, not three."""
    running = transitions.start(make_task(), NOW)
    for task in (make_task(), running, transitions.complete(running, 1, LATER)):
        desk.note(task)
    desk.writer.run_once()
    (task_id, body), *rest = desk.paper.batches[0].tasks
    assert (task_id, json.loads(body)["status"], rest) == ("t1", "completed", [])
    assert desk.writer.run_once() == 0


def test_few_waiting_tasks_are_written_at_the_next_pass(desk: Desk) -> None:
    """A person with `cat` sees at most 50 ms of it."""
    desk.note(make_task("t1"), make_task("t2"))
    desk.writer.run_once()
    assert desk.paper.tasks == ["t1", "t2"]


def test_many_waiting_tasks_wait_longer_than_finished_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of them end before their turn comes."""
    monkeypatch.setattr(module, "BUSY", 1)
    desk = Desk(PATIENT)
    desk.note(make_task("t1"), make_task("t2"), ended("t3"))
    desk.writer.run_once()
    assert desk.paper.tasks == ["t3"]
    desk.writer.flush()
    assert desk.paper.tasks == ["t3", "t1", "t2"]


def test_a_waiting_task_that_ends_meanwhile_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is revived counts as waiting again."""
    monkeypatch.setattr(module, "BUSY", 0)
    desk = Desk(PATIENT)
    desk.note(make_task("t1"), ended("t2"))
    desk.note(ended("t1"), make_task("t2"))
    desk.writer.run_once()
    assert desk.paper.tasks == ["t1"]


def test_a_pass_is_a_slice_at_a_time_oldest_first(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What memory a pass takes, and how long a list waits for one, is bounded."""
    monkeypatch.setattr(module, "SLICE", 2)
    desk.note(*[ended(f"t{number}") for number in range(5)])
    desk.writer.run_once()
    assert [len(batch.tasks) for batch in desk.paper.batches] == [2, 2, 1]
    assert desk.paper.tasks == [f"t{number}" for number in range(5)]


def test_flush_writes_all_that_was_noted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended, unfinished, users, rows: a checkpoint drops what the journal says of them."""
    monkeypatch.setattr(module, "SLICE", 2)
    user = User(user_id="u", created_at=NOW, last_accessed=NOW)
    desk.note(*[make_task(f"w{number}") for number in range(5)], users={"u": user})
    desk.note(*[ended(f"t{number}") for number in range(5)], users={"v": RemovedUser("v")})
    desk.writer.flush()
    batches = desk.paper.batches
    assert sorted(desk.paper.tasks) == sorted([f"{kind}{number}" for kind in "tw" for number in range(5)])
    assert [user_id for batch in batches for user_id, _ in batch.users] == ["u"]
    assert [user_id for batch in batches for user_id in batch.removed_users] == ["v"]
    assert sum(len(batch.rows) for batch in batches) == 10
    assert (desk.writer.backlog, len(desk.indexed), len(desk.written)) == (0, 10, 10)


def test_flush_ends_though_more_comes_in_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a checkpoint under load would never come."""
    monkeypatch.setattr(module, "SLICE", 2)
    desk = Desk()
    fresh = iter(range(1_000_000))

    class Busy(Paper):
        def write(self, batch: Batch) -> None:
            super().write(batch)
            desk.note(*[ended(f"n{next(fresh)}") for _ in range(5)], make_task(f"w{next(fresh)}"))

    desk.paper = Busy()
    desk.writer.open()
    desk.note(*[ended(f"t{number}") for number in range(5)], make_task("w"))
    desk.writer.flush()
    assert {f"t{number}" for number in range(5)} | {"w"} <= set(desk.paper.tasks)


def test_removals_are_written_with_their_rows(desk: Desk) -> None:
    """File, log, inputs, outputs and row go together."""
    desk.writer.note({}, {"t1": Removal("t1", "u")}, {})
    desk.writer.flush()
    assert desk.paper.batches[0].removals == [Removal("t1", "u")]
    assert desk.paper.batches[0].gone == ["t1"]


def test_rows_alone_can_be_written(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a list that is asked for before the files' turn has come."""
    monkeypatch.setattr(module, "SLICE", 2)
    desk.note(*[make_task(f"t{number}") for number in range(5)])
    desk.writer.flush_rows()
    assert (desk.paper.tasks, [len(batch.rows) for batch in desk.paper.batches]) == ([], [2, 2, 1])


def test_a_list_waits_for_rows_that_a_pass_has_just_taken(desk: Desk) -> None:
    """They are in nobody's hands but the pen's."""
    desk.paper.gate.clear()
    desk.note(ended("t1"))
    writing = threading.Thread(target=desk.writer.run_once)
    writing.start()
    assert desk.paper.writing.acquire(timeout=20)
    asking = threading.Thread(target=desk.writer.flush_rows)
    asking.start()
    asking.join(0.05)
    assert asking.is_alive()
    desk.paper.gate.set()
    asking.join(20)
    writing.join(20)
    assert len(desk.indexed) == 1


def test_whoever_waits_comes_before_whoever_has_just_had_a_turn(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is answered in the midst of a long pass, not behind it."""
    monkeypatch.setattr(module, "SLICE", 1)
    desk.paper.gate.clear()
    desk.note(*[ended(f"t{number}") for number in range(200)])
    writing = threading.Thread(target=desk.writer.run_once)
    writing.start()
    assert desk.paper.writing.acquire(timeout=20)
    left: list[int] = []

    def ask() -> None:
        desk.writer.flush_rows()
        left.append(desk.writer.backlog)

    asking = threading.Thread(target=ask)
    asking.start()
    until(desk.writer._next_turn.locked)
    desk.paper.gate.set()
    asking.join(20)
    writing.join(20)
    assert left[0] > 100


def test_readers_find_a_document_wherever_it_is_between_memory_and_disk(desk: Desk) -> None:
    """Noted, being written, and put back after a failure; then, and only then, it is in its file."""
    user = User(user_id="u", created_at=NOW, last_accessed=NOW)
    desk.note(ended("t1"), users={"u": user})
    seen = [(desk.writer.find("t1"), desk.writer.find_user("u"))]
    desk.paper.gate.clear()
    desk.paper.error = OSError("no")
    writing = threading.Thread(target=desk.writer.flush_rows)
    failing = threading.Thread(target=fails, args=(desk.writer.run_once,))
    failing.start()
    assert desk.paper.writing.acquire(timeout=20)
    seen.append((desk.writer.find("t1"), desk.writer.find_user("u")))
    desk.paper.gate.set()
    failing.join(20)
    writing.start()
    writing.join(20)
    seen.append((desk.writer.find("t1"), desk.writer.find_user("u")))
    assert seen == [seen[0]] * 3
    assert seen[0][0] is not None
    assert seen[0][1] == user
    desk.paper.error = None
    desk.writer.run_once()
    assert (desk.writer.find("t1"), desk.writer.find_user("u")) == (None, None)


def test_a_version_that_could_not_be_written_does_not_replace_a_newer_one(desk: Desk) -> None:
    """What came in during the failure is what will be written."""
    desk.paper.gate.clear()
    desk.paper.error = OSError("no")
    desk.note(make_task("t1"), ended("t2"))
    failing = threading.Thread(target=fails, args=(desk.writer.flush,))
    failing.start()
    assert desk.paper.writing.acquire(timeout=20)
    newer = transitions.retry(ended("t2"), LATER)
    desk.note(newer)
    desk.paper.gate.set()
    failing.join(20)
    assert isinstance(desk.writer.failure, OSError)
    desk.paper.error = None
    desk.writer.flush()
    bodies = dict(document for batch in desk.paper.batches for document in batch.tasks)
    assert bodies == {"t1": to_json(make_task("t1")), "t2": to_json(newer)}
    assert desk.writer.failure is None


def test_submissions_wait_while_the_files_are_far_behind(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not for ever."""
    monkeypatch.setattr(module, "BACKLOG", 4)
    assert desk.writer.wait_for_room(0)
    desk.note(*[ended(f"t{number}") for number in range(5)])
    assert not desk.writer.wait_for_room(0)
    desk.writer.flush()
    assert desk.writer.wait_for_room(0)


def run_in_thread(desk: Desk) -> threading.Thread:
    """The writer's own thread."""
    thread = threading.Thread(target=desk.writer.run)
    thread.start()
    return thread


def test_the_thread_writes_by_itself_and_again_after_a_failure(desk: Desk) -> None:
    """The journal holds what the files would say; nobody has to do anything."""
    desk.paper.error = OSError("no")
    thread = run_in_thread(desk)
    desk.note(ended("t1"))
    until(lambda: desk.writer.failure is not None)
    desk.paper.error = None
    until(lambda: desk.paper.tasks == ["t1"])
    desk.writer.stop()
    thread.join(20)
    desk.writer.close()
    desk.writer.close()
    assert desk.paper.closed


@pytest.mark.parametrize("pace", [PATIENT, Pace(write_behind_seconds=3600, overload_seconds=3600)])
def test_stopping_does_not_wait_for_a_pause(pace: Pace) -> None:
    """Neither for that between passes nor for that after a failure."""
    desk = Desk(pace)
    desk.paper.error = OSError("no")
    thread = run_in_thread(desk)
    desk.note(ended("t1"))
    until(lambda: desk.writer.failure is not None or pace is not PATIENT)
    desk.writer.stop()
    thread.join(20)
    assert not thread.is_alive()
    with pytest.raises(OSError, match="no"):
        desk.writer.close()
    assert desk.paper.closed


def test_what_is_not_due_yet_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a further change to wake the thread."""
    monkeypatch.setattr(module, "BUSY", 0)
    desk = Desk(Pace(write_behind_seconds=0, overload_seconds=0.02))
    thread = run_in_thread(desk)
    desk.note(make_task("t1"))
    until(lambda: desk.paper.tasks == ["t1"])
    desk.writer.stop()
    thread.join(20)


def test_of_many_waiting_tasks_only_those_are_written_that_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many others come, go on or end meanwhile."""
    monkeypatch.setattr(module, "BUSY", 0)
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    desk = Desk(Pace(write_behind_seconds=0, overload_seconds=4))
    desk.note(make_task("brief"))
    for now, written in ((2.0, []), (3.9, []), (4.0, ["t2"]), (5.9, []), (6.0, ["t3.9", "t4"])):
        desk.paper.batches.clear()
        desk.note(make_task(f"t{now:g}"), make_task("changing"))
        desk.writer.run_once()
        assert desk.paper.tasks == written
        desk.note(ended("brief"))
        desk.writer.run_once()
        assert desk.paper.tasks == [*written, "brief"]


@pytest.mark.parametrize("crowd", [2, 1000])
def test_flush_writes_the_older_and_the_newer_of_those_that_wait(monkeypatch: pytest.MonkeyPatch, crowd: int) -> None:
    """All of them, though together they are no more than a slice, and however many come meanwhile."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for name, value in (("BUSY", 0), ("CROWD", crowd), ("SLICE", 3)):
        monkeypatch.setattr(module, name, value)
    desk = Desk(PATIENT)
    desk.note(make_task("t1"), make_task("t2"))
    now = PATIENT.overload_seconds
    desk.writer.run_once()
    desk.note(make_task("t3"))
    write = desk.paper.write

    def write_while_others_come(batch: Batch) -> None:
        desk.note(*[make_task(f"{kind}{len(desk.paper.batches)}") for kind in "xyz"])
        write(batch)

    monkeypatch.setattr(desk.paper, "write", write_while_others_come)
    desk.writer.flush()
    assert {"t1", "t2", "t3"} <= set(desk.paper.tasks)


def test_without_syncfs_every_path_is_remembered_until_the_checkpoint(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, their directories and the index: each is synced for itself there."""
    monkeypatch.setattr(module, "HAS_SYNCFS", False)
    desk.note(ended("t1"), users={"u": RemovedUser("u")})
    desk.writer.flush()
    layout = Layout("/nowhere")
    assert desk.writer.take_paths() == {
        layout.task("t1"), layout.user("u"), layout.tasks, layout.users, layout.index, f"{layout.index}-wal",
    }  # fmt: skip
    assert desk.writer.take_paths() == set()


# With the store


def test_a_person_can_read_a_task_in_its_file(store: Store) -> None:
    """Soon after it was accepted."""
    create(store)
    path = Path(store.layout.task("t1"))
    until(path.exists)
    assert path.read_text().splitlines()[:2] == ["{", '  "id": "t1",']


def test_a_reader_sees_no_lag(lazy_store: Store) -> None:
    """Tasks that wait, run, have ended, were revived, were removed; and users."""
    user = User(user_id="u", created_at=NOW, last_accessed=NOW)
    create(lazy_store, "wait", "run", "done", "again", "gone")
    start(lazy_store, "run")
    finish(lazy_store, "done")
    for task_id in ("again", "gone"):
        fail(lazy_store, task_id)
    lazy_store.commit((Update("again", lambda task: transitions.retry(task, LATER)), Remove("gone"), SaveUser(user)))
    seen = {task_id: task.status if (task := lazy_store.find(task_id)) else None for task_id in
            ("wait", "run", "done", "again", "gone")}  # fmt: skip
    assert seen == {"wait": "pending", "run": "processing", "done": "completed", "again": "pending", "gone": None}
    assert lazy_store.get_user("u") == user
    assert {task.id for task in lazy_store.list(TaskQuery()).tasks} == {"wait", "run", "done", "again"}
    assert not Path(lazy_store.layout.task("done")).exists()


def test_a_removed_user_is_gone_at_once(lazy_store: Store) -> None:
    """Before and after the file is."""
    user = User(user_id="u", created_at=NOW, last_accessed=NOW)
    lazy_store.save_user(user)
    lazy_store.writer.flush()
    lazy_store.commit((RemoveUser("u"),))
    assert lazy_store.writer.find_user("u") == RemovedUser("u")
    lazy_store.writer.flush()
    assert not Path(lazy_store.layout.user("u")).exists()


@pytest.mark.parametrize("call", ["open", "write", "rename"])
def test_files_that_cannot_be_written_lose_nothing(store: Store, files: FaultyFiles, call: str) -> None:
    """They come when the disk lets them."""
    files.fail(call, "tasks" if call == "rename" else "tmp/.write", times=3)
    create(store)
    finish(store)
    until(Path(store.layout.task("t1")).exists)
    assert store.get_task("t1").status is Status.COMPLETED


def test_a_crowd_of_waiting_tasks_is_written_at_once_and_slows_submissions_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each takes memory until it is written, the newest for the longest. Nobody is refused for that."""
    monkeypatch.setattr(module, "BUSY", 0)
    monkeypatch.setattr(module, "CROWD", 2)
    monkeypatch.setattr(module, "CROWDED_SECONDS", 0.01)
    desk = Desk(PATIENT)
    desk.note(make_task("t1"), make_task("t2"))
    desk.writer.run_once()
    assert desk.paper.tasks == []
    desk.note(make_task("t3"))
    assert not desk.writer.has_room
    assert desk.writer.wait_for_room(1)
    desk.writer.run_once()
    assert desk.paper.tasks == ["t3", "t2", "t1"]
    assert desk.writer.has_room


def test_a_crowd_that_ends_by_itself_is_not_written_but_for_those_that_wait_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many end in a moment as there are; when they stop to, the rest is written."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for name, value in (("BUSY", 0), ("CROWD", 2)):
        monkeypatch.setattr(module, name, value)
    desk = Desk(Pace(write_behind_seconds=0, overload_seconds=4))
    desk.note(*[ended(f"e{number}") for number in range(5)])
    for now, written in ((1.0, []), (1.4, []), (2.0, ["t2.0", "t1.4", "t1.0", "c2", "c1"])):
        desk.note(make_task("c1"), make_task("c2"), make_task(f"t{now}"))
        desk.writer.run_once()
        assert [name for name in desk.paper.tasks if name[0] != "e"] == written
    assert desk.writer.has_room


def test_a_crowd_after_a_silence_is_given_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows yet how quickly it ends."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for name, value in (("BUSY", 0), ("CROWD", 2)):
        monkeypatch.setattr(module, name, value)
    desk = Desk(Pace(write_behind_seconds=0, overload_seconds=4))
    for now, written in ((1000.0, []), (1000.4, []), (1000.5, ["t3", "t2", "t1"])):  # noqa: B007 - the clock
        desk.note(make_task("t1"), make_task("t2"), make_task("t3"))
        desk.writer.run_once()
        assert desk.paper.tasks == written


def test_a_crowd_that_does_not_end_is_written_however_rare_passes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk, or a long `write_behind_seconds`, is no silence."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for name, value in (("BUSY", 0), ("CROWD", 2)):
        monkeypatch.setattr(module, name, value)
    desk = Desk(Pace(write_behind_seconds=3, overload_seconds=40))
    for now, written in ((1000.0, []), (1003.0, ["t3", "t2", "t1"])):  # noqa: B007 - the clock
        desk.note(make_task("t1"), make_task("t2"), make_task("t3"))
        desk.writer.run_once()
        assert desk.paper.tasks == written


def test_what_the_disk_refused_keeps_its_order(desk: Desk) -> None:
    """Oldest first, however often it is tried."""
    ids = [f"t{number}" for number in range(40)]
    desk.note(*map(ended, ids))
    desk.paper.error = OSError("no")
    fails(desk.writer.run_once)
    desk.paper.error = None
    desk.writer.run_once()
    assert desk.paper.tasks == ids
