"""The shipped command line, whose system calls fail: `strace --inject` on `python -m runner.cli submit --wait`.

Each of six calls on files of the data directory fails as EIO or ENOSPC, or is the last one before SIGKILL, for the
first to the fifth time on each thread and every time. The command must end as its manual says, and what it has said
must be so. Needs the program strace.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any

from runner.cli.exits import Exit
from runner.task import Status
from tests.crash.day import HANDLERS, make_service
from tests.crash.forks import ask_child
from tests.crash.inject import Sabotage as Broken

CONFIG = """\
storage: {min_free_bytes: 0, min_free_inodes: 0, ballast_bytes: 0}
drain: {grace_period: 1s}
"""
CALLS = {
    "fsync": "fsync",
    "fdatasync": "fdatasync",
    "rename": "?rename,?renameat,?renameat2",
    "write": "write",
    "openat": "openat",
    "unlink": "?unlink,?unlinkat",
}
"""What to ask strace for; not every processor's Linux has each of them."""
FAULTS = {"eio": "error=EIO", "enospc": "error=ENOSPC", "sigkill": "signal=SIGKILL"}
TIMES = ("1", "2", "3", "4", "5", "1+")
Point = tuple[str, str, str]
"""A call, how it fails, and when."""
POINTS: tuple[Point, ...] = tuple(product(CALLS, FAULTS, TIMES))
PLACES = (
    "", "/VERSION", "/index.db", "/index.db-shm", "/index.db-wal", "/journal", "/journal/rewrite", "/tmp",
    "/tmp/.write", "/locks/owner.json.tmp", "/locks/owner.lock", "/locks/scribe.lock", "/runner.sock",
    "/runner.sock.new",
)  # fmt: skip
"""Below the data directory; the interpreter opens hundreds of files that are not the runner's."""
SEGMENTS = range(1, 9)
HANG_SECONDS = 200.0
KILLED = -9
_TOLD = re.compile(r"^([0-9a-f-]{36})(?: +(\d+)% (\w+))?", re.MULTILINE)


class Sabotage(StrEnum):
    """What is broken on purpose. `ERROR_SWALLOWED`: what could not be appended is acknowledged all the same."""

    NONE = "none"
    ERROR_SWALLOWED = "error_swallowed"


@dataclass
class Counters:
    """`points` were tried: a call, a way to fail, and when. Of these commands some `succeeded`, some `refused`, some
    were `killed`. `acked`: tasks that they named. `faults`: what promises were broken, and where."""

    points: int = 0
    succeeded: int = 0
    refused: int = 0
    killed: int = 0
    acked: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """How many promises were broken."""
        return len(self.faults)

    def __str__(self) -> str:
        return (
            f"points {self.points}, succeeded {self.succeeded}, refused {self.refused}, killed {self.killed}, "
            f"acked {self.acked}, violations {self.violations}"
        )


def obstacle() -> str | None:
    """Why no system call can be made to fail here, or None."""
    if shutil.which("strace") is None:
        return "not installed: strace (Debian: strace)"
    probe = subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, check=False)
    return "strace may not trace here" if probe.returncode else None


def choose(call: str | None, when: str | None) -> tuple[Point, ...]:
    """All points, or those of one call, or of one time."""
    return tuple(point for point in POINTS if call in (None, point[0]) and when in (None, point[2]))


def run_points(root: Path, points: Iterable[Point] = POINTS, sabotage: Sabotage = Sabotage.NONE) -> Counters:
    """Runs the command at each of these points."""
    counters, template = Counters(), root / "template"
    _lay_out(template)
    for name, fault, times in points:
        project = root / f"{name}-{fault}-{times}"
        shutil.copytree(template, project)
        _run_point(project, [CALLS[name], FAULTS[fault], f"when={times}"], sabotage, counters)
        shutil.rmtree(project)
    return counters


def _lay_out(project: Path) -> None:
    """A project in which a task has been run, and one waits."""
    (project / "handlers").mkdir(parents=True)
    (project / "handlers" / "all.py").write_text(HANDLERS)
    (project / "config.yaml").write_text(CONFIG)
    for options in (("--wait",), ()):
        subprocess.run(
            [*_command(Sabotage.NONE), *options], cwd=project, env=_environment(), check=True, stdout=-3, stderr=-3
        )


def _command(sabotage: Sabotage) -> list[str]:
    start = ["-m", "runner.cli"]
    if sabotage is Sabotage.ERROR_SWALLOWED:
        start = ["-c", "from tests.crash.strace import run_broken; run_broken()"]
    return [sys.executable, *start, "submit", "noop", "--json"]


def run_broken() -> None:
    """The command line, with an error that nobody hears of."""
    from runner.cli import main
    from tests.crash.inject import break_on_purpose

    break_on_purpose(Broken.ERROR_SWALLOWED)
    main()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"}


def _run_point(project: Path, injection: list[str], sabotage: Sabotage, counters: Counters) -> None:
    point = ":".join(injection)
    data = project / "data"
    places = [f"{data}{place}" for place in PLACES] + [f"{data}/journal/{number:016d}.log" for number in SEGMENTS]
    traced = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"inject={point}", *(f"-P{place}" for place in places)]
    try:
        done = subprocess.run(
            [*traced, *_command(sabotage), "--wait"],
            cwd=project, env=_environment(), capture_output=True, text=True, check=False, timeout=HANG_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        counters.faults.append(f"{point}: it hangs")
        return
    told = _told(done)
    counters.points += 1
    counters.succeeded += done.returncode == 0
    counters.killed += done.returncode == KILLED
    counters.refused += done.returncode not in (0, KILLED)
    counters.acked += len(told)
    counters.faults += [f"{point}: {fault}" for fault in _find_wrong_ends(done, told)]
    counters.faults += [f"{point}: {fault}" for fault in ask_child(lambda: judge(project, told))]


def _told(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The tasks that the command named, and in which status it said that they are."""
    told = {match[1]: match[3] or "" for match in _TOLD.finditer(done.stderr)}
    try:
        task: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return told
    return told | ({task["id"]: task["status"]} if "id" in task else {})


def _find_wrong_ends(done: subprocess.CompletedProcess[str], told: dict[str, str]) -> Iterator[str]:
    """What the exit code says must be what was printed."""
    if "Traceback" in done.stderr:
        yield f"it ended by an error of its own: {done.stderr}"
    if done.returncode == 0 and list(told.values()) != [Status.COMPLETED]:
        yield f"it said 0, and not that the task has completed: {done.stdout}{done.stderr}"
    if done.returncode not in (KILLED, *Exit):
        yield f"it ended with {done.returncode}: {done.stderr}"
    if done.returncode not in (KILLED, 0) and not done.stderr.strip() and not done.stdout.strip():
        yield f"it ended with {done.returncode}, and did not say why"


def judge(project: Path, told: dict[str, str]) -> list[str]:
    """The next owner: what it finds not to be so. In a process of its own."""
    service = make_service(project, project / "data")
    service.open()
    found = {task_id: service.store.find(task_id) for task_id in told}
    service.close()
    faults = [f"lost: {task_id}" for task_id, task in found.items() if task is None]
    for task_id, task in found.items():
        if task is not None and told[task_id] == Status.COMPLETED and task.status is not Status.COMPLETED:
            faults.append(f"was completed, and now {task.status}: {task_id}")
    return faults + [f"in corrupt/: {path.name}" for path in (project / "data" / "corrupt").iterdir()]
