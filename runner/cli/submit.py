"""`submit`: files and parameters become a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from runner.cli.connection import Api, Duty, connect, task_path
from runner.cli.exits import CommandFailed
from runner.cli.following import follow, print_end
from runner.cli.handlers import print_handler
from runner.cli.options import Options, common_options
from runner.cli.output import print_json, print_note
from runner.cli.payload import hinting, read_pair, read_payload
from runner.intake.names import raw_of, text_of


class SubmitCommand(click.Command):
    """`submit TYPE --help` shows the parameters of that handler."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As any command, unless help is asked for after a type."""
        asked = [argument for argument in args if argument in ("-h", "--help")]
        if asked and args[0] not in asked and not args[0].startswith("-"):
            args = [argument for argument in args if argument not in asked] + ["--parameters"]
        return super().parse_args(ctx, args)


@click.command(cls=SubmitCommand)
@click.argument("type", metavar="TYPE")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A parameter; its value is JSON or text.")
@click.option("--payload", metavar="JSON", help="All parameters as one JSON object; @FILE reads it from a file.")
@click.option("--wait", is_flag=True, help="Show the progress, and exit with 1 if the task fails.")
@click.option("--queue", help="The queue: critical, high, default, low or one of your own.")
@click.option("--priority", type=int, help="Higher is sooner within its queue.")
@click.option("--retries", "max_retries", type=click.IntRange(0), help="How often a failed attempt is tried again.")
@click.option("--timeout", metavar="LENGTH", help="How long one attempt may take, such as 5m.")
@click.option("--delay", metavar="LENGTH", help="Do not start before that has passed, such as 1h30m.")
@click.option("--at", "run_after", metavar="INSTANT", help="Do not start before that, such as 2026-01-31T12:00:00Z.")
@click.option("--expires", "expires_at", metavar="INSTANT", help="Fail if it has not been started by then.")
@click.option("--key", "unique_key", help="The same key and submission again is the same task, not another one.")
@click.option("--unique", metavar="LENGTH", help="For that long, the same submission again is the same task.")
@click.option("--meta", "metadata", metavar="KEY=TEXT", multiple=True, help="A note to keep with the task.")
@click.option("--client", "client_id", help="An id of your own to find tasks by.")
@click.option("--move", "handover", flag_value="move", help="Take the files away; without this they are copied.")
@click.option("--link", "handover", flag_value="link", help="Hard-link the files; do not change them afterwards.")
@click.option("--parameters", "shows_parameters", is_flag=True, hidden=True)
@common_options
def submit(
    options: Options, type: str, files: tuple[Path, ...], wait: bool, handover: str | None, shows_parameters: bool,
    **fields: Any,
) -> int | None:  # fmt: skip
    """Hand in files and parameters as a task. Prints the task's id.

    `runner submit TYPE --help` shows the parameters of that handler.
    """
    if shows_parameters:
        _show_parameters(options, type)
        return None
    body = _body(type, fields) | {"inputs": [_input(path, handover) for path in files]}
    with connect(options, Duty.RUN_TASKS if wait else Duty.ANSWER) as api:
        with hinting(type):
            task = _submit(api, body)
        if wait:
            return _follow(options, api, task)
        if api.is_own:
            print_note(f"no runner serves {api.data_dir}: the task waits until one does (`runner serve`)")
    if options.as_json:
        print_json(task)
    else:
        click.echo(task["id"])
    return None


def _submit(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    """The task; the one that there is, if it is still too soon for the same one again."""
    try:
        task: dict[str, Any] = api.post("/tasks", body)
    except CommandFailed as failure:
        if failure.document.get("code") != "task_already_exists":
            raise
        task = api.get(task_path(failure.document["task_id"]))
    return task


def _follow(options: Options, api: Api, task: dict[str, Any]) -> int:
    if api.is_own:
        print_note(f"no runner serves {api.data_dir}: the task runs here")
    return print_end(options, follow(api, task["id"]), api.data_dir)


def _show_parameters(options: Options, type: str) -> None:
    with connect(options) as api:
        handler = api.get(f"/handlers/{type}")
    print_handler(options, handler)


def _body(type: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The submission: only what was said."""
    payload = read_payload(fields.pop("payload"), fields.pop("settings"))
    metadata = dict(read_pair(item, "--meta") for item in fields.pop("metadata"))
    said = {name: value for name, value in fields.items() if value is not None}
    return {"type": type, "payload": payload, **said, **({"metadata": metadata} if metadata else {})}


def _input(path: Path, handover: str | None) -> dict[str, str]:
    """A file as JSON can name it, even if its own name is not UTF-8."""
    absolute = str(path.absolute())
    raw = raw_of(absolute)
    return {"path": text_of(absolute), "handover": handover or "copy", **({"raw": raw} if raw else {})}
