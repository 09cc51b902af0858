"""What a measurement found, as a table for people and a line of JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from bench.machine import describe_machine, find_disturbance, stolen_percent, yardstick_ms
from bench.workspace import Place

Row = tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """`settings` is what was asked, `figures` what was found; both go into the JSON, `rows` into the table."""

    benchmark: str
    settings: Mapping[str, Any]
    figures: Mapping[str, Any]
    rows: Sequence[Row]


class NotMeasured(click.ClickException):
    """The runner did not do what was to be measured, or not all of it."""


def print_report(report: Report, place: Place) -> None:
    """The table, and last one line of JSON."""
    print(describe_machine(place.directory))
    if (disturbance := find_disturbance()) is not None:
        print(disturbance)
    if stolen := stolen_percent():
        print(f"{stolen:g} % of the processors' time went to others on the same host")
    print_rows(report.rows)
    machine = {"stolen_percent": stolen, "yardstick_ms": yardstick_ms()}
    document = {"benchmark": report.benchmark, **report.settings, **report.figures, **machine}
    print(json.dumps(document), flush=True)


def print_rows(rows: Sequence[Row]) -> None:
    """Columns, the first one to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print("  ".join(cells).rstrip())


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(milliseconds: Sequence[float]) -> dict[str, float]:
    """The figures that a latency is told by."""
    return {"p50": round(percentile(milliseconds, 50), 3), "p99": round(percentile(milliseconds, 99), 3)}


def latency_row(name: str, milliseconds: Sequence[float]) -> Row:
    """The same as a row of a table, with the worst case."""
    worst = max(milliseconds)
    return (name, *(f"{figure:.2f}" for figure in (*spread(milliseconds).values(), worst)))


LATENCY_HEAD: Row = ("milliseconds", "p50", "p99", "max")
