"""`python -m runner.cli` is `runner`."""

from runner.cli import main

main()
