"""What commands print: results on stdout, everything else on stderr.

Whatever comes from tasks or from files is made safe for a terminal first.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console

_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def print_json(value: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_error(message: str) -> None:
    """A failure, in red where there are colours."""
    click.echo(click.style("error: ", fg="red", bold=True) + safe(message), err=True)


def print_note(message: str) -> None:
    """Something to know beside the result."""
    click.echo(click.style(safe(message), dim=True), err=True)


def safe(text: str) -> str:
    r"""`text` with control characters, changes of direction and bytes that are no text shown as `\x1b`; lines and tabs
    stay."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def print_fields(fields: Mapping[str, object]) -> None:
    """Names and values, one a line; what is empty is left out."""
    shown = {name: value for name, value in fields.items() if value not in (None, "", [], {}, ())}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        click.echo(f"{name:<{width}}  {safe(text)}")


def console(*, stderr: bool = False) -> Console:
    """Where rich things are printed."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, emoji=False, markup=False)


def is_watched() -> bool:
    """Whether a person sees stderr change."""
    return sys.stderr.isatty()


def age(instant: str | None, now: datetime | None = None) -> str:
    """How long ago that was, in its largest unit: "12s", "3m", "5h", "2d"."""
    if not instant:
        return ""
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(instant)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def took(task: Mapping[str, Any]) -> str:
    """How long the last attempt ran, or has been running."""
    attempt = task["attempts"][-1] if task["attempts"] else None
    if attempt is None:
        return ""
    end = datetime.fromisoformat(attempt["ended_at"]) if attempt["ended_at"] else datetime.now(UTC)
    from runner.units import format_duration

    seconds = (end - datetime.fromisoformat(attempt["started_at"])).total_seconds()
    return f"{seconds:.1f}s" if seconds < 60 else format_duration(round(seconds))
