"""The free section of a handler's configuration, checked. The handlers of this folder share it."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from runner import Context, Fail

SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(BaseModel):
    """What `handlers.<name>.config` may say. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def read_settings(ctx: Context, model: type[SettingsT]) -> SettingsT:
    """The handler's section of the configuration. Raises `Fail`, which names the key that is wrong."""
    try:
        return model.model_validate(dict(ctx.config))
    except ValidationError as error:
        faults = "; ".join(map(describe, error.errors(include_url=False, include_context=False)))
        raise Fail(f"handlers.{ctx.task.type}.config cannot be used: {faults}", code="invalid_config") from None


def describe(fault: Any) -> str:
    """One wrong key."""
    key = ".".join(map(str, fault["loc"]))
    said = "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
    return f"{key}: {said}"
