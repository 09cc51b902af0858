"""Commands where no runner serves the folder: each is the owner for as long as it lasts."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from filelock import FileLock

from tests.e2e.conftest import Command, Result, Serving


def test_a_waiting_submission_runs_here_and_says_so(cli: Command, project: Path) -> None:
    """No server is needed to get a result."""
    done = cli("submit", "count", "note.txt", "--wait")
    assert (done.code, done.out.splitlines()[2]) == (0, '  "bytes": 5')
    assert "no runner serves" in done.err
    assert cli("ls", "--count").out == "1\n"


def test_a_submission_waits_for_a_runner(cli: Command, project: Path) -> None:
    """It is kept, and says what it waits for; the next owner runs it."""
    submitted = cli("submit", "count", "note.txt")
    assert submitted.code == 0
    assert "runner serve" in submitted.err
    assert cli("show", submitted.out.strip(), "--json").json["status"] == "pending"
    assert cli("submit", "count", "note.txt", "--wait").code == 0
    assert cli("ls", "--status", "completed", "--count").out == "2\n"


def test_nothing_is_made_where_no_runner_belongs(cli: Command, project: Path) -> None:
    """A mistyped folder does not become a data directory."""
    ended = cli("ls", "--config", "config.yaml", "--data", "elsewhere")
    assert ended.code == 0
    (project / "handlers" / "samples.py").unlink()
    (project / "handlers").rmdir()
    lost = cli("ls", "--data", "nowhere")
    assert lost.code == 5
    assert not (project / "nowhere").exists()


def test_a_task_that_nobody_runs_is_not_watched_for_ever(cli: Command) -> None:
    """Following needs somebody who runs it."""
    task_id = cli("submit", "count", "note.txt").out.strip()
    for command in (["watch", task_id], ["logs", "-f", task_id]):
        ended = cli(*command)
        assert ended.code == 5
        assert "runner serve" in ended.err


def test_what_a_kill_interrupted_is_told_as_that(cli: Command, serving: Serving, project: Path) -> None:
    """Nothing runs, whatever the record says until the next start; the JSON is the record."""
    task_id = cli("submit", "wait_for", "--set", f"gate={project / 'gate'}").out.strip()
    while not cli("logs", task_id).out:
        pass
    serving.stop(signal.SIGKILL)
    for arguments in (("ls",), ("show", task_id)):
        shown = cli(*arguments)
        assert "interrupted" in shown.out
        assert "`runner serve`" in shown.err
    assert cli("show", task_id, "--json").json["status"] == "processing"
    assert cli("why", task_id, "--json").json["kind"] == "interrupted"
    successor = Serving(project)
    successor.await_line("1 task of the last run goes on; it was interrupted")
    successor.stop()


def test_a_task_that_waits_for_a_runner_says_so(cli: Command) -> None:
    """However soon its turn would come."""
    assert cli("submit", "count", "note.txt", "--wait").code == 0
    task_id = cli("submit", "count", "note.txt").out.strip()
    assert "no runner is running" in cli("why", task_id).out


def test_commands_at_the_same_time_take_turns(cli: Command, project: Path) -> None:
    """Whoever is second talks to the first, or waits for the lock; none fails."""
    results: list[Result] = []
    threads = [threading.Thread(target=_list, args=(project, results)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.code for result in results] == [0] * 4, results


def _list(project: Path, results: list[Result]) -> None:
    import subprocess
    import sys

    from tests.e2e.conftest import ROOT

    done = subprocess.run(
        [sys.executable, "-m", "runner.cli", "ls", "--count"], cwd=project, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    results.append(Result(done.returncode, done.stdout, done.stderr))


def test_an_owner_that_does_not_answer_is_named(cli: Command, project: Path, monkeypatch: object) -> None:
    """Exit code 5, and who it is."""
    from runner.cli import connection

    assert cli("ls", "--count").code == 0
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.1)  # type: ignore[attr-defined]
    with FileLock(project / "data" / "locks" / "owner.lock"):
        ended = cli("ls")
    assert ended.code == 5
    assert "does not answer" in ended.err


def test_a_data_directory_may_lie_deep(cli: Command, project: Path) -> None:
    """A Unix socket's name is at most 108 bytes long, a path is not."""
    deep = project / ("d" * 100) / ("e" * 100)
    assert cli("submit", "count", "note.txt", "--wait", "--data", deep).code == 0
    assert cli("ls", "--count", "--data", deep).out == "1\n"
