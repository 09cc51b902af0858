"""How soon a dropped file's handler runs, and how many files a second are taken when very many come at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import click

from bench.latency import WARM_UP, pause
from bench.report import LATENCY_HEAD, NotMeasured, Report, latency_row, print_report, spread
from bench.serving import Stamps, await_count, serving, stamping
from bench.workspace import Place, Workspace, fresh_workspace, place_options

CONTENT = b"a line of text\n"


@click.command("inbox-latency")
@click.option("--samples", type=click.IntRange(1), default=300)
@click.option("--durability", type=click.Choice(["full", "process"]), default="full")
@place_options
def inbox_latency(place: Place, samples: int, durability: str) -> None:
    """Milliseconds from a file's rename into an idle inbox to its handler running; also from the close of one that was
    written in place."""
    with fresh_workspace(place, "inbox-latency", durability) as workspace:
        (workspace.root / "outside").mkdir()
        with serving(workspace), stamping(workspace) as stamps:
            renamed = _measure(workspace, stamps, _rename_in, samples)
            written = _measure(workspace, stamps, _write_in_place, samples)
        figures = {"start_ms": spread(renamed), "written_start_ms": spread(written)}
        rows = [
            LATENCY_HEAD,
            latency_row("renamed into the inbox → handler running", renamed),
            latency_row("written in the inbox, closed → handler running", written),
        ]
        print_report(Report("inbox-latency", {"samples": samples, "durability": durability}, figures, rows), place)


@click.command("inbox-storm")
@click.option("--files", type=click.IntRange(1), default=60_000, help="How many files.")
@click.option("--durability", type=click.Choice(["full", "process"]), default="full")
@place_options
def inbox_storm(place: Place, files: int, durability: str) -> None:
    """Files per second, from the first of very many renames until all tasks have completed and lie in the outbox."""
    with fresh_workspace(place, "inbox-storm", durability) as workspace:
        outside = _prepare(workspace.root / "outside", files)
        with serving(workspace) as (_, connection):
            inbox, names = workspace.data / "inbox" / "noop", os.listdir(outside)
            began = time.monotonic()
            for name in names:
                os.rename(f"{outside}/{name}", f"{inbox}/{name}")  # noqa: PTH104 - twice as fast as by `Path`
            dropped = time.monotonic()
            await_count(connection, files, status="completed", source="inbox")
            completed = time.monotonic()
            _await_outbox(workspace.data / "outbox" / "noop", files)
            delivered = time.monotonic()
        _check_nothing_left(workspace, files)
        figures = {
            "tasks_per_second": round(files / (completed - began)),
            "delivered_per_second": round(files / (delivered - began)),
            "drop_seconds": round(dropped - began, 3),
        }
        rows = [
            ("files/s, dropped", f"{files / (dropped - began):,.0f}"),
            ("files/s, tasks completed", f"{figures['tasks_per_second']:,}"),
            ("files/s, results in the outbox", f"{figures['delivered_per_second']:,}"),
        ]
        print_report(Report("inbox-storm", {"files": files, "durability": durability}, figures, rows), place)


Drop = Callable[[Workspace, str], int]


def _measure(workspace: Workspace, stamps: Stamps, drop: Drop, samples: int) -> list[float]:
    found = []
    for number in range(-min(WARM_UP, samples), samples):
        pause()
        name = f"{drop.__name__}{number}.txt"
        dropped = drop(workspace, name)
        found.append((stamps.read(name) - dropped) / 1e6)
    return found[-samples:]


def _rename_in(workspace: Workspace, name: str) -> int:
    outside = workspace.root / "outside" / name
    outside.write_bytes(CONTENT)
    dropped = time.monotonic_ns()
    outside.rename(workspace.data / "inbox" / "stamp" / name)
    return dropped


def _write_in_place(workspace: Workspace, name: str) -> int:
    with (workspace.data / "inbox" / "stamp" / name).open("wb", buffering=0) as file:
        file.write(CONTENT)
        pause()  # long enough for it to have been seen, and not to be ready
        return time.monotonic_ns()


def _prepare(outside: Path, files: int) -> Path:
    outside.mkdir()
    for number in range(files):
        (outside / f"{number}.txt").write_bytes(CONTENT)
    return outside


def _await_outbox(outbox: Path, files: int) -> None:
    """Every result has its folder."""
    deadline = time.monotonic() + 60
    while (found := len(os.listdir(outbox))) < files:
        if time.monotonic() > deadline:
            raise NotMeasured(f"only {found} of {files} results are in the outbox")
        time.sleep(0.1)


def _check_nothing_left(workspace: Workspace, files: int) -> None:
    tasks = len(os.listdir(workspace.data / "tasks"))
    left = [path for path in (workspace.data / "inbox" / "noop").rglob("*") if path.is_file()]
    if tasks != files or left:
        raise NotMeasured(f"{files} files became {tasks} tasks, and {len(left)} were left in the inbox")
