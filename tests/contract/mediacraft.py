"""What the tests of MediaCraft's contract share: handlers that need no film, browsers with a cookie jar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx2

from tests.contract.conftest import Spoken

HANDLERS: Final = '''
"""The two types, without their work: a file called after a gate waits there, one called bad fails."""

from typing import Annotated, Any

from pydantic import Field

from runner import Context, Fail, handler
from tests.rig import gate_of


def pretend(ctx: Context) -> None:
    name = ctx.task.original_filename or ""
    if name.startswith("gate"):
        ctx.progress(40, "half way", stage="work")
        gate_of(name).enter()
        while not gate_of(name).is_open(0.005):
            ctx.check()
    if name.startswith("bad"):
        raise Fail("the film is broken")
    ctx.output("out.mp4").write_bytes(b"a film")


@handler(retries=0, accepts=["video/*"])
def watermark_removal(ctx: Context, regions: Annotated[list[Any], Field(min_length=1)]) -> None:
    """Remove watermarks."""
    pretend(ctx)


@handler(retries=0, accepts=["video/*"])
def video_merge(
    ctx: Context, segments: list[dict[str, Any]], audio_handling: str = "keep_all", quality_preset: str = "medium"
) -> None:
    """Join videos."""
    pretend(ctx)
'''

ENVELOPE: Final = "success code message data meta"
FAULT: Final = "success code message error data meta"
RECORD: Final = (
    "task_id user_id sid task_type task_name status progress progress_percentage progress_message created_at started_at"
    " completed_at last_heartbeat original_filename file_size input_file_path output_file_path processed_file_path"
    " error_message config task_config metadata"
)
REGIONS: Final = [[10, 10, 50, 50]]


@contextmanager
def browser(spoken: Spoken, port: str = "") -> Iterator[httpx2.Client]:
    """Somebody with an empty cookie jar."""
    with httpx2.Client(base_url=spoken.own[port].base_url, timeout=20) as client:
        client.get("/api/session/init")
        yield client


def film(name: str = "clip.mp4", content: bytes = b"frames") -> dict[str, Any]:
    """A form with a file."""
    return {"file": (name, content, "video/mp4")}


def create(client: httpx2.Client, task_type: str = "watermark_removal") -> str:
    """A new task's id."""
    answer = client.post("/api/tasks/create", json={"task_type": task_type})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"]["task_id"])


def uploaded(client: httpx2.Client, name: str = "clip.mp4", task_type: str = "watermark_removal") -> str:
    """The id of a task that has its file."""
    task_id = create(client, task_type)
    answer = client.post(f"/api/tasks/{task_id}/upload", files=film(name))
    assert answer.status_code == 200, answer.text
    return task_id


def started(client: httpx2.Client, name: str = "clip.mp4") -> str:
    """The id of a task that is on its way."""
    task_id = uploaded(client, name)
    answer = client.post(f"/api/tasks/{task_id}/config", json={"config": {"regions": REGIONS}})
    assert answer.status_code == 200, answer.text
    return task_id


def status_of(client: httpx2.Client, task_id: str) -> dict[str, Any]:
    """What the task's status says."""
    data: dict[str, Any] = client.get(f"/api/tasks/{task_id}/status").json()["data"]
    return data
