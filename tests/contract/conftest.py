"""A real runner that speaks every dialect, and the helper by which a contract is a table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from runner.config import Config
from runner.dialects.listeners import make_app, make_dialects
from runner.dialects.video_grpc import TaskServer
from runner.service import Service
from runner.task import Status, Task
from runner.web.app import Site
from runner.web.server import Server
from runner.web.sockets import listen_on_port
from tests.rig import Gate, gate_of

HANDLERS: Final = '''
"""What the tests run."""

from typing import Any

from runner import Context, Fail, Retry, handler
from runner.task import FileState
from tests.rig import gate_of


@handler(retries=0)
def echo(ctx: Context, value: Any = None) -> Any:
    """Give back what was given."""
    return value


@handler(retries=0)
def hold(ctx: Context, gate: str = "", percentage: float = 0, files: list[str] = []) -> str:
    """Say how far it is, then wait at the gate until told to stop."""
    ctx.files([FileState(path=path, status="processing", operate="add") for path in files])
    if percentage:
        ctx.progress(percentage, "half way", stage="work")
    gate_of(gate).enter()
    while not gate_of(gate).is_open(0.005):
        ctx.check()
    return "opened"


@handler(retries=0)
def fail(ctx: Context, files: list[str] = []) -> None:
    """Never work."""
    ctx.files([FileState(path=path, status="failed", operate="modify") for path in files])
    raise Fail("it is hopeless", code="hopeless")


@handler(retries=0)
def video_in_chinese(ctx: Context) -> str:
    """Make of a film the same film; of one that says so, nothing; while the gate of that name is not open, wait."""
    film = ctx.inputs[0].read_bytes()
    if film.endswith(b"broken"):
        raise Fail("the film is broken")
    if b"gate:" in film:
        gate = gate_of(film.rpartition(b"gate:")[2].decode())
        gate.enter()
        while not gate.is_open(0.005):
            ctx.check()
    ctx.output("result.mp4").write_bytes(film)
    return "ok"


@handler(retries=3)
def later(ctx: Context) -> None:
    """Ask to be tried again in an hour."""
    raise Retry(3600, "not now")
'''


@dataclass(frozen=True)
class Spoken:
    """A runner: `http` is its main port, `own` those of the dialects, `grpc` where its gRPC is. Whoever may use the
    port may hand in the files below `drop`."""

    service: Service
    http: httpx2.Client
    own: Mapping[str, httpx2.Client]
    grpc: str
    data: Path
    drop: Path

    def submit(self, type: str = "echo", **fields: Any) -> Task:
        """Hands in a task through the API; `fields` are those of a submission, but for its `payload`'s."""
        answer = self.http.post("/api/v1/tasks", json={"type": type, **fields})
        assert answer.status_code == 201, answer.text
        return self.service.get(answer.json()["id"])

    def ended(self, task_id: str) -> Task:
        """The task, once it has ended."""
        return self.service.wait(task_id, 30)

    def when(self, task_id: str, is_so: Callable[[Task], bool]) -> Task:
        """The task, once that is so."""
        with self.service.events.subscribe({task_id}) as watcher:
            while not is_so(task := self.service.get(task_id)):
                assert watcher.get(30) is not None, f"still {task.status}"
        return task

    def running(self, task_id: str) -> Task:
        """The task, once it runs."""
        return self.when(task_id, lambda task: task.status is Status.PROCESSING)

    def gate(self, name: str) -> Gate:
        """What the handlers `hold` and `act` wait for, by name."""
        return gate_of(name)


@dataclass(frozen=True)
class Row:
    """One line of a contract: a request, and what must be in its answer.

    `keys` is the exact set of keys of what `at` leads to ("data.tasks.0"; "" is the whole body), `values` are some of
    its members, or what paths from there lead to; `send` is what httpx takes beside the address. `{…}` in texts is
    replaced by what the test knows of that name.
    """

    request: str
    status: int
    at: str = ""
    keys: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    send: Mapping[str, Any] = field(default_factory=dict)

    def check(self, client: httpx2.Client, **known: str) -> Any:
        """Sends it, and compares; returns the body."""
        method, _, path = self.request.partition(" ")
        answer = client.request(method, filled(path, known), **filled(dict(self.send), known))
        assert answer.status_code == self.status, f"{self.request}: {answer.status_code} {answer.text}"
        body = answer.json()
        found = reached(body, self.at)
        if self.keys is not None:
            assert set(found) == set(self.keys.split()), self.request
        for name, value in filled(dict(self.values), known).items():
            assert reached(found, name) == value, f"{self.request}: {name}"
        return body


def rows(*table: Row) -> pytest.MarkDecorator:
    """Runs a test once for each row."""
    return pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.request} {row.status}") for row in table])


def reached(body: Any, path: str) -> Any:
    """What a path leads to: names and places, with dots between them."""
    for part in filter(None, path.split(".")):
        body = body[int(part)] if isinstance(body, list) else body[part]
    return body


def filled(value: Any, known: Mapping[str, str]) -> Any:
    """The same with every `{name}` in its texts replaced by what is known."""
    if isinstance(value, str):
        for name, text in known.items():
            value = value.replace(f"{{{name}}}", text)
        return value
    if isinstance(value, dict):
        return {key: filled(item, known) for key, item in value.items()}
    return [filled(item, known) for item in value] if isinstance(value, list) else value


@pytest.fixture
def spoken(tmp_path: Path) -> Iterator[Spoken]:
    """A runner on an empty directory that speaks every dialect, on ports of their own, too."""
    with speaking(tmp_path) as spoken:
        yield spoken


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    """One for tests that do not mind what the others did."""
    with speaking(tmp_path_factory.mktemp("shared")) as spoken:
        yield spoken


@contextmanager
def speaking(root: Path, handlers: str = HANDLERS, **settings: Any) -> Iterator[Spoken]:
    """A runner in a folder; in the names of `settings`, `__` stands for a dot."""
    (root / "handlers").mkdir(exist_ok=True)
    (root / "drop").mkdir(exist_ok=True)
    (root / "handlers" / "all.py").write_text(handlers)
    given = {
        "data_dir": str(root / "data"),
        "handlers_dir": str(root / "handlers"),
        "storage.min_free_bytes": 0,
        "storage.ballast_bytes": 0,
        "drain.grace_period": 0.2,
        "grpc.port": 0,
        "http.allowed_roots": [str(root / "drop")],
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    config = Config.load(None, given, environ={})
    service = Service(config)
    service.start()
    try:
        with _served(service, config) as (ports, grpc), _clients(ports) as clients:
            yield Spoken(service, clients[""], clients, grpc, root / "data", root / "drop")
    finally:
        service.close()


@contextmanager
def _served(service: Service, config: Config) -> Iterator[tuple[dict[str, int], str]]:
    """The ports, "" the main one and one for each enabled dialect; and the address of gRPC."""
    site = Site(service, config)
    dialects = make_dialects(site)
    listeners = {name: listen_on_port("127.0.0.1", 0) for name in ("", *(dialect.name for dialect in dialects))}
    ports = {name: listener.getsockname()[1] for name, listener in listeners.items()}
    app = make_app(site, dialects, {port: name for name, port in ports.items() if name})
    companions, begun = [one for dialect in dialects for one in dialect.companions], threading.Event()
    server = Server(app, service.events, begun.set, companions=companions)
    thread = threading.Thread(target=server.run, args=(list(listeners.values()),))
    thread.start()
    try:
        assert begun.wait(30)
        yield ports, next((one.address or "" for one in companions if isinstance(one, TaskServer)), "")
    finally:
        server.should_exit = True
        thread.join()
        for listener in listeners.values():
            listener.close()


@contextmanager
def _clients(ports: Mapping[str, int]) -> Iterator[dict[str, httpx2.Client]]:
    clients = {name: httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) for name, port in ports.items()}
    try:
        yield clients
    finally:
        for client in clients.values():
            client.close()
