"""The same benchmark again and again: of one checkout, or of two in turn, as ratios.

On a machine with other things to do a figure may be off by half, and by as much for the other checkout a moment later
or earlier. The ratio of two runs side by side, and of that the median over some rounds, is what can be compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click

from bench.child import OWN, Checkout, checkouts, figures_of
from bench.report import Report, Row, print_report
from bench.workspace import Place, fresh_folder, place_options

Found = Mapping[str, float]


def _repeated(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what `pair` and `repeat` have in common. Options of the two come first, then the benchmark with its own."""

    @click.option("--rounds", type=click.IntRange(1), default=5)
    @click.argument("benchmark", nargs=-1, required=True, type=click.UNPROCESSED)
    @wraps(command)
    def with_rounds(**given: Any) -> Any:
        return command(**given)

    return with_rounds


_PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.command(context_settings=_PASS_ON)
@click.option(
    "--with",
    "other",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another checkout.",
)
@_repeated
@place_options
def pair(place: Place, other: Path, rounds: int, benchmark: tuple[str, ...]) -> None:
    """Measure this checkout and another one in turn: `pair --with DIR throughput --tasks 20000`.

    Ratios are this one's figures by the other one's.
    """
    with checkouts(OWN, other) as (here, there), fresh_folder(place, "pair") as folder:
        inner = Place(folder, keep=True)
        found = [_measure_both(here, there, inner, benchmark, round_) for round_ in range(rounds)]
    ratios = {name: [ours[name] / theirs[name] for ours, theirs in found if theirs[name]] for name in _names(found)}
    figures = {
        "ratios": {name: round(statistics.median(values), 3) for name, values in ratios.items() if values},
        "here": {name: statistics.median(ours[name] for ours, _ in found) for name in ratios},
        "there": {name: statistics.median(theirs[name] for _, theirs in found) for name in ratios},
    }
    rows: list[Row] = [("medians", "here", "there", "ratio", "lowest", "highest")]
    rows += [
        (name, f"{figures['here'][name]:,g}", f"{figures['there'][name]:,g}", *_range(values))
        for name, values in ratios.items()
        if values
    ]
    print_report(Report("pair", {"command": " ".join(benchmark), "rounds": rounds}, figures, rows), place)


@click.command(context_settings=_PASS_ON)
@_repeated
@place_options
def repeat(place: Place, rounds: int, benchmark: tuple[str, ...]) -> None:
    """Measure several times, and say the median: `repeat --rounds 3 throughput --tasks 20000`."""
    with checkouts(OWN) as (here,), fresh_folder(place, "repeat") as folder:
        found = [figures_of(here.measure(Place(folder, keep=True), benchmark)) for _ in range(rounds)]
    values = {name: [figures[name] for figures in found] for name in found[0]}
    figures = {name: statistics.median(numbers) for name, numbers in values.items()}
    rows: list[Row] = [("figure", "median", "lowest", "highest")]
    rows += [(name, *(f"{figure:,g}" for figure in _summary(numbers))) for name, numbers in values.items()]
    settings = {"command": " ".join(benchmark), "rounds": rounds}
    print_report(Report("repeat", settings, {"medians": figures}, rows), place)


def _measure_both(
    here: Checkout, there: Checkout, place: Place, benchmark: Sequence[str], round_: int
) -> tuple[Found, Found]:
    """One round; who goes first changes from round to round, in case that matters."""
    order = (here, there) if round_ % 2 == 0 else (there, here)
    found = {checkout: figures_of(checkout.measure(place, benchmark)) for checkout in order}
    return found[here], found[there]


def _names(found: Sequence[tuple[Found, Found]]) -> Iterator[str]:
    """The figures that both have and that are not what was asked for; those are the same in all runs."""
    ours, theirs = found[0]
    for name in ours:
        if name in theirs and len({figures[name] for both in found for figures in both}) > 1:
            yield name


def _summary(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _range(values: Sequence[float]) -> tuple[str, str, str]:
    median, lowest, highest = (f"{value:.2f}" for value in _summary(values))
    return median, lowest, highest
