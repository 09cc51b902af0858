"""`cancel`, `retry`, `rerun` and `rm`: one change to some tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from runner.cli.connection import Api, connect, task_path
from runner.cli.exits import CommandFailed, Exit
from runner.cli.options import Options, common_options
from runner.cli.output import print_error, print_json


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@common_options
def cancel(options: Options, task_ids: tuple[str, ...]) -> int:
    """Cancel tasks that have not ended."""
    return _change(options, task_ids, lambda api, task_id: api.post(f"{task_path(task_id)}/cancel"))


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@common_options
def retry(options: Options, task_ids: tuple[str, ...]) -> int:
    """Give failed or cancelled tasks a further attempt."""
    return _change(options, task_ids, lambda api, task_id: api.post(f"{task_path(task_id)}/retry"))


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@common_options
def rerun(options: Options, task_ids: tuple[str, ...]) -> int:
    """Make new tasks from old ones, with the same parameters and inputs."""
    return _change(options, task_ids, lambda api, task_id: api.post(f"{task_path(task_id)}/rerun"))


@click.command()
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@common_options
def rm(options: Options, task_ids: tuple[str, ...]) -> int:
    """Delete tasks that have ended, with their files."""
    return _change(options, task_ids, _delete)


def _delete(api: Api, task_id: str) -> dict[str, Any]:
    api.delete(task_path(task_id))
    return {"id": task_id, "status": "deleted"}


def _change(options: Options, task_ids: tuple[str, ...], change: Callable[[Api, str], dict[str, Any]]) -> int:
    """Changes each task; those that refuse are reported, and do not keep the others from it."""
    changed, failures = [], []
    with connect(options) as api:
        for task_id in task_ids:
            try:
                changed.append(change(api, task_id))
            except CommandFailed as failure:
                failures.append(failure)
                print_error(failure.message)
    if options.as_json:
        print_json(changed + [{"error": failure.document} for failure in failures])
    else:
        for task in changed:
            click.echo(f"{task['id']} {task['status']}")
    return max((failure.exit for failure in failures), default=Exit.OK)
