"""`@handler`: says that a function is a handler, and nothing else happens.

The declaration stays on the function until the folder's loader reads it, so importing a handler's file, in a test for
example, changes nothing anywhere; and the decorated function is called as if it had no decorator.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict, TypeVar, Unpack, overload

from pydantic import ValidationError

from runner.errors import ConfigError
from runner.handlers.options import Backoff, Delivery, HandlerOptions, Isolation

Function = TypeVar("Function", bound=Callable[..., Any])

MARK: Final = "__runner_handler__"
NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class Keywords(TypedDict, total=False):
    """What `@handler(…)` takes: the fields of `HandlerOptions`, and a task type other than the function's name."""

    name: str
    enabled: bool
    accepts: str | Sequence[str]
    queue: str
    priority: int
    timeout: str | float | None
    retries: int
    backoff: Backoff | Mapping[str, str | float]
    concurrency: int | None
    per_user: int | None
    isolation: Isolation | Literal["thread", "loop", "process"]
    delivery: Delivery | Literal["at_least_once", "at_most_once"]
    memory_mb: int | None
    retention: Mapping[str, str | float | None] | None
    extra: str | None
    requires: str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the decorator said about a function."""

    name: str
    options: HandlerOptions


@overload
def handler(function: Function, /) -> Function: ...
@overload
def handler(**keywords: Unpack[Keywords]) -> Callable[[Function], Function]: ...
def handler(function: Callable[..., Any] | None = None, /, **keywords: Any) -> Any:
    """Make the function a handler: `@handler`, or `@handler(accepts=["image/*"], timeout="2m", …)`.

    Raises ConfigError for an unknown or wrong option; the loader then names the line.
    """
    if function is not None:
        return _declare(function, {})
    return lambda decorated: _declare(decorated, keywords)


def _declare(function: Function, keywords: dict[str, Any]) -> Function:
    name = keywords.pop("name", None) or function.__name__
    if not NAME.fullmatch(name):
        raise ConfigError(f"@handler: {name!r} cannot name a task type: a-z first, then a-z, 0-9, _ and -, at most 64")
    if inspect.iscoroutinefunction(function):
        keywords = {"isolation": Isolation.LOOP, **keywords}
    try:
        options = HandlerOptions.model_validate(keywords)
    except ValidationError as error:
        raise ConfigError(f"@handler of {name} cannot be used:", describe(error)) from error
    setattr(function, MARK, Declaration(name, options))
    return function


def describe(error: ValidationError) -> tuple[str, ...]:
    """One line for each option that was refused."""
    return tuple(
        f"{'.'.join(map(str, fault['loc']))}: "
        + ("unknown option" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, "))
        for fault in error.errors(include_url=False, include_context=False)
    )


def find_declaration(value: object) -> Declaration | None:
    """What `@handler` said about `value`, or None if it said nothing."""
    declaration = getattr(value, MARK, None) if inspect.isfunction(value) else None
    return declaration if isinstance(declaration, Declaration) else None
