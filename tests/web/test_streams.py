"""Events and logs as they stream, through a real server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runner.events import Event, Kind
from runner.web import streams
from tests.web.conftest import Served
from tests.web.test_tasks import TASKS, finished, submit


@contextmanager
def watching(served: Served, task_id: str, **headers: str) -> Iterator[Iterator[httpx2.ServerSentEvent]]:
    """The events of a task, as a client gets them."""
    with served.tcp.sse(f"{TASKS}/{task_id}/events", headers=headers) as source:
        yield iter(source)


def events_of(served: Served, task_id: str, **headers: str) -> list[httpx2.ServerSentEvent]:
    """All events of a task, to its end."""
    with watching(served, task_id, **headers) as events:
        return list(events)


def data_of(event: httpx2.ServerSentEvent) -> dict[str, Any]:
    """What an event carries."""
    data: dict[str, Any] = json.loads(event.data)
    return data


def test_a_stream_tells_a_task_from_now_to_its_end(served: Served, tmp_path: Path) -> None:
    """The status as it stands, what the handler says, the last status, and `done`; then the server closes."""
    gate = tmp_path / "gate"
    task = submit(served, "wait_for", payload={"gate": str(gate)})
    seen = []
    with watching(served, task["id"]) as events:
        for event in events:
            seen.append(event)
            if event.event == "progress":
                gate.touch()
    assert seen[0].event == "status"
    assert [data_of(event)["percentage"] for event in seen if event.event == "progress"] == [10.0]
    assert (seen[-2].event, data_of(seen[-2])["status"]) == ("status", "completed")
    assert (seen[-1].event, data_of(seen[-1])) == ("done", {"task_id": task["id"], "status": "completed"})


def test_a_late_client_gets_all_that_was_said(served: Served) -> None:
    """The stream of an ended task replays its log and closes at once."""
    task = finished(served, submit(served)["id"])
    assert [event.event for event in events_of(served, task["id"])] == ["status", "log", "progress", "done"]


def test_a_client_that_comes_back_misses_nothing_and_gets_nothing_twice(served: Served) -> None:
    """`Last-Event-ID` resumes after that event."""
    task = finished(served, submit(served)["id"])
    said = [event for event in events_of(served, task["id"]) if event.id]
    rest = events_of(served, task["id"], **{"Last-Event-ID": said[0].id})
    assert [event.event for event in rest] == ["status", "progress", "done"]
    assert [event.event for event in events_of(served, task["id"], **{"Last-Event-ID": "$"})] == ["status", "done"]


def test_the_log_is_json_lines(served: Served) -> None:
    """Each line has its id, its instant and its kind; `after` leaves out what is known."""
    task = finished(served, submit(served)["id"])
    lines = [json.loads(line) for line in served.tcp.get(f"{TASKS}/{task['id']}/log").text.splitlines()]
    assert [(line["kind"], line["message"]) for line in lines] == [("log", "saying it"), ("progress", "half way")]
    rest = served.tcp.get(f"{TASKS}/{task['id']}/log", params={"after": lines[0]["id"]})
    assert len(rest.text.splitlines()) == 1


def test_a_deleted_task_ends_its_stream(served: Served) -> None:
    """A watcher of a draft that is deleted is told so."""
    draft = submit(served, "measure", draft=True)
    with watching(served, draft["id"]) as events:
        assert next(events).event == "status"
        served.socket.delete(f"{TASKS}/{draft['id']}")
        assert [event.event for event in events] == ["removed"]


def test_an_idle_stream_shows_that_it_lives(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment now and then keeps proxies from closing it, and finds clients that went away."""
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.01)
    draft = submit(served, "measure", draft=True)
    with served.tcp.stream("GET", f"{TASKS}/{draft['id']}/events") as answer:
        lines = answer.iter_lines()
        assert ": nothing new" in (line for line in lines)


def test_a_client_that_leaves_is_forgotten(served: Served) -> None:
    """A stream costs nothing once its client has closed it."""
    draft = submit(served, "measure", draft=True)
    with watching(served, draft["id"]) as events:
        next(events)
    until = time.monotonic() + 10
    while served.service.events.watcher_count and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert served.service.events.watcher_count == 0


def test_a_client_that_falls_behind_is_reset(served: Served, tmp_path: Path) -> None:
    """It is told to come back, and the log then has what it missed."""
    gate = tmp_path / "gate"
    task = submit(served, "wait_for", payload={"gate": str(gate)})
    with watching(served, task["id"]) as events:
        assert next(events).event == "status"
        record = served.service.get(task["id"])
        for number in range(2000):
            served.service.events.log(record, "info", f"{number} {'x' * 2000}")
        served.service.events.flush()
        last = [event.event for event in events][-1]
    gate.touch()
    assert last == "reset"


def test_little_of_a_large_log_is_in_memory_for_one_client() -> None:
    """However long the lines are; at least one at a time, so that it goes on."""
    at = datetime(2026, 1, 2, tzinfo=UTC)
    said = (Event(number, "t", "", Kind.LOG, at, {"message": "x" * 30_000}) for number in range(1, 8))
    sizes = []
    while batch := streams._take(said):
        sizes.append(len(batch))
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize("path", ["/api/v1/events", "{task}/events", "{task}/progress/stream"])
def test_the_head_of_a_stream_ends_at_once(served: Served, path: str) -> None:
    """And the connection is good for the next request: nothing of an endless body is waited for."""
    task = f"{TASKS}/{submit(served, delay='1h')['id']}"
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        for method, place in (("HEAD", path.format(task=task)), ("GET", "/live")):
            connection.sendall(f"{method} {place} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = HTTPResponse(connection, method=method)
            answer.begin()
            assert (answer.status, bool(answer.read())) == (200, method == "GET")
    assert served.service.events.watcher_count == 0
