"""Power cuts: an ext4 filesystem in a file is shut down under a running runner, mounted again, and judged.

`FS_IOC_SHUTDOWN` stops all writing to the disk at once: with flag 2 what the filesystem's own journal holds in memory
is lost, as by a pulled plug; with flag 1 it is written first.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.crash.judge import Told, Verdict, judge
from tests.crash.victim import Sabotage, live_and_die, prepare

FS_IOC_SHUTDOWN = 0x8004587D
FLUSH_LOG, LOSE_LOG = 1, 2
IMAGE_BYTES = 96 * 1024 * 1024
LONGEST_LIFE_SECONDS = 0.3
OPEN_SECONDS = 20.0


def obstacle() -> str | None:
    """Why power cannot be cut here, or None."""
    if os.geteuid() != 0:
        return "cutting the power of a filesystem needs root"
    missing = [name for name in ("mkfs.ext4", "mount", "umount") if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: e2fsprogs mount)"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    return None


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


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
    _make_image(image)
    mount.mkdir()
    with _mounted(image, mount):
        cut_at = _run_until_cut(root, mount, oracle, chance, sabotage)
    with _mounted(image, mount):
        judge(root, mount / "data", Told.read(oracle, until=cut_at), "full", verdict)
    shutil.rmtree(directory)


def _run_until_cut(root: Path, mount: Path, oracle: Path, chance: random.Random, sabotage: Sabotage) -> float:
    """When the cut began: an acknowledgement that races with it may say too much."""
    child = os.fork()
    if child == 0:
        _be_a_victim(root, mount, oracle, sabotage)
    try:
        _await_opening(oracle, child)
        time.sleep(0.01 + chance.random() * LONGEST_LIFE_SECONDS)
        fd = os.open(mount, os.O_RDONLY)
        cut_at = time.monotonic()
        fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", chance.choice((FLUSH_LOG, LOSE_LOG))))
        os.close(fd)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return cut_at


def _be_a_victim(root: Path, mount: Path, oracle: Path, sabotage: Sabotage) -> None:
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its threads complain about the disk that went away
        live_and_die(root, mount / "data", oracle, "full", sabotage)
    except BaseException:  # noqa: BLE001 - a forked child must never return into its parent's code
        traceback.print_exc()
    finally:
        signal.pause()


def _await_opening(oracle: Path, child: int) -> None:
    until = time.monotonic() + OPEN_SECONDS
    while not (oracle.exists() and oracle.stat().st_size > 0):
        if time.monotonic() > until:
            raise AssertionError("the victim did not open its directory")
        time.sleep(0.0005)


def _make_image(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    _call("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", str(image))


@contextmanager
def _mounted(image: Path, mount: Path) -> Iterator[None]:
    _call("mount", "-o", "loop", str(image), str(mount))
    try:
        yield
    finally:
        _call("umount", str(mount))


def _call(*arguments: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env={**os.environ, "PATH": _PATH})
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(arguments)}: {done.stderr.strip()}")
