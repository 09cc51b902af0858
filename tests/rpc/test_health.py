import sys

import pytest

from runner.config import Config
from runner.rpc.grpc_task import services_of
from runner.rpc.health import service_health
from runner.rpc.proto import grpc_task_pb2 as pb
from tests.rpc.executor import Scripted, serving


def configured(section: object) -> Config:
    """A configuration of grpc_task."""
    return Config.model_validate({"handlers": {"grpc_task": {"config": section}}})


def test_each_service_says_how_it_is() -> None:
    """Those in use what they said last, the others nothing."""
    with serving(Scripted()) as executor:
        section = executor.config()
        section["services"]["other"] = {"address": "127.0.0.1:1"}
        config = configured(section)
        assert service_health(config) == {"grpc:one": "not asked yet", "grpc:other": "not asked yet"}
        with services_of(section).use("one") as service:
            service.hear(service.ask())
            assert service_health(config)["grpc:one"] == "healthy: one speaking"
            executor.status = pb.HEALTH_STATUS_UNHEALTHY
            service.hear(service.ask())
            assert service_health(config)["grpc:one"] == "unhealthy: one speaking"


def test_nothing_is_loaded_to_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner without gRPC tells of its health, too."""
    monkeypatch.delitem(sys.modules, "runner.rpc.grpc_task")
    assert service_health(configured({"services": {"one": {"address": "a:1"}}})) == {"grpc:one": "not asked yet"}
    assert "runner.rpc.grpc_task" not in sys.modules


@pytest.mark.parametrize("section", [{}, {"services": None}, {"services": ["one"]}])
def test_without_services_there_is_nothing_to_say(section: object) -> None:
    """Nor with a configuration that tasks will complain about."""
    assert service_health(configured(section)) == {}
    assert service_health(Config()) == {}
