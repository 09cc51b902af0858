"""`why`, `gc` and `doctor`."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import Command, Serving


def test_why_answers_for_a_task_and_for_a_file(cli: Command, serving: Serving, project: Path) -> None:
    """By id, and by the path as the caller's shell knows it."""
    task_id = cli("submit", "count", "note.txt", "--delay", "1h").out.strip()
    waiting = cli("why", task_id, "--json").json
    assert waiting["kind"]
    assert cli("why", task_id).out == waiting["text"] + "\n"
    (project / "data" / "inbox" / "count" / ".hidden").touch()
    assert cli("why", "data/inbox/count/.hidden").code == 0


def test_a_dropped_file_gets_a_result_in_a_folder(cli: Command, serving: Serving, project: Path) -> None:
    """The whole point; the command line sees the task like any other."""
    (project / "note.txt").rename(project / "data" / "inbox" / "count" / "note.txt")
    while not (tasks := cli("ls", "--source", "inbox", "--json").json):
        pass
    assert cli("watch", tasks[0]["id"]).code == 0
    outbox = project / "data" / "outbox" / "count" / "note.txt"
    while not (outbox / "task.json").exists() or not (outbox / "count.txt").exists():
        assert cli("ls").code == 0
    assert (outbox / "count.txt").read_text() == "counted"


def test_gc_lists_what_would_go_and_then_removes_it(cli: Command, project: Path) -> None:
    """`--dry-run` changes nothing."""
    with (project / "config.yaml").open("a") as config:
        config.write("retention: {completed: 0s}\n")
    task_id = cli("submit", "count", "note.txt", "--wait", "--json").json["id"]
    listed = cli("gc", "--dry-run")
    assert task_id in listed.out
    assert "1 would go" in listed.out
    assert cli("show", task_id).code == 0
    assert cli("gc", "--json").json["removed"][0]["id"] == task_id
    assert cli("show", task_id).code == 3


def test_doctor_finds_nothing_wrong_in_a_sound_folder(cli: Command, serving: Serving) -> None:
    """Exit code 0, one line a check."""
    sound = cli("doctor")
    assert sound.code == 0
    assert "a runner owns the directory" in sound.out


def test_doctor_names_what_is_wrong(cli: Command, project: Path) -> None:
    """Exit code 1; it needs no runner and changes nothing."""
    assert cli("doctor").code == 1
    cli("submit", "count", "note.txt")
    (project / "handlers" / "broken.py").write_text("def (")
    (project / "data" / "corrupt" / "x.json").touch()
    (project / "data").chmod(0o777)
    wrong = {finding["check"] for finding in cli("doctor", "--json").json if not finding["ok"]}
    assert wrong == {"data", "corrupt", "handlers"}
