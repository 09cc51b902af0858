"""Nobody is told of anything before it is durable, and a disk that fails never makes the store say what is not so."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from runner import task as transitions
from runner.errors import Degraded, DiskFull, NotFound, RunnerError, ShuttingDown
from runner.store import Create, Durability, Store, Transition, Update
from runner.store.changes import Stage
from runner.store.committer import MAX_BATCH, Committer, Group, Ticket
from runner.store.space import Floors
from runner.task import Status, Task
from tests.store.samples import LAZY, NOW, FaultyFiles, News, Quick, Stores, crash, create, make_task, until


class GatedFiles(FaultyFiles):
    """A disk whose syncs of the journal wait until they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.threads: list[str] = []

    def datasync(self, fd: int) -> None:
        self.threads.append(threading.current_thread().name)
        self.waiting.release()
        assert self.gate.wait(20)
        super().datasync(fd)


@pytest.fixture
def gated() -> GatedFiles:
    """A disk whose gate is open."""
    return GatedFiles()


@pytest.fixture
def hasty(stores: Stores, data: Path, news: News, gated: GatedFiles) -> Store:
    """A store on a quick disk."""
    store = stores.open(data, LAZY, news, gated)
    store.committer.quickness = Quick()
    return store


class Answers:
    """Remembers what a group was told."""

    def __init__(self) -> None:
        self.told: list[RunnerError | None] = []
        self._count = threading.Semaphore(0)

    def __call__(self, tasks: Sequence[Task | None], error: RunnerError | None) -> None:
        self.told.append(error)
        self._count.release()

    def wait(self, count: int) -> list[RunnerError | None]:
        """The answers, once there are so many."""
        for _ in range(count):
            assert self._count.acquire(timeout=20)
        return self.told


def starting(task_id: str) -> Update:
    """Its next attempt begins."""
    return Update(task_id, lambda task: transitions.start(task, NOW))


def test_nobody_sees_or_is_told_of_a_change_before_its_sync(
    stores: Stores, data: Path, news: News, gated: GatedFiles
) -> None:
    """Memory, list, listener and caller: all of them wait for the disk."""
    store = stores.open(data, LAZY, news, gated)
    gated.gate.clear()
    answers = Answers()
    store.submit((Create(make_task()),), answers)
    assert gated.waiting.acquire(timeout=20)
    assert (store.find("t1"), news.durable, answers.told) == (None, [], [])
    gated.gate.set()
    assert answers.wait(1) == [None]
    assert [transition.task.id for transition in news.durable] == ["t1"]
    assert store.get_task("t1").status is Status.PENDING


def test_what_is_written_is_told_as_written_while_the_sync_still_goes(
    stores: Stores, data: Path, news: News, gated: GatedFiles
) -> None:
    """An attempt that may be repeated need not wait for the disk; and changes behind it see it."""
    store = stores.open(data, LAZY, news, gated)
    gated.gate.clear()
    answers = Answers()
    store.submit((Create(make_task()),), answers)
    assert gated.waiting.acquire(timeout=20)
    store.submit((starting("t1"),), answers)
    store.submit((starting("t1"),), answers)
    until(lambda: len(news.written) == 2)
    assert [transition.task.status for transition in news.written] == [Status.PENDING, Status.PROCESSING]
    assert news.durable == []
    gated.gate.set()
    assert [error is None for error in answers.wait(3)] == [True, True, False]
    assert store.get_task("t1").status is Status.PROCESSING


def test_in_durability_process_nothing_is_synced(stores: Stores, data: Path, files: FaultyFiles) -> None:
    """`kill -9` is survived; a power cut is not promised."""
    files.fail("datasync")
    store = stores.open(data, replace(LAZY, durability=Durability.PROCESS), files=files)
    create(store, "t1")
    stores.open(crash(store, data.parent / "crashed"))
    assert [task.id for task in stores.found.live] == ["t1"]


def test_more_than_one_batch_of_groups_is_committed_in_order(lazy_store: Store, news: News) -> None:
    """Each group of one thread after the one before."""
    answers, begun, gate = Answers(), threading.Event(), threading.Event()

    def wait(task: Task) -> Task:
        begun.set()
        gate.wait(20)
        return task

    create(lazy_store, "first")
    lazy_store.submit((Update("first", wait),))
    assert begun.wait(20)
    for number in range(MAX_BATCH + 10):
        lazy_store.submit((Create(make_task(f"t{number}")),), answers)
    gate.set()
    assert answers.wait(MAX_BATCH + 10) == [None] * (MAX_BATCH + 10)
    assert [news.task.id for news in news.durable[1:]] == [f"t{number}" for number in range(MAX_BATCH + 10)]


def test_a_refused_group_hurts_no_other(lazy_store: Store) -> None:
    """They share a batch, not a fate."""
    answers = Answers()
    lazy_store.submit((Create(make_task("t1")),), answers)
    lazy_store.submit((starting("missing"),), answers)
    lazy_store.submit((Create(make_task("t2")),), answers)
    assert [type(error) for error in answers.wait(3)] == [type(None), NotFound, type(None)]


@pytest.mark.parametrize("durability", Durability)
def test_a_change_that_changes_nothing_is_answered_and_told_to_nobody(
    stores: Stores, data: Path, news: News, durability: Durability
) -> None:
    """There is no record of it either."""
    store = stores.open(data, replace(LAZY, durability=durability), news)
    create(store, "t1")
    assert store.commit((Update("t1", lambda task: task),)) == [make_task("t1")]
    assert len(news.durable) == 1


def test_a_group_may_want_to_hear_nothing(lazy_store: Store) -> None:
    """And one without changes is answered when all before it are durable."""
    lazy_store.submit((Create(make_task("t1")),))
    lazy_store.settle()
    assert lazy_store.find("t1") is not None


# A disk that fails


@pytest.mark.parametrize("call", ["write", "truncate"])
def test_after_a_failed_write_nothing_more_is_accepted_and_reads_go_on(
    lazy_store: Store, files: FaultyFiles, call: str
) -> None:
    """What the disk made of it cannot be known; a restart finds out."""
    create(lazy_store, "t1")
    files.fail("write", "journal", times=1)
    if call == "truncate":
        files.fail("truncate", "journal")
    for task_id in ("t2", "t3"):
        with pytest.raises(Degraded, match="Input/output error"):
            create(lazy_store, task_id)
    assert (lazy_store.get_task("t1").id, lazy_store.find("t2")) == ("t1", None)


def test_a_failed_sync_is_repeated_in_a_new_segment_once(
    lazy_store: Store, files: FaultyFiles, stores: Stores, data: Path
) -> None:
    """Never on the same descriptor: its pages are marked clean (fsyncgate)."""
    create(lazy_store, "t1")
    files.fail("datasync", times=1)
    create(lazy_store, "t2")
    create(lazy_store, "t3")
    old = Path(lazy_store.layout.journal, "0000000000000001.log")
    crashed = crash(lazy_store, data.parent / "crashed")
    # The kernel may have dropped whatever that sync was for.
    size = len(old.read_bytes()) // 2 + 1
    (crashed / "journal" / old.name).write_bytes(old.read_bytes()[:size])
    later = stores.open(crashed)
    assert sorted(task.id for task in later.live()) == ["t1", "t2", "t3"]
    assert stores.found.notes == []


def test_what_was_appended_during_a_failing_sync_is_repeated_too(stores: Stores, data: Path, gated: GatedFiles) -> None:
    """It lies in the old segment, behind what could not be synced; a sync of the new one says nothing about it."""
    store = stores.open(data, LAZY, files=gated)
    gated.gate.clear()
    answers = Answers()
    store.submit((Create(make_task("t1")),), answers)
    assert gated.waiting.acquire(timeout=20)
    store.submit((Create(make_task("t2")),), answers)
    gated.fail("datasync", times=1)
    gated.gate.set()
    assert answers.wait(2) == [None, None]
    crashed = crash(store, data.parent / "crashed")
    (crashed / "journal" / "0000000000000001.log").write_bytes(b"")
    later = stores.open(crashed)
    assert sorted(task.id for task in later.live()) == ["t1", "t2"]


def test_a_question_to_the_syncer_waits_for_the_repetition(stores: Stores, data: Path, gated: GatedFiles) -> None:
    """A checkpoint that begins beside a failing sync seals what the repetition wrote."""
    store = stores.open(data, LAZY, files=gated)
    gated.gate.clear()
    store.submit((Create(make_task("t1")),))
    assert gated.waiting.acquire(timeout=20)
    sealed: list[int] = []
    thread = threading.Thread(target=lambda: sealed.append(store.committer.rotate()))
    thread.start()
    until(lambda: not store.committer._appended.empty())
    gated.fail("datasync", times=1)
    gated.gate.set()
    thread.join(20)
    assert (sealed, store.find("t1") is not None) == ([2], True)


def test_a_sync_that_fails_twice_degrades(lazy_store: Store, files: FaultyFiles) -> None:
    """Nobody is told that it is kept, and nobody is told of it later either."""
    files.fail("datasync")
    lazy_store.submit((Create(make_task("t0")),))
    for task_id in ("t1", "t2"):
        with pytest.raises(Degraded):
            create(lazy_store, task_id)
    files.heal()
    with pytest.raises(Degraded):
        create(lazy_store, "t3")
    assert list(lazy_store.live()) == []
    assert lazy_store.committer.failure is not None


def test_a_duplicate_of_what_could_not_be_kept_is_not_told_that_it_is_known(
    stores: Stores, data: Path, gated: GatedFiles
) -> None:
    """`KeyTaken` would be an acknowledgement of a task that is not there."""
    store = stores.open(data, LAZY, files=gated)
    gated.gate.clear()
    answers = Answers()
    store.submit((Create(make_task("t1", unique_key="k")),), answers)
    store.submit((Create(make_task("t2", unique_key="k")),), answers)
    gated.fail("datasync")
    gated.gate.set()
    assert [type(error) for error in answers.wait(2)] == [Degraded, Degraded]


def test_degrading_from_outside_refuses_what_follows(lazy_store: Store) -> None:
    """The checkpointer does it; the first reason stays."""
    lazy_store.committer.degrade(OSError(errno.EIO, "first"))
    lazy_store.committer.degrade(OSError(errno.EIO, "second"))
    with pytest.raises(Degraded, match="first"):
        create(lazy_store, "t1")


# A disk that is full


@pytest.fixture
def with_ballast(stores: Stores, data: Path, files: FaultyFiles) -> Store:
    """A store that keeps a ballast."""
    options = replace(LAZY, floors=Floors(min_free_bytes=0, min_free_inodes=0, ballast_bytes=100_000))
    return stores.open(data, options, files=files)


def test_on_a_full_disk_the_ballast_is_given_up(with_ballast: Store, files: FaultyFiles) -> None:
    """So that what runs can be recorded; and intake knows."""
    ballast = Path(with_ballast.layout.locks, "ballast")
    assert ballast.stat().st_size == 100_000
    files.fail("write", "journal", errno.ENOSPC, times=1)
    create(with_ballast, "t1")
    assert (ballast.exists(), with_ballast.space.shortage) == (False, "the disk is full")


def test_a_disk_that_stays_full_refuses_and_heals_by_itself(with_ballast: Store, files: FaultyFiles) -> None:
    """No restart is needed."""
    files.fail("write", "journal", errno.ENOSPC)
    with pytest.raises(DiskFull):
        create(with_ballast, "t1")
    files.heal()
    create(with_ballast, "t2")
    assert (with_ballast.find("t1"), with_ballast.committer.failure) == (None, None)


def test_a_full_disk_that_then_breaks_degrades(with_ballast: Store, files: FaultyFiles) -> None:
    """The second try says what it is now."""
    files.fail("write", "journal", errno.ENOSPC, times=1)
    files.fail("write", "journal", errno.EIO)
    with pytest.raises(Degraded):
        create(with_ballast, "t1")


def test_a_sync_for_which_there_is_no_room_gives_up_the_ballast_too(with_ballast: Store, files: FaultyFiles) -> None:
    """Some filesystems find room only then."""
    files.fail("datasync", "journal", errno.ENOSPC, times=1)
    create(with_ballast, "t1")
    assert not Path(with_ballast.layout.locks, "ballast").exists()


# Sealing and ending


def test_a_segment_is_sealed_when_all_that_it_says_is_published(
    stores: Stores, data: Path, news: News, gated: GatedFiles
) -> None:
    """What a checkpoint drops has been handed to the writer."""
    store = stores.open(data, LAZY, news, gated)
    gated.gate.clear()
    store.submit((Create(make_task()),))
    assert gated.waiting.acquire(timeout=20)
    sealed: list[tuple[int, int]] = []
    thread = threading.Thread(target=lambda: sealed.append((store.committer.rotate(), len(news.durable))))
    thread.start()
    gated.gate.set()
    thread.join(20)
    assert sealed == [(1, 1)]


def test_a_segment_that_cannot_be_sealed_is_told_and_goes_on(lazy_store: Store, files: FaultyFiles) -> None:
    """No descriptor was left; the next checkpoint tries again."""
    create(lazy_store, "t1")
    files.fail("open", "journal", errno.EMFILE, times=1)
    with pytest.raises(OSError, match="Too many open files"):
        lazy_store.committer.rotate()
    create(lazy_store, "t2")
    assert lazy_store.committer.rotate() == 1


def test_what_was_submitted_before_the_end_is_committed(stores: Stores, data: Path, gated: GatedFiles) -> None:
    """However long the disk takes over it."""
    store = stores.open(data, LAZY, files=gated)
    gated.gate.clear()
    answers = Answers()
    store.submit((Create(make_task("t1")),), answers)
    assert gated.waiting.acquire(timeout=20)
    store.submit((Create(make_task("t2")),), answers)
    store.committer.stop()
    until(lambda: store.committer._ended)
    gated.gate.set()
    assert answers.wait(2) == [None, None]


def test_what_comes_after_the_end_is_refused(lazy_store: Store) -> None:
    """At once, and nobody waits for ever."""
    lazy_store.close()
    with pytest.raises(ShuttingDown):
        create(lazy_store, "t1")
    with pytest.raises(ShuttingDown):
        lazy_store.committer.rotate()


def test_what_comes_in_beside_the_end_is_answered(lazy_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who looked just before `stop`, and put just after the last look into the queue."""
    lazy_store.close()
    answers = Answers()
    monkeypatch.setattr(lazy_store.committer, "closed", False)
    lazy_store.submit((Create(make_task()),), answers)
    lazy_store.submit((Create(make_task()),))
    assert [type(error) for error in answers.wait(1)] == [ShuttingDown]


def test_what_lies_behind_the_end_in_the_queue_is_answered(lazy_store: Store) -> None:
    """Committed or refused: the committer looks once more when it ends."""
    committer: Committer = lazy_store.committer
    answers = Answers()

    def hold(tasks: Sequence[Task | None], error: RunnerError | None) -> None:
        # On the syncer's thread, while the committer is free to read on: put in what a latecomer would.
        committer.stop()
        committer._queue.put(Group((Create(make_task("t2")),), answers))

    lazy_store.submit((Create(make_task("t1")),), hold)
    assert [type(error) for error in answers.wait(1)] in ([type(None)], [ShuttingDown])


def test_a_ticket_raises_why_a_group_was_refused() -> None:
    """And returns its tasks otherwise."""
    good, bad = Ticket(), Ticket()
    good((make_task(),), None)
    bad((), DiskFull("full"))
    assert good.wait() == (make_task(),)
    with pytest.raises(DiskFull):
        bad.wait()


# Whoever leads


def test_a_thread_appends_what_it_has_queued_itself(lazy_store: Store) -> None:
    """No other thread has to be woken for that."""
    threads: list[str] = []

    def work() -> None:
        lazy_store.queue((Noting(lambda: threads.append(threading.current_thread().name)),))
        lazy_store.drive()

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()
    assert threads == ["worker"]


def test_the_main_thread_never_appends(lazy_store: Store) -> None:
    """A signal could interrupt it between the record and its acknowledgement."""
    threads: list[str] = []
    lazy_store.commit((Noting(lambda: threads.append(threading.current_thread().name)),))
    assert threads == ["committer"]


def test_a_thread_that_is_deep_in_calls_never_appends(lazy_store: Store) -> None:
    """A handler that has called itself often hands in tasks too; its `RecursionError` is not the store's."""
    threads: list[str] = []

    def dive(levels: int) -> None:
        if levels:
            dive(levels - 1)
        else:
            lazy_store.commit((Noting(lambda: threads.append(threading.current_thread().name)),))

    for levels in (0, sys.getrecursionlimit() - 100):
        thread = threading.Thread(target=dive, args=(levels,), name="worker")
        thread.start()
        thread.join()
    assert threads == ["worker", "committer"]


def test_what_is_queued_while_another_thread_leads_is_appended_by_that_one(lazy_store: Store) -> None:
    """The latecomer does not wait."""
    order: list[str] = []

    def queue_more() -> None:
        lazy_store.queue((Noting(lambda: order.append(threading.current_thread().name)),))
        latecomer = threading.Thread(target=lazy_store.drive)
        latecomer.start()
        latecomer.join(20)
        order.append("latecomer gone")

    lazy_store.submit((Noting(queue_more),))
    until(lambda: len(order) == 2)
    assert order == ["latecomer gone", "committer"]


def test_what_is_to_be_driven_soon_is_appended_by_itself(lazy_store: Store) -> None:
    """Even if the thread that queued it never comes back."""
    answers = Answers()
    lazy_store.queue((Create(make_task()),), answers)
    lazy_store.drive_soon()
    assert answers.wait(1) == [None]


def test_who_waits_for_the_disk_syncs_itself(hasty: Store, news: News, gated: GatedFiles) -> None:
    """No thread has to be woken; and when `drive_here` returns everybody has been told."""
    answers = Answers()
    hasty.queue((Create(make_task("t1")),), answers)
    hasty.drive_here()
    assert (gated.threads, answers.told) == ([threading.current_thread().name], [None])
    worker = threading.Thread(target=create, args=(hasty, "t2"), name="worker")
    worker.start()
    worker.join(20)
    assert gated.threads[1:] == ["worker"]
    assert [transition.task.id for transition in news.durable] == ["t1", "t2"]


def test_nothing_is_told_early_by_who_syncs_itself(hasty: Store, news: News, gated: GatedFiles) -> None:
    """Nor do those get lost who find the lead taken meanwhile."""
    gated.gate.clear()
    answers, others = Answers(), Answers()
    hasty.queue((Create(make_task("t1")),), answers)
    thread = threading.Thread(target=hasty.drive_here)
    thread.start()
    assert gated.waiting.acquire(timeout=20)
    hasty.queue((starting("t1"),), others)
    hasty.drive()
    seen = (hasty.find("t1"), news.durable, answers.told, others.told)
    gated.gate.set()
    assert seen == (None, [], [], [])
    assert (answers.wait(1), others.wait(1)) == ([None], [None])
    assert hasty.get_task("t1").status is Status.PROCESSING
    thread.join(20)


def test_what_follows_what_is_being_synced_waits_its_turn(hasty: Store, news: News, gated: GatedFiles) -> None:
    """Whoever leads leaves it to the syncer, so that the news stay in order, and the event loop does not wait."""
    gated.gate.clear()
    answers = Answers()
    hasty.submit((Create(make_task("t1")),), answers)
    assert gated.waiting.acquire(timeout=20)
    hasty.queue((starting("t1"),), answers)
    hasty.drive_here()
    early = tuple(answers.told)
    gated.gate.set()
    assert (early, answers.wait(2)) == ((), [None, None])
    assert [transition.task.status for transition in news.durable] == [Status.PENDING, Status.PROCESSING]
    assert set(gated.threads) == {"syncer"}


def test_a_disk_that_may_be_slow_is_left_to_the_syncer(stores: Stores, data: Path, gated: GatedFiles) -> None:
    """The event loop never waits for it, and the lead is not held as long."""
    store = stores.open(data, LAZY, files=gated)
    gated.gate.clear()
    answers = Answers()
    store.queue((Create(make_task()),), answers)
    store.drive_here()
    early = tuple(answers.told)
    gated.gate.set()
    assert (early, answers.wait(1)) == ((), [None])
    assert gated.threads == ["syncer"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_sync_that_fails_is_repeated_by_who_waits_for_it(
    hasty: Store, gated: GatedFiles, stores: Stores, data: Path, times: int
) -> None:
    """As the syncer does it: once, in a new segment, and after that nothing is accepted."""
    gated.fail("datasync", times=times)
    answers = Answers()
    hasty.queue((Create(make_task("t1")),), answers)
    hasty.drive_here()
    assert [type(error) for error in answers.told] == [type(None) if times == 1 else Degraded]
    assert (hasty.find("t1") is None) is (times == 2)
    crashed = crash(hasty, data.parent / "crashed")
    (crashed / "journal" / "0000000000000001.log").write_bytes(b"")
    assert [task.id for task in stores.open(crashed).live()] == ["t1"]


def test_a_segment_is_sealed_behind_what_was_synced_by_its_own_thread(hasty: Store, stores: Stores, data: Path) -> None:
    """A checkpoint asks the syncer, who has nothing to do with it."""
    for number in range(3):
        create(hasty, f"t{number}")
        hasty.committer.rotate()
    later = stores.open(crash(hasty, data.parent / "crashed"))
    assert sorted(task.id for task in later.live()) == ["t0", "t1", "t2"]


def test_a_fault_on_a_foreign_thread_ends_the_committers(lazy_store: Store) -> None:
    """A listener that raises must end the process, not the thread of a handler."""
    committer = lazy_store.committer
    committer._listener = Faulty()
    stopped = threading.Event()
    seen: list[str] = []

    def note(args: threading.ExceptHookArgs) -> None:
        seen.append(str(args.exc_value))
        stopped.set()

    hook, threading.excepthook = threading.excepthook, note
    try:
        lazy_store.queue((Create(make_task()),))
        thread = threading.Thread(target=lazy_store.drive)
        thread.start()
        thread.join()
        assert stopped.wait(20)
    finally:
        threading.excepthook = hook
    assert seen == ["a listener that raises"]
    committer.run_once = lambda: False  # type: ignore[method-assign]
    committer.run()


class Noting:
    """A change that changes nothing, and calls somebody when it is applied."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def apply(self, stage: Stage) -> None:
        """See `Change`."""
        self._call()


class Faulty(News):
    """A listener with a fault."""

    def appended(self, transitions: list[Transition]) -> None:
        raise ZeroDivisionError("a listener that raises")
