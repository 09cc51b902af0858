"""How things are shown to people."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import click
import pytest

from runner.cli.handlers import _kind
from runner.cli.output import age, safe
from runner.cli.tables import Column, Fit, Table, width_of
from tests.e2e.conftest import ROOT


@pytest.mark.parametrize(
    ("instant", "shown"),
    [
        (None, ""),
        ("2026-01-31T11:59:48Z", "12s"),
        ("2026-01-31T11:57:00Z", "3m"),
        ("2026-01-31T07:00:00Z", "5h"),
        ("2026-01-29T11:00:00Z", "2d"),
        ("2026-01-31T12:00:09Z", "0s"),
    ],
)
def test_an_age_has_one_unit(instant: str | None, shown: str) -> None:
    """The largest that fits; a clock that is ahead shows nothing odd."""
    assert age(instant, datetime(2026, 1, 31, 12, tzinfo=UTC)) == shown


def test_text_is_made_safe_for_a_terminal() -> None:
    """Escapes and changes of direction are shown, lines stay."""
    assert safe("a\x1b[2J\u202eb\nc\td") == "a\\x1b[2J\\u202eb\nc\td"


@pytest.mark.parametrize(
    ("parameter", "shown"),
    [
        ({"type": "integer"}, "integer"),
        ({}, "any"),
        ({"const": "x"}, "x"),
        ({"enum": ["a", "b"]}, "a | b"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string | null"),
        ({"type": "array", "items": {"$ref": "#/$defs/Box"}}, "array of {x, y}"),
    ],
)
def test_the_shape_of_a_parameter_fits_a_line(parameter: dict[str, object], shown: str) -> None:
    """From its JSON schema, references followed."""
    assert _kind(parameter, {"Box": {"type": "object", "properties": {"x": {}, "y": {}}}}) == shown


TASKS = Table(
    [Column("id"), Column("status"), Column("file", Fit.CUT), Column("", Fit.CUT)],
    [
        ["a" * 20, "failed", "holiday in the mountains.mp4", "it broke"],
        ["b" * 20, "completed", "漢字漢字漢字漢字.txt", ""],
    ],
)


@pytest.mark.parametrize(
    ("room", "shown"),
    [
        (200, f"{'a' * 20}  failed     holiday in the mountains.mp4  it broke"),
        (55, f"{'a' * 20}  failed     holiday in…   it broke"),
        (40, f"{'a' * 20}  failed"),
    ],
)
def test_a_table_fits_its_terminal(room: int, shown: str) -> None:
    """The widest is cut first; what is too narrow to be of use lies below its row."""
    lines = [click.unstyle(line) for line in TASKS.lines(room)]
    assert lines[1] == shown
    assert all(width_of(line) <= room for line in lines)
    assert ("  holiday in the mountains.mp4  it broke" in lines) == (room == 40)


def test_text_goes_on_below_itself() -> None:
    """Nothing of an explanation is lost."""
    table = Table([Column("check"), Column("", Fit.WRAP)], [["disk", "every task file can be read"]])
    assert list(table.lines(20))[1:] == ["disk   every task", "       file can be", "       read"]


def test_help_comes_at_once() -> None:
    """It imports neither the models nor the HTTP client."""
    modules = "import sys; from runner.cli.entry import run\ntry: run(['--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", modules], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"pydantic", "httpx2", "rich", "starlette", "asyncio"} & set(done.stdout.split())
