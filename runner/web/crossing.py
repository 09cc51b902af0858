"""The ways from the event loop to the service, whose verbs block."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, ParamSpec, TypeVar

from runner.errors import RunnerError, ShuttingDown
from runner.intake.admission import Origin, Submission
from runner.service import Service
from runner.task import Task

MAX_THREADS: Final = 40

CROWD_SECONDS: Final = 0.1
"""For so long after two submissions have met more than one is expected at a time."""

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `verb` returns or raises, called in a worker thread of the loop.

    Whoever is cancelled meanwhile still waits for its end: until then it may write to what they would close. Half as
    dear as anyio's `to_thread` (measured), and there is one in most requests.
    """
    call = partial(verb, *args, **kwargs) if args or kwargs else verb
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await end_of(running)
        raise


async def end_of(running: asyncio.Future[T]) -> None:
    """However it ends, and however often whoever waits is told to go."""
    while not running.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([running])
    if not running.cancelled():
        running.exception()  # nobody is left to hear it


def give_threads(loop: asyncio.AbstractEventLoop) -> None:
    """As many worker threads as there may be calls that block at once; asyncio has too few where cores are few."""
    loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS, "web"))


class _Answer(NamedTuple):
    """How one submission ended, on its way back to the loop."""

    future: asyncio.Future[Task]
    tasks: Sequence[Task | None]
    error: RunnerError | None


class Submitter:
    """The busiest verb, without a thread for each call: what comes in one round of the loop is committed together, by
    waking the committer once, and the syncer tells the loop once for a whole batch. What comes alone is committed here,
    while the loop has nothing else to do: to wake a thread and to be woken by it took longer than that.

    For the coroutines of one event loop. On the main thread no handler of a signal may raise: the server sees to that.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answers: deque[_Answer] = deque()
        self._is_woken = False
        self._open = 0
        self._round_has_begun = False
        self._is_uncommitted = False
        self._crowded_until = 0.0

    async def submit(self, submission: Submission, origin: Origin) -> Task:
        """The submission's task, durable. Raises `RunnerError`."""
        if not self._service.may_submit_soon(origin):
            return await in_thread(self._service.submit, submission, origin)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Task] = loop.create_future()
        self._service.queue(submission, origin, partial(self._hear, future))
        self._open += 1
        try:
            self._commit(loop)
            return await future
        finally:
            self._open -= 1

    def _commit(self, loop: asyncio.AbstractEventLoop) -> None:
        """At once, or at the end of the round."""
        is_alone = self._is_alone(loop.time())
        if not self._round_has_begun:
            self._round_has_begun = True
            loop.call_soon(self._end_round)
        if is_alone:
            self._commit_here()
        else:
            self._is_uncommitted = True

    def _is_alone(self, now: float) -> bool:
        """Whether this is the only one in this round and under way, and there was never more than one lately."""
        if self._open > 1 or self._round_has_begun:
            self._crowded_until = now + CROWD_SECONDS
        return now >= self._crowded_until

    def _commit_here(self) -> None:
        self._is_woken = True  # by ourselves: what is told meanwhile is looked at below
        try:
            self._service.commit_here()
        finally:
            self._resolve()

    def _end_round(self) -> None:
        """What the store refuses because it closes, it has answered itself."""
        self._round_has_begun = False
        if self._is_uncommitted:
            self._is_uncommitted = False
            with suppress(ShuttingDown):
                self._service.commit_queued()

    def _hear(self, future: asyncio.Future[Task], tasks: Sequence[Task | None], error: RunnerError | None) -> None:
        """On the thread that synced. The first answer of a batch wakes the loop; the others are there when it looks."""
        self._answers.append(_Answer(future, tasks, error))
        if not self._is_woken:
            self._is_woken = True
            # A loop that was closed meanwhile has nobody left to tell; the syncer must not end of it.
            with suppress(RuntimeError):
                future.get_loop().call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        # Before the queue is read: an answer that comes later wakes the loop again.
        self._is_woken = False
        while self._answers:
            future, tasks, error = self._answers.popleft()
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                assert tasks[0] is not None
                future.set_result(tasks[0])
