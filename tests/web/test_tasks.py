"""`/api/v1/tasks`, through a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import Served

TASKS = "/api/v1/tasks"


def submit(served: Served, type: str = "echo", **fields: Any) -> dict[str, Any]:
    """A task, submitted as anybody would."""
    answer = served.tcp.post(TASKS, json={"type": type, **fields})
    assert answer.status_code == 201, answer.text
    task: dict[str, Any] = answer.json()
    return task


def finished(served: Served, task_id: str) -> dict[str, Any]:
    """The task when it has ended."""
    task: dict[str, Any] = served.tcp.get(f"{TASKS}/{task_id}", params={"wait": 15}).json()
    assert task["status"] in ("completed", "failed", "cancelled")
    return task


def test_a_submission_becomes_a_task_that_runs(served: Served) -> None:
    """The answer has the whole task and says where it lives; waiting for its end gives its result."""
    answer = served.tcp.post(TASKS, json={"type": "echo", "payload": {"text": "ab", "times": 2}, "priority": 5})
    task = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{TASKS}/{task['id']}"
    assert (task["task_id"], task["status"], task["priority"], task["source"]) == (task["id"], "pending", 5, "http")
    ended = finished(served, task["id"])
    assert (ended["status"], ended["result"]) == ("completed", {"text": "abab"})


def test_a_task_can_be_told_not_to_start_yet(served: Served) -> None:
    """By an instant, under either of its names, or by a length."""
    for name, status in (("run_after", "pending"), ("process_at", "scheduled")):
        task = submit(served, **{name: "2126-01-31T12:00:00Z"})
        assert (task["status"], task["run_after"]) == (status, "2126-01-31T12:00:00Z")
    assert submit(served, delay="1h")["run_after"] is not None


def test_a_task_that_fails_says_why(served: Served) -> None:
    """The error has a code for machines and a message for people."""
    ended = finished(served, submit(served, "fail")["id"])
    assert ended["error"] == {"code": "broken", "message": "it is broken", "retryable": False}


def test_waiting_returns_the_task_as_it_stands_when_the_time_is_up(served: Served, tmp_path: Path) -> None:
    """A long poll never holds a client longer than it asked for."""
    task = submit(served, "wait_for", payload={"gate": str(tmp_path / "gate")})
    assert served.tcp.get(f"{TASKS}/{task['id']}", params={"wait": 0.05}).json()["status"] in ("pending", "processing")


def test_a_list_is_filtered_and_read_page_by_page(served: Served) -> None:
    """Newest first; a cursor goes on where the page ended; a page number tells the total."""
    ids = [submit(served, payload={"text": str(number)})["id"] for number in range(5)]
    submit(served, "fail")
    first = served.tcp.get(TASKS, params={"type": "echo", "size": 3})
    cursor = first.headers["x-next-cursor"]
    second = served.tcp.get(TASKS, params={"type": "echo", "size": 3, "cursor": cursor})
    assert [task["id"] for task in first.json() + second.json()] == ids[::-1]
    assert "x-next-cursor" not in second.headers
    assert served.tcp.get(TASKS, params={"page": 0, "size": 1}).headers["x-total-count"] == "6"
    assert served.tcp.get(f"{TASKS}/count", params={"type": "echo"}).json() == {"count": 5}


def test_several_statuses_are_one_filter(served: Served) -> None:
    """By commas or repeated."""
    for type in ("echo", "fail"):
        finished(served, submit(served, type)["id"])
    assert len(served.tcp.get(TASKS, params={"status": "completed,failed"}).json()) == 2
    assert len(served.tcp.get(f"{TASKS}?status=completed&status=failed").json()) == 2
    assert len(served.tcp.get(TASKS, params={"status": "cancelled"}).json()) == 0


def test_a_running_task_is_cancelled(served: Served, tmp_path: Path) -> None:
    """Cancelling answers with the task and is final."""
    task = submit(served, "wait_for", payload={"gate": str(tmp_path / "gate")})
    answer = served.tcp.post(f"{TASKS}/{task['id']}/cancel").json()
    assert (answer["status"], answer["message"]) == ("cancelled", "task cancelled")
    again = served.tcp.post(f"{TASKS}/{task['id']}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "already_finished")


def test_a_failed_task_is_retried_and_any_is_rerun(served: Served) -> None:
    """A retry is a further attempt of the task, a rerun another task."""
    failed = finished(served, submit(served, "fail")["id"])
    retried = served.tcp.post(f"{TASKS}/{failed['id']}/retry").json()
    assert retried["id"] == failed["id"]
    assert finished(served, failed["id"])["attempt"] == 2
    rerun = served.tcp.post(f"{TASKS}/{failed['id']}/rerun")
    assert rerun.status_code == 201
    assert rerun.json()["id"] != failed["id"]


def test_a_finished_task_is_deleted_and_a_running_one_is_not(served: Served, tmp_path: Path) -> None:
    """What is gone is not found; what runs says so."""
    done = finished(served, submit(served)["id"])
    assert served.tcp.delete(f"{TASKS}/{done['id']}").json() == {"message": "task deleted"}
    assert served.tcp.get(f"{TASKS}/{done['id']}").status_code == 404
    running = submit(served, "wait_for", payload={"gate": str(tmp_path / "gate")})
    refused = served.tcp.delete(f"{TASKS}/{running['id']}")
    assert refused.status_code == 409


def test_a_draft_takes_files_and_runs_when_it_is_started(served: Served) -> None:
    """Files come in raw and streamed; the final payload may come with the start."""
    draft = submit(served, "measure", draft=True)
    for name, content in (("a.txt", b"12"), ("b c.txt", b"345")):
        answer = served.tcp.put(f"{TASKS}/{draft['id']}/inputs/{name}", content=content)
        assert (answer.status_code, answer.json()["status"]) == (200, "uploaded")
    assert served.tcp.post(f"{TASKS}/{draft['id']}/start", json={"payload": {}}).json()["status"] == "pending"
    assert finished(served, draft["id"])["result"] == {"bytes": 5}
    assert list((served.data / "tmp").glob("upload-*")) == []
    assert served.tcp.put(f"{TASKS}/{draft['id']}/inputs/a.txt", content=b"late").status_code == 409


def test_outputs_are_downloaded_and_never_run_by_a_browser(served: Served) -> None:
    """Right name, right type, and nothing that a page could execute."""
    draft = submit(served, "measure", draft=True)
    served.tcp.put(f"{TASKS}/{draft['id']}/inputs/a.txt", content=b"12")
    served.tcp.post(f"{TASKS}/{draft['id']}/start")
    task = finished(served, draft["id"])
    assert sorted(Path(path).name for path in task["output_files"]) == ["page.html", "sizes ü.txt"]
    text = served.tcp.get(f"{TASKS}/{task['id']}/outputs/sizes ü.txt")
    assert text.headers["content-type"].startswith("text/plain")
    assert "filename*=" in text.headers["content-disposition"]
    page = served.tcp.get(f"{TASKS}/{task['id']}/outputs/page.html", headers={"Range": "bytes=0-6"})
    assert (page.status_code, page.content) == (206, b"<script")
    assert page.headers["content-type"] == "application/octet-stream"
    assert page.headers["content-security-policy"].startswith("sandbox")


@pytest.mark.parametrize("name", ["missing.txt", "../../../etc/passwd", "%2e%2e%2fVERSION", "."])
def test_an_output_name_never_becomes_a_path(served: Served, name: str) -> None:
    """Only the names that the task lists are there."""
    task = finished(served, submit(served)["id"])
    assert served.tcp.get(f"{TASKS}/{task['id']}/outputs/{name}").status_code in (404, 405)


def test_a_batch_is_accepted_whole_or_not_at_all(served: Served) -> None:
    """One bad submission points to itself, and none becomes a task."""
    good = {"type": "echo"}
    tasks = served.tcp.post(f"{TASKS}:batch", json=[good, good]).json()
    assert len({task["id"] for task in tasks}) == 2
    assert len({task["batch_id"] for task in tasks}) == 1
    refused = served.tcp.post(f"{TASKS}:batch", json=[good, {"type": "echo", "payload": {"times": "x"}}])
    assert refused.status_code == 422
    assert refused.json()["problems"][0]["pointer"] == "/1/payload/times"
    assert served.tcp.get(f"{TASKS}/count").json() == {"count": 2}


def test_the_socket_takes_files_of_this_machine(served: Served, tmp_path: Path) -> None:
    """A copy leaves the file where it is; a move takes it away."""
    for handover, stays in (("copy", True), ("move", False)):
        path = tmp_path / f"{handover}.txt"
        path.write_text("123")
        body = {"type": "measure", "inputs": [{"path": str(path), "handover": handover}]}
        task = served.socket.post(TASKS, json=body, headers={"User-Agent": "runner-cli"}).json()
        assert (task["source"], task["original_filename"]) == ("cli", f"{handover}.txt")
        assert finished(served, task["id"])["result"] == {"bytes": 3}
        assert path.exists() is stays


def test_tcp_takes_no_files_of_this_machine(served: Served, tmp_path: Path) -> None:
    """Whoever reaches the port must not read the disk."""
    path = tmp_path / "a.txt"
    path.write_text("123")
    answer = served.tcp.post(TASKS, json={"type": "measure", "inputs": [{"path": str(path)}]})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_field")


@pytest.mark.parametrize("path", ["relative.txt", "/nowhere/a.txt", "/"])
def test_an_input_that_is_no_file_is_refused(served: Served, path: str) -> None:
    """The answer points to the input that is wrong."""
    answer = served.socket.post(TASKS, json={"type": "measure", "inputs": [{"path": path}]})
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["pointer"] == "/inputs/0/path"
