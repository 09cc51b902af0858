"""How things are shown to people."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from runner.cli.handlers import _kind
from runner.cli.output import age, safe
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


def test_help_comes_at_once() -> None:
    """It imports neither the models nor the HTTP client."""
    modules = "import sys; from runner.cli.entry import run\ntry: run(['--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", modules], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"pydantic", "httpx2", "rich", "starlette", "asyncio"} & set(done.stdout.split())
