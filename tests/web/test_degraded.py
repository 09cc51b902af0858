"""A disk that fails or is full, as clients and droppers of files see it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runner.store import TaskQuery, space
from runner.store.space import Room
from tests.web.conftest import Served, serve

TASKS = "/api/v1/tasks"
_EVERYTHING = TaskQuery()
PLENTY, NOTHING = Room(10**12, 10**6), Room(0, 10**6)
HEALS_WITHIN_SECONDS = 5.0
BUSY_SECONDS = 5.0
"""What a machine may take longer that does other things, too."""


def submit(served: Served, type: str = "echo", **fields: Any) -> httpx2.Response:
    """The answer to a submission."""
    return served.tcp.post(TASKS, json={"type": type, **fields})


def ended(served: Served, task_id: str) -> dict[str, Any]:
    """The task when it has ended."""
    task: dict[str, Any] = served.tcp.get(f"{TASKS}/{task_id}", params={"wait": 15}).json()
    assert task["status"] in ("completed", "failed", "cancelled")
    return task


def until(is_so: Any, seconds: float = 15.0) -> float:
    """How long it took until that was so."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() < began + seconds, "it does not come"
        time.sleep(0.02)
    return time.monotonic() - began


def refusal(answer: httpx2.Response) -> tuple[int, str, bool]:
    """The status, the code, and whether it says when to ask again."""
    return answer.status_code, answer.json()["code"], "retry-after" in answer.headers


# Failing


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Served, str, str]]:
    """A runner whose disk begins to refuse every sync: a task that has ended, one that waits."""
    with serve(tmp_path) as served:
        done = ended(
            served, served.tcp.post(TASKS, data={"type": "measure"}, files={"file": ("a.txt", b"abc")}).json()["id"]
        )
        waiting = submit(served, delay=3600).json()

        def refuse(fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(served.service.store.files, "datasync", refuse)
        assert refusal(submit(served)) == (503, "storage_degraded", True)
        yield served, done["id"], waiting["id"]


def test_with_a_failing_disk_everything_can_be_read(broken: tuple[Served, str, str]) -> None:
    """Tasks, lists, outputs, logs, handlers: what is there is shown."""
    served, done, waiting = broken
    task = served.tcp.get(f"{TASKS}/{done}").json()
    assert (task["status"], task["result"]) == ("completed", {"bytes": 3})
    assert served.tcp.get(f"{TASKS}/{waiting}").json()["status"] == "pending"
    assert {one["id"] for one in served.tcp.get(TASKS).json()} == {done, waiting}
    assert served.tcp.get(f"{TASKS}/{done}/outputs/page.html").status_code == 200
    for path in (f"{TASKS}/{done}/log", "/api/v1/handlers", "/api/v1/queues/stats", "/metrics", "/live"):
        assert served.tcp.get(path).status_code == 200, path


def test_with_a_failing_disk_nothing_is_accepted_or_changed(
    broken: tuple[Served, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even when it works again: what the kernel gave up nobody knows. `/ready` says why, and nothing starts."""
    served, done, waiting = broken
    monkeypatch.undo()
    answers = [
        submit(served),
        served.tcp.post(f"{TASKS}:batch", json=[{"type": "echo"}]),
        served.tcp.post(TASKS, data={"type": "measure"}, files={"file": ("a.txt", b"abc")}),
        served.tcp.post(f"{TASKS}/{waiting}/cancel"),
        served.tcp.post(f"{TASKS}/{done}/rerun"),
        served.tcp.delete(f"{TASKS}/{done}"),
    ]
    assert [refusal(answer) for answer in answers] == [(503, "storage_degraded", True)] * 6
    ready = served.tcp.get("/ready")
    assert (ready.status_code, "Input/output error" in ready.json()["reason"]) == (503, True)
    served.data.joinpath("inbox", "measure", "drop.txt").write_text("dropped")
    until(lambda: served.service.inbox.report()["paused"] is not None)
    assert served.data.joinpath("inbox", "measure", "drop.txt").read_text() == "dropped"
    assert served.service.count(_EVERYTHING) == 2
    assert not list(served.data.joinpath("tmp").glob("upload*"))


# Full


class Disk:
    """How much room the runner's disk says that it has."""

    def __init__(self) -> None:
        self.room = PLENTY


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """With plenty of it."""
    disk = Disk()
    monkeypatch.setattr(space, "measure", lambda path: disk.room)
    return disk


@pytest.fixture
def full(tmp_path: Path, disk: Disk) -> Iterator[tuple[Served, str, Path]]:
    """A runner whose disk has become full while a task runs: its id, and the gate that it waits at."""
    with serve(tmp_path, storage__min_free_bytes=1000) as served:
        gate = tmp_path / "gate"
        running = submit(served, "wait_for", payload={"gate": str(gate)}).json()["id"]
        until(lambda: served.service.get(running).status == "processing")
        disk.room = NOTHING
        until(lambda: served.tcp.get("/ready").status_code == 503)
        yield served, running, gate


def test_on_a_full_disk_nothing_is_accepted_and_what_runs_is_recorded(full: tuple[Served, str, Path]) -> None:
    """507 with a time to come back; reads go on, and so do cancelling and deleting, which make room."""
    served, running, gate = full
    answers = [
        submit(served),
        served.tcp.post(TASKS, data={"type": "measure"}, files={"file": ("a.txt", b"abc")}),
    ]
    assert [refusal(answer) for answer in answers] == [(507, "disk_full", True)] * 2
    gate.touch()
    assert ended(served, running)["status"] == "completed"
    assert served.tcp.delete(f"{TASKS}/{running}").status_code in (200, 204)
    assert "bytes are free, fewer than the floor" in served.tcp.get("/ready").json()["reason"]


def test_a_file_dropped_on_a_full_disk_waits_and_is_taken_when_there_is_room(
    full: tuple[Served, str, Path], disk: Disk
) -> None:
    """It stays where it is, and `why` says so; the rest goes by itself, within five seconds of the room."""
    served, _, _ = full
    path = served.data / "inbox" / "measure" / "drop.txt"
    path.write_text("dropped")
    until(lambda: served.service.inbox.report()["paused"] is not None)
    said = served.tcp.get("/api/v1/why", params={"target": str(path)}).json()
    assert "fewer than the floor" in said["text"]
    assert path.read_text() == "dropped"
    disk.room = PLENTY
    took = until(lambda: not path.exists() and submit(served).status_code == 201)
    assert took < HEALS_WITHIN_SECONDS + BUSY_SECONDS
    (task,) = served.tcp.get(TASKS, params={"source": "inbox"}).json()
    assert ended(served, task["id"])["result"] == {"bytes": 7}
    assert served.tcp.get("/ready").status_code == 200


def test_a_journal_that_finds_the_disk_full_refuses_and_goes_on_by_itself(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write may find it full before anybody has measured it; nothing of it stays behind."""
    with serve(tmp_path) as served:
        files = served.service.store.files
        with _full_journal(served, monkeypatch):
            assert refusal(submit(served)) == (507, "disk_full", True)
        assert served.service.store.files is files
        assert until(lambda: submit(served).status_code == 201) < HEALS_WITHIN_SECONDS + BUSY_SECONDS
        assert served.tcp.get("/ready").status_code == 200


@contextmanager
def _full_journal(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The journal's segment cannot grow."""
    journal, files = served.service.store._journal, served.service.store.files
    write = files.write

    def refuse(fd: int, data: bytes | memoryview) -> int:
        if fd == journal._fd:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", refuse)
        yield
