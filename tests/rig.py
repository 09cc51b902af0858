"""A runner in this process, for tests of what it decides: handlers wait at gates, and the clock is the test's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from runner.config import Config
from runner.intake.admission import Arrival, Origin, Submission
from runner.service import Role, Service
from runner.store.changes import Stage
from runner.task import Source, Status, Task

LIMIT_SECONDS = 20.0
"""How long a test waits for what must happen."""

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)

HANDLERS = '''
"""What the tests run."""

from typing import Any

from runner import Context, Fail, Retry, Snooze, handler
from tests.rig import gate_of


@handler(retries=0)
def echo(ctx: Context, value: Any = None) -> Any:
    """Give back what was given."""
    return value


@handler(retries=2, backoff={"base": 10, "factor": 2, "jitter": 0})
def stubborn(ctx: Context, gate: str, outputs: list[str] = []) -> int:
    """Do not hear anything before the gate opens, then write what is to be written."""
    gate_of(gate).wait()
    for name in outputs:
        ctx.output(name).write_text(f"attempt {ctx.task.attempt}")
    return ctx.task.attempt


@handler(retries=2, backoff={"base": 10, "factor": 2, "jitter": 0})
def obedient(ctx: Context, gate: str) -> str:
    """Wait at the gate until told to stop."""
    gate_of(gate).enter()
    while not gate_of(gate).is_open(0.005):
        ctx.check()
    return "opened"


@handler(retries=0, delivery="at_most_once")
def once(ctx: Context, gate: str) -> str:
    """The same, but never twice."""
    gate_of(gate).wait()
    return "opened"


@handler(retries=2, backoff={"base": 10, "factor": 2, "jitter": 0})
def act(ctx: Context, script: list[str], gate: str = "") -> str:
    """Do what the script says for this attempt; its last line is for all that follow."""
    verb, _, seconds = script[min(ctx.task.attempt, len(script)) - 1].partition(" ")
    ctx.log.info("attempt %d: %s", ctx.task.attempt, verb)
    if verb == "raise":
        raise ValueError("it broke")
    if verb == "fail":
        raise Fail("it is hopeless", code="hopeless")
    if verb == "retry":
        raise Retry(seconds)
    if verb == "snooze":
        raise Snooze(seconds)
    while verb == "wait" and not gate_of(gate).is_open(0.005):
        ctx.check()
    return verb


@handler(retries=0)
def write(ctx: Context, outputs: list[str]) -> None:
    """Write files."""
    for name in outputs:
        ctx.output(name).write_text(name)


@handler(retries=0)
def read(ctx: Context) -> dict[str, str]:
    """Say what is in the files."""
    return {path.name: path.read_text() for path in ctx.inputs}


@handler(retries=0, accepts=[".txt"])
def text(ctx: Context, width: int = 80) -> int:
    """Take text only."""
    return len(ctx.inputs)


@handler(retries=0, queue="own")
def private(ctx: Context) -> None:
    """Wait in a queue that the configuration does not know."""


@handler(retries=0)
def parent(ctx: Context, child: str, gate: str = "") -> str:
    """Hand in a child with the same files."""
    if gate:
        gate_of(gate).wait()
    return ctx.submit(child, {}, ctx.inputs)


@handler(retries=0)
async def coroutine(ctx: Context, value: Any = None) -> Any:
    """The same as echo, on the loop."""
    return value
'''


class Gate:
    """Where handlers wait. `entered` counts those that came."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._changed = threading.Condition()
        self.entered = 0

    def enter(self) -> None:
        """For handlers: one more has come."""
        with self._changed:
            self.entered += 1
            self._changed.notify_all()

    def wait(self) -> None:
        """For handlers: comes, and goes on when the gate is open."""
        self.enter()
        self._opened.wait(2 * LIMIT_SECONDS)

    def is_open(self, seconds: float) -> bool:
        """For handlers that look from time to time: whether it is open now, or opens before so long."""
        return self._opened.wait(seconds)

    def open(self) -> None:
        """Everybody who waits goes on, and whoever comes later does not wait."""
        self._opened.set()

    def await_entered(self, number: int = 1) -> None:
        """So many handlers have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.entered >= number, LIMIT_SECONDS), f"{self.entered} came"


_gates: dict[str, Gate] = {}


def gate_of(name: str) -> Gate:
    """The gate of that name, for handlers, which know no more than their payload."""
    return _gates.setdefault(name, Gate())


class Clock:
    """The time as the test says it."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


class Hold:
    """A change that keeps the committer from going on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.over = threading.Event()

    def apply(self, stage: Stage) -> None:
        """See `Change`."""
        self.begun.set()
        self.over.wait(LIMIT_SECONDS)


class Rig:
    """A service on a directory. Opened again it is the next owner."""

    def __init__(self, root: Path, settings: Mapping[str, Any], handlers: str = HANDLERS) -> None:
        self.root = root
        self.data = root / "data"
        self.handlers = root / "handlers"
        self.handlers.mkdir(exist_ok=True)
        self.handlers.joinpath("all.py").write_text(handlers)
        self.config = self.configure(settings)
        self.clock = Clock()
        self.service: Service | None = None

    def configure(self, settings: Mapping[str, Any]) -> Config:
        """A configuration for small disks and quick stops, with dotted keys on top."""
        values: dict[str, Any] = {
            "data_dir": self.data,
            "handlers_dir": self.handlers,
            "storage": {"min_free_bytes": 0, "min_free_inodes": 0, "ballast_bytes": 0},
            "drain": {"grace_period": LIMIT_SECONDS},
        }
        for path, value in settings.items():
            section, _, key = path.rpartition(".")
            (values.setdefault(section, {}) if section else values)[key] = value
        return Config.model_validate(values)

    def open(self) -> Rig:
        """Becomes the owner, and begins to run what waits."""
        self.service = Service(self.config, Role.VISIT, self.clock)
        self.service.open()
        self.service.run_tasks()
        return self

    def close(self, grace_seconds: float = LIMIT_SECONDS) -> None:
        """Drains, and lets go of the directory."""
        if self.service is not None:
            service, self.service = self.service, None
            service.config = service.config.model_copy(
                update={"drain": service.config.drain.model_copy(update={"grace_period": grace_seconds})}
            )
            service.close()

    def restart(self) -> None:
        """A clean stop and a start."""
        self.close()
        self.open()

    @property
    def it(self) -> Service:
        """The service, which is open."""
        assert self.service is not None
        return self.service

    def advance(self, seconds: float) -> None:
        """Moves the clock, and has the dispatcher look at it."""
        self.clock.now += timedelta(seconds=seconds)
        self.it.dispatcher._wake.set()

    def submit(self, type: str, user: str = "local", inputs: tuple[Arrival, ...] = (), **fields: Any) -> Task:
        """Hands in a task; `fields` are those of a submission, and all others are its payload."""
        known = {name: fields.pop(name) for name in tuple(fields) if name in Submission.model_fields}
        submission = Submission(type=type, **{"payload": fields, **known})
        return self.it.submit(submission, Origin(Source.HTTP, user, inputs))

    def gate(self) -> str:
        """The name of a new gate."""
        name = f"gate-{len(_gates)}"
        gate_of(name)
        return name

    def until(self, task: Task, *statuses: Status) -> Task:
        """The task, once it has one of these statuses; without any, once it has ended."""
        wanted = statuses or (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
        return self.when(task, lambda now: now.status in wanted)

    def when(self, task: Task, is_so: Callable[[Task], bool], seconds: float = LIMIT_SECONDS) -> Task:
        """The task, once that is so; each change of it may take so long."""
        with self.it.events.subscribe({task.id}) as watcher:
            while not is_so(now := self.it.get(task.id)):
                assert watcher.get(seconds) is not None, f"still {now.status}, attempt {now.attempt}"
        return now

    def settle(self) -> None:
        """All that was decided so far is durable, and the dispatcher has heard of it."""
        self.it.store.settle()

    def log_of(self, task: Task) -> list[str]:
        """What the task's log says, a line each."""
        return [event.data.get("message", "") for event in self.it.events.history(task.id)]

    @contextmanager
    def held_committer(self) -> Iterator[None]:
        """What is changed inside is committed in one batch at the end."""
        hold = Hold()
        self.it.store.submit((hold,))
        assert hold.begun.wait(LIMIT_SECONDS)
        yield
        hold.over.set()
        self.settle()

    def input(self, name: str, content: str = "content") -> Arrival:
        """A file to hand in."""
        path = self.root / name
        path.write_text(content)
        return Arrival(path, name)


@contextmanager
def opened(root: Path, handlers: str | None = None, **settings: Any) -> Iterator[Rig]:
    """A rig that runs; `settings` are keys of the configuration, with two underscores for a dot."""
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    rig = Rig(root, dotted, HANDLERS if handlers is None else handlers)
    try:
        yield rig.open()
    finally:
        for gate in _gates.values():
            gate.open()
        rig.close()
