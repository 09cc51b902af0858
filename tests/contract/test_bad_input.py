"""Whatever is sent to a dialect, the answer is one of its own, and never a defect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Final

import pytest
from starlette.routing import Route

from runner.dialects.listeners import MAKERS, make_dialects
from runner.web.app import Site
from tests.contract.conftest import Spoken, speaking

NAMES: Final = ("x", "..%2f..%2fx", "%00", "%ff.png", "A" * 300 + ".png", "00000000-0000-4000-8000-000000000000")
QUERIES: Final = ("", "?page=-1&size=x&limit=0", "?status=%00&queue=%00&task_id=%00", "?start_id=9999999999999999999-1")
BODIES: Final = (
    b"",
    b"{}",
    b"[]",
    b'"x"',
    b"{",
    b"\xff",
    b'{"task_id": [], "version": "x", "syncId": 1, "cleanup_type": [], "regions": 1, "config": "x", "type": 1}',
    b'{"task_id": "../x", "cleanup_type": "\\u0000", "task_type": {}, "pagination": 1, "input_dir": 1, "username": 1}',
    b'{"type": "echo", "payload": {}, "timeout": "1e400s", "process_at": "9999-12-31T23:59:59-23:59"}',
)


@pytest.fixture(scope="module")
def plagued(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    """A runner for nothing else."""
    with speaking(tmp_path_factory.mktemp("plagued")) as spoken:
        yield spoken


def requests_to(route: Route) -> Iterator[tuple[str, str, bytes]]:
    """Odd requests to a route: method, path and body."""
    names = NAMES if "{" in route.path else ("",)
    for method in sorted((route.methods or set()) - {"HEAD"}):
        bodies = (b"",) if method == "GET" else BODIES
        for number, name in enumerate(names):
            path = re.sub(r"\{[^}]*\}", name, route.path) + QUERIES[number % len(QUERIES)]
            yield from ((method, path, body) for body in bodies)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_no_request_meets_a_defect(plagued: Spoken, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Odd names, parameters and bodies: all of them are somebody's fault, and it is not ours."""
    site = Site(plagued.service, plagued.service.config)
    dialect = next(dialect for dialect in make_dialects(site) if dialect.name == name)
    routes = [route for route in (*dialect.own_routes, *dialect.routes) if isinstance(route, Route)]
    for method, path, body in chain.from_iterable(map(requests_to, routes)):
        for kind in ("application/json", "multipart/form-data; boundary=x") if body else ("application/json",):
            plagued.own[name].request(method, path, content=body, headers={"Content-Type": kind})
    assert [record.getMessage() for record in caplog.records if record.name == "runner.web.problems"] == []
