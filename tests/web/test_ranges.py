"""Which ranges are heeded."""

from __future__ import annotations

import pytest

from runner.web.ranges import MAX_RANGES, is_usable


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
