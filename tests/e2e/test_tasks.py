"""Tasks on the command line, with a runner that serves the folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import Command, Serving

ABSENT = "00000000-0000-4000-8000-000000000000"


def test_submitting_and_waiting_prints_the_result(cli: Command, serving: Serving, project: Path) -> None:
    """Progress goes to stderr, the end to stdout: how, the result, and where the outputs are."""
    done = cli("submit", "count", "note.txt", "--set", "unit=letters", "--wait")
    assert done.code == 0
    first, *middle, last = done.out.splitlines()
    assert first.startswith("completed in ")
    assert middle == ["{", '  "letters": 5', "}"]
    assert Path(last).read_text() == "counted"
    assert "100% note.txt" in done.err


def test_submitting_prints_the_id_that_other_commands_take(cli: Command, serving: Serving) -> None:
    """`watch $(runner submit …)` works."""
    task_id = cli("submit", "count", "note.txt", "note.txt").out.strip()
    assert cli("watch", task_id).out.startswith("completed")
    shown = cli("show", task_id)
    assert "note.2.txt" in shown.out
    assert "attempt 1" in shown.out


def test_a_failed_task_is_an_exit_code_and_a_safe_message(cli: Command, serving: Serving) -> None:
    """Whatever a handler says, it does not reach the terminal's control."""
    failed = cli("submit", "fail", "--wait")
    assert failed.code == 1
    assert "failed" in failed.out
    assert r"\x1b[31mit is broken" in failed.out
    assert "\x1b" not in failed.out


def test_the_file_that_is_submitted_stays_unless_it_is_moved(cli: Command, serving: Serving, project: Path) -> None:
    """A copy by default; `--link` and `--move` for those who know."""
    (project / "gone.txt").write_text("1")
    assert cli("submit", "count", "note.txt", "--wait").code == 0
    assert cli("submit", "count", "note.txt", "--link", "--wait").code == 0
    assert cli("submit", "count", "gone.txt", "--move", "--wait").code == 0
    assert (project / "note.txt").exists()
    assert not (project / "gone.txt").exists()


def test_a_file_name_need_not_be_utf_8(cli: Command, serving: Serving, project: Path) -> None:
    """Linux allows any bytes but two."""
    name = os.fsdecode(b"caf\xe9.txt")
    (project / name).write_text("123")
    assert cli("submit", "count", name, "--wait", "--json").json["result"] == {"bytes": 3}


def test_a_submission_says_all_that_the_api_can(cli: Command, serving: Serving) -> None:
    """Each option is a field of the submission."""
    options = [
        "--queue",
        "high",
        "--priority",
        "7",
        "--retries",
        "2",
        "--timeout",
        "1m",
        "--delay",
        "1h",
        "--key",
        "k",
        "--meta",
        "a=b",
        "--client",
        "me",
    ]
    task = cli("submit", "count", "note.txt", "--payload", '{"unit": "x"}', *options, "--json").json
    assert (task["queue"], task["priority"], task["max_retries"], task["timeout_seconds"]) == ("high", 7, 2, 60)
    assert (task["payload"], task["metadata"], task["client_id"]) == ({"unit": "x"}, {"a": "b"}, "me")
    assert (task["source"], task["unique_key"], bool(task["run_after"])) == ("cli", "k", True)
    assert cli("submit", "count", "note.txt", "--payload", '{"unit": "x"}', *options).out.strip() == task["id"]


def test_the_same_again_too_soon_is_the_task_that_there_is(cli: Command, serving: Serving) -> None:
    """`--unique` is for scripts that may run twice: the second time is no failure."""
    first = cli("submit", "count", "note.txt", "--unique", "1h").out
    assert cli("submit", "count", "note.txt", "--unique", "1h").out == first


def test_listing_filters_and_counts(cli: Command, serving: Serving) -> None:
    """`--count` prints a number alone; `--json` one array."""
    for type in ("count", "count", "fail"):
        cli("submit", type, "note.txt", "--wait")
    assert cli("ls", "--count").out == "3\n"
    assert cli("ls", "--status", "failed", "--count").out == "1\n"
    assert [task["type"] for task in cli("ls", "--json").json] == ["fail", "count", "count"]
    table = cli("ls", "--type", "fail")
    assert "failed" in table.out
    page = cli("ls", "-n", "2")
    cursor = page.err.split()[-1]
    assert len(cli("ls", "--cursor", cursor, "--json").json) == 1


def test_tasks_are_cancelled_retried_rerun_and_removed(cli: Command, serving: Serving, project: Path) -> None:
    """Each takes several ids, and one that refuses does not keep the others from it."""
    task_id = cli("submit", "wait_for", "--set", f"gate={project / 'gate'}").out.strip()
    assert cli("cancel", task_id).out == f"{task_id} cancelled\n"
    mixed = cli("cancel", ABSENT, task_id)
    assert mixed.code == 4
    assert "already" in mixed.err or "cancelled" in mixed.err
    assert cli("retry", task_id).out == f"{task_id} pending\n"
    (project / "gate").touch()
    assert cli("watch", task_id).code == 0
    assert cli("rerun", task_id, "--json").json[0]["id"] != task_id
    assert cli("rm", task_id).out == f"{task_id} deleted\n"
    assert cli("show", task_id).code == 3


def test_logs_are_printed_and_followed(cli: Command, serving: Serving, project: Path) -> None:
    """What the handler said, with its time and level; `-f` goes on to the end."""
    task_id = cli("submit", "count", "note.txt", "--wait", "--json").json["id"]
    (line,) = cli("logs", task_id).out.splitlines()
    assert line.endswith("info     reading note.txt")
    assert [line["kind"] for line in cli("logs", task_id, "--progress", "--json").json] == ["log", "progress"]
    assert cli("logs", "-f", task_id).out.splitlines() == [line]


def test_a_handlers_parameters_are_its_help(idle_cli: Command) -> None:
    """`submit TYPE --help` comes from the same schema that validates."""
    for arguments in (("submit", "count", "--help"), ("handlers", "count")):
        shown = idle_cli(*arguments).out
        assert "Count the bytes of text files." in shown
        assert "--set unit=…" in shown
        assert "what to call it" in shown
    assert "--priority" in idle_cli("submit", "--help").out
    assert {"count", "wait_for", "fail"} == {
        handler["name"] for handler in idle_cli("handlers", "--json").json["handlers"]
    }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["submit", "cuont"], 4, "did you mean 'count'"),
        (["submit", "count", "note.txt", "--set", "unit=[1]"], 4, "/payload/unit"),
        (["submit", "count", "note.txt", "--set", "colour=red"], 4, "/payload/colour"),
        (["submit", "count", "note.txt", "--set", "colour=red"], 4, "`runner submit count --help` shows all"),
        (["submit", "wait_for"], 4, "give --set gate=…"),
        (["submit", "count", "config.yaml"], 4, ".txt"),
        (["submit", "count", "note.txt", "--queue", "fast"], 4, "no queue 'fast'"),
        (["submit", "count", "note.txt", "--delay", "soon"], 4, "/delay"),
        (["submit", "count", "missing.txt"], 2, "missing.txt"),
        (["submit", "count", "note.txt", "--set", "unit"], 2, "KEY=VALUE"),
        (["submit", "count", "note.txt", "--payload", "[1]"], 2, "JSON object"),
        (["submit", "count", "note.txt", "--payload", "{"], 2, "not JSON"),
        (["submit"], 2, "TYPE"),
        (["show", ABSENT], 3, ABSENT),
        (["watch", ABSENT], 3, ABSENT),
        (["logs", ABSENT], 3, ABSENT),
        (["logs", "-f", ABSENT], 3, ABSENT),
        (["why", ABSENT], 3, ABSENT),
        (["why", "data/inbox/count/missing.txt"], 3, "missing.txt"),
        (["why", "elsewhere/missing.txt"], 3, "missing.txt"),
        (["cancel", "../../etc"], 3, "etc"),
        (["handlers", "cuont"], 3, "cuont"),
        (["submit", "cuont", "--help"], 3, "cuont"),
        (["ls", "--created-after", "yesterday"], 4, "/created_after"),
        (["ls", "--status", "done"], 2, "done"),
        (["lst"], 2, "lst"),
    ],
)
def test_a_mistake_has_its_exit_code_and_a_reason(
    idle_cli: Command, arguments: list[str], code: int, said: str
) -> None:
    """One message on stderr, nothing on stdout, never a traceback."""
    ended = idle_cli(*arguments)
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_a_mistake_is_json_where_json_is_asked_for(idle_cli: Command) -> None:
    """Scripts find the code that the API gave."""
    ended = idle_cli("show", ABSENT, "--json")
    assert (ended.code, ended.json["error"]["code"]) == (3, "not_found")
