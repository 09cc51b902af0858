"""The client of services that do a task's work elsewhere: `grpc_task.v1.TaskExecutorService`, see `proto`.

    services = services_of(ctx.config)
    with services.use("llm") as service:
        result = service.execute(ctx, Order("llm", "chat", {"prompt": "hello"}))

A service is connected to when it is first used, and asked every `health_check_interval` how it is for as long as it is
in use; what is not used for a while is forgotten. Until it has been asked it counts as healthy.

What a service answers ends the attempt as a handler would: `Fail` for what will never work, `Retry` for the rest.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import grpc
from google.protobuf import json_format
from pydantic import AfterValidator, Field, ValidationError

from runner.config import Length, Section, Whole
from runner.context import Cancelled, Context, Fail, Retry
from runner.errors import ConfigError
from runner.rpc.proto import grpc_task_pb2 as pb
from runner.rpc.proto.grpc_task_pb2_grpc import TaskExecutorServiceStub

Said: TypeAlias = "queue.Queue[pb.ExecuteTaskResponse | grpc.RpcError | None]"

_HEALTH_SECONDS: Final = 5.0
_CANCEL_SECONDS: Final = 2.0
_LOOK_UP_SECONDS: Final = 0.1
_LINGER_SECONDS: Final = 300.0
_MAX_HELD: Final = 64
_MAX_TEXT: Final = 2000
_SAFE_INTEGER: Final = 2.0**53

_HOPELESS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
"""What another attempt would be answered with, too."""


def _check_header(name: str) -> str:
    if name != name.lower() or name.startswith("grpc-") or name.endswith("-bin") or not name.isascii():
        raise ValueError(f"must be lower case, and neither begin with grpc- nor end with -bin: {name!r}")
    return name


HeaderName = Annotated[str, AfterValidator(_check_header)]


class Defaults(Section):
    """What holds for every service that does not say otherwise."""

    timeout: Length = 300.0
    health_check_interval: Length = 30.0
    max_retries: Whole = 3
    retry_delay: Length = 1.0


class ServiceConfig(Section):
    """One service. `timeout`: of one task there. A connection that fails before the service has said anything is tried
    `max_retries` times again, `retry_delay` apart. `tls`: encrypted, and trusting `ca_file` in place of the system's
    certificates. `headers` are sent with every call. Pings find a connection that is dead without saying so."""

    address: Annotated[str, Field(min_length=1)]
    timeout: Length | None = None
    health_check_interval: Length | None = None
    max_retries: Whole | None = None
    retry_delay: Length | None = None
    tls: bool = False
    ca_file: Path | None = None
    headers: Mapping[HeaderName, str] = Field(default_factory=dict)
    ping_interval: Length = 10.0
    ping_timeout: Length = 3.0


class ServicesConfig(Section):
    """All services, by the names that tasks call them."""

    services: Mapping[str, ServiceConfig] = Field(default_factory=dict)
    defaults: Defaults = Field(default_factory=Defaults)


@dataclass(frozen=True)
class Order:
    """What a task wants of a service. `timeout_seconds` None: as the service's configuration says."""

    service: str
    method: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    timeout_seconds: float | None = None
    enable_progress: bool = True
    progress_interval_ms: int = 1000


@dataclass(frozen=True)
class Health:
    """What a service last said of itself, or why it could not be asked. `asked_at` None: it has not been yet."""

    healthy: bool = True
    message: str = "not asked yet"
    asked_at: datetime | None = None


def read_config(section: Mapping[str, Any]) -> ServicesConfig:
    """The services in a handler's configuration. Raises `ConfigError`, which names what is wrong."""
    try:
        return ServicesConfig.model_validate(section)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        lines = tuple(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        raise ConfigError("the services of grpc_task cannot be used:", lines) from error


def services_of(section: Mapping[str, Any]) -> Services:
    """The services of a configuration; the same object for the same content. Raises `ConfigError`."""
    return _services(json.dumps(dict(section), sort_keys=True, default=str))


@functools.lru_cache(maxsize=16)
def _services(text: str) -> Services:
    return Services(read_config(json.loads(text)))


class Services:
    """The services that are in use, and a thread that asks how they are. For any thread."""

    def __init__(self, config: ServicesConfig, linger_seconds: float = _LINGER_SECONDS) -> None:
        self._config = config
        self._linger_seconds = linger_seconds
        self._open: dict[str, Service] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Service]:
        """The service, kept for the length of the `with` and a while longer. Raises `Fail` if there is none."""
        service = self._enter(name)
        try:
            yield service
        finally:
            with self._lock:
                service.users -= 1
                service.used_at = time.monotonic()
            self._changed.set()

    def health(self) -> dict[str, Health]:
        """How each service is, by name; of those that are not in use nothing is known."""
        with self._lock:
            return {name: self._open[name].health if name in self._open else Health() for name in self._config.services}

    def close(self) -> None:
        """Forget all services; calls that go on there break off."""
        with self._lock:
            services, self._open = list(self._open.values()), {}
            thread, self._thread = self._thread, None
        self._changed.set()
        if thread:
            thread.join()
        for service in services:
            service.close()

    def run(self) -> None:
        """Ask how they are, whenever that is due, until none is in use any more; the thread's body."""
        while (seconds := self.run_once()) is not None and self._thread is threading.current_thread():
            self._changed.wait(seconds)
            self._changed.clear()

    def run_once(self) -> float | None:
        """Ask those that are due; in how many seconds to look again, or None when there is none left."""
        now = time.monotonic()
        with self._lock:
            idle = [name for name, service in self._open.items() if service.is_idle(now, self._linger_seconds)]
            gone = [self._open.pop(name) for name in idle]
            left = list(self._open.values())
            if not left and self._thread is threading.current_thread():
                self._thread = None
        for service in gone:
            service.close()
        # All at once: one that does not answer holds up none of the others.
        asked = [(service, service.ask()) for service in left if service.due_at <= now]
        for service, answer in asked:
            service.hear(answer)
        moments = [service.next_moment(self._linger_seconds) for service in left]
        return max(0.0, min(moments) - time.monotonic()) if left else None

    def _enter(self, name: str) -> Service:
        config = self._config.services.get(name)
        if config is None:
            known = ", ".join(sorted(self._config.services)) or "none"
            raise Fail(
                f"no service {name!r} in handlers.grpc_task.config.services; there are: {known}", "unknown_service"
            )
        with self._lock:
            service = self._open.get(name)
            if service is None:
                service = self._open[name] = Service(name, config, self._config.defaults)
            service.users += 1
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self.run, name="grpc-health", daemon=True)
                self._thread.start()
        self._changed.set()
        return service


class Service:
    """One service: a connection, and what is known of its health. `users` counts the tasks that it does."""

    def __init__(self, name: str, config: ServiceConfig, defaults: Defaults) -> None:
        self.name = name
        self.health = Health()
        self.users = 0
        self.used_at = time.monotonic()
        self.due_at = 0.0
        """When it is asked next how it is (monotonic)."""
        self._config = config
        self._timeout = config.timeout or defaults.timeout
        self._interval = config.health_check_interval or defaults.health_check_interval
        self._max_retries = defaults.max_retries if config.max_retries is None else config.max_retries
        self._retry_delay = config.retry_delay or defaults.retry_delay
        self._channel = _connect(config)
        self._stub = TaskExecutorServiceStub(self._channel)

    def is_idle(self, now: float, linger_seconds: float) -> bool:
        """Whether nobody has used it for so long."""
        return not self.users and self.used_at + linger_seconds <= now

    def next_moment(self, linger_seconds: float) -> float:
        """When it is to be asked, or may have become idle (monotonic)."""
        return self.due_at if self.users else min(self.due_at, self.used_at + linger_seconds)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def ask(self) -> Any:
        """Begin to ask how it is; for `hear`."""
        self.due_at = time.monotonic() + self._interval
        request = pb.HealthCheckRequest(service_name=self.name)
        return self._stub.HealthCheck.future(request, timeout=_HEALTH_SECONDS, metadata=self._headers())

    def hear(self, answer: Any) -> None:
        """Wait for the answer, five seconds at most, and note it. Only HEALTHY is healthy."""
        now = datetime.now(UTC)
        try:
            said = answer.result()
        except grpc.RpcError as error:
            self.health = Health(False, f"unhealthy: {_describe(error)}", now)
        except grpc.FutureCancelledError:  # the channel was closed
            self.health = Health(False, "unhealthy: hung up", now)
        else:
            word = pb.HealthStatus.Name(said.status) if said.status in pb.HealthStatus.values() else str(said.status)
            word = word.removeprefix("HEALTH_STATUS_").lower()
            healthy = said.status == pb.HEALTH_STATUS_HEALTHY
            self.health = Health(healthy, f"{word}: {said.message}" if said.message else word, now)

    def execute(self, ctx: Context, order: Order) -> dict[str, Any]:
        """Have the service do the task, and pass on its progress; what it returns.

        Raises `Fail`, `Retry`, and `Cancelled`, after the service was told, when the attempt is to stop.
        """
        if not self.health.healthy:
            raise Retry(None, f"service {self.name} is {self.health.message}", "service_unhealthy")
        timeout = order.timeout_seconds or self._timeout
        request = make_request(ctx, order, timeout)
        for delay in [*[self._retry_delay] * self._max_retries, None]:
            try:
                return self._attempt(ctx, request, timeout)
            except _NotConnected as error:
                if delay is None:
                    raise end_of(error.cause) from error
                ctx.log.warning("service %s cannot be reached, trying again in %gs: %s", self.name, delay, error)
                _pause(ctx, delay)
        raise AssertionError("the last delay is None")

    def _attempt(self, ctx: Context, request: pb.ExecuteTaskRequest, timeout: float) -> dict[str, Any]:
        call = self._stub.ExecuteTask(request, timeout=timeout, metadata=self._headers())
        heard = False
        with _read_from(call) as said:
            try:
                for response in _listen(ctx, said):
                    heard = True
                    result = take(ctx, response)
                    if result is not None:
                        return result
            except Cancelled:
                # While the stream is open: its end alone would look like a lost connection.
                self._cancel(ctx, request.task_id)
                raise
            except grpc.RpcError as error:
                if not heard and error.code() is grpc.StatusCode.UNAVAILABLE:
                    raise _NotConnected(error) from error
                raise end_of(error) from error
        raise Retry(None, f"service {self.name} ended without a result", "no_result")

    def _cancel(self, ctx: Context, task_id: str) -> None:
        request = pb.CancelTaskRequest(task_id=task_id, reason=ctx.stopped)
        try:
            answer = self._stub.CancelTask(request, timeout=_CANCEL_SECONDS, metadata=self._headers())
        except grpc.RpcError as error:
            ctx.log.warning("service %s could not be told to stop: %s", self.name, _describe(error))
        else:
            said = "stops" if answer.success else "does not stop"
            ctx.log.info("service %s %s: %s", self.name, said, answer.message)

    def _headers(self) -> list[tuple[str, str]]:
        fixed = {"x-client-name": "taskflow-worker", "x-request-time": _now_in_nanoseconds()}
        return list({**fixed, **self._config.headers}.items())


class _NotConnected(Exception):
    """The service was not reached, so it has not begun."""

    def __init__(self, cause: grpc.RpcError) -> None:
        super().__init__(_describe(cause))
        self.cause = cause


def make_request(ctx: Context, order: Order, timeout_seconds: float) -> pb.ExecuteTaskRequest:
    """What the service is asked to do. Raises `Fail` for data that the contract has no room for."""
    task = ctx.task
    request = pb.ExecuteTaskRequest(
        task_id=task.id,
        task_type=order.method,
        metadata={
            "service": order.service,
            "queue": task.queue,
            "retry_count": str(max(task.attempt - 1, 0)),
            "max_retry": str(task.max_retries),
        },
        options=pb.ExecutionOptions(
            timeout_ms=math.ceil(timeout_seconds * 1000),
            enable_progress=order.enable_progress,
            progress_interval_ms=order.progress_interval_ms,
        ),
    )
    try:
        json_format.ParseDict(dict(order.data), request.payload)
    except (json_format.ParseError, ValueError, OverflowError, RecursionError) as error:
        raise Fail(f"the data cannot be sent: {error}", "invalid_data") from error
    return request


def take(ctx: Context, response: pb.ExecuteTaskResponse) -> dict[str, Any] | None:
    """Act on one response: None for progress, the result when there is one. Raises `Fail` and `Retry`."""
    match response.WhichOneof("response"):
        case "progress":
            progress = response.progress
            ctx.progress(progress.percentage, progress.message, progress.stage, dict(progress.metadata))
        case "result":
            return result_of(response.result)
        case "error":
            raise refusal_of(response.error)
        case _:
            ctx.log.debug("a response without content was passed over")
    return None


def result_of(result: pb.TaskResult) -> dict[str, Any]:
    """What the task returns. Raises `Retry` unless the service says that it completed it."""
    if result.status == pb.TASK_STATUS_COMPLETED:
        return {"data": whole(json_format.MessageToDict(result.data)), "duration_ms": result.duration_ms}
    if result.status == pb.TASK_STATUS_CANCELLED:
        raise Retry(None, "the service cancelled the task, which nobody here asked for", "cancelled_by_service")
    details = json.dumps(json_format.MessageToDict(result.data), ensure_ascii=False)
    raise Retry(None, f"the service says that the task failed: {details}"[:_MAX_TEXT], "failed_by_service")


def whole(value: Any) -> Any:
    """The value with its whole numbers as such: the contract has doubles only, and a count of 8 is not 8.0."""
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _SAFE_INTEGER else value


def refusal_of(error: pb.ErrorDetail) -> Fail | Retry:
    """What the service's error means for the attempt."""
    code = error.code or "service_error"
    message = (error.message or "the service gave no reason")[:_MAX_TEXT]
    if not error.retryable:
        return Fail(message, code)
    return Retry(max(error.retry_after_seconds, 0) or None, message, code)


def end_of(error: grpc.RpcError) -> Fail | Retry:
    """What a gRPC status means for the attempt."""
    code = f"grpc_{error.code().name.lower()}"
    return Fail(_describe(error), code) if error.code() in _HOPELESS else Retry(None, _describe(error), code)


@contextlib.contextmanager
def _read_from(call: Any) -> Iterator[Said]:
    """What a service says, as it comes in; the call is over when the `with` is."""
    said: Said = queue.Queue(_MAX_HELD)
    reader = threading.Thread(target=_read, args=(call, said), name="grpc-stream", daemon=True)
    reader.start()
    try:
        yield said
    finally:
        call.cancel()
        while reader.is_alive():
            with contextlib.suppress(queue.Empty):  # it may wait for room
                said.get_nowait()
            reader.join(_LOOK_UP_SECONDS)


def _read(call: Any, said: Said) -> None:
    try:
        for response in call:
            said.put(response)
        said.put(None)
    except grpc.RpcError as error:
        said.put(error)


def _listen(ctx: Context, said: Said) -> Iterator[pb.ExecuteTaskResponse]:
    """One response after the other. Raises RpcError, and Cancelled as soon as the attempt is to stop."""
    while True:
        ctx.check()
        try:
            response = said.get(timeout=_LOOK_UP_SECONDS)
        except queue.Empty:
            continue
        if response is None:
            return
        if isinstance(response, grpc.RpcError):
            raise response
        yield response


def _pause(ctx: Context, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        ctx.check()
        time.sleep(min(left, _LOOK_UP_SECONDS))
    ctx.check()


def _connect(config: ServiceConfig) -> Any:
    """The channel; nothing is said on it yet. Raises `ConfigError`."""
    options = [
        ("grpc.keepalive_time_ms", round(config.ping_interval * 1000)),
        ("grpc.keepalive_timeout_ms", round(config.ping_timeout * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        # By itself it would look for a service that has come back every two minutes only.
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.enable_http_proxy", 0),
    ]
    if not config.tls:
        return grpc.insecure_channel(config.address, options)
    try:
        trusted = config.ca_file.read_bytes() if config.ca_file else None
    except OSError as error:
        raise ConfigError(f"ca_file {config.ca_file} cannot be read: {error.strerror}") from error
    return grpc.secure_channel(config.address, grpc.ssl_channel_credentials(trusted), options)


def _describe(error: grpc.RpcError) -> str:
    details = (error.details() or "")[:_MAX_TEXT]
    return f"{error.code().name}: {details}" if details else str(error.code().name)


def _now_in_nanoseconds() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
