"""The command `runner`: its commands, each imported only when it is used, and how it ends."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, NoReturn

import click

from runner.cli.exits import CommandFailed, Exit, failure_of, failure_of_disk
from runner.cli.output import print_error, print_json
from runner.errors import RunnerError

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "serve": ("serve", "Own the data directory: watch the inbox, run tasks, answer HTTP."),
    "submit": ("submit", "Hand in files and parameters as a task."),
    "ls": ("listing", "List tasks, newest first."),
    "show": ("listing", "Show all that is known of one task."),
    "watch": ("following", "Follow one task to its end."),
    "logs": ("following", "Print what a task's handler said."),
    "cancel": ("changing", "Cancel tasks that have not ended."),
    "retry": ("changing", "Give failed or cancelled tasks a further attempt."),
    "rerun": ("changing", "Make new tasks from old ones."),
    "rm": ("changing", "Delete tasks that have ended, with their files."),
    "gc": ("upkeep", "Remove what retention says may go."),
    "why": ("upkeep", "Say why a file or a task is not running."),
    "doctor": ("doctor", "Check the data directory and what it needs."),
    "token": ("tokens", "Make, list and remove the tokens by which programs come in over TCP."),
    "handlers": ("handlers", "List the handlers, or show one of them."),
    "run": ("handlers", "Run one handler here and now, without a server."),
    "new": ("handlers", "Write a first handler and its test."),
    "init": ("starting", "Lay out config.yaml, handlers/ and data/ in a folder."),
    "demo": ("starting", "See it work: a short video is made, dropped and cleaned."),
}
"""Each command: the module that holds it, and what the list of commands says of it."""

INTERRUPTED: Final = 130


class Commands(click.Group):
    """A group that imports a command when it is called, so that none waits for the others' imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        with _nothing_collected():
            command: click.Command = getattr(import_module(f"runner.cli.{module}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in COMMANDS.items()])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 ok, 1 a task failed, 2 usage or configuration, 3 not found, 4 refused, 5 no connection, "
    "77 unsafe access.",
)
@click.version_option(package_name="file-runner", prog_name="runner")
def runner() -> None:
    """Drop a file, get a result: a serverless platform that is just a folder.

    Every command talks to the runner that serves the data directory. Where none does, it is the runner itself for as
    long as it lasts.
    """


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """What is imported stays. Python's collector would look at all of it several times: a tenth of a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def run(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command and exits; expected failures are one message on stderr."""
    as_json = "--json" in (sys.argv if arguments is None else arguments)
    try:
        outcome = runner.main(arguments, prog_name="runner", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(Exit.USAGE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except CommandFailed as failure:
        _end(failure, as_json=as_json)
    except RunnerError as error:
        _end(failure_of(error), as_json=as_json)
    except BrokenPipeError:
        # `runner ls | head`: nobody reads on. What is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OK)
    except OSError as error:
        _end(failure_of_disk(error), as_json=as_json)
    sys.exit(_code(outcome))


def _code(outcome: Any) -> int:
    return outcome if isinstance(outcome, int) else Exit.OK


def _end(failure: CommandFailed, *, as_json: bool) -> NoReturn:
    print_error(failure.message)
    if as_json:
        print_json({"error": failure.document})
    sys.exit(failure.exit)
