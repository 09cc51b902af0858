"""The folder of handlers: which there are now, what is wrong with the others, and what changes."""

from __future__ import annotations

import difflib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from runner.config import HandlerConfig
from runner.errors import UnknownHandler
from runner.handlers.loading import (
    Handler,
    LoadError,
    LoadFailure,
    compile_edition,
    find_handlers,
    forget_shared,
    load_module,
    version_of,
)

Stamp: TypeAlias = tuple[int, int, int]

RESCAN_SECONDS: Final = 5.0


@dataclass(frozen=True)
class _File:
    """A file as it was last read: its last good handlers, and its failure if it is broken now."""

    handlers: Mapping[str, Handler] = field(default_factory=dict)
    failure: LoadFailure | None = None
    source: str = ""


class Handlers:
    """The handlers of one folder. Reading is for any thread and never waits; a file that breaks keeps serving its
    last good version, and `errors` says what is wrong.

    `overrides` is the section `handlers` of the configuration. Files that begin with an underscore hold no handlers.
    """

    def __init__(self, directory: Path, overrides: Mapping[str, HandlerConfig] = MappingProxyType({})) -> None:
        self.directory = directory
        self._overrides = overrides
        self._files: dict[Path, _File] = {}
        self._stamps: dict[Path, Stamp] = {}
        self._by_name: Mapping[str, Handler] = {}
        self._complete: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def __iter__(self) -> Iterator[Handler]:
        return iter(sorted(self._by_name.values(), key=lambda handler: handler.name))

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def errors(self) -> Mapping[Path, LoadFailure]:
        """The files that cannot be used as they are now."""
        return {path: file.failure for path, file in self._files.items() if file.failure}

    def find(self, type: str) -> Handler | None:
        """The handler of that type, or None; it may lack modules that it requires."""
        return self._by_name.get(type)

    def get(self, type: str) -> Handler:
        """The handler of that type. Raises UnknownHandler, whose text says what to do about it."""
        handler = self._by_name.get(type)
        if handler is None:
            raise UnknownHandler(type, self._absence(type))
        if type not in self._complete:
            self._check_requirements(handler)
        return handler

    def load(self) -> None:
        """Read the whole folder. A folder that is not there has no handlers. Never raises for what a file holds."""
        with self._lock:
            self._stamps = self._look()
            self._reload(self._stamps)

    def refresh(self, paths: Iterable[Path]) -> frozenset[str]:
        """Read these files again, and those that are broken; the names of handlers that came, changed or went."""
        with self._lock:
            self._stamps = self._look()
            return self._reload(paths)

    def refresh_changed(self) -> frozenset[str]:
        """Read again what changed on the disk since the last look; the names as in `refresh`."""
        with self._lock:
            return self._reload(self._changed())

    def watch(self, on_change: Callable[[frozenset[str]], None], rescan_seconds: float = RESCAN_SECONDS) -> None:
        """Keep up with the folder, in a thread of its own, until `close`.

        `on_change` is called there after each change; with no names when a file only broke, or was only mended. What
        the watcher misses is found after `rescan_seconds`.
        """
        self._watcher = threading.Thread(
            target=self._follow, args=(on_change, rescan_seconds), name="handlers-watcher", daemon=True
        )
        self._watcher.start()

    def close(self) -> None:
        """Stop watching. Handlers that were handed out keep working."""
        self._stop.set()
        if self._watcher:
            self._watcher.join()

    def _follow(self, on_change: Callable[[frozenset[str]], None], rescan_seconds: float) -> None:
        from runner.handlers.watching import hints  # watchfiles is slow to import, and only a server needs it

        for _ in hints(self.directory, self._stop, rescan_seconds):
            with self._lock:
                changed = self._changed()
                names = self._reload(changed) if changed else frozenset()
            if changed:
                on_change(names)

    def _look(self) -> dict[Path, Stamp]:
        """The Python files of the folder, and what shows that one was changed."""
        try:
            with os.scandir(self.directory) as entries:
                found = [entry for entry in entries if entry.name.endswith(".py") and not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        stamps = {}
        for entry in found:
            status = _stat(entry)
            if status and stat.S_ISREG(status.st_mode):
                stamps[self.directory / entry.name] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return stamps

    def _changed(self) -> list[Path]:
        earlier, self._stamps = self._stamps, self._look()
        return [path for path in earlier.keys() | self._stamps.keys() if earlier.get(path) != self._stamps.get(path)]

    def _reload(self, paths: Iterable[Path]) -> frozenset[str]:
        wanted = set(paths)
        if any(_is_shared(path) for path in wanted):
            forget_shared(self.directory)
            wanted = {*self._stamps, *self._files}
        broken = {path for path, file in self._files.items() if file.failure}
        files = dict(self._files)
        shared = self._read_shared()
        for path in sorted(path for path in wanted | broken if not _is_shared(path)):
            if path in self._stamps:
                files[path] = self._load(path, shared, files)
            else:
                files.pop(path, None)
        return self._publish(files)

    def _load(self, path: Path, shared: bytes, files: Mapping[Path, _File]) -> _File:
        earlier = files.get(path, _File())
        data = b""
        try:
            data = path.read_bytes()
            edition = compile_edition(path, data, version_of(data, shared) if shared else version_of(data))
            handlers = find_handlers(load_module(edition), edition, self._overrides)
            _check_names(path, handlers, files)
        except OSError as error:
            failure = LoadFailure(path, f"cannot be read: {error.strerror}", None, datetime.now(UTC))
        except LoadError as error:
            failure = error.failure
        else:
            return _File(handlers)
        return replace(earlier, failure=failure, source=data.decode("utf-8", "replace"))

    def _read_shared(self) -> bytes:
        """What the folder's files may share: a change of it is a new version of all."""
        return b"\0".join(_read(path) for path in sorted(self._stamps) if _is_shared(path))

    def _publish(self, files: dict[Path, _File]) -> frozenset[str]:
        earlier = self._by_name
        now = {
            name: handler
            for file in files.values()
            for name, handler in file.handlers.items()
            if handler.options.enabled
        }
        self._files, self._by_name = files, now
        self._complete = frozenset(name for name, handler in now.items() if not handler.options.requires)
        return frozenset(name for name in earlier.keys() | now.keys() if earlier.get(name) is not now.get(name))

    def _check_requirements(self, handler: Handler) -> None:
        missing = handler.missing()
        if missing:
            raise UnknownHandler(handler.name, f"handler {handler.name!r} needs {remedy(handler, missing)}")
        self._complete |= {handler.name}

    def _absence(self, type: str) -> str:
        """Why there is no such handler, in words for whoever asked for it."""
        if any(type in file.handlers for file in self._files.values()):
            return f"handler {type!r} is switched off: handlers.{type}.enabled in the configuration"
        failure = next((file.failure for path, file in self._files.items() if _may_hold(path, file, type)), None)
        if failure:
            return f"handler {type!r} cannot be loaded: {failure}"
        nearest = difflib.get_close_matches(type, self._by_name, n=1)
        known = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(self._by_name)) or 'none'}"
        return f"no handler {type!r}; {known}"


def _is_shared(path: Path) -> bool:
    return path.name.startswith("_")


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:
        return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _check_names(path: Path, handlers: Mapping[str, Handler], files: Mapping[Path, _File]) -> None:
    for other, file in files.items():
        taken = next((name for name in handlers if name in file.handlers), None)
        if taken and other != path:
            line = handlers[taken].function.__code__.co_firstlineno
            message = f"handler {taken!r} is already defined in {other.name}"
            raise LoadError(LoadFailure(path, message, line, datetime.now(UTC)))


def _may_hold(path: Path, file: _File, type: str) -> bool:
    """Whether a broken file was meant to define that handler."""
    said = rf"\bdef\s+{re.escape(type)}\b|[\"']{re.escape(type)}[\"']"
    return file.failure is not None and (path.stem == type or re.search(said, file.source) is not None)


def remedy(handler: Handler, missing: tuple[str, ...]) -> str:
    """What a handler lacks, and the command that installs it."""
    brought = [name.rpartition("|")[2] for name in handler.options.requires if name.partition("|")[0] in missing]
    command = f"'file-runner[{handler.options.extra}]'" if handler.options.extra else " ".join(brought)
    return f"{', '.join(missing)}: pip install {command}"
