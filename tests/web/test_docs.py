"""`docs/http.md` says all that there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.routing import Route, WebSocketRoute

from runner.web.problems import STATUS_OF
from tests.web.conftest import Served, routes_of

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")


def test_every_route_is_on_the_page(idle: Served) -> None:
    """With each of its methods."""
    served = set()
    for route in routes_of(idle):
        if isinstance(route, WebSocketRoute):
            assert f"`{route.path}`" in PAGE
            continue
        assert isinstance(route, Route)
        path = route.path.replace(":path}", "}")
        served |= {(method, path) for method in route.methods or () if method != "HEAD"}
    found = re.findall(r"^\| `([A-Z]+) (/\S*?)`", PAGE, re.MULTILINE)
    assert {(method, path.partition("?")[0]) for method, path in found} == served


def test_every_status_of_an_error_is_on_the_page() -> None:
    """500 is a defect, and no part of a contract."""
    documented = {int(status) for status in re.findall(r"^\| (\d{3}) \|", PAGE, re.MULTILINE)}
    assert set(STATUS_OF.values()) - {500} <= documented
