"""Handlers that talk to other servers, as a runner runs them: stopped in the middle, and gone on with."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from PIL import Image

from runner.intake.admission import Arrival
from runner.task import Status, Task
from tests.handlers.attempts import FOLDER
from tests.handlers.gallery import GallerySite
from tests.handlers.webui import serving
from tests.rig import LIMIT_SECONDS, Rig, opened
from tests.site import Answer

SLOW = Answer(200, b"x" * 10_000, drip=True)


def _running(root: Path, handler: str, **options: Any) -> AbstractContextManager[Rig]:
    settings: dict[str, Any] = {"handlers_dir": FOLDER, f"handlers__{handler}": options}
    return opened(root, **settings)


def _crawling(root: Path, site: GallerySite) -> AbstractContextManager[Rig]:
    return _running(root, "crawl", config={"base_url": site.url(""), "outbound": {"networks": ["127.0.0.0/8"]}})


def _submit_picture(rig: Rig) -> Task:
    path = rig.root / "boat.png"
    Image.new("RGB", (40, 20), "red").save(path)
    return rig.submit("tag", inputs=(Arrival(path, "boat.png"),))


def _await_path(site: GallerySite, path: str) -> None:
    """Somebody has asked for it."""
    count = 1
    while path not in site.paths():
        count = len(site.wait_for(count)) + (path not in site.paths())


def test_a_webui_that_comes_back_gets_the_task_that_waits_for_it(tmp_path: Path) -> None:
    """The first attempt finds one without its API, the second one draws."""
    with (
        serving() as webui,
        _running(tmp_path, "generate", config={"url": webui.url}, backoff={"base": 60, "jitter": 0}) as rig,
    ):
        webui.answers["/sdapi/v1/options"] = [(404, {"detail": "Not Found"})]
        task = rig.submit("generate", prompt="a boat", width=64, height=64)
        waiting = rig.when(task, lambda now: now.run_after is not None)
        assert waiting.error is not None
        assert (waiting.error.code, waiting.error.retryable) == ("webui_unavailable", True)
        rig.advance(61)
        done = rig.until(task)

    assert (done.status, done.attempt, len(done.output_files)) == (Status.COMPLETED, 2, 1)


def test_a_cancelled_task_leaves_the_webui_to_others(tmp_path: Path) -> None:
    """It ends as cancelled, the WebUI was told, and the next task draws."""
    with serving() as webui:
        webui.hold()
        with _running(tmp_path, "generate", config={"url": webui.url, "poll_seconds": 0.1}) as rig:
            task, following = (rig.submit("generate", prompt="a boat", width=64, height=64) for _ in range(2))
            webui.await_request("/sdapi/v1/txt2img")
            assert rig.it.get(following.id).status is Status.PENDING
            rig.it.cancel(task.id)

            assert rig.until(task).status is Status.CANCELLED
            assert webui.interrupted.wait(LIMIT_SECONDS)
            webui.released.set()
            assert rig.until(following).status is Status.COMPLETED


def test_a_crawl_outlives_its_runner(tmp_path: Path) -> None:
    """The next owner fetches what the last one did not, in a process of its own."""
    site = GallerySite({"1": 1, "2": 1, "3": 1})
    site.moods = {"/img/2_p0.png": [SLOW]}
    with site.serving(), _crawling(tmp_path, site) as rig:
        task = rig.submit("crawl", payload={"type": "tag", "query": "sea", "delay": 0})
        _await_path(site, "/img/2_p0.png")
        rig.close(grace_seconds=0)
        site.asked.clear()
        rig.open()
        done = rig.until(task)

        assert (done.status, done.result["images_downloaded"]) == (Status.COMPLETED, 3)
        assert site.paths() == ["/img/2_p0.png", "/img/3_p0.png"]
        assert {file.status for file in done.files} == {"completed"}


def test_a_crawl_stops_in_the_middle_of_a_file(tmp_path: Path) -> None:
    """Whatever the server does."""
    site = GallerySite({"1": 1})
    site.moods = {"/img/1_p0.png": [SLOW]}
    with site.serving(), _crawling(tmp_path, site) as rig:
        task = rig.submit("crawl", payload={"type": "illust", "illust_id": "1", "delay": 0})
        _await_path(site, "/img/1_p0.png")
        rig.it.cancel(task.id)

        assert rig.until(task).status is Status.CANCELLED


def test_pictures_are_tagged_until_somebody_cancels(tmp_path: Path) -> None:
    """One task is done in a process, the other one is cancelled while the WebUI looks."""
    with serving() as webui, _running(tmp_path, "tag", config={"url": webui.url}) as rig:
        done = rig.until(_submit_picture(rig))
        webui.hold()
        task = _submit_picture(rig)
        webui.await_request("/tagger/v1/interrogate", count=2)
        rig.it.cancel(task.id)

        assert (done.status, done.result["outputs"]) == (Status.COMPLETED, ["boat.txt"])
        assert rig.until(task).status is Status.CANCELLED
