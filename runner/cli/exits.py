"""What exit codes mean, and which error is which.

0 ok   1 a task failed   2 usage or configuration   3 not found   4 refused   5 no connection to the runner
77 others can write to the data directory, or it belongs to somebody else
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final

from runner.errors import ConfigError, NotFound, OwnerExists, RunnerError, UnsafeAccess


class Exit(IntEnum):
    """The exit code of a command."""

    OK = 0
    TASK_FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    NO_CONNECTION = 5
    UNSAFE = 77


EXIT_OF: Final[Mapping[type[RunnerError], Exit]] = {
    RunnerError: Exit.REFUSED,
    ConfigError: Exit.USAGE,
    NotFound: Exit.NOT_FOUND,
    OwnerExists: Exit.NO_CONNECTION,
    UnsafeAccess: Exit.UNSAFE,
}
"""The exit code of each error class; a class that is not listed has the one of its nearest listed ancestor."""


class CommandFailed(Exception):
    """A command ends here. `message` is for people, on stderr; `document` for machines, where `--json` was given."""

    def __init__(self, exit: Exit, message: str, document: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.exit = exit
        self.message = message
        self.document = document or {"code": exit.name.lower(), "detail": message}


def failure_of(error: RunnerError) -> CommandFailed:
    """How a command ends that met `error`."""
    exit = next(EXIT_OF[cls] for cls in type(error).__mro__ if cls in EXIT_OF)
    return CommandFailed(exit, str(error), {"code": error.code, "detail": str(error)})


def failure_of_disk(error: OSError) -> CommandFailed:
    """How a command ends that could not do something with a file: where, and what the system says."""
    place = f"{error.filename}: " if error.filename else ""
    return CommandFailed(Exit.REFUSED, f"{place}{error.strerror or error}")
