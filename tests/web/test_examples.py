"""The examples of `docs/http.md` work as they stand there: each is run against a real runner, with real curl."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.web.conftest import Served, serve
from tests.web.test_live import connected, hear, hear_until
from tests.web.test_tasks import TASKS, finished, submit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
BLOCKS = [dedent(block) for block in re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", PAGE, re.MULTILINE)]
COMMANDS = [command for block in BLOCKS for command in re.findall(r"^curl (?:.*\\\n)*.*$", block, re.MULTILINE)]
MESSAGES = [block for block in BLOCKS if block.startswith('{"action"')]
SCRIPTS = [block for block in BLOCKS if block.startswith("from runner")]
PROBLEMS = [block for block in BLOCKS if block.startswith('{"type": "about:blank"')]

RESIZE = "from runner import handler\n\n@handler()\ndef resize(ctx, width: int) -> None:\n    'Resize.'\n"


@dataclass(frozen=True)
class Desk:
    """Where somebody sits who tries the examples: a runner with the starter set, and a film beside its `data/`."""

    served: Served
    folder: Path

    def task_for(self, command: str) -> str:
        """The id of a task to which that can be done."""
        if "-X DELETE http://runner/api/v1/tokens/ann" in command:
            self.served.socket.post("/api/v1/tokens", json={"name": "ann"})
        elif '{"name": "ann"}' in command:
            self.served.socket.delete("/api/v1/tokens/ann")
        if "/cancel" in command:
            return str(submit(self.served, "checksum", delay="1h")["id"])
        if "/inputs/" in command:
            return str(submit(self.served, "checksum", draft=True)["id"])
        if "/start" in command:
            draft = submit(self.served, "checksum", draft=True)["id"]
            self.served.tcp.put(f"{TASKS}/{draft}/inputs/a.txt", content=b"1")
            return str(draft)
        if "/retry" in command:
            return str(finished(self.served, submit(self.served, "fail")["id"])["id"])
        return self.completed()

    def completed(self) -> str:
        """The id of a task that has completed."""
        with (self.folder / "holiday.mp4").open("rb") as film:
            made = self.served.tcp.post(TASKS, data={"type": "checksum"}, files={"file": ("holiday.mp4", film)})
        return str(finished(self.served, made.json()["id"])["id"])

    def here(self, text: str) -> str:
        """An example as it has to be said here."""
        said = text.replace("/home/ann/", f"{self.folder}/").replace("curl -", "curl --fail-with-body -m 30 -S -")
        return re.sub(r"(localhost|127\.0\.0\.1):8080", rf"\1:{self.served.port}", said)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "handlers").mkdir()
    for name in ("checksum.py", "_naming.py"):
        shutil.copy(ROOT / "handlers" / name, folder / "handlers")
    (folder / "handlers" / "resize.py").write_text(RESIZE)
    (folder / "holiday.mp4").write_bytes(b"not really a film")
    with serve(folder) as served:
        yield Desk(served, folder)


def test_every_example_is_run_by_one_of_these_tests() -> None:
    """What is written in another shape has to be given its test."""
    known = [*MESSAGES, *SCRIPTS, *PROBLEMS]
    assert [block for block in BLOCKS if block not in known and not block.startswith("curl ")] == []
    assert len(COMMANDS) == PAGE.count("    curl ")
    assert (len(SCRIPTS), len(PROBLEMS), len(MESSAGES)) == (1, 1, 1)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", COMMANDS)
def test_curl_does_what_the_page_says(desk: Desk, command: str) -> None:
    """It succeeds, and what it prints is JSON, lines of JSON, or a stream that ends."""
    said = desk.here(command).replace("<id>", desk.task_for(command))
    done = subprocess.run(["bash", "-c", said], cwd=desk.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{said}\n{done.stdout}{done.stderr}"
    if "curl -N" in command:
        assert "event: done" in done.stdout
    elif " -O " not in command:
        assert [json.loads(line) for line in done.stdout.splitlines()]


def test_the_script_of_the_page_runs(desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """It submits, tells what happens, and has a result."""
    monkeypatch.chdir(desk.folder)
    exec(compile(desk.here(SCRIPTS[0]), "docs/http.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("progress ") for line in printed)
    assert "'size_bytes': 17" in printed[-1]


def test_the_messages_of_the_page_are_understood(desk: Desk) -> None:
    """Each is answered; what is told back has the members that the page shows."""
    task_id = desk.completed()
    shown = {
        event: set(re.findall(r'"(\w+)":', line))
        for line in re.findall(r'^ +\{"event".*$', PAGE, re.MULTILINE)
        for event in re.findall(r'"event": "(\w+)"', line)
    }
    heard: dict[str, dict[str, Any]] = {}
    with connected(desk.served) as socket:
        for message in re.findall(r'\{"action"[^{}]*\}', MESSAGES[0]):
            socket.send_text(message.replace("…", task_id))
            wanted = "unsubscribed" if "unsubscribe" in message else "subscribed"
            heard |= {one["event"]: one for one in hear_until(socket, wanted)}
        socket.send_text(json.dumps({"action": "subscribe", "task_ids": [task_id, "nothing"]}))
        while not {"error", "done"} <= heard.keys():
            said = hear(socket)
            heard[said["event"]] = said
    for event, members in shown.items():
        assert members <= set(heard[event]) | set(heard[event]["data"]), event


def test_a_refusal_is_as_the_page_shows_it(desk: Desk) -> None:
    """Word by word, but for the id of the request."""
    shown = json.loads(PROBLEMS[0])
    problem = desk.served.tcp.post(TASKS, json={"type": "resize", "payload": {"width": []}}).json()
    assert problem | {"request_id": ""} == shown | {"request_id": ""}
