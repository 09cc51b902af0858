"""`why` and `gc`."""

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
    for target in ("data/inbox/count/note.txt", "count/note.txt"):
        assert tasks[0]["id"] in cli("why", target).out
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
