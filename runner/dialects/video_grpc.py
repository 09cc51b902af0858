"""`task.TaskService`, for clients of Video-In-Chinese, with the health and reflection services of gRPC.

It stands behind the same door as HTTP: callers are known by the same tokens and cookies, in the metadata, asked to wait
by the same rates, and noted in the same log, under the status that HTTP would have. What is over a limit is refused
before it costs anything: messages of 4 MiB, 8 KiB of metadata, so many calls at once, 60 seconds for each.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote

from starlette.datastructures import Headers

from runner.config import GrpcConfig
from runner.dialects.video_tasks import Cause, NotCreated, VideoTasks, not_found_text
from runner.errors import ConfigError, NotFound, Unavailable
from runner.rpc.doorbell import Doorbell
from runner.task import Source
from runner.web.app import Site
from runner.web.crossing import in_thread
from runner.web.door import Caller
from runner.web.problems import HttpProblem
from runner.web.sockets import listen_on_port

if TYPE_CHECKING:
    import grpc

MAX_MESSAGE_BYTES: Final = 4 << 20
MAX_METADATA_BYTES: Final = 8 << 10
MAX_CALLS: Final = 64
CALL_SECONDS: Final = 60.0
STOP_SECONDS: Final = 2.0
SERVICE: Final = "task.TaskService"
LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 3_600_000),
    ("grpc.so_reuseport", 0),  # else a second runner would get half of the first one's calls
)

T = TypeVar("T")
_log = logging.getLogger(__name__)


def is_installed() -> bool:
    """Whether the extra `grpc` is."""
    return all(find_spec(name) is not None for name in ("grpc", "google.protobuf"))


def is_free(host: str, port: int) -> bool:
    """Whether an address can be had. The library would print what it thinks of one that cannot."""
    try:
        listen_on_port(host, port).close()
    except ConfigError:
        return False
    return True


class TaskServer:
    """The server, in the event loop that serves HTTP. `start` comes before anything else. It is loaded when somebody
    calls first, where that can be nobody but a program of this machine; else at once."""

    def __init__(self, site: Site, tasks: VideoTasks) -> None:
        self._config = site.config.grpc
        self._site = site
        self._tasks = tasks
        self._server: grpc.aio.Server | None = None
        self._health: Any = None
        self._bell: Doorbell | None = None
        self._host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        self._port = self._config.port
        self.address: str | None = None

    async def start(self) -> None:
        """Begins to serve; `address` says where. One that cannot be had is a closed door: the runner has others, and a
        second one on this machine need not be told to leave this one alone."""
        if self._port and not is_free(self._config.host, self._port):
            remedy = "give it another one in config.yaml: `grpc: {port: 50051}`, or 0 for any"
            reason = f"not served: the port of {self._host}:{self._port} is taken; {remedy}"
            self._site.service.closed_doors["grpc"] = reason
            return
        if self._config.host in LOOPBACK and self._config.certificate is None:
            listener = listen_on_port(self._config.host, self._port)
            self._port = listener.getsockname()[1]
            self._bell = Doorbell(listener, self._load, self._serve)
            self._bell.listen()
        else:
            await self._load()
            await self._serve()
        self.address = f"{self._host}:{self._port}"

    async def stop(self) -> None:
        """Answers what it was asked, for a moment, and ends."""
        if self._bell is not None:
            await self._bell.silence()
        if self._server is not None:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(STOP_SECONDS)
        if self._bell is not None:
            await self._bell.hang_up()

    async def _load(self) -> None:
        await asyncio.to_thread(import_module, "grpc_reflection.v1alpha.reflection")  # a while, in which HTTP is served
        import grpc

        self._server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        await self._add_services(self._server)

    async def _serve(self) -> None:
        assert self._server is not None, "it is loaded before"
        address = f"{self._host}:{self._port}"
        if self._config.certificate is None:
            self._port = self._server.add_insecure_port(address)
        else:
            credentials = await asyncio.to_thread(_credentials, self._config)
            self._port = self._server.add_secure_port(address, credentials)
        await self._server.start()

    async def _add_services(self, server: grpc.aio.Server) -> None:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection

        from runner.rpc.proto import task_pb2_grpc

        task_pb2_grpc.add_TaskServiceServicer_to_server(TaskService(self._site, self._tasks), server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        if self._config.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)


class TaskService:
    """The two calls."""

    def __init__(self, site: Site, tasks: VideoTasks) -> None:
        self._site = site
        self._tasks = tasks

    async def CreateTask(self, request: Any, context: Any) -> Any:  # noqa: N802 - as the contract has it
        """Hands a file over."""
        from runner.rpc.proto import task_pb2

        async def create(caller: Caller) -> str:
            return await in_thread(self._tasks.create, request.temp_file_path, caller, Source.GRPC)

        return task_pb2.CreateTaskResponse(task_id=await self._answer("CreateTask", context, create))

    async def GetTaskStatus(self, request: Any, context: Any) -> Any:  # noqa: N802 - as the contract has it
        """Says how far a task is."""
        from runner.rpc.proto import task_pb2

        async def look(caller: Caller) -> Any:
            standing = await in_thread(self._tasks.look, request.task_id, caller.sees)
            return task_pb2.GetTaskStatusResponse(
                status=standing.status,
                result_file_path=standing.result_path,
                error_message=standing.error,
                created_at=standing.created_at,
                updated_at=standing.updated_at,
            )

        return await self._answer("GetTaskStatus", context, look)

    async def _answer(self, method: str, context: Any, do: Callable[[Caller], Awaitable[T]]) -> T:
        """What `do` returns for whoever calls, or the status of what it raises; noted as a request is."""
        scope, began, status = _scope(method, context), time.perf_counter(), None
        try:
            async with asyncio.timeout(CALL_SECONDS):
                answer = await do(await self._caller(scope))
            status = 200
            return answer
        except (NotCreated, NotFound, Unavailable, HttpProblem, TimeoutError) as error:
            code, text = _status(error)
            status = _HTTP_STATUSES[code]
            return await context.abort(_code(code), text)  # type: ignore[no-any-return]  # it raises
        except Exception:  # noqa: BLE001 - a defect; the library would tell the client its text
            _log.exception("%s failed", method)
            status = 500
            return await context.abort(_code("INTERNAL"), "internal error")  # type: ignore[no-any-return]
        finally:
            self._site.register.note(scope, status, time.perf_counter() - began)

    async def _caller(self, scope: dict[str, Any]) -> Caller:
        """Whoever calls. Raises `HttpProblem` 401 or 429."""
        self._site.throttle.check_address(scope)
        caller = (await self._site.auth.identify(scope, Headers(scope=scope))).caller
        self._site.throttle.check_user(caller)
        scope["caller"] = caller
        return caller


def _scope(method: str, context: Any) -> dict[str, Any]:
    """A call, as if it had come by HTTP."""
    pairs = [(key, value) for key, value in context.invocation_metadata() or () if isinstance(value, str)]
    kind, _, address = unquote(context.peer()).partition(":")
    return {
        "type": "http",
        "scheme": "http",
        "method": "POST",
        "path": f"/{SERVICE}/{method}",
        "headers": [(key.encode(), value.encode("latin-1", "replace")) for key, value in pairs],
        "client": (address.rpartition(":")[0].strip("[]"), 0) if kind in ("ipv4", "ipv6") else None,
        "request_id": secrets.token_hex(8),
    }


def _credentials(config: GrpcConfig) -> Any:
    """Who the server is, and whose clients it takes. Raises `ConfigError` for a file that cannot be read."""
    import grpc

    try:
        certificate, key, client_ca = (
            None if path is None else path.read_bytes() for path in (config.certificate, config.key, config.client_ca)
        )
    except OSError as error:
        raise ConfigError(f"grpc: {error.filename} cannot be read: {error.strerror}") from error
    return grpc.ssl_server_credentials([(key, certificate)], client_ca, client_ca is not None)


_CODES: Final[Mapping[Cause, str]] = {
    Cause.INVALID: "INVALID_ARGUMENT",
    Cause.UNPREPARED: "FAILED_PRECONDITION",
    Cause.BUSY: "RESOURCE_EXHAUSTED",
    Cause.FULL: "RESOURCE_EXHAUSTED",
    Cause.UNAVAILABLE: "UNAVAILABLE",
    Cause.INTERNAL: "INTERNAL",
}


_HTTP_STATUSES: Final[Mapping[str, int]] = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 422,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def _status(error: Exception) -> tuple[str, str]:
    if isinstance(error, NotCreated):
        return _CODES[error.cause], str(error)
    if isinstance(error, NotFound):
        return "NOT_FOUND", not_found_text(error)
    if isinstance(error, HttpProblem):
        return "RESOURCE_EXHAUSTED" if error.status_code == 429 else "UNAUTHENTICATED", error.detail
    if isinstance(error, TimeoutError):
        return "DEADLINE_EXCEEDED", f"not done within {CALL_SECONDS:g} seconds"
    return "UNAVAILABLE", str(error)


def _code(name: str) -> Any:
    import grpc

    return grpc.StatusCode[name]
