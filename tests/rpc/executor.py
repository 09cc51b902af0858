"""Services that do tasks: one in this process that does as a test says, and the example as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from runner.rpc.grpc_task import services_of
from runner.rpc.proto import grpc_task_pb2 as pb
from runner.rpc.proto import grpc_task_pb2_grpc as rpc

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 20.0

Act = Callable[[pb.ExecuteTaskRequest, Any], Iterator[pb.ExecuteTaskResponse]]


class Scripted(rpc.TaskExecutorServiceServicer):  # type: ignore[misc]  # generated, without types
    """Does as `act` says, and notes what it was asked."""

    def __init__(self) -> None:
        self.act: Act = lambda request, context: iter([completed()])
        self.asked: list[pb.ExecuteTaskRequest] = []
        self.headers: dict[str, str] = {}
        self.cancelled: list[tuple[str, str]] = []
        self.hears_cancel = True
        self.told_to_stop = threading.Event()
        self.status = pb.HEALTH_STATUS_HEALTHY
        self.checks = threading.Semaphore(0)
        self.port = 0
        self.configs: list[dict[str, Any]] = []

    def ExecuteTask(self, request: pb.ExecuteTaskRequest, context: Any) -> Iterator[pb.ExecuteTaskResponse]:
        self.headers = dict(context.invocation_metadata())
        self.asked.append(request)
        yield from self.act(request, context)

    def CancelTask(self, request: pb.CancelTaskRequest, context: Any) -> pb.CancelTaskResponse:
        if not self.hears_cancel:
            context.abort(grpc.StatusCode.INTERNAL, "broken")
        self.cancelled.append((request.task_id, request.reason))
        self.told_to_stop.set()
        return pb.CancelTaskResponse(success=True, message="as you wish")

    def HealthCheck(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        self.checks.release()
        return pb.HealthCheckResponse(status=self.status, message=f"{request.service_name} speaking")

    def config(self, **service: Any) -> dict[str, Any]:
        """The configuration of a runner that calls it "one"."""
        self.configs.append({"services": {"one": {"address": f"127.0.0.1:{self.port}", **service}}})
        return self.configs[-1]


@contextmanager
def serving(executor: Scripted, port: int = 0, certificate: Path | None = None) -> Iterator[Scripted]:
    """The scripted service, on a port."""
    server = grpc.server(ThreadPoolExecutor(8))
    rpc.add_TaskExecutorServiceServicer_to_server(executor, server)
    if certificate:
        pem = certificate.read_bytes()
        executor.port = server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(pem, pem)]))
    else:
        executor.port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield executor
    finally:
        executor.told_to_stop.set()
        server.stop(0).wait()
        for config in executor.configs:
            services_of(config).close()


def progress(percentage: int, stage: str = "", message: str = "") -> pb.ExecuteTaskResponse:
    """A step."""
    return pb.ExecuteTaskResponse(progress=pb.Progress(percentage=percentage, stage=stage, message=message))


def completed(**data: Any) -> pb.ExecuteTaskResponse:
    """A good end."""
    return ended(pb.TASK_STATUS_COMPLETED, **data)


def ended(status: pb.TaskStatus, **data: Any) -> pb.ExecuteTaskResponse:
    """An end."""
    result = pb.TaskResult(status=status, duration_ms=7)
    result.data.update(data)
    return pb.ExecuteTaskResponse(result=result)


class Example:
    """The service of examples/python_service, as a process."""

    def __init__(self, folder: Path) -> None:
        self.closed_file = folder / "closed"
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def start(self) -> None:
        """Starts it, the first time on a free port, then on the same one."""
        self._process = subprocess.Popen(
            [sys.executable, "-u", ROOT / "examples" / "python_service" / "server.py", *self._arguments()],
            env={"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self.next_line().rpartition(" ")[2])

    def next_line(self) -> str:
        """What it prints next."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        """Ends it without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _arguments(self) -> list[str]:
        return ["--address", f"127.0.0.1:{self.port}", "--closed-file", str(self.closed_file)]
