"""A function's parameters as the contract of its payload: validation, typed arguments, and a JSON schema of it.

The first parameter takes the Context; every other one is a key of the payload. `**anything` opens the payload to keys
that are not named.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic_core import PydanticUndefined

from runner.errors import ConfigError, InvalidSubmission, Problem

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Parameters:
    """What a handler can be given. Raises ConfigError for a signature that no payload can fill."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        context, *others = _checked(function)
        hints = _hints(function, [parameter.name for parameter in others])
        self._context = context.name
        named = [parameter for parameter in others if parameter.kind in _NAMED]
        self._names = tuple(parameter.name for parameter in named)
        self._open = len(others) > len(named)
        self._name = name
        # Numbered fields with aliases: a parameter may be called copy, json or _x, a field of a model may not.
        self._numbered = tuple((f"p{number}", name) for number, name in enumerate(self._names))
        self._fields: dict[str, Any] = {
            field: (_annotation(hints.get(parameter.name, Any), parameter.name), _default(parameter))
            for (field, _), parameter in zip(self._numbered, named, strict=True)
        }

    @cached_property
    def _model(self) -> type[BaseModel]:
        # Made when it is first needed: that takes a millisecond, which a process that starts for one task may spare.
        return _model(self._name, self._fields, "allow" if self._open else "forbid")

    @cached_property
    def _validate(self) -> Callable[[Any], BaseModel]:
        # What `model_validate` calls once it has looked for what is never given here.
        return self._model.__pydantic_validator__.validate_python

    def check(self) -> None:
        """Raise ConfigError if there is a parameter that cannot be validated or described."""
        self.schema()

    def arguments(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload as typed keyword arguments, defaults filled in. Raises InvalidSubmission; see `validate`."""
        if not payload and not self._names:
            return {}
        try:
            values = self._validate(payload)
        except ValidationError as error:
            raise InvalidSubmission(tuple(_problems(error, self._names))) from None
        fields = values.__dict__
        arguments = {name: fields[field] for field, name in self._numbered}
        return arguments | self._unnamed(values) if self._open else arguments

    @cached_property
    def may_be_empty(self) -> bool:
        """Whether a payload without anything in it fits."""
        try:
            self.arguments({})
        except InvalidSubmission:
            return False
        return True

    def _unnamed(self, values: BaseModel) -> dict[str, Any]:
        unnamed = values.model_extra or {}
        if self._context in unnamed:
            raise InvalidSubmission((Problem(f"/payload/{self._context}", "unknown parameter"),))
        return unnamed

    def schema(self) -> dict[str, Any]:
        """The JSON schema (draft 2020-12) of the payload. Raises ConfigError if a parameter has no such thing."""
        try:
            return self._model.model_json_schema(by_alias=True)
        except PydanticUserError as error:
            raise ConfigError(f"a parameter cannot be described as JSON: {error.message}") from error


def _checked(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters, if a context and a payload can fill them."""
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise ConfigError(f"{function.__name__}() needs a first parameter, for the context, such as ctx")
    for parameter in parameters[1:]:
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
            raise ConfigError(f"{function.__name__}(): a payload has names, it cannot fill {parameter}")
    return parameters


def _hints(function: Callable[..., Any], names: list[str]) -> dict[str, Any]:
    """The annotations of the parameters `names`. What the others say may exist for type checkers only."""
    written = {name: function.__annotations__[name] for name in names if name in function.__annotations__}
    try:
        return typing.get_type_hints(
            SimpleNamespace(__annotations__=written), getattr(function, "__globals__", {}), include_extras=True
        )
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"{function.__name__}(): an annotation cannot be resolved: {error}") from error


def _annotation(hint: Any, name: str) -> Any:
    return Annotated[hint, Field(alias=name)]


def _default(parameter: inspect.Parameter) -> Any:
    return PydanticUndefined if parameter.default is inspect.Parameter.empty else parameter.default


def _model(name: str, fields: dict[str, Any], extra: typing.Literal["allow", "forbid"]) -> type[BaseModel]:
    config = ConfigDict(extra=extra, allow_inf_nan=False, title=name, protected_namespaces=())
    try:
        return create_model(f"{name}_payload", __config__=config, **fields)
    except PydanticUserError as error:
        raise ConfigError(f"{name}(): a parameter cannot be validated: {error.message}") from error


def _problems(error: ValidationError, names: Iterable[str]) -> Iterator[Problem]:
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        steps = (str(step).replace("~", "~0").replace("/", "~1") for step in fault["loc"])
        said = fault["msg"].removeprefix("Value error, ")
        message = _unknown(fault["loc"], names) if fault["type"] == "extra_forbidden" else said
        yield Problem("/".join(("/payload", *steps)), message)


def _unknown(place: tuple[int | str, ...], names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(str(place[0]), names, 1) if len(place) == 1 else []
    return f"unknown parameter; did you mean {nearest[0]!r}?" if nearest else "unknown parameter"
