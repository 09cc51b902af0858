"""JSON is read strictly, wherever it comes from."""

from __future__ import annotations

import pytest

from runner.strictjson import MAX_INTEGER, MAX_LEVELS, DuplicateKey, InvalidJson, read


def nested(levels: int) -> bytes:
    """Arrays in arrays."""
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{} {}",
        b"'a'",
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        b'{"a": NaN}',
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e400]",
        b"[-1e999]",
        b'"\\ud800"',
        b'"\x00"',
        b"9223372036854775808",
        b"[-9223372036854775809]",
        b"9" * 5000,
        nested(MAX_LEVELS + 1),
        nested(100_000),
        b'{"a":' * 65 + b"1" + b"}" * 65,
    ],
)
def test_what_is_not_exact_json_is_refused(body: bytes) -> None:
    """Whatever parsers disagree on is an error, not a guess."""
    with pytest.raises(InvalidJson) as refused:
        read(body)
    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize("body", [b'{"a": 1, "a": 2}', b'[{"x": {"a": 1, "a": 1}}]', b'{"a": 1, "\\u0061": 2}'])
def test_a_key_that_is_there_twice_is_refused(body: bytes) -> None:
    """Two readers of one body never see different values."""
    with pytest.raises(DuplicateKey):
        read(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, true, null, "\\u00e9"]}', {"a": [1, 2.5, True, None, "é"]}),
        (str(MAX_INTEGER).encode(), MAX_INTEGER),
        (b"[1e300]", [1e300]),
        (b'"1e400 and 99999999999999999999"', "1e400 and 99999999999999999999"),
        (b'["' + b"[" * 100 + b'\\"{"]', ["[" * 100 + '"{']),
    ],
)
def test_everything_else_is_read(body: bytes, value: object) -> None:
    """The checks hit no honest document, not even one whose texts look dangerous."""
    assert read(body) == value


def test_the_deepest_allowed_nesting_is_read() -> None:
    """The limit is a limit, not one less."""
    assert read(nested(MAX_LEVELS)) is not None


@pytest.mark.parametrize("tail", [b'"' + b'\\"' * 200_000, b'"' * 400_001, b'"' + b"\\" * 400_001, b"[]" * 200_000])
def test_no_text_takes_long_to_refuse(tail: bytes) -> None:
    """What is looked at character by character is looked at once: these took minutes when it was not."""
    with pytest.raises(InvalidJson):
        read(b"[]" * MAX_LEVELS + tail)
