import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.rpc.grpc_task import services_of
from runner.task import Status, Task
from tests.rig import Rig
from tests.rpc.executor import ROOT, Example

HANDLER = (ROOT / "handlers" / "grpc_task.py").read_text()


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    """The example, running."""
    example = Example(tmp_path)
    try:
        example.start()
        yield example
    finally:
        example.kill()


@pytest.fixture
def rig(example: Example, tmp_path: Path) -> Iterator[Rig]:
    """A runner that calls it "python"."""
    service = {"address": f"127.0.0.1:{example.port}", "max_retries": 0, "health_check_interval": "100ms"}
    settings = {"config": {"services": {"python": service}}, "backoff": {"base": 1, "jitter": 0}}
    rig = Rig(tmp_path, {"handlers": {"grpc_task": settings}}, HANDLER)
    try:
        yield rig.open()
    finally:
        rig.close()
    services_of(rig.config.handlers["grpc_task"].config).close()


def submit(rig: Rig, method: str, **data: Any) -> Task:
    """A task for the example; it is to say all that it has to say."""
    return rig.submit("grpc_task", service="python", method=method, data=data, options={"progress_interval_ms": 1})


def in_progress(task: Task) -> bool:
    """Whether the service has said something."""
    return task.progress is not None and task.progress.percentage > 0


def test_a_task_is_done_by_the_service(rig: Rig) -> None:
    """Its progress, stage by stage, and its result are the task's."""
    task = rig.until(submit(rig, "demo", message="step", count=2))

    assert task.result["data"] == {"message": "step", "count": 2}
    said = [event.data for event in rig.it.events.history(task.id) if event.kind == "progress"]
    assert [(one["percentage"], one["message"]) for one in said] == [(50.0, "step 1"), (100.0, "step 2")]


def test_what_the_service_says_for_programs_is_passed_on(rig: Rig) -> None:
    """The metadata of its progress."""
    task = rig.until(submit(rig, "chat", max_tokens=1))
    (said,) = (event.data for event in rig.it.events.history(task.id) if event.kind == "progress")
    assert said["metadata"] == {"token_index": "0"}


def test_a_method_that_the_service_does_not_know_fails_the_task(rig: Rig) -> None:
    """At once, and for good."""
    task = rig.until(submit(rig, "unheard_of"))
    assert (task.status, task.attempt) == (Status.FAILED, 1)
    assert task.error is not None
    assert task.error.code == "UNKNOWN_METHOD"


def test_a_service_that_is_killed_in_the_middle_is_called_again(rig: Rig, example: Example) -> None:
    """The attempt has failed; when the service is back the next one completes."""
    task = rig.when(submit(rig, "chat"), in_progress)
    example.kill()
    task = rig.until(task, Status.PENDING)
    assert task.error is not None
    assert task.error.code == "grpc_unavailable"

    example.start()
    pause = threading.Event()
    with services_of(rig.config.handlers["grpc_task"].config).use("python") as service:
        while not service.health.healthy:
            pause.wait(0.05)
            service.hear(service.ask())
    rig.advance(60)
    task = rig.until(task)
    assert task.result["data"]["answer"].startswith("This is")


def test_a_cancel_stops_the_work_of_the_service(rig: Rig, example: Example) -> None:
    """The service hears of it, and the task is cancelled, not tried again."""
    task = rig.when(submit(rig, "demo", count=100), in_progress)
    rig.it.cancel(task.id)

    assert example.next_line() == f"cancelled {task.id}: cancelled"
    assert rig.until(task).status is Status.CANCELLED
    assert rig.it.get(task.id).attempt == 1


def test_a_service_that_is_closed_is_left_alone_until_it_opens(rig: Rig, example: Example) -> None:
    """It says that it is unhealthy; tasks wait for their next attempt, which it then does."""
    example.closed_file.touch()
    services = services_of(rig.config.handlers["grpc_task"].config)
    with services.use("python") as service:
        service.hear(service.ask())
        task = submit(rig, "demo", count=0)
        task = rig.when(task, lambda now: now.error is not None)
        assert task.error is not None
        assert task.error.code == "service_unhealthy"

        example.closed_file.unlink()
        service.hear(service.ask())
        rig.advance(60)
        assert rig.until(task).status is Status.COMPLETED
