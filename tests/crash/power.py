"""Power cuts: an ext4 filesystem in a file is shut down under a running runner, mounted again, and judged.

`FS_IOC_SHUTDOWN` stops all writing to the disk at once: with flag 2 what the filesystem's own journal holds in memory
is lost, as by a pulled plug; with flag 1 it is written first.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import time
from pathlib import Path

from tests.crash import mounts
from tests.crash.forks import Child
from tests.crash.judge import Told, Verdict, judge
from tests.crash.mounts import make_ext4, mounted
from tests.crash.victim import Sabotage, await_opening, live_and_die, prepare

FS_IOC_SHUTDOWN = 0x8004587D
FLUSH_LOG, LOSE_LOG = 1, 2
IMAGE_BYTES = 96 * 1024 * 1024
LONGEST_LIFE_SECONDS = 0.3


def obstacle() -> str | None:
    """Why power cannot be cut here, or None."""
    return mounts.obstacle("mkfs.ext4")


def run_cuts(root: Path, cuts: int, seed: int = 0, sabotage: Sabotage = Sabotage.NONE) -> Verdict:
    """Cuts the power so many times, each time of a fresh filesystem."""
    verdict, chance = Verdict(), random.Random(seed)
    prepare(root)
    for number in range(cuts):
        _cut_once(root, root / f"cut-{number}", chance, sabotage, verdict)
        verdict.deaths += 1
    return verdict


def _cut_once(root: Path, directory: Path, chance: random.Random, sabotage: Sabotage, verdict: Verdict) -> None:
    directory.mkdir()
    image, mount, oracle = directory / "image", directory / "mount", directory / "oracle"
    make_ext4(image, IMAGE_BYTES, "-E", "lazy_itable_init=1,lazy_journal_init=1")
    with mounted(image, mount, "-o", "loop"):
        cut_at = _run_until_cut(root, mount, oracle, chance, sabotage)
    with mounted(image, mount, "-o", "loop"):
        judge(root, mount / "data", Told.read(oracle, until=cut_at), "full", verdict)
    shutil.rmtree(directory)


def _run_until_cut(root: Path, mount: Path, oracle: Path, chance: random.Random, sabotage: Sabotage) -> float:
    """When the cut began: an acknowledgement that races with it may say too much."""
    stderr = mount.with_name("stderr")  # not to be seen: its threads complain about the disk that went away
    victim = Child(lambda: live_and_die(root, mount / "data", oracle, "full", sabotage), stderr)
    try:
        await_opening(oracle, 0, victim, stderr)
        time.sleep(0.01 + chance.random() * LONGEST_LIFE_SECONDS)
        fd = os.open(mount, os.O_RDONLY)
        cut_at = time.monotonic()
        fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", chance.choice((FLUSH_LOG, LOSE_LOG))))
        os.close(fd)
    finally:
        victim.kill()
        victim.wait()
    return cut_at
