"""Which filesystems are believed, and how that is learned."""

import os
from pathlib import Path

import pytest

from runner.errors import UnsafeAccess
from runner.intake.mounts import Mounts, check_local, is_remote, read_types
from runner.intake.readiness import Trust

TABLE = """\
22 28 0:20 / /proc rw,relatime - proc proc rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
40 28 0:41 / /mnt/nas rw,relatime shared:22 master:1 - nfs4 nas:/scans rw,vers=4.2
41 28 0:42 / /mnt/with\\040space rw - fuse.sshfs me@host:/ rw
"""
EXT4, NFS, SSHFS = os.makedev(254, 1), os.makedev(0, 41), os.makedev(0, 42)


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    """The mounts of `TABLE`."""
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    return Mounts(str(table))


def test_network_and_fuse_mounts_are_remote(mounts: Mounts) -> None:
    """Their changes raise no events here."""
    assert [mounts.trust(device) for device in (EXT4, NFS, SSHFS)] == [Trust.LOCAL, Trust.REMOTE, Trust.REMOTE]


@pytest.mark.parametrize("kind", ["nfs", "cifs", "9p", "virtiofs", "fuse", "fuse.bindfs", "fuseblk", "smb3"])
def test_types_that_another_machine_may_change_are_remote(kind: str) -> None:
    """Whoever shares a folder into a container or a guest uses one of these."""
    assert is_remote(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", ""])
def test_local_types_are_watched(kind: str) -> None:
    """A type that is not known is believed until it disappoints."""
    assert not is_remote(kind)


def test_a_mount_whose_files_only_scans_find_is_doubted(mounts: Mounts) -> None:
    """Three files without any event at all, and it is polled."""
    assert mounts.scanned({EXT4: 1}) == []
    assert mounts.scanned({EXT4: 2}) == [EXT4]
    assert mounts.trust(EXT4) is Trust.REMOTE
    assert mounts.scanned({EXT4: 5}) == []


def test_an_overflow_is_not_a_mount_without_events(mounts: Mounts) -> None:
    """Thousands of files found by a scan, but some events came: the queue was too short, the mount is fine."""
    mounts.heard(EXT4)
    assert mounts.scanned({EXT4: 40_000}) == []
    assert mounts.scanned({EXT4: 2}) == []
    mounts.heard(EXT4)
    assert mounts.scanned({EXT4: 2}) == []
    assert mounts.scanned({EXT4: 2}) == []
    assert mounts.trust(EXT4) is Trust.LOCAL


def test_without_a_mount_table_everything_is_believed(tmp_path: Path) -> None:
    """There is none on macOS."""
    assert read_types(str(tmp_path / "none")) == {}
    assert Mounts(str(tmp_path / "none")).trust(EXT4) is Trust.LOCAL


def test_the_kernels_own_table_is_understood() -> None:
    """The root filesystem is in it."""
    if Path("/proc/self/mountinfo").exists():
        assert read_types("/proc/self/mountinfo")


@pytest.mark.parametrize(("kind", "refused"), [("ext4", False), ("nfs4", True), ("fuse.sshfs", True), ("tmpfs", False)])
def test_data_on_another_machine_is_refused(tmp_path: Path, kind: str, refused: bool) -> None:
    """Before anything is made there, and with what to do."""
    device = tmp_path.stat().st_dev
    table = tmp_path / "mountinfo"
    table.write_text(f"36 35 {os.major(device)}:{os.minor(device)} / /somewhere rw - {kind} source rw\n")
    data = str(tmp_path / "not" / "there" / "yet")
    if not refused:
        check_local(data, str(table))
        return
    with pytest.raises(UnsafeAccess, match=f"{kind}.*inbox.folders.*\n.*allow_network"):
        check_local(data, str(table))
