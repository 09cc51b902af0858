"""The server as a whole: both entrances, health, and a quick end."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import httpx2
import pytest

from runner.web.app import create_app
from runner.web.protocol import Patience
from runner.web.server import CLOSE_SECONDS, served_in_thread
from tests.web.conftest import Served, serve_again
from tests.web.test_tasks import TASKS, finished, submit


def test_both_entrances_show_the_same_tasks(served: Served) -> None:
    """One app, one service."""
    task = submit(served)
    assert served.socket.get(f"{TASKS}/{task['id']}").json()["id"] == task["id"]


def test_the_socket_asks_for_no_host_name(idle: Served) -> None:
    """No browser reaches it."""
    assert idle.socket.get(TASKS, headers={"Host": "anything"}).status_code == 200


def test_health_says_that_all_is_well(idle: Served) -> None:
    """The three probes, as they are asked by people and by schedulers."""
    assert idle.tcp.get("/live").json() == {"status": "alive"}
    assert idle.tcp.get("/ready").json()["status"] == "ready"
    health = idle.tcp.get("/health").json()
    assert health["status"] == "healthy"
    assert set(health) == {"status", "timestamp", "services", "details"}


def test_handlers_are_described_with_their_parameters(idle: Served) -> None:
    """The same schema that validates makes forms and help."""
    found = {handler["name"]: handler for handler in idle.tcp.get("/api/v1/handlers").json()["handlers"]}
    assert found["echo"]["schema"]["properties"]["times"] == {"default": 1, "title": "Times", "type": "integer"}
    assert (found["echo"]["doc"], found["echo"]["available"]) == ("Say a text again.", True)
    assert idle.tcp.get("/api/v1/handlers/measure").json()["accepts"] == [".txt"]


def test_cleanup_says_what_it_would_remove(served: Served) -> None:
    """Nothing here is old enough to go."""
    assert served.tcp.post("/api/v1/gc", params={"mode": "dry_run"}).json() == {"mode": "dry_run", "removed": []}
    assert served.tcp.post("/api/v1/gc").json()["mode"] == "apply"


def test_why_answers_for_a_task(served: Served) -> None:
    """A sentence for people, a kind and facts for machines."""
    task = submit(served, delay="1h")
    assert set(served.tcp.get("/api/v1/why", params={"target": task["id"]}).json()) == {"kind", "text", "facts"}


def test_uvloop_serves_where_it_is_wanted(served: Served) -> None:
    """Submissions, waits, streams, files in both directions, and clients that are waited for: all through its loop."""
    pytest.importorskip("uvloop", reason="needs the extra fast")
    hasty = Patience(idle_seconds=0.1, head_seconds=20)
    with serve_again(served, hasty, "uvloop") as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        draft = client.post(TASKS, json={"type": "measure", "draft": True}).json()["id"]
        assert client.put(f"{TASKS}/{draft}/inputs/a.txt", content=b"x" * 3_000_000).status_code == 200
        client.post(f"{TASKS}/{draft}/start")
        ended = client.get(f"{TASKS}/{draft}", params={"wait": 20}).json()
        assert (ended["status"], ended["file_size"]) == ("completed", 3_000_000)
        with client.stream("GET", f"{TASKS}/{draft}/events") as stream:
            assert any("completed" in line for line in stream.iter_lines())
        for path in ended["output_files"]:
            assert client.get(f"{TASKS}/{draft}/outputs/{path.rpartition('/')[2]}").status_code == 200
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while connection.recv(1000):
                pass


def test_the_inbox_says_what_waits_in_it(served: Served) -> None:
    """Each folder with its handler, and each file that cannot be taken yet with its reason."""
    (served.data / "inbox" / "echo" / "empty.txt").touch()
    deadline = time.monotonic() + 10
    while not (report := served.tcp.get("/api/v1/inbox").json())["held"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [(one["why"], one["path"].rpartition("/")[2]) for one in report["held"]] == [("empty", "empty.txt")]
    folders = {folder["handler"]: folder for folder in report["folders"]}
    assert {"user_id": "local", "after": "move", "blocked": None}.items() <= folders["echo"].items()


def test_queues_are_counted(idle: Served) -> None:
    """Each configured queue has a row, in the states of contract 001."""
    rows = {row["queue"]: row for row in idle.tcp.get("/api/v1/queues/stats").json()}
    assert set(rows) == {"critical", "high", "default", "low"}
    assert {"pending", "active", "scheduled", "completed"} <= set(rows["default"])


def test_stopping_ends_open_streams_and_long_polls(served: Served, tmp_path: Path) -> None:
    """A watcher and a waiting client do not hold up the end of the process."""
    task = submit(served, "wait_for", payload={"gate": str(tmp_path / "gate")})
    path = tmp_path / "second.sock"
    service = served.service
    done: list[str] = []

    def poll() -> None:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://runner") as client:
            done.append(client.get(f"{TASKS}/{task['id']}", params={"wait": 60}, timeout=60).json()["status"])

    def stream() -> None:
        with (
            httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://runner") as client,
            client.sse(f"{TASKS}/{task['id']}/events", timeout=60) as source,
        ):
            events = list(source)
            done.append(events[0].event)

    with served_in_thread(create_app(service, service.config), service.events, path):
        clients = [threading.Thread(target=poll), threading.Thread(target=stream)]
        for client in clients:
            client.start()
        until = time.monotonic() + 10
        while service.events.watcher_count < 2 and time.monotonic() < until:
            threading.Event().wait(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < CLOSE_SECONDS
    for client in clients:
        client.join()
    assert sorted(done) == ["processing", "status"]
    assert not path.exists()


def test_how_a_handler_fares_is_told_to_the_admin(served: Served) -> None:
    """What came of its attempts since the start, and its last error with the task to look at."""
    task = finished(served, submit(served, "fail")["id"])
    health = served.socket.get("/api/v1/handlers/fail").json()["health"]
    assert health["attempts"] == {"failed": 1}
    assert health["last_error"]["task_id"] == task["id"]
