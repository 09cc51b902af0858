"""`watch` and `logs`: what happens to one task, as it happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import click

from runner.cli.connection import Api, connect, task_path
from runner.cli.exits import CommandFailed, Exit
from runner.cli.options import Options, common_options
from runner.cli.output import console, is_watched, print_json, print_note, safe, took

WAITING = frozenset({"created", "uploaded", "pending", "processing"})


class Report(Protocol):
    """Where progress is shown."""

    def show(self, percentage: float, message: str) -> None:
        """How far the task is."""


@click.command()
@click.argument("task_id", metavar="ID")
@common_options
def watch(options: Options, task_id: str) -> int:
    """Follow one task to its end. The exit code is 1 if it fails or is cancelled."""
    with connect(options) as api:
        _check_runs(api, task_id)
        return print_end(options, follow(api, task_id), api.data_dir)


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until the task ends.")
@click.option("--progress", is_flag=True, help="Progress, too.")
@common_options
def logs(options: Options, task_id: str, follows: bool, progress: bool) -> None:
    """Print what a task's handler said."""
    kinds = {"log", "progress"} if progress else {"log"}
    with connect(options) as api:
        if not follows:
            return _print_lines(options, [line for line in _said(api, task_id) if line["kind"] in kinds])
        _check_runs(api, task_id)
        for event in api.events(task_id):
            if event.name in kinds:
                _print_line(options, {"id": event.id, "kind": event.name, **event.data})
    return None


def _check_runs(api: Api, task_id: str) -> None:
    """Waiting for a task that nobody runs would last for ever."""
    if api.is_own and api.get(task_path(task_id))["status"] in WAITING:
        text = f"no runner serves {api.data_dir}: task {task_id} goes on when one does (`runner serve`)"
        raise CommandFailed(Exit.NO_CONNECTION, text)


def follow(api: Api, task_id: str) -> dict[str, Any]:
    """The task when it has ended; its progress is shown on the way."""
    with _reporting(task_id) as report:
        for event in api.events(task_id, "$"):
            data = event.data
            if event.name == "progress":
                report.show(data["percentage"], data["message"] or data["stage"])
            elif event.name == "status":
                known = data["progress"] or {"percentage": 0, "message": ""}
                report.show(known["percentage"], known["message"] or data["status"])
    task: dict[str, Any] = api.get(task_path(task_id))
    return task


def print_end(options: Options, task: dict[str, Any], data_dir: Path) -> Exit:
    """How a task ended, and where its outputs are."""
    if options.as_json:
        print_json(task)
    else:
        reason = f": {task['error']['message']}" if task["error"] else ""
        click.echo(safe(f"{task['status']} in {took(task) or '0s'}{reason}"))
        if task["result"] is not None:
            print_json(task["result"])
        for path in _results(task, data_dir):
            click.echo(safe(path))
    return Exit.OK if task["status"] == "completed" else Exit.TASK_FAILED


def _results(task: dict[str, Any], data_dir: Path) -> list[str]:
    """Where a person finds what came of a task: of a dropped file that is the folder in the outbox."""
    if task["output_files"] and (entry := (task["drop"] or {}).get("outbox")):
        return [f"{data_dir / entry}/"]
    return [str(data_dir / path) for path in task["output_files"]]


@contextmanager
def _reporting(task_id: str) -> Iterator[Report]:
    """A bar where a person looks, else a line where something changed much."""
    if not is_watched():
        yield _Lines(task_id)
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        yield _Bar(progress, progress.add_task("", total=100))


class _Bar:
    def __init__(self, progress: Any, bar: Any) -> None:
        self._progress = progress
        self._bar = bar

    def show(self, percentage: float, message: str) -> None:
        self._progress.update(self._bar, completed=percentage, description=safe(message))


class _Lines:
    """At most eleven lines of progress, and one for each other news."""

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id
        self._last: object = None

    def show(self, percentage: float, message: str) -> None:
        step = percentage // 10 or message
        if step != self._last:
            self._last = step
            print_note(f"{self._task_id} {percentage:3.0f}% {message}")


def _said(api: Api, task_id: str) -> list[dict[str, Any]]:
    from pydantic_core import from_json

    answer = api.request("GET", f"{task_path(task_id)}/log", {})
    return [from_json(line) for line in answer.content.splitlines()]


def _print_lines(options: Options, lines: list[dict[str, Any]]) -> None:
    if options.as_json:
        print_json(lines)
        return
    for line in lines:
        _print_line(options, line)


def _print_line(options: Options, line: dict[str, Any]) -> None:
    if options.as_json:
        import json

        click.echo(json.dumps(line, ensure_ascii=False))
        return
    said = line["message"] if line["kind"] == "log" else f"{line['percentage']:.0f}% {line['stage']} {line['message']}"
    click.echo(f"{line['at'][11:19]} {line.get('level', 'progress'):<8} {safe(said)}")
