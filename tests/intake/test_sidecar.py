"""Parameter files: which name belongs to which, and which content is refused."""

import os
from pathlib import Path

import pytest

from runner.errors import InvalidSubmission
from runner.intake.sidecar import MAX_BYTES, parse_object, partner_of, read_object


@pytest.mark.parametrize(
    ("name", "partner"),
    [
        ("clip.mp4.json", "clip.mp4"),
        ("a/b.tar.json", "a/b.tar"),
        ("x.7z.json", "x.7z"),
        ("data.json", None),
        ("report.2026.json", None),
        (".mp4.json", None),
        ("a.mp4", None),
    ],
)
def test_only_a_name_with_a_further_ending_is_a_sidecar(name: str, partner: str | None) -> None:
    """`data.json` alone is an input; so is a name whose dot is not before an ending."""
    assert partner_of(name) == partner


def test_an_object_is_read() -> None:
    """Plain JSON with everything that JSON has."""
    assert parse_object(b'{"a": [1, 2.5, null, true, {"b": "\\u00e9"}]}') == {"a": [1, 2.5, None, True, {"b": "é"}]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b'{"a": 1', "line 1"),
        (b"[1]", "an array"),
        (b"null", "null"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e400}', "beyond"),
        (b'{"a": 9223372036854775808}', "64 bits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "64 bits"),
        (b'{"a": ["\\ud800"]}', "surrogate"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "deeper"),
        (b'{"a": "' + b"x" * MAX_BYTES + b'"}', "larger"),
    ],
)
def test_what_another_parser_might_read_otherwise_is_refused(data: bytes, says: str) -> None:
    """Every refusal says what is wrong."""
    with pytest.raises(InvalidSubmission, match=says):
        parse_object(data)


def test_brackets_in_strings_are_not_levels() -> None:
    """The count of levels knows what a string is, escaped quotes included."""
    text = '{"a": "' + "[" * 100 + '\\"' + "[" * 100 + '"}'
    assert parse_object(text.encode())["a"].count("[") == 200


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A sidecar that points elsewhere is not read."""
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "a.mp4.json").symlink_to("secret.json")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="symbolic links"):
            read_object(fd, "a.mp4.json")
    finally:
        os.close(fd)
