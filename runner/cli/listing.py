"""`ls` and `show`."""

from __future__ import annotations

from typing import Any, Final

import click

from runner.cli.connection import Api, connect, task_path
from runner.cli.options import Options, common_options
from runner.cli.output import age, print_fields, print_json, print_note, took
from runner.cli.tables import Column, Fit, print_table

STATUSES = ("created", "uploaded", "pending", "processing", "completed", "failed", "cancelled")
COLUMNS: Final = ("id", "type", "status", "age", "took", Column("file", Fit.CUT), Column("", Fit.CUT))
INTERRUPTED: Final = "no runner is running: what was interrupted goes on when one is started (`runner serve`)"

UNSHOWN: Final = frozenset(
    ("attempts", "drop", "error", "progress", "task_id", "state", "max_retry", "retried", "last_err", "next_process_at")
)
"""What `show` tells otherwise, or has told already under another name."""


@click.command()
@click.option("--status", multiple=True, type=click.Choice(STATUSES), help="Only tasks in one of these.")
@click.option("--type", help="Only tasks of this handler.")
@click.option("--user", help="Only this user's tasks.")
@click.option("--queue", help="Only tasks in this queue.")
@click.option("--source", help="Only tasks that came this way: inbox, http, grpc, cli, schedule, chain.")
@click.option("--client", help="Only tasks with this client id.")
@click.option("--text", help="Only tasks with this in their error message or file name.")
@click.option("--created-after", metavar="INSTANT", help="Such as 2026-01-31T12:00:00Z.")
@click.option("--created-before", metavar="INSTANT")
@click.option("--completed-after", metavar="INSTANT")
@click.option("--completed-before", metavar="INSTANT")
@click.option("-n", "--size", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@click.option("--page", type=click.IntRange(0), help="Which page of that size, from 0.")
@click.option("--cursor", help="Go on where an earlier list ended.")
@click.option("--count", is_flag=True, help="Print only how many there are.")
@common_options
def ls(options: Options, count: bool, size: int, page: int | None, cursor: str | None, **filters: Any) -> None:
    """List tasks, newest first."""
    filters["status"] = ",".join(filters["status"]) or None
    with connect(options) as api:
        if count:
            total = api.get("/tasks/count", **filters)
            return print_json(total) if options.as_json else click.echo(total["count"])
        query = {name: value for name, value in filters.items() if value is not None}
        answer = api.request("GET", "/tasks", {**query, "size": size, "page": page, "cursor": cursor})
    tasks = answer.json()
    if options.as_json:
        return print_json(tasks)
    if not tasks:
        return print_note("no tasks match" if query else "no tasks yet")
    print_table(COLUMNS, (_row(api, task) for task in tasks))
    if any(is_interrupted(api, task) for task in tasks):
        print_note(INTERRUPTED)
    if "x-next-cursor" in answer.headers:
        print_note(f"there are more: add --cursor {answer.headers['x-next-cursor']}")
    return None


@click.command()
@click.argument("task_id", metavar="ID")
@common_options
def show(options: Options, task_id: str) -> None:
    """Show all that is known of one task."""
    with connect(options) as api:
        task = api.get(task_path(task_id))
    if options.as_json:
        return print_json(task)
    return print_task(api, task)


def print_task(api: Api, task: dict[str, Any]) -> None:
    """A task for people: paths as they are on this machine, attempts one a line."""
    fields = {name: value for name, value in task.items() if name not in UNSHOWN}
    for name in ("input_files", "output_files"):
        fields[name] = ", ".join(str(api.data_dir / path) for path in task[name])
    if outbox := (task["drop"] or {}).get("outbox"):
        fields["outbox"] = f"{api.data_dir / outbox}/"
    fields["progress"] = progress_of(api, task)
    fields["error"] = task["error"] and f"{task['error']['code']}: {task['error']['message']}"
    unended = "interrupted" if is_interrupted(api, task) else "running"
    for attempt in task["attempts"]:
        reason = f": {attempt['error']['message']}" if attempt["error"] else ""
        fields[f"attempt {attempt['number']}"] = f"{attempt['outcome'] or unended}{reason}"
    print_fields(fields)
    if is_interrupted(api, task):
        print_note(INTERRUPTED)


def is_interrupted(api: Api, task: dict[str, Any]) -> bool:
    """Whether a task is `processing` only because nobody has told it since that its runner died."""
    return api.is_own and task["status"] == "processing"


def progress_of(api: Api, task: dict[str, Any]) -> str:
    """How far a task is: "40% reading"."""
    progress = task["progress"]
    if is_interrupted(api, task):
        return f"interrupted at {progress['percentage']:.0f}%" if progress else "interrupted"
    if not progress or task["status"] != "processing":
        return ""
    return f"{progress['percentage']:.0f}% {progress['message'] or progress['stage']}".strip()


def _row(api: Api, task: dict[str, Any]) -> tuple[object, ...]:
    error = task["error"]["message"] if task["error"] else ""
    name = task["original_filename"] or ""
    duration = "" if is_interrupted(api, task) else took(task)
    note = progress_of(api, task) or error
    return task["id"], task["type"], task["status"], age(task["created_at"]), duration, name, note
