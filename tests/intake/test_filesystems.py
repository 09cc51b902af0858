"""The same promises on whatever filesystem a watched folder lies: the one of the tests, tmpfs, and one behind FUSE."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.intake.folders import After, Folder
from runner.intake.mounts import Mounts
from tests.intake.conftest import Site

MakeSite = Callable[..., Site]
SETTLE_SECONDS = 0.05


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A folder in memory."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no /dev/shm to write to")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Path]:
    """A folder that shows another one, `behind`, through a program."""
    if shutil.which("bindfs") is None or not Path("/dev/fuse").exists():
        pytest.skip("bindfs (Debian: bindfs) or /dev/fuse is missing: nothing is known of FUSE mounts")
    behind, shown = tmp_path / "behind", tmp_path / "mounted"
    behind.mkdir()
    shown.mkdir()
    mount = ["bindfs", str(behind), str(shown)]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True, timeout=20)
    if mounted.returncode:
        pytest.skip(f"bindfs may not mount here: {mounted.stderr.strip()}")
    try:
        yield shown
    finally:
        subprocess.run(["fusermount", "-u", "-z", str(shown)], check=True, timeout=20)


@pytest.fixture(params=["here", "tmpfs", "fuse"])
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder on each of them."""
    if request.param == "here":
        (tmp_path / "watched").mkdir()
        return tmp_path / "watched"
    folder: Path = request.getfixturevalue(request.param)
    return folder


def _site(make_site: MakeSite, watched: Path, after: After = After.MOVE) -> Site:
    return make_site(further=[Folder(str(watched), "keep", after=after)], settle_seconds=SETTLE_SECONDS)


def _scan_until(site: Site, count: int) -> None:
    end = time.monotonic() + 20
    while len(site.tasks()) < count:
        assert time.monotonic() < end
        site.scan()
    site.scan()


def _contents(site: Site) -> list[str]:
    return sorted((site.data / task.input_files[0]).read_text() for task in site.tasks())


def test_what_is_moved_in_is_taken_once_whole_and_leaves(make_site: MakeSite, watched: Path, tmp_path: Path) -> None:
    """Files and trees, with names of any bytes; over a filesystem's border nothing is in both places."""
    site = _site(make_site, watched)
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "b.txt").write_text("b")
    shutil.move(tmp_path / "tree", watched / "tree")
    (watched / "a.txt").write_text("a")
    (watched / os.fsdecode(b"\xff.txt")).write_text("c")
    _scan_until(site, 3)
    assert _contents(site) == ["a", "b", "c"]
    assert [path for path in watched.rglob("*") if path.is_file()] == []


def test_a_file_that_is_open_for_writing_is_not_taken(make_site: MakeSite, watched: Path) -> None:
    """Where the kernel cannot be asked, one that changes is not."""
    site = _site(make_site, watched)
    with (watched / "a.txt").open("w") as file:
        for _ in range(20):
            file.write("some more ")
            file.flush()
            site.scan()
        assert site.tasks() == []
    _scan_until(site, 1)
    assert _contents(site) == ["some more " * 20]


def test_a_file_that_stays_is_taken_once(make_site: MakeSite, watched: Path) -> None:
    """Inodes and times are what the filesystem makes of them, also after a restart."""
    site = _site(make_site, watched, After.KEEP)
    (watched / "a.txt").write_text("a")
    _scan_until(site, 1)
    site.close()
    site.open()
    site.scan()
    assert _contents(site) == ["a"]
    assert os.listdir(watched) == ["a.txt"]


def test_a_fuse_mount_is_polled_because_changes_behind_it_raise_no_events(make_site: MakeSite, fuse: Path) -> None:
    """The running inbox finds what another machine, here the folder behind, has written."""
    site = _site(make_site, fuse)
    (fuse.parent / "behind" / "a.txt").write_text("a")
    site.inbox.start()
    end = time.monotonic() + 20
    while not site.tasks():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert Mounts().type_of(fuse.stat().st_dev).startswith("fuse")
    assert site.inbox.rounds.is_polled(site.further[0])


def test_a_share_that_goes_away_and_comes_back_loses_nothing(make_site: MakeSite, fuse: Path) -> None:
    """A dead mount is trouble that is told, not the end of the inbox, and nobody's fault."""
    site = _site(make_site, fuse, After.KEEP)
    (fuse / "a.txt").write_text("a")
    _scan_until(site, 1)
    subprocess.run(["fusermount", "-u", "-z", str(fuse)], check=True, timeout=20)
    site.close()
    site.open()
    site.scan()
    subprocess.run(["bindfs", str(fuse.parent / "behind"), str(fuse)], check=True, timeout=20)
    site.scan()
    assert _contents(site) == ["a"]
    assert site.failures == []
