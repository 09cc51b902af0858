"""The command line. `main` is the command `runner`."""

from __future__ import annotations


def main() -> None:
    """Runs the command that `sys.argv` names, and exits."""
    from runner.cli.entry import run

    run()
