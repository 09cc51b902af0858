"""Whether a long past makes the runner slower."""

from __future__ import annotations

import statistics
from pathlib import Path

import click

from bench.child import OWN, checkouts
from bench.filling import past_option
from bench.report import Report, Row, print_report
from bench.workspace import Place, fresh_folder, place_options


class Counts(click.ParamType[tuple[int, ...]]):
    """Numbers with commas between them."""

    name = "n,n,…"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 1000,10000", param, ctx)


@click.command()
@click.option("--finished", type=Counts(), default=(1_000, 10_000, 100_000, 1_000_000))
@click.option("--tasks", type=click.IntRange(1), default=50_000, help="How many tasks each time.")
@click.option("--durability", type=click.Choice(["full", "process"]), default="full")
@past_option
@place_options
def scale(place: Place, finished: tuple[int, ...], tasks: int, durability: str, past: Path | None) -> None:
    """Tasks per second with so many finished ones in the store, by that of an empty store, measured first and last."""
    rates: dict[int, list[int]] = {}
    options: tuple[str, ...] = ("--tasks", str(tasks), "--durability", durability)
    if past is not None:
        options += ("--past", str(past.absolute()))
    with checkouts(OWN) as (here,), fresh_folder(place, "scale") as folder:
        for number in (0, *finished, 0):
            arguments = ("throughput", "--finished", str(number), *options)
            document = here.measure(Place(folder, keep=True), arguments)
            rates.setdefault(number, []).append(document["tasks_per_second"])
    means = {number: statistics.fmean(found) for number, found in rates.items()}
    figures = {
        "tasks_per_second": {str(number): round(rate) for number, rate in means.items()},
        "ratio": {str(number): round(rate / means[0], 3) for number, rate in means.items()},
    }
    rows: list[Row] = [("finished before", "tasks/s", "by that of an empty store")]
    rows += [(f"{number:,}", f"{rate:,.0f}", f"{rate / means[0]:.2f}") for number, rate in means.items()]
    print_report(Report("scale", {"tasks": tasks, "durability": durability}, figures, rows), place)
