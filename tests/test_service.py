"""The verbs, as front ends call them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from runner.dispatch.bulk import Verb
from runner.dispatch.cleanup import GcMode
from runner.errors import (
    IllegalTransition,
    InvalidSubmission,
    LimitReached,
    NotFound,
    OwnerExists,
    UnsafeAccess,
    VersionMismatch,
)
from runner.intake.admission import Origin, Submission
from runner.service import Role, Service
from runner.store import TaskQuery
from runner.task import Source, Status, Task
from tests.rig import LIMIT_SECONDS, NOON, Rig, gate_of, opened

RigMaker = Callable[..., Rig]


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[RigMaker]:
    """Makes running rigs; keywords are keys of the configuration, with two underscores for a dot."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(opened(tmp_path, **settings))


@pytest.fixture
def rig(make_rig: RigMaker) -> Rig:
    """A running rig with the default configuration."""
    return make_rig()


def failed(rig: Rig, **fields: Any) -> Task:
    """A task that has failed."""
    return rig.until(rig.submit("act", script=["fail", "done"], **fields))


# Looking


def test_to_a_user_the_tasks_of_others_are_not_there(rig: Rig) -> None:
    """Whatever the verb: the answer is the same as for a task that never was."""
    task = failed(rig, user="ann")
    it = rig.it
    verbs: list[Callable[[str], object]] = [
        lambda user: it.get(task.id, user),
        lambda user: it.wait(task.id, 0, user),
        lambda user: it.cancel(task.id, user),
        lambda user: it.retry(task.id, user),
        lambda user: it.rerun(task.id, user),
        lambda user: it.begin(task.id, None, user),
        lambda user: it.add_input(task.id, rig.input("a.txt"), user),
        lambda user: it.delete(task.id, user),
    ]
    for verb in verbs:
        with pytest.raises(NotFound) as caught:
            verb("bob")
        assert str(caught.value) == f"no task {task.id!r}"
    assert it.get(task.id) == it.get(task.id, "ann") == task
    with pytest.raises(NotFound):
        it.get("unknown")


def test_waiting_ends_with_the_task_or_with_the_time(rig: Rig) -> None:
    """Then the task is returned as it stands."""
    gate = rig.gate()
    task = rig.submit("stubborn", gate=gate)
    assert not rig.it.wait(task.id, 0.01).is_terminal
    gate_of(gate).open()
    assert rig.it.wait(task.id, LIMIT_SECONDS).result == 1
    assert rig.it.wait(task.id, 0).result == 1


def test_lists_and_counts_tell_what_was_done_before(rig: Rig) -> None:
    """Whoever writes and then reads, reads what was written."""
    tasks = [rig.submit("echo", delay=60, client_id=str(number % 2)) for number in range(10)]
    query = TaskQuery(client_id="1", size=3)
    page = rig.it.list_tasks(query)
    assert [task.id for task in page.tasks] == [task.id for task in reversed(tasks[1::2])][:3]
    assert (rig.it.count(query), len(list(rig.it.all_tasks(query)))) == (5, 5)


def test_outputs_are_found_by_their_names_only(rig: Rig) -> None:
    """A name never becomes a path."""
    task = rig.until(rig.submit("write", outputs=["a.txt"]))
    assert rig.it.output(task, "a.txt").read_text() == "a.txt"
    for name in ("b.txt", "../a.txt", "", task.output_files[0]):
        with pytest.raises(NotFound):
            rig.it.output(task, name)


def test_why_is_answered_for_tasks_in_every_state(make_rig: RigMaker) -> None:
    """What it waits for, or how it ended."""
    rig = make_rig(limits__global=1)
    gate = rig.gate()
    running = rig.submit("stubborn", gate=gate)
    gate_of(gate).await_entered()
    rig.settle()
    waiting, later, draft = rig.submit("echo"), rig.submit("echo", delay=60), rig.submit("echo", draft=True)
    kinds = {rig.it.why(task.id).kind for task in (running, waiting, later, draft)}
    assert kinds == {"running", "limit", "delayed", "draft"}
    gate_of(gate).open()
    assert rig.it.why(rig.until(waiting).id).kind == "completed"
    assert rig.it.why("echo/absent.txt").kind == "absent"


def test_queues_tell_what_waits_runs_and_has_ended_in_them(make_rig: RigMaker) -> None:
    """Every task is in one column of its queue."""
    rig = make_rig(limits__global=1)
    failed(rig, queue="high")
    rig.until(rig.submit("echo", queue="high"))
    retried = rig.submit("act", script=["raise"], queue="high")
    rig.when(retried, lambda now: now.run_after is not None)
    gate = rig.gate()
    rig.submit("stubborn", gate=gate, queue="high")
    gate_of(gate).await_entered()
    rig.settle()
    for fields in ({}, {"delay": 60}, {"draft": True}):
        rig.submit("echo", queue="high", **fields)
    (row,) = (row for row in rig.it.queue_stats() if row["queue"] == "high")
    expected = dict.fromkeys(("pending", "scheduled", "retry", "active", "completed", "failed", "drafts"), 1)
    assert {name: row[name] for name in expected} == expected
    assert {row["queue"] for row in rig.it.queue_stats()} == {"critical", "high", "default", "low"}


def test_health_tells_why_nothing_goes_on(rig: Rig) -> None:
    """One reason for each thing that is wrong."""
    rig.handlers.joinpath("broken.py").write_text("def (")
    rig.it.handlers.refresh_changed()
    health = rig.it.health()
    assert (health.ready, health.reasons) == (True, ())
    assert "SyntaxError" in "".join(health.details["broken_handlers"].values())
    rig.it.store.space.report_full()
    rig.it.store.writer.failure = rig.it.store.committer.failure = OSError("Input/output error")
    rig.it.is_closing = True
    rig.it._inbox_failed(OSError("gone"))
    assert len(rig.it.health().reasons) == 5
    rig.it.store.writer.failure = rig.it.store.committer.failure = None


# Changing


def test_a_rerun_is_a_new_task_with_the_same_content(rig: Rig) -> None:
    """The old one stays as it is; the inputs are the same files."""
    old = rig.until(rig.submit("read", inputs=(rig.input("a.txt", "hello"),), metadata={"a": "b"}, priority=3))
    new = rig.until(rig.it.rerun(old.id))
    assert (new.result, new.parent_id, new.metadata, new.priority) == ({"a.txt": "hello"}, old.id, {"a": "b"}, 3)
    assert (new.id != old.id, rig.it.get(old.id)) == (True, old)


def test_a_task_of_a_handlers_own_queue_can_be_rerun(rig: Rig) -> None:
    """Though the configuration does not know that queue."""
    old = rig.until(rig.submit("private"))
    assert rig.until(rig.it.rerun(old.id)).queue == "own"


def test_what_was_deleted_is_gone_with_all_that_belonged_to_it(rig: Rig) -> None:
    """Only what has ended, or is a draft, can be."""
    task = rig.until(rig.submit("write", outputs=["b"], inputs=(rig.input("a.txt"),)))
    draft, waiting = rig.submit("echo", draft=True), rig.submit("echo", delay=60)
    rig.it.delete(task.id)
    rig.it.delete(draft.id)
    with pytest.raises(IllegalTransition):
        rig.it.delete(waiting.id)
    rig.it.store.writer.flush()
    assert not [path for path in rig.data.rglob("*") if task.id in str(path) or draft.id in str(path)]
    with pytest.raises(NotFound):
        rig.it.get(task.id)


def test_a_draft_becomes_a_task_with_its_files_and_its_payload(rig: Rig) -> None:
    """Created, uploaded, pending, done."""
    draft = rig.submit("text", draft=True)
    assert draft.status is Status.CREATED
    assert rig.it.add_input(draft.id, rig.input("a.txt")).status is Status.UPLOADED
    with pytest.raises(InvalidSubmission):
        rig.it.begin(draft.id, {"width": "wide"})
    rig.it.begin(draft.id, {"width": 3})
    assert rig.until(draft).result == 1


def test_a_draft_may_change_its_mind(rig: Rig) -> None:
    """Files are added, dropped, replaced, and notes are made, until it is started."""
    draft = rig.submit("text", draft=True, inputs=(rig.input("a.txt"),))
    rig.it.add_input(draft.id, rig.input("b.txt"))
    left = rig.it.drop_input(draft.id, draft.input_files[0])
    assert [path.rpartition("/")[2] for path in left.input_files] == ["b.txt"]
    replaced = rig.it.replace_inputs(draft.id, rig.input("c.txt"))
    assert sorted(path.name for path in (rig.data / "uploads" / "local" / draft.id).iterdir()) == ["c.txt"]
    assert rig.it.revise(draft.id, lambda task: {**task.metadata, "by": "ann"}).metadata == {"by": "ann"}
    rig.it.begin(replaced.id)
    assert rig.until(draft).result == 1


def test_a_failed_task_begins_again_with_another_payload(rig: Rig) -> None:
    """Checked like the first one."""
    task = failed(rig)
    with pytest.raises(InvalidSubmission):
        rig.it.begin_again(task.id, {"script": "done"})
    rig.it.begin_again(task.id, {"script": ["done"]})
    assert rig.until(task).result == "done"


def test_a_task_is_found_by_the_beginning_of_its_id(rig: Rig) -> None:
    """If it is the only one that begins so, and theirs who asks."""
    task = rig.submit("echo")
    assert rig.it.resolve(task.id[:8]).id == task.id
    for prefix, user in (("", None), ("0000zz", None), (task.id[:8], "ann")):
        with pytest.raises(NotFound):
            rig.it.resolve(prefix, user)


def test_a_batch_is_tasks_at_once_or_not_at_all(rig: Rig) -> None:
    """Faults with their place."""
    origin = Origin(Source.HTTP)
    tasks = rig.it.submit_many([(Submission(type="echo", payload={"value": n}), origin) for n in range(3)])
    assert [rig.until(task).result for task in tasks] == [0, 1, 2]
    with pytest.raises(InvalidSubmission, match="/1/payload/value2"):
        rig.it.submit_many([(Submission(type="echo", payload={f"value{n}": n} if n else {}), origin) for n in (0, 2)])
    assert rig.it.count(TaskQuery()) == 3


def test_who_does_not_wait_for_a_submission_is_told(rig: Rig) -> None:
    """As long as there is room for it."""
    told: list[Any] = []
    assert rig.it.has_room()
    rig.it.submit_soon(Submission(type="echo"), Origin(Source.HTTP), lambda *answer: told.append(answer))
    rig.settle()
    (((task,), error),) = told
    assert (rig.until(task).status, error) == (Status.COMPLETED, None)


def test_a_change_may_be_for_certain_versions_only(rig: Rig) -> None:
    """Somebody else was quicker: nothing happens."""
    task = rig.submit("echo", delay=60)
    with pytest.raises(VersionMismatch):
        rig.it.cancel(task.id, versions=frozenset({7}))
    cancelled = rig.it.cancel(task.id, versions=frozenset({1}))
    with pytest.raises(VersionMismatch):
        rig.it.retry(task.id, versions=frozenset({1}))
    with pytest.raises(VersionMismatch):
        rig.it.delete(task.id, versions=frozenset({1}))
    assert rig.it.get(task.id) == cancelled
    rig.it.delete(task.id, versions=frozenset({2}))


def test_many_tasks_are_changed_each_on_its_own(rig: Rig) -> None:
    """By a query, or by their ids."""
    tasks = [rig.submit("echo", delay=60) for _ in range(3)]
    assert rig.it.change_many(Verb.CANCEL, TaskQuery(), 2).changed == 2
    report = rig.it.change_these(Verb.CANCEL, [task.id for task in tasks])
    assert (report.matched, report.changed, len(report.failed)) == (3, 1, 2)
    rig.advance(8 * 86_400)
    assert len(rig.it.gc(GcMode.DRY_RUN).removed) == 3
    assert rig.it.count(TaskQuery()) == 3


def test_a_task_that_expired_can_be_given_another_chance(rig: Rig) -> None:
    """A person who retries it wants it to run, late as it is."""
    task = rig.submit("echo", draft=True, expires_at=NOON + timedelta(seconds=60))
    rig.advance(60)
    assert rig.until(task).status is Status.FAILED
    rig.it.retry(task.id)
    assert rig.until(task, Status.COMPLETED, Status.FAILED).status is Status.COMPLETED


def test_changed_limits_hold_for_what_comes_in_and_for_what_starts(rig: Rig) -> None:
    """Without a restart, new queues included."""
    changed = rig.configure({"limits.max_pending": 1, "limits.global": 1, "queues.night": {"weight": 1}})
    rig.it.change_limits(changed)
    gate = rig.gate()
    rig.submit("stubborn", gate=gate)
    gate_of(gate).await_entered()
    rig.submit("echo", queue="night")
    with pytest.raises(LimitReached):
        rig.submit("echo")
    gate_of(gate).open()


# Life


def test_without_a_server_a_dropped_file_is_said_to_wait_for_one(tmp_path: Path) -> None:
    """No scan will come, however long somebody waits for it."""
    rig = Rig(tmp_path, {})
    rig.service = Service(rig.config, Role.VISIT, rig.clock)
    rig.it.start()
    dropped = Path(rig.it.store.layout.inbox, "echo", "a.txt")
    dropped.parent.mkdir(parents=True)
    dropped.write_text("a")
    assert rig.it.why("echo/a.txt").kind == "unserved"
    rig.close()


def test_a_handler_that_breaks_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever saves it looks at the terminal; other files' changes do not say it again."""
    rig = Rig(tmp_path, {})
    rig.open()
    try:
        broken = rig.config.handlers_dir / "broken.py"
        broken.write_text("def (")
        for _ in range(2):
            rig.it.handlers.refresh([broken])
            rig.it._handlers_changed(frozenset())
        told = [record for record in caplog.records if f"{broken}:1: SyntaxError" in record.message]
        assert len(told) == 1
    finally:
        broken.unlink(missing_ok=True)
        rig.close()


def test_a_visitor_looks_and_changes_and_runs_nothing(tmp_path: Path) -> None:
    """For the length of one command."""
    rig = Rig(tmp_path, {})
    rig.service = Service(rig.config, Role.VISIT, rig.clock)
    rig.it.start()
    task = rig.submit("echo")
    rig.settle()
    assert rig.it.get(task.id).status is Status.PENDING
    rig.close()
    rig.open()
    assert rig.until(task).status is Status.COMPLETED
    rig.close()


def test_a_server_takes_what_is_dropped_and_writes_what_came_of_it(tmp_path: Path) -> None:
    """Inbox, attempts, outbox, in one process; and it can be stopped."""
    rig = Rig(tmp_path, {})
    rig.service = Service(rig.config)
    rig.it.start()
    with ExitStack() as stack, rig.it.events.subscribe() as watcher:
        stack.callback(rig.close)
        aside = tmp_path / "hello.txt"
        aside.write_text("hello")
        aside.rename(rig.data / "inbox" / "read" / "hello.txt")
        event = watcher.get(LIMIT_SECONDS)
        assert event is not None
        assert rig.it.wait(event.task_id, LIMIT_SECONDS).result == {"hello.txt": "hello"}
    assert rig.data.joinpath("outbox", "read", "hello.txt", "task.json").exists()


def test_a_change_of_handlers_is_a_change_of_limits(rig: Rig) -> None:
    """A handler that limits itself is held to that from the moment it is there."""
    rig.handlers.joinpath("more.py").write_text(
        "from runner import handler\nfrom tests.rig import gate_of\n"
        "@handler(concurrency=1)\ndef single(ctx, gate: str) -> None:\n    gate_of(gate).wait()\n"
    )
    rig.it._handlers_changed(rig.it.handlers.refresh_changed())
    rig.it._handlers_changed(frozenset())
    gate = rig.gate()
    tasks = [rig.submit("single", gate=gate) for _ in range(3)]
    gate_of(gate).await_entered()
    rig.until(rig.submit("echo"))
    assert gate_of(gate).entered == 1
    gate_of(gate).open()
    assert {rig.until(task).status for task in tasks} == {Status.COMPLETED}


def test_a_directory_has_one_owner_and_others_can_wait_for_it(rig: Rig) -> None:
    """The next one goes on as soon as the first lets go, and says for whom it waits."""
    task = rig.submit("echo", delay=60)
    other = Service(rig.config, Role.VISIT, rig.clock)
    with pytest.raises(OwnerExists):
        other.open()
    announced = threading.Event()
    thread = threading.Thread(target=other.open, args=(lambda error: announced.set(),))
    thread.start()
    assert announced.wait(LIMIT_SECONDS)
    rig.close()
    thread.join(LIMIT_SECONDS)
    assert other.get(task.id).status is Status.PENDING
    other.close()


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    """Unless the configuration says that this is meant."""
    rig = Rig(tmp_path, {})
    rig.data.mkdir(mode=0o777)
    rig.data.chmod(0o777)
    with pytest.raises(UnsafeAccess):
        Service(rig.config, Role.VISIT).open()
    with opened(tmp_path, storage__allow_shared=True) as shared:
        assert shared.until(shared.submit("echo")).status is Status.COMPLETED


def test_what_recovery_noticed_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged file, for example."""
    with opened(tmp_path) as rig:
        task = rig.submit("echo", delay=60)
    rig.data.joinpath("tasks", f"{task.id}.json").write_text("{")
    with opened(tmp_path):
        assert any(task.id in record.message for record in caplog.records)
