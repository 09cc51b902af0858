"""Logs: one safe line for each record, as JSON or for people."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from runner.config import LogConfig
from runner.logs import set_up_logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leaves logging as it was found."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def logged_as_json(message: str, *args: object, **extra: Any) -> dict[str, Any]:
    """What one warning becomes in the JSON log."""
    stream = io.StringIO()
    set_up_logs(LogConfig(format="json"), stream)
    logging.getLogger("runner.test").warning(message, *args, **extra)
    (line,) = stream.getvalue().splitlines()
    record: dict[str, Any] = json.loads(line)
    return record


def test_a_record_is_one_json_object() -> None:
    """A machine finds level, place, time and text under fixed names."""
    record = logged_as_json("took %s", "a.txt")
    assert record["event"] == "took a.txt"
    assert (record["level"], record["logger"]) == ("warning", "runner.test")
    assert record["timestamp"].endswith("Z")


@pytest.mark.parametrize("text", ["a\nlevel=error", "\x1b[2J", "\u202egpj.exe", "a\u2028b", "\x9b2J"])
@pytest.mark.parametrize("format", ["json", "console"])
def test_no_message_can_forge_a_line_or_move_the_cursor(text: str, format: str) -> None:
    """Control and direction characters of a hostile name arrive escaped."""
    stream = io.StringIO()
    set_up_logs(LogConfig.model_validate({"format": format}), stream)
    logging.getLogger("runner.test").warning("took %s", text)
    (line,) = stream.getvalue().rstrip("\n").split("\n")
    assert not any(character in line for character in "\x1b\x9b\u202e\u2028\n")


def test_a_long_message_is_cut() -> None:
    """One record cannot fill the disk."""
    record = logged_as_json("x" * 5000)
    assert len(record["event"]) < 1100
    assert record["event"].endswith("(3976 more)")


def test_a_traceback_keeps_its_lines() -> None:
    """An unexpected error is logged whole."""
    try:
        raise ValueError("boom")
    except ValueError:
        record = logged_as_json("failed", exc_info=True)
    assert record["exception"].splitlines()[-1] == "ValueError: boom"


def test_credentials_do_not_arrive_and_context_does() -> None:
    """A bound request id is on each record; a cookie never is."""
    with structlog.contextvars.bound_contextvars(request_id="r1", cookie="secret"):
        record = logged_as_json("hello")
    assert (record["request_id"], record["cookie"]) == ("r1", "[redacted]")


def test_what_cannot_be_rendered_is_said_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that renders is imported late, and no descriptor may be left then."""
    stream = io.StringIO()
    set_up_logs(LogConfig(format="json"), stream)
    monkeypatch.setitem(sys.modules, "structlog", None)
    logging.getLogger("runner.test").warning("the disk is full\x1b[2J")
    monkeypatch.undo()
    logging.getLogger("runner.test").warning("it is not")
    first, second = stream.getvalue().splitlines()
    assert (first, json.loads(second)["event"]) == ("the disk is full\\x1b[2J", "it is not")


def test_libraries_speak_from_warnings_on() -> None:
    """A server's start-up chatter is not ours."""
    stream = io.StringIO()
    set_up_logs(LogConfig(level="debug"), stream)
    logging.getLogger("uvicorn.error").info("Started server process")
    assert stream.getvalue() == ""
