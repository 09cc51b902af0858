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


@handler()
def produce(ctx: Context, size: int) -> None:
    """Make a file of so many bytes, all of them zero."""
    with ctx.output("file.bin").open("wb") as file:
        file.truncate(size)


@handler(retries=0, timeout=None)
def speak(ctx: Context, times: int) -> None:
    """Say so often what the name of a file says that appears beside the data."""
    for _ in range(times):
        while not (found := list(STAMPS.parent.glob("said-*-"))):
            ctx.check()
            time.sleep(0.001)
        found[0].unlink()
        ctx.log.info(found[0].name)
