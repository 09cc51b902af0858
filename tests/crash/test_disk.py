"""A full disk stops intake, and nothing else; and it heals."""

from pathlib import Path

import pytest

from tests.crash.alone import run_alone
from tests.crash.disk import Disk, Sabotage, obstacle

pytestmark = [
    pytest.mark.skipif(obstacle() is not None, reason=obstacle() or ""),
    pytest.mark.timeout(0),  # the suite has limits of its own, long ones
]


def test_on_a_full_disk_what_runs_is_recorded_and_what_comes_is_refused(tmp_path: Path, soak: int) -> None:
    """Without bytes or without inodes, on tmpfs and on ext4, or when it is synced; and all goes on by itself when there
    is room again."""
    run_alone(tmp_path, "disk", "--rounds", soak)


@pytest.mark.parametrize(
    ("sabotage", "disk"),
    [
        (Sabotage.NO_BALLAST, Disk.EXT4_BYTES),
        (Sabotage.NEVER_MEASURED, Disk.EXT4_BYTES),
        (Sabotage.NOT_WRITTEN_AGAIN, Disk.EXT4_THIN),
    ],
)
def test_the_suite_notices_what_is_broken_on_purpose(tmp_path: Path, sabotage: Sabotage, disk: Disk) -> None:
    """Without the ballast nothing is recorded; without a second look nothing heals; and a second sync alone loses what
    the first had no room for."""
    run_alone(tmp_path, "disk", "--rounds", 1, "--disk", disk, "--sabotage", sabotage)
