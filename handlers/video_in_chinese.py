"""Have Video-In-Chinese's own processor translate a film: it takes its work from Redis, and says there how far it is.

To do the work here instead, put a handler of your own into this file: it gets the film as its one input, and writes
the output `result.mp4`.
"""

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner import Context, Fail, handler

POLL_SECONDS = 0.5
OWN_BEGIN_SECONDS = 2.0
OUTAGE_SECONDS = 300.0


@handler(accepts="video/*", timeout="1d", retries=0, concurrency=3, extra="redis", requires="redis")
async def video_in_chinese(ctx: Context) -> dict[str, str]:
    """Wait for the processor that takes films from Redis, and bring home what it has made."""
    from runner.dialects.processor_queue import Order, connect

    if not ctx.config.get("redis"):
        message = "nobody does the work: set dialects.video_in_chinese.redis, or write a handler of this name"
        raise Fail(message, code="no_processor")
    queue = connect(ctx.config["redis"])
    order = Order(ctx.task.id, str(ctx.inputs[0]), ctx.task.created_at)
    try:
        record = await Vigil(ctx, queue, order).wait()
    finally:
        queue.close()
    if record["status"] == "FAILED":
        raise Fail(record.get("error_message") or "the processor has failed", code="processor_failed")
    result = Path(record.get("result_file_path", ""))
    await asyncio.to_thread(bring_home, result, ctx.output("result.mp4"), ctx.config.get("roots", ()))
    return {"result_file_path": str(result)}


class Vigil:
    """The wait for what the processor says at the end."""

    def __init__(self, ctx: Context, queue: Any, order: Any) -> None:
        self._ctx = ctx
        self._queue = queue
        self._order = order
        self._silent = 0.0
        self._absent = 0.0

    async def wait(self) -> Mapping[str, str]:
        """Its last words. Raises `Fail` when Redis cannot be asked for long."""
        while (record := await self._look()).get("status") not in ("COMPLETED", "FAILED"):
            self._ctx.check()
            await asyncio.sleep(POLL_SECONDS)
        if record["status"] == "FAILED" and not record.get("error_message"):
            # It writes that it has failed first, and why after that.
            await asyncio.sleep(POLL_SECONDS)
            return {**record, **await self._look()}
        return record

    async def _look(self) -> Mapping[str, str]:
        from runner.dialects.processor_queue import QueueDown

        try:
            record: Mapping[str, str] = await asyncio.to_thread(self._queue.find, self._order.task_id)
            self._silent = 0.0
            self._absent = 0.0 if record else self._absent + POLL_SECONDS
            if self._absent > OWN_BEGIN_SECONDS:
                # It came in by a door that tells the processor nothing.
                await asyncio.to_thread(self._queue.begin, self._order)
        except QueueDown as error:
            self._silent += POLL_SECONDS
            if self._silent > OUTAGE_SECONDS:
                raise Fail(str(error), code="redis_down") from error
            return {}
        return record


def bring_home(result: Path, output: Path, roots: tuple[str, ...]) -> None:
    """The processor's file as an output. Whoever can write to Redis must not fetch just any file of this machine."""
    real = result.resolve()
    if not any(real.is_relative_to(root) for root in roots):
        raise Fail(f"{result} is not under a folder that the processor may use", code="result_not_allowed")
    if not real.is_file():
        raise Fail(f"there is no file {result}", code="result_missing")
    try:
        os.link(real, output)
    except OSError:
        shutil.copyfile(real, output)
