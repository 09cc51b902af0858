"""A task made through one front end is there for all others: the dialects, the API, the command line."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from tests.contract import mediacraft
from tests.e2e.conftest import Serving, command_line, lay_out

CRAWL = '''

@handler(retries=0)
def crawl(ctx: Context, type: str, query: str = "") -> dict[str, int]:
    """Fetch."""
    return {"images_found": 0}
'''


def test_a_task_is_there_for_every_front_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the same status, whoever made it and whoever asks."""
    lay_out(tmp_path).joinpath("handlers", "samples.py").write_text(mediacraft.HANDLERS + CRAWL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    cli = command_line(capfd)
    server = Serving(tmp_path)
    address = server.await_line(r"serving (http://\S+)")[1]
    try:
        with httpx2.Client(base_url=address, timeout=20) as browser, httpx2.Client(base_url=address) as page:
            browser.get("/api/session/init")
            film = mediacraft.started(browser)
            crawl = page.post("/api/crawl/create", json={"type": "tag", "query": "cats"}).json()["data"]["uuid"]
            mine = cli("submit", "crawl", "--set", "type=tag", "--wait", "--json").json["id"]
            for task_id in (film, crawl):
                cli("watch", task_id)
                assert cli("show", task_id, "--json").json["status"] == "completed"
                assert page.get(f"/api/v1/tasks/{task_id}").json()["status"] == "completed"
            listed = {task["uuid"]: task["status"] for task in page.post("/api/tasks", json={}).json()["data"]["tasks"]}
            assert listed == dict.fromkeys((film, crawl, mine), "completed")
            ended = page.get("/codebase-embedder/api/v1/tasks/completed").json()["data"]["tasks"]
            assert {task["taskId"] for task in ended} == {film, crawl, mine}
            assert [task["task_id"] for task in browser.get("/api/user/tasks").json()["data"]["tasks"]] == [film]
    finally:
        server.stop()
