"""What only Linux offers to keep hold of processes, and nothing, quietly, where there is no Linux."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_OOM_SCORE: Final = b"500"


class Kernel:
    """The system calls that Python does not have. Make one before a fork: it loads the C library."""

    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def adopt_orphans(self) -> None:
        """From now on a descendant whose parent dies becomes this process's child (not inherited by a fork)."""
        if self._prctl:
            self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def die_with_parent(self, signal: int, parent: int) -> bool:
        """Have `signal` sent to this process when the thread that forked it ends; False if `parent` is gone already."""
        if self._prctl:
            self._prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0)
        return os.getppid() == parent


def volunteer_for_the_out_of_memory_killer() -> None:
    """When memory runs out, the kernel is to take this process rather than its owner."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(descriptor, _OOM_SCORE)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def limit_memory(extra_bytes: int) -> None:
    """Let this process allocate at most that much more; then it gets MemoryError.

    RLIMIT_DATA, which counts what can be written to, not RLIMIT_AS: importing OpenCV takes 436 MB of addresses but
    30 MB of memory, and a reservation that nobody touches is no use of memory.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _data_bytes() + extra_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def free_memory_limit() -> None:
    """Take `limit_memory` back: to tell that it was reached takes memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def children_of(parent: int) -> Iterator[int]:
    """The living children of a process, as far as they can be found out."""
    for process in _processes():
        try:
            text = (process / "stat").read_bytes()
        except OSError:
            continue
        # The name in parentheses may hold anything; state and parent follow the last one.
        state, found, *_ = text[text.rindex(b")") + 2 :].split(maxsplit=2)
        if int(found) == parent and state not in (b"Z", b"X"):
            yield int(process.name)


def _processes() -> Iterator[Path]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return iter(())
    return (Path("/proc", name) for name in names if name.isdigit())


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process now; nothing where that cannot be told."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[5]
    except (OSError, IndexError):
        return 0
    return int(pages) * resource.getpagesize()
