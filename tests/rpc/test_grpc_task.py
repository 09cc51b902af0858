import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from runner.context import Cancelled, Fail, Retry
from runner.errors import ConfigError, InvalidSubmission
from runner.rpc.grpc_task import Order, Services, read_config, services_of
from runner.rpc.proto import grpc_task_pb2 as pb
from tests.handlers.attempts import Attempt
from tests.rpc.executor import LIMIT_SECONDS, Scripted, completed, ended, progress, serving
from tests.site import make_certificate

QUICK = {"max_retries": 0}


@pytest.fixture
def executor() -> Iterator[Scripted]:
    """A service that does as it is told."""
    with serving(Scripted()) as executor:
        yield executor


def attempt_at(executor: Scripted, folder: Path, **service: Any) -> Attempt:
    """An attempt of a task for that service."""
    return Attempt(folder, "grpc_task", (), config=executor.config(**{**QUICK, **service}))


def test_the_service_gets_what_the_contract_says(executor: Scripted, tmp_path: Path) -> None:
    """Task, method, data, metadata, options and headers arrive under their names."""
    data = {"prompt": "hello", "n": 3, "deep": {"list": [1, None, True]}}
    attempt_at(executor, tmp_path, headers={"authorization": "Bearer x"}).run(
        service="one", method="chat", data=data, options={"timeout_ms": 5000, "progress_interval_ms": 50}
    )

    (asked,) = executor.asked
    assert asked.task_id == "00000000-0000-4000-8000-000000000000"
    assert asked.task_type == "chat"
    assert json_format.MessageToDict(asked.payload) == data
    assert dict(asked.metadata) == {"service": "one", "queue": "default", "retry_count": "0", "max_retry": "0"}
    assert asked.options == pb.ExecutionOptions(timeout_ms=5000, enable_progress=True, progress_interval_ms=50)
    assert executor.headers["x-client-name"] == "taskflow-worker"
    assert executor.headers["x-request-time"].endswith("Z")
    assert executor.headers["authorization"] == "Bearer x"


def test_progress_and_result_are_passed_on(executor: Scripted, tmp_path: Path) -> None:
    """What the service says on the way is the task's progress, what it returns is kept, whole numbers as such."""
    executor.act = lambda *_: iter([progress(10, "init", "starting"), progress(90), completed(tokens=[11, 0.5])])
    attempt = attempt_at(executor, tmp_path)

    result = attempt.run(service="one")

    assert json.dumps(result) == '{"data": {"tokens": [11, 0.5]}, "duration_ms": 7}'
    assert [(said.percentage, said.stage, said.message) for said in attempt.said] == [
        (10, "init", "starting"),
        (90, "", ""),
    ]


def test_a_connection_can_be_encrypted(tmp_path: Path) -> None:
    """With the certificate that the configuration trusts; a service that shows another one gets nothing."""
    certificate = make_certificate(tmp_path, "localhost")
    with serving(Scripted(), certificate=certificate) as executor:
        address = f"localhost:{executor.port}"
        trusting = attempt_at(executor, tmp_path, address=address, tls=True, ca_file=str(certificate))
        assert trusting.run(service="one")["data"] == {}
        with pytest.raises(Retry) as caught:
            attempt_at(executor, tmp_path, address=address, tls=True).run(service="one")
        assert caught.value.code in ("grpc_unavailable", "service_unhealthy")
        assert len(executor.asked) == 1


def test_the_timeout_is_the_services_unless_the_task_says_one(executor: Scripted, tmp_path: Path) -> None:
    """First the task's options, then the service's configuration, then the defaults."""
    attempt_at(executor, tmp_path).run(service="one")
    attempt_at(executor, tmp_path, timeout="10m").run(service="one")
    attempt_at(executor, tmp_path, timeout="10m").run(service="one", options={"timeout_ms": 1500})

    assert [asked.options.timeout_ms for asked in executor.asked] == [300_000, 600_000, 1500]


def test_an_error_that_is_final_ends_the_task(executor: Scripted, tmp_path: Path) -> None:
    """`retryable` false: no further attempt, with the service's own code and words."""
    error = pb.ErrorDetail(code="UNKNOWN_METHOD", message="no method 'x'")
    executor.act = lambda *_: iter([pb.ExecuteTaskResponse(error=error)])

    with pytest.raises(Fail, match="no method 'x'") as caught:
        attempt_at(executor, tmp_path).run(service="one")
    assert caught.value.code == "UNKNOWN_METHOD"


@pytest.mark.parametrize(("seconds", "after"), [(0, None), (30, 30.0)])
def test_an_error_that_may_pass_asks_for_another_attempt(
    executor: Scripted, tmp_path: Path, seconds: int, after: float | None
) -> None:
    """`retryable` true: another attempt, not before the time that the service says."""
    error = pb.ErrorDetail(code="BUSY", message="later", retryable=True, retry_after_seconds=seconds)
    executor.act = lambda *_: iter([pb.ExecuteTaskResponse(error=error)])

    with pytest.raises(Retry, match="later") as caught:
        attempt_at(executor, tmp_path).run(service="one")
    assert (caught.value.code, caught.value.after) == ("BUSY", after)


@pytest.mark.parametrize(
    ("responses", "code"),
    [
        ([], "no_result"),
        ([progress(50)], "no_result"),
        ([ended(pb.TASK_STATUS_FAILED, reason="bad luck")], "failed_by_service"),
        ([ended(pb.TASK_STATUS_CANCELLED)], "cancelled_by_service"),
        ([ended(pb.TASK_STATUS_UNSPECIFIED)], "failed_by_service"),
        ([pb.ExecuteTaskResponse()], "no_result"),
    ],
)
def test_an_end_without_a_good_result_is_tried_again(
    executor: Scripted, tmp_path: Path, responses: list[pb.ExecuteTaskResponse], code: str
) -> None:
    """Only COMPLETED completes a task."""
    executor.act = lambda *_: iter(responses)
    with pytest.raises(Retry) as caught:
        attempt_at(executor, tmp_path).run(service="one")
    assert caught.value.code == code


@pytest.mark.parametrize("status", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_the_status_decides_whether_another_attempt_follows(
    executor: Scripted, tmp_path: Path, status: grpc.StatusCode
) -> None:
    """What another attempt would be answered with too is final; everything else is tried again."""
    final = "INVALID_ARGUMENT NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED FAILED_PRECONDITION UNIMPLEMENTED"
    expected = Fail if status.name in [*final.split(), "UNAUTHENTICATED"] else Retry

    def act(_: pb.ExecuteTaskRequest, context: Any) -> Iterator[pb.ExecuteTaskResponse]:
        context.abort(status, "because")
        yield progress(0)

    executor.act = act
    with pytest.raises((Fail, Retry), match=f"{status.name}: because") as caught:
        attempt_at(executor, tmp_path).run(service="one")
    assert isinstance(caught.value, expected)
    assert caught.value.code == f"grpc_{status.name.lower()}"


def test_a_service_that_takes_too_long_is_left(executor: Scripted, tmp_path: Path) -> None:
    """The deadline of the call is the task's `timeout_ms`; the service learns that nobody waits any more."""
    left = threading.Event()

    def act(_: pb.ExecuteTaskRequest, context: Any) -> Iterator[pb.ExecuteTaskResponse]:
        context.add_callback(left.set)
        yield progress(1)
        executor.told_to_stop.wait(LIMIT_SECONDS)

    executor.act = act
    with pytest.raises(Retry) as caught:
        attempt_at(executor, tmp_path).run(service="one", options={"timeout_ms": 300})
    assert caught.value.code == "grpc_deadline_exceeded"
    assert left.wait(LIMIT_SECONDS)


def test_a_cancel_reaches_the_service_before_its_stream_ends(executor: Scripted, tmp_path: Path) -> None:
    """CancelTask comes with the task's id and the reason, and while the service still has somebody to talk to."""
    still_open = []

    def act(_: pb.ExecuteTaskRequest, context: Any) -> Iterator[pb.ExecuteTaskResponse]:
        yield progress(50)
        executor.told_to_stop.wait(LIMIT_SECONDS)
        still_open.append(context.is_active())
        yield ended(pb.TASK_STATUS_CANCELLED)

    executor.act = act
    attempt = attempt_at(executor, tmp_path)
    attempt.on_progress = lambda attempt: attempt.context.stop("cancelled")

    with pytest.raises(Cancelled):
        attempt.run(service="one")
    assert executor.cancelled == [("00000000-0000-4000-8000-000000000000", "cancelled")]
    assert still_open in ([True], [])
    assert attempt.log == [("info", "service one stops: as you wish")]


def test_a_service_that_cannot_be_told_to_stop_is_left_all_the_same(executor: Scripted, tmp_path: Path) -> None:
    """The attempt ends, with a line in the log."""

    def act(_: pb.ExecuteTaskRequest, context: Any) -> Iterator[pb.ExecuteTaskResponse]:
        yield progress(50)
        executor.told_to_stop.wait(LIMIT_SECONDS)

    executor.act = act
    executor.hears_cancel = False
    attempt = attempt_at(executor, tmp_path)
    attempt.on_progress = lambda attempt: attempt.context.stop("cancelled")

    with pytest.raises(Cancelled):
        attempt.run(service="one")
    assert attempt.log == [("warning", "service one could not be told to stop: INTERNAL: broken")]


@pytest.mark.parametrize("status", [pb.HEALTH_STATUS_UNHEALTHY, pb.HEALTH_STATUS_DEGRADED])
def test_a_service_that_is_not_healthy_gets_no_tasks(executor: Scripted, status: pb.HealthStatus) -> None:
    """It is asked, says so, and tasks keep away until it is asked again and says that it is healthy."""
    services = Services(read_config(executor.config(**QUICK)))
    executor.status = status
    attempt = Attempt(Path(), "grpc_task", ())
    with services.use("one") as service:
        service.hear(service.ask())
        with pytest.raises(Retry, match="service one is (unhealthy|degraded): one speaking") as caught:
            service.execute(attempt.context, Order("one"))
        assert caught.value.code == "service_unhealthy"
        assert executor.asked == []

        executor.status = pb.HEALTH_STATUS_HEALTHY
        service.hear(service.ask())
        assert service.execute(attempt.context, Order("one"))["data"] == {}
        assert services.health()["one"].message == "healthy: one speaking"
    services.close()


def test_a_service_in_use_is_asked_again_and_again(executor: Scripted) -> None:
    """Every `health_check_interval`, by a thread that nobody has to start."""
    services = Services(read_config(executor.config(health_check_interval="50ms")))
    with services.use("one"):
        for _ in range(3):
            assert executor.checks.acquire(timeout=LIMIT_SECONDS)
    services.close()


def test_a_service_that_nobody_uses_is_forgotten(executor: Scripted) -> None:
    """Its connection is closed, and the thread ends; the next task finds it as if new."""
    services = Services(read_config(executor.config()), linger_seconds=0)
    with services.use("one"):
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "grpc-health")
    thread.join(LIMIT_SECONDS)
    assert not thread.is_alive()
    assert services.health()["one"].asked_at is None

    with services.use("one") as service:
        assert service.execute(Attempt(Path(), "grpc_task", ()).context, Order("one"))["data"] == {}
    services.close()


def test_a_service_that_is_not_there_is_tried_again_at_once_and_then_later(tmp_path: Path) -> None:
    """A few quick tries bridge its restart; after them the attempt has failed, and another may follow."""
    with serving(Scripted()) as gone:
        port = gone.port
    config = {"services": {"one": {"address": f"127.0.0.1:{port}", "max_retries": 2, "retry_delay": "10ms"}}}
    attempt = Attempt(tmp_path, "grpc_task", (), config=config)

    with pytest.raises(Retry) as caught:
        attempt.run(service="one")
    assert caught.value.code in ("grpc_unavailable", "service_unhealthy")
    assert len(attempt.log) <= 2
    services_of(config).close()


def test_a_service_that_comes_back_in_time_does_the_task(tmp_path: Path) -> None:
    """Nobody sees that it was away."""
    with serving(Scripted()) as gone:
        port = gone.port
    config = {"services": {"one": {"address": f"127.0.0.1:{port}", "max_retries": 500, "retry_delay": "20ms"}}}
    attempt = Attempt(tmp_path, "grpc_task", (), config=config)
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(attempt.run(service="one")))
    tried = threading.Event()
    attempt.log = Alarm(tried)
    thread.start()
    assert tried.wait(LIMIT_SECONDS)
    with serving(Scripted(), port):
        thread.join(LIMIT_SECONDS)
    services_of(config).close()
    assert [result["data"] for result in ended] == [{}]


class Alarm(list[tuple[str, str]]):
    """A log that says when its first line comes."""

    def __init__(self, rung: threading.Event) -> None:
        super().__init__()
        self._rung = rung

    def append(self, line: tuple[str, str], /) -> None:
        super().append(line)
        self._rung.set()


def test_a_service_that_is_not_configured_fails_the_task(executor: Scripted, tmp_path: Path) -> None:
    """With the names of those that are."""
    with pytest.raises(Fail, match="no service 'two' .* there are: one") as caught:
        attempt_at(executor, tmp_path).run(service="two")
    assert caught.value.code == "unknown_service"


def test_data_that_the_contract_has_no_room_for_fails_the_task(executor: Scripted, tmp_path: Path) -> None:
    """A number beyond a double cannot be sent."""
    with pytest.raises(Fail) as caught:
        attempt_at(executor, tmp_path).run(service="one", data={"n": 10**400})
    assert caught.value.code == "invalid_data"


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"service": ""},
        {"service": "one", "data": [1]},
        {"service": "one", "options": {"timeout_ms": 0}},
        {"service": "one", "options": {"timeout": 1}},
        {"service": "one", "methd": "x"},
    ],
)
def test_a_payload_that_does_not_fit_is_refused(tmp_path: Path, payload: dict[str, Any]) -> None:
    """Before anything is stored, or asked of a service."""
    with pytest.raises(InvalidSubmission):
        Attempt(tmp_path, "grpc_task", ()).run(**payload)


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ({}, "services.one.address: Field required"),
        ({"address": "a:1", "timeot": "1s"}, "services.one.timeot: Extra inputs"),
        ({"address": "a:1", "headers": {"X-Big": "1"}}, "must be lower case"),
        ({"address": "a:1", "tls": True, "ca_file": "/nowhere/ca.pem"}, "ca_file"),
    ],
)
def test_a_service_that_is_wrongly_configured_fails_the_task(
    tmp_path: Path, service: dict[str, Any], said: str
) -> None:
    """For good, with the place of the fault."""
    with pytest.raises(Fail, match=said) as caught:
        Attempt(tmp_path, "grpc_task", (), config={"services": {"one": service}}).run(service="one")
    assert caught.value.code == "invalid_config"


def test_files_are_not_sent(tmp_path: Path) -> None:
    """The contract has no room for them, so a task with one fails, rather than lose it."""
    with pytest.raises(Fail) as caught:
        Attempt(tmp_path, "grpc_task", (tmp_path / "a.txt",)).run(service="one")
    assert caught.value.code == "wrong_inputs"


def test_a_configuration_is_checked_as_a_whole() -> None:
    """Its faults are told with their places."""
    with pytest.raises(ConfigError, match="defaults.timeout"):
        read_config({"defaults": {"timeout": "soon"}})
