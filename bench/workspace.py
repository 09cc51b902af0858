"""A fresh project folder for one measurement: configuration, handlers, and an empty data directory.

Every measurement gets a new one, and they are removed when all is measured. ext4 does not give out an inode again for
one to five minutes after its file was deleted, and finds out by looking at each: beside 20,000 files that were just
deleted, creating one takes 100 to 300 µs instead of 5. So the folder around the measurements is marked as the top of a
hierarchy (`chattr +T`), by which each folder in it gets a block group of its own, and of several the one is taken
where files are made the quickest: ext4's first choice, where there are the fewest folders, is often the last
measurement's.
"""

from __future__ import annotations

import array
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Final

import click

from runner.config import Config

HANDLERS: Final = Path(__file__).parent / "handlers.py"
RUNS: Final = "file-runner-bench"
CANDIDATES: Final = 12
PROBES: Final = 100

_GET_FLAGS, _SET_FLAGS, _TOP_OF_HIERARCHY = 0x80086601, 0x40086602, 0x00020000

CONFIG: Final = """\
data_dir: {data}
durability: {durability}
http: {{port: 0}}
limits: {{global: 8}}
drain: {{grace_period: 200ms}}
"""


@dataclass(frozen=True)
class Place:
    """Where measurements put their folders, and whether they leave them there."""

    directory: Path
    keep: bool

    @property
    def arguments(self) -> list[str]:
        """The same for a child that measures: it leaves the removing to us."""
        return ["--dir", str(self.directory), "--keep"]


@dataclass(frozen=True)
class Workspace:
    """One measurement's folder, and the data directory, which may be elsewhere."""

    root: Path
    data: Path

    @property
    def handlers(self) -> Path:
        """The folder of handlers."""
        return self.root / "handlers"

    @property
    def config_file(self) -> Path:
        """The configuration's file."""
        return self.root / "config.yaml"

    @property
    def stamps(self) -> Path:
        """The named pipe through which the handler `stamp` says when it was called."""
        return self.root / "stamps"

    @cached_property
    def config(self) -> Config:
        """The configuration, whatever the environment says."""
        return Config.load(self.config_file, {}, {})


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--dir` and `--keep` to a command's function, which gets them as a `Place`, its first argument."""

    @click.option(
        "--dir",
        "directory",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(".."),
        help="Where to measure; by default beside the working directory.",
    )
    @click.option("--keep", is_flag=True, help="Leave the folders.")
    @wraps(command)
    def with_place(directory: Path, keep: bool, **rest: Any) -> Any:
        return command(Place(directory.absolute().resolve(), keep), **rest)

    return with_place


@contextmanager
def fresh_workspace(place: Place, name: str, durability: str = "full", data: Path | None = None) -> Iterator[Workspace]:
    """A project with the benchmarks' handlers and the starter set. `data`: a data directory that outlives it."""
    with fresh_folder(place, name) as root:
        workspace = Workspace(root, data or root / "data")
        workspace.config_file.write_text(CONFIG.format(data=workspace.data, durability=durability))
        workspace.handlers.mkdir()
        _copy_starter_handlers(workspace.handlers)
        shutil.copy(HANDLERS, workspace.handlers / "bench_handlers.py")
        os.mkfifo(workspace.stamps)
        yield workspace


@contextmanager
def fresh_folder(place: Place, name: str) -> Iterator[Path]:
    """A new folder, in a block group of its own where the filesystem has such; removed afterwards."""
    runs = place.directory / RUNS
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"{error.strerror}: {runs}; say --dir") from error
    mark_as_top(runs)
    root, *others = sorted(
        (Path(tempfile.mkdtemp(prefix=f"{name}-", dir=runs)) for _ in range(CANDIDATES)), key=_slowness
    )
    try:
        yield root
    finally:
        if not place.keep:
            # What was measured has been printed, and who reads it need not wait.
            sys.stdout.flush()
            for folder in (root, *others):
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                runs.rmdir()


def _slowness(folder: Path) -> float:
    """Seconds that it takes to make some files in a folder. They stay: what is deleted is in the way."""
    probes = folder / "probes"
    probes.mkdir()
    began = time.perf_counter()
    for number in range(PROBES):
        (probes / str(number)).touch()
    return time.perf_counter() - began


def _copy_starter_handlers(target: Path) -> None:
    """As in a real installation, where they cost memory and time to start."""
    from runner.cli.starting import find_starter

    for path in (find_starter() / "handlers").glob("*.py"):
        shutil.copy(path, target)


def mark_as_top(directory: Path) -> None:
    """Each folder in it gets a block group of its own. Only ext2, 3 and 4 know what that is; elsewhere nothing
    happens."""
    if sys.platform != "linux":
        return
    import fcntl

    fd = os.open(directory, os.O_RDONLY)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        flags[0] |= _TOP_OF_HIERARCHY
        fcntl.ioctl(fd, _SET_FLAGS, flags)
    except OSError:
        return
    finally:
        os.close(fd)
