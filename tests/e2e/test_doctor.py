"""`doctor`: it looks beside a runner and without one, says what is wrong, and mends it when it is asked to."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Command, Serving

PAGE = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")


def wrong(report: Any) -> dict[str, str]:
    """What is not well, and what would be done about it."""
    return {one["check"]: one["remedy"] or "" for one in report["findings"] if not one["ok"]}


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, but for who owns it and the lock's time."""
    paths = (path for path in folder.rglob("*") if path.name != "owner.json" and path.parent.name != "locks")
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths if not path.is_socket()}


@pytest.fixture
def used(cli: Command, project: Path) -> str:
    """A folder in which a task has run; its id."""
    return str(cli("submit", "count", "note.txt", "--wait", "--json").json["id"])


def test_a_sound_folder_is_well_beside_its_runner(cli: Command, serving: Serving) -> None:
    """Exit code 0, a line for each check; also while tasks come and go."""
    for _ in range(3):
        cli("submit", "count", "note.txt")
    assert [one["check"] for one in cli("doctor", "--json").json["findings"] if f"`{one['check']}`" not in PAGE] == []
    sound = cli("doctor")
    assert (sound.code, "a runner owns the directory" in sound.out, "WRONG" in sound.out) == (0, True, False)
    assert "it accepts tasks and starts them" in sound.out


def test_it_says_what_is_wrong_and_changes_nothing(cli: Command, project: Path, used: str) -> None:
    """Exit code 1; what it would do is beside each."""
    data = project / "data"
    (project / "handlers" / "broken.py").write_text("def (")
    (data / "tasks" / "torn.json").write_text("{")
    (data / "uploads" / "ann" / "nobody").mkdir(parents=True)
    data.chmod(0o777)
    before = listing(data)
    said = cli("doctor", "--json")
    assert (said.code, listing(data)) == (1, before)
    assert wrong(said.json) == {
        "data": "take from others the right to write",
        "tasks": "move them to corrupt/, with the reason",
        "orphans": "move them to trash/",
        "handlers": "",
    }
    assert "; --repair would move them to trash/" in cli("doctor").out


def test_a_repair_mends_what_it_can_and_deletes_nothing(cli: Command, project: Path, used: str) -> None:
    """What was somebody's is in corrupt/ or trash/ with its reason, and the rest is as if nothing had been."""
    data = project / "data"
    other = cli("submit", "count", "note.txt", "--wait", "--json").json["id"]
    (data / "tasks" / f"{used}.json").write_text("{")
    (data / "tasks" / "letter.txt").write_text("mine")
    (data / "users" / "ann.json").mkdir()
    (data / "logs" / "x.jsonl").write_text("?")
    shutil.rmtree(data / "users")
    (data / "users").write_text("no directory")
    (data / "index.db").write_bytes(b"noise" * 2000)
    data.chmod(0o777)
    mended = cli("doctor", "--repair", "--json")
    assert wrong(mended.json) == {"corrupt": ""}
    assert {one["check"] for one in mended.json["mended"]} == {"data", "directories", "tasks", "index", "orphans"}
    aside = {path.name for folder in ("corrupt", "trash") for path in (data / folder).iterdir()}
    lost = {f"{used}.json", "letter.txt", "users", f"uploads.local.{used}", f"results.local.{used}", "logs.x.jsonl"}
    assert lost | {f"{name}.reason.txt" for name in lost} <= aside
    assert (data / "trash" / f"uploads.local.{used}" / "note.txt").read_text() == "12345"
    assert (cli("show", used).code, cli("show", other).code, cli("ls", "--count").out.strip()) == (3, 0, "1")


def test_nothing_is_mended_under_a_running_owner(cli: Command, serving: Serving, project: Path) -> None:
    """It is refused and says who is in the way; looking is allowed."""
    (project / "data" / "uploads" / "ann" / "nobody").mkdir(parents=True)
    os.utime(project / "data" / "uploads" / "ann" / "nobody", (0, 0))
    refused = cli("doctor", "--repair")
    assert (refused.code, "nothing is mended while it runs" in refused.err) == (4, True)
    assert wrong(cli("doctor", "--json").json) == {"orphans": "move them to trash/"}
    assert (project / "data" / "uploads" / "ann" / "nobody").is_dir()


def test_a_clock_that_is_behind_is_seen(cli: Command, project: Path, used: str) -> None:
    """By what was written last."""
    tomorrow = time.time() + 86400
    os.utime(project / "data" / "VERSION", (tomorrow, tomorrow))
    (found,) = (one for one in cli("doctor", "--json").json["findings"] if not one["ok"])
    assert (found["check"], "behind what was written last" in found["text"]) == ("clock", True)


def test_too_little_room_is_seen(cli: Command, project: Path, used: str) -> None:
    """Below the floors nothing is accepted."""
    config = project / "config.yaml"
    config.write_text(config.read_text().replace("min_free_bytes: 0", "min_free_bytes: 900TB"))
    assert wrong(cli("doctor", "--json").json) == {"space": ""}


def test_a_folder_without_data_says_so(cli: Command, project: Path) -> None:
    """And how to get some."""
    (found,) = cli("doctor", "--json").json["findings"]
    assert (found["ok"], "`runner serve`" in found["text"]) == (False, True)


@pytest.mark.parametrize(("version", "code"), [("7", 4), ("nonsense", 4), ("1", 0)])
def test_a_newer_format_is_refused_by_every_command(
    cli: Command, project: Path, used: str, version: str, code: int
) -> None:
    """With a message and an exit code, and nothing is touched; what says no format can be mended."""
    (project / "data" / "VERSION").write_text(version)
    before = listing(project / "data")
    refused = cli("ls", "--json")
    assert (refused.code, refused.code == 0 or refused.json["error"]["code"] == "unknown_format") == (code, True)
    assert code == 0 or listing(project / "data") == before
    mended = cli("doctor", "--repair", "--json").json
    assert wrong(mended).keys() == ({"format"} if version == "7" else {"corrupt"} if code else set())
    assert (project / "data" / "VERSION").read_text().strip() == ("7" if version == "7" else "1")
