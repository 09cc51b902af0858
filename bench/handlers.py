"""The handlers that are measured with; each workspace gets a copy of this file."""

from __future__ import annotations

import time
from pathlib import Path

from runner import Context, handler

STAMPS = Path(__file__).parent.parent / "stamps"


@handler()
def noop(ctx: Context, x: int = 0) -> None:
    """Do nothing."""


@handler()
def stamp(ctx: Context) -> None:
    """Say on the monotonic clock, which all processes share, when this was called."""
    called = time.monotonic_ns()
    name = ctx.inputs[0].name if ctx.inputs else ctx.task.id
    with STAMPS.open("a") as stamps:
        stamps.write(f"{called} {name}\n")


@handler(retries=1000, timeout=None)
def hold(ctx: Context) -> None:
    """Keep a slot until the runner stops."""
    while True:
        ctx.check()
        time.sleep(0.02)
