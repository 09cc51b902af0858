"""`GET /`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.web.conftest import Served, serve


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/json", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"),
        ("*/*", "text/plain; charset=utf-8"),
    ],
)
def test_the_address_alone_tells_what_there_is(idle: Served, accept: str, media_type: str) -> None:
    """As JSON, as a page or as text; and a cache keeps them apart."""
    answer = idle.tcp.get("/", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert answer.headers["vary"] == "Accept"
    assert "/api/v1/tasks" in answer.text


def test_every_link_of_it_leads_somewhere(idle: Served) -> None:
    """A stream is only looked at."""
    for path in idle.tcp.get("/", headers={"Accept": "application/json"}).json()["links"].values():
        assert idle.tcp.head(path).status_code == 200, path


def test_strangers_see_it_and_leave_nothing_behind(tmp_path: Path) -> None:
    """It says nothing of anybody."""
    with serve(tmp_path, auth__mode="token") as served:
        answer = served.tcp.get("/")
    assert answer.status_code == 200
    assert not re.search("set-cookie", str(answer.headers), re.IGNORECASE)
