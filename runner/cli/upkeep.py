"""`gc` and `why`: what goes, and what does not go on."""

from __future__ import annotations

import os

import click

from runner.cli.connection import connect
from runner.cli.exits import CommandFailed, Exit
from runner.cli.options import Options, common_options
from runner.cli.output import print_json, safe
from runner.cli.tables import Column, Fit, print_table
from runner.units import format_size


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
        print_table(("id", "", Column("why", Fit.WRAP), "size"), rows)
    verb = "would go" if dry_run else "removed"
    return click.echo(f"{len(removed)} {verb}, {format_size(sum(one['bytes'] for one in removed))}")


@click.command()
@click.argument("target", metavar="PATH|ID")
@common_options
def why(options: Options, target: str) -> None:
    """Say why a file or a task is not running. The exit code is 3 if there is none."""
    with connect(options) as api:
        explanation = api.get("/why", target=_as_the_runner_knows(target))
    if explanation["kind"] == "absent":
        raise CommandFailed(Exit.NOT_FOUND, explanation["text"], {"code": "not_found", "detail": explanation["text"]})
    if options.as_json:
        return print_json(explanation)
    return click.echo(safe(explanation["text"]))


def _as_the_runner_knows(target: str) -> str:
    """A name relative to the caller's folder means nothing to the runner. The file may have been taken already, and
    its folder be gone; where the name begins is still there."""
    absolute = os.path.abspath(target)  # noqa: PTH100 keeps symlinks
    is_here = os.path.lexists(target) or ("/" in target and os.path.isdir(target.partition("/")[0]))  # noqa: PTH112
    return absolute if is_here else target
