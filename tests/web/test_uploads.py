"""Resumable uploads, with `tuspy`, a client that others wrote, and by hand where it does not go."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import httpx2
import pytest
from tusclient.client import TusClient

from runner.errors import DiskFull, NotFound
from runner.web.uploads import SWEEP_SECONDS, Upload, UploadFiles
from tests.web.conftest import Served, serve
from tests.web.test_auth import bearer
from tests.web.test_tasks import TASKS, finished, submit

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = TUS | {"Content-Type": "application/offset+octet-stream"}


def begin(served: Served, draft_id: str, length: int, name: str = "a.txt") -> str:
    """A new upload's path."""
    metadata = f"filename {base64.b64encode(name.encode()).decode()}"
    answer = served.tcp.post(
        f"{TASKS}/{draft_id}/uploads", headers=TUS | {"Upload-Length": str(length), "Upload-Metadata": metadata}
    )
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def append(served: Served, path: str, offset: int, content: bytes, **headers: str) -> httpx2.Response:
    """One more piece."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return served.tcp.patch(path, content=content, headers=BYTES | {"Upload-Offset": str(offset)} | more)


def offset(served: Served, path: str) -> int:
    """How far the upload is."""
    return int(served.tcp.head(path, headers=TUS).headers["upload-offset"])


def client(served: Served, draft_id: str) -> TusClient:
    """A client that others wrote."""
    return TusClient(f"http://127.0.0.1:{served.port}{TASKS}/{draft_id}/uploads")


def left_over(served: Served) -> list[Path]:
    """What lies where uploads lie."""
    return list((served.data / "tmp").glob("tus-*"))


@pytest.fixture
def draft(served: Served) -> str:
    """A draft's id."""
    return str(submit(served, "measure", draft=True)["id"])


def test_a_file_comes_in_piece_by_piece(served: Served, draft: str) -> None:
    """With checksums; its last byte makes it an input of the draft, under its own name."""
    content = b"0123456789" * 30_000
    about = {"filename": "holiday ü.txt"}
    uploader = client(served, draft).uploader(
        file_stream=BytesIO(content), chunk_size=100_000, metadata=about, upload_checksum=True
    )
    uploader.upload()
    task = served.tcp.get(f"{TASKS}/{draft}").json()
    assert (task["status"], task["original_filename"], task["file_size"]) == ("uploaded", "holiday ü.txt", 300_000)
    assert (served.data / task["input_files"][0]).read_bytes() == content
    served.tcp.post(f"{TASKS}/{draft}/start")
    assert finished(served, draft)["result"] == {"bytes": 300_000}


def test_another_client_goes_on_where_the_first_one_stopped(served: Served, draft: str) -> None:
    """All it needs is the address."""
    content = b"0123456789" * 25_000
    first = client(served, draft).uploader(
        file_stream=BytesIO(content), chunk_size=100_000, metadata={"filename": "a.txt"}
    )
    first.upload_chunk()  # type: ignore[no-untyped-call]
    second = client(served, draft).uploader(file_stream=BytesIO(content), chunk_size=100_000, url=first.url)
    assert second.offset == 100_000
    second.upload()
    assert served.tcp.get(f"{TASKS}/{draft}").json()["file_size"] == 250_000


def test_a_restart_loses_nothing_that_has_come(tmp_path: Path) -> None:
    """What has come is on the disk, and so is whose it is."""
    with serve(tmp_path) as served:
        draft = submit(served, "measure", draft=True)["id"]
        path = begin(served, draft, 10)
        append(served, path, 0, b"12345")
    with serve(tmp_path) as served:
        assert offset(served, path) == 5
        assert append(served, path, 5, b"67890").status_code == 204
        assert served.tcp.get(f"{TASKS}/{draft}").json()["file_size"] == 10


def test_a_connection_that_breaks_keeps_what_has_come(served: Served, draft: str) -> None:
    """Without a checksum; with one, only the whole piece counts."""
    for head in ("", "Upload-Checksum: sha1 AAAA\r\n"):
        path = begin(served, draft, 3 << 20)
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(
                f"PATCH {path} HTTP/1.1\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n{head}"
                f"Content-Type: application/offset+octet-stream\r\nContent-Length: {3 << 20}\r\n\r\n".encode()
                + b"x" * (3 << 19)
            )
            await_offset(served, path, range(1 << 20, 3 << 19))
        await_offset(served, path, range(1) if head else range(1 << 20, (3 << 19) + 1))


def await_offset(served: Served, path: str, wanted: range) -> None:
    """Until the upload is so far."""
    until = time.monotonic() + 10
    while offset(served, path) not in wanted and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert offset(served, path) in wanted


def test_a_piece_with_a_wrong_checksum_never_was(served: Served, draft: str) -> None:
    """460; the right one is taken."""
    path = begin(served, draft, 3)
    wrong = base64.b64encode(hashlib.sha256(b"xyz").digest()).decode()
    answer = append(served, path, 0, b"abc", Upload_Checksum=f"sha256 {wrong}")
    assert (answer.status_code, answer.json()["code"]) == (460, "checksum_mismatch")
    assert offset(served, path) == 0
    right = base64.b64encode(hashlib.sha256(b"abc").digest()).decode()
    assert append(served, path, 0, b"abc", Upload_Checksum=f"sha256 {right}").status_code == 204


def test_who_did_not_get_the_last_answer_is_told_that_it_is_complete(served: Served, draft: str) -> None:
    """The offset stays where it is, and nothing is taken twice."""
    path = begin(served, draft, 3)
    append(served, path, 0, b"abc")
    assert offset(served, path) == 3
    assert append(served, path, 3, b"").status_code == 204
    assert len(served.tcp.get(f"{TASKS}/{draft}").json()["input_files"]) == 1


def test_what_a_full_disk_refuses_at_the_end_is_kept(
    served: Served, draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room again, and an empty piece is enough."""
    path = begin(served, draft, 4)

    def refuse(*_: object) -> None:
        raise DiskFull("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(served.service, "add_input", refuse)
        assert append(served, path, 0, b"0123").status_code == 507
    assert offset(served, path) == 4
    assert append(served, path, 4, b"").status_code == 204
    assert served.tcp.get(f"{TASKS}/{draft}").json()["status"] == "uploaded"


def test_an_empty_file_is_complete_at_once(served: Served, draft: str) -> None:
    """Nothing has to come."""
    begin(served, draft, 0)
    assert served.tcp.get(f"{TASKS}/{draft}").json()["file_size"] == 0


def test_an_upload_is_ended_by_its_client(served: Served, draft: str) -> None:
    """Nothing of it is left; also for clients that can only POST."""
    for method, headers in (("DELETE", {}), ("POST", {"X-HTTP-Method-Override": "DELETE"})):
        path = begin(served, draft, 10)
        append(served, path, 0, b"12345")
        assert served.tcp.request(method, path, headers=TUS | headers).status_code == 204
        assert served.tcp.head(path, headers=TUS).status_code == 404
    assert left_over(served) == []


def test_an_upload_that_nobody_goes_on_with_is_forgotten(tmp_path: Path) -> None:
    """When it expires; a new one sweeps the others away, at most once a minute."""
    now = time.time()
    files = UploadFiles(tmp_path, expires_seconds=60, clock=lambda: now)
    files.create(Upload(id="a", task_id="t", user_id="local", name="a.txt", length=10))
    assert files.find("a").offset == 0
    now += 61
    with pytest.raises(NotFound):
        files.find("a")
    files.create(Upload(id="b", task_id="t", user_id="local", name="b.txt", length=10))
    assert list(tmp_path.glob("tus-a*")) == []
    now += SWEEP_SECONDS - 1
    files.create(Upload(id="c", task_id="t", user_id="local", name="c.txt", length=10))
    now += 1
    assert list(tmp_path.glob("tus-b*")) != []
    files.create(Upload(id="d", task_id="t", user_id="local", name="d.txt", length=10))
    assert list(tmp_path.glob("tus-b*")) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Length": "3"}, 412),
        (TUS | {"Tus-Resumable": "0.2.2", "Upload-Length": "3"}, 412),
        (TUS, 400),
        (TUS | {"Upload-Length": "-1"}, 400),
        (TUS | {"Upload-Defer-Length": "1"}, 400),
        (TUS | {"Upload-Length": "3", "Upload-Metadata": "filename ???"}, 400),
        (TUS | {"Upload-Length": str(10**17)}, 413),
    ],
)
def test_a_creation_that_is_wrong_is_refused(
    served: Served, draft: str, headers: Mapping[str, str], status: int
) -> None:
    """And leaves nothing."""
    assert served.tcp.post(f"{TASKS}/{draft}/uploads", headers=dict(headers)).status_code == status
    assert left_over(served) == []


def test_a_piece_that_does_not_fit_is_refused(served: Served, draft: str) -> None:
    """In the wrong place, too long, of the wrong type, with a checksum that nobody knows."""
    path = begin(served, draft, 3)
    assert append(served, path, 1, b"a").status_code == 409
    assert append(served, path, 0, b"abcd").status_code == 413
    assert append(served, path, 0, b"abc", Content_Type="text/plain").status_code == 415
    assert append(served, path, 0, b"abc", Upload_Checksum="crc32 AAAA").status_code == 400
    assert append(served, path, 0, b"abc", Upload_Checksum="sha1 ???").status_code == 400
    assert append(served, path, 0, b"abc", Tus_Resumable="2.0.0").status_code == 412
    assert served.tcp.post(path, headers=TUS).status_code == 405
    assert offset(served, path) == 0


def test_only_drafts_take_files(served: Served, draft: str) -> None:
    """One that was started meanwhile takes no more, and the upload is gone."""
    path = begin(served, draft, 3)
    served.tcp.put(f"{TASKS}/{draft}/inputs/b.txt", content=b"1")
    served.tcp.post(f"{TASKS}/{draft}/start")
    assert append(served, path, 0, b"abc").status_code == 409
    assert left_over(served) == []
    assert served.tcp.post(f"{TASKS}/{draft}/uploads", headers=TUS | {"Upload-Length": "1"}).status_code == 409


@pytest.mark.parametrize("upload_id", ["0" * 32, "../VERSION", "0", "A" * 32, "%00"])
def test_an_unknown_upload_is_not_found(idle: Served, upload_id: str) -> None:
    """However it is named."""
    assert idle.tcp.head(f"/api/v1/uploads/{upload_id}", headers=TUS).status_code == 404


def test_what_is_offered_is_said(served: Served, draft: str) -> None:
    """By OPTIONS."""
    answer = served.tcp.options(f"{TASKS}/{draft}/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-extension"] == "creation,checksum,termination,expiration"


def test_another_users_upload_is_not_there(tmp_path: Path) -> None:
    """To look at, to go on with, to end; nor can a file be given to another's draft."""
    with serve(tmp_path, auth__mode="token") as served:
        ann, ben = bearer(served, "ann"), bearer(served, "ben")
        draft = served.tcp.post(TASKS, json={"type": "measure", "draft": True}, headers=ann).json()["id"]
        create = TUS | {"Upload-Length": "3"}
        path = served.tcp.post(f"{TASKS}/{draft}/uploads", headers=create | ann).headers["location"]
        assert served.tcp.post(f"{TASKS}/{draft}/uploads", headers=create | ben).status_code == 404
        assert served.tcp.head(path, headers=TUS | ben).status_code == 404
        assert served.tcp.patch(path, content=b"abc", headers=BYTES | {"Upload-Offset": "0"} | ben).status_code == 404
        assert served.tcp.delete(path, headers=TUS | ben).status_code == 404
        assert served.tcp.head(path, headers=TUS | ann).status_code == 200
