"""Which requests are in the log."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.config import LogConfig
from runner.logs import set_up_logs
from runner.web.access import AccessLog, Which
from tests.web.conftest import serve

SCOPE = {"type": "http", "method": "GET", "path": "/live", "request_id": "r1", "client": ("192.0.2.1", 5)}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged, as JSON lines."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    set_up_logs(LogConfig(format="json"), stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("which", "logged"), [("off", []), ("failures", [403, 429, 503]), ("all", [200, 403, 404, 429, 499, 503])]
)
def test_the_setting_says_which(lines: io.StringIO, which: Which, logged: list[int]) -> None:
    """All are counted."""
    counted: list[int] = []
    log = AccessLog(which, lambda _, status: counted.append(status))
    for status in (200, 403, 404, 429, None, 503):
        log.note(SCOPE, status, 0.5)
    assert [json.loads(line)["status"] for line in lines.getvalue().splitlines()] == logged
    assert counted == [200, 403, 404, 429, 499, 503]


def test_a_line_has_the_id_that_the_client_was_told(tmp_path: Path, lines: io.StringIO) -> None:
    """And who, what and how long; never a query or a header, in which secrets are."""
    with serve(tmp_path, log__requests="all") as served:
        answer = served.tcp.get("/api/v1/tasks?text=secret", headers={"Authorization": "Bearer secret"})
    (line,) = (json.loads(line) for line in lines.getvalue().splitlines() if '"request"' in line)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/api/v1/tasks", 200)
    assert (line["user_id"], line["address"]) == ("local", "127.0.0.1")
    assert line["seconds"] > 0
    assert "secret" not in lines.getvalue()


def test_a_path_cannot_forge_a_line(lines: io.StringIO) -> None:
    """Line breaks and control characters arrive escaped."""
    AccessLog("all", lambda *_: None).note({**SCOPE, "path": '/a\n{"level": "critical"}\x1b[31m'}, 200, 0.1)
    (line,) = lines.getvalue().splitlines()
    assert "\\n" in json.loads(line)["path"]
    assert "\x1b" not in line
