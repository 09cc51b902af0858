"""A benchmark in a process of its own, of this checkout or of another one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click

import runner
from bench.report import NotMeasured
from bench.workspace import Place

BENCH: Final = Path(__file__).parent
OWN: Final = Path(runner.__file__).parents[1]
"""The checkout whose `runner` this process would measure."""

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Checkout:
    """One state of the project: its folder, and the Python path by which its `runner` is measured by our `bench`."""

    folder: Path
    python_path: str

    def measure(self, place: Place, arguments: Sequence[str]) -> Document:
        """The last line of a benchmark's output. Its table goes to stderr. Raises `NotMeasured`."""
        command = [sys.executable, "-P", "-m", "bench", *arguments, *place.arguments]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": self.python_path}, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            raise NotMeasured(f"{' '.join(arguments)} ended with {done.returncode}")
        document: Document = json.loads(done.stdout.splitlines()[-1])
        return document

    def check(self) -> None:
        """Raises a usage error unless it is this folder's `runner` that would be measured."""
        said = subprocess.run(
            [sys.executable, "-P", "-c", "import runner; print(runner.__file__)"],
            env={**os.environ, "PYTHONPATH": self.python_path},
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode or not Path(said.stdout.strip()).is_relative_to(self.folder):
            raise click.UsageError(f"{self.folder} is not a checkout: it has no package `runner`")


@contextmanager
def checkouts(*folders: Path) -> Iterator[list[Checkout]]:
    """The checkouts at these folders, all to be measured by this `bench`, whatever `bench` they have themselves."""
    with TemporaryDirectory(prefix="bench-") as private:
        (Path(private) / "bench").symlink_to(BENCH)
        resolved = [folder.resolve() for folder in folders]
        found = [Checkout(folder, os.pathsep.join((private, str(folder)))) for folder in resolved]
        for checkout in found:
            checkout.check()
        yield found


def figures_of(document: Document, prefix: str = "") -> dict[str, float]:
    """Every number in a document, by its path: `start_ms.p50`."""
    found: dict[str, float] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            found |= figures_of(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = value
    return found
