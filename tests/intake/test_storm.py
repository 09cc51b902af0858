"""Many files at once, with the real watcher: none is missed, none is taken early, each is taken once."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.intake.conftest import Site

MakeSite = Callable[..., Site]


@pytest.fixture
def running(make_site: MakeSite) -> Site:
    """An inbox that runs by itself."""
    site = make_site(claim_ahead=10_000)
    site.inbox.start()
    return site


def _contents(site: Site) -> dict[str, bytes]:
    """What was taken, by the name below the handler's folder; a name that was taken twice fails here."""
    tasks = list(site.store.live())
    found = {task.drop.name: (site.data / task.input_files[0]).read_bytes() for task in tasks if task.drop}
    assert len(found) == len(tasks)
    return found


def _await_tasks(site: Site, number: int) -> None:
    deadline = time.monotonic() + 50
    while site.store.live_count < number or _names(site):
        assert time.monotonic() < deadline, f"{site.store.live_count} of {number} were taken"
        time.sleep(0.02)


def _names(site: Site) -> list[Path]:
    return [path for path in site.data.glob("inbox/keep/**/*") if path.is_file()]


def test_a_thousand_files_renamed_in_at_once_are_taken_each_once(running: Site) -> None:
    """However many events the kernel or the watcher drops."""
    for number in range(1000):
        running.drop(f"keep/{number}.txt", str(number))
    _await_tasks(running, 1000)
    assert _contents(running) == {f"{number}.txt": str(number).encode() for number in range(1000)}


def test_a_tree_of_a_thousand_files_that_is_moved_in_is_taken_whole(running: Site, tmp_path: Path) -> None:
    """The watcher reports only the folder."""
    tree = tmp_path / "tree"
    wanted = {f"tree/{number % 10}/{number % 7}/{number}.txt": str(number).encode() for number in range(1000)}
    for name, content in wanted.items():
        path = tree.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    tree.rename(running.data / "inbox" / "keep" / "tree")
    _await_tasks(running, 1000)
    assert _contents(running) == wanted


def test_files_that_slow_writers_write_in_place_are_never_taken_early(running: Site) -> None:
    """Eight writers, each with a file open nearly all of the time."""
    chance = random.Random(7)
    wanted = {f"{number}.bin": chance.randbytes(chance.randrange(1, 20_000)) for number in range(240)}
    names = iter(wanted)
    lock = threading.Lock()

    def write() -> None:
        while True:
            with lock:
                name = next(names, None)
            if name is None:
                return
            content = wanted[name]
            with (running.data / "inbox" / "keep" / name).open("wb", buffering=0) as file:
                for start in range(0, len(content), 4000):
                    file.write(content[start : start + 4000])
                    time.sleep(0.002)  # the slow writer is what is tested

    writers = [threading.Thread(target=write) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    _await_tasks(running, len(wanted))
    assert _contents(running) == wanted


def test_a_watcher_that_dies_costs_no_file(running: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started again, and scans see to the files until then."""
    watcher = running.inbox.watcher
    assert watcher is not None

    def die(*_: object, **__: object) -> Iterator[set[object]]:
        raise RuntimeError("killed by the test")

    with monkeypatch.context() as patch:
        patch.setattr(watcher, "_watch", die)
        watcher.restart()
        deadline = time.monotonic() + 20
        while not watcher.failures:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.drop("keep/a.txt")
        _await_tasks(running, 1)
    running.drop("keep/b.txt")
    _await_tasks(running, 2)
