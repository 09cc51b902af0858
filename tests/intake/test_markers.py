"""Senders that say when a file is whole, and which sum it has."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.intake.folders import After, Folder
from tests.intake.conftest import Site

MakeSite = Callable[..., Site]


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    """A folder that a sender writes to."""
    drop = tmp_path / "drop"
    drop.mkdir()
    return drop


def _look(site: Site, *names: str) -> None:
    site.inbox.lanes.put_first(site.further[0], names)
    site.inbox.run_once()


@pytest.mark.parametrize("after", [After.MOVE, After.KEEP])
def test_a_file_waits_for_its_marker_and_takes_it_along(make_site: MakeSite, drop: Path, after: After) -> None:
    """Even in a folder where it would have to settle first; from one whose files stay nothing is removed."""
    site = make_site(further=[Folder(str(drop), "keep", done_marker=True, after=after)])
    (drop / "a.txt").write_text("x")
    site.scan()
    assert site.inbox.explain(str(drop / "a.txt")).kind == "marker"
    (drop / "a.txt.done").touch()
    _look(site, "a.txt.done")
    site.inbox.run_once()
    assert site.only_task().original_filename == "a.txt"
    assert sorted(path.name for path in drop.iterdir()) == ([] if after is After.MOVE else ["a.txt", "a.txt.done"])


def test_a_marker_without_its_file_waits(make_site: MakeSite, drop: Path) -> None:
    """It is no input."""
    site = make_site(further=[Folder(str(drop), "keep", done_marker=True)])
    (drop / "a.txt.done").write_text("ready")
    site.scan()
    assert (site.tasks(), site.inbox.explain(str(drop / "a.txt.done")).kind) == ([], "file")


@pytest.mark.parametrize("form", ["{}", "{}  a.txt\n", "{} *a.txt\n"])
def test_a_file_with_the_sum_that_was_said_is_taken(make_site: MakeSite, drop: Path, form: str) -> None:
    """In the forms of `sha256sum`, or the sum alone."""
    site = make_site(further=[Folder(str(drop), "keep", checksum=True)])
    (drop / "a.txt").write_text("x")
    site.scan()
    (drop / "a.txt.sha256").write_text(form.format(hashlib.sha256(b"x").hexdigest().upper()))
    _look(site, "a.txt")
    assert site.only_task().original_filename == "a.txt"
    assert list(drop.iterdir()) == []


def test_a_file_with_another_sum_goes_to_error(make_site: MakeSite, drop: Path) -> None:
    """With what its sum is; while the sum is still being written it waits."""
    site = make_site(further=[Folder(str(drop), "keep", checksum=True)])
    (drop / "a.txt").write_text("x")
    (drop / "a.txt.sha256").touch()
    site.scan()
    assert site.inbox.explain(str(drop / "a.txt")).kind == "marker"
    (drop / "a.txt.sha256").write_text("0" * 64)
    _look(site, "a.txt")
    assert site.tasks() == []
    assert "checksum_mismatch" in (drop / "error" / "a.txt.error.txt").read_text()
