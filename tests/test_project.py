"""The frame: what is declared, locked and shipped."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("run.txt", "dev.txt")


def normal(name: str) -> str:
    """A distribution's name as everyone compares it (PEP 503), without its version."""
    found = re.match(r"[A-Za-z0-9._-]+", name)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def locked(lock: str) -> dict[str, str]:
    """Each package that the lock names, with everything that is said of it."""
    text = (ROOT / "requirements" / lock).read_text()
    return {normal(entry): entry for entry in re.split(r"\n(?=[a-z0-9])", text) if not entry.startswith("#")}


def imported(folder: str) -> set[str]:
    """The top-level modules that the Python files in the folder import, anywhere in them."""
    trees = [ast.parse(path.read_bytes()) for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("folder", ["runner", "handlers"])
def test_everything_imported_is_declared(folder: str) -> None:
    """A package that happens to be installed for another one's sake may be gone tomorrow."""
    extras = PROJECT["optional-dependencies"]
    declared = {normal(name) for name in chain(PROJECT["dependencies"], *extras.values())}
    ours = {"runner", "handlers", *sys.stdlib_module_names}
    homes = packages_distributions()
    foreign = {name: {normal(home) for home in homes.get(name, [name])} for name in imported(folder) - ours}
    assert {name for name, candidates in foreign.items() if not candidates & declared} == set()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_a_hash_for_every_package(lock: str) -> None:
    """`pip install --require-hashes` is all or nothing."""
    assert [name for name, entry in locked(lock).items() if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_place_to_install_from(lock: str) -> None:
    """Where packages come from is the business of the machine that installs them."""
    assert re.findall(r"(?m)://|^-|index|find-links|^/", (ROOT / "requirements" / lock).read_text()) == []


def test_the_locks_hold_what_the_project_declares() -> None:
    """A dependency that was added without `make lock` would be missing from every installation."""
    extras = PROJECT["optional-dependencies"]
    wanted = {"run.txt": [*PROJECT["dependencies"], *extras["video"]]}
    wanted["dev.txt"] = [*wanted["run.txt"], *extras["dev"]]
    assert {lock: {normal(name) for name in wanted[lock]} - locked(lock).keys() for lock in LOCKS} == {
        "run.txt": set(),
        "dev.txt": set(),
    }


def test_the_two_locks_agree() -> None:
    """`make test` after `make run` must not change what runs."""
    run, dev = ({name: entry.split()[0] for name, entry in locked(lock).items()} for lock in LOCKS)
    assert {name: dev.get(name) for name in run} == run


def test_make_without_a_target_says_what_there_is() -> None:
    """The first thing that a person types must not start anything."""
    said = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("make run ")


def test_the_wheel_carries_the_starter_set(tmp_path: Path) -> None:
    """`runner init` has only the wheel to lay out a folder from."""
    pytest.importorskip("hatchling", reason="`make setup-dev` installs it")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.iterdir()
    carried = {name for name in ZipFile(wheel).namelist() if name.startswith("runner/starter/")}
    handlers = {f"runner/starter/handlers/{path.name}" for path in (ROOT / "handlers").glob("*.py")}
    assert carried == {"runner/starter/config.yaml", *handlers}
