"""What a scan finds in real folders."""

import os
from pathlib import Path

import pytest

from runner.intake import scan
from runner.intake.folders import Folder, Folders
from runner.intake.names import Ignored
from runner.intake.scan import find_folders, list_directory, list_folder


def _write(top: Path, *names: str) -> Folder:
    for name in names:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return Folder(str(top), "keep")


def test_a_tree_is_listed_with_paths_below_the_folder(tmp_path: Path) -> None:
    """Sorted within each directory, the error folder and what is ignored left out."""
    folder = _write(tmp_path, "b.txt", "a.txt", "tree/sub/c.txt", "error/old.txt", ".git/x", "d.part", "tree/error/e")
    names = [listing.name_of(name) for listing in list_folder(folder, Ignored()) for name in listing.names]
    assert names == ["a.txt", "b.txt", "tree/error/e", "tree/sub/c.txt"]


def test_links_to_directories_are_not_entered(tmp_path: Path) -> None:
    """The link is listed like a file, and refused later."""
    folder = _write(tmp_path / "inbox", "a.txt")
    _write(tmp_path / "elsewhere", "secret.txt")
    (tmp_path / "inbox" / "link").symlink_to(tmp_path / "elsewhere")
    names = [listing.name_of(name) for listing in list_folder(folder, Ignored()) for name in listing.names]
    assert names == ["a.txt", "link"]


def test_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    """As `os.fsdecode` makes them."""
    odd = os.fsdecode(b"\xff\xfe.txt")
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.txt", "wb"):
        pass
    assert list_directory(Folder(str(tmp_path), "keep"), "", Ignored()).names == [odd]


def test_a_flat_folder_is_listed_without_its_subfolders(tmp_path: Path) -> None:
    """`recursive: false`."""
    _write(tmp_path, "a.txt", "sub/b.txt")
    flat = Folder(str(tmp_path), "keep", recursive=False)
    assert [listing.names for listing in list_folder(flat, Ignored())] == [["a.txt"]]


def test_a_folder_that_cannot_be_read_is_said_to_be(tmp_path: Path) -> None:
    """And the others are listed all the same."""
    listing = list_directory(Folder(str(tmp_path / "gone"), "keep"), "", Ignored())
    assert isinstance(listing.trouble, FileNotFoundError)


def test_of_very_many_files_some_are_only_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with what lies in a folder; the rest is listed when those are taken."""
    monkeypatch.setattr(scan, "MAX_NAMES", 3)
    folder = _write(tmp_path, *(f"{number}.txt" for number in range(5)))
    listing = list_directory(folder, "", Ignored())
    assert (len(listing.names), listing.beyond) == (3, 2)


def test_what_is_known_is_only_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan amid very many files costs little, and they have their share of what is noted."""
    monkeypatch.setattr(scan, "MAX_NAMES", 3)
    folder = _write(tmp_path, "a.txt", "b.txt", "sub/a.txt", "sub/b.txt", "sub/c.txt")
    top, sub = list_folder(folder, Ignored(), known={"a.txt", "sub/b.txt"})
    assert (top.names, top.known, top.beyond) == (["b.txt"], 1, 0)
    assert (len(sub.names), sub.known, sub.beyond) == (1, 1, 1)


def test_the_folders_of_handlers_and_users_are_found(tmp_path: Path) -> None:
    """And the further ones of the configuration, whether they are there or not."""
    for name in ("keep", "@anna/keep", "@anna/resize", "@../keep", ".stfolder", "error"):
        (tmp_path / "inbox" / name).mkdir(parents=True)
    folders = Folders(str(tmp_path / "inbox"), Ignored(), [Folder("/mnt/nas", "ocr")])
    found = [(folder.user_id, folder.handler) for folder in find_folders(folders)]
    assert found == [
        ("local", ""), ("anna", ""), ("anna", "keep"), ("anna", "resize"), ("local", "keep"), ("local", "ocr"),
    ]  # fmt: skip
