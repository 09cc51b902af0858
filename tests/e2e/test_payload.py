"""Parameters on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from runner.cli.payload import read_payload


@pytest.mark.parametrize(
    ("settings", "payload"),
    [
        (("width=320",), {"width": 320}),
        (("regions=[[10,10,50,50]]",), {"regions": [[10, 10, 50, 50]]}),
        (("name=Ann",), {"name": "Ann"}),
        (('name="7"',), {"name": "7"}),
        (("text=a=b",), {"text": "a=b"}),
        (("empty=",), {"empty": ""}),
        (("on=true", "off=null"), {"on": True, "off": None}),
        (("x=NaN", "y=1e999"), {"x": "NaN", "y": "1e999"}),
    ],
)
def test_a_value_is_json_where_it_is_json_and_text_elsewhere(
    settings: tuple[str, ...], payload: dict[str, Any]
) -> None:
    """No quotes are needed for words, and numbers are numbers."""
    assert read_payload(None, settings) == payload


def test_single_settings_win_over_the_whole(tmp_path: Path) -> None:
    """`--payload @FILE` for what is always so, `--set` for this time."""
    (tmp_path / "p.json").write_text('{"a": 1, "b": 1}')
    assert read_payload(f"@{tmp_path / 'p.json'}", ("b=2",)) == {"a": 1, "b": 2}


@pytest.mark.parametrize("text", ["[1]", "{", "@missing.json", '{"a": NaN}', '{"a": 1e999}', '{"a": "\udcff"}'])
def test_what_is_no_payload_is_a_matter_of_usage(text: str) -> None:
    """Said before anything is sent."""
    with pytest.raises(click.BadParameter):
        read_payload(text, ())


@pytest.mark.parametrize("setting", ["width", "=3", "name=\udcff"])
def test_what_is_no_setting_is_a_matter_of_usage(setting: str) -> None:
    """A name, an equals sign, a value that is text."""
    with pytest.raises(click.BadParameter):
        read_payload(None, (setting,))
