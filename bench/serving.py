"""`runner serve` in a process of its own, and a thin client of its socket."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from bench.machine import children, resident_mb
from bench.report import NotMeasured
from bench.workspace import Workspace
from runner.web.sockets import short_path

PATIENCE_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 0.002
LONGEST_LOOK_SECONDS: Final = 1.0


class SocketConnection(HTTPConnection):
    """HTTP over a Unix socket, from the standard library: a client that costs little beside what is measured."""

    def __init__(self, path: Path) -> None:
        super().__init__("runner", timeout=PATIENCE_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connects to the path instead of the host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with short_path(self._path) as address:
            self.sock.connect(address)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that is answered. Raises `NotMeasured` for a refusal."""
        content = None if body is None else json.dumps(body).encode()
        self.request(method, path, content, {"Content-Type": "application/json"})
        response = self.getresponse()
        answer = response.read()
        if response.status >= 400:
            raise NotMeasured(f"{method} {path}: {response.status} {answer.decode()}")
        return json.loads(answer)

    def exchange(self, request: bytes) -> bytes:
        """Sends a request as it is and waits for the whole answer, of which nothing is read but its length: what this
        process does then costs next to nothing. Raises `NotMeasured` for a refusal."""
        if self.sock is None:
            self.connect()
        self.sock.sendall(request)
        answer = bytearray()
        while (whole := _length_of(answer)) is None or len(answer) < whole:
            answer += self.sock.recv(65_536) or _cut_off()
        if not answer.startswith(b"HTTP/1.1 2"):
            raise NotMeasured(answer.decode())
        return bytes(answer)


class Serving:
    """A runner's process. Its output is in `serve.log` of the workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._socket = workspace.data / "runner.sock"
        self._spawned = time.monotonic()
        with (workspace.root / "serve.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "runner.cli", "serve", "--config", str(workspace.config_file)],
                cwd=workspace.root,
                env={**_environment(), "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))},
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """The process that serves."""
        return self._process.pid

    @property
    def port(self) -> int:
        """Where it serves HTTP, once it is ready; it says so a moment later."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            log = (self._workspace.root / "serve.log").read_text()
            if (found := re.search(r"serving http://127\.0\.0\.1:(\d+)\s", log)) is not None:
                return int(found[1])
            time.sleep(LOOK_SECONDS)
        raise NotMeasured("it does not say where it serves")

    def await_ready(self) -> float:
        """Seconds from the spawning until `/ready` said yes."""
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() - self._spawned > PATIENCE_SECONDS:
                raise NotMeasured(f"it did not start: {(self._workspace.root / 'serve.log').read_text()}")
            time.sleep(LOOK_SECONDS)
        return time.monotonic() - self._spawned

    def connect(self) -> SocketConnection:
        """A connection to its socket; close it."""
        return SocketConnection(self._socket)

    def scribe_mb(self) -> float:
        """The memory of the scribe process."""
        return sum(resident_mb(pid) for pid, command in children(self.pid).items() if "scribe" in command)

    def stop(self) -> None:
        """SIGTERM, and waits for a clean end."""
        self._end(signal.SIGTERM)
        if self._process.returncode != 0:
            raise NotMeasured(f"it ended with {self._process.returncode}, not 0")

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise NotMeasured(f"it did not end within {PATIENCE_SECONDS:.0f} s") from None

    def _is_ready(self) -> bool:
        with contextlib.closing(self.connect()) as connection:
            try:
                connection.request("GET", "/ready")
                return connection.getresponse().status == 200
            except (OSError, HTTPException):
                return False


class Stamps:
    """Reads what the handler `stamp` writes."""

    def __init__(self, path: Path) -> None:
        # Also for writing: there must be a reader and a writer at all times, or opening blocks and reading ends.
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._rest = b""

    def read(self, name: str) -> int:
        """The instant (ns, monotonic) at which the handler was called for the task or file of that name."""
        while b"\n" not in self._rest:
            if not select.select([self._fd], [], [], PATIENCE_SECONDS)[0]:
                raise NotMeasured(f"the handler was not called for {name}")
            self._rest += os.read(self._fd, 4096)
        line, _, self._rest = self._rest.partition(b"\n")
        called, _, said = line.decode().partition(" ")
        if said != name:
            raise NotMeasured(f"the handler was called for {said}, not for {name}")
        return int(called)

    def close(self) -> None:
        """Closes the pipe."""
        os.close(self._fd)


def _length_of(answer: bytearray) -> int | None:
    """How long an answer is, head and all, once that can be known."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    said = re.search(rb"\r\ncontent-length: *(\d+)", answer[:end], re.IGNORECASE)
    return end + 4 + (int(said[1]) if said else 0)


def _cut_off() -> NoReturn:
    raise NotMeasured("the runner closed the connection")


@contextmanager
def serving(workspace: Workspace) -> Iterator[tuple[Serving, SocketConnection]]:
    """A runner that is ready, and a connection to it; stopped afterwards."""
    with Serving(workspace) as server:
        server.await_ready()
        with contextlib.closing(server.connect()) as connection:
            yield server, connection


@contextmanager
def stamping(workspace: Workspace) -> Iterator[Stamps]:
    """The stamps of a workspace."""
    with contextlib.closing(Stamps(workspace.stamps)) as stamps:
        yield stamps


def submit_many(connection: SocketConnection, type: str, number: int) -> None:
    """Submits so many tasks of a type, a thousand in a request."""
    for start in range(0, number, 1000):
        batch = [{"type": type} for _ in range(min(1000, number - start))]
        connection.call("POST", "/api/v1/tasks:batch", batch)


def count_tasks(connection: SocketConnection, **filters: str) -> int:
    """How many tasks match."""
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    return int(connection.call("GET", f"/api/v1/tasks/count?{query}")["count"])


def await_count(connection: SocketConnection, number: int, look_seconds: float = 0.1, **filters: str) -> None:
    """Waits until so many tasks match, for as long as there are more and more of them."""
    began = time.monotonic()
    known, deadline = -1, began + PATIENCE_SECONDS
    while (counted := count_tasks(connection, **filters)) < number:
        if counted > known:
            known, deadline = counted, time.monotonic() + PATIENCE_SECONDS
        if time.monotonic() > deadline:
            raise NotMeasured(f"only {counted} of {number} tasks are {filters}")
        # To count costs the runner something, so it is asked less often while there is much to come.
        left = (time.monotonic() - began) * (number - counted) / max(counted, 1)
        time.sleep(max(look_seconds, min(left / 2, LONGEST_LOOK_SECONDS)))


def _environment() -> dict[str, str]:
    """Ours, but for what would configure it, and for what would have it compile itself at each start: an installation
    is compiled."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RUNNER__") and name != "PYTHONDONTWRITEBYTECODE"
    }
