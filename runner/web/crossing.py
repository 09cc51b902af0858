"""The one way from the event loop to the service, whose verbs block."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `verb` returns or raises, called in a worker thread."""
    return await run_in_threadpool(verb, *args, **kwargs)
