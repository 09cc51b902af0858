"""Contract 001, §§ 2.4 to 2.7, through a real server."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runner.events import Event, Kind
from runner.task import Attempt, Outcome, Status, Task, TaskError
from runner.web.progress import MAX_RECORDS, history, records_of
from tests.web.conftest import Served
from tests.web.test_tasks import TASKS, finished, submit

NOW = datetime(2026, 1, 2, tzinfo=UTC)
UNKNOWN = "00000000-0000-4000-8000-000000000000"


def read(served: Served, path: str, **query: str) -> list[tuple[str, dict[str, Any]]]:
    """All events of a stream, each with its data."""
    with served.tcp.sse(path, params=query) as source:
        return [(event.event, json.loads(event.data)) for event in source]


def numbered(ms: int, attempt: int, percentage: float) -> Event:
    """Something that a handler said."""
    data = {"attempt": attempt, "percentage": percentage, "stage": "work", "message": ""}
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return Event(ms << 20, "t", "", Kind.PROGRESS, at, data)


def ended_task(attempts: int) -> Task:
    """A task that failed `attempts` times; the last time for good."""
    error = TaskError(code="broken", message="it broke")
    runs = tuple(
        Attempt(
            number=number,
            started_at=NOW,
            ended_at=NOW + timedelta(seconds=number),
            outcome=Outcome.FAILED,
            error=error,
        )
        for number in range(1, attempts + 1)
    )
    return Task(
        id="t", type="x", user_id="local", status=Status.FAILED, created_at=NOW, updated_at=NOW, attempt=attempts,
        attempts=runs, error=error, completed_at=NOW + timedelta(seconds=attempts),
    )  # fmt: skip


def test_only_the_end_of_the_task_is_final() -> None:
    """An attempt that another one follows is told as progress; the numbers only grow."""
    start = int(NOW.timestamp() * 1000)
    said = [numbered(start + 10, 1, 40), numbered(start + 1500, 2, 50)]
    records = list(records_of(ended_task(2), said))
    assert [(record.stage, record.is_final) for record in records] == [
        ("work", False), ("retry", False), ("work", False), ("completed", True),
    ]  # fmt: skip
    assert (records[-1].percentage, records[-1].status) == (100, "failed")
    assert [record.number for record in records] == sorted({record.number for record in records})


def test_a_record_never_comes_before_what_it_follows() -> None:
    """Progress that was told late, or a clock that was set back, does not break the order."""
    late = int(NOW.timestamp() * 1000) + 60_000
    records = list(records_of(ended_task(1), [numbered(late, 1, 40)]))
    assert [record.number for record in records] == [late << 20, (late << 20) + 1]


def test_a_history_holds_the_latest_thousand() -> None:
    """However much a handler says, an answer stays small."""
    said = [numbered(number, 1, 1) for number in range(1, MAX_RECORDS + 500)]
    records = history(ended_task(1), said, 0)
    assert len(records) == MAX_RECORDS
    assert records[-1].is_final


def test_a_task_is_shown_in_the_words_of_both(served: Served) -> None:
    """Its own fields, and those of the contract beside them."""
    done = finished(served, submit(served)["id"])
    assert (done["state"], done["max_retry"], done["retried"]) == ("completed", done["max_retries"], 0)
    failed = finished(served, submit(served, "fail")["id"])
    assert (failed["state"], failed["last_err"]) == ("archived", "it is broken")
    listed = served.tcp.get(TASKS, params={"status": "archived"}).json()
    assert [(task["id"], task["queue"], task["type"], task["state"]) for task in listed] == [
        (failed["id"], "default", "fail", "archived")
    ]


def test_a_task_for_later_is_scheduled(served: Served) -> None:
    """Who says `process_at` is answered `scheduled`; `next_process_at` says when."""
    at = "2126-01-31T12:00:00Z"
    answer = served.tcp.post(TASKS, json={"type": "echo", "payload": {}, "process_at": at}).json()
    assert (answer["queue"], answer["status"], answer["state"]) == ("default", "scheduled", "scheduled")
    submit(served, "measure", draft=True)
    submit(served, delay="1h", queue="low")
    (shown,) = served.tcp.get(TASKS, params={"status": "scheduled", "queue": "default"}).json()
    assert (shown["id"], shown["next_process_at"]) == (answer["task_id"], at)
    assert served.tcp.get(TASKS, params={"status": "retry"}).json() == []
    assert len(served.tcp.get(TASKS, params={"status": "pending"}).json()) == 2


def test_queues_are_counted_by_state(served: Served) -> None:
    """One row a queue, or the one that is asked for."""
    finished(served, submit(served)["id"])
    finished(served, submit(served, "fail")["id"])
    submit(served, delay="1h")
    (row,) = served.tcp.get("/api/v1/queues/stats", params={"queue": "default"}).json()
    expected = {
        "queue": "default",
        "pending": 0,
        "active": 0,
        "scheduled": 1,
        "retry": 0,
        "archived": 1,
        "completed": 1,
    }
    assert {name: row[name] for name in expected} == expected
    assert len(served.tcp.get("/api/v1/queues/stats").json()) == 4
    assert served.tcp.get("/api/v1/queues/stats?queue=none").status_code == 404


def test_a_task_that_waits_for_its_next_attempt_is_in_retry(served: Served) -> None:
    """It is listed and counted as such, until it runs."""
    task = submit(served, "fail_for_now")
    with served.tcp.sse(f"{TASKS}/{task['id']}/progress/stream?start_id=0") as source:
        record = json.loads(next(iter(source)).data)
    assert (record["stage"], record["message"]) == ("retry", "attempt 1: not now")
    (listed,) = served.tcp.get(TASKS, params={"status": "retry"}).json()
    assert (listed["id"], listed["state"], listed["retried"]) == (task["id"], "retry", 1)
    (row,) = served.tcp.get("/api/v1/queues/stats", params={"queue": "default"}).json()
    assert (row["retry"], row["scheduled"], row["pending"]) == (1, 0, 0)
    served.tcp.post(f"{TASKS}/{task['id']}/cancel")
    (row,) = served.tcp.get("/api/v1/queues/stats", params={"queue": "default"}).json()
    assert (row["retry"], row["archived"]) == (0, 1)


def test_the_same_again_is_a_conflict_for_a_while(served: Served) -> None:
    """`unique`: 409 with the task that is there already."""
    first = submit(served, unique="1h")
    again = served.tcp.post(TASKS, json={"type": "echo", "unique": "1h"})
    problem = again.json()
    assert (again.status_code, problem["error_code"], problem["task_id"]) == (409, "TASK_ALREADY_EXISTS", first["id"])
    assert submit(served, unique="1h", payload={"text": "other"})["id"] != first["id"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"type": "nothing"}, "INVALID_TASK_TYPE"),
        ({"type": "echo", "payload": 7}, "INVALID_PAYLOAD"),
        ({"type": "echo", "timeout": "soon"}, "INVALID_TIMEOUT"),
        ({"type": "echo", "process_at": "tomorrow"}, "INVALID_PROCESS_AT"),
        ({"type": "echo", "unique": "x"}, "INVALID_UNIQUE"),
        ({"type": "echo", "priority": "x"}, "INVALID_REQUEST"),
        ({"type": "echo", "queue": "none"}, "INVALID_QUEUE"),
        ({"payload": {}}, "INVALID_TASK_TYPE"),
    ],
)
def test_a_refusal_has_the_codes_of_both(idle: Served, body: dict[str, Any], code: str) -> None:
    """`code` is ours, `error` and `error_code` are the contract's."""
    problem = idle.tcp.post(TASKS, json=body).json()
    assert (problem["error_code"], problem["error"]) == (code, problem["detail"])


def test_what_is_asked_of_a_list_or_a_waiting_task_is_refused_in_the_words_of_both(served: Served) -> None:
    """A state that there is not, and a task that is deleted while it waits."""
    assert served.tcp.get(TASKS, params={"status": "gone"}).json()["error_code"] == "INVALID_TASK_STATE"
    waiting = submit(served, delay="1h")
    answer = served.tcp.delete(f"{TASKS}/{waiting['id']}")
    assert (answer.status_code, answer.json()["error_code"]) == (409, "ILLEGAL_TRANSITION")


def test_a_stream_is_kept_by_nobody_on_its_way(served: Served) -> None:
    """Neither by caches nor by proxies that would wait for its end."""
    task = finished(served, submit(served)["id"])
    headers = served.tcp.get(f"{TASKS}/{task['id']}/progress/stream").headers
    assert headers["content-type"].startswith("text/event-stream")
    wanted = {"cache-control": "no-cache", "connection": "keep-alive", "x-accel-buffering": "no"}
    assert {name: headers[name] for name in wanted} == wanted


@pytest.mark.parametrize("path", ["", "/progress", "/progress/stream", "/progress/history", "/progress/info"])
def test_an_unknown_task_has_no_progress(idle: Served, path: str) -> None:
    """404, in every form."""
    answer = idle.tcp.get(f"{TASKS}/{UNKNOWN}{path}")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "TASK_NOT_FOUND")


def test_cancelling_what_is_not_there_is_not_found(idle: Served) -> None:
    """And not a success, as it is with others."""
    answer = idle.tcp.post(f"{TASKS}/{UNKNOWN}/cancel")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "TASK_NOT_FOUND")


def test_the_latest_progress_is_the_end_of_an_ended_task(served: Served) -> None:
    """100 and `completed`; a task that has said nothing yet has none."""
    waiting = submit(served, delay="1h")
    answer = served.tcp.get(f"{TASKS}/{waiting['id']}/progress")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "PROGRESS_NOT_FOUND")
    done = finished(served, submit(served)["id"])
    latest = served.tcp.get(f"{TASKS}/{done['id']}/progress").json()
    assert (latest["is_final"], latest["status"]) == (True, "completed")
    assert (latest["progress"]["percentage"], latest["progress"]["stage"]) == (100, "completed")
    assert latest["progress"]["timestamp_ms"] > 1e12


def test_a_history_is_read_from_any_place(served: Served) -> None:
    """Oldest first; strictly after `start_id`; `info` has its two ends."""
    done = finished(served, submit(served)["id"])
    whole = served.tcp.get(f"{TASKS}/{done['id']}/progress/history").json()
    assert (whole["task_id"], whole["count"]) == (done["id"], 2)
    assert [entry["progress"]["percentage"] for entry in whole["history"]] == [50, 100]
    first, last = (entry["stream_id"] for entry in whole["history"])
    rest = served.tcp.get(f"{TASKS}/{done['id']}/progress/history", params={"start_id": first}).json()
    assert [entry["status"] for entry in rest["history"]] == ["completed"]
    info = served.tcp.get(f"{TASKS}/{done['id']}/progress/info").json()
    assert info == {
        "task_id": done["id"], "has_progress": True, "length": 2, "first_entry": first, "last_entry": last,
    }  # fmt: skip
    silent = served.tcp.get(f"{TASKS}/{submit(served, delay='1h')['id']}/progress/info").json()
    assert (silent["has_progress"], silent["length"], silent["first_entry"]) == (False, 0, "")


def test_a_stream_ends_with_the_final_record_and_done(served: Served, tmp_path: Path) -> None:
    """Live: what is said from now on."""
    gate = tmp_path / "gate"
    task = submit(served, "wait_for", payload={"gate": str(gate)})
    seen = []
    with served.tcp.sse(f"{TASKS}/{task['id']}/progress/stream", params={"start_id": "0"}) as source:
        for event in source:
            seen.append(event)
            gate.touch()
    assert [event.event for event in seen] == ["progress", "progress", "done"]
    assert [json.loads(event.data).get("percentage") for event in seen] == [10, 100, None]
    assert json.loads(seen[-1].data) == {"task_id": task["id"], "status": "completed"}
    stored = served.tcp.get(f"{TASKS}/{task['id']}/progress/history").json()["history"]
    assert [event.id for event in seen[:2]] == [entry["stream_id"] for entry in stored]


def test_a_late_subscriber_gets_the_end_at_once(served: Served) -> None:
    """By default only what is new; of an ended task that is its last record."""
    done = finished(served, submit(served)["id"])
    stream = f"{TASKS}/{done['id']}/progress/stream"
    assert [name for name, _ in read(served, stream)] == ["progress", "done"]
    assert [name for name, _ in read(served, stream, start_id="0-0")] == ["progress", "progress", "done"]
    assert [name for name, _ in read(served, stream, history="true")] == ["history", "history", "progress", "done"]


def test_a_subscriber_that_comes_back_gets_the_rest(served: Served) -> None:
    """`Last-Event-ID` goes before `start_id`; who has seen the end is told `done`."""
    done = finished(served, submit(served)["id"])
    stored = served.tcp.get(f"{TASKS}/{done['id']}/progress/history").json()["history"]
    for place, names in ((stored[0], ["progress", "done"]), (stored[1], ["done"])):
        headers = {"Last-Event-ID": place["stream_id"]}
        with served.tcp.sse(f"{TASKS}/{done['id']}/progress/stream?start_id=0", headers=headers) as source:
            assert [event.event for event in source] == names


def test_a_cancelled_task_is_told_as_cancelled(served: Served, tmp_path: Path) -> None:
    """The end after a cancel is not lost."""
    task = submit(served, "wait_for", payload={"gate": str(tmp_path / "gate")})
    with served.tcp.sse(f"{TASKS}/{task['id']}/progress/stream?start_id=0") as source:
        events = iter(source)
        next(events)
        served.socket.post(f"{TASKS}/{task['id']}/cancel")
        assert [json.loads(event.data).get("status") for event in events] == [None, "cancelled"]


def test_several_tasks_are_followed_at_once(served: Served, tmp_path: Path) -> None:
    """Each record says whose it is; the stream closes when all have ended; one that is not there is an error."""
    gate = tmp_path / "gate"
    running = submit(served, "wait_for", payload={"gate": str(gate)})["id"]
    done = finished(served, submit(served)["id"])["id"]
    seen: list[httpx2.ServerSentEvent] = []
    with served.tcp.sse("/api/v1/progress/stream", params={"task_ids": f"{done},{UNKNOWN},{running}"}) as source:
        for event in source:
            seen.append(event)
            gate.touch()
    finals = {json.loads(event.data)["task_id"] for event in seen if json.loads(event.data).get("is_final")}
    assert finals == {running, done}
    assert [json.loads(event.data)["task_id"] for event in seen if event.event == "error"] == [UNKNOWN]
    assert "done" not in [event.event for event in seen]


@pytest.mark.parametrize("ids", ["", ",", ",".join(f"t{number}" for number in range(11))])
def test_one_to_ten_tasks_are_followed_at_once(idle: Served, ids: str) -> None:
    """None and too many are refused before the stream begins."""
    answer = idle.tcp.get("/api/v1/progress/stream", params={"task_ids": ids})
    assert answer.status_code == 400
    assert "1 to 10" in answer.json()["error"]


def test_a_place_that_is_none_is_refused(served: Served) -> None:
    """Before the stream begins."""
    task = submit(served, delay="1h")
    for path in ("stream", "history"):
        assert served.tcp.get(f"{TASKS}/{task['id']}/progress/{path}?start_id=x").status_code == 400


def test_a_task_that_is_deleted_ends_its_streams(served: Served) -> None:
    """With an error, for nothing more will come."""
    draft = submit(served, "measure", draft=True)["id"]
    with served.tcp.sse(f"{TASKS}/{draft}/progress/stream") as source:
        until = time.monotonic() + 10
        while not served.service.events.watcher_count and time.monotonic() < until:
            pass
        served.socket.delete(f"{TASKS}/{draft}")
        assert [event.event for event in source] == ["error"]
