"""Events: numbering, watchers, throttled progress, logs and their replay."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runner.events import WATCHER_CAPACITY, Event, Events, Kind, Watcher, parse_stream_id
from runner.store import Transition
from runner.task import Progress, Status, Task

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Events]:
    """Events over an empty folder."""
    events = Events(tmp_path)
    yield events
    events.close()


def make_task(task_id: str = "a", user_id: str = "ann", status: Status = Status.PROCESSING) -> Task:
    """A task in its first attempt."""
    return Task(id=task_id, type="noop", user_id=user_id, status=status, attempt=1, created_at=NOW, updated_at=NOW)


def drain(watcher: Watcher) -> list[Event]:
    """All that a watcher has been told."""
    return list(iter(lambda: watcher.get(0), None))


def test_a_watcher_of_a_task_hears_of_that_task_only(events: Events) -> None:
    """Events of other tasks do not fill a watcher's queue."""
    with events.subscribe({"a"}) as watcher:
        events.log(make_task("b"), "info", "not this")
        events.log(make_task("a"), "info", "this")
        events.flush()
        assert [event.data["message"] for event in drain(watcher)] == ["this"]


def test_a_watcher_of_a_user_hears_of_no_other_user(events: Events) -> None:
    """The owner filter holds for status and for what handlers say."""
    with events.subscribe(user_id="ann") as watcher:
        for user_id in ("ann", "bob"):
            task = make_task(user_id, user_id)
            events.log(task, "info", "hello")
            events.publish_transitions([Transition(None, task)])
        events.flush()
        assert [event.user_id for event in drain(watcher)] == ["ann", "ann"]


def test_a_status_event_carries_what_the_task_reached(events: Events) -> None:
    """A watcher needs no further question to know how a task ended."""
    with events.subscribe({"a"}) as watcher:
        events.publish_transitions([Transition(Status.PROCESSING, make_task(status=Status.COMPLETED))])
        event = watcher.get(5)
    assert event is not None
    assert (event.kind, event.data["status"], event.data["version"]) == (Kind.STATUS, "completed", 1)


def test_a_deletion_is_told_as_such(events: Events) -> None:
    """A removed task is news of its own kind."""
    with events.subscribe({"a"}) as watcher:
        events.publish_transitions([Transition(Status.COMPLETED, make_task(), removed=True)])
        event = watcher.get(5)
    assert event is not None
    assert event.kind is Kind.REMOVED


def test_transitions_start_no_thread_while_nobody_watches(events: Events) -> None:
    """The committer pays nothing for watchers that are not there."""
    before = set(threading.enumerate())
    events.publish_transitions([Transition(None, make_task())])
    assert set(threading.enumerate()) <= before


def test_the_last_progress_is_told_however_fast_it_came(events: Events) -> None:
    """Throttling drops values in between, never the last one."""
    task = make_task()
    with events.subscribe({"a"}) as watcher:
        for percentage in range(101):
            events.progress(task, Progress(percentage=percentage))
        told: list[float] = []
        while not told or told[-1] < 100:
            event = watcher.get(5)
            assert event is not None
            told.append(event.data["percentage"])
    assert len(told) < 20


def test_held_back_progress_is_told_before_the_end_of_its_task(events: Events) -> None:
    """A watcher that leaves at the end has seen the last progress."""
    task = make_task()
    with events.subscribe({"a"}) as watcher:
        for percentage in (1, 2, 99):
            events.progress(task, Progress(percentage=percentage))
        events.publish_transitions([Transition(Status.PROCESSING, make_task(status=Status.COMPLETED))])
        events.flush()
        *_, last, end = drain(watcher)
    assert (last.data["percentage"], end.kind) == (99, Kind.STATUS)


def test_history_holds_what_was_said_before_it_was_asked_for(events: Events) -> None:
    """Nothing said earlier is missing from the history, not even held-back progress."""
    task = make_task()
    events.progress(task, Progress(percentage=1))
    events.progress(task, Progress(percentage=2, stage="work"))
    events.log(task, "warning", "thin ice")
    told = [(event.kind, event.data) for event in events.history("a")]
    assert (Kind.LOG, {"attempt": 1, "level": "warning", "message": "thin ice"}) in told
    assert (Kind.PROGRESS, {"attempt": 1, "percentage": 2.0, "stage": "work", "message": ""}) in told


def test_history_resumes_after_a_number_and_survives_a_restart(tmp_path: Path) -> None:
    """A reader that gives the last number it saw gets what came later, from another process too."""
    for message in ("first", "second"):
        events = Events(tmp_path)
        events.log(make_task(), "info", message)
        events.close()
    events = Events(tmp_path)
    first, second = events.history("a")
    assert first.number < second.number
    assert [event.data["message"] for event in events.history("a", first.number)] == ["second"]


def test_a_silent_task_has_no_log_file(events: Events, tmp_path: Path) -> None:
    """Status alone costs no file."""
    with events.subscribe():
        events.publish_transitions([Transition(None, make_task())])
        events.flush()
    assert list(tmp_path.iterdir()) == []
    assert list(events.history("a")) == []


def test_a_line_cut_short_by_a_crash_harms_no_other(events: Events, tmp_path: Path) -> None:
    """The line after a torn one begins on a line of its own."""
    events.log(make_task(), "info", "before")
    events.flush()
    with (tmp_path / "a.jsonl").open("ab") as log:
        log.write(b'{"id":"17')
    events.log(make_task(), "info", "after")
    assert [event.data["message"] for event in events.history("a")] == ["before", "after"]


def test_a_log_that_cannot_be_written_is_reported_once(
    events: Events, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Disk trouble loses lines and says so; watchers still hear them."""
    (tmp_path / "a.jsonl").mkdir()
    with events.subscribe({"a"}) as watcher:
        for message in ("one", "two"):
            events.log(make_task(), "info", message)
            events.flush()
        assert len(drain(watcher)) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_watcher_that_falls_behind_is_reset(events: Events) -> None:
    """A slow watcher costs no memory: it is closed, told so, and can resume from the history."""
    watcher = events.subscribe({"a"})
    for number in range(WATCHER_CAPACITY + 1):
        events.log(make_task(), "info", str(number))
    events.flush()
    assert watcher.was_reset
    assert watcher.get(0) is None
    assert len(list(events.history("a"))) == WATCHER_CAPACITY + 1
    watcher.close()


def test_whoever_watches_everything_is_reset_when_too_much_happens(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More news than can be told costs a watcher its place, not the process its memory."""
    monkeypatch.setattr("runner.events.MAX_UNTOLD", 0)
    with events.subscribe() as watcher, events.subscribe({"a"}) as other:
        events.publish_transitions([Transition(None, make_task())])
        assert (watcher.was_reset, other.was_reset) == (True, False)


def test_a_message_of_any_length_is_one_line_that_can_be_read(events: Events) -> None:
    """It is cut, and says how much is missing."""
    events.log(make_task(), "info", "x" * 100_000)
    (event,) = events.history("a")
    assert event.data["message"].endswith("(34464 more)")


def test_a_coroutine_receives_events_from_other_threads(events: Events) -> None:
    """`receive` wakes in its own loop; it returns None at its timeout and when hung up."""

    async def listen() -> list[object]:
        with events.subscribe({"a"}) as watcher:
            asyncio.get_running_loop().call_later(0.01, events.log, make_task(), "info", "hello")
            heard = await watcher.receive(5)
            nothing = await watcher.receive(0.01)
            asyncio.get_running_loop().call_later(0.01, events.hang_up)
            rest = [event async for event in watcher]
            return [heard and heard.data["message"], nothing, rest]

    assert asyncio.run(listen()) == ["hello", None, []]


def test_nobody_can_watch_after_hanging_up(events: Events) -> None:
    """A watcher that comes during shutdown is closed at once, so that no stream holds it up."""
    events.hang_up()
    watcher = events.subscribe({"a"})
    assert watcher.is_closed
    assert watcher.get(5) is None


def test_closing_tells_what_is_left(events: Events, tmp_path: Path) -> None:
    """What was said just before the end is in the log; what is said later is dropped without harm."""
    events.progress(make_task(), Progress(percentage=1))
    events.progress(make_task(), Progress(percentage=2))
    events.close()
    events.log(make_task(), "info", "too late")
    assert [event.data["percentage"] for event in events.history("a")][-1] == 2


def test_numbers_grow_whoever_speaks(events: Events) -> None:
    """Events of many threads get distinct, growing numbers, in the order of the log."""

    def speak(name: str) -> None:
        for _ in range(200):
            events.log(make_task(), "info", name)

    with ThreadPoolExecutor(4) as pool:
        pool.map(speak, "wxyz")
    numbers = [event.number for event in events.history("a")]
    assert len(numbers) == 800
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("text", ["", "x", "1-x", "-1", "1-2-3", "٣", "9" * 50])
def test_what_is_no_event_id_is_refused(text: str) -> None:
    """Only ids that this module makes, and plain numbers, are understood."""
    with pytest.raises(ValueError, match="not an event id"):
        parse_stream_id(text)


def test_an_event_id_stands_for_its_number() -> None:
    """An id turns back into the number that it was made from; "0" is before everything."""
    event = Event(parse_stream_id("1767312000000-7"), "a", "ann", Kind.LOG, NOW, {})
    assert event.stream_id == "1767312000000-7"
    assert parse_stream_id("0") == parse_stream_id("0-0") == 0
