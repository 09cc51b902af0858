"""How long lists take when there is very much to list."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

import click

from bench.filling import USERS, past_option, workspace_with_past
from bench.report import LATENCY_HEAD, NotMeasured, Report, latency_row, print_report, spread
from bench.serving import SocketConnection, serving
from bench.workspace import Place, place_options

SIZE: Final = 50
FILTERED: Final = f"user=user1&status=completed&size={SIZE}"
"""The query that `list_ms` is about."""

QUERIES: Final = {
    f"newest {SIZE} of a user and a status": FILTERED,
    f"newest {SIZE}": f"size={SIZE}",
    f"newest {SIZE} that failed": f"status=failed&size={SIZE}",
    f"newest {SIZE} of a type and a status": f"type=noop&status=failed&size={SIZE}",
    f"newest {SIZE} of a user, in two statuses": f"user=user1&status=completed,failed&size={SIZE}",
}


@click.command("list")
@click.option("--finished", type=click.IntRange(1), default=1_000_000, help="Finished tasks in the store.")
@click.option("--samples", type=click.IntRange(1), default=200, help="How often each list is asked for.")
@past_option
@place_options
def list_(place: Place, finished: int, samples: int, past: Path | None) -> None:
    """Milliseconds for a list through the socket, tasks and all."""
    with workspace_with_past(place, "list", finished, past) as (workspace, filled):
        with serving(workspace) as (_, connection):
            found = {name: _measure(connection, query, samples) for name, query in QUERIES.items()}
            deep = _deep_query(connection, finished)
            found[f"{SIZE} from the middle of the list"] = _measure(connection, deep, samples)
            found["number of a user's tasks in a status"] = [
                _time(connection, f"/api/v1/tasks/count?{FILTERED}") for _ in range(min(samples, 20))
            ]
            _check(connection, finished)
        first, *_ = found.values()
        figures = {
            "list_ms": spread(first)["p50"],
            "list_p99_ms": spread(first)["p99"],
            "queries_ms": {name: spread(times)["p50"] for name, times in found.items()},
            "fill_seconds": round(filled, 1),
        }
        rows = [LATENCY_HEAD, *(latency_row(name, times) for name, times in found.items())]
        print_report(Report("list", {"finished": finished, "samples": samples}, figures, rows), place)


def _measure(connection: SocketConnection, query: str, samples: int) -> list[float]:
    return [_time(connection, f"/api/v1/tasks?{query}") for _ in range(samples)]


def _time(connection: SocketConnection, path: str) -> float:
    began = time.perf_counter()
    connection.call("GET", path)
    return (time.perf_counter() - began) * 1000


def _deep_query(connection: SocketConnection, finished: int) -> str:
    """A page that begins at the task in the middle."""
    middle = f"size=1&page={finished // 2}"
    (task,) = connection.call("GET", f"/api/v1/tasks?{middle}")
    return f"created_before={quote(task['created_at'])}&size={SIZE}"


def _check(connection: SocketConnection, finished: int) -> None:
    tasks = connection.call("GET", f"/api/v1/tasks?{FILTERED}")
    expected = min(SIZE, sum(1 for n in range(1, finished, USERS)))
    if len(tasks) != expected or {(task["user_id"], task["status"]) for task in tasks} != {("user1", "completed")}:
        raise NotMeasured(f"the list has {len(tasks)} tasks instead of {expected}, or others than were asked for")
