"""How much memory a serving runner takes, idle and with very many tasks waiting."""

from __future__ import annotations

import time
from typing import Final

import click

from bench.machine import peak_mb, resident_mb
from bench.report import NotMeasured, Report, print_report
from bench.serving import PATIENCE_SECONDS, Serving, SocketConnection, count_tasks, serving, submit_many
from bench.workspace import Place, fresh_workspace, place_options

SETTLE_SECONDS: Final = 0.5
SLOTS: Final = 8


@click.command()
@click.option("--pending", type=click.IntRange(SLOTS + 1), default=100_000, help="How many tasks are made to wait.")
@place_options
def memory(place: Place, pending: int) -> None:
    """Megabytes (10⁶) resident: the serving process, and beside it the scribe process that writes its files."""
    with fresh_workspace(place, "memory") as workspace, serving(workspace) as (server, connection):
        time.sleep(SETTLE_SECONDS)
        idle, idle_scribe = resident_mb(server.pid), server.scribe_mb()
        submit_many(connection, "hold", pending)
        full, peak, full_scribe = _loaded(server, connection, pending)
        added = (full - idle) * 100_000 / pending
        figures = {
            "rss_mb": round(idle, 1),
            "scribe_rss_mb": round(idle_scribe, 1),
            "pending_rss_mb": round(full, 1),
            "pending_peak_mb": round(peak, 1),
            "pending_scribe_rss_mb": round(full_scribe, 1),
            "rss_mb_per_100000_pending": round(added, 1),
        }
        rows = [
            ("MB", "serving process", "scribe process"),
            ("idle", f"{idle:.0f}", f"{idle_scribe:.0f}"),
            (f"{pending:,} tasks waiting", f"{full:.0f}", f"{full_scribe:.0f}"),
            ("most while they came in", f"{peak:.0f}", "–"),
            ("for each 100,000 waiting", f"{added:.0f}", "–"),
        ]
        print_report(Report("memory", {"pending": pending}, figures, rows), place)


def _loaded(server: Serving, connection: SocketConnection, pending: int) -> tuple[float, float, float]:
    """The memory once every waiting task has its file and the slots are taken."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while connection.call("GET", "/health")["details"]["files_behind"]:
        if time.monotonic() > deadline:
            raise NotMeasured("the task files are not written")
        time.sleep(0.1)
    time.sleep(SETTLE_SECONDS)
    waiting, running = (count_tasks(connection, status=status) for status in ("pending", "processing"))
    if (waiting, running) != (pending - SLOTS, SLOTS):
        raise NotMeasured(f"{waiting} tasks wait and {running} run, of {pending}")
    return resident_mb(server.pid), peak_mb(server.pid), server.scribe_mb()
