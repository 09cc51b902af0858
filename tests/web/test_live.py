"""`/ws`, through a real server and a real client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from httpx2.websockets import HTTPXWSException, WebSocketDisconnect, WebSocketSession, WebSocketUpgradeError
from wsproto.utilities import LocalProtocolError

from runner.web import live
from tests.web.conftest import Served, serve
from tests.web.test_auth import bearer
from tests.web.test_tasks import TASKS, finished, submit

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@contextmanager
def connected(served: Served, **headers: str) -> Iterator[WebSocketSession]:
    """A WebSocket, as a program opens it."""
    with served.tcp.websocket("/ws", headers={name.replace("_", "-"): value for name, value in headers.items()}) as ws:
        yield ws


def say(ws: WebSocketSession, **message: Any) -> None:
    """Send one message."""
    ws.send_text(json.dumps(message))


def hear(ws: WebSocketSession) -> dict[str, Any]:
    """The next message."""
    said: dict[str, Any] = json.loads(ws.receive_text(timeout=20))
    return said


def hear_until(ws: WebSocketSession, name: str) -> list[dict[str, Any]]:
    """All messages up to the first event of that name."""
    heard = [hear(ws)]
    while heard[-1]["event"] != name:
        heard.append(hear(ws))
    return heard


def closed_with(ws: WebSocketSession) -> int:
    """The code that the server closes with."""
    with pytest.raises(WebSocketDisconnect) as caught:
        hear_until(ws, "never")
    return caught.value.code


def test_a_subscription_tells_what_a_stream_tells(served: Served, tmp_path: Path) -> None:
    """The same events with the same ids and data, from how the task stands to `done`."""
    gate = tmp_path / "gate"
    task = submit(served, "wait_for", payload={"gate": str(gate)})
    with connected(served) as ws:
        say(ws, action="subscribe", task_ids=[task["id"]])
        heard = hear_until(ws, "progress")
        gate.touch()
        heard += hear_until(ws, "done")
    assert [one["event"] for one in heard if one["event"] != "status"] == ["subscribed", "progress", "done"]
    with served.tcp.sse(f"{TASKS}/{task['id']}/events") as source:
        streamed = [(event.id, json.loads(event.data)) for event in source if event.event == "progress"]
    assert streamed == [(one["id"], one["data"]) for one in heard if one["event"] == "progress"]


def test_one_socket_follows_many_tasks(served: Served) -> None:
    """Each event says whose it is; each is told `done` for itself, and the socket stays open."""
    ids = {submit(served, payload={"text": str(number)})["id"] for number in range(5)}
    with connected(served) as ws:
        say(ws, action="subscribe", task_ids=sorted(ids))
        done = {hear_until(ws, "done")[-1]["data"]["task_id"] for _ in ids}
        say(ws, action="unsubscribe", task_ids=sorted(ids))
        assert hear(ws)["event"] == "unsubscribed"
    assert done == ids


def test_a_client_goes_on_from_the_last_id_that_it_has(served: Served) -> None:
    """`after` as in the streams."""
    task = finished(served, submit(served)["id"])
    with connected(served) as ws:
        say(ws, action="subscribe", task_ids=[task["id"]])
        first, second = (one for one in hear_until(ws, "done") if one["event"] in ("log", "progress"))
        say(ws, action="subscribe", task_ids=[task["id"]], after=first["id"])
        again = [one for one in hear_until(ws, "done") if "id" in one]
    assert again == [second]


def test_all_tasks_are_one_subscription(served: Served) -> None:
    """Also those that do not exist yet."""
    with connected(served) as ws:
        say(ws, action="subscribe", all=True)
        assert hear(ws)["event"] == "subscribed"
        await_watchers(served, 1)
        task = submit(served)
        assert hear_until(ws, "done")[-1]["data"] == {"task_id": task["id"], "status": "completed"}


def test_what_is_unsubscribed_is_told_no_more(served: Served) -> None:
    """Its watcher is gone before the answer."""
    draft = submit(served, "measure", draft=True)
    with connected(served) as ws:
        say(ws, action="subscribe", task_ids=[draft["id"]])
        hear_until(ws, "status")
        say(ws, action="unsubscribe", task_ids=[draft["id"]])
        hear_until(ws, "unsubscribed")
        assert served.service.events.watcher_count == 0


def test_a_client_that_leaves_is_forgotten(served: Served) -> None:
    """With all of its subscriptions."""
    draft = submit(served, "measure", draft=True)
    with connected(served) as ws:
        say(ws, action="subscribe", task_ids=[draft["id"]], all=True)
        hear_until(ws, "status")
    await_watchers(served, 0)


def await_watchers(served: Served, count: int) -> None:
    """Until there are so many watchers."""
    until = time.monotonic() + 10
    while served.service.events.watcher_count != count and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert served.service.events.watcher_count == count


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"action": "dance"}, "validation_error"),
        ({"action": "subscribe", "user_id": "ann"}, "validation_error"),
        ({"action": "subscribe", "task_ids": "abc"}, "validation_error"),
        ({"action": "subscribe", "after": "yesterday"}, "validation_error"),
        ({"action": "subscribe", "task_ids": [str(number) for number in range(100)], "all": True}, "too_many_streams"),
        ({"action": "subscribe", "task_ids": [UNKNOWN]}, "not_found"),
        ({"action": "subscribe", "task_ids": ["../x"]}, "not_found"),
    ],
)
def test_what_cannot_be_done_is_an_error_and_no_end(idle: Served, message: dict[str, Any], code: str) -> None:
    """The client is told, and may go on."""
    with connected(idle) as ws:
        say(ws, **message)
        assert hear_until(ws, "error")[-1]["data"]["code"] == code
        say(ws, action="unsubscribe")
        assert hear(ws)["event"] == "unsubscribed"


@pytest.mark.parametrize("text", ["", "{", "[NaN]", '{"action": "subscribe", "action": "subscribe"}', "[" * 100])
def test_what_is_no_json_closes_the_socket(idle: Served, text: str) -> None:
    """1007."""
    with connected(idle) as ws:
        ws.send_text(text)
        assert closed_with(ws) == live.INVALID_DATA


def test_what_is_too_large_or_no_text_closes_the_socket(idle: Served) -> None:
    """1009 and 1003."""
    with connected(idle) as ws:
        ws.send_text(" " * (live.MAX_MESSAGE_BYTES + 1))
        assert closed_with(ws) == 1009
    with connected(idle) as ws:
        ws.send_bytes(b"{}")
        assert closed_with(ws) == live.UNSUPPORTED_DATA


def test_a_flood_closes_the_socket(idle: Served) -> None:
    """1008."""
    with connected(idle) as ws:
        # Sending ends early when the close arrives in the middle of it.
        with suppress(HTTPXWSException, LocalProtocolError):
            for _ in range(100):
                say(ws, action="unsubscribe")
        assert closed_with(ws) == live.POLICY_VIOLATION


def test_a_foreign_page_is_refused_before_it_is_accepted(idle: Served) -> None:
    """403; our own page and a program without an origin come in."""
    with pytest.raises(WebSocketUpgradeError) as refused, connected(idle, Origin="http://evil.example"):
        pass
    assert refused.value.response.status_code == 403
    with connected(idle, Origin=f"http://127.0.0.1:{idle.port}") as ws:
        say(ws, action="unsubscribe")
        assert hear(ws)["event"] == "unsubscribed"


def test_a_user_hears_of_no_others_task(tmp_path: Path) -> None:
    """Neither by its id, which is as unknown to them, nor among all."""
    with serve(tmp_path, auth__mode="token") as served:
        ann, ben = bearer(served, "ann"), bearer(served, "ben")
        task = served.tcp.post(TASKS, json={"type": "echo", "delay": "1h"}, headers=ann).json()
        with connected(served, **ben) as ws:
            say(ws, action="subscribe", task_ids=[task["id"]], all=True)
            assert hear_until(ws, "error")[-1]["data"]["task_id"] == task["id"]
            served.tcp.post(f"{TASKS}/{task['id']}/cancel", headers=ann)
            own = served.tcp.post(TASKS, json={"type": "echo"}, headers=ben).json()
            assert {one["data"]["task_id"] for one in hear_until(ws, "done")} == {own["id"]}


def test_a_user_holds_so_many_sockets(tmp_path: Path) -> None:
    """A socket counts as a stream; one too many is answered 429."""
    with serve(tmp_path, auth__mode="token", http__streams_per_user=1) as served:
        ann = bearer(served, "ann")
        with connected(served, **ann), pytest.raises(WebSocketUpgradeError) as refused, connected(served, **ann):
            pass
        assert refused.value.response.status_code == 429


def test_a_client_that_does_not_keep_up_is_told_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subscription ends with `reset`; another one goes on where it ended."""
    draft = submit(served, "measure", draft=True)
    with connected(served) as ws:
        say(ws, action="subscribe", task_ids=[draft["id"]])
        hear_until(ws, "status")
        record = served.service.get(draft["id"])
        for number in range(2000):
            served.service.events.log(record, "info", f"{number} {'x' * 2000}")
        served.service.events.flush()
        heard = hear_until(ws, "reset")
        last = next((one["id"] for one in reversed(heard) if "id" in one), "0")
        say(ws, action="subscribe", task_ids=[draft["id"]], after=last)
        texts = [one["data"]["message"].split()[0] for one in heard if one["event"] == "log"]
        while texts[-1:] != ["1999"]:
            one = hear(ws)
            texts += [one["data"]["message"].split()[0]] if one["event"] == "log" else []
    assert texts == [str(number) for number in range(2000)]


def test_all_news_are_one_stream(served: Served) -> None:
    """`GET /events`: what a socket is told of all tasks."""
    with served.tcp.sse("/api/v1/events") as source:
        await_watchers(served, 1)
        task = served.socket.post(TASKS, json={"type": "echo"}).json()
        for event in source:
            if event.event == "done":
                break
    assert json.loads(event.data) == {"task_id": task["id"], "status": "completed"}
