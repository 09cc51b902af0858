"""The service against a dictionary: whatever is asked of it in whatever order, it says what the model says."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from runner.dispatch.dispatcher import CLOCK_SLACK
from runner.errors import IllegalTransition, KeyConflict
from runner.store import TaskQuery
from runner.task import DRAFT, TERMINAL, Status, Task
from tests.rig import Rig, gate_of

MAX_RETRIES = 2
BASE_SECONDS = 10
MAX_LOST = 3
PATIENCE_SECONDS = 3.0
GRANTED_STEPS = 6
"""No owner dies or stops sooner: opening and closing is what takes long."""

SCRIPTS = st.sampled_from(
    [
        ["done"],
        ["fail"],
        ["fail", "done"],
        ["raise", "done"],
        ["raise"],
        ["retry 5", "snooze 30", "done"],
        ["snooze 30", "raise", "done"],
        ["wait"],
        ["wait", "raise", "done"],
        ["raise", "wait"],
    ]
)
SECONDS = st.integers(1, 90)
PICKS = st.integers(0, 1000)
USERS = st.sampled_from(["ann", "bob"])


@dataclass
class Expected:
    """What the model knows of a task. `due` is until when it waits, as it was settled at `settled_at`; `starts_at` the
    same, by a clock that may have been set back since; `lost` counts attempts whose owner died."""

    user: str
    script: list[str]
    gate: str
    status: Status
    due: datetime | None = None
    settled_at: datetime | None = None
    starts_at: datetime | None = None
    expires_at: datetime | None = None
    key: str | None = None
    attempt: int = 0
    retries: int = 0
    lost: int = 0
    inputs: int = 0


@dataclass
class Model:
    """What should be so: tasks by id, the time, the gates that are open."""

    now: datetime
    tasks: dict[str, Expected] = field(default_factory=dict)
    opened: set[str] = field(default_factory=set)

    def let_run(self) -> None:
        """Starts and expires what is due."""
        for task in self.tasks.values():
            if task.expires_at is not None and task.expires_at <= self.now and not task.attempt:
                if task.status in DRAFT or task.status is Status.PENDING:
                    task.status = Status.FAILED
            elif task.status is Status.PENDING and self._is_due(task):
                self._start(task)

    def set_clock(self, now: datetime) -> None:
        """It is so late now. Where that is earlier than before, a retry waits as long as it was to wait."""
        went_back, self.now = now < self.now - CLOCK_SLACK, now
        if went_back:
            self._heed_clock()

    def _is_due(self, task: Expected) -> bool:
        if task.due is None or task.due <= self.now:
            return True
        if task.starts_at is None or task.starts_at > self.now:
            return False
        task.starts_at = None
        return self._is_ahead(task)  # else the clock has caught up meanwhile, and it is the instant that counts

    def _is_ahead(self, task: Expected) -> bool:
        return task.settled_at is not None and self.now < task.settled_at - CLOCK_SLACK

    def _heed_clock(self) -> None:
        for task in self.tasks.values():
            if task.status is Status.PENDING and task.due is not None and task.settled_at is not None:
                task.starts_at = self.now + (task.due - task.settled_at) if self._is_ahead(task) else None

    def end_waiting(self, gate: str) -> None:
        """A gate opens."""
        self.opened.add(gate)
        for task in self.tasks.values():
            if task.status is Status.PROCESSING and task.gate == gate:
                task.status = Status.COMPLETED

    def die(self) -> None:
        """The owner is killed; the next one finds orphans."""
        for task in self.tasks.values():
            if task.status is Status.PROCESSING:
                task.retries, task.lost = task.retries + 1, task.lost + 1
                hopeless = task.lost >= MAX_LOST and task.lost > MAX_RETRIES
                task.status = Status.FAILED if hopeless else Status.PENDING
        self._heed_clock()

    def stop(self) -> None:
        """The owner drains, and waits for nothing."""
        for task in self.tasks.values():
            if task.status is Status.PROCESSING:
                task.status = Status.PENDING
        self._heed_clock()

    def _start(self, task: Expected) -> None:
        task.attempt, task.due, task.settled_at, task.starts_at = task.attempt + 1, None, None, None
        verb, _, seconds = task.script[min(task.attempt, len(task.script)) - 1].partition(" ")
        if verb == "snooze":
            self._wait(task, int(seconds))
        elif verb in ("raise", "retry"):
            wait = int(seconds) if seconds else BASE_SECONDS * 2**task.retries
            task.retries += 1
            if task.retries > MAX_RETRIES:
                task.status = Status.FAILED
            else:
                self._wait(task, wait)
        elif verb == "fail":
            task.status, task.retries = Status.FAILED, task.retries + 1
        elif verb == "wait" and task.gate not in self.opened:
            task.status = Status.PROCESSING
        else:
            task.status = Status.COMPLETED

    def _wait(self, task: Expected, seconds: int) -> None:
        task.status, task.due, task.settled_at = Status.PENDING, self.now + timedelta(seconds=seconds), self.now


class Owners(RuleBasedStateMachine):
    """One data directory and its owners, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp())
        self.owners = 0
        self.age = 0
        self.rig = self.next_owner()
        self.model = Model(self.rig.clock.now)

    def teardown(self) -> None:
        """Lets go of everything."""
        for task in self.model.tasks.values():
            gate_of(task.gate).open()
        self.rig.close()
        shutil.rmtree(self.top)

    def next_owner(self) -> Rig:
        """An owner of a directory of its own."""
        self.owners, self.age = self.owners + 1, 0
        root = self.top / str(self.owners)
        root.mkdir(exist_ok=True)
        return Rig(root, {"limits.global": 1000, "limits.per_user": None})

    @initialize()
    def open(self) -> None:
        self.rig.open()

    @rule(script=SCRIPTS, user=USERS, delay=st.none() | SECONDS, expires=st.none() | SECONDS, draft=st.booleans())
    def submit(self, script: list[str], user: str, delay: int | None, expires: int | None, draft: bool) -> None:
        if expires is not None and expires <= (delay or 0):
            expires = (delay or 0) + 1
        gate = self.rig.gate()
        expected = Expected(user, script, gate, Status.CREATED if draft else Status.PENDING)
        expected.due = None if delay is None else self.after(delay)
        expected.expires_at = None if expires is None else self.after(expires)
        task = self.rig.submit(
            "act", user, script=script, gate=gate, delay=delay, expires_at=expected.expires_at, draft=draft
        )
        self.model.tasks[task.id] = expected

    @rule(script=SCRIPTS, user=USERS, key=st.sampled_from("kl"))
    def submit_with_key(self, script: list[str], user: str, key: str) -> None:
        gate = f"{user}-{key}-{self.top}"
        held = {(task.user, task.key): (task_id, task) for task_id, task in self.model.tasks.items()}
        task_id, holder = held.get((user, key), (None, None))
        if holder is not None and holder.script != script:
            with pytest.raises(KeyConflict):
                self.rig.submit("act", user, script=script, gate=gate, unique_key=key)
            return
        task = self.rig.submit("act", user, script=script, gate=gate, unique_key=key)
        assert task_id in (None, task.id)
        self.model.tasks.setdefault(task.id, Expected(user, script, gate, Status.PENDING, key=key))

    @precondition(lambda self: self.model.tasks)
    @rule(pick=PICKS)
    def cancel(self, pick: int) -> None:
        task_id, expected = self.pick(pick)
        if self.allows(expected.status not in TERMINAL, lambda: self.rig.it.cancel(task_id)):
            expected.status, expected.due = Status.CANCELLED, None

    @precondition(lambda self: self.model.tasks)
    @rule(pick=PICKS)
    def retry(self, pick: int) -> None:
        task_id, expected = self.pick(pick)
        may = expected.status in (Status.FAILED, Status.CANCELLED)
        if self.allows(may, lambda: self.rig.it.retry(task_id)):
            expected.status, expected.due, expected.settled_at, expected.starts_at = Status.PENDING, None, None, None
            if expected.expires_at is not None and expected.expires_at <= self.model.now:
                expected.expires_at = None

    @precondition(lambda self: self.model.tasks)
    @rule(pick=PICKS)
    def rerun(self, pick: int) -> None:
        task_id, expected = self.pick(pick)
        task = self.rig.it.rerun(task_id)
        fresh = Expected(expected.user, expected.script, expected.gate, Status.PENDING, inputs=expected.inputs)
        self.model.tasks[task.id] = fresh

    @precondition(lambda self: self.model.tasks)
    @rule(pick=PICKS)
    def delete(self, pick: int) -> None:
        task_id, expected = self.pick(pick)
        may = expected.status in TERMINAL | DRAFT
        if self.allows(may, lambda: self.rig.it.delete(task_id)):
            del self.model.tasks[task_id]

    @precondition(lambda self: self.model.tasks)
    @rule(pick=PICKS)
    def begin(self, pick: int) -> None:
        task_id, expected = self.pick(pick)
        if self.allows(expected.status in DRAFT, lambda: self.rig.it.begin(task_id)):
            expected.status = Status.PENDING

    @precondition(lambda self: self.model.tasks)
    @rule(pick=PICKS)
    def add_input(self, pick: int) -> None:
        task_id, expected = self.pick(pick)
        file = self.rig.input("a.txt")
        if self.allows(expected.status in DRAFT, lambda: self.rig.it.add_input(task_id, file)):
            expected.status, expected.inputs = Status.UPLOADED, expected.inputs + 1

    @precondition(lambda self: self.model.tasks)
    @rule(pick=PICKS)
    def open_gate(self, pick: int) -> None:
        _, expected = self.pick(pick)
        gate_of(expected.gate).open()
        self.model.end_waiting(expected.gate)

    @rule(seconds=st.integers(-60, 120))
    def advance(self, seconds: int) -> None:
        self.rig.advance(seconds)
        self.rig.it.dispatcher.run_once()  # two jumps may be one to whoever looks later
        self.model.set_clock(self.rig.clock.now)

    @precondition(lambda self: self.age > GRANTED_STEPS)
    @rule()
    def restart(self) -> None:
        self.age = 0
        self.rig.close(grace_seconds=0)
        self.rig.open()
        self.model.stop()

    @precondition(lambda self: self.age > GRANTED_STEPS)
    @rule()
    def kill(self) -> None:
        heir = self.next_owner()
        self.rig.it.store.writer.flush()
        shutil.copytree(self.rig.data, heir.data)
        self.rig.close(grace_seconds=0)
        heir.clock.now = self.rig.clock.now
        self.rig = heir.open()
        self.model.die()

    @invariant()
    def the_service_says_what_the_model_says(self) -> None:
        if self.rig.service is None:
            return
        self.age += 1
        self.model.let_run()
        for task_id, expected in self.model.tasks.items():
            self.await_told(task_id, expected)
        self.rig.settle()
        assert self.statuses() == {task_id: expected.status for task_id, expected in self.model.tasks.items()}
        waiting = sum(expected.status is Status.PENDING for expected in self.model.tasks.values())
        assert self.rig.it.dispatcher.pending() == waiting

    def await_told(self, task_id: str, expected: Expected) -> None:
        """The task comes to be as it should. Not for long, or finding the smallest failure would take hours."""
        try:
            self.rig.when(self.rig.it.get(task_id), lambda task: seen(task) == told(expected), PATIENCE_SECONDS)
        except AssertionError:
            assert seen(self.rig.it.get(task_id)) == told(expected)

    def statuses(self) -> dict[str, Status]:
        """What the list says."""
        return {task.id: task.status for task in self.rig.it.all_tasks(TaskQuery(size=7))}

    def after(self, seconds: int) -> datetime:
        return self.model.now + timedelta(seconds=seconds)

    def pick(self, number: int) -> tuple[str, Expected]:
        items = list(self.model.tasks.items())
        return items[number % len(items)]

    def allows(self, expected: bool, verb: Callable[[], Any]) -> bool:
        """Does it, or makes sure that it is refused."""
        if expected:
            verb()
        else:
            with pytest.raises(IllegalTransition):
                verb()
        return expected


def seen(task: Task) -> tuple[object, ...]:
    """What the model knows of a task, too."""
    due = task.run_after if task.status is Status.PENDING else None
    return task.status, task.attempt, task.retries_used, due, len(task.input_files)


def told(expected: Expected) -> tuple[object, ...]:
    """The same, as it should be."""
    due = expected.due if expected.status is Status.PENDING else None
    return expected.status, expected.attempt, expected.retries, due, expected.inputs


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_service_is_as_good_as_a_dictionary(soak: int) -> None:
    """Submissions, cancels, retries, reruns, deletions, drafts, keys, a clock that jumps, owners that stop or die."""
    run_state_machine_as_test(
        Owners,
        settings=settings(
            max_examples=20 * soak,
            stateful_step_count=30,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
