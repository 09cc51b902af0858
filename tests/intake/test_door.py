import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runner.errors import (
    Degraded,
    DiskFull,
    IllegalTransition,
    InvalidSubmission,
    KeyConflict,
    LimitReached,
    NotFound,
    Refused,
    RunnerError,
    ShuttingDown,
    UnknownHandler,
)
from runner.intake import door
from runner.intake.admission import Arrival, Origin, Submission
from runner.store import Handover, Identity, TaskQuery, Update, changes
from runner.task import Chained, Drop, Source, Status, Task, cancel, start
from tests.intake.conftest import Site

NOW = datetime.now(UTC)
Pair = tuple[Submission, Origin]


def origin(*files: Arrival, user: str = "ann") -> Origin:
    """From ann, with these files."""
    return Origin(Source.HTTP, user, files)


def submit(site: Site, *files: Arrival, type: str = "keep", **fields: Any) -> Task:
    """Hands in a submission."""
    return site.door.submit(Submission(type=type, **fields), origin(*files))


def file(site: Site, name: str = "a.txt", content: str = "content", mode: Handover = Handover.LINK) -> Arrival:
    """A file to hand in."""
    path = site.root / name
    path.write_text(content)
    return Arrival(path, name, mode=mode)


def uploads(site: Site) -> list[str]:
    """The inputs of all tasks, without the names of users and tasks."""
    return [path.split("/", 2)[2] for path in site.listing("uploads")]


def count(site: Site) -> int:
    """How many tasks there are."""
    return site.store.count(TaskQuery())


def refuse_commits(site: Site, monkeypatch: pytest.MonkeyPatch, error: RunnerError) -> None:
    """The store takes nothing any more."""

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(site.store, "commit", refuse)


# One at a time


@pytest.mark.parametrize("mode", list(Handover))
def test_a_file_is_handed_over_as_its_arrival_says(site: Site, mode: Handover) -> None:
    """Moved, linked or copied; the task has its content either way."""
    arrival = file(site, mode=mode)
    inode = Path(arrival.path).stat().st_ino
    path = site.data / submit(site, arrival).input_files[0]
    assert path.read_text() == "content"
    assert (path.stat().st_ino == inode) == (mode is not Handover.COPY)
    assert Path(arrival.path).exists() == (mode is not Handover.MOVE)


@pytest.mark.parametrize("mode", [Handover.LINK, Handover.COPY])
def test_a_link_is_the_file_that_it_leads_to(site: Site, mode: Handover) -> None:
    """The task does not depend on where the link was."""
    file(site, "target.txt")
    link = site.root / "link.txt"
    link.symlink_to("target.txt")
    path = site.data / submit(site, Arrival(link, "link.txt", mode=mode)).input_files[0]
    assert not path.is_symlink()
    assert path.read_text() == "content"


def test_a_file_that_cannot_be_brought_in_is_a_refusal_that_stores_nothing(site: Site) -> None:
    """The first was brought in already when the second turned out to be gone."""
    gone = Arrival(site.root / "gone", "b.txt", 5)
    with pytest.raises(InvalidSubmission, match="/inputs: .*No such file"):
        submit(site, file(site), gone)
    assert (uploads(site), count(site)) == ([], 0)


def test_a_disk_without_room_for_the_file_is_said_to_be_full(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the file's fault, so a client may come again."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a.txt")

    monkeypatch.setattr(site.store.files, "link", refuse)
    with pytest.raises(DiskFull, match="no room for the file"):
        submit(site, file(site))
    assert (uploads(site), count(site)) == ([], 0)


def test_a_task_that_cannot_be_recorded_leaves_no_files(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody names is not kept."""
    refuse_commits(site, monkeypatch, Degraded("the disk failed"))
    with pytest.raises(Degraded):
        submit(site, file(site))
    assert uploads(site) == []


@pytest.mark.parametrize("mode", list(Handover))
def test_a_refusal_takes_nobody_their_file(site: Site, monkeypatch: pytest.MonkeyPatch, mode: Handover) -> None:
    """Not even one that was to be moved: alone, among others, or to a draft."""
    draft, arrival = submit(site, draft=True), file(site, mode=mode)
    refuse_commits(site, monkeypatch, DiskFull("the disk is full"))
    with pytest.raises(DiskFull):
        submit(site, arrival)
    with pytest.raises(DiskFull):
        site.door.submit_many([(Submission(type="keep"), origin(arrival))])
    with pytest.raises(DiskFull):
        site.door.add_input(draft, arrival)
    assert (Path(arrival.path).read_text(), uploads(site)) == ("content", [])


def test_a_file_that_cannot_leave_its_place_is_handed_in_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is a task that has it; whoever reads the log can remove it."""

    def refuse(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(site.store.files, "remove", refuse)
    task = submit(site, file(site, mode=Handover.MOVE))
    monkeypatch.undo()
    assert (site.data / task.input_files[0]).read_text() == "content"
    assert "was taken and cannot be removed" in caplog.text


def test_a_failing_disk_hides_no_refusal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that came in for nothing cannot even be removed; still the reason is the first one."""
    draft = submit(site, draft=True)
    refuse_commits(site, monkeypatch, Degraded("the disk failed"))

    def fail(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(site.store.files, "remove", fail)
    with pytest.raises(Degraded):
        site.door.add_input(draft, file(site))


def test_a_document_that_cannot_be_removed_does_not_stop_the_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has made a task before; in a folder that is read-only by now it stays, and somebody is told why."""
    site.door.take([document(site, unique_key="k")])
    again = document(site, unique_key="k")

    def fail(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(site.store.files, "unlink", fail)
    (answer,) = site.door.take([again])
    assert isinstance(answer, Refused)
    assert "cannot be removed: Read-only file system" in str(answer)


def test_nothing_comes_in_while_there_is_no_room(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the disk, or for more work of the writer."""
    site.store.space.report_full()
    with pytest.raises(DiskFull, match="nothing is accepted while the disk is full"):
        submit(site)
    site.store.space.check()
    monkeypatch.setattr(door, "ROOM_SECONDS", 0.01)
    site.store.writer._room.clear()
    with pytest.raises(DiskFull, match="task files cannot be written"):
        submit(site)
    site.store.writer._room.set()


# Unique keys


def test_the_same_key_and_content_are_the_same_task(site: Site) -> None:
    """Sent twice, made once; what came with the second time is not kept."""
    first = submit(site, file(site), unique_key="k")
    assert submit(site, file(site), unique_key="k").id == first.id
    assert (uploads(site), count(site)) == (["a.txt"], 1)


def test_the_same_key_with_other_content_is_a_conflict(site: Site) -> None:
    """It names the task that has the key."""
    first = submit(site, unique_key="k")
    with pytest.raises(KeyConflict) as caught:
        submit(site, unique_key="k", payload={}, type="resize", draft=True)
    assert (caught.value.key, caught.value.task_id) == ("k", first.id)


def test_a_key_belongs_to_its_user(site: Site) -> None:
    """Two users do not know of each other's keys."""
    ours = submit(site, unique_key="k")
    theirs = site.door.submit(Submission(type="keep", unique_key="k"), origin(user="bob"))
    assert ours.id != theirs.id


def test_a_key_outlives_its_task_and_a_window_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """After completion, too; but a window of time lets go of it."""
    kept, first = submit(site, unique_key="k"), submit(site, unique="1h")
    for task in (kept, first):
        site.run(task)
    assert (submit(site, unique_key="k").id, submit(site, unique="1h").id) == (kept.id, first.id)
    monkeypatch.setattr(site.door, "_clock", lambda: datetime.now(UTC) + timedelta(hours=2))
    later = submit(site, unique="1h")
    assert later.id != first.id
    assert (submit(site, unique_key="k").id, submit(site, unique="1h").id) == (kept.id, later.id)


def test_a_key_is_known_to_the_next_owner(make_site: Callable[..., Site]) -> None:
    """Wherever it is looked up then."""
    site = make_site()
    waiting, ended = submit(site, unique_key="a"), site.run(submit(site, unique_key="b"))
    site.close()
    site.open()
    assert [submit(site, unique_key=key).id for key in "ab"] == [waiting.id, ended.id]


# Without waiting


def soon(site: Site, **fields: Any) -> tuple[Sequence[Task | None], RunnerError | None]:
    """The answer to a submission that was not waited for."""
    answers: list[tuple[Sequence[Task | None], RunnerError | None]] = []
    site.door.submit_soon(Submission(**{"type": "keep", **fields}), origin(), lambda *answer: answers.append(answer))
    site.store.settle()
    (answer,) = answers
    return answer


def test_who_does_not_wait_is_told(site: Site) -> None:
    """The task when it is durable, the earlier one for a known key, or why there is none."""
    (first,), error = soon(site, unique_key="k")
    assert (first is not None, error) == (True, None)
    (again,), error = soon(site, unique_key="k")
    assert (again and again.id, error) == (first and first.id, None)
    tasks, error = soon(site, unique_key="k", type="table", draft=True)
    assert isinstance(error, KeyConflict)
    assert not any(tasks)


def test_what_is_refused_is_refused_at_once(site: Site) -> None:
    """Before anything is handed on."""
    with pytest.raises(UnknownHandler):
        soon(site, type="unknown")


# Batches


def pairs(*submissions: Submission | Pair) -> list[Pair]:
    """A batch of ann's."""
    return [one if isinstance(one, tuple) else (one, origin()) for one in submissions]


def test_a_batch_becomes_tasks_with_one_commit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they were handed in."""
    batches, commit = list[int](), site.store.commit

    def count_and_commit(changes: Sequence[Any]) -> Sequence[Task | None]:
        batches.append(len(changes))
        return commit(changes)

    monkeypatch.setattr(site.store, "commit", count_and_commit)
    tasks = site.door.submit_many(pairs(*(Submission(type="keep", client_id=str(n)) for n in range(20))))
    assert [task.client_id for task in tasks] == [str(number) for number in range(20)]
    assert (batches, count(site)) == ([20], 20)
    assert site.door.submit_many([]) == []


@pytest.mark.parametrize(
    ("wrong", "error", "place"),
    [
        (Submission(type="resize"), InvalidSubmission, "/1/payload/width"),
        (Submission(type="keep", queue="nowhere"), InvalidSubmission, "/1/queue"),
        (Submission(type="unknown"), UnknownHandler, "/1/type: "),
        ((Submission(type="keep"), origin(Arrival(Path("/nowhere"), "a", 5))), InvalidSubmission, "/1/inputs"),
    ],
)
def test_one_that_is_refused_refuses_the_batch(
    site: Site, wrong: Submission | Pair, error: type[RunnerError], place: str
) -> None:
    """With its place; nothing of the others is left, files neither."""
    with pytest.raises(error, match=place):
        site.door.submit_many(pairs((Submission(type="keep"), origin(file(site))), wrong, Submission(type="keep")))
    assert (uploads(site), count(site)) == ([], 0)


def test_a_batch_is_counted_as_a_whole(make_site: Callable[..., Site]) -> None:
    """Nine wait, ten may: there is no room for two."""
    site = make_site()
    site.gate.waiting = 999_999
    with pytest.raises(LimitReached):
        site.door.submit_many(pairs(Submission(type="keep"), Submission(type="keep")))
    assert count(site) == 0


def test_a_batch_sent_again_is_the_same_tasks(site: Site) -> None:
    """By their keys, however many; new ones are made, files of the known ones are not kept."""
    keyed = [Submission(type="keep", unique_key=key) for key in "abc"]
    first = site.door.submit_many(pairs(*keyed))
    again = site.door.submit_many(pairs(*keyed, Submission(type="keep")))
    assert [task.id for task in again[:3]] == [task.id for task in first]
    assert count(site) == 4


def test_a_key_that_a_batch_names_several_times_is_one_task(site: Site) -> None:
    """Known before or not."""
    known = submit(site, file(site), unique_key="k")
    twice = (Submission(type="keep", unique_key="new"), origin(file(site)))
    same = (Submission(type="keep", unique_key="k"), origin(file(site)))
    tasks = site.door.submit_many([same, twice, same, twice, same])
    assert [task.id == known.id for task in tasks] == [True, False, True, False, True]
    assert tasks[1].id == tasks[3].id
    assert (uploads(site), count(site)) == (["a.txt", "a.txt"], 2)


def test_a_batch_with_a_conflict_is_refused_as_a_whole(site: Site) -> None:
    """Between two of its own, or with a task that is there."""
    other = Submission(type="table", unique_key="k", draft=True)
    with pytest.raises(KeyConflict):
        site.door.submit_many(pairs((Submission(type="keep", unique_key="k"), origin(file(site))), other))
    assert (uploads(site), count(site)) == ([], 0)
    submit(site, unique_key="k")
    with pytest.raises(KeyConflict):
        site.door.submit_many(pairs((Submission(type="keep"), origin(file(site))), other))
    assert (uploads(site), count(site)) == ([], 1)


def test_a_batch_gives_way_to_whoever_was_quicker_with_a_key(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key was free when it was looked up, and taken when it was committed."""
    find, quicker = site.store.find_key, list[Task]()
    looked = threading.Event()

    def find_late(user_id: str, key: str) -> Task | None:
        if looked.is_set() or threading.current_thread() is not threading.main_thread():
            return find(user_id, key)
        looked.set()
        quicker.append(submit(site, file(site), unique_key="k"))
        return None

    monkeypatch.setattr(site.store, "find_key", find_late)
    task, other = site.door.submit_many(
        pairs((Submission(type="keep", unique_key="k"), origin(file(site))), Submission(type="keep"))
    )
    assert (task.id, uploads(site), count(site)) == (quicker[0].id, ["a.txt"], 2)
    assert other.id != task.id


# Dropped files


def dropped(site: Site, name: str = "clip.mp4", content: str = "content", sidecar: str | None = None) -> Pair:
    """A file in the inbox, and what the inbox hands in for it."""
    path = site.drop(f"keep/{name}", content)
    seen = Identity.of(str(path))
    drop = Drop(
        path=f"inbox/keep/{name}",
        name=name,
        device=seen.device,
        inode=seen.inode,
        size=seen.size,
        mtime_ns=seen.mtime_ns,
        sidecar=sidecar and f"inbox/keep/{sidecar}",
    )
    if sidecar:
        site.drop(f"keep/{sidecar}", "{}")
    arrival = Arrival(path, name, seen.size, Handover.MOVE)
    return Submission(type="keep"), Origin(Source.INBOX, "local", (arrival,), drop)


def document(site: Site, *files: Arrival, **fields: Any) -> Pair:
    """A submission that was dropped as a document."""
    site.drop("task.json", "{}")
    drop = Drop(path="inbox/task.json", name="task.json", sidecar="inbox/task.json")
    return Submission(**{"type": "keep", **fields}), Origin(Source.INBOX, "local", files, drop)


def inbox(site: Site) -> list[str]:
    """What lies in the inbox."""
    return site.listing("inbox")


def task_of(answer: Task | RunnerError) -> Task:
    """The task, if that is the answer."""
    assert isinstance(answer, Task), answer
    return answer


def take(site: Site, path: str, task: Task) -> None:
    """The file moves to its task, and no more happens."""
    source = str(site.data / path)
    site.store.blobs.take(source, str(site.data / task.input_files[0]), Identity.of(source))


def test_a_dropped_file_is_recorded_then_moved_then_started(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a crash finds the record with the file in either place."""
    steps: list[str] = []
    take, hold, release = site.store.blobs.take, site.gate.hold, site.gate.release

    def tell(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            steps.append(f"{step}, {count(site)} recorded, {len(inbox(site))} in the inbox")
            return function(*arguments)

        return call

    monkeypatch.setattr(site.gate, "hold", tell("hold", hold))
    monkeypatch.setattr(site.store.blobs, "take", tell("take", take))
    monkeypatch.setattr(site.gate, "release", tell("release", release))
    (answer,) = site.door.take([dropped(site, sidecar="clip.mp4.json")])
    assert steps == [
        "hold, 0 recorded, 2 in the inbox",
        "take, 1 recorded, 2 in the inbox",
        "release, 1 recorded, 0 in the inbox",
    ]
    assert site.gate.released == [task_of(answer).id]
    assert (site.data / task_of(answer).input_files[0]).read_text() == "content"


def test_each_dropped_file_is_taken_or_refused_on_its_own(site: Site) -> None:
    """One that is wrong, one that was replaced, one that is gone, and two that are fine."""
    fine, replaced, gone, also_fine = (dropped(site, name) for name in ("a", "b", "c", "d"))
    (site.data / "inbox" / "keep" / "b").write_text("something else")
    (site.data / "inbox" / "keep" / "c").unlink()
    wrong = (Submission(type="resize"), fine[1])
    answers = site.door.take([fine, wrong, replaced, gone, also_fine])
    assert isinstance(answers[1], InvalidSubmission)
    statuses = [answer.status for answer in answers if isinstance(answer, Task)]
    assert statuses == [Status.PENDING, Status.FAILED, Status.FAILED, Status.PENDING]
    assert site.gate.released == [task_of(answers[number]).id for number in (0, 4)]
    assert inbox(site) == ["keep/b"]
    errors = [task_of(answers[number]).error for number in (2, 3)]
    assert [error and error.code for error in errors] == ["input_missing", "input_missing"]


def test_a_dropped_file_that_cannot_be_recorded_is_alone_with_that(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though all of them are recorded together."""
    monkeypatch.setattr(changes, "MAX_BODY", 3000)
    alike = [origin for _, origin in (dropped(site, name) for name in ("a", "b", "c"))]
    assert alike[1].drop is not None
    alike[1] = alike[1]._replace(drop=replace(alike[1].drop, name="b" * 3000))
    submission = Submission(type="keep")
    first, second, third = site.door.take([(submission, origin) for origin in alike])
    assert isinstance(second, InvalidSubmission)
    assert (site.gate.released, inbox(site)) == ([task_of(first).id, task_of(third).id], ["keep/b"])


def test_dropped_files_are_counted_together_whatever_comes_with_them(site: Site) -> None:
    """Each of these has parameters of its own, and each comes when two more may wait."""
    site.gate.waiting = 999_998
    answers = site.door.take([dropped(site, name, sidecar=f"{name}.json") for name in ("a", "b", "c")])
    assert [isinstance(answer, LimitReached) for answer in answers] == [False, False, True]
    assert inbox(site) == ["keep/c", "keep/c.json"]


def test_a_full_disk_takes_nothing(site: Site) -> None:
    """The files stay where they are, and the wait is not one for each."""
    site.store.space.report_full()
    answers = site.door.take([dropped(site, "a"), dropped(site, "b")])
    assert [type(answer) for answer in answers] == [DiskFull, DiskFull]
    assert (inbox(site), site.gate.held) == (["keep/a", "keep/b"], set())


def test_what_was_taken_before_does_not_wait_for_room(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recorded, and may start, however long the next files must wait."""
    said: list[str] = []
    site.store.writer._room.clear()
    monkeypatch.setattr(site.store.writer, "wait_for_room", lambda _: said.append("waited"))
    haul = site.door.take_ahead([dropped(site)], lambda: said.append("settled"))
    assert ([type(answer) for answer in haul.answers()], said) == ([DiskFull], ["settled", "waited"])
    site.store.writer._room.set()


def test_what_the_store_refuses_stays_in_the_inbox(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, or when it is to be made durable; nothing is held then, nor brought in."""

    def refuse(*_: object) -> None:
        raise ShuttingDown("the store is closed")

    def answer_badly(_: object, done: Callable[..., None]) -> None:
        done((), Degraded("the disk failed"))

    for submit_badly, error in ((refuse, ShuttingDown), (answer_badly, Degraded)):
        with monkeypatch.context() as patch:
            patch.setattr(site.store, "queue", submit_badly)
            first, second = site.door.take([dropped(site), document(site, file(site))])
        assert (type(first), type(second)) == (error, error)
        assert (inbox(site), uploads(site), site.gate.held) == (["keep/clip.mp4", "task.json"], [], set())


def test_a_failure_that_cannot_be_recorded_starts_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file could not be moved, and the disk failed: recovery looks again."""
    pair = dropped(site)
    (site.data / "inbox" / "keep" / "clip.mp4").unlink()
    refuse_commits(site, monkeypatch, Degraded("the disk failed"))
    (answer,) = site.door.take([pair])
    assert isinstance(answer, Degraded)
    assert site.gate.released == []


def test_a_dropped_document_is_taken_and_the_files_that_it_names_are_linked(site: Site) -> None:
    """Whoever named them may name them again."""
    named = file(site, mode=Handover.MOVE)
    (answer,) = site.door.take([document(site, named)])
    assert (site.data / task_of(answer).input_files[0]).read_text() == "content"
    assert (inbox(site), Path(named.path).exists()) == ([], True)


def test_a_document_dropped_again_is_the_task_that_it_made(site: Site) -> None:
    """By its key; other content is a conflict, and stays for a person to look at."""
    (first,) = site.door.take([document(site, file(site), unique_key="k")])
    (again,) = site.door.take([document(site, file(site), unique_key="k")])
    assert (task_of(again).id, inbox(site), uploads(site)) == (task_of(first).id, [], ["a.txt"])
    (other,) = site.door.take([document(site, unique_key="k", type="table", draft=True)])
    assert isinstance(other, KeyConflict)
    assert inbox(site) == ["task.json"]
    assert site.gate.released == [task_of(first).id]


def test_a_document_with_a_file_that_is_gone_is_refused(site: Site) -> None:
    """Nothing was recorded."""
    (answer,) = site.door.take([document(site, Arrival(site.root / "gone", "a", 5))])
    assert isinstance(answer, InvalidSubmission)
    assert (count(site), inbox(site)) == (0, ["task.json"])


# After a crash


def recorded(site: Site, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A dropped file that was recorded, and not moved before the runner died."""
    with monkeypatch.context() as patch:
        patch.setattr(site.door, "_rename", lambda task: task)
        (answer,) = site.door.take([pair])
    return task_of(answer)


def test_a_rename_that_a_crash_prevented_is_done_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sidecar goes, too."""
    task = recorded(site, dropped(site, sidecar="clip.mp4.json"), monkeypatch)
    site.door.take_again([task])
    assert (inbox(site), uploads(site)) == ([], ["clip.mp4"])


def test_a_sidecar_that_a_crash_left_behind_goes_and_a_newer_one_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was dropped for the next file of that name."""
    task = recorded(site, dropped(site, sidecar="clip.mp4.json"), monkeypatch)
    take(site, "inbox/keep/clip.mp4", task)
    site.door.take_again([replace(task, created_at=NOW - timedelta(days=1))])
    assert inbox(site) == ["keep/clip.mp4.json"]
    site.door.take_again([replace(task, created_at=NOW + timedelta(days=1))])
    site.door.take_again([task])
    assert inbox(site) == []


def test_a_file_that_is_not_there_after_a_crash_fails_its_task(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in neither place."""
    task = recorded(site, dropped(site), monkeypatch)
    (site.data / "inbox/keep/clip.mp4").unlink()
    site.door.take_again([task])
    assert site.store.get_task(task.id).status is Status.FAILED


def test_only_tasks_that_have_not_begun_are_looked_at_after_a_crash(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has an attempt has had its file; what came by another door never was in the inbox."""
    task = recorded(site, dropped(site, sidecar="clip.mp4.json"), monkeypatch)
    site.door.take_again([submit(site), start(task, NOW), replace(task, attempt=1)])
    assert inbox(site) == ["keep/clip.mp4", "keep/clip.mp4.json"]
    no_sidecar = recorded(site, dropped(site, "b"), monkeypatch)
    take(site, "inbox/keep/b", no_sidecar)
    site.door.take_again([no_sidecar])
    assert "keep/b" not in inbox(site)


def test_a_dropped_name_that_is_not_utf8_is_found_again_by_its_bytes(site: Site) -> None:
    """The text in the record is for people."""
    submission, origin_ = dropped(site, "x")
    assert origin_.drop is not None
    name = os.fsdecode(b"caf\xe9")
    site.data.joinpath("inbox/keep/x").rename(site.data / "inbox/keep" / name)
    seen = Identity.of(str(site.data / "inbox/keep" / name))
    drop = replace(origin_.drop, path="inbox/keep/caf?", raw="inbox/keep/caf%E9", mtime_ns=seen.mtime_ns)
    (answer,) = site.door.take([(submission, Origin(Source.INBOX, "local", origin_.inputs, drop))])
    assert task_of(answer).status is Status.PENDING
    assert inbox(site) == []


# Drafts


def test_a_draft_gets_files_and_then_joins_the_queue(site: Site) -> None:
    """With the payload that it ends up with."""
    draft = submit(site, type="resize", draft=True)
    one = site.door.add_input(draft, file(site, "a.txt", "12"))
    two = site.door.add_input(one, file(site, "b.txt", "345"))
    assert (two.status, two.original_filename, two.file_size) == (Status.UPLOADED, "a.txt", 5)
    assert uploads(site) == ["a.txt", "b.txt"]
    with pytest.raises(InvalidSubmission, match="/payload/width"):
        site.door.begin(two, None)
    begun = site.door.begin(two, {"width": 3})
    assert (begun.status, begun.payload) == (Status.PENDING, {"width": 3})


def test_what_is_no_draft_any_more_takes_no_files_and_does_not_begin_again(site: Site) -> None:
    """Decided before the file is touched, and again when it is recorded."""
    task, arrival = submit(site), file(site, mode=Handover.MOVE)
    with pytest.raises(IllegalTransition):
        site.door.add_input(task, arrival)
    with pytest.raises(IllegalTransition):
        site.door.begin(task, {})
    assert Path(arrival.path).exists()
    draft = submit(site, draft=True)
    site.store.commit((Update(draft.id, lambda now: cancel(now, NOW)),))
    with pytest.raises(IllegalTransition):
        site.door.add_input(draft, arrival)
    assert uploads(site) == []


def test_a_draft_takes_only_files_that_are_there_and_that_have_room(site: Site) -> None:
    """Each refusal leaves the draft as it was."""
    draft = submit(site, draft=True)
    with pytest.raises(InvalidSubmission, match="No such file"):
        site.door.add_input(draft, Arrival(site.root / "gone", "a.txt", 5))
    site.store.space.report_full()
    with pytest.raises(DiskFull):
        site.door.add_input(draft, file(site))
    assert site.store.get_task(draft.id) == draft


# Chains


def test_the_next_task_of_a_chain_is_made_and_may_be_forgotten(site: Site) -> None:
    """Its files are there before it is recorded, and go if it is not."""
    parent = site.run(submit(site, on_success=Chained(type="keep", payload={})), out="result")
    create = site.door.follow(parent, parent.output_files)
    child = create.task
    assert (child.parent_id, child.user_id, child.source) == (parent.id, "ann", Source.CHAIN)
    assert (site.data / child.input_files[0]).read_text() == "result"
    with pytest.raises(NotFound):
        site.store.get_task(child.id)
    site.door.forget(create)
    assert uploads(site) == []


def test_a_chain_whose_output_is_gone_is_refused(site: Site) -> None:
    """Somebody removed it in the meantime."""
    parent = submit(site, on_success=Chained(type="keep"))
    with pytest.raises(InvalidSubmission):
        site.door.follow(parent, ("results/ann/x/gone",))


def test_a_handler_hands_in_a_child(site: Site) -> None:
    """It belongs to the parent's user and batch."""
    parent = submit(site)
    child = site.store.get_task(site.door.submit_child(parent, "table", {}, (Path(file(site, "a.csv").path),)))
    assert (child.parent_id, child.user_id, child.original_filename) == (parent.id, "ann", "a.csv")
    with pytest.raises(InvalidSubmission):
        site.door.submit_child(parent, "table", {}, ())
