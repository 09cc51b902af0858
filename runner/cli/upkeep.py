"""`gc`, `why` and `doctor`: keeping a runner well."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from runner.cli.connection import connect
from runner.cli.exits import Exit
from runner.cli.options import Options, common_options
from runner.cli.output import print_json, print_table, safe
from runner.config import Config
from runner.handlers import Handlers
from runner.store import Layout
from runner.store.access import find_faults
from runner.units import format_size
from runner.web.sockets import can_connect


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is well, and what was seen."""

    check: str
    is_well: bool
    text: str


@click.command()
@click.option("--dry-run", is_flag=True, help="Only list what would go, and why.")
@common_options
def gc(options: Options, dry_run: bool) -> None:
    """Remove what retention says may go."""
    with connect(options) as api:
        report = api.post("/gc", mode="dry_run" if dry_run else "apply")
    if options.as_json:
        return print_json(report)
    removed = report["removed"]
    if removed:
        rows = [(one["id"], one["kind"], one["reason"], format_size(one["bytes"])) for one in removed]
        print_table(("id", "", "why", "size"), rows)
    verb = "would go" if dry_run else "removed"
    return click.echo(f"{len(removed)} {verb}, {format_size(sum(one['bytes'] for one in removed))}")


@click.command()
@click.argument("target", metavar="PATH|ID")
@common_options
def why(options: Options, target: str) -> None:
    """Say why a file or a task is not running."""
    # A name relative to the caller's folder means nothing to the runner.
    absolute = os.path.abspath(target) if os.path.lexists(target) else target  # noqa: PTH100 keeps symlinks
    with connect(options) as api:
        explanation = api.get("/why", target=absolute)
    if options.as_json:
        return print_json(explanation)
    return click.echo(safe(explanation["text"]))


@click.command()
@common_options
def doctor(options: Options) -> int:
    """Check the data directory and what it needs. Changes nothing; the exit code is 1 if something is wrong."""
    findings = list(examine(options.load_config()))
    if options.as_json:
        print_json([{"check": at.check, "ok": at.is_well, "text": at.text} for at in findings])
    else:
        print_table(("", "check", ""), [("ok" if at.is_well else "WRONG", at.check, at.text) for at in findings])
    return Exit.OK if all(finding.is_well for finding in findings) else Exit.TASK_FAILED


def examine(config: Config) -> Iterator[Finding]:
    """Everything that can be seen from outside a running owner."""
    data = Path(config.data_dir)
    if not data.is_dir():
        yield Finding("data", False, f"{data} is not there; `runner serve` or `runner init` make it")
        return
    yield _permissions(data)
    yield from _owner(data)
    yield from _directories(data)
    yield from _room(data, config)
    yield from _handlers(config)


def _permissions(data: Path) -> Finding:
    faults = tuple(find_faults(Layout(data)))
    mode = f"{data}, mode {stat.S_IMODE(data.stat().st_mode):04o}"
    return Finding("data", not faults, "; ".join(faults) or mode)


def _owner(data: Path) -> Iterator[Finding]:
    from filelock import FileLock, Timeout

    lock = FileLock(data / "locks" / "owner.lock", thread_local=False)
    is_answering = can_connect(data / "runner.sock")
    try:
        with lock.acquire(timeout=0):
            is_owned = False
    except Timeout:
        is_owned = True
    except OSError as error:
        yield Finding("lock", False, f"cannot be taken: {error}")
        return
    yield Finding("lock", True, "a runner owns the directory" if is_owned else "nobody owns the directory")
    texts = {
        (True, True): "the owner answers",
        (True, False): "the owner does not answer at runner.sock; it starts, stops or hangs",
        (False, True): "somebody who is not the owner answers at runner.sock",
        (False, False): "nobody answers, as there is no owner",
    }
    yield Finding("socket", is_owned == is_answering, texts[is_owned, is_answering])


def _directories(data: Path) -> Iterator[Finding]:
    for name in ("inbox", "outbox", "tasks", "uploads", "results", "logs", "journal", "tmp"):
        path = data / name
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            yield Finding(name, False, f"{path} cannot be written to")
    corrupt = data / "corrupt"
    count = sum(1 for _ in corrupt.iterdir()) if corrupt.is_dir() else 0
    yield Finding("corrupt", not count, f"{count} files could not be read, see {corrupt}" if count else "nothing")


def _room(data: Path, config: Config) -> Iterator[Finding]:
    free = shutil.disk_usage(data).free
    floor = config.storage.min_free_bytes
    yield Finding("space", free >= floor, f"{format_size(free)} free, the floor is {format_size(floor)}")
    inodes = os.statvfs(data)
    if inodes.f_files:
        floor = config.storage.min_free_inodes
        yield Finding("inodes", inodes.f_favail >= floor, f"{inodes.f_favail} free, the floor is {floor}")


def _handlers(config: Config) -> Iterator[Finding]:
    handlers = Handlers(Path(config.handlers_dir), config.handlers)
    handlers.load()
    for failure in handlers.errors.values():
        yield Finding("handlers", False, f"{failure.path}:{failure.line or 1}: {failure.message}")
    names = ", ".join(handler.name for handler in handlers)
    yield Finding("handlers", bool(names), names or f"none in {config.handlers_dir}")
    for handler in handlers:
        if missing := handler.missing():
            yield Finding(handler.name, True, f"unavailable, it lacks {', '.join(missing)}")
