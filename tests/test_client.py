"""The client for programs, against a real runner."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import runner
from runner import ApiError, AsyncClient, Client, NotReached
from runner.client import Ask, StreamEvent
from tests.web.conftest import Served, serve
from tests.web.test_auth import bearer


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A runner on an empty directory."""
    with serve(tmp_path) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    """A client of it."""
    with Client(f"http://127.0.0.1:{served.port}") as client:
        yield client


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two input files."""
    paths = [tmp_path / "a.txt", tmp_path / "b ü?.txt"]
    for path in paths:
        path.write_text("123")
    return paths


def test_a_task_is_submitted_and_waited_for(client: Client) -> None:
    """What comes back is a task, with everything that it says."""
    task = client.submit("echo", {"text": "ab", "times": 2}, priority=3, delay="0s")
    assert (task.status, task.priority) == ("pending", 3)
    ended = client.wait(task.id)
    assert (ended.status, ended.result) == ("completed", {"text": "abab"})
    assert [one.id for one in client.list_tasks(status="completed", type="echo")] == [task.id]


def test_files_go_with_a_task_and_come_back(client: Client, files: list[Path], tmp_path: Path) -> None:
    """Uploaded one by one, downloaded into a folder or to a name; what is there is complete."""
    task = client.wait(client.submit("measure", files=files).id)
    assert task.result == {"bytes": 6}
    assert client.download(task.id, "sizes ü.txt", tmp_path / "result.txt") == tmp_path / "result.txt"
    into = client.download(task.id, "page.html", tmp_path)
    assert into.read_text() == "<script>alert(1)</script>"
    assert (tmp_path / "result.txt").read_text() == "a.txt\nb ü_.txt\n"
    with pytest.raises(ApiError):
        client.download(task.id, "missing.txt", tmp_path)
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*"))


def test_a_submission_that_is_refused_leaves_nothing(client: Client, files: list[Path], tmp_path: Path) -> None:
    """No task, though its files have come."""
    (tmp_path / "c.exe").write_bytes(b"MZ")
    with pytest.raises(ApiError) as refused:
        client.submit("measure", files=[*files, tmp_path / "c.exe"])
    assert refused.value.status in (415, 422)
    assert client.list_tasks() == []


def test_the_same_key_with_files_is_the_same_task(client: Client, files: list[Path]) -> None:
    """A program that runs twice submits once."""
    first = client.submit("measure", files=files, unique_key="k")
    client.wait(first.id)
    assert client.submit("measure", files=files, unique_key="k").id == first.id


def test_a_draft_is_made_step_by_step(client: Client, files: list[Path]) -> None:
    """And nothing runs before it is started."""
    draft = client.submit("measure", draft=True)
    assert client.upload(draft.id, files[0], name="other.txt").original_filename == "other.txt"
    assert client.start(draft.id).status == "pending"
    assert client.wait(draft.id).result == {"bytes": 3}


def test_tasks_are_changed(client: Client) -> None:
    """Each change answers with the task as it is then."""
    task = client.submit("echo", delay="1h")
    assert client.wait(task.id, timeout_seconds=0.01).status == "pending"
    assert client.cancel(task.id).status == "cancelled"
    assert client.retry(task.id).status == "pending"
    assert client.wait(task.id).status == "completed"
    assert client.rerun(task.id).parent_id == task.id
    client.delete(task.id)
    with pytest.raises(ApiError) as gone:
        client.get(task.id)
    assert (gone.value.status, gone.value.code) == (404, "not_found")


def test_events_are_streamed_to_the_end(client: Client, tmp_path: Path) -> None:
    """From the beginning, or after an id."""
    task = client.submit("wait_for", {"gate": str(tmp_path / "gate")})
    seen: list[StreamEvent] = []
    for event in client.stream(task.id):
        seen.append(event)
        if event.name == "progress":
            (tmp_path / "gate").touch()
    assert (seen[-1].name, seen[-1].data["status"]) == ("done", "completed")
    last = next(event.id for event in reversed(seen) if event.id)
    assert [event.name for event in client.stream(task.id, last)] == ["status", "done"]


def test_a_reset_is_no_end(client: Client, served: Served, tmp_path: Path) -> None:
    """A reader that is too slow goes on where it was, and misses nothing."""
    task = client.submit("wait_for", {"gate": str(tmp_path / "gate")})
    record, events = served.service.get(task.id), served.service.events
    stream = client.stream(task.id)
    next(stream)
    for number in range(2000):
        events.log(record, "info", f"{number} {'x' * 2000}")
    events.flush()
    (tmp_path / "gate").touch()
    heard = list(stream)
    assert "reset" in {event.name for event in heard}
    assert [int(event.data["message"].split()[0]) for event in heard if event.name == "log"] == list(range(2000))


def test_coroutines_have_the_same_verbs(served: Served, files: list[Path], tmp_path: Path) -> None:
    """Through the socket here: `Client` can do that as well."""

    async def use() -> list[str]:
        async with AsyncClient(socket=served.data / "runner.sock") as client:
            task = await client.submit("measure", files=files)
            names = [event.name async for event in client.stream(task.id)]
            assert (await client.wait(task.id)).result == {"bytes": 6}
            path = await client.download(task.id, "sizes ü.txt", tmp_path)
            assert path.name == "sizes ü.txt"
            with pytest.raises(ApiError):
                await client.submit("nothing")
            with pytest.raises(ApiError):
                [event async for event in client.stream("nothing")]
            return names

    assert asyncio.run(use())[-1] == "done"


def test_a_token_says_who_asks(tmp_path: Path) -> None:
    """Without one, nobody is anybody."""
    with serve(tmp_path, auth__mode="token") as served:
        token = bearer(served, "ann")["Authorization"].removeprefix("Bearer ")
        url = f"http://127.0.0.1:{served.port}"
        with Client(url, token=token) as ann, Client(url) as nobody:
            assert ann.submit("echo").user_id == "ann"
            with pytest.raises(ApiError) as refused:
                nobody.list_tasks()
    assert refused.value.status == 401


def test_nobody_answers() -> None:
    """That is said; `reach` may change it, and is asked before."""
    reached = threading.Event()
    with Client("http://127.0.0.1:9", reach=reached.set) as client, pytest.raises(NotReached):
        client.ask(Ask("GET", "/handlers"))
    assert reached.is_set()


def test_a_runner_that_stops_is_no_end_of_a_task(tmp_path: Path) -> None:
    """Who streams is told so, and can come back later."""
    with serve(tmp_path) as served, Client(f"http://127.0.0.1:{served.port}") as client:
        draft = client.submit("measure", draft=True)
        stream = client.stream(draft.id)
        next(stream)
        served.service.events.hang_up()
        with pytest.raises(NotReached):
            list(stream)


def test_the_client_is_part_of_the_package() -> None:
    """Imported when it is first used."""
    assert {"Client", "AsyncClient", "ApiError", "NotReached"} <= set(runner.__all__)
    assert Client.submit.__doc__
