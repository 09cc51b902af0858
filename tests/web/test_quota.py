"""The quota of a user, at the door: whichever way files come in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.web.conftest import Served, serve
from tests.web.test_tasks import TASKS, finished
from tests.web.test_uploads import TUS, append, begin

QUOTA = 10_000


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Served]:
    """A runner whose users may keep little; `tcp` is Ann's."""
    (tmp_path / "in").mkdir()
    settings = {"auth__mode": "token", "limits__max_bytes_per_user": QUOTA}
    with serve(tmp_path, http__allowed_roots=[str(tmp_path / "in")], **settings) as served:
        token = served.socket.post("/api/v1/tokens", json={"name": "ann"}).json()["token"]
        served.tcp.headers["Authorization"] = f"Bearer {token}"
        yield served


def draft_of(served: Served) -> str:
    """A draft's address."""
    return f"{TASKS}/{served.tcp.post(TASKS, json={'type': 'measure', 'draft': True}).json()['id']}"


def used(served: Served) -> int:
    """What the user is told."""
    statistics = served.tcp.get("/api/v1/users/me").json()["statistics"]
    assert statistics["max_bytes"] == QUOTA
    return int(statistics["bytes"])


def await_used(served: Served, wanted: int) -> None:
    """Until so much is used: files go a moment after their task, and are looked for a moment after that."""
    until = time.monotonic() + 20
    while used(served) != wanted and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert used(served) == wanted


def is_refused(answer: httpx2.Response) -> bool:
    """Whether the quota is why."""
    assert answer.status_code == 429, answer.text
    return bool(answer.json()["code"] == "quota_exceeded" and answer.headers["retry-after"] == "60")


def test_no_way_in_leads_past_the_quota(narrow: Served) -> None:
    """Raw, declared or not, by form, resumable, and by path; nothing is left of what was refused."""
    draft = draft_of(narrow)
    assert narrow.tcp.put(f"{draft}/inputs/a.txt", content=b"x" * 6000).status_code == 200
    assert used(narrow) == 6000
    assert is_refused(narrow.tcp.put(f"{draft}/inputs/b.txt", content=b"x" * 4001))
    assert is_refused(narrow.tcp.put(f"{draft}/inputs/b.txt", content=iter([b"x" * 3000, b"x" * 3000])))
    assert is_refused(narrow.tcp.post(TASKS, data={"type": "measure"}, files={"f": ("a.txt", b"x" * 4001)}))
    assert is_refused(narrow.tcp.post(f"{draft}/uploads", headers=TUS | {"Upload-Length": "4001"}))
    path = narrow.data.parent / "in" / "big.txt"
    path.write_bytes(b"x" * 4001)
    assert is_refused(narrow.tcp.post(TASKS, json={"type": "measure", "inputs": [{"path": str(path)}]}))
    assert path.exists()
    assert [one.name for one in (narrow.data / "tmp").iterdir() if one.name.startswith(("upload-", "tus-"))] == []
    assert used(narrow) == 6000


def test_a_resumable_upload_counts_from_its_beginning(narrow: Served) -> None:
    """As a whole, once; when it is forgotten it counts no more."""
    draft = draft_of(narrow)
    path = begin(narrow, draft.rpartition("/")[2], 9000)
    assert is_refused(narrow.tcp.put(f"{draft}/inputs/b.txt", content=b"x" * 2000))
    assert is_refused(narrow.tcp.post(f"{draft}/uploads", headers=TUS | {"Upload-Length": "2000"}))
    append(narrow, path, 0, b"x" * 9000)
    assert narrow.tcp.get(draft).json()["file_size"] == 9000
    await_used(narrow, 9000)
    assert narrow.tcp.delete(draft).status_code == 200
    await_used(narrow, 0)
    again = draft_of(narrow)
    path = begin(narrow, again.rpartition("/")[2], 9000)
    assert narrow.tcp.delete(path, headers=TUS).status_code == 204
    await_used(narrow, 0)
    assert narrow.tcp.put(f"{again}/inputs/b.txt", content=b"x" * 9000).status_code == 200


def test_results_count_and_who_is_full_has_to_make_room(narrow: Served) -> None:
    """Without files, too, nothing more is taken; others are not concerned, nor is the admin."""
    draft = draft_of(narrow)
    narrow.tcp.put(f"{draft}/inputs/a.txt", content=b"x" * 9_960)
    narrow.tcp.post(f"{draft}/start")
    task = finished(narrow, draft.rpartition("/")[2])
    assert task["status"] == "completed"
    results = sum(path.stat().st_size for path in (narrow.data / "results" / "ann").rglob("*") if path.is_file())
    await_used(narrow, 9_960 + results)
    (narrow.data / "results" / "ann" / task["id"] / "more.bin").write_bytes(b"x" * 100)
    await_used(narrow, 9_960 + results + 100)
    assert is_refused(narrow.tcp.post(TASKS, json={"type": "echo"}))
    assert is_refused(narrow.tcp.post(f"{TASKS}:batch", json=[{"type": "echo"}]))
    assert narrow.socket.post(TASKS, json={"type": "echo"}).status_code == 201
    narrow.tcp.delete(draft)
    await_used(narrow, 0)
    assert narrow.tcp.post(TASKS, json={"type": "echo"}).status_code == 201
