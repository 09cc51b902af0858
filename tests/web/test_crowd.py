"""Two thousand clients of event streams, one in ten of them slow, against the runner as it is served."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
TASKS = "/api/v1/tasks"
FAST, SLOW, SWAMPED = 1800, 180, 20
WORDS, FLOOD, LINE_BYTES = 6, 400, 16 * 1024
NEEDED_DESCRIPTORS = 3 * (FAST + SLOW + SWAMPED)
PATIENCE_SECONDS = 100.0
MAX_GROWTH_MB = 50 + 0.035 * (FAST + SLOW + SWAMPED)

HANDLERS = '''
import time
from pathlib import Path
from runner import Context, handler


@handler(retries=0)
def tell(ctx: Context, words: int, size: int, gates: str) -> None:
    """Say so many words of that size, each when its gate is open."""
    for number in range(words):
        while gates and not Path(gates, str(number)).exists():
            ctx.check()
            time.sleep(0.005)
        ctx.log.info(f"word-{number}-" + "x" * size)
'''

_WORD = re.compile(rb"word-(\d+)-")


@dataclass(frozen=True)
class Runner:
    """A runner in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Asks it something."""
        return httpx2.request(method, f"http://127.0.0.1:{self.port}{path}", json=body, timeout=60).json()

    def memory_mb(self) -> float:
        """What it takes up."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1000


@contextmanager
def serving(folder: Path) -> Iterator[Runner]:
    """A runner that is served; killed at the end, if it has not ended."""
    (folder / "handlers").mkdir()
    (folder / "handlers" / "tell.py").write_text(HANDLERS)
    config = "http: {port: 0}\nstorage: {min_free_bytes: 0, ballast_bytes: 0}\ndrain: {grace_period: 0}\n"
    (folder / "config.yaml").write_text(config)
    command = [sys.executable, "-P", "-m", "runner.cli", "serve", "--json", "--config", str(folder / "config.yaml")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    try:
        address = json.loads(b"".join(iter(process.stdout.readline, b"}\n")) + b"}")["address"]
        yield Runner(process, int(address.rpartition(":")[2]))
    finally:
        process.stdout.close()
        process.kill()
        process.wait()


class Listener(asyncio.Protocol):
    """One client: the numbers of the words that it has heard, and the last id."""

    def __init__(self, path: str, news: asyncio.Event, last_id: str = "") -> None:
        self.words: list[int] = []
        self.last_id = last_id
        self.was_reset = self.is_closed = self.is_open = False
        self.transport: asyncio.Transport | None = None
        self._path = path
        self._news = news
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        resumed = f"Last-Event-ID: {self.last_id}\r\n" if self.last_id else ""
        transport.write(f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\n{resumed}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"id: "):
                self.last_id = line[4:].decode()
            elif line.startswith(b"data: "):
                self.is_open = True
                self.words += map(int, _WORD.findall(line[:400]))
            elif line.startswith(b"event: reset"):
                self.was_reset = True
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._news.set()


class Crowd:
    """All of them, in one event loop."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._news = asyncio.Event()

    async def come(self, task_id: str, size: int, last_id: str = "") -> list[Listener]:
        """So many listeners to a task, each of which has heard how it stands."""
        loop, path = asyncio.get_running_loop(), f"{TASKS}/{task_id}/events"
        listeners = [Listener(path, self._news, last_id) for _ in range(size)]
        for listener in listeners:
            await loop.create_connection(lambda one=listener: one, "127.0.0.1", self._runner.port)  # type: ignore[misc]
        await self.until(lambda: all(one.is_open or one.is_closed for one in listeners))
        return listeners

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Returns when that is so."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not is_so():
                self._news.clear()
                await self._news.wait()


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many descriptors as two thousand connections need, here and in the runner."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < NEEDED_DESCRIPTORS:
        pytest.skip(f"2,000 clients need {NEEDED_DESCRIPTORS} open files, and the system allows {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, NEEDED_DESCRIPTORS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_crowd_misses_nothing_however_slow_and_keeps_nobody_from_stopping(tmp_path: Path, many_files: None) -> None:
    """Everybody hears every word once and in order: who is too slow is reset and goes on from the last id. What the
    runner keeps for all of them is bounded, and SIGTERM ends it, and them, at once."""
    with serving(tmp_path) as runner:
        (tmp_path / "gates" / "flood").mkdir(parents=True)
        asyncio.run(_crowd(runner, tmp_path / "gates"))
        assert runner.process.wait(30) == 0


async def _crowd(runner: Runner, gates: Path) -> None:
    crowd, before = Crowd(runner), runner.memory_mb()
    speaker = _submitted(runner, WORDS, 10, str(gates))
    fast, slow = await crowd.come(speaker, FAST), await crowd.come(speaker, SLOW)
    swamped = await _swamped(crowd, runner, gates / "flood")
    _each(slow, asyncio.Transport.pause_reading)
    for number in range(WORDS - 1):
        (gates / str(number)).touch()
        await crowd.until(lambda wanted=number + 1: all(len(one.words) >= wanted for one in fast))  # type: ignore[misc]
    assert runner.memory_mb() - before < MAX_GROWTH_MB
    _each(slow, asyncio.Transport.resume_reading)
    await crowd.until(lambda: all(len(one.words) >= WORDS - 1 for one in slow))
    assert {tuple(one.words) for one in fast + slow} == {tuple(range(WORDS - 1))}
    runner.process.send_signal(signal.SIGTERM)
    await crowd.until(lambda: all(one.is_closed for one in fast + slow + swamped))


async def _swamped(crowd: Crowd, runner: Runner, flood: Path) -> list[Listener]:
    """Those who do not read while far more is said than is kept for them; they come back, and have all of it."""
    speaker = _submitted(runner, FLOOD, LINE_BYTES, str(flood))
    swamped = await crowd.come(speaker, SWAMPED)
    _each(swamped, asyncio.Transport.pause_reading)
    for number in range(FLOOD):
        (flood / str(number)).touch()
    ended = await asyncio.to_thread(runner.call, "GET", f"{TASKS}/{speaker}?wait=50")
    assert ended["status"] == "completed"
    _each(swamped, asyncio.Transport.resume_reading)
    await crowd.until(lambda: all(one.is_closed or len(one.words) == FLOOD for one in swamped))
    assert any(one.was_reset for one in swamped)
    for one in swamped:
        (again,) = await crowd.come(speaker, 1, one.last_id)
        await crowd.until(lambda rest=again: rest.is_closed or len(one.words) + len(rest.words) >= FLOOD)  # type: ignore[misc]  # noqa: B023 - it is awaited at once
        assert one.words + again.words == list(range(FLOOD))
    return swamped


def _submitted(runner: Runner, words: int, size: int, gates: str) -> str:
    payload = {"words": words, "size": size, "gates": gates}
    return str(runner.call("POST", TASKS, {"type": "tell", "payload": payload})["id"])


def _each(listeners: list[Listener], do: Callable[[asyncio.Transport], None]) -> None:
    for listener in listeners:
        assert listener.transport is not None
        getattr(listener.transport, do.__name__)()
