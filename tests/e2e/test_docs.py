"""`docs/cli.md` says all that there is, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from runner.cli.entry import COMMANDS, runner
from runner.cli.exits import Exit

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def test_every_command_and_exit_code_is_on_the_page() -> None:
    """And the exit codes are in the help, too."""
    assert set(re.findall(r"^\| `([a-z]+)", PAGE, re.MULTILINE)) == set(COMMANDS)
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)} == {*map(int, Exit), 130}
    assert all(f"{int(code)} " in (runner.epilog or "") for code in Exit)


def test_every_option_of_the_page_exists() -> None:
    """A renamed option is renamed on the page."""
    known = {"--help", *_options(runner)}
    assert set(re.findall(r"--[a-z][a-z-]*", PAGE)) <= known


def _options(command: click.Command) -> Iterator[str]:
    """All options of a command and of those below it."""
    for parameter in command.params:
        yield from parameter.opts
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _options(below)


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    """The list is made without importing them, so it is written twice."""
    for name, (_, short) in COMMANDS.items():
        command = runner.get_command(click.Context(runner), name)
        assert command is not None
        assert (command.help or "").split("\n")[0].startswith(short.rstrip(".")), name
