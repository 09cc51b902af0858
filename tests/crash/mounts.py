"""Small filesystems of one's own: a few MiB of memory, or an ext4 in a file. They need root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def obstacle(*programs: str) -> str | None:
    """Why nothing can be mounted here, or None."""
    if os.geteuid() != 0:
        return "mounting a filesystem needs root"
    missing = [name for name in ("mount", "umount", "unshare", *programs) if shutil.which(name, path=PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: e2fsprogs mount util-linux)"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return "mounting is not allowed here" if probe.returncode else None


@contextmanager
def mounted(source: Path | str, mount: Path, *options: str) -> Iterator[Path]:
    """`source` is mounted at `mount` meanwhile."""
    mount.mkdir(exist_ok=True)
    call("mount", *options, str(source), str(mount))
    try:
        yield mount
    finally:
        call("umount", str(mount))


def make_ext4(image: Path, size: int, *options: str) -> Path:
    """A file of `size` bytes that holds an empty ext4."""
    with image.open("wb") as file:
        file.truncate(size)
    call("mkfs.ext4", "-q", "-F", *options, str(image))
    return image


def call(*arguments: str) -> None:
    """Runs a program. Raises `AssertionError` with what it said."""
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "PATH": PATH}, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr.strip()}"
