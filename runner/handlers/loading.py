"""One file of handlers into one module object, and the handlers in it.

Each version of a file becomes a module object of its own, so tasks that run on the old one are not disturbed. A folder
is a package of its own: its files may import those that begin with an underscore as `from ._shared import resize`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NoReturn

from pydantic import ValidationError

from runner.config import HandlerConfig
from runner.errors import ConfigError, RunnerError
from runner.handlers.declaration import Declaration, describe, find_declaration
from runner.handlers.media import matches
from runner.handlers.options import HandlerOptions, Isolation, override
from runner.handlers.schema import Parameters


@dataclass(frozen=True, eq=False)
class Handler:
    """One version of a handler. `source` is the text of its file, `version` names that text.

    `module` is the name that its file was loaded as.
    """

    name: str
    function: Callable[..., Any] = field(repr=False)
    options: HandlerOptions
    doc: str
    version: str
    path: Path
    module: str
    source: str = field(repr=False)
    parameters: Parameters = field(repr=False)

    @cached_property
    def is_async(self) -> bool:
        """Whether the function has to be awaited."""
        return inspect.iscoroutinefunction(self.function)

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the payload."""
        return self.parameters.schema()

    def validate(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidSubmission, with pointers such as /payload/width, unless the payload fits."""
        self.parameters.arguments(payload)

    def arguments(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload as typed keyword arguments. Raises as `validate`."""
        return self.parameters.arguments(payload)

    def accepts(self, filename: str, head: bytes) -> bool:
        """Whether it takes a file of that name which begins with `head`; see `media.HEAD_BYTES`."""
        return matches(self.options.accepts, filename, head)

    def missing(self) -> tuple[str, ...]:
        """The required modules that cannot be imported."""
        return tuple(name for name in self.options.requires if not _is_importable(name))


@dataclass(frozen=True)
class LoadFailure:
    """Why a file's handlers cannot be used: `line` in that file, from 1, or None; `at`, aware UTC."""

    path: Path
    message: str
    line: int | None
    at: datetime

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else f"{self.path}"
        return f"{place}: {self.message}"


class LoadError(RunnerError):
    """A file could not be loaded; `failure` says why. Stays inside this package."""

    def __init__(self, failure: LoadFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class _SourceLoader(SourceFileLoader):
    """Imports source and keeps no bytecode: its cache would miss a change of equal length within one second."""

    def path_stats(self, path: str) -> NoReturn:
        raise OSError("no bytecode here")


def load_module(path: Path, source: bytes | str) -> ModuleType:
    """Run `source` as a new module object that stands for `path`. Raises LoadError.

    Any thread, one at a time for each path. The module is in `sys.modules` under a name made from the path.
    """
    name = module_name(path)
    earlier = sys.modules.get(name)
    try:
        code = _compile(source, path)
        module = _new_module(name, path)
        sys.modules[name] = module
        exec(code, module.__dict__)  # noqa: S102 - running the user's file is what this is for
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the file is the user's: it may raise anything, sys.exit() included
        if earlier is not None:
            sys.modules[name] = earlier
        else:
            sys.modules.pop(name, None)
        raise LoadError(_failure(path, error)) from error
    return module


def find_handlers(
    module: ModuleType, path: Path, source: bytes | str, version: str, overrides: Mapping[str, HandlerConfig]
) -> dict[str, Handler]:
    """The handlers that the module itself defines, by name. Raises LoadError."""
    found: dict[str, Handler] = {}
    for function, declaration in declarations(module):
        if declaration.name in found:
            raise LoadError(_refusal(path, function, f"a second handler {declaration.name!r} in this file"))
        options = _options(path, function, declaration, overrides.get(declaration.name))
        found[declaration.name] = make_handler(declaration.name, function, options, path, source, version)
    return found


def declarations(module: ModuleType) -> list[tuple[Callable[..., Any], Declaration]]:
    """The functions with `@handler` that were defined in the module, not imported into it."""
    functions = {value: find_declaration(value) for value in vars(module).values() if inspect.isfunction(value)}
    return [
        (function, declaration)
        for function, declaration in functions.items()
        if declaration and function.__module__ == module.__name__
    ]


def make_handler(
    name: str, function: Callable[..., Any], options: HandlerOptions, path: Path, source: bytes | str, version: str
) -> Handler:
    """The handler `name` with these options. Raises LoadError if no payload can fill the function's parameters."""
    try:
        parameters = Parameters(name, function)
    except ConfigError as error:
        raise LoadError(_refusal(path, function, str(error))) from error
    return Handler(
        name=name,
        function=function,
        options=options,
        doc=inspect.getdoc(function) or "",
        version=version,
        path=path,
        module=function.__module__,
        source=source if isinstance(source, str) else importlib.util.decode_source(source),
        parameters=parameters,
    )


def _options(
    path: Path, function: Callable[..., Any], declaration: Declaration, overriding: HandlerConfig | None
) -> HandlerOptions:
    """What holds for the handler. Raises LoadError if that contradicts itself."""
    try:
        options = override(declaration.options, overriding)
        _check(options, inspect.iscoroutinefunction(function))
    except ValidationError as error:
        reasons = "; ".join(describe(error))
        message = f"handlers.{declaration.name} of the configuration: {reasons}"
        raise LoadError(_refusal(path, function, message)) from error
    except ConfigError as error:
        raise LoadError(_refusal(path, function, str(error))) from error
    return options


def version_of(*sources: bytes) -> str:
    """A name for these texts together: twelve hexadecimal digits of their SHA-256."""
    return hashlib.sha256(b"\0".join(sources)).hexdigest()[:12]


def package_name(directory: Path) -> str:
    """The name of the package that stands for a folder of handlers."""
    return f"runner_handlers_{hashlib.sha256(bytes(directory)).hexdigest()[:12]}"


def module_name(path: Path) -> str:
    """The name that the file at `path` is loaded as."""
    return f"{package_name(path.parent)}.{path.stem}"


def forget_shared(directory: Path) -> None:
    """Let the next import of a folder's underscore files read them anew; who has them already keeps them."""
    prefix = f"{package_name(directory)}._"
    for name in [name for name in sys.modules if name.startswith(prefix)]:
        del sys.modules[name]
    importlib.invalidate_caches()


def _check(options: HandlerOptions, is_async: bool) -> None:
    if is_async and options.isolation is Isolation.THREAD:
        raise ConfigError("an async def runs on the loop, or with isolation process; it cannot run in a thread")
    if not is_async and options.isolation is Isolation.LOOP:
        raise ConfigError("a def would hold up everything else on the loop; make it an async def")
    if options.memory_mb is not None and options.isolation is not Isolation.PROCESS:
        raise ConfigError("memory_mb can only be enforced with isolation process")


def _compile(source: bytes | str, path: Path) -> CodeType:
    return compile(source, str(path), "exec", dont_inherit=True)


def _new_module(name: str, path: Path) -> ModuleType:
    package = package_name(path.parent)
    if package not in sys.modules:
        parent = ModuleType(package, f"The handlers in {path.parent}.")
        parent.__path__ = [str(path.parent)]
        sys.modules[package] = parent
        sys.path_importer_cache[str(path.parent)] = FileFinder(str(path.parent), (_SourceLoader, [".py"]))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def _failure(path: Path, error: BaseException) -> LoadFailure:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return LoadFailure(path, f"{type(error).__name__}: {message}", _line(path, error), datetime.now(UTC))


def _refusal(path: Path, function: Callable[..., Any], message: str) -> LoadFailure:
    return LoadFailure(path, message, function.__code__.co_firstlineno, datetime.now(UTC))


def _line(path: Path, error: BaseException) -> int | None:
    """The last line of that file on the way to the error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)


def _is_importable(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
