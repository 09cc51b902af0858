"""When a file is whole: what the kernel says of a real one, and the decision."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.intake.readiness import (
    Patience,
    Sighting,
    State,
    Trust,
    Watched,
    Writer,
    decide,
    look,
    open_folder,
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="read leases are Linux's")
FALLBACK = Patience(fallback=2.0)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    """A descriptor of `tmp_path`."""
    fd = open_folder(str(tmp_path), "")
    yield fd
    os.close(fd)


def _seen(folder: int, name: str) -> Sighting:
    return look(folder, name)


def _state(
    seen: Sighting, watched: Watched | None = None, now: float = 0.0, *, patience: Patience = FALLBACK,
    trust: Trust = Trust.LOCAL, renamed: bool = False,
) -> State:  # fmt: skip
    return decide(seen, watched, now, patience=patience, trust=trust, renamed=renamed, uid=os.geteuid()).state


@linux_only
def test_a_file_that_nobody_writes_is_ready_at_once(folder: int, tmp_path: Path) -> None:
    """No settling where the kernel can be asked."""
    (tmp_path / "a").write_text("whole")
    assert _state(_seen(folder, "a")) is State.READY


@linux_only
def test_a_file_that_is_open_for_writing_waits_until_it_is_closed(folder: int, tmp_path: Path) -> None:
    """However long the writer pauses."""
    with (tmp_path / "a").open("w") as file:
        file.write("half")
        file.flush()
        assert _state(_seen(folder, "a")) is State.WRITING
    assert _state(_seen(folder, "a")) is State.READY


@linux_only
def test_a_writer_in_another_process_is_seen_and_not_harmed(folder: int, tmp_path: Path) -> None:
    """And asking while others open it for writing kills neither them nor us."""
    path = tmp_path / "a"
    path.write_text("x")
    code = "import sys; [open(sys.argv[1], 'ab').close() for _ in range(2000)]"
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
        states = set()
        while writer.poll() is None:
            states.add(_state(_seen(folder, "a")))
    assert writer.returncode == 0
    assert State.READY in states


def test_an_empty_file_waits(folder: int, tmp_path: Path) -> None:
    """Most programs create first and write afterwards."""
    (tmp_path / "a").touch()
    assert _state(_seen(folder, "a")) is State.EMPTY


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "socket"])
def test_what_is_not_a_file_is_refused_without_opening_it(folder: int, tmp_path: Path, kind: str) -> None:
    """No link is followed and no pipe is read, so a look never blocks."""
    path = tmp_path / "a"
    if kind == "link":
        (tmp_path / "other").write_text("x")
        path.symlink_to("other")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    assert _state(_seen(folder, "a")) is State.REFUSED


def test_a_hard_link_of_somebody_else_is_refused_and_our_own_is_not() -> None:
    """A link to another owner's file would make a task read what its dropper may not."""
    mine = Sighting(1, 2, 3, 4, 0o100644, os.geteuid(), 2, Writer.NONE)
    assert _state(mine) is State.READY
    assert _state(mine._replace(owner=os.geteuid() + 1)) is State.REFUSED
    assert _state(mine._replace(owner=os.geteuid() + 1, links=1)) is State.READY


def test_where_nobody_can_be_asked_the_file_must_come_to_rest() -> None:
    """Any change of size, time or inode starts the wait again."""
    seen = Sighting(1, 2, 3, 4, 0o100644, os.geteuid(), 1, Writer.UNKNOWN)
    watched = Watched.begin(seen, 10.0)
    assert _state(seen, watched, 11.9) is State.SETTLING
    watched.look(seen._replace(size=5), 11.9)
    assert _state(watched.last, watched, 12.5) is State.SETTLING
    assert _state(watched.last, watched, 13.9) is State.READY


def test_a_remote_filesystem_is_not_believed_that_nobody_writes() -> None:
    """The writer may be on another machine."""
    seen = Sighting(1, 2, 3, 4, 0o100644, os.geteuid(), 1, Writer.NONE)
    assert _state(seen, Watched.begin(seen, 0.0), 0.0, trust=Trust.REMOTE) is State.SETTLING
    assert _state(seen, trust=Trust.REMOTE, renamed=True) is State.READY


def test_a_folder_may_ask_for_rest_in_any_case() -> None:
    """`settle_seconds` of a folder holds even where the kernel sees no writer."""
    seen = Sighting(1, 2, 3, 4, 0o100644, os.geteuid(), 1, Writer.NONE)
    watched = Watched.begin(seen, 0.0)
    assert _state(seen, watched, 4.0, patience=Patience(2.0, always=5.0)) is State.SETTLING
    assert _state(seen, watched, 5.0, patience=Patience(2.0, always=5.0)) is State.READY


def test_the_speed_of_a_growing_file_is_known() -> None:
    """Bytes a second since it was first seen; a file that took its place begins anew."""
    seen = Sighting(1, 2, 1000, 4, 0o100644, 0, 1, Writer.SOME)
    watched = Watched.begin(seen, 0.0)
    watched.look(seen._replace(size=5000, mtime_ns=5), 2.0)
    assert watched.bytes_per_second(2.0) == 2000.0
    watched.look(seen._replace(inode=9, size=10), 3.0)
    assert watched.bytes_per_second(4.0) == 0.0


def test_no_link_is_followed_on_the_way_to_a_file(tmp_path: Path) -> None:
    """A directory that becomes a link after the scan leads nowhere."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "sub").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        open_folder(str(tmp_path / "inbox"), "sub")
