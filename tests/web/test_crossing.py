"""The way from the event loop to the store and back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runner.errors import KeyConflict, UnknownHandler
from runner.intake.admission import Origin, Submission
from runner.service import Service
from runner.task import Source, Task
from runner.web import crossing
from runner.web.crossing import Submitter, in_thread
from tests.store.samples import Quick
from tests.web.conftest import Served
from tests.web.test_tasks import TASKS, submit

ORIGIN = Origin(Source.HTTP)


def test_submissions_cross_without_a_thread(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread pool is not asked for a submission without files."""

    async def refuse(*_: object) -> None:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr(crossing, "in_thread", refuse)
    assert submit(served)["status"] == "pending"


def test_many_at_once_are_each_answered_with_their_own(served: Served) -> None:
    """Answers of one batch do not get mixed up."""
    texts = [str(number) for number in range(50)]
    with ThreadPoolExecutor(16) as pool:
        tasks = list(pool.map(lambda text: submit(served, payload={"text": text}), texts))
    assert [task["payload"]["text"] for task in tasks] == texts
    assert len({task["id"] for task in tasks}) == 50


def test_what_comes_alone_is_committed_by_the_loop_itself(served: Served) -> None:
    """Where the disk is quick no thread is woken; the answer is there without another round."""
    served.service.store.committer.quickness = Quick()

    async def hand_in() -> bool:
        pending = asyncio.ensure_future(Submitter(served.service).submit(Submission(type="echo"), ORIGIN))
        await asyncio.sleep(0)
        return pending.done() and not pending.exception()

    assert asyncio.run(hand_in())


def test_what_comes_together_is_committed_together(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself would wait for the disk of those before it. The first cannot know of the others."""
    calls: list[str] = []
    for name in ("commit_here", "commit_queued"):
        monkeypatch.setattr(Service, name, noted(getattr(Service, name), calls))

    async def hand_in() -> None:
        submitter = Submitter(served.service)
        for count in (1, 3):
            await asyncio.gather(*(submitter.submit(Submission(type="echo"), ORIGIN) for _ in range(count)))

    asyncio.run(hand_in())
    assert calls == ["commit_here", "commit_here", "commit_queued"]


def noted(verb: Callable[[Service], None], calls: list[str]) -> Callable[[Service], None]:
    """The verb, and its name in `calls` whenever it is called."""

    def call(service: Service) -> None:
        calls.append(verb.__name__)
        verb(service)

    return call


def test_a_refusal_and_a_conflict_come_back_as_errors(served: Served) -> None:
    """At once, and from the syncer."""
    assert served.tcp.post(TASKS, json={"type": "missing"}).json()["code"] == UnknownHandler.code
    submit(served, unique_key="a")
    conflict = served.tcp.post(TASKS, json={"type": "echo", "unique_key": "a", "payload": {"text": "other"}})
    assert (conflict.status_code, conflict.json()["code"]) == (422, KeyConflict.code)


def test_a_submission_that_must_wait_for_room_waits_in_a_thread(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are behind hold up the one who submits, never the event loop."""
    monkeypatch.setattr(Service, "has_room", lambda self: False)
    asked = []

    async def note(verb: object, submission: Submission, origin: Origin) -> Task:
        asked.append(verb)
        return served.service.submit(submission, origin)

    monkeypatch.setattr(crossing, "in_thread", note)
    submit(served)
    assert asked == [served.service.submit]


def test_an_answer_to_a_loop_that_has_ended_is_dropped(served: Served, tmp_path: Path) -> None:
    """A forced stop closes the loop under a submission; the store goes on."""

    async def leave() -> None:
        pending = asyncio.ensure_future(Submitter(served.service).submit(Submission(type="echo"), ORIGIN))
        await asyncio.sleep(0)
        pending.cancel()

    asyncio.run(leave())
    served.service.store.settle()
    assert submit(served)["status"] == "pending"


def test_who_is_cancelled_still_waits_for_the_end_of_what_runs() -> None:
    """Until then a thread may write to what they would close; however often they are told to go."""
    gate, ended = threading.Event(), threading.Event()

    def work() -> None:
        gate.wait(20)
        ended.set()
        raise ValueError("nobody hears this")

    async def cancel() -> bool:
        waiting = asyncio.create_task(in_thread(work))
        for _ in range(3):
            await asyncio.sleep(0)
            waiting.cancel()
        was_early = waiting.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return was_early

    assert asyncio.run(cancel()) is False
    assert ended.is_set()
