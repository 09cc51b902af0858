"""The command line: one command for each benchmark, `table` for all of them."""

from __future__ import annotations

import click

from bench.inbox import inbox_latency, inbox_storm
from bench.latency import latency
from bench.listing import list_
from bench.memory import memory
from bench.pair import pair, repeat
from bench.peers.command import peers
from bench.restart import restart
from bench.scale import scale
from bench.table import table
from bench.throughput import throughput
from bench.web import http

COMMANDS = (
    table, throughput, latency, inbox_latency, inbox_storm, restart, list_, scale, memory, http, pair, repeat,
    peers,
)  # fmt: skip


class Benchmarks(click.Group):
    """The commands in the order in which they are listed above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names."""
        return list(self.commands)


@click.group(
    cls=Benchmarks,
    commands=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.pass_context
def main(context: click.Context) -> None:
    """Measure the runner. Each command prints a table, and last one line of JSON. Without a command: all of them."""
    if context.invoked_subcommand is None:
        context.invoke(table)


if __name__ == "__main__":
    main(prog_name="python -m bench")
