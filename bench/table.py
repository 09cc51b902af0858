"""Everything that the project promises about speed and memory, measured one after the other."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import click

from bench.child import OWN, checkouts
from bench.report import Report, Row, print_report
from bench.workspace import Place, fresh_folder, place_options


@dataclass(frozen=True)
class Goal:
    """One promise: how to measure it, where in the JSON it is found, and what it should be. Counts are in braces, so
    that all can be made smaller at once."""

    title: str
    command: str
    figures: tuple[str, ...]
    goal: str


GOALS: Final = (
    Goal("tasks/s, `full`", "throughput --tasks {50000} --durability full", ("tasks_per_second",), "≥ 6,000"),
    Goal("tasks/s, `process`", "throughput --tasks {50000} --durability process", ("tasks_per_second",), "no slower"),
    Goal(
        "tasks/s with a million finished, by that of an empty store",
        "scale --tasks {50000} --finished {1000000}",
        ("ratio.{1000000}",),
        "≥ 0.8",
    ),
    Goal(
        "submission over the socket → handler running, p50 / p99 ms",
        "latency",
        ("start_ms.p50", "start_ms.p99"),
        "≤ 2 / 5",
    ),
    Goal("acknowledged in `full`, p50 ms", "latency", ("ack_ms",), "≤ 2"),
    Goal(
        "rename into the inbox → handler running, p50 / p99 ms",
        "inbox-latency",
        ("start_ms.p50", "start_ms.p99"),
        "≤ 5 / 12",
    ),
    Goal("60,000 files dropped at once, tasks/s", "inbox-storm --files {60000}", ("tasks_per_second",), "–"),
    Goal(
        "ready with a million finished and 10,000 pending, clean / killed s",
        "restart --finished {1000000} --pending {10000} --unsettled {10000}",
        ("ready_seconds.clean", "ready_seconds.killed"),
        "≤ 2 / 2",
    ),
    Goal("newest 50 of a million by user and status, ms", "list --finished {1000000}", ("list_ms",), "≤ 10"),
    Goal("idle memory, MB", "memory --pending {100000}", ("rss_mb",), "≤ 70"),
    Goal("each 100,000 pending tasks, MB", "memory --pending {100000}", ("rss_mb_per_100000_pending",), "≤ 150"),
)


@click.command()
@click.option("--part", type=click.IntRange(1), default=1, help="Only one in so many of everything: does it all work?")
@click.option("--only", default="", help="Only commands that begin with this.")
@place_options
def table(place: Place, part: int, only: str) -> None:
    """All benchmarks, as the table of README.md. Takes about a quarter of an hour."""
    goals = [goal for goal in GOALS if goal.command.startswith(only)]
    documents: dict[str, Mapping[str, Any]] = {}
    with checkouts(OWN) as (here,), fresh_folder(place, "table") as folder:
        for command in dict.fromkeys(_smaller(goal.command, part) for goal in goals):
            print(f"… {command}", file=sys.stderr, flush=True)
            documents[command] = here.measure(Place(folder, keep=True), command.split())
    rows: list[Row] = [("| what |", "measured |", "goal |"), ("|---|", "---:|", "---:|")]
    for goal in goals:
        document = documents[_smaller(goal.command, part)]
        found = " / ".join(f"{_dig(document, _smaller(path, part)):,}" for path in goal.figures)
        rows.append((f"| {goal.title} |", f"{found} |", f"{goal.goal} |"))
    print_report(Report("table", {"part": part}, {"documents": list(documents.values())}, rows), place)


def _smaller(text: str, part: int) -> str:
    """The text with its numbers in braces divided."""
    before, brace, rest = text.partition("{")
    if not brace:
        return before
    number, _, after = rest.partition("}")
    return f"{before}{max(int(number) // part, 10)}{_smaller(after, part)}"


def _dig(document: Mapping[str, Any], path: str) -> Any:
    found: Any = document
    for key in path.split("."):
        found = found[key]
    return found
