"""The README: each promise has its tests, and what it links to is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
_LINK = re.compile(r'\]\((?!https?:)([^)\s#]+)(?:#[^)\s]*)?(?: "([^"]*)")?\)')


def promises() -> list[str]:
    """The rows of the tables below "What is promised"."""
    section = README.partition("## What is promised")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [row for row in rows if "tested by" not in row]


def missing_tests(text: str, root: Path = ROOT) -> list[str]:
    """The tests that a text links to and that are not there."""
    named = [(path, test) for path, test in _LINK.findall(text) if test]
    return [f"{path}: {test}" for path, test in named if not has_test(root / path, test)]


def has_test(path: Path, test: str) -> bool:
    """Whether a file has a test of that name."""
    return path.is_file() and f"def {test}(" in path.read_text(encoding="utf-8")


def test_every_promise_has_a_test_that_is_there() -> None:
    """A promise that nobody tests is a wish."""
    assert len(promises()) >= 15
    assert [row for row in promises() if not any(test for _, test in _LINK.findall(row))] == []
    assert missing_tests(README) == []


def test_everything_that_it_links_to_is_there() -> None:
    """Files of the project are linked to by their place in it."""
    assert [path for path, _ in _LINK.findall(README) if not (ROOT / path).exists()] == []


def test_a_test_that_is_not_there_is_missed(tmp_path: Path) -> None:
    """Negative control: the check must be able to fail."""
    (tmp_path / "test_it.py").write_text("def test_that() -> None: ...")
    rows = '| x | [a](test_it.py "test_that"), [b](test_it.py "test_this"), [c](gone.py "test_that") |'
    assert missing_tests(rows, tmp_path) == ["test_it.py: test_this", "gone.py: test_that"]
