"""A real store, door, inbox and outbox on `tmp_path`; nothing runs by itself, tests make each pass."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runner import task as transitions
from runner.config import Config
from runner.handlers import Handlers
from runner.intake.admission import Admission, Origin, Submission
from runner.intake.door import Door, Haul
from runner.intake.folders import Folder, Folders, manner_of
from runner.intake.inbox import Inbox
from runner.intake.names import Ignored
from runner.intake.outbox import Outbox
from runner.intake.porter import MANY, Porter
from runner.intake.taking import Summary
from runner.store import Durability, Remove, Store, StoreOptions, TaskQuery, Transition, Update
from runner.store.checkpoint import CheckpointRule
from runner.store.space import Floors
from runner.store.writer import Pace
from runner.task import Task, TaskError

HANDLERS = '''
from runner import handler, Context

@handler
def keep(ctx: Context) -> None:
    """Takes anything."""

@handler
def resize(ctx: Context, width: int) -> None:
    """Needs a parameter."""

@handler(accepts=[".csv"])
def table(ctx: Context) -> None:
    """Takes tables only."""
'''


class Gate:
    """Starts nothing; remembers what might start."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.released: list[str] = []
        self.waiting = 0

    def hold(self, task_ids: Iterable[str]) -> None:
        self.held.update(task_ids)

    def release(self, tasks: Iterable[Task]) -> None:
        self.released.extend(task.id for task in tasks)

    def let_go(self, task_ids: Iterable[str]) -> None:
        self.held.difference_update(task_ids)

    def pending(self) -> int:
        return self.waiting

    def pending_of(self, user_id: str) -> int:
        return self.waiting


class Site:
    """One data directory and the parts that deal with dropped files. `open` again stands for a restart."""

    def __init__(self, root: Path, config: Config, further: Sequence[Folder] = ()) -> None:
        self.root = root
        self.config = config
        self.further = further
        self.many = MANY
        self.data = config.data_dir
        self.gate = Gate()
        self.batches: list[int] = []
        self.failures: list[BaseException] = []
        self.heard: list[Transition] = []

    def open(self) -> None:
        """Opens the store and makes the parts; nothing is taken yet."""
        self.store = Store(self.data, _options(), self)
        self.handlers = Handlers(self.config.handlers_dir, self.config.handlers)
        self.handlers.load()
        manner = manner_of(self.config.inbox)
        folders = Folders(self.store.layout.inbox, Ignored(self.config.inbox.ignore), self.further, manner)
        self.porter, self.outbox_porter = (
            Porter(self.store.layout, self.config.outbox.link, many=self.many, storm=self.many) for _ in range(2)
        )
        self.outbox = Outbox(self.config.outbox, self.store, folders, self.outbox_porter, flush_logs=lambda: None)
        admission = Admission(self.handlers, self.config.limits, self.config.queues, self.store.layout, self.gate)
        self.door = Door(self.store, admission, self.gate, self.porter, lambda: datetime.now(UTC))
        self.inbox = Inbox(
            self.config.inbox, self.store, self.handlers, folders, self.outbox, self, self.porter, self.failures.append
        )
        recovered = self.store.open()
        self.door.take_again(recovered.live)
        self.outbox.recover()
        self.inbox.prepare()

    def close(self) -> None:
        """Closes what `open` opened; files stay as they are."""
        self.inbox.close()
        self.outbox.close()
        self.porter.close()
        self.outbox_porter.close()
        self.store.close()

    def staged(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""

    def appended(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""

    def refused(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""

    def committed(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""
        self.heard.extend(transitions)
        self.inbox.hear(transitions)

    def take_ahead(self, pairs: Sequence[tuple[Submission, Origin]], meanwhile: Callable[[], None]) -> Haul:
        """See `inbox.Takes`; batches are counted."""
        self.batches.append(len(pairs))
        return self.door.take_ahead(pairs, meanwhile)

    def submit(self, submission: Submission, origin: Origin) -> Task:
        """See `inbox.Takes`."""
        return self.door.submit(submission, origin)

    def drop(self, name: str, content: bytes | str = b"content") -> Path:
        """Puts a whole file into the inbox, as a rename would."""
        path = self.data / "inbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.root / "aside"
        aside.write_bytes(content if isinstance(content, bytes) else content.encode())
        aside.rename(path)
        return path

    def scan(self) -> Summary:
        """A pass that scans everything first."""
        self.inbox.rounds.ask(0.0)
        return self.inbox.run_once()

    def write_outbox(self) -> None:
        """Lets the outbox deal with all that was heard."""
        news = [transition for transition in self.heard if transition.task.drop is not None]
        self.heard.clear()
        self.outbox.run_once(news)

    def tasks(self) -> list[Task]:
        """Every task, oldest first."""
        return list(reversed(self.store.list(TaskQuery(size=1000)).tasks))

    def only_task(self) -> Task:
        """The task, when there must be one."""
        (task,) = self.tasks()
        return task

    def run(self, task: Task, **outputs: str) -> Task:
        """The task runs and completes; `outputs`: name → content."""
        self._commit(task, lambda now: transitions.start(now, _now()))
        results = Path(self.store.layout.result(task.user_id, task.id))
        for name, content in outputs.items():
            results.mkdir(parents=True, exist_ok=True)
            (results / name).write_text(content)
        files = tuple(f"results/{task.user_id}/{task.id}/{name}" for name in sorted(outputs))
        return self._commit(task, lambda now: transitions.complete(now, now.attempt, _now(), output_files=files))

    def fail(self, task: Task, message: str = "it broke") -> Task:
        """The task runs and fails for good."""
        self._commit(task, lambda now: transitions.start(now, _now()))
        error = TaskError(code="failed", message=message)
        return self._commit(task, lambda now: transitions.fail(now, now.attempt, _now(), error=error))

    def retry(self, task: Task) -> Task:
        """A person gives it another attempt."""
        return self._commit(task, lambda now: transitions.retry(now, _now()))

    def remove(self, task: Task) -> None:
        """The task is deleted."""
        self.store.commit((Remove(task.id),))

    def _commit(self, task: Task, function: Callable[[Task], Task]) -> Task:
        (changed,) = self.store.commit((Update(task.id, function),))
        assert changed is not None
        return changed

    def listing(self, below: str) -> list[str]:
        """The files below a folder of the data directory, in order, with their relative paths."""
        top = self.data / below
        return sorted(str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir())


def _now() -> datetime:
    return datetime.now(UTC)


def _options() -> StoreOptions:
    return StoreOptions(Durability.PROCESS, Pace(0.05, 2.0), CheckpointRule(64 * 1024**2, 60.0), Floors(0, 0, 0))


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites; keywords are keys of `inbox` in the configuration."""
    made: list[Site] = []

    def make(further: Sequence[Folder] = (), outbox: dict[str, object] | None = None, **inbox: object) -> Site:
        handlers = tmp_path / "handlers"
        handlers.mkdir(exist_ok=True)
        (handlers / "all.py").write_text(HANDLERS)
        values = {"inbox": inbox, "outbox": outbox or {}, "data_dir": tmp_path / "data", "handlers_dir": handlers}
        site = Site(tmp_path, Config.model_validate(values), further)
        site.open()
        made.append(site)
        return site

    yield make
    for site in made:
        site.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A site with the default configuration."""
    return make_site()
