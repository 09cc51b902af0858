"""How a command reaches the runner: through the socket of the data directory's owner, or as the owner itself.

There is one code path. Where nobody owns the directory the command takes the lock, serves the same app at the same
socket for as long as it lasts, and talks to that; another command meanwhile finds a runner like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx2

from runner.cli.exits import CommandFailed, Exit
from runner.cli.options import Options
from runner.config import Config
from runner.errors import OwnerExists
from runner.web.sockets import can_connect, short_path

AGENT: Final = "runner-cli"
PATIENCE_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 60.0


class Duty(StrEnum):
    """What a command that becomes the owner does beside answering: nothing, run the tasks that wait, or everything."""

    ANSWER = "answer"
    RUN_TASKS = "run_tasks"
    SERVE = "serve"


class Api:
    """The HTTP API, as commands use it. Failures are raised as `CommandFailed`.

    `reach` sees to it that somebody answers, and says whether that is this process itself. It is called again when an
    owner ends between two requests.
    """

    def __init__(self, client: httpx2.Client, data_dir: Path, reach: Callable[[], bool]) -> None:
        self._client = client
        self._reach = reach
        self.data_dir = data_dir
        self.is_own = reach()

    def get(self, path: str, **query: Any) -> Any:
        """The JSON at `path`, below `/api/v1`. Queries that are None are left out."""
        return self.request("GET", path, query).json()

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON answer to a POST."""
        return self.request("POST", path, query, body).json()

    def delete(self, path: str) -> Any:
        """The JSON answer to a DELETE."""
        return self.request("DELETE", path, {}).json()

    def request(self, method: str, path: str, query: Mapping[str, Any], body: Any = None) -> httpx2.Response:
        """One request and its answer."""
        params = {name: value for name, value in query.items() if value is not None}
        # A change may take as long as a large file takes to copy; a look never does.
        timeout = ANSWER_SECONDS if method == "GET" else None
        request = self._client.build_request(method, f"/api/v1{path}", params=params, json=body, timeout=timeout)
        with _connection_failures():
            return _checked(self._send(request))

    def events(self, task_id: str, after: str = "0") -> Iterator[httpx2.ServerSentEvent]:
        """A task's events until it ends. Comes back by itself after a reset; raises when the runner goes away."""
        last, ended = after, False
        while not ended:
            was_reset = False
            with _connection_failures(), self._stream(task_id, last) as source:
                for event in source:
                    last = event.id or last
                    ended = ended or event.event in ("done", "removed")
                    was_reset = event.event == "reset"
                    yield event
            if not ended and not was_reset:
                raise CommandFailed(
                    Exit.NO_CONNECTION, f"the runner stopped; task {task_id} goes on when it is started again"
                )

    @contextmanager
    def _stream(self, task_id: str, after: str) -> Iterator[Iterator[httpx2.ServerSentEvent]]:
        request = self._client.build_request(
            "GET", f"/api/v1{task_path(task_id)}/events", headers={"Last-Event-ID": after}, timeout=None
        )
        with closing(self._send(request, stream=True)) as answer:
            if answer.is_error:
                answer.read()
            yield iter(httpx2.EventSource(_checked(answer)))

    def _send(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        try:
            return self._client.send(request, stream=stream)
        except httpx2.ConnectError:
            # Nothing was sent: the owner, perhaps another command, has just ended.
            self.is_own = self._reach()
            return self._client.send(request, stream=stream)


def task_path(task_id: str) -> str:
    """The path of one task."""
    return f"/tasks/{quote(task_id, safe='')}"


@contextmanager
def connect(options: Options, duty: Duty = Duty.ANSWER) -> Iterator[Api]:
    """The API of the directory's owner, or of this process as its owner with that `duty`."""
    config = options.load_config()
    with ExitStack() as stack:

        def reach() -> bool:
            return not can_connect(_socket(config)) and _become_owner(config, duty, stack)

        _check_place(config)
        Path(config.data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        address = stack.enter_context(short_path(_socket(config)))
        transport = httpx2.HTTPTransport(uds=address, verify=False, trust_env=False)
        client = stack.enter_context(
            httpx2.Client(transport=transport, base_url="http://runner", headers={"User-Agent": AGENT})
        )
        yield Api(client, Path(config.data_dir), reach)


def _become_owner(config: Config, duty: Duty, stack: ExitStack) -> bool:
    """Owns the directory until `stack` ends. False if somebody else turns out to, and answers."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            stack.enter_context(_owned(config, duty))
            return True
        except OwnerExists as error:
            # It starts, stops, or is another command that has just taken the lock: all of these are over soon.
            if can_connect(_socket(config)):
                return False
            if time.monotonic() > until:
                raise CommandFailed(Exit.NO_CONNECTION, f"{error}, but does not answer") from error
            time.sleep(0.05)


@contextmanager
def _owned(config: Config, duty: Duty) -> Iterator[None]:
    # A third of a second of imports, which only an owner needs.
    from runner.service import Role, Service
    from runner.web.app import create_app
    from runner.web.server import served_in_thread

    service = Service(config, Role.SERVE if duty is Duty.SERVE else Role.VISIT)
    service.start()
    try:
        with served_in_thread(create_app(service, config), service.events, _socket(config)):
            if duty is Duty.RUN_TASKS:
                service.run_tasks()
            yield
    finally:
        service.close()


def _check_place(config: Config) -> None:
    """A mistyped folder must not become a data directory."""
    data, handlers = Path(config.data_dir), Path(config.handlers_dir)
    if not data.is_dir() and not handlers.is_dir():
        raise CommandFailed(
            Exit.NO_CONNECTION,
            f"there is no {data}, and no runner that serves it; name another one by --data or --config, or lay out "
            "a new folder with `runner init DIR`",
        )


def _socket(config: Config) -> Path:
    return Path(config.data_dir) / "runner.sock"


def _checked(response: httpx2.Response) -> httpx2.Response:
    """`response`, if it is no problem document."""
    if not response.is_error:
        return response
    is_problem = response.headers.get("content-type") == "application/problem+json"
    problem = response.json() if is_problem else {"code": "unknown", "detail": f"HTTP {response.status_code}"}
    exit = Exit.NOT_FOUND if response.status_code == 404 else Exit.REFUSED
    raise CommandFailed(exit, problem["detail"], problem)


@contextmanager
def _connection_failures() -> Iterator[None]:
    try:
        yield
    except httpx2.TransportError as error:
        reason = str(error) or type(error).__name__
        raise CommandFailed(Exit.NO_CONNECTION, f"the runner went away: {reason}") from error
