"""What can be said about a handler: in its decorator, and in config.yaml, which wins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from runner.config import HandlerConfig, Overrides, RetentionRule
from runner.units import Duration

_PATTERN: Final = re.compile(r"\.[^/*?\s]+|[a-z0-9*?.+-]+/[a-z0-9*?.+-]+")


class Isolation(StrEnum):
    """Where a handler runs. `THREAD` is for `def`, `LOOP` for `async def`; in a `PROCESS` both can be killed."""

    THREAD = "thread"
    LOOP = "loop"
    PROCESS = "process"


class Delivery(StrEnum):
    """What follows when the owner dies during an attempt: another attempt, or `failed` with code `interrupted`."""

    AT_LEAST_ONCE = "at_least_once"
    AT_MOST_ONCE = "at_most_once"


class _Options(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
    )


class Backoff(_Options):
    """The wait before retry n: `base_seconds` × `factor`ⁿ⁻¹, at most `max_seconds`, moved by ±`jitter` at random."""

    base_seconds: Duration = Field(default=1.0, alias="base")
    factor: float = Field(default=2.0, ge=1)
    max_seconds: Duration = Field(default=600.0, alias="max")
    jitter: float = Field(default=0.1, ge=0, le=1)


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _check_pattern(pattern: str) -> str:
    if not _PATTERN.fullmatch(pattern.lower()):
        raise ValueError(f'must be a type such as "image/*" or a suffix such as ".csv", not {pattern!r}')
    return pattern.lower()


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Patterns = Annotated[tuple[Annotated[str, AfterValidator(_check_pattern)], ...], BeforeValidator(_listed)]


class HandlerOptions(_Options):
    """How a handler is chosen, queued, run and kept.

    `accepts`: types (`image/*`) or suffixes (`.csv`) of its files; empty: any file, or none. `timeout_seconds` counts
    from the start of an attempt; None: no limit. `concurrency` and `per_user`: how many may run at once; None: only the
    general limits. `memory_mb`: what an attempt may use beyond its loaded code; only for `PROCESS`. `requires`: modules
    that must be importable, or `program|module`, where a program on PATH, or named in the handler's `config`, does as
    well; `extra`: the extra of this project that brings them. `enabled` False: only the configuration can switch it on.
    """

    enabled: bool = True
    accepts: Patterns = ()
    queue: str = "default"
    priority: int = 0
    timeout_seconds: Annotated[Duration, Field(gt=0)] | None = Field(default=1800.0, alias="timeout")
    retries: int = Field(default=3, ge=0)
    backoff: Backoff = Backoff()
    concurrency: int | None = Field(default=None, ge=1)
    per_user: int | None = Field(default=None, ge=1)
    isolation: Isolation = Isolation.THREAD
    delivery: Delivery = Delivery.AT_LEAST_ONCE
    memory_mb: int | None = Field(default=None, ge=1)
    retention: RetentionRule | None = None
    extra: str | None = None
    requires: Names = ()


def override(options: HandlerOptions, override: HandlerConfig | None) -> HandlerOptions:
    """The options with what `override` says in their place; only by the keys that it gives."""
    if override is None:
        return options
    options = options.model_copy(update={"requires": _unconfigured(options.requires, override.config)})
    given = {name: value for name, value in override.given().items() if name != "config"}
    if not given:
        return options
    # None means "no limit" for these; for the others, as everywhere in the configuration, "not said".
    given = {
        name: value
        for name, value in given.items()
        if value is not None or name in ("timeout", "concurrency", "per_user", "memory_mb", "retention")
    }
    merged = options.model_dump(by_alias=True) | given
    for name in ("backoff", "retention"):
        if isinstance(given.get(name), Overrides):
            earlier = getattr(options, name)
            merged[name] = (_said(earlier) if earlier else {}) | given[name].given()
    return HandlerOptions.model_validate(merged)


def _unconfigured(requires: Iterable[str], config: Mapping[str, Any]) -> tuple[str, ...]:
    """All but programs that are configured: whether one is there, the handler says."""
    return tuple(name for name in requires if "|" not in name or not config.get(name.partition("|")[0]))


def _said(part: BaseModel) -> dict[str, Any]:
    return part.model_dump(by_alias=True, exclude_unset=True)
