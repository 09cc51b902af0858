"""One process owns a directory, and the moment it dies, however it dies, another one can."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.errors import OwnerExists
from runner.store import Layout
from runner.store.owner import Owner
from tests.store.samples import FaultyFiles

HOLD = """
import signal, sys
from runner.store.files import Files, Layout
from runner.store.owner import Owner
owner = Owner(Files(), Layout(sys.argv[1]))
owner.acquire()
print("mine", flush=True)
signal.pause()
"""


@pytest.fixture
def owner(layout: Layout, files: FaultyFiles) -> Iterator[Owner]:
    """Who would own the directory."""
    owner = Owner(files, layout)
    yield owner
    owner.release()


@pytest.fixture
def other(layout: Layout) -> Iterator[subprocess.Popen[bytes]]:
    """A process that owns it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, layout.data], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == b"mine\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_the_first_is(owner: Owner, other: subprocess.Popen[bytes]) -> None:
    """With the process id, and since when."""
    with pytest.raises(OwnerExists, match=f"process {other.pid} owns .* since 20") as told:
        owner.acquire()
    assert told.value.pid == other.pid


@pytest.mark.parametrize("card", [None, b"", b"[]", b'{"pid": "x"}', b"\xff"])
def test_who_the_owner_is_may_be_unknown(
    owner: Owner, other: subprocess.Popen[bytes], layout: Layout, card: bytes | None
) -> None:
    """The lock says that there is one; the card is only for people."""
    path = Path(layout.locks, "owner.json")
    path.unlink()
    if card is not None:
        path.write_bytes(card)
    with pytest.raises(OwnerExists, match="another process owns") as told:
        owner.acquire()
    assert told.value.pid is None


def test_a_card_that_is_no_file_is_no_card(owner: Owner, other: subprocess.Popen[bytes], layout: Layout) -> None:
    """Nothing is read through a link."""
    path = Path(layout.locks, "owner.json")
    path.unlink()
    path.symlink_to(__file__)
    with pytest.raises(OwnerExists, match="another process owns"):
        owner.acquire()


def test_a_standby_takes_over_when_the_owner_is_killed(
    owner: Owner, other: subprocess.Popen[bytes], layout: Layout
) -> None:
    """It says once for whom it waits, and then signs itself."""
    told: list[OwnerExists] = []
    waiting = threading.Thread(target=owner.wait, args=(told.append,))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    other.kill()
    waiting.join(20)
    assert ([error.pid for error in told], waiting.is_alive()) == ([other.pid], False)
    assert json.loads(Path(layout.locks, "owner.json").read_text())["pid"] == os.getpid()


def test_without_an_owner_nobody_waits(owner: Owner) -> None:
    """And nobody is told of anything."""
    told: list[OwnerExists] = []
    owner.wait(told.append)
    assert told == []


def test_a_directory_that_was_released_can_be_owned_again(owner: Owner, layout: Layout, files: FaultyFiles) -> None:
    """The lock's file stays: to unlink it would let two in."""
    owner.acquire()
    owner.release()
    assert Path(layout.locks, "owner.lock").exists()
    second = Owner(files, layout)
    second.acquire()
    second.release()


def test_a_full_disk_does_not_keep_anybody_from_owning(owner: Owner, files: FaultyFiles, layout: Layout) -> None:
    """The runner must be able to start, to clean up."""
    files.fail("write", "owner.json", errno.ENOSPC)
    owner.acquire()
    with pytest.raises(OwnerExists):
        Owner(files, layout).acquire()


def test_another_thread_may_release(owner: Owner, files: FaultyFiles, layout: Layout) -> None:
    """Whoever opened the store need not be who closes it."""
    owner.acquire()
    thread = threading.Thread(target=owner.release)
    thread.start()
    thread.join()
    second = Owner(files, layout)
    second.acquire()
    second.release()
