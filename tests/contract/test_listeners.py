"""Which dialect a request is for: by its path and method, or by the port that it came in by."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.config import Config
from runner.dialects import video_in_chinese
from runner.dialects.dialect import Dialect
from runner.dialects.listeners import MAKERS, Directory, listening_for_dialects, make_dialects
from runner.errors import ConfigError
from runner.web.app import Site
from runner.web.problems import Fault
from runner.web.routing import route
from tests.contract.conftest import Spoken, speaking

PAGE = "http://localhost:3000"


async def nothing(_request: Request) -> Response:
    """An endpoint that is never asked."""
    raise NotImplementedError


def dialect(name: str, *routes: Any, prefixes: tuple[str, ...] = ()) -> Dialect:
    """A dialect that tells its name with each fault."""

    def tell(_request: Request, fault: Fault) -> Response:
        return Response(to_json(name), fault.status)

    return Dialect(name=name, routes=routes, envelope=tell, prefixes=prefixes)


def asked(directory: Directory, method: str, path: str, **headers: str) -> str | None:
    """The name of the dialect that a request is for."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    manners = directory.find(scope)
    if manners is None:
        return None
    answer = manners.envelope(Request(scope), Fault(400, "", "", None, "", {}))
    return bytes(answer.body).decode().strip('"')


@pytest.fixture
def directory() -> Directory:
    """Two dialects that share paths."""
    one = dialect("one", route("/api/tasks/{id}", PUT=nothing), route("/api/tasks", POST=nothing), prefixes=("/one/",))
    two = dialect("two", route("/api/tasks/{id}", DELETE=nothing), route("/api/tasks/list", GET=nothing))
    own = (route("/health", GET=nothing), route("/api/v1/tasks", GET=nothing))
    return Directory(own, (one, dialect("three", route("/health", GET=nothing)), two))


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("PUT", "/api/tasks/1", "one"),
        ("DELETE", "/api/tasks/1", "two"),
        ("GET", "/api/tasks/list", "two"),
        ("PUT", "/api/tasks/list", "one"),
        ("POST", "/api/tasks", "one"),
        ("PATCH", "/api/tasks/1", "one"),
        ("GET", "/one/unheard-of", "one"),
        ("GET", "/one", None),
        ("GET", "/unheard-of", None),
        ("GET", "/health", None),
        ("GET", "/api/v1/unheard-of", None),
    ],
)
def test_a_request_is_for_the_one_whose_path_and_method_it_names(
    directory: Directory, method: str, path: str, name: str | None
) -> None:
    """Fixed paths before parameters; what is the API's is nobody else's."""
    assert asked(directory, method, path) == name


def test_a_question_whether_one_may_ask_is_for_whom_one_wants_to_ask(directory: Directory) -> None:
    """A browser's preflight names the method that will follow."""
    assert asked(directory, "OPTIONS", "/api/tasks/1", access_control_request_method="DELETE") == "two"
    assert asked(directory, "OPTIONS", "/api/tasks/1", access_control_request_method="PUT") == "one"


def test_fixed_paths_are_routed_before_parameters(directory: Directory) -> None:
    """Whatever the order in which dialects say them."""
    paths = [getattr(found, "path", "") for found in directory.routes]
    assert paths.index("/api/tasks/list") < paths.index("/api/tasks/{id}")


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    """A runner that pages of one other origin may ask for codebase-embedder's lists."""
    with speaking(tmp_path_factory.mktemp("answering"), dialects__embedder__origins=[PAGE]) as spoken:
        yield spoken


STATUS = "/codebase-embedder/api/v1/files/status"
SETTINGS = "/v1/settings"


def test_a_page_of_a_known_origin_may_ask_with_cookies(answering: Spoken) -> None:
    """The answer names it, and a preflight is answered before anybody has to be known."""
    headers = {"Origin": PAGE, "Sec-Fetch-Site": "same-site"}
    answer = answering.http.post(STATUS, json={"syncId": "x"}, headers=headers)
    ask = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    preflight = answering.http.options(STATUS, headers=ask)
    assert (answer.status_code, preflight.status_code) == (200, 204)
    for answered in (answer, preflight):
        assert answered.headers["access-control-allow-origin"] == PAGE
        assert answered.headers["access-control-allow-credentials"] == "true"
    assert "POST" in preflight.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    ("path", "origin"),
    [(STATUS, "http://evil.example"), (SETTINGS, PAGE), ("/api/v1/tasks", PAGE), (STATUS, "null")],
)
def test_a_page_of_any_other_origin_may_not(answering: Spoken, path: str, origin: str) -> None:
    """Nor the known one elsewhere; whoever is asked says so in its own words."""
    answer = answering.http.post(path, json={}, headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"})
    preflight = answering.http.options(path, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-origin" not in preflight.headers
    assert set(answer.json()) >= ({"error"} if path.startswith("/api") else {"code", "message"})


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_dialect_is_refused_at_the_door_in_its_own_words(answering: Spoken, name: str) -> None:
    """On its own port all that is said is in its envelope: a foreign host, a path that is not there."""
    client = answering.own[name]
    foreign, unknown = client.get("/", headers={"Host": "evil.example"}), client.get("/nothing/here")
    assert (foreign.status_code, unknown.status_code) == (400, 404)
    assert foreign.headers["content-type"] == unknown.headers["content-type"] == "application/json"
    assert set(foreign.json()) == set(unknown.json())


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_dialect_has_a_health_on_its_own_port(answering: Spoken, name: str) -> None:
    """In its own shape; and nothing of the API's beside it."""
    client = answering.own[name]
    assert client.get("/health").status_code == 200
    assert client.get("/metrics").status_code == 404


def test_the_port_says_who_is_asked_not_the_host_header(answering: Spoken) -> None:
    """A client writes what it likes into its header."""
    own = answering.own["taskflow"].base_url.port
    answer = answering.http.get("/api/v1/handlers", headers={"Host": f"localhost:{own}"})
    assert answer.status_code == 200


def test_what_is_not_enabled_is_not_spoken(tmp_path: Path) -> None:
    """Its paths are nobody's then."""
    with speaking(tmp_path, dialects={"embedder": False, "taskflow": {"enabled": False}}) as spoken:
        names = {dialect.name for dialect in make_dialects(Site(spoken.service, spoken.service.config))}
        answer = spoken.http.get("/codebase-embedder/api/v1/tasks/running")
        assert names == set(MAKERS) - {"embedder", "taskflow"}
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_each_port_is_listened_at_and_one_that_is_taken_is_said() -> None:
    """Before anything runs, as for the main port."""
    with listening_for_dialects(Config.load(None, {"dialects": {"taskflow": {"port": 0}}}, {})) as listeners:
        assert [*listeners] == ["taskflow"]
        port = listeners["taskflow"].getsockname()[1]
        taken = Config.load(None, {"dialects": {"embedder": {"port": port}}}, {})
        with pytest.raises(ConfigError, match=f"{port}"), listening_for_dialects(taken):
            raise NotImplementedError


def test_every_front_end_sees_the_same_task(tmp_path: Path) -> None:
    """Made through one, it is there for each of the others, and what one does to it the others see."""
    with speaking(tmp_path) as spoken:
        made = spoken.own["taskflow"].post("/api/v1/tasks", json={"type": "hold", "payload": {"gate": "everywhere"}})
        task_id = made.json()["task_id"]
        spoken.running(task_id)
        embedder, gateway = "/codebase-embedder/api/v1", spoken.own["video_in_chinese"]
        assert running_ids(spoken.http) == [task_id]
        assert gateway.get(f"/v1/tasks/{task_id}/status").json()["status"] == "PROCESSING"
        assert spoken.http.get(f"/api/v1/tasks/{task_id}").json()["status"] == "processing"
        spoken.own["taskflow"].post(f"/api/v1/tasks/{task_id}/cancel")
        failed = spoken.http.get(f"{embedder}/tasks/failed").json()["data"]["tasks"]
        assert (running_ids(spoken.http), [task["taskId"] for task in failed]) == ([], [task_id])
        assert gateway.get(f"/v1/tasks/{task_id}/status").json()["error_message"] == "cancelled"


def running_ids(client: httpx2.Client) -> list[str]:
    """What codebase-embedder's clients see running."""
    tasks = client.get("/codebase-embedder/api/v1/tasks/running").json()["data"]["tasks"]
    return [task["taskId"] for task in tasks]


def test_a_port_of_grpc_that_is_taken_ends_nothing(tmp_path: Path) -> None:
    """It is said to who asks how the runner is, and HTTP is served."""
    pytest.importorskip("grpc")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with speaking(tmp_path, grpc__port=port) as spoken:
            closed = spoken.http.get("/ready").json()["details"]["closed_doors"]["grpc"]
            assert closed.startswith(f"not served: the port of 127.0.0.1:{port} is taken; give it another one")
            assert spoken.grpc == ""


def test_without_its_extra_grpc_is_not_served_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway is there all the same."""
    monkeypatch.setattr(video_in_chinese, "is_installed", lambda: False)
    with speaking(tmp_path) as spoken:
        assert spoken.grpc == ""
        assert spoken.http.get("/v1/settings").status_code == 200
        assert "needs the extra `grpc`" in spoken.http.get("/ready").json()["details"]["closed_doors"]["grpc"]
