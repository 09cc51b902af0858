"""A serverless platform that is just a folder: what a file in `handlers/` needs is imported from here.

Names are looked up when they are first used, so that `import runner` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.context import Cancelled, Context, Fail, Retry, Snooze
    from runner.handlers.declaration import handler
    from runner.task import FileState

__all__ = ["Cancelled", "Context", "Fail", "FileState", "Retry", "Snooze", "handler"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {"handler": "runner.handlers.declaration", "FileState": "runner.task"}
    value = getattr(import_module(homes.get(name, "runner.context")), name)
    globals()[name] = value
    return value
