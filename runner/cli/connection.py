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
from typing import TYPE_CHECKING, Any, Final

from runner.cli.exits import CommandFailed, Exit
from runner.cli.options import Options
from runner.client import ANSWER_SECONDS, Ask, Client, StreamEvent, task_path
from runner.config import Config
from runner.errors import ApiError, NotReached, OwnerExists
from runner.web.sockets import can_connect

if TYPE_CHECKING:
    import httpx2

__all__ = ["Api", "Duty", "connect", "task_path"]

AGENT: Final = "runner-cli"
PATIENCE_SECONDS: Final = 10.0


class Duty(StrEnum):
    """What a command that becomes the owner does beside answering: nothing, run the tasks that wait, or everything."""

    ANSWER = "answer"
    RUN_TASKS = "run_tasks"
    SERVE = "serve"


class Api:
    """The HTTP API, as commands use it: the client, whose failures are raised as `CommandFailed`.

    `reach` sees to it that somebody answers, and says whether that is this process itself. It is called again when an
    owner ends between two requests.
    """

    def __init__(self, socket: Path, data_dir: Path, reach: Callable[[], bool]) -> None:
        self.data_dir = data_dir
        self.is_own = reach()
        self._reach = reach
        self._client = Client(socket=socket, agent=AGENT, reach=self._reach_again)

    def close(self) -> None:
        """Lets go of its connections."""
        self._client.close()

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
        # A change may take as long as a large file takes to copy; a look never does.
        timeout = ANSWER_SECONDS if method == "GET" else None
        with _failures():
            return self._client.ask(Ask(method, path, query, body, timeout_seconds=timeout))

    def events(self, task_id: str, after: str = "0") -> Iterator[StreamEvent]:
        """A task's events until it ends. Comes back by itself after a reset; raises when the runner goes away."""
        with _failures():
            yield from self._client.stream(task_id, after)

    def _reach_again(self) -> None:
        self.is_own = self._reach()


@contextmanager
def connect(options: Options, duty: Duty = Duty.ANSWER) -> Iterator[Api]:
    """The API of the directory's owner, or of this process as its owner with that `duty`."""
    config = options.load_config()
    with ExitStack() as stack:

        def reach() -> bool:
            return not can_connect(_socket(config)) and _become_owner(config, duty, stack)

        _check_place(config)
        Path(config.data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        yield stack.enter_context(closing(Api(_socket(config), Path(config.data_dir), reach)))


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
    from runner.execute.prints import Echo, overheard
    from runner.service import Role, Service
    from runner.web.app import create_app
    from runner.web.server import served_in_thread

    service = Service(config, Role.SERVE if duty is Duty.SERVE else Role.VISIT)
    service.start()
    try:
        # What handlers print goes to their logs alone: our own output is the command's answer.
        with overheard(Echo.NONE), served_in_thread(create_app(service, config), service.events, _socket(config)):
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


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        exit = Exit.NOT_FOUND if error.status == 404 else Exit.REFUSED
        document = {"code": error.code, "detail": str(error), **error.document}
        raise CommandFailed(exit, str(error), document) from error
    except NotReached as error:
        raise CommandFailed(Exit.NO_CONNECTION, str(error)) from error
