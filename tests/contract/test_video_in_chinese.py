"""Video-In-Chinese: its gRPC service, and the gateway that its pages speak to."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from runner.store.files import Files
from runner.web.tokens import NewToken, Tokens
from tests.contract.conftest import Row, Spoken, rows, speaking

grpc = pytest.importorskip("grpc")

FILM = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"
FAULT = "code message"


def stub_of(channel: Any) -> Any:
    """The client that is generated from the contract."""
    from runner.rpc.proto import task_pb2_grpc

    return task_pb2_grpc.TaskServiceStub(channel)


class Client:
    """A client of the gRPC service."""

    def __init__(self, spoken: Spoken, channel: Any = None) -> None:
        self.spoken = spoken
        self.channel = channel or grpc.insecure_channel(spoken.grpc)
        self._stub = stub_of(self.channel)

    def create(self, path: object, **call: Any) -> str:
        """The id of a new task."""
        from runner.rpc.proto import task_pb2

        task_id: str = self._stub.CreateTask(
            task_pb2.CreateTaskRequest(temp_file_path=str(path)), timeout=20, **call
        ).task_id
        return task_id

    def status(self, task_id: str, **call: Any) -> Any:
        """How far it is."""
        from runner.rpc.proto import task_pb2

        return self._stub.GetTaskStatus(task_pb2.GetTaskStatusRequest(task_id=task_id), timeout=20, **call)

    def name_of(self, task_id: str) -> str:
        """The name of its status."""
        from runner.rpc.proto import task_pb2

        return task_pb2.TaskStatus.Name(self.status(task_id).status)

    def film(self, name: str, end: bytes = b"") -> Path:
        """A film to hand in."""
        path = self.spoken.drop / name
        path.write_bytes(FILM + end)
        return path


class Fault(NamedTuple):
    code: str
    text: str


def fault_of(call: Any, *args: Any, **kwargs: Any) -> Fault:
    """With what a call is refused."""
    with pytest.raises(grpc.RpcError) as refused:
        call(*args, **kwargs)
    return Fault(refused.value.code().name, refused.value.details())


@pytest.fixture
def client(shared: Spoken) -> Iterator[Client]:
    """A client of the runner that tests share."""
    client = Client(shared)
    with client.channel:
        yield client


def test_the_numbers_are_those_of_the_contract() -> None:
    """Clients know fields by their numbers alone."""
    from runner.rpc.proto import task_pb2

    file = task_pb2.DESCRIPTOR
    fields = {
        name: [(f.number, f.name) for f in message.fields] for name, message in file.message_types_by_name.items()
    }
    assert file.package == "task"
    assert dict(task_pb2.TaskStatus.items()) == {"PENDING": 0, "PROCESSING": 1, "COMPLETED": 2, "FAILED": 3}
    assert fields == {
        "CreateTaskRequest": [(1, "temp_file_path")],
        "CreateTaskResponse": [(1, "task_id")],
        "GetTaskStatusRequest": [(1, "task_id")],
        "GetTaskStatusResponse": [
            (1, "status"),
            (2, "result_file_path"),
            (3, "error_message"),
            (4, "created_at"),
            (5, "updated_at"),
        ],
    }


def test_a_film_is_taken_over_and_its_result_is_told(client: Client) -> None:
    """The temporary file is gone, its content is the task's; times are RFC 3339."""
    path = client.film("a.mp4")
    task_id = client.create(path)
    task = client.spoken.ended(task_id)
    status = client.status(task_id)
    assert UUID(task_id).version == 4
    assert not path.exists()
    assert (client.name_of(task_id), status.error_message) == ("COMPLETED", "")
    assert Path(status.result_file_path).read_bytes() == FILM
    assert datetime.fromisoformat(status.created_at) == task.created_at.replace(microsecond=0)
    assert datetime.fromisoformat(status.updated_at).tzinfo is not None


def test_each_status_is_told_with_what_belongs_to_it(tmp_path: Path) -> None:
    """The path only of what is complete, the message only of what has failed."""
    with speaking(tmp_path, limits__global=1) as spoken:
        client = Client(spoken)
        with client.channel:
            failed = client.create(client.film("broken.mp4", b"broken"))
            spoken.ended(failed)
            running = client.create(client.film("slow.mp4", b"gate:films"))
            spoken.gate("films").await_entered()
            waiting, cancelled = client.create(client.film("w.mp4")), client.create(client.film("c.mp4"))
            spoken.http.post(f"/api/v1/tasks/{cancelled}/cancel")
            ids = (failed, running, waiting, cancelled)
            assert [client.name_of(one) for one in ids] == ["FAILED", "PROCESSING", "PENDING", "FAILED"]
            assert [client.status(one).error_message for one in ids] == ["the film is broken", "", "", "cancelled"]
            assert [client.status(one).result_file_path for one in ids] == ["", "", "", ""]
            spoken.gate("films").open()


def test_refusals_have_their_codes_and_texts(client: Client, tmp_path: Path) -> None:
    """What is outside the allowed folders is not looked at; what is refused stays where it is."""
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(FILM)
    link = client.spoken.drop / "link.mp4"
    link.symlink_to(outside)
    assert fault_of(client.create, "") == ("INVALID_ARGUMENT", "temp_file_path is empty")
    for path in ("relative.mp4", outside, tmp_path / "none.mp4", link, client.spoken.data / "tokens.json"):
        code, text = fault_of(client.create, path)
        assert code == "INVALID_ARGUMENT"
        assert text.startswith("failed to move file")
    missing = client.spoken.drop / "none.mp4"
    expected = f"failed to move file: source file does not exist: {missing}"
    assert fault_of(client.create, missing) == ("INVALID_ARGUMENT", expected)
    assert fault_of(client.status, "none") == ("NOT_FOUND", "task not found: none")
    assert fault_of(client.status, "../x") == ("NOT_FOUND", "task not found: ../x")
    assert outside.exists()


def test_without_a_handler_the_file_stays(tmp_path: Path) -> None:
    """A runner that is not prepared says so; nothing is lost."""
    with speaking(tmp_path, dialects__video_in_chinese__type="nothing") as spoken:
        client = Client(spoken)
        with client.channel:
            path = client.film("a.mp4")
            code, text = fault_of(client.create, path)
            assert (code, text[:31]) == ("FAILED_PRECONDITION", "failed to create task record: n")
            assert path.exists()


def test_five_at_once_all_succeed(client: Client) -> None:
    """Each with an id of its own."""
    films = [client.film(f"{number}.mp4") for number in range(5)]
    with ThreadPoolExecutor(5) as pool:
        assert len(set(pool.map(client.create, films))) == 5


def test_too_large_a_message_is_refused(client: Client) -> None:
    """Four megabytes, as gRPC has it."""
    assert fault_of(client.create, "/" + "x" * (5 << 20)).code == "RESOURCE_EXHAUSTED"


def test_too_much_metadata_is_refused(client: Client) -> None:
    """Eight kilobytes."""
    fault = fault_of(client.status, "none", metadata=[("x-much", "x" * 20_000)])
    assert fault.code in ("RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE")


def test_callers_are_known_by_their_tokens(tmp_path: Path) -> None:
    """In mode `token` nobody else is let in, and the tasks of others do not exist."""
    (tmp_path / "data").mkdir(mode=0o700)
    tokens = Tokens(Files(), str(tmp_path / "data" / "tokens.json"))
    ann, bob = ([("authorization", f"Bearer {tokens.add(NewToken(name=name))[1]}")] for name in ("ann", "bob"))
    with speaking(tmp_path, auth__mode="token") as spoken:
        client = Client(spoken)
        with client.channel:
            assert fault_of(client.create, client.film("a.mp4")).code == "UNAUTHENTICATED"
            task_id = client.create(client.film("a.mp4"), metadata=ann)
            assert spoken.service.get(task_id).user_id == "ann"
            assert client.status(task_id, metadata=ann).created_at
            assert fault_of(client.status, task_id, metadata=bob) == ("NOT_FOUND", f"task not found: {task_id}")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_with_an_authority_only_its_clients_are_let_in(tmp_path: Path) -> None:
    """TLS on both sides; without a certificate there is no connection."""
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*make.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    key, certificate = (tmp_path / "key.pem"), (tmp_path / "cert.pem")
    settings: dict[str, Any] = {"grpc__certificate": certificate, "grpc__key": key, "grpc__client_ca": certificate}
    with speaking(tmp_path, **settings) as spoken:
        root, own = certificate.read_bytes(), key.read_bytes()
        known = grpc.secure_channel(spoken.grpc, grpc.ssl_channel_credentials(root, own, root))
        unknown = grpc.secure_channel(spoken.grpc, grpc.ssl_channel_credentials(root))
        for channel, code in ((known, "NOT_FOUND"), (unknown, "UNAVAILABLE")):
            with channel:
                client = Client(spoken, channel)
                assert fault_of(client.status, "none").code == code


def test_calls_are_noted_as_requests_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the log and in the counts, under the status that HTTP would have."""
    caplog.set_level("INFO", "runner.access")
    with speaking(tmp_path, log__requests="all") as spoken:
        client = Client(spoken)
        with client.channel:
            assert fault_of(client.status, "none").code == "NOT_FOUND"
        counts = spoken.http.get("/metrics").text
    [noted] = [record for record in caplog.records if getattr(record, "path", "") == "/task.TaskService/GetTaskStatus"]
    assert (noted.__dict__["status"], noted.__dict__["user_id"]) == (404, "local")
    assert noted.__dict__["address"] == "127.0.0.1"
    assert 'method="POST",status="404"' in counts


def test_health_and_reflection_are_served(client: Client) -> None:
    """So that probes and grpcurl need nothing else."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    health = health_pb2_grpc.HealthStub(client.channel)
    for name in ("", "task.TaskService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    answer = next(reflection_pb2_grpc.ServerReflectionStub(client.channel).ServerReflectionInfo(asked))
    assert "task.TaskService" in {service.name for service in answer.list_services_response.service}


def film_form(content: bytes = FILM, name: str = "holiday.mp4") -> dict[str, Any]:
    """What httpx sends of an upload."""
    return {"files": {"file": (name, content, "video/mp4")}}


@rows(
    Row("POST /v1/tasks/upload", 200, "", "task_id", {}, film_form()),
    Row("POST /v1/tasks/upload", 200, "", "task_id", {}, film_form(b"\x1a\x45\xdf\xa3 matroska", "x.bin")),
    Row("POST /v1/tasks/upload", 415, "", FAULT, {"code": 415}, film_form(b"GIF89a", "x.mp4")),
    Row("POST /v1/tasks/upload", 400, "", FAULT, {"code": 400}, {"files": {"other": (None, "text")}}),
    Row("POST /v1/tasks/upload", 400, "", FAULT, {"code": 400}, {"content": b"x"}),
    Row("GET /v1/tasks/{completed}/status", 200, "", "task_id status result_url", {"status": "COMPLETED"}),
    Row("GET /v1/tasks/{completed}/status", 200, "", None, {"result_url": "/v1/tasks/download/{completed}/result.mp4"}),
    Row("GET /v1/tasks/{failed}/status", 200, "", "task_id status error_message", {"status": "FAILED"}),
    Row("GET /v1/tasks/none/status", 404, "", FAULT, {"code": 404, "message": "task not found"}),
    Row("GET /v1/tasks/download/{completed}/none.mp4", 404, "", FAULT, {"code": 404}),
    Row("GET /v1/tasks/download/{completed}/..%2F..%2Ftokens.json", 404, "", FAULT, {"code": 404}),
    Row("GET /v1/tasks/download/none/result.mp4", 404, "", FAULT, {"code": 404}),
    Row("GET /v1/else", 404, "", FAULT, {"code": 404}),
    Row("DELETE /v1/settings", 405, "", FAULT, {"code": 405}),
)
@pytest.mark.parametrize("port", ["main", "own"])
def test_the_gateway(shared: Spoken, films: dict[str, str], row: Row, port: str) -> None:
    """Each request is answered as the gateway's pages expect."""
    row.check(shared.http if port == "main" else shared.own["video_in_chinese"], **films)


@pytest.fixture(scope="module")
def films(shared: Spoken) -> dict[str, str]:
    """A film that is complete, and one that has failed."""
    made = {}
    for name, end in (("completed", b""), ("failed", b"broken")):
        made[name] = shared.http.post("/v1/tasks/upload", **film_form(FILM + end)).json()["task_id"]
        shared.ended(made[name])
    return made


def test_films_are_downloaded(shared: Spoken, films: dict[str, str]) -> None:
    """What came out, and what went in, each as a file to keep."""
    for name in ("result.mp4", "original.mp4"):
        answer = shared.http.get(f"/v1/tasks/download/{films['completed']}/{name}")
        assert (answer.status_code, answer.content) == (200, FILM)
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'


def test_a_film_that_is_too_large_or_finds_no_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """413 beyond the limit; 507 unless three times its size and more is free."""
    with speaking(tmp_path, dialects__video_in_chinese__max_upload_bytes="100kB") as spoken:
        large = film_form(FILM + bytes(200_000))
        Row("POST /v1/tasks/upload", 413, "", FAULT, {"code": 413}, large).check(spoken.http)
        full = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: full)
        Row("POST /v1/tasks/upload", 507, "", FAULT, {"code": 507}, film_form()).check(spoken.http)
        assert spoken.http.get("/api/v1/tasks/count").json() == {"count": 0}


def test_settings_are_changed_by_who_has_seen_the_latest(spoken: Spoken) -> None:
    """An older version is a conflict; an empty text and a hidden key leave what there was."""
    http = spoken.http
    first = http.get("/v1/settings").json()
    assert len(first) == 27
    assert (first["version"], first["is_configured"], first["processing_mode"]) == (0, False, "standard")
    assert first["voice_cloning_auto_select_reference"] is True
    keys = {"asr_api_key": "sk-1234567890abc", "translation_api_key": "t", "voice_cloning_api_key": "v"}
    set_once = http.post("/v1/settings", json={"version": 0, **keys, "polishing_enabled": True})
    assert set(set_once.json()) == {"version", "message"}
    second = http.get("/v1/settings").json()
    assert (second["asr_api_key"], second["translation_api_key"]) == ("sk-***abc", "***")
    assert (second["is_configured"], second["polishing_enabled"]) == (True, True)
    stale = {"json": {"version": 0, "asr_provider": "x"}}
    Row("POST /v1/settings", 409, "", FAULT, {"code": 409}, stale).check(http)
    again = {"version": 1, "asr_api_key": second["asr_api_key"], "translation_api_key": "", "asr_provider": "x"}
    assert http.post("/v1/settings", json=again).json()["version"] == 2
    third = http.get("/v1/settings").json()
    assert (third["asr_api_key"], third["is_configured"], third["asr_provider"]) == ("sk-***abc", True, "x")
