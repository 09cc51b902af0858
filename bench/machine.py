"""The machine that is measured on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path
from typing import Final

YARDSTICKS: Final = 31
QUIET = 0.4
"""The load average above which figures say more about the neighbours than about the runner."""


def describe_machine(directory: Path) -> str:
    """One line: what whoever compares figures wants to know."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    system = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{os.cpu_count()} cores, {gigabytes:.0f} GB, {_filesystem(directory)}, {system}, {python}"


def find_disturbance() -> str | None:
    """What should be said before the figures, if the machine has other things to do."""
    load = os.getloadavg()[0]
    if load <= QUIET:
        return None
    return f"the machine is busy (load {load:.1f}, in part by this benchmark): trust ratios, not figures"


def stolen_percent() -> float:
    """What part of the processors' time the host of a guest has given to others since this process began to look: while
    they would have worked here. 0 where that is not known."""
    spent = [now - before for now, before in zip(_ticks(), _TICKS_BEFORE, strict=True)]
    return round(100 * spent[_STEAL] / max(1, sum(spent)), 1) if spent else 0.0


def yardstick_ms() -> float:
    """Milliseconds of a processor that a piece of Python takes, always the same: the middle one of several times. How
    quick the processor is just now, which nobody says else: it shares its core and its clock with others."""
    return round(statistics.median(_time_of_yardstick() for _ in range(YARDSTICKS)) * 1e3, 2)


def _time_of_yardstick() -> float:
    began = time.process_time()
    found = {str(number): {"number": number, "pair": (number, number)} for number in range(10_000)}
    sum(len(each) for each in found.values())
    return time.process_time() - began


def _ticks() -> list[int]:
    """proc(5): user, nice, system, idle, iowait, irq, softirq, steal."""
    try:
        return [int(number) for number in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    except OSError:
        return []


_STEAL: Final = 7
_TICKS_BEFORE: Final = _ticks()


def resident_mb(pid: int) -> float:
    """The physical memory of a process, in MB of 10⁶ bytes. Linux only."""
    return _status_kib(pid, "VmRSS") * 1024 / 1e6


def peak_mb(pid: int) -> float:
    """The most that it ever was."""
    return _status_kib(pid, "VmHWM") * 1024 / 1e6


def children(pid: int) -> dict[int, str]:
    """The child processes and their command lines. Linux only."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    pids = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    return {child: Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ") for child in pids}


def _status_kib(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _filesystem(directory: Path) -> str:
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown filesystem"
    below = [(point, kind) for point, kind in mounts if directory.is_relative_to(point)]
    return max(below, key=lambda mount: len(mount[0]))[1]
