"""What a check found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SHOWN = 3
"""So many of the things that are not well are named in the text; `items` has all of them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it is well, and what was seen. `items` are the paths or ids that are not well.

    `remedy` says what a repair does, and `repair` does it (it raises `OSError`); without them a person has to.
    """

    check: str
    is_well: bool
    text: str
    items: tuple[str, ...] = ()
    remedy: str = ""
    repair: Callable[[], None] | None = None


def listed(what: str, items: Sequence[str]) -> str:
    """`items` in one line: how many, what they are, and the first few of them."""
    more = ", …" if len(items) > SHOWN else ""
    return f"{len(items)} {what}: {', '.join(items[:SHOWN])}{more}"
