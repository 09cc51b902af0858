"""A serverless platform that is just a folder: what a file in `handlers/`, or a client, needs is imported from here.

Names are looked up when they are first used, so that `import runner` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.client import AsyncClient, Client
    from runner.context import Cancelled, Context, Fail, Retry, Snooze
    from runner.errors import ApiError, NotReached
    from runner.handlers.declaration import handler
    from runner.task import FileState

__all__ = [
    "ApiError",
    "AsyncClient",
    "Cancelled",
    "Client",
    "Context",
    "Fail",
    "FileState",
    "NotReached",
    "Retry",
    "Snooze",
    "handler",
]

_HOMES = {
    "ApiError": "runner.errors",
    "AsyncClient": "runner.client",
    "Client": "runner.client",
    "FileState": "runner.task",
    "NotReached": "runner.errors",
    "handler": "runner.handlers.declaration",
}
"""Where a name is defined, if not in `runner.context`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "runner.context")), name)
    globals()[name] = value
    return value
