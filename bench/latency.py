"""How soon a submission is acknowledged, and how soon its handler runs, when there is nothing else to do."""

from __future__ import annotations

import json
import random
import time

import click

from bench.report import LATENCY_HEAD, Report, latency_row, print_report, spread
from bench.serving import SocketConnection, Stamps, serving, stamping
from bench.workspace import Place, fresh_workspace, place_options

WARM_UP = 20
REQUEST = (
    b"POST /api/v1/tasks HTTP/1.1\r\nHost: runner\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n"
    b'{"type":"stamp"}'
)


@click.command()
@click.option("--samples", type=click.IntRange(1), default=500)
@click.option("--durability", type=click.Choice(["full", "process"]), default="full")
@place_options
def latency(place: Place, samples: int, durability: str) -> None:
    """Milliseconds over the Unix socket of an idle runner: submission → handler running, submission → acknowledged."""
    with fresh_workspace(place, "latency", durability) as workspace:
        with serving(workspace) as (_, connection), stamping(workspace) as stamps:
            for _ in range(min(WARM_UP, samples)):
                _sample(connection, stamps)
            found = [_sample(connection, stamps) for _ in range(samples)]
        starts, acks = ([pair[n] for pair in found] for n in range(2))
        figures = {"start_ms": spread(starts), "ack_ms": spread(acks)["p50"], "ack_p99_ms": spread(acks)["p99"]}
        rows = [LATENCY_HEAD, latency_row("handler running", starts), latency_row("acknowledged", acks)]
        print_report(Report("latency", {"samples": samples, "durability": durability}, figures, rows), place)


def _sample(connection: SocketConnection, stamps: Stamps) -> tuple[float, float]:
    """Milliseconds until the handler ran, and until the answer came."""
    pause()
    asked = time.monotonic_ns()
    answer = connection.exchange(REQUEST)
    answered = time.monotonic_ns()
    task = json.loads(answer.partition(b"\r\n\r\n")[2])
    return (stamps.read(task["id"]) - asked) / 1e6, (answered - asked) / 1e6


def pause() -> None:
    """Lets the runner come to rest, for a time that keeps no step with any of its timers."""
    time.sleep(random.uniform(0.005, 0.03))
