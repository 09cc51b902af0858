"""A suite as a person runs it: in a process that has no threads and may fork."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_alone(folder: Path, suite: str, *options: object) -> str:
    """The suite's counters. Raises `AssertionError` if it finds what it should not, or does not find what it should."""
    command = [sys.executable, "-m", "tests.crash", suite, "--dir", str(folder), *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr[-8000:]}\n{done.stdout}"
    return done.stdout.splitlines()[-1]
