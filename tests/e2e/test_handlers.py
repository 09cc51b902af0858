"""Writing and running handlers on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Command


def test_a_handler_is_run_here_and_now(cli: Command, project: Path) -> None:
    """Its log on stderr, its result on stdout, its outputs beside the caller, nothing in a data directory."""
    done = cli("run", "count", "note.txt", "--set", "unit=letters", "-o", "out")
    assert done.code == 0
    assert done.out.splitlines() == ["completed", "{", '  "letters": 5', "}", str(project / "out" / "count.txt")]
    assert "reading note.txt" in done.err
    assert not (project / "data").exists()


def test_what_a_handler_prints_is_no_part_of_the_answer(cli: Command, project: Path) -> None:
    """It is shown beside what is logged, so that `--json` stays one document."""
    (project / "handlers" / "talk.py").write_text(
        "from runner import handler\n\n\n@handler()\ndef talk(ctx) -> str:\n    print('hello')\n    return 'done'\n"
    )
    for command in (("run", "talk"), ("submit", "talk", "--wait")):
        assert cli(*command, "--json").json["result"] == "done"
    assert "info: hello" in cli("run", "talk").err
    assert cli("logs", cli("submit", "talk", "--wait", "--json").json["id"]).out.endswith("info     hello\n")


def test_a_handler_that_fails_here_is_exit_code_1(cli: Command) -> None:
    """As JSON, too."""
    failed = cli("run", "fail", "--json")
    assert (failed.code, failed.json["outcome"]) == (1, "failed")
    assert failed.json["error"]["message"].endswith("it is broken")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["cuont"], 4, "did you mean 'count'"),
        (["count", "--set", "unit=[1]"], 4, "/payload/unit"),
        (["count", "config.yaml"], 4, "'config.yaml' is not of a type that count accepts: .txt"),
        (["count"], 4, "count needs a file: .txt"),
        (["wait_for"], 4, "give --set gate=…"),
        (["count", "missing.txt"], 2, "missing.txt"),
    ],
)
def test_a_wrong_run_has_its_exit_code(cli: Command, arguments: list[str], code: int, said: str) -> None:
    """The same as for a submission."""
    ended = cli("run", *arguments)
    assert ended.code == code
    assert said in ended.err


def test_a_new_handler_comes_with_a_test_that_passes(cli: Command, project: Path) -> None:
    """The first five minutes: write, test, run."""
    written = cli("new", "resize_image", "--json").json["written"]
    assert written == [str(project / "handlers" / "resize_image.py"), str(project / "tests" / "test_resize_image.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout
    assert cli("run", "resize_image", "note.txt").code == 0


def test_a_new_handler_replaces_none(cli: Command) -> None:
    """What exists stays; a name that cannot be one is refused."""
    cli("new", "mine", "--no-test")
    assert cli("new", "mine", "--no-test").code == 4
    assert cli("new", "Not-A-Name").code == 4


def test_a_broken_handler_is_shown_with_its_line(cli: Command, project: Path) -> None:
    """The others are listed all the same."""
    (project / "handlers" / "broken.py").write_text("x = 1\ndef (")
    listed = cli("handlers")
    assert listed.code == 0
    assert "count" in listed.out
    assert "broken.py:2" in listed.err
