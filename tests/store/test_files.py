"""The disk's primitives do what they say, and what is built on them is never seen half done."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from runner.errors import CorruptRecord
from runner.store import files as module
from runner.store.files import Files, Layout
from tests.store.samples import FaultyFiles


def test_a_file_reads_back_whole(tmp_path: Path) -> None:
    """More than one read is made of it."""
    data = os.urandom(3 * 1024**2)
    (tmp_path / "a").write_bytes(data)
    assert Files().read(str(tmp_path / "a")) == data


@pytest.mark.parametrize("kind", ["directory", "pipe", "link", "socket"])
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A pipe would block for ever, a link may lead anywhere."""
    monkeypatch.chdir(tmp_path)  # a socket's name may be 100 bytes long
    if kind == "directory":
        Path("a").mkdir()
    elif kind == "pipe":
        os.mkfifo("a")
    elif kind == "link":
        Path("a").symlink_to(__file__)
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("a")
    with pytest.raises(CorruptRecord):
        Files().read("a")


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    """Absent and damaged are two things."""
    with pytest.raises(FileNotFoundError):
        Files().read(str(tmp_path / "a"))


def test_all_is_written_however_little_the_disk_takes_at_once(tmp_path: Path) -> None:
    """A short write is no error and loses nothing."""

    class Sipping(Files):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            return super().write(fd, data[:7])

    Sipping().replace(str(tmp_path / "a"), b"x" * 100, str(tmp_path / "a.tmp"))
    assert (tmp_path / "a").read_bytes() == b"x" * 100


@pytest.mark.parametrize("call", ["write", "rename"])
def test_a_replacement_that_fails_leaves_the_old_content(tmp_path: Path, files: FaultyFiles, call: str) -> None:
    """Readers see the old or the new, never a part."""
    (tmp_path / "a").write_bytes(b"old")
    files.fail(call)
    with pytest.raises(OSError, match="Input/output error"):
        files.replace(str(tmp_path / "a"), b"new", str(tmp_path / "a.tmp"))
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_durable_replacement_is_synced_before_it_gets_its_name(tmp_path: Path, files: FaultyFiles) -> None:
    """Else a power cut could leave the name with nothing behind it."""
    (tmp_path / "a").write_bytes(b"old")
    files.fail("sync", "a.tmp")
    with pytest.raises(OSError, match="Input/output error"):
        files.replace_durably(str(tmp_path / "a"), b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    files.heal()
    files.replace_durably(str(tmp_path / "a"), b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    """Whether or not some of them are there, or somebody else makes them meanwhile."""
    path = tmp_path / "a" / "b" / "c"
    Files().make_directory(str(path))
    Files().make_directory(str(path))
    assert path.is_dir()


def test_a_directory_that_somebody_else_makes_first_is_fine(tmp_path: Path) -> None:
    """Two threads bring in files of one user."""

    class Late(Files):
        def mkdir(self, path: str, mode: int = 0o700) -> None:
            Path(path).mkdir()
            super().mkdir(path, mode)

    Late().make_directory(str(tmp_path / "a"))
    assert (tmp_path / "a").is_dir()


def test_a_file_where_a_directory_must_be_is_an_error(tmp_path: Path) -> None:
    """It is not overwritten."""
    (tmp_path / "a").touch()
    with pytest.raises(FileExistsError):
        Files().make_directory(str(tmp_path / "a"))


def test_removing_is_done_when_nothing_is_there(tmp_path: Path) -> None:
    """Recovery does it again."""
    Files().remove(str(tmp_path / "a"))
    Files().remove_tree(str(tmp_path / "b"))
    assert os.listdir(tmp_path) == []


def test_a_tree_is_removed_and_what_it_links_to_stays(tmp_path: Path) -> None:
    """Links are never followed."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    Files().remove_tree(str(tmp_path / "tree"))
    assert (tmp_path / "kept" / "file").exists()
    assert not (tmp_path / "tree").exists()


def test_a_move_within_a_filesystem_is_a_rename(tmp_path: Path) -> None:
    """The same file, under the other name only."""
    (tmp_path / "a").write_bytes(b"content")
    inode = (tmp_path / "a").stat().st_ino
    Files().move(str(tmp_path / "a"), str(tmp_path / "b"))
    assert ((tmp_path / "b").stat().st_ino, (tmp_path / "a").exists()) == (inode, False)


def test_a_move_to_another_filesystem_is_a_durable_copy_that_appears_whole(tmp_path: Path, files: FaultyFiles) -> None:
    """Then, and only then, the source goes."""
    (tmp_path / "a").write_bytes(b"content")
    files.fail("rename", "b", errno.EXDEV, times=1)
    files.move(str(tmp_path / "a"), str(tmp_path / "b"))
    assert ((tmp_path / "b").read_bytes(), os.listdir(tmp_path)) == (b"content", ["b"])


def test_a_move_that_cannot_be_is_told(tmp_path: Path, files: FaultyFiles) -> None:
    """And the file is where it was."""
    (tmp_path / "a").write_bytes(b"content")
    files.fail("rename", code=errno.EACCES)
    with pytest.raises(PermissionError):
        files.move(str(tmp_path / "a"), str(tmp_path / "b"))
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["open", "write", "sync", "rename"])
def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path, files: FaultyFiles, call: str) -> None:
    """On a full disk a partial copy would be the last straw."""
    (tmp_path / "a").write_bytes(b"content")
    files.fail(call, "b", errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        files.copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert os.listdir(tmp_path) == ["a"]


def test_a_copy_is_an_own_file_and_a_link_is_not(tmp_path: Path) -> None:
    """`link_or_copy` shares the bytes, `copy` never."""
    (tmp_path / "a").write_bytes(b"content")
    Files().link_or_copy(str(tmp_path / "a"), str(tmp_path / "linked"))
    Files().copy(str(tmp_path / "a"), str(tmp_path / "copied"))
    assert (tmp_path / "linked").samefile(tmp_path / "a")
    assert not (tmp_path / "copied").samefile(tmp_path / "a")


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_links_cannot_be_made_a_copy_is(tmp_path: Path, files: FaultyFiles, code: int) -> None:
    """Other filesystems, protected hard links, too many of them."""
    (tmp_path / "a").write_bytes(b"content")
    files.fail("link", code=code)
    files.link_or_copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == b"content"


def test_a_link_that_fails_for_another_reason_is_no_copy(tmp_path: Path, files: FaultyFiles) -> None:
    """A full disk is told, not tried again the long way."""
    (tmp_path / "a").touch()
    files.fail("link", code=errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        files.link_or_copy(str(tmp_path / "a"), str(tmp_path / "b"))


def test_a_tree_with_links_and_pipes_can_be_synced(tmp_path: Path) -> None:
    """A handler may leave anything in its output folder."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    Files().sync_tree(str(tmp_path))


def test_a_whole_filesystem_is_synced_by_one_call(tmp_path: Path, files: FaultyFiles) -> None:
    """And its error is an error."""
    fd = files.open(str(tmp_path), os.O_RDONLY)
    files.sync_filesystem(fd, [])
    with pytest.raises(OSError, match="Bad file descriptor"):
        Files().syncfs(-1)
    files.fail("syncfs")
    with pytest.raises(OSError, match="Input/output error"):
        files.sync_filesystem(fd, [])
    files.close(fd)


def test_without_such_a_call_each_written_file_is_synced(
    tmp_path: Path, files: FaultyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was removed since is no error; one that cannot be synced is."""
    monkeypatch.setattr(module, "HAS_SYNCFS", False)
    (tmp_path / "a").touch()
    fd = files.open(str(tmp_path), os.O_RDONLY)
    files.sync_filesystem(fd, [str(tmp_path / "a"), str(tmp_path / "gone")])
    files.fail("sync", "/a")
    with pytest.raises(OSError, match="Input/output error"):
        files.sync_filesystem(fd, [str(tmp_path / "a")])
    files.close(fd)


def test_macos_is_asked_to_go_through_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fsync` there stops at the drive's cache."""
    import fcntl

    asked: list[int] = []
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, command: asked.append(command))
    Files().sync(0)
    Files().datasync(0)
    assert asked == [51, 51]


@pytest.mark.parametrize("has_fallocate", [True, False])
def test_an_allocated_file_has_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_fallocate: bool) -> None:
    """They are of the disk, not only in the file's size."""
    if not has_fallocate:
        monkeypatch.delattr(os, "posix_fallocate")
    fd = Files().open(str(tmp_path / "a"), os.O_WRONLY | os.O_CREAT)
    Files().allocate(fd, 100_000)
    os.fsync(fd)
    os.close(fd)
    assert (tmp_path / "a").stat().st_blocks * 512 >= 100_000


def test_paths_in_tasks_are_relative_to_the_data_directory() -> None:
    """So that the directory can be moved; absolute ones stay."""
    layout = Layout("/srv/data")
    assert layout.relative(f"{layout.upload('u', 't')}/a.txt") == "uploads/u/t/a.txt"
    assert layout.absolute("uploads/u/t/a.txt") == "/srv/data/uploads/u/t/a.txt"
    assert layout.absolute("/mnt/a.txt") == "/mnt/a.txt"


def test_everything_that_a_task_has_lies_in_its_own_place() -> None:
    """The layout that the README draws."""
    layout = Layout("/d")
    assert (layout.task("t"), layout.log("t"), layout.user("u")) == (
        "/d/tasks/t.json",
        "/d/logs/t.jsonl",
        "/d/users/u.json",
    )
    assert (layout.result("u", "t"), layout.attempt("t", 2)) == ("/d/results/u/t", "/d/tmp/t.2")
