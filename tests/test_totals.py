"""How many tasks there are: counted once, and right from then on, whatever happens meanwhile."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.config import Config
from runner.intake.admission import Origin, Submission
from runner.service import Role, Service
from runner.task import Source
from runner.totals import RECOUNT_SECONDS, Totals

HANDLERS = "from runner import handler\n\n@handler()\ndef wait(ctx) -> None:\n    'Wait.'\n"
ORIGIN = Origin(Source.HTTP)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A runner that runs nothing."""
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers" / "wait.py").write_text(HANDLERS)
    options = {"data_dir": str(tmp_path / "data"), "handlers_dir": str(tmp_path / "handlers")}
    config = Config.load(None, {**options, "storage.min_free_bytes": 0, "storage.ballast_bytes": 0}, environ={})
    service = Service(config, Role.VISIT)
    service.start()
    yield service
    service.close()


def submit(service: Service, queue: str = "default") -> str:
    """A task's id."""
    return service.submit(Submission(type="wait", queue=queue), ORIGIN).id


def counted(service: Service) -> Counter[tuple[str, str, str]]:
    """The truth."""
    service.store.writer.flush_rows()
    return Counter({(queue, type, status): number for queue, type, status, number in service.store.index.totals()})


def test_the_numbers_go_along_with_what_happens(service: Service) -> None:
    """After the first question as before it: made, changed, removed."""
    first = submit(service)
    assert service.totals.read() == counted(service) == {("default", "wait", "pending"): 1}
    second = submit(service, "low")
    service.cancel(first)
    assert service.totals.read() == counted(service)
    service.delete(first)
    service.cancel(second)
    service.retry(second)
    assert service.totals.read() == counted(service) == {("low", "wait", "pending"): 1}


def test_what_happens_while_it_is_counted_is_not_lost(service: Service) -> None:
    """Again and again, with somebody who is busy all the time."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            service.cancel(submit(service))
            service.delete(submit_and_cancel(service))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(30):
            Totals.read(service.totals)
            service.totals._counted_at = -RECOUNT_SECONDS
    finally:
        stop.set()
        worker.join()
    service.totals._counted_at = service.totals._clock()
    assert service.totals.read() == counted(service)


def submit_and_cancel(service: Service) -> str:
    """The id of a task that has been cancelled."""
    task_id = submit(service)
    service.cancel(task_id)
    return task_id


def test_it_is_counted_once_and_again_after_an_hour(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks every second pays for a look at a dictionary."""
    opened = []
    connect = sqlite3.connect

    def noted(address: str, **options: Any) -> Any:
        opened.extend([address] if "mode=ro" in address else [])
        connection: sqlite3.Connection = connect(address, **options)
        return connection

    monkeypatch.setattr(sqlite3, "connect", noted)
    for _ in range(5):
        submit(service)
        service.totals.read()
    assert len(opened) == 1
    service.totals._counted_at -= RECOUNT_SECONDS + 1
    assert service.totals.read() == {("default", "wait", "pending"): 5}
    assert len(opened) == 2
