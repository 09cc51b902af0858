import os
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runner.config import LimitsConfig, QueueConfig
from runner.errors import InvalidSubmission, LimitReached, UnknownHandler
from runner.handlers import Handlers
from runner.intake.admission import (
    MAX_WAIT_SECONDS,
    NAME,
    Admission,
    Admitted,
    Arrival,
    Origin,
    Submission,
    safe_name,
    same_content,
)
from runner.store import Layout
from runner.task import Chained, Source, Status, Task, from_json, to_json

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
HANDLERS = """
from runner import handler

@handler(queue="own", priority=7, retries=4, timeout="5m")
def plain(ctx, width: int = 1) -> None: ...

@handler(accepts=[".txt", "image/*"])
def text(ctx, width: int = 1) -> None: ...
"""


class Load:
    """How much waits, as a test says it."""

    def __init__(self) -> None:
        self.all = 0
        self.of_user = 0

    def pending(self) -> int:
        return self.all

    def pending_of(self, user_id: str) -> int:
        return self.of_user


class Desk:
    """An admission on a folder of handlers."""

    def __init__(self, root: Path) -> None:
        root.joinpath("all.py").write_text(HANDLERS)
        self.root = root
        self.load = Load()
        handlers = Handlers(root)
        handlers.load()
        queues = {"default": QueueConfig(weight=1), "high": QueueConfig(weight=5)}
        self.admission = Admission(handlers, LimitsConfig(), queues, Layout(root / "data"), self.load)

    def admit(self, type: str = "plain", user: str = "ann", files: tuple[Arrival, ...] = (), **fields: Any) -> Admitted:
        """Admits a submission at noon."""
        return self.admission.admit(Submission(type=type, **fields), Origin(Source.HTTP, user, files), NOON)

    def task(self, *arguments: Any, **fields: Any) -> Task:
        """The task that it would be."""
        return self.admit(*arguments, **fields).task

    def problems(self, *arguments: Any, **fields: Any) -> list[str]:
        """What is wrong with a submission, and where."""
        with pytest.raises(InvalidSubmission) as caught:
            self.admit(*arguments, **fields)
        return [str(problem) for problem in caught.value.problems]

    def file(self, name: str = "a.txt", content: bytes = b"content", shown: str | None = None) -> Arrival:
        """A file to hand in; `shown` is what it is called, if that is something else."""
        path = self.root / name
        path.write_bytes(content)
        return Arrival(path, shown or name)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A desk without anybody in line."""
    return Desk(tmp_path)


# What a task is made of


def test_a_submission_takes_from_its_handler_what_it_does_not_say(desk: Desk) -> None:
    """Queue, priority, retries, timeout."""
    task = desk.task()
    assert (task.queue, task.priority, task.max_retries, task.timeout_seconds) == ("own", 7, 4, 300)
    assert (task.status, task.created_at, task.run_after, task.user_id) == (Status.PENDING, NOON, None, "ann")
    said = desk.task(queue="high", priority=-1, max_retries=0, timeout="90s")
    assert (said.queue, said.priority, said.max_retries, said.timeout_seconds) == ("high", -1, 0, 90)


def test_a_task_has_an_id_of_its_own_that_is_a_safe_file_name(desk: Desk) -> None:
    """Lower case, no dots, and never twice."""
    ids = {desk.task().id for _ in range(100)}
    assert len(ids) == 100
    assert all(NAME.fullmatch(task_id) for task_id in ids)


def test_what_is_admitted_can_be_written_and_read_back(desk: Desk) -> None:
    """Nothing in the task is of a kind that JSON, or the model, does not know."""
    chain = Chained(type="text", on_success=Chained(type="plain"))
    offset = datetime(2026, 7, 2, tzinfo=timezone(timedelta(hours=8)))
    task = desk.task(
        files=(desk.file(),), metadata={"a": "b"}, client_id="c", on_success=chain, run_after=offset, unique="1h"
    )
    assert from_json(to_json(task)) == task


def test_a_draft_waits_for_its_files_and_is_not_checked_before_it_is_complete(desk: Desk) -> None:
    """Neither its payload nor that there are files; what is there must be of the right type."""
    assert desk.task("text", draft=True, payload={"width": "wide"}).status is Status.CREATED
    assert desk.task("text", draft=True, files=(desk.file(),)).status is Status.UPLOADED
    assert desk.problems("text", draft=True, files=(desk.file("a.exe"),))


def test_instants_are_kept_in_utc(desk: Desk) -> None:
    """Wherever the client thinks it is."""
    shanghai = timezone(timedelta(hours=8))
    task = desk.task(run_after=datetime(2026, 7, 2, 8, tzinfo=shanghai))
    assert task.run_after == datetime(2026, 7, 2, tzinfo=UTC)
    assert task.run_after.tzinfo is UTC


def test_a_delay_counts_from_now(desk: Desk) -> None:
    """Zero is no delay."""
    assert desk.task(delay="1m").run_after == NOON + timedelta(minutes=1)
    assert desk.task(delay=0).run_after == NOON


@pytest.mark.parametrize("field", ["delay", "unique"])
def test_the_longest_wait_still_ends_on_a_date(desk: Desk, field: str) -> None:
    """And what is longer is refused before it can overflow."""
    assert desk.task(**{field: MAX_WAIT_SECONDS}).id
    with pytest.raises(ValidationError):
        Submission(type="plain", **{field: MAX_WAIT_SECONDS * 1.01})


@pytest.mark.parametrize(
    "fields",
    [
        {"run_after": "9999-12-31T23:59:59-12:00"},
        {"expires_at": "0001-01-01T00:00:00+12:00"},
        {"run_after": "2026-07-01T12:00:00"},
        {"delay": -1},
        {"delay": float("inf")},
        {"delay": True},
        {"priority": 1_000_001},
        {"priority": "1"},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"timeout": 0},
        {"unique": 0},
        {"unique_key": ""},
        {"unique_key": "k" * 256},
        {"metadata": {"a": 1}},
        {"unique_key": "\ud800"},
        {"client_id": "\ud800"},
        {"status": "completed"},
        {"user_id": "bob"},
        {"result": 1},
        {"on_success": {"type": "text", "queue": "high"}},
    ],
)
def test_a_field_that_is_wrong_or_not_the_clients_to_set_is_refused(fields: dict[str, Any]) -> None:
    """Before anything else is looked at."""
    with pytest.raises(ValidationError):
        Submission.model_validate({"type": "plain", **fields})


# What is refused


def test_a_handler_that_nobody_knows_is_refused_with_the_nearest_one(desk: Desk) -> None:
    """Nothing can be said about the rest of the submission then."""
    with pytest.raises(UnknownHandler, match="did you mean 'plain'"):
        desk.admit("plane", queue="nowhere")


def test_a_payload_that_does_not_fit_is_refused_with_the_place(desk: Desk) -> None:
    """A JSON pointer into the submission."""
    (problem,) = desk.problems(payload={"width": "wide"})
    assert problem.startswith("/payload/width: ")


def test_every_fault_is_told_at_once(desk: Desk) -> None:
    """Each with its place; the payload is looked at when the rest is right."""
    problems = desk.problems(
        user="Ann!", queue="nowhere", unique="1h", unique_key="k", delay=5, run_after=NOON, payload={"width": "wide"}
    )
    assert [problem.partition(":")[0] for problem in problems] == ["/user_id", "/queue", "/unique", "/delay"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"expires_at": NOON}, "has passed"),
        ({"expires_at": NOON + timedelta(seconds=5), "delay": 5}, "is before the task may start"),
        ({"expires_at": NOON + timedelta(seconds=5), "run_after": NOON + timedelta(days=1)}, "is before the task may"),
    ],
)
def test_a_task_that_could_never_start_is_refused(desk: Desk, fields: dict[str, Any], reason: str) -> None:
    """It would only wait for its own end."""
    (problem,) = desk.problems(**fields)
    assert problem.startswith(f"/expires_at: {reason}")
    assert desk.task(expires_at=NOON + timedelta(seconds=6), delay=5).expires_at is not None


def test_a_handlers_own_queue_may_be_named_though_the_configuration_does_not(desk: Desk) -> None:
    """It waits there by default, and a rerun names it."""
    assert desk.task(queue="own").queue == "own"
    assert desk.problems("text", files=(desk.file(),), queue="own") == [
        "/queue: no queue 'own'; there are default, high"
    ]


@pytest.mark.parametrize("user", ["", "Ann", "a.b", "a/b", "../x", "a" * 65, "-a", "ann\n"])
def test_a_user_whose_id_is_no_file_name_is_refused(desk: Desk, user: str) -> None:
    """It becomes part of paths."""
    assert desk.problems(user=user)[0].startswith("/user_id: ")


# Chains


def test_a_chain_is_checked_at_the_door_as_far_as_it_is_known(desk: Desk) -> None:
    """Handlers and payloads of all later tasks; not their files, which are not there yet."""
    last = {"type": "text", "payload": {"width": "wide"}}
    problems = desk.problems(on_success={"type": "plane", "on_success": {"type": "text", "on_success": last}})
    assert [problem.partition(":")[0] for problem in problems] == [
        "/on_success/type",
        "/on_success/on_success/on_success/payload/width",
    ]
    assert desk.task(on_success={"type": "text"}).on_success == Chained(type="text")


# Files


def test_files_get_places_that_resemble_their_names(desk: Desk) -> None:
    """The first gives the task its name, all of them its size."""
    admitted = desk.admit(files=(desk.file("a", b"12345", "clip 1.mp4"), desk.file("b", b"67", "../../etc/passwd")))
    task = admitted.task
    assert admitted.places == task.input_files
    assert [path.removeprefix(f"uploads/ann/{task.id}/") for path in task.input_files] == [
        "clip 1.mp4",
        "_.._etc_passwd",
    ]
    assert (task.original_filename, task.file_size) == ("clip 1.mp4", 7)


def test_files_of_one_name_get_different_places(desk: Desk) -> None:
    """Also where only the case differs, since some filesystems do not see that."""
    names = ["a.txt", "a.txt", "A.TXT", "a", "a", "a.2.txt"]
    files = tuple(desk.file(str(number), shown=name) for number, name in enumerate(names))
    places = [path.rpartition("/")[2] for path in desk.task(files=files).input_files]
    assert places == ["a.txt", "a.2.txt", "A.3.TXT", "a", "a.2", "a.2.2.txt"]


def test_a_handler_of_files_needs_one_of_a_type_that_it_accepts(desk: Desk) -> None:
    """By its first bytes before its name; the fault is told with the number of the file."""
    assert desk.problems("text") == ["/inputs: text needs a file: .txt, image/*"]
    assert desk.task("text", files=(desk.file("a.txt"), desk.file("b.jpg", b"\xff\xd8\xff"))).input_files
    (problem,) = desk.problems("text", files=(desk.file("a.txt"), desk.file("b.jpg", b"%PDF-1.7")))
    assert problem.startswith("/inputs/1: 'b.jpg' is not of a type that text accepts")


def test_a_file_that_cannot_be_read_is_refused(desk: Desk) -> None:
    """Absent, a folder, a pipe; also if it was there when it was measured."""
    os.mkfifo(desk.root / "pipe")
    for name in ("absent", ".", "pipe"):
        (problem,) = desk.problems(files=(Arrival(desk.root / name, "a.txt"),))
        assert problem.startswith("/inputs: ")
    (problem,) = desk.problems("text", files=(Arrival(desk.root / "absent", "a.txt", 5),))
    assert "No such file" in problem


def test_a_name_that_is_not_utf8_does_not_keep_a_file_out(desk: Desk) -> None:
    """The task shows something that resembles it."""
    name = os.fsdecode(b"caf\xe9.txt")
    task = desk.task("text", files=(desk.file("x", shown=name),))
    assert (task.original_filename, task.input_files[0].rpartition("/")[2]) == ("caf?.txt", "caf_.txt")
    assert from_json(to_json(task)) == task


@given(st.text(max_size=300) | st.text("./\\ \u202e\0é\ud800a", max_size=20))
def test_any_name_becomes_one_that_can_be_a_file(name: str) -> None:
    """No path, no hidden file, nothing invisible, not too long; and what is safe stays as it is."""
    safe = safe_name(name)
    assert 0 < len(safe.encode()) <= 200
    assert not set(safe) & set('/\\\0:*?"<>|\n\u202e')
    assert safe[0] not in " ."
    assert unicodedata.is_normalized("NFC", safe)
    assert safe_name(safe) == safe or len(safe.encode()) > 150


# Limits on what waits


def test_no_more_come_in_than_may_wait(desk: Desk) -> None:
    """In all, and of one user; who is exempt is held to the first only."""
    desk.admission.change(LimitsConfig(max_pending=10, max_pending_per_user=5), {"default": 1})
    desk.load.all, desk.load.of_user = 9, 4
    desk.task("plain", queue="default")
    desk.load.of_user = 5
    with pytest.raises(LimitReached, match="5 of your tasks"):
        desk.admit()
    desk.task(user="local")
    desk.load.all = 10
    with pytest.raises(LimitReached, match="10 tasks wait"):
        desk.admit(user="local")
    desk.admission.change(LimitsConfig(max_pending=None, max_pending_per_user=None), {})
    desk.task()


def test_those_who_come_in_together_are_counted_together(desk: Desk) -> None:
    """The last of a batch is not admitted because the first has not been counted yet."""
    desk.admission.change(LimitsConfig(max_pending=10, max_pending_per_user=5), {})
    submission, origin = Submission(type="plain"), Origin(Source.HTTP, "ann")
    desk.admission.admit(submission, origin, NOON, ahead=4)
    with pytest.raises(LimitReached, match="5 of your"):
        desk.admission.admit(submission, origin, NOON, ahead=5)
    with pytest.raises(LimitReached, match="10 tasks"):
        desk.admission.admit(submission, origin, NOON, ahead=10)


def test_what_takes_the_place_of_another_comes_in_all_the_same(desk: Desk) -> None:
    """But not if it is wrong."""
    desk.load.all = 10**9
    origin = Origin(Source.CHAIN, "ann")
    desk.admission.admit_next(Submission(type="plain"), origin, NOON)
    with pytest.raises(InvalidSubmission):
        desk.admission.admit_next(Submission(type="plain", payload={"width": "wide"}), origin, NOON)


# Drafts


def draft(desk: Desk, type: str = "text", *files: Arrival) -> Task:
    """A draft with these files."""
    return desk.task(type, draft=True, files=files)


def test_a_draft_may_start_when_it_is_what_a_submission_must_be(desk: Desk) -> None:
    """Its payload fits, it has the file that its handler needs, and there is room."""
    start = desk.admission.check_start
    start(draft(desk, "text", desk.file()), {"width": 2})
    start(draft(desk, "plain"), {})
    for task, payload in ((draft(desk, "text"), {}), (draft(desk, "plain"), {"width": "wide"})):
        with pytest.raises(InvalidSubmission):
            start(task, payload)
    waiting = draft(desk, "plain")
    desk.load.all = 10**9
    with pytest.raises(LimitReached):
        start(waiting, {})


def test_one_more_file_of_a_draft_gets_a_place_beside_the_others(desk: Desk) -> None:
    """And is checked like the first."""
    task = draft(desk, "text", desk.file("a.txt"))
    place = desk.admission.place(task, desk.file("b", shown="A.txt"))
    assert place == f"uploads/ann/{task.id}/A.2.txt"
    with pytest.raises(InvalidSubmission):
        desk.admission.place(task, desk.file("a.exe"))


# Uniqueness


Change = Callable[[Desk], dict[str, Any]]


def test_a_window_is_about_the_same_type_payload_queue_and_files(desk: Desk) -> None:
    """Each of them alone makes another task."""
    base: dict[str, Any] = {"unique": "1h", "payload": {"width": 1}, "files": (desk.file("a.txt", b"1"),)}
    others: list[dict[str, Any]] = [
        {"payload": {"width": 2}},
        {"queue": "high"},
        {"files": ()},
        {"files": (desk.file("b.txt", b"1"),)},
        {"files": (desk.file("c", b"22", "a.txt"),)},
    ]
    keys = [desk.task(**{**base, **other}).unique_key for other in ({}, *others)]
    assert len(set(keys)) == len(keys)
    again = desk.task(**base)
    assert (again.unique_key, again.unique_until) == (keys[0], NOON + timedelta(hours=1))
    assert desk.task("text", **base).unique_key != keys[0]


def test_a_key_is_for_ever_and_the_clients_own(desk: Desk) -> None:
    """No window ends it."""
    task = desk.task(unique_key="k")
    assert (task.unique_key, task.unique_until) == ("k", None)
    assert desk.task().unique_key is None


def test_the_same_content_is_what_a_client_would_send_again(desk: Desk) -> None:
    """Type, payload, queue and file; not what the runner made of it."""
    task = desk.task(files=(desk.file(),))
    again = desk.task(files=(desk.file(),), priority=3)
    assert same_content(task, again)
    assert not same_content(task, desk.task(files=(desk.file(),), payload={"width": 2}))
