"""The HTTP front beside the least that Starlette can do for the same requests, in the same minute, as ratios."""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from bench.audience import Audience, allow_descriptors
from bench.hammer import Blows, Target, download_seconds, hammer, request_bytes, upload_seconds
from bench.machine import resident_mb
from bench.report import NotMeasured, Report, Row, percentile, print_report
from bench.serving import Serving, serving
from bench.workspace import Place, Workspace, fresh_workspace, place_options

PARTS: Final = ("submit", "status", "upload", "download", "sse")
WAITING: Final = {"type": "noop", "delay": "1h"}
COUNT: Final = "/api/v1/tasks/count"
WARM_UP: Final = 200
START_SECONDS: Final = 60.0

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Load:
    """How much is asked of both."""

    requests: int
    connections: int
    file_bytes: int
    clients: int
    rounds: int


@dataclass(frozen=True)
class Both:
    """The two that are measured."""

    workspace: Workspace
    ours: Serving
    bare_port: int
    bare_pid: int

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Tells ours what to do, by a connection of its own: it closes those on which nothing comes for a while."""
        with closing(self.ours.connect()) as connection:
            return connection.call(method, path, body)

    def beside(self, measure: Callable[[Target], float], ours: str, bare: str, rounds: int) -> tuple[float, float]:
        """The medians of both, measured in turn; who is first changes from round to round."""
        found: dict[str, list[float]] = {"ours": [], "bare": []}
        targets = {"ours": Target(self.ours.port, ours), "bare": Target(self.bare_port, bare)}
        for round_ in range(rounds):
            for name in sorted(targets, reverse=bool(round_ % 2)):
                found[name].append(measure(targets[name]))
        return statistics.median(found["ours"]), statistics.median(found["bare"])


@click.command("http")
@click.option("--requests", type=click.IntRange(1), default=5000, help="In a round, of each kind.")
@click.option("--connections", type=click.IntRange(1), default=32)
@click.option("--file-mb", type=click.IntRange(1), default=1000, help="What is uploaded and downloaded, in 10⁶ bytes.")
@click.option("--clients", type=click.IntRange(1), default=2000, help="Of one stream of events.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="The figures are medians of so many.")
@click.option("--only", type=click.Choice(PARTS), multiple=True)
@place_options
def http(
    place: Place, requests: int, connections: int, file_mb: int, clients: int, rounds: int, only: tuple[str, ...]
) -> None:
    """Submissions, looks at a task, uploads, downloads and streams of events, each beside a bare endpoint."""
    load = Load(requests, connections, file_mb * 10**6, clients, rounds)
    wanted = only or PARTS
    with fresh_workspace(place, "http") as workspace, both(workspace) as two:
        found: dict[str, Figures] = {part: MEASURES[part](two, load) for part in PARTS if part in wanted}
        rows: list[Row] = [("", "ours", "bare", "ratio", "")]
        rows += [_row(part, figures) for part, figures in found.items()]
        settings = {"requests": requests, "connections": connections, "file_mb": file_mb, "clients": clients}
        print_report(Report("http", {**settings, "rounds": rounds}, found, rows), place)


@contextmanager
def both(workspace: Workspace) -> Iterator[Both]:
    """A runner and the bare endpoints, each in a process of its own."""
    with serving(workspace) as (ours, connection):
        task = connection.call("POST", "/api/v1/tasks", WAITING)
        with _bare(workspace.root / "bare", task) as (port, pid):
            yield Both(workspace, ours, port, pid)


@contextmanager
def _bare(folder: Path, answer: Any) -> Iterator[tuple[int, int]]:
    folder.mkdir()
    (folder / "answer.json").write_text(json.dumps(answer))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))}
    process = subprocess.Popen([sys.executable, "-P", "-m", "bench.bare", str(folder)], env=environment)
    try:
        until = time.monotonic() + START_SECONDS
        while not (folder / "port").exists():
            if process.poll() is not None or time.monotonic() > until:
                raise NotMeasured("the bare endpoints did not start")
            time.sleep(0.01)
        yield int((folder / "port").read_text()), process.pid
    finally:
        process.kill()
        process.wait()


def measure_submit(two: Both, load: Load) -> Figures:
    """Submissions a second that are acknowledged. The tasks wait, so that nothing but that is measured."""
    before, body, blows = two.call("GET", COUNT)["count"], WAITING, list[Blows]()
    ours, bare = two.beside(
        lambda target: _hit(target, request_bytes("POST", target, body), load, blows),
        "/api/v1/tasks", "/submit", load.rounds,
    )  # fmt: skip
    stored = two.call("GET", COUNT)["count"] - before
    if stored != load.rounds * (load.requests + min(WARM_UP, load.requests)):
        raise NotMeasured(f"{stored} tasks were stored of those that were acknowledged")
    return _rates(two, ours, bare, blows, bare_last=load.rounds)


def measure_status(two: Both, load: Load) -> Figures:
    """Looks at a task that waits, a second."""
    task, blows = two.call("POST", "/api/v1/tasks", WAITING), list[Blows]()
    ours, bare = two.beside(
        lambda target: _hit(target, request_bytes("GET", target), load, blows),
        f"/api/v1/tasks/{task['id']}", "/status", load.rounds,
    )  # fmt: skip
    return _rates(two, ours, bare, blows, bare_last=load.rounds)


def _hit(target: Target, request: bytes, load: Load, blows: list[Blows]) -> float:
    hammer(target.port, request, min(WARM_UP, load.requests), load.connections)
    blows.append(hammer(target.port, request, load.requests, load.connections))
    return blows[-1].per_second


def _rates(two: Both, ours: float, bare: float, blows: list[Blows], bare_last: int) -> Figures:
    """What was counted, and our own percentiles of all rounds together; in each round one of the two was first."""
    rounds = [blows[2 * round_ : 2 * round_ + 2] for round_ in range(bare_last)]
    own = [pair[1 - round_ % 2] for round_, pair in enumerate(rounds)]
    times = [milliseconds for blow in own for milliseconds in blow.milliseconds]
    return {
        "per_second": round(ours),
        "bare_per_second": round(bare),
        "ratio": round(ours / bare, 3),
        "p50_ms": round(percentile(times, 50), 2),
        "p99_ms": round(percentile(times, 99), 2),
    }


def measure_upload(two: Both, load: Load) -> Figures:
    """Megabytes a second of one upload, to the disk. The drafts that have got the file are deleted in between."""

    def upload(target: Target) -> float:
        if target.port != two.ours.port:
            return load.file_bytes / 1e6 / upload_seconds(target, load.file_bytes)
        draft = two.call("POST", "/api/v1/tasks", {"type": "noop", "draft": True})["id"]
        place = Target(target.port, f"/api/v1/tasks/{draft}/inputs/file.bin")
        rate = load.file_bytes / 1e6 / upload_seconds(place, load.file_bytes)
        if two.call("GET", f"/api/v1/tasks/{draft}")["file_size"] != load.file_bytes:
            raise NotMeasured("the draft has not got the whole file")
        two.call("DELETE", f"/api/v1/tasks/{draft}")
        return rate

    return _speeds(*two.beside(upload, "", "/upload", load.rounds))


def measure_download(two: Both, load: Load) -> Figures:
    """Megabytes a second of one download."""
    made = {"type": "produce", "payload": {"size": load.file_bytes}}
    task = two.call("POST", "/api/v1/tasks", made)["id"]
    ended = two.call("GET", f"/api/v1/tasks/{task}?wait=60")
    if ended["status"] != "completed":
        raise NotMeasured(f"there is no file to be downloaded: {ended['error']}")
    (two.workspace.root / "bare" / "download").hardlink_to(two.workspace.data / ended["output_files"][0])

    def download(target: Target) -> float:
        return load.file_bytes / 1e6 / download_seconds(target, load.file_bytes)

    return _speeds(*two.beside(download, f"/api/v1/tasks/{task}/outputs/file.bin", "/download", load.rounds))


def _speeds(ours: float, bare: float) -> Figures:
    return {"mb_per_second": round(ours), "bare_mb_per_second": round(bare), "ratio": round(ours / bare, 3)}


def measure_sse(two: Both, load: Load) -> Figures:
    """Milliseconds from what a handler says until all clients of its stream have it, and what each client costs."""
    allow_descriptors(load.clients)
    speaker = two.call("POST", "/api/v1/tasks", {"type": "speak", "payload": {"times": load.rounds}})["id"]
    root = two.workspace.root

    def say(stamp: int) -> None:
        (root / f"said-{stamp}-").touch()

    def say_bare(stamp: int) -> None:
        request = request_bytes("POST", Target(two.bare_port, "/say"), f"said-{stamp}-")
        hammer(two.bare_port, request, 1, 1)

    place = Target(two.ours.port, f"/api/v1/tasks/{speaker}/events")
    ours, our_kb = _heard(place, two.ours.pid, load, say)
    bare, bare_kb = _heard(Target(two.bare_port, "/events"), two.bare_pid, load, say_bare)
    return {
        "reach_ms": round(ours, 1),
        "bare_reach_ms": round(bare, 1),
        "ratio": round(bare / ours, 3),
        "kb_per_client": round(our_kb, 1),
        "bare_kb_per_client": round(bare_kb, 1),
    }


def _heard(target: Target, pid: int, load: Load, say: Callable[[int], None]) -> tuple[float, float]:
    """The median of how long it took to reach all, and the memory for each, in 10³ bytes."""

    async def listen() -> tuple[float, float]:
        before = resident_mb(pid)
        audience = Audience(target, load.clients)
        try:
            await audience.come()
            each = (resident_mb(pid) - before) * 1000 / load.clients
            times = []
            for _ in range(load.rounds):
                stamp = time.monotonic_ns()
                await asyncio.to_thread(say, stamp)
                times.append(await audience.milliseconds_to_reach(stamp))
        finally:
            await audience.leave()
        return statistics.median(times), each

    return asyncio.run(listen())


MEASURES: Final[Mapping[str, Callable[[Both, Load], Figures]]] = {
    "submit": measure_submit,
    "status": measure_status,
    "upload": measure_upload,
    "download": measure_download,
    "sse": measure_sse,
}


def _row(part: str, figures: Figures) -> Row:
    ours, bare, ratio, *others = figures.items()
    unit = re.sub("_per_", "/", ours[0]).replace("mb/", "MB/").replace("per_second", "1/s")
    rest = ", ".join(f"{name} {value:g}" for name, value in others)
    return (f"{part} ({unit})", f"{ours[1]:,g}", f"{bare[1]:,g}", f"{ratio[1]:.2f}", rest)
