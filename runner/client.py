"""A client for programs, sync (`Client`) and async (`AsyncClient`), with the same verbs.

    with Client() as client:
        task = client.submit("thumbnail", {"width": 320}, files=["holiday.jpg"])
        task = client.wait(task.id)
        client.download(task.id, "holiday.png", "results/")

A verb is written once, as a generator that asks and is given the answers; a client is what carries the questions.
Failures are `ApiError` and `NotReached`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Final,
    Generic,
    NamedTuple,
    ParamSpec,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)
from urllib.parse import quote

import httpx2

from runner.errors import ApiError, NotReached, RunnerError
from runner.web.sockets import short_path

if TYPE_CHECKING:
    from runner.task import Task

P = ParamSpec("P")
T = TypeVar("T")

URL: Final = "http://127.0.0.1:8080"
AGENT: Final = "runner-client"
ANSWER_SECONDS: Final = 60.0
POLL_SECONDS: Final = 30.0
PIECE_BYTES: Final = 1 << 18
LAST_EVENTS: Final = frozenset({"done", "removed"})


@dataclass(frozen=True, slots=True)
class Ask:
    """One question. `path` is below `/api/v1`; queries that are None are left out. `files` go along with the body;
    `content` is the file to send instead of one, `save_to` that to write the answer's body to. `timeout_seconds` None:
    as long as it takes."""

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    files: tuple[Path, ...] = ()
    content: Path | None = None
    save_to: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float | None = ANSWER_SECONDS


class StreamEvent(NamedTuple):
    """One event of a task: its id ("" where the log does not keep it), its name and its data."""

    id: str
    name: str
    data: dict[str, Any]


class SubmitOptions(TypedDict, total=False):
    """What a submission may say beside its type and payload; see the HTTP API."""

    queue: str
    priority: int
    max_retries: int
    timeout: str | float
    run_after: datetime | str
    delay: str | float
    expires_at: datetime | str
    unique_key: str
    unique: str | float
    metadata: Mapping[str, str]
    client_id: str
    on_success: Mapping[str, Any]
    draft: bool


Flow = Generator[Ask, httpx2.Response, T]
"""A verb at work: it asks, is sent the answer or thrown why there is none, and returns what came of it."""


class Verb(Generic[P, T]):
    """A method of both clients: what `make` returns is run by the one, and awaited by the other."""

    def __init__(self, make: Callable[P, Flow[T]]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, client: Client, owner: object = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: object = None) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, client: None, owner: object = None) -> Self: ...

    def __get__(self, client: Client | AsyncClient | None, owner: object = None) -> Any:
        if client is None:
            return self
        return lambda *args, **kwargs: client.run(self._make(*args, **kwargs))


def task_path(task_id: str) -> str:
    """The path of one task."""
    return f"/tasks/{quote(task_id, safe='')}"


def submit(
    type: str,
    payload: Mapping[str, Any] | None = None,
    files: Sequence[str | os.PathLike[str]] = (),
    **options: Unpack[SubmitOptions],
) -> Flow[Task]:
    """A new task with these input files, which are sent along; or the earlier one, if its `unique_key` is known."""
    body = _plain({"type": type, "payload": dict(payload or {}), **options})
    paths = tuple(map(Path, files))
    seconds = None if paths else ANSWER_SECONDS
    return _task_in((yield Ask("POST", "/tasks", body=body, files=paths, timeout_seconds=seconds)))


def get(task_id: str) -> Flow[Task]:
    """The task as it stands."""
    return _task_in((yield Ask("GET", task_path(task_id))))


def list_tasks(**filters: str | int | None) -> Flow[list[Task]]:
    """Tasks, newest first; filters, `size` and `page` as in the HTTP API."""
    return [_task_of(document) for document in (yield Ask("GET", "/tasks", filters)).json()]


def wait(task_id: str, timeout_seconds: float | None = None) -> Flow[Task]:
    """The task when it has ended, or as it stands when the time is over; None: however long that takes."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        left = POLL_SECONDS if deadline is None else max(0.0, min(POLL_SECONDS, deadline - time.monotonic()))
        task = _task_in((yield Ask("GET", task_path(task_id), {"wait": f"{left:.3f}"})))
        if task.is_terminal or (deadline is not None and time.monotonic() >= deadline):
            return task


def upload(task_id: str, file: str | os.PathLike[str], name: str | None = None) -> Flow[Task]:
    """The draft with one more input file, under `name` or its own."""
    path = Path(file)
    target = f"{task_path(task_id)}/inputs/{quote(name or path.name, safe='')}"
    return _task_in((yield Ask("PUT", target, content=path, timeout_seconds=None)))


def start(task_id: str, payload: Mapping[str, Any] | None = None) -> Flow[Task]:
    """The draft, complete now; `payload` None: with the one that it has."""
    body = {} if payload is None else {"payload": dict(payload)}
    return _task_in((yield Ask("POST", f"{task_path(task_id)}/start", body=body)))


def download(task_id: str, name: str, to: str | os.PathLike[str]) -> Flow[Path]:
    """The file that one output was written to: `to`, or in it if that is a folder. It is there when it is complete."""
    target = Path(to, Path(name).name) if Path(to).is_dir() else Path(to)
    part = target.with_name(f".{target.name}.part")
    try:
        yield Ask("GET", f"{task_path(task_id)}/outputs/{quote(name)}", save_to=part, timeout_seconds=None)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def cancel(task_id: str) -> Flow[Task]:
    """The task, which nobody wants any more."""
    return _task_in((yield Ask("POST", f"{task_path(task_id)}/cancel")))


def retry(task_id: str) -> Flow[Task]:
    """The failed or cancelled task, which gets a further attempt."""
    return _task_in((yield Ask("POST", f"{task_path(task_id)}/retry")))


def rerun(task_id: str) -> Flow[Task]:
    """A new task like it."""
    return _task_in((yield Ask("POST", f"{task_path(task_id)}/rerun")))


def delete(task_id: str) -> Flow[None]:
    """The task is forgotten, with its files."""
    yield Ask("DELETE", task_path(task_id))


class Verbs:
    """What both clients can do."""

    submit = Verb(submit)
    get = Verb(get)
    list_tasks = Verb(list_tasks)
    wait = Verb(wait)
    upload = Verb(upload)
    start = Verb(start)
    download = Verb(download)
    cancel = Verb(cancel)
    retry = Verb(retry)
    rerun = Verb(rerun)
    delete = Verb(delete)


class Client(Verbs):
    """The runner at `url`, or behind the Unix socket at `socket` (`data/runner.sock`), for one thread at a time.

    `reach` is called where nobody answers, and may see to it that somebody does; then it is tried once more.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        token: str | None = None,
        socket: str | os.PathLike[str] | None = None,
        agent: str = AGENT,
        reach: Callable[[], object] | None = None,
    ) -> None:
        self._reach = reach
        self._stack = ExitStack()
        transport = None
        if socket is not None:
            address = self._stack.enter_context(short_path(Path(socket)))
            transport, url = httpx2.HTTPTransport(uds=address, verify=False, trust_env=False), "http://runner"
        self._http = self._stack.enter_context(
            httpx2.Client(base_url=url, transport=transport, headers=_headers(agent, token))
        )

    def close(self) -> None:
        """Lets go of its connections."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, flow: Flow[T]) -> T:
        """What a verb comes to."""
        step: Callable[[], Ask] = partial(next, flow)
        while True:
            try:
                ask = step()
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                step = partial(flow.send, self.ask(ask))
            except RunnerError as error:
                step = partial(flow.throw, error)

    def ask(self, ask: Ask) -> httpx2.Response:
        """One question and its answer. Raises `ApiError` and `NotReached`."""
        with _failures(), ExitStack() as stack:
            request = _request(self._http, ask, stack, lambda file: iter(partial(file.read, PIECE_BYTES), b""))
            response = stack.enter_context(closing(self._send(request)))
            if response.is_error or ask.save_to is None:
                response.read()
                return _checked(response)
            target = stack.enter_context(ask.save_to.open("wb"))
            for piece in response.iter_bytes():
                target.write(piece)
            return response

    def stream(self, task_id: str, after: str = "0") -> Iterator[StreamEvent]:
        """A task's events after an id ("0": all, "$": only new ones) until it ends. After a reset it goes on by itself;
        raises `NotReached` when the runner goes away."""
        place = _Place(task_id, after)
        while not place.is_last:
            with _failures(), closing(self._send(_request(self._http, place.ask()))) as response:
                if response.is_error:
                    response.read()
                for event in map(_event_of, httpx2.EventSource(_checked(response))):
                    place.take(event)
                    yield event
            place.check()

    def _send(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return self._http.send(request, stream=True)
        except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            # The owner, perhaps another command, has just ended. What was not sent, or only looks, can be asked again.
            if self._reach is None or not (isinstance(error, httpx2.ConnectError) or request.method == "GET"):
                raise
            self._reach()
            return self._http.send(request, stream=True)


class AsyncClient(Verbs):
    """The same for coroutines: its verbs are awaited, and `stream` is iterated by `async for`."""

    def __init__(
        self,
        url: str = URL,
        *,
        token: str | None = None,
        socket: str | os.PathLike[str] | None = None,
        agent: str = AGENT,
    ) -> None:
        self._stack = ExitStack()
        transport = None
        if socket is not None:
            address = self._stack.enter_context(short_path(Path(socket)))
            transport, url = httpx2.AsyncHTTPTransport(uds=address, verify=False, trust_env=False), "http://runner"
        self._http = httpx2.AsyncClient(base_url=url, transport=transport, headers=_headers(agent, token))

    async def close(self) -> None:
        """Lets go of its connections."""
        await self._http.aclose()
        self._stack.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run(self, flow: Flow[T]) -> T:
        """What a verb comes to."""
        step: Callable[[], Ask] = partial(next, flow)
        while True:
            try:
                ask = step()
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                step = partial(flow.send, await self.ask(ask))
            except RunnerError as error:
                step = partial(flow.throw, error)

    async def ask(self, ask: Ask) -> httpx2.Response:
        """One question and its answer. Raises `ApiError` and `NotReached`."""
        with _failures(), ExitStack() as stack:
            async with _aclosing(await self._send(_request(self._http, ask, stack, _read))) as response:
                if response.is_error or ask.save_to is None:
                    await response.aread()
                    return _checked(response)
                target = stack.enter_context(ask.save_to.open("wb"))
                async for piece in response.aiter_bytes():
                    await asyncio.to_thread(target.write, piece)
                return response

    async def stream(self, task_id: str, after: str = "0") -> AsyncIterator[StreamEvent]:
        """See `Client.stream`."""
        place = _Place(task_id, after)
        while not place.is_last:
            with _failures():
                async with _aclosing(await self._send(_request(self._http, place.ask()))) as response:
                    if response.is_error:
                        await response.aread()
                    async for received in httpx2.EventSource(_checked(response)):
                        event = _event_of(received)
                        place.take(event)
                        yield event
            place.check()

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        return await self._http.send(request, stream=True)


class _Place:
    """How far a stream has been read."""

    def __init__(self, task_id: str, after: str) -> None:
        self.is_last = False
        self._task_id = task_id
        self._after = after
        self._was_reset = False

    def ask(self) -> Ask:
        """For what comes after it."""
        headers = {"Last-Event-ID": self._after}
        return Ask("GET", f"{task_path(self._task_id)}/events", headers=headers, timeout_seconds=None)

    def take(self, event: StreamEvent) -> None:
        """One more event has been read."""
        self._after = event.id or self._after
        self.is_last = self.is_last or event.name in LAST_EVENTS
        self._was_reset = event.name == "reset"

    def check(self) -> None:
        """The connection has ended. Raises `NotReached` where that is not the end of the stream."""
        if not self.is_last and not self._was_reset:
            raise NotReached(f"the runner stopped; task {self._task_id} goes on when it is started again")


def _headers(agent: str, token: str | None) -> dict[str, str]:
    return {"User-Agent": agent, **({} if token is None else {"Authorization": f"Bearer {token}"})}


def _request(
    http: httpx2.Client | httpx2.AsyncClient,
    ask: Ask,
    stack: ExitStack | None = None,
    pieces_of: Callable[[BinaryIO], Iterator[bytes] | AsyncIterator[bytes]] | None = None,
) -> httpx2.Request:
    """The request; the files that it sends are open until `stack` ends."""
    headers, sent = dict(ask.headers), dict[str, Any]()
    if ask.files and stack is not None:
        opened = [("file", (path.name, stack.enter_context(path.open("rb")))) for path in ask.files]
        sent = {"data": {"task": json.dumps(ask.body)}, "files": opened}
    elif ask.content is not None and stack is not None and pieces_of is not None:
        headers["Content-Length"] = str(ask.content.stat().st_size)
        sent = {"content": pieces_of(stack.enter_context(ask.content.open("rb")))}
    elif ask.body is not None:
        sent = {"json": ask.body}
    query = {name: value for name, value in ask.query.items() if value is not None}
    path = f"/api/v1{ask.path}"
    return http.build_request(ask.method, path, params=query, headers=headers, timeout=ask.timeout_seconds, **sent)


async def _read(file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
        yield piece


@asynccontextmanager
async def _aclosing(response: httpx2.Response) -> AsyncIterator[httpx2.Response]:
    """The response, closed at the end."""
    try:
        yield response
    finally:
        await response.aclose()


def _checked(response: httpx2.Response) -> httpx2.Response:
    """`response`, if it is no problem document. Raises `ApiError`."""
    if not response.is_error:
        return response
    is_problem = response.headers.get("content-type") == "application/problem+json"
    raise ApiError(response.status_code, response.json() if is_problem else {})


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except httpx2.TransportError as error:
        raise NotReached(f"the runner went away: {str(error) or type(error).__name__}") from error


def _event_of(received: httpx2.ServerSentEvent) -> StreamEvent:
    data: Any = received.json()
    return StreamEvent(received.id or "", received.event, data)


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same with instants as text."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in body.items()}


def _task_in(response: httpx2.Response) -> Task:
    return _task_of(response.json())


def _task_of(document: Mapping[str, Any]) -> Task:
    """The task that a document shows, which may say more than this version knows."""
    from runner.task import FIELDS, from_values

    return from_values({name: value for name, value in document.items() if name in FIELDS})
