"""What a runner does in one life of the suites that look at single calls: everything once, and it is written down,
elsewhere, what was told."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.config import Config
from runner.errors import RunnerError, Unavailable
from runner.intake.admission import Arrival, Origin, Submission
from runner.service import Role, Service
from runner.store import Files, Handover, Identity, TaskQuery, Transition, User
from runner.store.checkpoint import Checkpointer
from runner.task import Drop, Source, Status, Task

HANDLERS = '''
import os

from runner import Context, Fail, handler

@handler(retries=5, backoff={"base": 0.001})
def noop(ctx: Context) -> None:
    """Nothing."""

@handler(retries=0)
def fail(ctx: Context) -> None:
    """Never works."""
    raise Fail("no")

@handler(retries=5, backoff={"base": 0.001})
def write(ctx: Context) -> None:
    """Copies its inputs."""
    for path in ctx.inputs:
        ctx.output(path.name).write_bytes(path.read_bytes())

@handler(delivery="at_most_once")
def once(ctx: Context, oracle: str) -> None:
    """Says that it was started."""
    fd = os.open(oracle, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"S {ctx.task.id}\\n".encode())
    os.close(fd)
'''
CONTENT = "what was handed in"
ORIGIN = Origin(Source.CLI)
PATIENCE_SECONDS = 1.0
"""How long a life waits for a task of its own; the disk may have failed, and then it never ends."""
LOOK_SECONDS = 0.02
HEALING_LOOKS = 250
"""So often, which is 5 seconds, until tasks are accepted again. Looks are counted and not time: the machine may be
busy with something else."""
END_LOOKS = 120
INBOX_LOOKS = 20


def prepare(root: Path) -> None:
    """Lays out the handlers beside where the data will be."""
    (root / "handlers").mkdir(parents=True)
    (root / "handlers" / "all.py").write_text(HANDLERS)


def make_service(root: Path, data: Path, files: Files | None = None) -> Service:
    """A runner all of whose parts are threads of this process; its files lag behind as in real life."""
    Checkpointer.LOOK_SECONDS = 0.1
    storage = {"min_free_bytes": 0, "min_free_inodes": 0, "ballast_bytes": 4096}
    pace = {"write_behind_seconds": 0.02, "overload_seconds": 0.05, "checkpoint_seconds": 3600}
    inbox = {"settle_seconds": 0.01, "rescan_seconds": 0.01, "force_polling": True}
    values = {"data_dir": data, "handlers_dir": root / "handlers", "storage": storage | pace, "inbox": inbox}
    return Service(Config.model_validate(values | {"drain": {"grace_period": 1}}), Role.VISIT, files=files)


class Oracle:
    """Where it is written down what a runner was told, each line in one write, after the acknowledgement.

    `A` accepted, `C` completed, `D` cancelled, `?` about to be deleted, `X` deleted, `U` user saved, `F` dropped file,
    `S` an at-most-once handler began, `E` an error that no front end expects, `H` the call that
    failed, `N` calls in all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, kind: str, text: str) -> None:
        """One line."""
        os.write(self._fd, f"{kind} {text}\n".encode())

    def hear(self, service: Service) -> None:
        """Has completions written down once they are durable, before anybody else hears of them."""
        committed = service.committed

        def hear(news: list[Transition]) -> None:
            for before, task, removed in news:
                if task.status is Status.COMPLETED and not removed and before is not Status.COMPLETED:
                    self.note("C", task.id)
            committed(news)

        service.committed = hear  # type: ignore[method-assign,assignment]


@dataclass
class Said:
    """What an oracle says, by kind."""

    lines: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, oracle: Path) -> Said:
        """All that was written."""
        said = cls()
        for line in oracle.read_text().splitlines() if oracle.exists() else ():
            kind, _, rest = line.partition(" ")
            said.lines.setdefault(kind, []).append(rest)
        return said

    def of(self, kind: str) -> list[str]:
        """The lines of one kind."""
        return self.lines.get(kind, [])


class Day:
    """What one life does. A step that the disk refuses is left out; the others go on."""

    def __init__(self, service: Service, oracle: Oracle, data: Path) -> None:
        self._service = service
        self._oracle = oracle
        self._data = data

    def run(self) -> None:
        """Each step, whatever became of the others."""
        for step in self._steps():
            try:
                step()
            except RunnerError:
                continue  # refused in words that front ends know
            except OSError as error:
                self._oracle.note("E", f"{step.__name__} {error!r}")

    def run_again(self) -> None:
        """What failed has passed: this owner accepts and runs tasks again, without a new start."""
        for _ in range(HEALING_LOOKS):
            try:
                task = self._submit("noop")
            except Unavailable:
                time.sleep(LOOK_SECONDS)
            else:
                if not await_end(self._service, task).is_terminal:
                    self._oracle.note("E", "a task is accepted, and not run")
                return
        self._oracle.note("E", f"it does not heal: {'; '.join(self._service.health().reasons)}")

    def _steps(self) -> Iterable[Callable[[], None]]:
        return (
            self._complete, self._run_once, self._fail_and_retry, self._cancel, self._checkpoint, self._delete,
            self._draft, self._take, self._drop, self._chain, self._save_user, self._complete, self._look,
        )  # fmt: skip

    def _submit(self, type: str, **fields: Any) -> Task:
        task = self._service.submit(Submission(type=type, **fields), ORIGIN)
        self._oracle.note("A", task.id)
        return task

    def _await(self, task: Task) -> None:
        self._service.wait(task.id, PATIENCE_SECONDS if self._service.health().ready else 0)

    def _complete(self) -> None:
        self._await(self._submit("noop"))

    def _run_once(self) -> None:
        self._await(self._submit("once", payload={"oracle": str(self._oracle.path)}))

    def _fail_and_retry(self) -> None:
        task = self._submit("fail")
        self._await(task)
        self._service.retry(task.id)
        self._await(task)

    def _cancel(self) -> None:
        task = self._submit("noop", delay=3600)
        self._service.cancel(task.id)
        self._oracle.note("D", task.id)

    def _delete(self) -> None:
        task = self._submit("noop", draft=True)
        self._oracle.note("?", task.id)  # from here until the answer nobody knows
        self._service.delete(task.id)
        self._oracle.note("X", task.id)

    def _draft(self) -> None:
        task = self._submit("write", draft=True)
        path = self._data.parent / f"{task.id}.txt"
        path.write_text(CONTENT)
        self._service.add_input(task.id, Arrival(path, "input.txt", mode=Handover.LINK))
        self._service.begin(task.id)
        self._await(task)

    def _take(self) -> None:
        path = self._data / "inbox" / "write" / f"{uuid.uuid4()}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(CONTENT)
        self._oracle.note("F", path.name)
        (answer,) = self._service.door.take([(Submission(type="write"), _drop(path))])
        if isinstance(answer, Task):
            self._oracle.note("A", answer.id)
            self._await(answer)

    def _drop(self) -> None:
        """As a person does it; what the inbox's thread would do is done here, and it has no one to tell of an error."""
        path = self._data / "inbox" / "write" / f"{uuid.uuid4()}.txt"
        path.parent.mkdir(exist_ok=True)
        path.with_name(f"{path.name}.json").write_text("{}")
        path.write_text(CONTENT)
        self._oracle.note("F", path.name)
        for _ in range(INBOX_LOOKS):
            self._service.inbox.run_once()
            if not path.exists():
                break
            time.sleep(LOOK_SECONDS)

    def _chain(self) -> None:
        self._await(self._submit("noop", on_success={"type": "noop"}, unique_key="chain"))

    def _save_user(self) -> None:
        now = datetime.now(UTC)
        self._service.store.save_user(User(user_id="somebody", created_at=now, last_accessed=now))
        self._oracle.note("U", "somebody")

    def _checkpoint(self) -> None:
        try:
            self._service.store.checkpointer.checkpoint()
        except OSError:
            return  # nobody but the checkpointer's own loop calls it, and that one knows

    def _look(self) -> None:
        self._service.list_tasks(TaskQuery())
        self._service.queue_stats()
        self._service.health()


def await_end(service: Service, task: Task) -> Task:
    """The task as it has ended, or as it stands after two minutes. Looks are counted, a second each: see `looks`."""
    for _ in range(END_LOOKS):
        if (task := service.wait(task.id, 1)).is_terminal:
            break
    return task


def _drop(path: Path) -> Origin:
    seen = Identity.of(str(path))
    drop = Drop(
        path=f"inbox/write/{path.name}",
        name=path.name,
        device=seen.device,
        inode=seen.inode,
        size=seen.size,
        mtime_ns=seen.mtime_ns,
    )
    return Origin(Source.INBOX, inputs=(Arrival(path, path.name, seen.size, Handover.MOVE),), drop=drop)
