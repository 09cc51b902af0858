"""Parameters, as a command line can give them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from runner.cli.exits import CommandFailed, failure_of
from runner.errors import InvalidSubmission

MISSING: Final = "Field required"
"""What pydantic says of a parameter that is not there."""


def read_payload(text: str | None, settings: tuple[str, ...]) -> dict[str, Any]:
    """The parameters that `--payload` and `--set` give; the latter win."""
    payload: Any = {}
    if text is not None:
        payload = _parse(_read(Path(text[1:])) if text.startswith("@") else text)
    if not isinstance(payload, dict):
        raise click.BadParameter("must be a JSON object", param_hint="--payload")
    for setting in settings:
        key, value = read_pair(setting, "--set")
        payload[key] = _value(value)
    return payload


def read_pair(text: str, option: str) -> tuple[str, str]:
    """What KEY=VALUE says. Raises `click.BadParameter`, naming `option`, for anything else."""
    _check_text(text, option)
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"must be KEY=VALUE, not {text!r}", param_hint=option)
    return key, value


@contextmanager
def hinting(type: str) -> Iterator[None]:
    """A refusal of parameters inside says how they are given, too."""
    try:
        yield
    except InvalidSubmission as error:
        failure = failure_of(error)
        raise _hinted(failure, type, [(at.pointer, at.message) for at in error.problems]) from error
    except CommandFailed as failure:
        problems = [(at["pointer"], at["message"]) for at in failure.document.get("problems", ())]
        raise _hinted(failure, type, problems) from failure


def _hinted(failure: CommandFailed, type: str, problems: Sequence[tuple[str, str]]) -> CommandFailed:
    names = [pointer.removeprefix("/payload/") for pointer, _ in problems if pointer.startswith("/payload/")]
    if not names:
        return failure
    missing = [f"--set {name}=…" for name in names if (f"/payload/{name}", MISSING) in problems and "/" not in name]
    give = f"give {' '.join(missing)}; " if missing else ""
    hint = f"{give}`runner submit {type} --help` shows all parameters"
    return CommandFailed(failure.exit, f"{failure.message}\n{hint}", failure.document)


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself: `--set name=Ann` needs no quotes."""
    try:
        return _load(text)
    except ValueError:
        return text


def _parse(text: str) -> Any:
    _check_text(text, "--payload")
    try:
        return _load(text)
    except ValueError as error:
        raise click.BadParameter(f"is not JSON: {error}", param_hint="--payload") from error


def _load(text: str) -> Any:
    """JSON as the runner takes it: Python's own parser knows numbers that JSON does not."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number in JSON")
    return number


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} cannot be read: {error}", param_hint="--payload") from error


def _check_text(text: str, option: str) -> None:
    """Arguments are bytes; JSON holds only text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter("is not UTF-8", param_hint=option) from error
