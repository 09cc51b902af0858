"""The watcher: what it passes on, and how it comes back. `FakeWatch` stands for watchfiles, once for the real one."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from watchfiles import Change
from watchfiles.main import FileChange

from runner.intake import watcher as module
from runner.intake.watcher import BUSY_PAUSE_SECONDS, MOMENT_SECONDS, Load, Stop, Watcher

Script = list[set[FileChange] | Exception]


class FakeWatch:
    """Plays one script each time that it is started: batches of changes, or an error; then it waits for the stop."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.calls: list[dict[str, Any]] = []
        self.idle = threading.Event()

    def __call__(self, *paths: str, stop_event: Stop, **options: Any) -> Iterator[set[FileChange]]:
        self.calls.append({"paths": paths, **options})
        script = self.scripts.pop(0) if self.scripts else []
        stop_event.is_set()
        for step in script:
            if isinstance(step, Exception):
                raise step
            yield step
        self.idle.set()
        while not stop_event.is_set():
            threading.Event().wait(0.001)


class Ears:
    """What the watcher told."""

    def __init__(self) -> None:
        self.told: SimpleQueue[tuple[set[str], set[str]] | str] = SimpleQueue()

    def change(self, changed: set[str], removed: set[str]) -> None:
        self.told.put((changed, removed))

    def begin(self) -> None:
        self.told.put("begin")

    def next(self) -> tuple[set[str], set[str]] | str:
        return self.told.get(timeout=10)


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(module, "LONGEST_BACKOFF_SECONDS", 0.004)


@pytest.fixture
def ears() -> Ears:
    """Listens."""
    return Ears()


def _watcher(ears: Ears, watch: Any, *paths: str) -> Watcher:
    return Watcher(lambda: paths, ears.change, ears.begin, step_ms=1, debounce_ms=10, watch=watch)


def test_changes_are_passed_on_and_what_only_went_is_told_apart(ears: Ears) -> None:
    """A path that went and came again within one batch is there."""
    batch = {(Change.added, "/a"), (Change.deleted, "/b"), (Change.deleted, "/a"), (Change.modified, "/c")}
    watcher = _watcher(ears, FakeWatch([batch]), "/inbox")
    watcher.start()
    assert [ears.next(), ears.next()] == ["begin", ({"/a", "/c"}, {"/b"})]
    watcher.close()


def test_after_an_error_the_watch_begins_anew(ears: Ears) -> None:
    """A name that is not UTF-8 ends watchfiles' iteration; `on_start` asks for the scan that finds it."""
    error = RuntimeError('Unable to decode path "/inbox/\\xFF.txt" to string')
    fake = FakeWatch([error], [OSError("no more inotify watches")], [{(Change.added, "/a")}])
    watcher = _watcher(ears, fake, "/inbox")
    watcher.start()
    assert [ears.next() for _ in range(4)] == ["begin", "begin", "begin", ({"/a"}, set())]
    assert watcher.failures == 2
    assert watcher.is_watching
    watcher.close()
    assert not watcher.is_watching


def test_back_off_grows_while_it_fails_and_ends_when_it_stands(ears: Ears) -> None:
    """A folder with a name that kills every watch must not cost a core."""
    watcher = _watcher(ears, FakeWatch([RuntimeError("1")], [RuntimeError("2")], [RuntimeError("3")]), "/inbox")
    waits = []
    for _ in range(3):
        watcher.run_once()
        waits.append(watcher._backoff)
    assert waits == [0.001, 0.002, 0.004]
    watcher.start()
    assert [ears.next() for _ in range(4)] == ["begin"] * 4
    watcher.close()
    assert watcher._backoff == 0.0


def test_unreadable_folders_are_skipped_only_after_one_stood_in_the_way(ears: Ears) -> None:
    """Then watchfiles also hides that folders are missing, so not from the start."""
    fake = FakeWatch([PermissionError("inbox/secret")], [])
    watcher = _watcher(ears, fake, "/inbox")
    watcher.start()
    fake.idle.wait(10)
    watcher.close()
    assert [call["ignore_permission_denied"] for call in fake.calls] == [False, True]


def test_restart_watches_the_folders_of_the_same_names_anew(ears: Ears) -> None:
    """A folder that was removed and made again is another one."""
    fake = FakeWatch([], [])
    watcher = _watcher(ears, fake, "/inbox")
    watcher.start()
    assert ears.next() == "begin"
    fake.idle.wait(10)
    watcher.restart()
    assert ears.next() == "begin"
    watcher.close()
    assert len(fake.calls) == 2


def test_closing_one_that_never_started_returns(ears: Ears) -> None:
    """A start that failed half way is closed all the same."""
    _watcher(ears, FakeWatch(), "/inbox").close()


def test_the_real_one_tells_of_a_rename_and_survives_a_name_that_is_not_utf8(ears: Ears, tmp_path: Path) -> None:
    """With watchfiles itself, on a real folder."""
    import watchfiles

    inbox = tmp_path / "inbox"
    inbox.mkdir()
    watcher = _watcher(ears, watchfiles.watch, str(inbox))
    watcher.start()
    assert ears.next() == "begin"
    os.close(os.open(os.fsencode(inbox) + b"/\xff", os.O_CREAT))
    assert ears.next() == "begin"
    (tmp_path / "a").touch()
    (tmp_path / "a").rename(inbox / "a")
    assert ears.next() == ({str(inbox / "a")}, set())
    watcher.close()


def test_the_load_is_high_while_more_than_half_of_a_processor_is_used() -> None:
    """Measured over a moment, and kept until the next."""
    seconds = {"passed": 0.0, "worked": 0.0}
    load = Load(lambda: seconds["passed"], lambda: seconds["worked"])
    for work, expected in ((0.0, False), (0.6, True), (0.4, False)):
        seconds["passed"] += MOMENT_SECONDS
        seconds["worked"] += MOMENT_SECONDS * work
        assert load.is_high() is expected
        seconds["worked"] += MOMENT_SECONDS * 0.05  # too little time has passed to tell
        assert load.is_high() is expected


def test_the_watch_asks_less_often_while_there_is_much_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question takes the interpreter from whoever has work to do."""
    pauses: list[float] = []
    monkeypatch.setattr("runner.intake.watcher.time.sleep", pauses.append)
    load = Load()
    stop = Stop(lambda: None, load)
    for is_high in (False, True):
        monkeypatch.setattr(load, "is_high", lambda is_high=is_high: is_high)
        assert not stop.is_set()
    assert pauses == [BUSY_PAUSE_SECONDS]
