"""One file of handlers into one module object, and the handlers in it.

Each version of a file becomes a module object of its own, so tasks that run on the old one are not disturbed. A folder
is a package of its own: its files may import those that begin with an underscore as `from ._shared import resize`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import shutil
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


@dataclass(frozen=True)
class Edition:
    """One version of a file of handlers: its text, and that compiled; `version` names it."""

    path: Path
    version: str
    text: str = field(repr=False)
    code: CodeType = field(repr=False)


@dataclass(frozen=True, eq=False)
class Handler:
    """One version of a handler. Two are equal only if they are the same object."""

    name: str
    function: Callable[..., Any] = field(repr=False)
    options: HandlerOptions
    edition: Edition
    parameters: Parameters = field(repr=False)

    @property
    def path(self) -> Path:
        """Its file."""
        return self.edition.path

    @property
    def version(self) -> str:
        """Names what its file, and what that shares with others, contained."""
        return self.edition.version

    @property
    def module(self) -> str:
        """The name that its file was loaded as."""
        return self.function.__module__

    @property
    def doc(self) -> str:
        """What its docstring says; may be empty."""
        return inspect.getdoc(self.function) or ""

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
        if payload or not self.parameters.may_be_empty:
            self.parameters.arguments(payload)

    def arguments(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload as typed keyword arguments. Raises as `validate`."""
        return self.parameters.arguments(payload)

    def accepts(self, filename: str, head: bytes) -> bool:
        """Whether it takes a file of that name which begins with `head`; see `media.HEAD_BYTES`."""
        return matches(self.options.accepts, filename, head)

    def missing(self) -> tuple[str, ...]:
        """What it requires and is not there: modules, and programs."""
        return tuple(name.partition("|")[0] for name in self.options.requires if not _is_there(name))


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


def compile_edition(path: Path, data: bytes, version: str) -> Edition:
    """The file at `path`, which contains `data`. Raises LoadError."""
    try:
        code = compile(data, str(path), "exec", dont_inherit=True)
        return Edition(path, version, importlib.util.decode_source(data), code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise LoadError(_failure(path, error)) from error


def load_module(edition: Edition) -> ModuleType:
    """Run that version of a file as a new module object. Raises LoadError.

    Any thread, one at a time for each path. The module is in `sys.modules` under a name made from the path.
    """
    name = module_name(edition.path)
    earlier = sys.modules.get(name)
    module = _new_module(name, edition.path)
    sys.modules[name] = module
    try:
        exec(edition.code, module.__dict__)  # noqa: S102 - running the user's file is what this is for
    except BaseException as error:  # the file is the user's: it may raise anything, sys.exit() included
        if earlier is not None:
            sys.modules[name] = earlier
        else:
            del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise LoadError(_failure(edition.path, error)) from error
    return module


def find_handlers(module: ModuleType, edition: Edition, overrides: Mapping[str, HandlerConfig]) -> dict[str, Handler]:
    """The handlers that the module itself defines, by name. Raises LoadError if one of them cannot be used."""
    found: dict[str, Handler] = {}
    for function, declaration in declarations(module):
        name = declaration.name
        try:
            if name in found:
                raise ConfigError(f"a second handler {name!r} in this file")
            found[name] = make_handler(name, function, _options(function, declaration, overrides.get(name)), edition)
            found[name].parameters.check()
        except ConfigError as error:
            line = function.__code__.co_firstlineno
            raise LoadError(LoadFailure(edition.path, str(error), line, datetime.now(UTC))) from error
    return found


def declarations(module: ModuleType) -> list[tuple[Callable[..., Any], Declaration]]:
    """The functions with `@handler` that were defined in the module, not imported into it."""
    functions = {value: find_declaration(value) for value in vars(module).values() if inspect.isfunction(value)}
    return [
        (function, declaration)
        for function, declaration in functions.items()
        if declaration and function.__module__ == module.__name__
    ]


def make_handler(name: str, function: Callable[..., Any], options: HandlerOptions, edition: Edition) -> Handler:
    """The handler `name` with these options. Raises ConfigError if no payload can fill the function's parameters."""
    return Handler(name, function, options, edition, Parameters(name, function))


def _options(
    function: Callable[..., Any], declaration: Declaration, overriding: HandlerConfig | None
) -> HandlerOptions:
    """What holds for the handler. Raises ConfigError if that contradicts itself."""
    try:
        options = override(declaration.options, overriding)
    except ValidationError as error:
        raise ConfigError(f"handlers.{declaration.name} cannot be used:", describe(error)) from error
    _check(options, inspect.iscoroutinefunction(function))
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


def _line(path: Path, error: BaseException) -> int | None:
    """The last line of that file on the way to the error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)


def _is_there(name: str) -> bool:
    """Whether a module can be imported; of `program|module`, whether the program is on PATH or the module brings it."""
    program, bar, module = name.partition("|")
    return _is_importable(module) or shutil.which(program) is not None if bar else _is_importable(name)


def _is_importable(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
