"""Tables: columns side by side, cut or folded to what a terminal can show."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import zip_longest
from typing import Final

import click

from runner.cli.output import safe

STYLES: Final[Mapping[str, str]] = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "processing": "cyan",
}
"""The colours of cells that say this."""
BOLD: Final[Mapping[str, str]] = {"": "bold"}
"""For whatever has no style of its own."""

WIDE: Final = 10_000
"""Columns of a terminal that is none."""
GAP: Final = 2
LEAST: Final = 12
"""A column of less than that is of no use."""


class Fit(Enum):
    """What becomes of a column where the terminal is too narrow for all: `WHOLE` stays as it is, `CUT` ends in … and
    `WRAP` goes on in the next line."""

    WHOLE = auto()
    CUT = auto()
    WRAP = auto()


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and how it is made to fit."""

    name: str
    fit: Fit = Fit.WHOLE


def print_table(columns: Sequence[Column | str], rows: Iterable[Sequence[object]]) -> None:
    """A table; columns in which nothing is are left out. It is as wide as it needs where no terminal sets its width."""
    known = [Column(one) if isinstance(one, str) else one for one in columns]
    texts = [[" ".join(safe(str(cell)).split()) for cell in row] for row in rows]
    filled = [place for place in range(len(known)) if any(row[place] for row in texts)]
    table = Table([known[place] for place in filled], [[row[place] for place in filled] for row in texts])
    for line in table.lines(shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE):
        click.echo(line)


class Table:
    """Text in columns; widths are in cells of a terminal, of which an ideograph takes two."""

    def __init__(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        self._columns = columns
        self._rows = rows
        heads = [column.name for column in columns]
        self._widths = [max(map(width_of, texts)) for texts in zip(heads, *rows, strict=True)]
        self._flexible = [place for place, column in enumerate(columns) if column.fit is not Fit.WHOLE]

    def lines(self, room: int) -> Iterator[str]:
        """The table in lines of at most `room` cells, if that can be. What cannot be made to fit into its columns lies
        below its row."""
        widths = self._fitted(room)
        is_stacked = any(widths[place] < min(LEAST, self._widths[place]) for place in self._flexible)
        shown = [place for place in range(len(widths)) if not (is_stacked and place in self._flexible)]
        if any(self._columns[place].name for place in shown):
            yield from _beside(
                [[self._columns[place].name] for place in shown], [widths[place] for place in shown], BOLD
            )
        for row in self._rows:
            cells = [_fold(row[place], widths[place], self._columns[place].fit) for place in shown]
            yield from _beside(cells, [widths[place] for place in shown], STYLES)
            below = "  ".join(row[place] for place in self._flexible if row[place]) if is_stacked else ""
            if below:
                yield f"  {_fold(below, room - 2, Fit.CUT)[0]}"

    def _fitted(self, room: int) -> list[int]:
        """The widths, the widest of those that may shrink made narrower until all fit."""
        widths = list(self._widths)
        while sum(widths) + GAP * (len(widths) - 1) > room:
            widest = max(self._flexible, key=lambda place: widths[place], default=None)
            if widest is None or widths[widest] <= 1:
                break
            widths[widest] -= 1
        return widths


def width_of(text: str) -> int:
    """How many cells of a terminal a line takes."""
    from rich.cells import cell_len

    return cell_len(text)


def _fold(text: str, width: int, fit: Fit) -> list[str]:
    """A cell's lines."""
    if fit is Fit.WHOLE or width_of(text) <= width:
        return [text]
    if fit is Fit.WRAP:
        return textwrap.wrap(text, width, break_on_hyphens=False)
    from rich.cells import set_cell_size

    return [set_cell_size(text, width - 1).rstrip() + "…"]


def _beside(cells: Sequence[Sequence[str]], widths: Sequence[int], styles: Mapping[str, str]) -> Iterator[str]:
    """The lines of one row."""
    for texts in zip_longest(*cells, fillvalue=""):
        parts = (
            _styled(text, styles.get(text, styles.get("", ""))) + " " * (width - width_of(text))
            for text, width in zip(texts, widths, strict=True)
        )
        yield (" " * GAP).join(parts).rstrip()


def _styled(text: str, style: str) -> str:
    if not text or not style:
        return text
    return click.style(text, bold=True) if style == "bold" else click.style(text, fg=style)
