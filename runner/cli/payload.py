"""Parameters, as a command line can give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


def read_payload(text: str | None, settings: tuple[str, ...]) -> dict[str, Any]:
    """The parameters that `--payload` and `--set` give; the latter win."""
    payload: Any = {}
    if text is not None:
        payload = _parse(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    if not isinstance(payload, dict):
        raise click.BadParameter("must be a JSON object", param_hint="--payload")
    for setting in settings:
        key, value = read_pair(setting, "--set")
        payload[key] = _value(value)
    return payload


def read_pair(text: str, option: str) -> tuple[str, str]:
    """What KEY=VALUE says. Raises `click.BadParameter`, naming `option`, for anything else."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"must be KEY=VALUE, not {text!r}", param_hint=option)
    return key, value


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself: `--set name=Ann` needs no quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"is not JSON: {error}", param_hint="--payload") from error
