"""How soon a runner with a long past is ready again, after a clean stop and after kill -9."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from bench.filling import past_option, workspace_with_past
from bench.report import NotMeasured, Report, print_report
from bench.serving import Serving, await_count, count_tasks, submit_many
from bench.workspace import Place, Workspace, place_options


@click.command()
@click.option("--finished", type=click.IntRange(0), default=1_000_000, help="Finished tasks in the store.")
@click.option("--pending", type=click.IntRange(1), default=10_000, help="Tasks that wait, and go on waiting.")
@click.option("--unsettled", type=click.IntRange(0), default=10_000, help="Tasks that end just before each kill -9.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="How often each kind of restart is timed.")
@click.option("--cold", is_flag=True, help="Empty the system's file caches before each start, as root.")
@past_option
@place_options
def restart(
    place: Place, finished: int, pending: int, unsettled: int, rounds: int, cold: bool, past: Path | None
) -> None:
    """Seconds from the start of the process until `/ready` says yes.

    The journal that a kill leaves holds three records of each unsettled task.
    """
    with workspace_with_past(place, "restart", finished, past) as (workspace, filled):
        timed = _Restarts(workspace, unsettled, drop_caches if cold else _keep_caches)
        timed.prepare(pending)
        seconds: dict[str, list[float]] = {"clean": [], "killed": []}
        for _ in range(rounds):
            seconds["clean"].append(timed.restart_clean())
            seconds["killed"].append(timed.restart_killed())
        if past is not None:
            timed.tidy()
        figures = {
            "ready_seconds": {name: round(statistics.median(found), 3) for name, found in seconds.items()},
            "journal_mb": round(timed.journal_mb, 1),
            "fill_seconds": round(filled, 1),
        }
        settings = {"finished": finished, "pending": pending, "unsettled": unsettled, "rounds": rounds, "cold": cold}
        rows = [
            ("seconds until ready", "median", "longest"),
            _row("after a clean stop", seconds["clean"]),
            _row(f"after kill -9, journal of {timed.journal_mb:.0f} MB", seconds["killed"]),
        ]
        print_report(Report("restart", settings, figures, rows), place)


class _Restarts:
    """Starts and ends a runner; between the calls it is stopped. Tasks of type `hold` keep half of its slots."""

    def __init__(self, workspace: Workspace, unsettled: int, before_start: Callable[[], None]) -> None:
        self._workspace = workspace
        self._completed = 0
        self._pending = 0
        self._unsettled = unsettled
        self._before_start = before_start
        self.journal_mb = 0.0
        text = workspace.config_file.read_text().replace("{global: 8}", "{global: 8, per_type: {hold: 4}}")
        workspace.config_file.write_text(text)

    def prepare(self, pending: int) -> None:
        """So many tasks wait from here on."""
        with Serving(self._workspace) as server:
            server.await_ready()
            with contextlib.closing(server.connect()) as connection:
                submit_many(connection, "hold", pending)
                self._pending = count_tasks(connection, type="hold", status="pending,processing")
                self._completed = count_tasks(connection, type="noop", status="completed")
            server.stop()

    def tidy(self) -> None:
        """None waits any more."""
        with Serving(self._workspace) as server:
            server.await_ready()
            with contextlib.closing(server.connect()) as connection:
                while count_tasks(connection, type="hold", status="pending,processing"):
                    connection.call("POST", "/api/v1/tasks:cancel", {"type": "hold", "status": "pending,processing"})
            server.stop()

    def restart_clean(self) -> float:
        """Seconds to start after a clean stop."""
        with self._start() as server:
            seconds = server.await_ready()
            self._check(server)
            server.stop()
        return seconds

    def restart_killed(self) -> float:
        """Seconds to start after work and a kill."""
        with self._start() as server:
            server.await_ready()
            with contextlib.closing(server.connect()) as connection:
                submit_many(connection, "noop", self._unsettled)
                self._completed += self._unsettled
                await_count(connection, self._completed, type="noop", status="completed")
            server.kill()
        self.journal_mb = _size(self._workspace.data / "journal") / 1e6
        with self._start() as server:
            seconds = server.await_ready()
            self._check(server)
            server.stop()
        return seconds

    def _start(self) -> Serving:
        self._before_start()
        return Serving(self._workspace)

    def _check(self, server: Serving) -> None:
        """Nothing is lost: what waited waits or runs, what had completed has completed."""
        with contextlib.closing(server.connect()) as connection:
            live = count_tasks(connection, type="hold", status="pending,processing")
            completed = count_tasks(connection, type="noop", status="completed")
        if (live, completed) != (self._pending, self._completed):
            raise NotMeasured(f"{live} of {self._pending} tasks wait, {completed} of {self._completed} have completed")


def drop_caches() -> None:
    """The next reads come from the disk."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as error:
        raise click.UsageError(f"the caches cannot be emptied: {error.strerror}; it needs Linux and root") from error


def _keep_caches() -> None:
    """What has been read or written lately is in memory."""


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _row(name: str, seconds: Sequence[float]) -> tuple[str, str, str]:
    return name, f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"
