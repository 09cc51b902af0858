import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runner.context import Cancelled, Fail, Retry
from runner.errors import InvalidSubmission
from tests.handlers.attempts import Attempt
from tests.handlers.webui import WebUIServer, serving

TXT2IMG, OPTIONS, PROGRESS, INTERRUPT = (
    f"/sdapi/v1/{name}" for name in ("txt2img", "options", "progress", "interrupt")
)
ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def webui() -> Iterator[WebUIServer]:
    """A WebUI that draws at once."""
    with serving() as server:
        yield server


def _attempt(folder: Path, webui: WebUIServer, *inputs: Path, **settings: Any) -> Attempt:
    config = {"url": webui.url, "poll_seconds": 0.05, "pause_seconds": 0, **settings}
    return Attempt(folder, "generate", inputs, config=config)


def test_each_image_is_an_output_with_its_seed(tmp_path: Path, webui: WebUIServer) -> None:
    """Two loops of two batches of two are eight images, and a fixed seed goes on from loop to loop."""
    attempt = _attempt(tmp_path, webui)

    result = attempt.run(prompt="a boat", batch_size=2, batch_count=2, loop_count=2, seed=5, width=64, height=128)

    assert (result["count"], result["loops"], result["seeds"]) == (8, 2, [*range(5, 13)])
    assert result["images"] == [f"generated_{ID}_{number:03}.png" for number in range(1, 9)]
    with Image.open(attempt.output_dir / result["images"][7]) as image:
        assert (image.size, image.getpixel((0, 0))) == ((64, 128), (12, 0, 128))


def test_the_request_says_what_was_asked_for(tmp_path: Path, webui: WebUIServer) -> None:
    """Model, VAE and CLIP hold for this request only, LoRAs are part of the prompt."""
    _attempt(tmp_path, webui).run(
        prompt="a boat",
        negative_prompt="a car",
        model="other.safetensors",
        vae="vae.pt",
        loras=[{"name": "ink", "weight": 0.8}, {"name": "sea"}],
        steps=30,
        enable_hr=True,
    )

    (request,) = webui.requests(TXT2IMG)
    assert request["prompt"] == "a boat <lora:ink:0.8> <lora:sea:1>"
    assert request["override_settings"] == {
        "CLIP_stop_at_last_layers": 2,
        "sd_model_checkpoint": "other.safetensors",
        "sd_vae": "vae.pt",
    }
    wanted = {
        "negative_prompt": "a car",
        "steps": 30,
        "sampler_name": "DPM++ 2M Karras",
        "seed": -1,
        "hr_scale": 2.0,
        "override_settings_restore_afterwards": True,
        "send_images": True,
    }
    assert {key: request[key] for key in wanted} == wanted


@pytest.mark.parametrize(("format", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_an_image_is_called_what_it_is(tmp_path: Path, webui: WebUIServer, format: str, suffix: str) -> None:
    """Its first bytes tell, whatever the WebUI was set to."""
    webui.format = format

    (name,) = _attempt(tmp_path, webui).run(prompt="a boat", width=64, height=64)["images"]

    assert name.endswith(f"_001.{suffix}")


def test_a_grid_of_all_images_is_none_of_them(tmp_path: Path, webui: WebUIServer) -> None:
    """The WebUI may put one before the images."""
    webui.grid = True

    result = _attempt(tmp_path, webui).run(prompt="a boat", batch_count=3, width=64, height=64)

    assert (result["count"], result["seeds"]) == (3, [1000, 1001, 1002])


def test_a_dropped_text_is_a_prompt(tmp_path: Path, webui: WebUIServer) -> None:
    """So an inbox can be drawn from."""
    text = tmp_path / "boat.txt"
    text.write_text("a red boat\n")

    _attempt(tmp_path, webui, text).run()

    assert webui.requests(TXT2IMG)[0]["prompt"] == "a red boat"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00"])
def test_without_a_prompt_there_is_nothing_to_draw(tmp_path: Path, webui: WebUIServer, content: bytes | None) -> None:
    """And no other attempt would find one."""
    text = tmp_path / "boat.txt"
    if content is not None:
        text.write_bytes(content)

    with pytest.raises(Fail) as failed:
        _attempt(tmp_path, webui, *([] if content is None else [text])).run()

    assert failed.value.code == "no_prompt"


def test_the_webuis_progress_is_the_tasks(tmp_path: Path, webui: WebUIServer) -> None:
    """At half of the first of two loops a quarter is done; and nothing ever goes back."""
    webui.hold()
    attempt = _attempt(tmp_path, webui)
    attempt.on_progress = lambda it: webui.released.set() if it.said[-1].percentage > 20 else None

    attempt.run(prompt="a boat", loop_count=2, width=64, height=64)

    shares = [said.percentage for said in attempt.said]
    assert shares == sorted(shares)
    halfway = next(said for said in attempt.said if said.percentage > 20)
    assert halfway.message == "loop 1 of 2: step 10 of 20, about 3 s left"


def test_a_cancelled_one_interrupts_the_webui(tmp_path: Path, webui: WebUIServer) -> None:
    """It would go on drawing for nobody."""
    webui.hold()
    attempt = _attempt(tmp_path, webui)
    attempt.on_progress = lambda it: it.cancel() if it.said[-1].percentage > 20 else None

    with pytest.raises(Cancelled):
        attempt.run(prompt="a boat")

    assert webui.interrupted.is_set()
    assert not list(tmp_path.glob("outputs/*"))


def test_nothing_is_interrupted_when_nothing_is_drawn(tmp_path: Path, webui: WebUIServer) -> None:
    """Whatever the WebUI does then is somebody else's."""
    attempt = _attempt(tmp_path, webui, pause_seconds=600)
    attempt.on_progress = lambda it: it.cancel() if it.said[-1].message.startswith("loop 2") else None

    with pytest.raises(Cancelled):
        attempt.run(prompt="a boat", loop_count=2, width=64, height=64)

    assert (len(webui.requests(TXT2IMG)), webui.requests(INTERRUPT)) == (1, [])


def test_a_webui_that_is_not_there_is_tried_again_later(tmp_path: Path, webui: WebUIServer) -> None:
    """The message says where it was looked for, and what to do."""
    with pytest.raises(Retry, match="no WebUI answers at http://127.0.0.1:9 .*--api") as failed:
        _attempt(tmp_path, webui, url="http://127.0.0.1:9").run(prompt="a boat")

    assert failed.value.code == "webui_unavailable"


@pytest.mark.parametrize(
    ("path", "status", "answer", "kind", "code", "words"),
    [
        (OPTIONS, 404, {"detail": "Not Found"}, Retry, "webui_unavailable", "without --api"),
        (OPTIONS, 200, b"<html>", Retry, "webui_unavailable", "is no WebUI"),
        (OPTIONS, 401, {"detail": "no"}, Fail, "webui_refused", "auth"),
        (TXT2IMG, 422, {"detail": "no such sampler"}, Fail, "webui_rejected", "no such sampler"),
        (TXT2IMG, 500, {"error": "OutOfMemoryError", "errors": "CUDA out of memory"}, Retry, "webui_error", "CUDA out"),
        (TXT2IMG, 500, b"", Retry, "webui_error", "no reason given"),
        (TXT2IMG, 200, {"images": []}, Fail, "no_images", "no image"),
        (TXT2IMG, 200, ["nonsense"], Fail, "no_images", "no image"),
    ],
)
def test_what_may_pass_is_tried_again_and_what_will_not_fails(
    tmp_path: Path,
    webui: WebUIServer,
    path: str,
    status: int,
    answer: Any,
    kind: type[Retry] | type[Fail],
    code: str,
    words: str,
) -> None:
    """A graphics card that is full now may be free later; an unknown sampler stays unknown."""
    webui.answers[path] = [(status, answer)]

    with pytest.raises(kind, match=words) as failed:
        _attempt(tmp_path, webui).run(prompt="a boat")

    assert isinstance(failed.value, Retry | Fail)
    assert failed.value.code == code


def test_what_is_no_image_is_not_kept(tmp_path: Path, webui: WebUIServer) -> None:
    """A page of text in base64 does not become a png."""
    webui.broken = True

    with pytest.raises(Fail, match="no image"):
        _attempt(tmp_path, webui).run(prompt="a boat")


def test_a_webui_that_hangs_is_given_up(tmp_path: Path, webui: WebUIServer) -> None:
    """A machine that lost its power does not close its connections; it tells no progress either."""
    webui.hold()
    webui.answers[PROGRESS] = [(500, b"")] * 1000

    with pytest.raises(Retry, match="does not tell its progress") as failed:
        _attempt(tmp_path, webui, silence_seconds=1).run(prompt="a boat")

    assert failed.value.code == "webui_unavailable"


def test_the_next_attempt_goes_on_where_the_last_one_failed(tmp_path: Path, webui: WebUIServer) -> None:
    """What took minutes on a graphics card is not drawn twice."""
    webui.answers[TXT2IMG] = [(200, webui.draw(_smallest(7))), (500, b"")]
    wanted = {"prompt": "a boat", "loop_count": 2, "seed": 7, "width": 64, "height": 64}
    with pytest.raises(Retry):
        _attempt(tmp_path, webui).run(**wanted)

    result = _attempt(tmp_path, webui).run(**wanted)

    assert (result["seeds"], [request["seed"] for request in webui.requests(TXT2IMG)]) == ([7, 8], [7, 8, 8])


def _smallest(seed: int) -> dict[str, Any]:
    return {"batch_size": 1, "n_iter": 1, "seed": seed, "width": 64, "height": 64}


def test_each_image_is_listed_as_it_comes(tmp_path: Path, webui: WebUIServer) -> None:
    """Whoever watches sees what there is so far."""
    attempt = _attempt(tmp_path, webui)

    result = attempt.run(prompt="a boat", batch_size=2, width=64, height=64)

    assert {name: file.status for name, file in attempt.files.items()} == dict.fromkeys(result["images"], "completed")


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({"width": 63}, "/payload/width"),
        ({"height": 513}, "/payload/height"),
        ({"steps": 0}, "/payload/steps"),
        ({"seed": -2}, "/payload/seed"),
        ({"loras": [{"name": "a>b"}]}, "/payload/loras/0/name"),
        ({"style": "oil"}, "/payload/style"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_the_door(
    tmp_path: Path, webui: WebUIServer, payload: dict[str, Any], pointer: str
) -> None:
    """With the field that is wrong."""
    with pytest.raises(InvalidSubmission) as refused:
        _attempt(tmp_path, webui).run(**payload)

    assert [problem.pointer for problem in refused.value.problems] == [pointer]


@pytest.mark.parametrize("settings", [{"url": "127.0.0.1:7860"}, {"pol_seconds": 1}, {"poll_seconds": "often"}])
def test_a_wrong_setting_is_named(tmp_path: Path, webui: WebUIServer, settings: dict[str, Any]) -> None:
    """With the place where to mend it."""
    (key,) = settings

    with pytest.raises(Fail, match=f"handlers.generate.config cannot be used: {key}: ") as failed:
        _attempt(tmp_path, webui, **settings).run(prompt="a boat")

    assert failed.value.code == "invalid_config"


def test_a_filesystem_without_hard_links_gets_copies(
    tmp_path: Path, webui: WebUIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory sticks have none."""

    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)

    result = _attempt(tmp_path, webui).run(prompt="a boat", width=64, height=64)

    assert (tmp_path / "outputs" / result["images"][0]).stat().st_nlink == 1
