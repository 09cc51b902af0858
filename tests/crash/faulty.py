"""A disk of which the Nth call fails, in any of the ways in which disks and processes do."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from runner.store import Files

_T = TypeVar("_T")


class Fault(StrEnum):
    """How one call fails. After one that ends in `from_there_on` every later call of that kind fails as well."""

    KILL_BEFORE = "kill_before"
    KILL_AFTER = "kill_after"
    EIO = "eio"
    ENOSPC = "enospc"
    EMFILE = "emfile"
    SHORT_WRITE = "short_write"
    SHORT_WRITE_KILL = "short_write_kill"
    SHORT_WRITE_ENOSPC = "short_write_enospc"
    EIO_FROM_THERE_ON = "eio_from_there_on"
    ENOSPC_FROM_THERE_ON = "enospc_from_there_on"


KILLS = frozenset({Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.SHORT_WRITE_KILL})
_PASSING = frozenset({Fault.ENOSPC, Fault.EMFILE, Fault.SHORT_WRITE, Fault.SHORT_WRITE_ENOSPC})

_ERRORS = {
    Fault.EIO: errno.EIO,
    Fault.ENOSPC: errno.ENOSPC,
    Fault.EMFILE: errno.EMFILE,
    Fault.SHORT_WRITE_ENOSPC: errno.ENOSPC,
    Fault.EIO_FROM_THERE_ON: errno.EIO,
    Fault.ENOSPC_FROM_THERE_ON: errno.ENOSPC,
}
_LASTING = frozenset({Fault.EIO_FROM_THERE_ON, Fault.ENOSPC_FROM_THERE_ON})
_SHORT = frozenset({Fault.SHORT_WRITE, Fault.SHORT_WRITE_KILL, Fault.SHORT_WRITE_ENOSPC})
_FULL = frozenset({Fault.ENOSPC, Fault.ENOSPC_FROM_THERE_ON})
_GROWING = frozenset({"open", "write", "allocate", "datasync", "sync", "syncfs", "rename", "link", "mkdir"})
"""Calls that may find no room."""
_SILENT = frozenset({"close", "remove_tree"})
"""Calls that tell of no error: a descriptor is closed all the same, a tree is removed as far as that goes."""


class FaultyFiles(Files):
    """A disk on which the `nth` of the calls that can fail so fails; `call`: of those of that name only."""

    def __init__(self, nth: int, fault: Fault, call: str | None = None) -> None:
        self.calls = 0
        """How many calls could have failed so far."""
        self.failed: str | None = None
        """The first call that was made to fail."""
        self.tell: Callable[[str], None] = lambda call: None
        """Hears of it before it does."""
        self.fault = fault
        self._nth = nth
        self._call = call
        self._lock = threading.Lock()

    @property
    def has_passed(self) -> bool:
        """Whether a call has failed after which the same owner must be able to go on."""
        return self.failed is not None and self.fault in _PASSING

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return self._do("open", lambda: Files.open(self, path, flags, mode))

    def close(self, fd: int) -> None:
        self._do("close", lambda: Files.close(self, fd))

    def write(self, fd: int, data: bytes | memoryview) -> int:
        half = data[: max(1, len(data) // 2)]
        return self._do("write", lambda: Files.write(self, fd, data), lambda: Files.write(self, fd, half))

    def truncate(self, fd: int, size: int) -> None:
        self._do("truncate", lambda: Files.truncate(self, fd, size))

    def allocate(self, fd: int, size: int) -> None:
        self._do("allocate", lambda: Files.allocate(self, fd, size))

    def datasync(self, fd: int) -> None:
        self._do("datasync", lambda: Files.datasync(self, fd))

    def sync(self, fd: int) -> None:
        self._do("sync", lambda: Files.sync(self, fd))

    def syncfs(self, fd: int) -> None:
        self._do("syncfs", lambda: Files.syncfs(self, fd))

    def rename(self, source: str, target: str) -> None:
        self._do("rename", lambda: Files.rename(self, source, target))

    def link(self, source: str, target: str) -> None:
        self._do("link", lambda: Files.link(self, source, target))

    def unlink(self, path: str) -> None:
        self._do("unlink", lambda: Files.unlink(self, path))

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        self._do("mkdir", lambda: Files.mkdir(self, path, mode))

    def names(self, directory: str) -> list[str]:
        return self._do("names", lambda: Files.names(self, directory))

    def remove_tree(self, path: str) -> None:
        self._do("remove_tree", lambda: Files.remove_tree(self, path))

    def _do(self, call: str, act: Callable[[], _T], act_short: Callable[[], _T] | None = None) -> _T:
        if not self._is_hit(call):
            return act()
        return self._fail(act if act_short is None or self.fault not in _SHORT else act_short)

    def _is_hit(self, call: str) -> bool:
        if not _applies(self.fault, call) or self._call not in (None, call):
            return False
        with self._lock:
            self.calls += 1
            if self.calls == self._nth:
                self.failed = call
                self.tell(call)
            return self.calls == self._nth or (self.calls > self._nth and self.fault in _LASTING)

    def _fail(self, act: Callable[[], _T]) -> _T:
        if self.fault is Fault.KILL_BEFORE:
            _die()
        if self.fault in _ERRORS and self.fault not in _SHORT:
            raise _error(self.fault)
        result = act()
        if self.fault in KILLS:
            _die()
        if self.fault in _ERRORS:
            raise _error(self.fault)
        return result


def _applies(fault: Fault, call: str) -> bool:
    if fault in _SHORT:
        return call == "write"
    if fault is Fault.EMFILE:
        return call in ("open", "names")
    if fault in _FULL:
        return call in _GROWING
    return fault in KILLS or call not in _SILENT


def _error(fault: Fault) -> OSError:
    return OSError(_ERRORS[fault], os.strerror(_ERRORS[fault]))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
