"""Bad input and its answer: no request is answered by 500, and none that is refused writes anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.web.conftest import Served, serve
from tests.web.test_matrix import completed
from tests.web.test_tasks import finished, submit

TASKS = "/api/v1/tasks"
ABSENT = f"{TASKS}/00000000-0000-4000-8000-000000000000"
JSON = {"Content-Type": "application/json"}
MIB = 1 << 20

NOT_WATCHED = frozenset({"journal", "locks", "index.db", "index.db-wal", "index.db-shm"})
"""What the runner writes by itself, at its own times."""


class Row(NamedTuple):
    """A request and the answer to it."""

    method: str
    path: str
    status: int
    code: str
    content: bytes | None = None
    headers: dict[str, str] = {}  # noqa: RUF012 - nobody changes it


def submission(content: bytes, status: int, code: str, **headers: str) -> Row:
    """A row of a body that is no submission."""
    return Row("POST", TASKS, status, code, content, JSON | {name.replace("_", "-"): headers[name] for name in headers})


def ids() -> Iterator[tuple[str, Row]]:
    """Ids that no task can have, on routes that would read, change, stream and write."""
    bad = ("Upper", "a.b", "..%2f..%2fVERSION", "%2e%2e", "%00", "a" * 65, "-a", "_a", "con:", "%0d%0aX:%20y", "é")
    for id in bad:
        yield f"id {id[:20]}", Row("GET", f"{TASKS}/{id}", 404, "not_found")
        yield f"log of {id[:20]}", Row("GET", f"{TASKS}/{id}/log", 404, "not_found")
        yield f"events of {id[:20]}", Row("GET", f"{TASKS}/{id}/events", 404, "not_found")
        yield f"upload to {id[:20]}", Row("PUT", f"{TASKS}/{id}/inputs/a.txt", 404, "not_found", b"x")


TABLE = {
    "empty": submission(b"", 400, "invalid_json"),
    "half": submission(b"{", 400, "invalid_json"),
    "not UTF-8": submission(b'{"type": "\xff"}', 400, "invalid_json"),
    "UTF-16": submission('{"type": "echo"}'.encode("utf-16"), 400, "invalid_json"),
    "byte order mark": submission(b'\xef\xbb\xbf{"type": "echo"}', 400, "invalid_json"),
    "NaN": submission(b'{"type": "echo", "priority": NaN}', 400, "invalid_json"),
    "Infinity": submission(b'{"type": "echo", "priority": -Infinity}', 400, "invalid_json"),
    "1e400": submission(b'{"type": "echo", "priority": 1e400}', 400, "invalid_json"),
    "half a surrogate pair": submission(b'{"type": "\\ud800"}', 400, "invalid_json"),
    "2^63": submission(b'{"type": "echo", "priority": 9223372036854775808}', 400, "invalid_json"),
    "a million digits": submission(b'{"type": "echo", "priority": ' + b"9" * 1_000_000 + b"}", 400, "invalid_json"),
    "65 levels": submission(b'{"type": "echo", "payload": ' + b"[" * 64 + b"]" * 64 + b"}", 400, "invalid_json"),
    "500,000 levels": submission(b"[" * 500_000, 400, "invalid_json"),
    "key twice": submission(b'{"type": "echo", "type": "fail"}', 400, "duplicate_key"),
    "key twice, inside": submission(b'{"type": "echo", "payload": {"a": 1, "\\u0061": 2}}', 400, "duplicate_key"),
    "array": submission(b"[]", 422, "validation_error"),
    "number": submission(b"1", 422, "validation_error"),
    "null": submission(b"null", 422, "validation_error"),
    "nothing in it": submission(b"{}", 422, "validation_error"),
    "type is a number": submission(b'{"type": 7}', 422, "validation_error"),
    "type is a path": submission(b'{"type": "../../etc/passwd"}', 422, "unknown_handler"),
    "type is long": submission(b'{"type": "' + b"x" * 100_000 + b'"}', 422, "unknown_handler"),
    "no such handler": submission(b'{"type": "ecoh"}', 422, "unknown_handler"),
    "very many wrong fields": submission(
        b'{"type": "echo"' + b"".join(b', "x%d": 1' % n for n in range(50_000)) + b"}", 422, "unknown_field"
    ),
    "sets status": submission(b'{"type": "echo", "status": "completed"}', 422, "unknown_field"),
    "sets user": submission(b'{"type": "echo", "user_id": "ann"}', 422, "unknown_field"),
    "sets id": submission(b'{"type": "echo", "id": "mine"}', 422, "unknown_field"),
    "sets attempt": submission(b'{"type": "echo", "attempt": 3}', 422, "unknown_field"),
    "sets result": submission(b'{"type": "echo", "result": {}}', 422, "unknown_field"),
    "sets source": submission(b'{"type": "echo", "source": "cli"}', 422, "unknown_field"),
    "sets version": submission(b'{"type": "echo", "version": 99}', 422, "unknown_field"),
    "what follows has a wrong field": submission(
        b'{"type": "echo", "on_success": {"type": "echo", "status": "completed"}}', 422, "unknown_field"
    ),
    "names a file of this machine": submission(
        b'{"type": "echo", "inputs": [{"path": "/etc/passwd"}]}', 422, "unknown_field"
    ),
    "payload of another type": submission(b'{"type": "echo", "payload": {"times": "x"}}', 422, "validation_error"),
    "payload of another name": submission(b'{"type": "echo", "payload": {"tmies": 2}}', 422, "validation_error"),
    "payload is an array": submission(b'{"type": "echo", "payload": []}', 422, "validation_error"),
    "no such queue": submission(b'{"type": "echo", "queue": "no-such-queue"}', 422, "validation_error"),
    "priority is text": submission(b'{"type": "echo", "priority": "high"}', 422, "validation_error"),
    "priority beyond all": submission(b'{"type": "echo", "priority": 9000000000000000000}', 422, "validation_error"),
    "delay is a word": submission(b'{"type": "echo", "delay": "soon"}', 422, "validation_error"),
    "delay is negative": submission(b'{"type": "echo", "delay": -1}', 422, "validation_error"),
    "instant without a zone": submission(
        b'{"type": "echo", "run_after": "2030-01-01T00:00:00"}', 422, "validation_error"
    ),
    "year 10000": submission(b'{"type": "echo", "run_after": "10000-01-01T00:00:00Z"}', 422, "validation_error"),
    "expired": submission(b'{"type": "echo", "expires_at": "2020-01-01T00:00:00Z"}', 422, "validation_error"),
    "one byte too much": submission(b" " * (MIB + 1), 413, "content_too_large"),
    "no content type": Row("POST", TASKS, 415, "unsupported_media_type", b'{"type": "echo"}'),
    "a form": Row("POST", TASKS, 415, "unsupported_media_type", b"type=echo",
                  {"Content-Type": "application/x-www-form-urlencoded"}),
    "a form of a kind that is none": Row("POST", TASKS, 415, "unsupported_media_type", b"--x--",
                                         {"Content-Type": "multipart/mixed; boundary=x"}),
    "multipart without a boundary": Row("POST", TASKS, 400, "invalid_form", b"--x--",
                                        {"Content-Type": "multipart/form-data"}),
    "multipart that breaks off": Row("POST", TASKS, 400, "truncated_upload",
                                     b'--x\r\nContent-Disposition: form-data; name="type"\r\n\r\necho',
                                     {"Content-Type": "multipart/form-data; boundary=x"}),
    "plain text": Row("POST", TASKS, 415, "unsupported_media_type", b"{}", {"Content-Type": "text/plain"}),
    "batch is an object": Row("POST", f"{TASKS}:batch", 422, "validation_error", b"{}", JSON),
    "batch with one wrong": Row(
        "POST", f"{TASKS}:batch", 422, "unknown_handler", b'[{"type": "echo"}, {"type": "ecoh"}]', JSON
    ),
    "foreign host": submission(b'{"type": "echo"}', 400, "invalid_host", Host="evil.example"),
    "foreign host, reading": Row("GET", TASKS, 400, "invalid_host", None, {"Host": "127.0.0.1.evil.example"}),
    "foreign origin": submission(b'{"type": "echo"}', 403, "cross_site_request", Origin="http://evil.example"),
    "no origin": submission(b'{"type": "echo"}', 403, "cross_site_request", Origin="null"),
    "cross-site": submission(b'{"type": "echo"}', 403, "cross_site_request", Sec_Fetch_Site="cross-site"),
    "same-site": submission(b'{"type": "echo"}', 403, "cross_site_request", Sec_Fetch_Site="same-site"),
    "cross-site, before its body": submission(b"{", 403, "cross_site_request", Sec_Fetch_Site="cross-site"),
    "large header": Row("GET", TASKS, 431, "header_too_large", None, {"X-Large": "x" * 20_000}),
    "absent": Row("GET", ABSENT, 404, "not_found"),
    "absent, waited for": Row("GET", f"{ABSENT}?wait=1", 404, "not_found"),
    "absent, deleted": Row("DELETE", ABSENT, 404, "not_found"),
    "absent, cancelled": Row("POST", f"{ABSENT}/cancel", 404, "not_found"),
    "absent, retried": Row("POST", f"{ABSENT}/retry", 404, "not_found"),
    "absent, rerun": Row("POST", f"{ABSENT}/rerun", 404, "not_found"),
    "absent, started": Row("POST", f"{ABSENT}/start", 404, "not_found"),
    "absent, given a file": Row("PUT", f"{ABSENT}/inputs/a.txt", 404, "not_found", b"x"),
    "absent, streamed": Row("GET", f"{ABSENT}/events", 404, "not_found"),
    "absent, its log": Row("GET", f"{ABSENT}/log", 404, "not_found"),
    "absent, its output": Row("GET", f"{ABSENT}/outputs/a", 404, "not_found"),
    "absent, an output elsewhere": Row("GET", f"{ABSENT}/outputs/..%2f..%2fVERSION", 404, "not_found"),
    "absent handler": Row("GET", "/api/v1/handlers/ecoh", 404, "not_found"),
    "absent route": Row("GET", "/api/v1/nothing", 404, "not_found"),
    "absent route, with a slash": Row("GET", f"{TASKS}/", 404, "not_found"),
    "absent version": Row("GET", "/api/v2/tasks", 404, "not_found"),
    "a path upwards": Row("GET", "/api/v1/../../etc/passwd", 404, "not_found"),
    "wrong method": Row("PATCH", TASKS, 405, "method_not_allowed"),
    "TRACE": Row("TRACE", TASKS, 405, "method_not_allowed"),
    "an invented method": Row("BREW", TASKS, 405, "method_not_allowed"),
    "no such status": Row("GET", f"{TASKS}?status=done", 422, "validation_error"),
    "size 0": Row("GET", f"{TASKS}?size=0", 422, "validation_error"),
    "size 1001": Row("GET", f"{TASKS}?size=1001", 422, "validation_error"),
    "size is a word": Row("GET", f"{TASKS}?size=x", 422, "validation_error"),
    "page -1": Row("GET", f"{TASKS}?page=-1", 422, "validation_error"),
    "no such cursor": Row("GET", f"{TASKS}?cursor=x", 422, "validation_error"),
    "no such filter": Row("GET", f"{TASKS}?colour=red", 422, "unknown_field"),
    "yesterday": Row("GET", f"{TASKS}?created_after=yesterday", 422, "validation_error"),
    "wait for a word": Row("GET", f"{ABSENT}?wait=x", 422, "validation_error"),
    "wait for nan": Row("GET", f"{ABSENT}?wait=nan", 422, "validation_error"),
    "wait for ever": Row("GET", f"{ABSENT}?wait=9999", 422, "validation_error"),
    "after a word": Row("GET", f"{ABSENT}/log?after=x", 422, "validation_error"),
    "why what": Row("GET", "/api/v1/why", 422, "validation_error"),
    "clean up everything": Row("POST", "/api/v1/gc?mode=all", 422, "validation_error"),
    "a token over TCP": Row("POST", "/api/v1/tokens", 403, "forbidden", b'{"name": "x"}', JSON),
    **dict(ids()),
}  # fmt: skip


def written(data: Path) -> dict[str, tuple[int, int]]:
    """Every file below the data directory, with its size and its time."""
    files = (path for path in data.rglob("*") if path.relative_to(data).parts[0] not in NOT_WATCHED)
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_bad_input_has_its_answer_and_writes_nothing(idle: Served, row: Row) -> None:
    """A problem document with the code, and the id to look for in the log; on the disk nothing has changed."""
    before = written(idle.data)
    answer = idle.tcp.request(row.method, row.path, content=row.content, headers=row.headers)
    assert answer.status_code == row.status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (row.status, row.code)
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert len(answer.content) < 50_000
    assert written(idle.data) == before
    assert idle.tcp.get(f"{TASKS}/count").json() == {"count": 0}


def test_a_405_lists_every_method_of_the_path(idle: Served) -> None:
    """Also those that are other endpoints."""
    allowed = idle.tcp.put(TASKS).headers["allow"]
    assert {"GET", "HEAD", "POST"} <= set(allowed.split(", "))


def test_a_body_without_a_length_is_measured_as_it_comes(idle: Served) -> None:
    """A chunked body is cut off at the limit."""
    chunks = (b" " * 65536 for _ in range(32))
    answer = idle.tcp.post(TASKS, content=chunks, headers=JSON)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")


def test_what_the_status_does_not_allow_is_a_conflict(served: Served, tmp_path: Path) -> None:
    """What has ended stays as it is; what runs is not deleted."""
    running = submit(served, "wait_for", payload={"gate": str(tmp_path / "gate")})
    while served.tcp.get(f"{TASKS}/{running['id']}", params={"wait": 0.05}).json()["status"] != "processing":
        pass
    deleted = served.tcp.delete(f"{TASKS}/{running['id']}")
    assert (deleted.status_code, deleted.json()["code"]) == (409, "task_running")
    served.tcp.post(f"{TASKS}/{running['id']}/cancel")
    finished(served, running["id"])
    again = served.tcp.post(f"{TASKS}/{running['id']}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "already_finished")


def test_an_upload_that_breaks_off_leaves_nothing(served: Served) -> None:
    """Neither a file nor an input; the draft still waits."""
    draft: dict[str, Any] = served.tcp.post(TASKS, json={"type": "measure", "draft": True}).json()
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        head = f"PUT {TASKS}/{draft['id']}/inputs/a.txt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 5000)
    assert served.tcp.get(f"{TASKS}/{draft['id']}", params={"wait": 0.2}).json()["input_files"] == []
    assert list((served.data / "tmp").glob("upload-*")) == []


def test_a_file_that_its_handler_does_not_take_is_refused(served: Served) -> None:
    """What it is called, or is, decides; what the client says that it is does not."""
    draft = served.tcp.post(TASKS, json={"type": "measure", "draft": True}).json()
    answer = served.tcp.put(
        f"{TASKS}/{draft['id']}/inputs/a.exe", content=b"MZ", headers={"Content-Type": "text/plain"}
    )
    assert (answer.status_code, answer.json()["code"]) == (415, "type_mismatch")
    assert not (served.data / "uploads" / "local" / draft["id"]).exists()
    assert list((served.data / "tmp").glob("upload-*")) == []


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2fescape.txt", "%2e%2e.txt", "a%00b.txt", "a%0d%0ab.txt", "%e2%80%aetxt.exe.txt", "con.txt",
     "%ff%fe.txt", "a%5cb.txt", "~a.txt", "-rf.txt", "x" * 300 + ".txt", "%c3%a9" * 140 + ".txt"],
)  # fmt: skip
def test_a_file_is_never_stored_under_a_name_that_does_harm(served: Served, name: str) -> None:
    """Whatever it is called, it lies in its task's own folder."""
    draft = served.tcp.post(TASKS, json={"type": "measure", "draft": True}).json()
    answer = served.tcp.put(f"{TASKS}/{draft['id']}/inputs/{name}", content=b"12345")
    folder = served.data / "uploads" / "local" / draft["id"]
    found = list(folder.iterdir()) if folder.exists() else []
    assert answer.status_code in (200, 404), answer.text
    assert [path.read_bytes() for path in found] == [b"12345"] * (answer.status_code == 200)
    assert all(len(path.name.encode()) <= 255 and path.name.isprintable() for path in found)
    assert not list(served.data.parent.rglob("escape.txt")) or found


def test_an_output_is_never_a_page_of_ours(served: Served) -> None:
    """A browser downloads it; if it should show it all the same, nothing in it runs (RFC 6266, CSP)."""
    task = completed(served.tcp)
    answer = served.tcp.get(f"{TASKS}/{task['id']}/outputs/page.html")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "private, no-store"
    named = served.tcp.get(f"{TASKS}/{task['id']}/outputs/sizes ü.txt")
    assert "filename*=utf-8''sizes%20%C3%BC.txt" in named.headers["content-disposition"]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("bytes=0-3", 206),
        ("bytes=-3", 206),
        ("bytes=0-0,2-2", 206),
        ("bytes=9999-", 416),
        ("bytes=5-2", 200),
        ("bytes=x", 200),
        ("lines=1-2", 200),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(200)), 200),
        ("bytes=" + "0-," * 3000, 200),
    ],
)
def test_a_range_is_heeded_or_is_as_if_it_had_not_been_said(
    output: tuple[Served, str], asked: str, status: int
) -> None:
    """Nothing that is asked of one file makes more work than the file."""
    served, address = output
    answer = served.tcp.get(address, headers={"Range": asked})
    assert answer.status_code == status
    assert len(answer.content) < 1000


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    """A runner with a task that has ended, and the address of its output."""
    with serve(tmp_path_factory.mktemp("output")) as served:
        task = completed(served.tcp)
        yield served, f"{TASKS}/{task['id']}/outputs/page.html"


def test_answers_do_not_let_themselves_be_framed_or_kept(idle: Served) -> None:
    """Whatever they are."""
    for path in (TASKS, "/live", "/nothing"):
        headers = idle.tcp.get(path).headers
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")


def test_a_given_request_id_is_kept_and_a_forged_one_is_not(idle: Served) -> None:
    """An id that could break a log line is replaced."""
    assert idle.tcp.get("/live", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    forged = 'a" level="error'
    assert idle.tcp.get("/live", headers={"X-Request-ID": forged}).headers["x-request-id"] != forged


@pytest.mark.parametrize(
    "path", ["/%", "/%zz", "/\x7f", "//", "/api/v1/tasks/%ff", "/api/v1/tasks?%ff=%ff", "/api/v1/tasks?" + "&" * 500]
)
def test_no_path_is_answered_by_500(idle: Served, path: str) -> None:
    """Not even those that no client would send."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert 200 <= sent(idle, request.encode("latin-1")) < 500


def test_a_client_that_asks_first_is_told_before_it_sends(idle: Served) -> None:
    """`Expect: 100-continue` and too large a body: the answer comes without any of it."""
    head = f"POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert sent(idle, f"{head}Content-Length: {1 << 40}\r\nExpect: 100-continue\r\n\r\n".encode()) == 413


def sent(idle: Served, request: bytes) -> int:
    """The status of the answer to some bytes."""
    with socket.create_connection(("127.0.0.1", idle.port), timeout=10) as connection:
        connection.sendall(request)
        return int(connection.recv(65536).split()[1])
