"""Intake pauses before the disk is full, and what runs can still be recorded when it is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runner.store import space as module
from runner.store.space import Floors, Room, Space, is_full, measure, shortage
from tests.store.samples import FaultyFiles

FLOORS = Floors(min_free_bytes=1000, min_free_inodes=10, ballast_bytes=500)
PLENTY = Room(free_bytes=10_000, free_inodes=1000)


class Disk:
    """A filesystem of which the test says how much room it has."""

    def __init__(self, directory: Path, files: FaultyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        (directory / "locks").mkdir()
        self.room = PLENTY
        self.ballast = directory / "locks" / "ballast"
        self.space = Space(files, str(directory), FLOORS)
        monkeypatch.setattr(module, "measure", lambda path: self.room)


@pytest.fixture
def disk(tmp_path: Path, files: FaultyFiles, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk with plenty of room."""
    return Disk(tmp_path, files, monkeypatch)


@pytest.mark.parametrize(
    ("room", "reason"),
    [
        (PLENTY, None),
        (Room(1000, 10), None),
        (Room(999, 1000), "999 bytes are free, fewer than the floor of 1000"),
        (Room(10_000, 9), "9 inodes are free, fewer than the floor of 10"),
        (Room(10_000, None), None),
    ],
)
def test_below_a_floor_it_is_said_which(room: Room, reason: str | None) -> None:
    """Some filesystems do not count inodes."""
    assert shortage(room, FLOORS) == reason


def test_room_is_measured(tmp_path: Path) -> None:
    """As the filesystem says it."""
    room = measure(str(tmp_path))
    assert room.free_bytes > 0


def test_what_found_no_room_when_it_was_synced_keeps_intake_paused(disk: Disk) -> None:
    """However much the filesystem says that it has; and the ballast does not take what little there is."""
    disk.space.check()
    disk.space.release_ballast()
    disk.space.report_unsynced()
    assert disk.space.check() is not None
    assert not disk.ballast.exists()
    disk.space.report_synced()
    assert disk.space.check() is None
    assert disk.ballast.exists()


def test_a_filesystem_without_inodes_has_no_number_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Btrfs says that it has none at all."""
    fields = list(os.statvfs("/"))
    fields[5] = 0
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    assert measure("/").free_inodes is None


@pytest.mark.parametrize(("code", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_a_quota_is_full_like_a_disk(code: int, *, full: bool) -> None:
    """Whoever may write no more has no room."""
    assert is_full(OSError(code, "")) is full


def test_the_ballast_is_laid_while_there_is_room_and_given_up_when_there_is_none(disk: Disk) -> None:
    """Its bytes are those of whoever must write then."""
    assert disk.space.check() is None
    assert disk.ballast.stat().st_size == 500
    disk.space.release_ballast()
    assert (disk.ballast.exists(), disk.space.shortage) == (False, "the disk is full")


def test_the_ballast_comes_back_only_when_there_is_room_for_twice_of_it(disk: Disk) -> None:
    """Or it would take the room from those for whom it was given up."""
    disk.room = Room(1999, 1000)
    assert disk.space.check() is None
    assert not disk.ballast.exists()
    disk.room = Room(2000, 1000)
    disk.space.check()
    assert disk.ballast.exists()


def test_a_shortage_ends_when_there_is_room_again(disk: Disk) -> None:
    """Nobody has to restart anything."""
    disk.room = Room(0, 1000)
    assert disk.space.check() is not None
    disk.room = PLENTY
    assert disk.space.check() is None


def test_inodes_are_kept_too_and_come_back_only_when_there_are_plenty(disk: Disk) -> None:
    """Without one no file can be replaced, and no runner started."""
    disk.space.check()
    folder = disk.ballast.parent
    assert len(os.listdir(folder)) == 1 + module.BALLAST_INODES
    disk.space.release_ballast()
    disk.room = Room(10_000, 9 + 2 * module.BALLAST_INODES)
    disk.space.check()
    assert os.listdir(folder) == []


@pytest.mark.parametrize("call", ["open", "allocate"])
def test_a_ballast_that_cannot_be_laid_leaves_nothing_and_is_tried_again(
    disk: Disk, files: FaultyFiles, call: str
) -> None:
    """There was less room than it seemed."""
    files.fail(call, code=errno.ENOSPC, times=1)
    assert disk.space.check() is None
    assert os.listdir(disk.ballast.parent) == []
    disk.space.check()
    assert disk.ballast.exists()


def test_a_disk_that_refuses_everything_is_not_made_worse(disk: Disk, files: FaultyFiles) -> None:
    """Neither laying nor giving up raises: the thread that commits does it."""
    files.fail("allocate")
    files.fail("unlink")
    disk.space.check()
    disk.space.release_ballast()
    assert disk.space.shortage == "the disk is full"


def test_without_a_ballast_there_is_none(tmp_path: Path, files: FaultyFiles) -> None:
    """It is a setting."""
    (tmp_path / "locks").mkdir()
    space = Space(files, str(tmp_path), Floors(0, 0, 0))
    assert space.check() is None
    assert os.listdir(tmp_path / "locks") == []
