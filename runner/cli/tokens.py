"""`token`: who may come in over TCP, in `auth.mode` token and cookie."""

from __future__ import annotations

from urllib.parse import quote

import click

from runner.cli.connection import connect
from runner.cli.options import Options, common_options
from runner.cli.output import age, print_json, print_note
from runner.cli.tables import print_table


@click.group()
def token() -> None:
    """Make, list and remove the tokens by which programs come in over TCP."""


@token.command()
@click.argument("name")
@click.option("--user", help="Whose tasks it is for; the user is called like the token unless given.")
@click.option("--scope", type=click.Choice(("user", "admin")), default="user", help="admin: everybody's tasks.")
@common_options
def add(options: Options, name: str, user: str | None, scope: str) -> None:
    """Make a token and print it. It is shown this once: only its hash is kept."""
    with connect(options) as api:
        made = api.post("/tokens", {"name": name, "user_id": user, "scope": scope})
    if options.as_json:
        return print_json(made)
    print_note(f"for user {made['user_id']}, scope {made['scope']}; send it as Authorization: Bearer …")
    return click.echo(made["token"])


@token.command("ls")
@common_options
def list_(options: Options) -> None:
    """List the tokens."""
    with connect(options) as api:
        tokens = api.get("/tokens")
    if options.as_json:
        return print_json(tokens)
    rows = [(one["name"], one["user_id"], one["scope"], age(one["created_at"])) for one in tokens]
    return print_table(("name", "user", "scope", "age"), rows)


@token.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@common_options
def rm(options: Options, names: tuple[str, ...]) -> None:
    """Remove tokens: from now on nobody gets in by them."""
    with connect(options) as api:
        for name in names:
            api.delete(f"/tokens/{quote(name, safe='')}")
    if options.as_json:
        return print_json(list(names))
    return None
