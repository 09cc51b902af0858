"""What can be asked of a list, and what cannot."""

from __future__ import annotations

import base64
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runner.errors import InvalidSubmission
from runner.store import TaskQuery
from runner.store.query import decode_cursor, encode_cursor

INTEGERS = st.integers(-(2**63), 2**63 - 1)


@given(INTEGERS, INTEGERS)
def test_a_cursor_comes_back_as_the_place_that_it_was(created: int, row: int) -> None:
    """It is opaque, and safe in a URL."""
    cursor = encode_cursor(created, row)
    assert decode_cursor(cursor) == (created, row)
    assert cursor.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "text", ["", "1", "1.", "1.2.3", "x.y", f"{2**63}.1", f"1.{-(2**63) - 1}", "1.2\0", "9" * 5000 + ".1"]
)
def test_a_cursor_that_nobody_made_is_refused_with_a_pointer(text: str) -> None:
    """Also one whose numbers no database takes."""
    cursor = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    with pytest.raises(InvalidSubmission, match="/cursor: is not a cursor"):
        decode_cursor(cursor)


@given(st.text())
def test_no_cursor_breaks_anything(cursor: str) -> None:
    """Whatever a client sends."""
    try:
        decode_cursor(cursor)
    except InvalidSubmission:
        return


@pytest.mark.parametrize(
    "fields",
    [{"size": 0}, {"size": 1001}, {"page": -1}, {"page": 10**30}, {"created_after": datetime(2026, 1, 1)}, {"x": 1}],  # noqa: DTZ001
)
def test_a_question_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    """An instant without a zone is none, and a page that no list has is none."""
    with pytest.raises(ValidationError):
        TaskQuery.model_validate(fields)
