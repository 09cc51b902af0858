"""The one way from the event loop to the service, whose verbs block."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool

from runner.intake.admission import Origin, Submission
from runner.service import Service
from runner.task import Task

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `verb` returns or raises, called in a worker thread."""
    return await run_in_threadpool(verb, *args, **kwargs)


async def submit(service: Service, submission: Submission, origin: Origin) -> Task:
    """The submission's task, durable. The one place to change how the busiest verb crosses over."""
    return await in_thread(service.submit, submission, origin)
