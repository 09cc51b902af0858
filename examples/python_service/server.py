"""A service that does tasks of type grpc_task: copy it, and put your own methods into METHODS. See README.md."""

import argparse
import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from google.protobuf import json_format

# Elsewhere: copy grpc_task.proto, generate these two from it, and import your own.
from runner.rpc.proto import grpc_task_pb2 as pb
from runner.rpc.proto import grpc_task_pb2_grpc as rpc

Data: TypeAlias = Mapping[str, Any]
Say: TypeAlias = Callable[..., None]
Method: TypeAlias = Callable[[Data, Say], Awaitable[dict[str, Any]]]

TOKENS = ["This", "is", "what", "a", "model", "might", "say,", "one", "word", "at", "a time."]


class Busy(Exception):
    """Raised by a method that can be asked again, after so many seconds."""

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


async def demo(data: Data, say: Say) -> dict[str, Any]:
    """Count, half a second each."""
    count = int(data.get("count", 5))
    for number in range(1, count + 1):
        await asyncio.sleep(0.5)
        say(100 * number // count, "processing", f"{data.get('message', 'step')} {number}")
    return {"message": data.get("message", ""), "count": count}


async def chat(data: Data, say: Say) -> dict[str, Any]:
    """Answer a prompt, a word every tenth of a second."""
    words = TOKENS[: int(data.get("max_tokens", len(TOKENS)))]
    for number, word in enumerate(words):
        await asyncio.sleep(0.1)
        say(100 * (number + 1) // len(words), "generating", word, token_index=str(number))
    return {"answer": " ".join(words), "prompt": data.get("prompt", "")}


async def backtest(data: Data, say: Say) -> dict[str, Any]:
    """Go through five stages, a second each."""
    stages = ["load_data", "init_strategy", "run_backtest", "calculate_metrics", "generate_report"]
    for number, stage in enumerate(stages, start=1):
        say(100 * (number - 1) // len(stages), stage, f"{stage} of {data.get('strategy_id', 'the strategy')}")
        await asyncio.sleep(1)
    return {"strategy_id": data.get("strategy_id", ""), "stages": len(stages)}


METHODS: dict[str, Method] = {"demo": demo, "chat": chat, "backtest": backtest}


class Executor(rpc.TaskExecutorServiceServicer):  # type: ignore[misc]  # generated, without types
    """Does one task for each call. While the file `closed_file` exists it says that it is unhealthy."""

    def __init__(self, methods: Mapping[str, Method], closed_file: Path | None = None) -> None:
        self._methods = methods
        self._closed_file = closed_file
        self._running: dict[str, asyncio.Task[dict[str, Any]]] = {}

    async def ExecuteTask(self, request: pb.ExecuteTaskRequest, context: Any) -> AsyncIterator[pb.ExecuteTaskResponse]:
        """Progress while it runs, then one result or one error."""
        method = self._methods.get(request.task_type)
        if method is None:
            yield failure("UNKNOWN_METHOD", f"no method {request.task_type!r}; there are {', '.join(self._methods)}")
            return
        said: asyncio.Queue[pb.Progress | None] = asyncio.Queue()
        started = time.monotonic()
        work = asyncio.ensure_future(method(json_format.MessageToDict(request.payload), speaker(request, said)))
        work.add_done_callback(lambda _: said.put_nowait(None))
        self._running[request.task_id] = work
        try:
            while (progress := await said.get()) is not None:
                yield pb.ExecuteTaskResponse(progress=progress)
            yield ending(request.task_id, work, round(1000 * (time.monotonic() - started)))
        finally:
            # Also when the client has hung up: nobody waits for the result any more.
            work.cancel()
            if self._running.get(request.task_id) is work:
                del self._running[request.task_id]

    async def CancelTask(self, request: pb.CancelTaskRequest, context: Any) -> pb.CancelTaskResponse:
        """The task's stream ends with a result that says CANCELLED."""
        work = self._running.get(request.task_id)
        if work is None:
            return pb.CancelTaskResponse(success=False, message=f"task {request.task_id} does not run here")
        work.cancel()
        print(f"cancelled {request.task_id}: {request.reason}", flush=True)
        return pb.CancelTaskResponse(success=True, message="cancelled")

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        """HEALTHY, unless the file that closes the service exists."""
        closed = self._closed_file is not None and self._closed_file.exists()
        return pb.HealthCheckResponse(
            status=pb.HEALTH_STATUS_UNHEALTHY if closed else pb.HEALTH_STATUS_HEALTHY,
            message="closed for maintenance" if closed else "ok",
            details={"methods": ",".join(self._methods), "running": str(len(self._running))},
        )


def speaker(request: pb.ExecuteTaskRequest, said: asyncio.Queue[pb.Progress | None]) -> Say:
    """The function by which a method says how far it is; it says it no more often than was asked for."""
    interval = request.options.progress_interval_ms / 1000
    last = -interval

    def say(percentage: int, stage: str = "", message: str = "", **metadata: str) -> None:
        nonlocal last
        now = time.monotonic()
        if request.options.enable_progress and (now - last >= interval or percentage >= 100):
            last = now
            at = int(time.time() * 1000)
            said.put_nowait(
                pb.Progress(
                    task_id=request.task_id,
                    percentage=percentage,
                    stage=stage,
                    message=message,
                    timestamp_ms=at,
                    metadata=metadata,
                )
            )

    return say


def ending(task_id: str, work: asyncio.Task[dict[str, Any]], duration_ms: int) -> pb.ExecuteTaskResponse:
    """What the stream ends with, now that the work has."""
    if work.cancelled():
        result = pb.TaskResult(task_id=task_id, status=pb.TASK_STATUS_CANCELLED, duration_ms=duration_ms)
        return pb.ExecuteTaskResponse(result=result)
    error = work.exception()
    if isinstance(error, Busy):
        return failure("BUSY", str(error), retry_after_seconds=error.retry_after_seconds, retryable=True)
    if error is not None:
        text = f"{type(error).__name__}: {error}"
        return failure("EXECUTION_ERROR", text, retryable=isinstance(error, ConnectionError | TimeoutError))
    result = pb.TaskResult(task_id=task_id, status=pb.TASK_STATUS_COMPLETED, duration_ms=duration_ms)
    json_format.ParseDict(work.result(), result.data)
    return pb.ExecuteTaskResponse(result=result)


def failure(
    code: str, message: str, *, retryable: bool = False, retry_after_seconds: int = 0
) -> pb.ExecuteTaskResponse:
    """An error. Not retryable: the task fails for good."""
    error = pb.ErrorDetail(code=code, message=message, retryable=retryable, retry_after_seconds=retry_after_seconds)
    return pb.ExecuteTaskResponse(error=error)


async def serve(executor: Executor, address: str, grace_seconds: float = 5.0) -> None:
    """Serve until SIGTERM or SIGINT."""
    # The runner pings every ten seconds; by default a server takes that for abuse and hangs up.
    pings = [("grpc.http2.min_ping_interval_without_data_ms", 5000), ("grpc.keepalive_permit_without_calls", 1)]
    server = grpc.aio.server(options=pings)
    rpc.add_TaskExecutorServiceServicer_to_server(executor, server)
    port = server.add_insecure_port(address)
    await server.start()
    print(f"serving on port {port}", flush=True)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    await server.stop(grace_seconds)


def main() -> None:
    """Serve what the command line says."""
    parser = argparse.ArgumentParser(description="A service that does tasks of type grpc_task.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="where; port 0: any free one")
    parser.add_argument("--closed-file", type=Path, help="while this file exists the service says it is unhealthy")
    arguments = parser.parse_args()
    asyncio.run(serve(Executor(METHODS, arguments.closed_file), arguments.address))


if __name__ == "__main__":
    main()
