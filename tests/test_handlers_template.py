"""`runner new NAME`."""

import subprocess
import sys
from pathlib import Path

import pytest

from runner.errors import Refused
from runner.handlers.template import create_handler

ROOT = Path(__file__).parent.parent


def test_a_new_handler_passes_its_own_test(tmp_path: Path) -> None:
    """Whoever starts has something that works, with pytest as it comes."""
    written = create_handler("greet", tmp_path / "handlers", tmp_path / "tests")
    assert [str(path.relative_to(tmp_path)) for path in written] == ["handlers/greet.py", "tests/test_greet.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "."]
    run = subprocess.run(
        [*command, "tests"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert "1 passed" in run.stdout, run.stdout + run.stderr


def test_a_handler_can_be_made_without_a_test(tmp_path: Path) -> None:
    """Where there is no folder of tests."""
    assert create_handler("greet", tmp_path) == (tmp_path / "greet.py",)


@pytest.mark.parametrize("there", ["handlers/greet.py", "tests/test_greet.py"])
def test_nothing_that_exists_is_overwritten(tmp_path: Path, there: str) -> None:
    """If one of the two files is there, neither is written."""
    existing = tmp_path / there
    existing.parent.mkdir()
    existing.write_text("mine")
    with pytest.raises(Refused, match="exists"):
        create_handler("greet", tmp_path / "handlers", tmp_path / "tests")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [existing]
    assert existing.read_text() == "mine"


@pytest.mark.parametrize("name", ["", "Greet", "greet me", "../greet", "greet-me", "1st", "_greet", "class"])
def test_a_name_that_python_or_a_folder_cannot_have_is_refused(tmp_path: Path, name: str) -> None:
    """It becomes a function, a file and the folder of an inbox."""
    with pytest.raises(Refused, match="cannot name a handler"):
        create_handler(name, tmp_path)
