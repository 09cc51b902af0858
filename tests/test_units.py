"""Lengths of time and sizes, as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from runner.units import Duration, Size, format_duration, format_size, parse_duration, parse_size


class Row(BaseModel):
    wait: Duration = 0.0
    room: Size = 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h30m", 5400.0),
        ("2m", 120.0),
        ("30s", 30.0),
        ("500ms", 0.5),
        ("7d", 604_800.0),
        ("1w", 604_800.0),
        ("1d 2h 3m 4s 5ms", 93_784.005),
        ("1.5h", 5400.0),
        (" 2M ", 120.0),
        ("90", 90.0),
        ("0.05", 0.05),
        (90, 90.0),
        (0, 0.0),
        (2.5, 2.5),
    ],
)
def test_a_length_of_time_is_read_in_seconds(text: str | float, seconds: float) -> None:
    """Every way to write a length that the documentation names."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    ["", " ", "abc", "-5s", "5 parsecs", "1m1m", "h", "1h30", "1e400", "nan", -1, float("inf"), True, None, [], "٣s"],
)
def test_what_is_no_length_of_time_is_refused_by_name(value: object) -> None:
    """The message repeats what was given, so a person finds it."""
    with pytest.raises(ValueError, match="must be a (length of time|number of seconds)") as refusal:
        parse_duration(value)  # type: ignore[arg-type]
    assert repr(value) in str(refusal.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "0s"),
        (0.02, "20ms"),
        (0.9996, "1s"),
        (1.5, "1.5s"),
        (59.9999, "1m"),
        (90, "1m30s"),
        (5400, "1h30m"),
        (90_061, "1d1h1m1s"),
        (604_800, "7d"),
    ],
)
def test_a_length_of_time_is_shown_short(seconds: float, text: str) -> None:
    """No zero parts, no more than milliseconds."""
    assert format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=10**12))
def test_a_length_shown_and_read_again_is_the_same(milliseconds: int) -> None:
    """`format_duration` and `parse_duration` are inverse, to the millisecond."""
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=0.0005)


def test_a_negative_length_is_not_shown() -> None:
    """A length below nothing is a mistake of the caller."""
    with pytest.raises(ValueError, match="0 or more"):
        format_duration(-1)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2_000_000_000),
        ("500MiB", 524_288_000),
        ("1.5 kB", 1500),
        ("1KIB", 1024),
        ("3TiB", 3 * 1024**4),
        ("10b", 10),
        ("4096", 4096),
        (4096, 4096),
        (0, 0),
        ("9007199254740993", 9_007_199_254_740_993),
    ],
)
def test_a_size_is_read_in_bytes(text: str | int, size: int) -> None:
    """Thousands for MB, 1024s for MiB, plain numbers as they are."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "value", ["", "big", "-1", "500M", "1.5", "1 XB", "1GB 2MB", -1, 1.5, True, None, [], "1e9", "²"]
)
def test_what_is_no_size_is_refused_by_name(value: object) -> None:
    """An ambiguous unit is refused rather than guessed."""
    with pytest.raises(ValueError, match="must be a size") as refusal:
        parse_size(value)  # type: ignore[arg-type]
    assert repr(value) in str(refusal.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (1536, "1.5KiB"),
        (1024**2 - 1, "1MiB"),
        (64 * 1024**2, "64MiB"),
        (10**9, "954MiB"),
        (5 * 1024**5, "5120TiB"),
    ],
)
def test_a_size_is_shown_to_three_figures(size: int, text: str) -> None:
    """Short enough for a column, exact for powers of 1024."""
    assert format_size(size) == text


def test_a_model_takes_text_and_plain_numbers() -> None:
    """Both pydantic types hold the plain number, whichever way it was written."""
    assert Row(wait="1m", room="1KiB") == Row(wait=60, room=1024)


def test_a_model_refuses_what_the_parser_refuses() -> None:
    """A wrong text is a validation error with the parser's words."""
    with pytest.raises(ValidationError, match='such as "30s"'):
        Row(wait="soon")


def test_the_schema_tells_that_text_is_welcome() -> None:
    """Forms made from the schema must not insist on a number."""
    kinds = {kind["type"] for kind in Row.model_json_schema()["properties"]["wait"]["anyOf"]}
    assert kinds == {"string", "number"}
