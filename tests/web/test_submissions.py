"""Submitting: once however often it is sent, by form, and with files that lie here already."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runner.web.multipart import _Reader
from tests.web.conftest import Served, serve
from tests.web.test_tasks import TASKS, finished, submit

BOUNDARY = "XX"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, content: str, filename: str | None = None) -> str:
    """One part of a form."""
    file = f'; filename="{filename}"' if filename is not None else ""
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n{content}\r\n'


def form(*parts: str) -> bytes:
    """A whole form."""
    return ("".join(parts) + f"--{BOUNDARY}--\r\n").encode()


def left_over(served: Served) -> list[Path]:
    """Files that came in and belong to nobody."""
    return [*(served.data / "tmp").glob("upload-*"), *(served.data / "uploads").rglob("*.*")]


@pytest.fixture(scope="module")
def rooted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A runner to which files below `in` may be handed in by path."""
    folder = tmp_path_factory.mktemp("rooted")
    (folder / "in").mkdir()
    (folder / "elsewhere.txt").write_text("secret")
    (folder / "in" / "link.txt").symlink_to(folder / "elsewhere.txt")
    with serve(folder, http__allowed_roots=[str(folder / "in"), str(folder)], http__max_upload_bytes=100) as one:
        yield one


# Sent again


def test_the_same_key_and_submission_is_the_same_task(served: Served) -> None:
    """201 the first time, 200 and `Idempotent-Replayed` after that, also when the task has ended."""
    key, body = {"Idempotency-Key": "order 1"}, {"type": "echo", "payload": {"text": "a"}, "priority": 3}
    first = served.tcp.post(TASKS, json=body, headers=key)
    assert (first.status_code, first.json()["unique_key"]) == (201, "order 1")
    finished(served, first.json()["id"])
    again = served.tcp.post(TASKS, json=body, headers=key)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert again.json()["id"] == first.json()["id"]


@pytest.mark.parametrize("other", [{"payload": {"text": "b"}}, {"priority": 4}, {"metadata": {"a": "b"}}])
def test_the_same_key_with_another_submission_is_refused(served: Served, other: dict[str, Any]) -> None:
    """Whatever differs, as far as the submission says it."""
    key, body = {"Idempotency-Key": "k"}, {"type": "echo", "priority": 3}
    served.tcp.post(TASKS, json=body, headers=key)
    answer = served.tcp.post(TASKS, json=body | other, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")


def test_a_key_that_contradicts_itself_or_is_no_key_is_refused(idle: Served) -> None:
    """Header and body may both say it if they say the same."""
    answer = idle.tcp.post(TASKS, json={"type": "echo", "unique_key": "a"}, headers={"Idempotency-Key": "b"})
    assert (answer.status_code, answer.json()["problems"][0]["pointer"]) == (422, "/unique_key")
    for key in ("", "x" * 256):
        answer = idle.tcp.post(TASKS, json={"type": "echo"}, headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_key")


def test_a_key_sent_by_many_at_once_makes_one_task(served: Served) -> None:
    """A client that gives up and tries again while the first request is still being answered."""
    answers: list[httpx2.Response] = []

    def send() -> None:
        answers.append(served.tcp.post(TASKS, json={"type": "echo"}, headers={"Idempotency-Key": "k"}))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]


# By form


def test_a_form_is_a_submission_with_its_files(served: Served) -> None:
    """Fields by name, or the whole as JSON in `task`; the files become the task's inputs in their order."""
    files = [("file", ("b ü.txt", b"12")), ("file", ("a.txt", b"345"))]
    by_field = served.tcp.post(TASKS, data={"type": "measure", "priority": "2", "payload": "{}"}, files=files)
    as_json = served.tcp.post(TASKS, data={"task": json.dumps({"type": "measure", "priority": 2})}, files=files)
    for answer in (by_field, as_json):
        assert (answer.status_code, answer.json()["priority"]) == (201, 2)
        task = finished(served, answer.json()["id"])
        assert (task["result"], task["original_filename"]) == ({"bytes": 5}, "b ü.txt")
        assert [Path(path).name for path in task["input_files"]] == ["b ü.txt", "a.txt"]
    assert list((served.data / "tmp").glob("upload-*")) == []


def test_a_form_with_a_key_is_taken_once(served: Served) -> None:
    """The second time its files are dropped."""
    for status in (201, 200):
        answer = served.tcp.post(
            TASKS, data={"type": "measure"}, files={"file": ("a.txt", b"1")}, headers={"Idempotency-Key": "k"}
        )
        assert answer.status_code == status
    assert len(list((served.data / "uploads").rglob("a.txt"))) == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (form(part("type", "measure"), part("f", "1", "a.txt"))[:-8], 400, "truncated_upload"),
        (part("type", "measure").encode(), 400, "truncated_upload"),
        (b"", 400, "truncated_upload"),
        (b"no form at all", 400, "invalid_form"),
        (b"\x00\xff", 400, "invalid_form"),
        (form(part("type", "echo"), part("type", "fail")), 400, "duplicate_key"),
        (form(part("task", "{"), part("f", "1", "a.txt")), 400, "invalid_json"),
        (form(part("task", '{"type": "echo"}'), part("type", "fail")), 422, "validation_error"),
        (form(part("type", "nothing"), part("f", "1", "a.txt")), 422, "unknown_handler"),
        (form(part("type", "measure"), part("f", "1", "a.exe")), 415, "type_mismatch"),
        (form(part("type", "echo"), part("user_id", "ann")), 422, "unknown_field"),
        (form(part("type", "echo"), part("priority", "high")), 400, "invalid_json"),
        (form(*[part(str(number), "") for number in range(1001)]), 400, "invalid_form"),
        (form(part("payload", "x" * ((1 << 20) + 1))), 413, "content_too_large"),
        (f"--{BOUNDARY}\r\nA: b\r\n\r\n--{BOUNDARY}--\r\n".encode(), 400, "invalid_form"),
        (f"--{BOUNDARY}\r\nA: {'b' * 20000}\r\n\r\n--{BOUNDARY}--\r\n".encode(), 400, "invalid_form"),
    ],
)
def test_a_bad_form_is_refused_and_leaves_nothing(idle: Served, body: bytes, status: int, code: str) -> None:
    """No task, no file."""
    answer = idle.tcp.post(TASKS, content=body, headers=FORM)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert left_over(idle) == []
    assert list((idle.data / "tasks").iterdir()) == []


@pytest.mark.parametrize("boundary", ["", "; boundary=", '; boundary="', f"; boundary={'x' * 5000}"])
def test_a_form_without_a_boundary_is_refused(idle: Served, boundary: str) -> None:
    """It cannot be read; nor by one that is longer than any program makes it."""
    answer = idle.tcp.post(TASKS, content=b"x", headers={"Content-Type": f"multipart/form-data{boundary}"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_form")


def test_a_form_is_read_the_same_however_it_is_cut() -> None:
    """Every position of a cut between two chunks, boundaries and heads included."""
    whole = form(part("type", "x"), part("f", "1\r\n--X\r\n2", "a.txt"), part("p", "y"))
    expected = None
    for cut in range(len(whole) + 1):
        reader = _Reader(BOUNDARY.encode(), 100)
        happened = [event for chunk in (whole[:cut], whole[cut:]) for event in reader.feed(chunk)]
        file = b"".join(event for event in happened if isinstance(event, bytes))
        names = [type(event).__name__ for event in happened if not isinstance(event, bytes)]
        assert reader.is_complete
        assert expected in (None, (file, names))
        expected = (file, names)
    assert expected == (b"1\r\n--X\r\n2", ["_Part", "_End"] * 3)


def test_a_file_larger_than_what_is_allowed_is_refused(rooted: Served) -> None:
    """By form and raw, declared or not; the limit is for all files together."""
    two = [("f", ("a.txt", b"x" * 60)), ("f", ("b.txt", b"x" * 60))]
    assert rooted.tcp.post(TASKS, data={"type": "measure"}, files=two).status_code == 413
    draft = submit(rooted, "measure", draft=True)
    for content in (b"x" * 101, iter([b"x" * 60, b"x" * 60])):
        answer = rooted.tcp.put(f"{TASKS}/{draft['id']}/inputs/a.txt", content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "content_too_large")
    assert left_over(rooted) == []


def test_an_upload_that_is_broken_off_leaves_nothing(served: Served) -> None:
    """The client goes away in the middle: raw, and by form."""
    draft = submit(served, "measure", draft=True)
    requests = (
        f"PUT {TASKS}/{draft['id']}/inputs/a.txt HTTP/1.1\r\nContent-Type: text/plain\r\n",
        f"POST {TASKS} HTTP/1.1\r\nContent-Type: {FORM['Content-Type']}\r\n",
    )
    for head in requests:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(f"{head}Host: localhost\r\nContent-Length: 100000\r\n\r\n".encode())
            client.sendall(part("f", "x" * 1000, "a.txt").encode())
            until = time.monotonic() + 10
            while not list((served.data / "tmp").glob("upload-*")) and time.monotonic() < until:
                threading.Event().wait(0.01)
            assert list((served.data / "tmp").glob("upload-*"))
        while left_over(served) and time.monotonic() < until:
            threading.Event().wait(0.01)
        assert left_over(served) == []
    assert served.tcp.get(f"{TASKS}/{draft['id']}").json()["status"] == "created"
    assert served.tcp.get(f"{TASKS}/count").json() == {"count": 1}


def test_what_a_killed_runner_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    """Nobody else would ever take it."""
    (tmp_path / "data" / "tmp").mkdir(parents=True, mode=0o700)
    (tmp_path / "data").chmod(0o700)
    (tmp_path / "data" / "tmp" / "upload-abc").write_text("half")
    with serve(tmp_path) as served:
        assert left_over(served) == []


# From here


def test_a_file_under_an_allowed_root_is_moved_by_rename(rooted: Served) -> None:
    """Not a byte is copied, however large it is; a copy has to be asked for."""
    folder = rooted.data.parent / "in"
    for handover, stays in (({}, False), ({"handover": "copy"}, True)):
        path = folder / "big.txt"
        with path.open("wb") as file:
            file.truncate(1 << 30)
        inode = path.stat().st_ino
        if stays:
            path.write_bytes(b"small")
        answer = rooted.tcp.post(TASKS, json={"type": "measure", "inputs": [{"path": str(path), **handover}]})
        assert answer.status_code == 201, answer.text
        assert path.exists() is stays
        kept = rooted.data / answer.json()["input_files"][0]
        assert (kept.stat().st_ino == inode) is not stays


def test_no_other_file_can_be_named(rooted: Served) -> None:
    """Not by a link, by `..`, or inside the data directory; and nobody learns which files there are."""
    folder = rooted.data.parent
    answers = []
    for path in (
        "/etc/passwd", "/etc/no-such-file", folder / "in" / ".." / ".." / "x", rooted.data / "VERSION", "in/a.txt",
    ):  # fmt: skip
        answer = rooted.tcp.post(TASKS, json={"type": "measure", "inputs": [{"path": str(path)}]})
        answers.append(answer.json()["problems"][0]["message"])
        assert answer.status_code == 422
    assert set(answers[:4]) == {"must lie under one of http.allowed_roots"}


def test_a_link_out_of_every_root_leads_nowhere(tmp_path: Path) -> None:
    """What counts is where the file really lies."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.txt").symlink_to("/etc/passwd")
    with serve(tmp_path, http__allowed_roots=[str(tmp_path / "in")]) as served:
        body = {"type": "measure", "inputs": [{"path": str(tmp_path / "in" / "link.txt")}]}
        assert served.tcp.post(TASKS, json=body).status_code == 422
