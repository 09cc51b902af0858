"""The API describes itself, and all that there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from runner.web.openapi import describe
from runner.web.operations import OPERATIONS
from tests.web.conftest import Served, routes_of, serve
from tests.web.test_tasks import TASKS, finished, submit


@pytest.fixture
def document(idle: Served) -> dict[str, Any]:
    """The description as it is served."""
    found: dict[str, Any] = idle.tcp.get("/openapi.json").json()
    return found


def test_every_route_is_described_and_nothing_else(idle: Served) -> None:
    """With each of its methods."""
    served = {
        (method, route.path.replace(":path}", "}"))
        for route in routes_of(idle)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert set(OPERATIONS) == served


def test_names_are_unique_and_references_lead_somewhere(document: dict[str, Any]) -> None:
    """What a generator of clients needs."""
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    for reference in set(re.findall(r'"\$ref":\s*"#/([^"]+)"', json.dumps(document))):
        found: Any = document
        for part in reference.split("/"):
            found = found[part]
        assert found


def test_a_submission_is_described_by_the_model_that_checks_it(document: dict[str, Any]) -> None:
    """So the two cannot differ; and each handler's parameters stand beside it."""
    schemas = document["components"]["schemas"]
    assert schemas["Submission"]["additionalProperties"] is False
    assert schemas["Submission"]["required"] == ["type"]
    assert schemas["payload.echo"]["properties"]["times"]["type"] == "integer"


def test_a_task_is_as_it_is_described(served: Served) -> None:
    """Every field that is described is there."""
    task = finished(served, submit(served)["id"])
    described = describe({})["components"]["schemas"]["Task"]["properties"]
    assert set(described) <= set(task)


def test_references_inside_a_handlers_schema_stay_inside_it() -> None:
    """Its definitions are not those of the document."""
    inner = {"$defs": {"A": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/A"}}}
    moved = describe({"x": inner})["components"]["schemas"]["payload.x"]
    assert moved["properties"]["a"]["$ref"] == "#/components/schemas/payload.x/$defs/A"


def test_the_page_shows_every_operation_and_loads_nothing(idle: Served) -> None:
    """No script, no font, no other host."""
    answer = idle.tcp.get("/docs")
    assert "<code>POST /api/v1/tasks</code>" in answer.text
    assert not re.search(r"<script|src=|https?://", answer.text)
    assert "style-src 'sha256-" in answer.headers["content-security-policy"]


def test_strangers_are_not_told_of_handlers(tmp_path: Path) -> None:
    """The API is no secret; what runs here may be."""
    with serve(tmp_path, auth__mode="token") as served:
        assert "payload.echo" not in served.tcp.get("/openapi.json").json()["components"]["schemas"]
        assert "payload.echo" in served.socket.get("/openapi.json").json()["components"]["schemas"]
        assert served.tcp.get(TASKS).status_code == 401
