"""Which ranges are heeded."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.datastructures import Headers

from runner.web.problems import HttpProblem
from runner.web.ranges import MAX_RANGES, fit_range, is_usable
from tests.web.conftest import Served
from tests.web.test_matrix import completed
from tests.web.test_tasks import TASKS


@pytest.mark.parametrize("text", ["bytes=0-1", "bytes=5-", "bytes=-5", "Bytes=0-1, 3-4", "bytes= 0-0 ,-1"])
def test_ranges_of_bytes_are_heeded(text: str) -> None:
    """In every form that RFC 9110 has."""
    assert is_usable(text)


@pytest.mark.parametrize(
    "text",
    ["", "bytes", "bytes=", "bytes=a-b", "bytes=-", "bytes=5-2", "lines=1-2", "bytes=1", "bytes=1-2-3", "bytes=٣-٤",
     "bytes=0-" + "9" * 5000, "bytes=" + ",".join(["0-1"] * (MAX_RANGES + 1))],
)  # fmt: skip
def test_anything_else_is_as_if_it_had_not_been_said(text: str) -> None:
    """The whole file is sent, once."""
    assert not is_usable(text)


@pytest.mark.parametrize(
    ("asked", "size", "left"),
    [
        ("bytes=0-3", 10, "bytes=0-3"),
        ("bytes=0-3, 20-30", 10, "bytes=0-3"),
        ("bytes=20-, -3", 10, "bytes=-3"),
        ("bytes=9-", 10, "bytes=9-"),
    ],
)
def test_of_several_ranges_those_count_that_the_file_has(asked: str, size: int, left: str) -> None:
    """The others are as if they had not been said (RFC 9110, 14.1.1)."""
    scope = {"type": "http", "headers": [(b"range", asked.encode())]}
    fit_range(scope, Headers(scope=scope), size)
    assert Headers(scope=scope)["range"] == left


@pytest.mark.parametrize(("asked", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)])
def test_where_the_file_has_none_of_them_that_is_said(asked: str, size: int) -> None:
    """And how large it is; a client that would take the whole file gets it."""
    scope = {"type": "http", "headers": [(b"range", asked.encode())]}
    with pytest.raises(HttpProblem) as caught:
        fit_range(scope, Headers(scope=scope), size)
    assert caught.value.headers == {"Content-Range": f"bytes */{size}"}
    scope["headers"] = [(b"range", asked.encode()), (b"if-range", b'"x"')]
    fit_range(scope, Headers(scope=scope), size)
    assert "range" not in Headers(scope=scope)


def test_a_refused_range_is_a_problem_like_any_other(served: Served) -> None:
    """416 as a document; and a file that a person has removed is not there, which is no defect of ours."""
    task = completed(served.tcp)
    address = f"{TASKS}/{task['id']}/outputs/page.html"
    answer = served.tcp.get(address, headers={"Range": "bytes=9999-"})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(served.tcp.get(address).content)}"
    (output,) = [path for path in task["output_files"] if path.endswith("page.html")]
    Path(served.data, output).unlink()
    answer = served.tcp.get(address)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
