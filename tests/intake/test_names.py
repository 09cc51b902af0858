"""What names are ignored, shown and kept as."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.intake.names import Ignored, numbered, path_of, raw_of, shown, text_of, with_suffix

ODD = os.fsdecode(b"caf\xe9.txt")


@pytest.mark.parametrize(
    "name",
    [
        ".hidden", "~$report.docx", "a.tmp", "a.PART", "a.partial", "a.crdownload", "a.filepart", "a.txt~", ".nfs0001",
        "Thumbs.db", "desktop.ini", "@eaDir", ".DS_Store", "lost+found", "a.mp4.error.txt",
    ],
)  # fmt: skip
def test_names_of_programs_at_work_are_ignored_by_a_rule(name: str) -> None:
    """Whatever is not a person's finished file is left alone, and the rule can be told."""
    assert Ignored().rule(name)


@pytest.mark.parametrize("name", ["a.txt", "-rf", "a b.c d", "part", "tmp", "résumé.pdf", "a\nb", ODD, "a.parts"])
def test_names_of_people_are_not_ignored(name: str) -> None:
    """Odd is not the same as unfinished."""
    assert Ignored().rule(name) is None


def test_a_configured_pattern_ignores_too() -> None:
    """`inbox.ignore` adds to the rules, and is named as the reason."""
    ignored = Ignored(["*.bak", "draft-*"])
    assert "*.bak" in (ignored.rule("a.bak") or "")
    assert ignored.rule("draft-1") is not None
    assert ignored.rule("a.txt") is None


@given(st.binary(min_size=1, max_size=80))
def test_any_path_comes_back_from_what_a_task_keeps(data: bytes) -> None:
    """Text and percent-encoded bytes together lose nothing, and the text can always be JSON."""
    path = os.fsdecode(data)
    text, raw = text_of(path), raw_of(path)
    text.encode()
    assert os.fsencode(path_of(text, raw)) == data


def test_a_name_that_is_not_utf8_is_shown_with_its_bytes_escaped() -> None:
    """A person sees which byte is odd; one line whatever the name holds."""
    assert shown(ODD) == "caf\\xe9.txt"
    assert shown("a\nb\u202etxt") == "a\\x0ab\\u202etxt"


def test_two_spellings_of_one_name_are_shown_alike() -> None:
    """NFD, as macOS writes, is shown as NFC."""
    assert shown("cafe\u0301") == shown("caf\u00e9")


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, os.fsdecode(b"\xff" * 255)])
def test_a_suffix_never_makes_a_name_too_long(name: str) -> None:
    """A name at the limit is shortened by a hash, so that two of them stay apart."""
    longer = with_suffix(name, ".error.txt")
    assert len(os.fsencode(longer)) <= 255
    assert longer.endswith(".error.txt")
    assert with_suffix(name[:-1] + "b", ".error.txt") != longer


def test_a_number_goes_before_the_ending() -> None:
    """The ending says what type a file is, so it stays last."""
    assert [numbered("clip.mp4", number) for number in (1, 2)] == ["clip.mp4", "clip.2.mp4"]
    assert numbered("README", 3) == "README.3"
    assert len(os.fsencode(numbered("a" * 250 + ".mp4", 12) + ".error.txt")) <= 255
