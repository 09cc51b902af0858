"""How the services of `grpc_task` are, for whoever asks how the runner is. Needs no gRPC."""

from __future__ import annotations

import sys

from runner.config import Config
from runner.errors import ConfigError

_CLIENT = "runner.rpc.grpc_task"


def service_health(config: Config) -> dict[str, str]:
    """What is known of each configured service, by `grpc:` and its name; nothing if there are none."""
    handler = config.handlers.get("grpc_task")
    names = handler.config.get("services") if handler else None
    if handler is None or not isinstance(names, dict):
        return {}
    unknown = {f"grpc:{name}": "not asked yet" for name in names}
    # Loaded by the first task that needs it. To ask after a service is no reason to load it, or to call one.
    client = sys.modules.get(_CLIENT)
    if client is None:
        return unknown
    try:
        known = client.services_of(handler.config).health()
    except ConfigError:
        return unknown
    return unknown | {f"grpc:{name}": health.message for name, health in known.items()}
