"""A project folder, the command line in it, and a runner that serves it."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from runner.cli.entry import run

ROOT = Path(__file__).parents[2]

CONFIG = """\
http: {port: 0}
grpc: {port: 0}
storage: {min_free_bytes: 0, min_free_inodes: 0, ballast_bytes: 0}
drain: {grace_period: 200ms}
"""

HANDLERS = '''\
"""What the tests run."""

import time
from pathlib import Path
from typing import Annotated

from pydantic import Field

from runner import Context, Fail, handler


@handler(accepts=[".txt"])
def count(ctx: Context, unit: Annotated[str, Field(description="what to call it")] = "bytes") -> dict[str, int]:
    """Count the bytes of text files."""
    for number, path in enumerate(ctx.inputs, start=1):
        ctx.log.info(f"reading {path.name}")
        ctx.progress(100 * number / len(ctx.inputs), path.name)
    ctx.output("count.txt").write_text("counted")
    return {unit: sum(path.stat().st_size for path in ctx.inputs)}


@handler()
def wait_for(ctx: Context, gate: str) -> str:
    """Run until a file appears."""
    ctx.log.info("waiting")
    while not Path(gate).exists():
        ctx.check()
        time.sleep(0.005)
    return "opened"


@handler(retries=0)
def fail(ctx: Context) -> None:
    """Never work."""
    raise Fail("\\x1b[31mit is broken")
'''


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What `--json` printed."""
        return json.loads(self.out)


Command = Callable[..., Result]


def lay_out(folder: Path) -> Path:
    """Makes `folder` a project: a configuration, some handlers, a file to submit."""
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "handlers").mkdir()
    (folder / "handlers" / "samples.py").write_text(HANDLERS)
    (folder / "note.txt").write_text("12345")
    return folder


def command_line(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs commands in the working directory, as `runner ARGUMENT...` would."""

    def call(*arguments: str | Path) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended, _process_restored():
            run([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, printed.out, printed.err)

    return call


@contextmanager
def _process_restored() -> Iterator[None]:
    """What `serve` sets up for its whole process is as before afterwards; its log, above all, goes to a stream that is
    closed when the test has ended."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hook, end, umask = threading.excepthook, signal.getsignal(signal.SIGTERM), os.umask(0)
    os.umask(umask)
    try:
        yield
    finally:
        gc.enable()
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)
        threading.excepthook = hook
        signal.signal(signal.SIGTERM, end)
        os.umask(umask)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project; the working directory."""
    monkeypatch.chdir(tmp_path)
    return lay_out(tmp_path)


@pytest.fixture
def cli(project: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line in the project."""
    return command_line(capfd)


class Serving:
    """`runner serve` in a process of its own."""

    def __init__(self, project: Path, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runner.cli", "serve", *arguments],
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed = ""

    def await_line(self, pattern: str) -> re.Match[str]:
        """The first line that matches. The test's own time limit is the limit."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no {pattern!r} in: {self.printed}")

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        return self.await_end() if self.process.returncode is None else self.process.returncode

    def await_end(self) -> int:
        """Its exit code when it has ended by itself."""
        assert self.process.stdout is not None
        with self.process.stdout as rest:
            self.printed += rest.read()
        self.process.wait()
        return self.process.returncode


@pytest.fixture
def serving(project: Path) -> Iterator[Serving]:
    """A runner that serves the project."""
    server = Serving(project)
    server.await_line("serving ")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def idle_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A served project for commands that change nothing, so that all of them can share it."""
    folder = lay_out(tmp_path_factory.mktemp("idle"))
    server = Serving(folder)
    server.await_line("serving ")
    yield folder
    server.stop()


@pytest.fixture
def idle_cli(idle_project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line in the idle project."""
    monkeypatch.chdir(idle_project)
    return command_line(capfd)
