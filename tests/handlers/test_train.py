import csv
from pathlib import Path
from typing import Any

import pytest

from runner.context import Cancelled, Fail
from runner.errors import InvalidSubmission
from tests.handlers.attempts import Attempt, share, starters
from tests.handlers.pictures import SHAPES, draw_all, pack

for module in ("numpy", "onnxruntime", "PIL"):
    pytest.importorskip(module, reason="needs the extra `ml`")

TYPE = "train"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip with forty pictures of each of three shapes, each in its folder."""
    folder = tmp_path_factory.mktemp("shapes")
    return pack(folder / "shapes.zip", draw_all(folder / "pictures", 40))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> tuple[Attempt, dict[str, Any]]:
    """What came of fitting to it."""
    attempt = Attempt(tmp_path_factory.mktemp("trained"), TYPE, (archive,))
    return attempt, attempt.run()


def test_pictures_that_it_never_saw_are_told_apart(trained: tuple[Attempt, dict[str, Any]]) -> None:
    """The accuracy is that of held-out pictures; they differ in shape, not in colour or place."""
    _, result = trained

    assert result["classes"] == sorted(SHAPES)
    assert (result["pictures"], result["held_out"], result["skipped"]) == (120, 24, 0)
    assert result["accuracy"] >= 0.9
    assert [sum(row) for row in result["confusion"]] == [8, 8, 8]
    right = sum(result["confusion"][place][place] for place in range(3))
    assert result["accuracy"] == pytest.approx(right / 24, abs=0.001)
    assert {name: rates["pictures"] for name, rates in result["per_class"].items()} == dict.fromkeys(SHAPES, 8)


def test_the_model_that_was_saved_is_the_one_that_was_measured(
    tmp_path: Path, trained: tuple[Attempt, dict[str, Any]]
) -> None:
    """`tag` and `classify` load its three files, and it knows new pictures as well."""
    attempt, _ = trained
    parts, open_image = share("_onnx_tagger"), share("_images")["open_image"]
    tagger = parts["OnnxTagger"](attempt.output_dir, 1)

    said = [(tagger.tag(open_image(path))[0], shape) for path, shape in draw_all(tmp_path / "new", 10, seed=9)]

    assert sorted(path.name for path in attempt.output_dir.iterdir()) == ["model.json", "model.onnx", "tags.csv"]
    assert all(sum(shares.values()) == pytest.approx(1, abs=1e-4) for shares, _ in said)
    assert sum(max(shares, key=shares.__getitem__) == shape for shares, shape in said) >= 26


def test_each_epoch_is_reported_until_it_gets_no_better(trained: tuple[Attempt, dict[str, Any]]) -> None:
    """Loss and accuracy by epoch; thirty that bring nothing better are the end."""
    attempt, result = trained
    told = [said for said in attempt.said if said.stage == "fitting"]

    assert len(told) == result["epochs"] < 300
    assert result["epochs"] - result["best_epoch"] == 30
    assert told[0].message.startswith("epoch 1 of at most 300: loss ")
    shares = [said.percentage for said in attempt.said]
    assert shares == sorted(shares)


def test_the_same_pictures_give_the_same_model(tmp_path: Path, archive: Path) -> None:
    """The seed decides what is held out, and there is no other chance in it."""
    results = [Attempt(tmp_path / str(run), TYPE, (archive,)).run(epochs=5, seed=3) for run in range(2)]
    other = Attempt(tmp_path / "other", TYPE, (archive,)).run(epochs=5, seed=4)

    assert results[0] == results[1]
    assert other["loss"] != results[0]["loss"]


def test_single_pictures_say_their_class_by_name(tmp_path: Path) -> None:
    """Over HTTP several files come without folders."""
    pictures = draw_all(tmp_path / "pictures", 4)
    attempt = Attempt(tmp_path, TYPE, tuple(path for path, _ in pictures))

    result = attempt.run(labels={path.name: shape for path, shape in pictures}, epochs=3)

    assert (result["pictures"], result["epochs"], result["classes"]) == (12, 3, sorted(SHAPES))
    with (attempt.output_dir / "tags.csv").open() as table:
        assert [row["name"] for row in csv.DictReader(table)] == sorted(SHAPES)


def test_a_picture_that_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path) -> None:
    """One bad file does not spoil the rest; what is no picture, or hidden, does not count."""
    pictures = draw_all(tmp_path / "pictures", 4)
    for name in ("broken.png", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"\x89PNG no picture")
        pictures.append((tmp_path / name, "disc"))
    attempt = Attempt(tmp_path, TYPE, (pack(tmp_path / "a.zip", pictures),))

    result = attempt.run(epochs=3)

    assert (result["pictures"], result["skipped"]) == (12, 1)
    assert [level for level, _ in attempt.log] == ["warning"]
    assert "broken.png" in attempt.log[0][1]


def _archive_of(folder: Path, each: dict[str, int]) -> Path:
    pictures = [(path, shape) for path, shape in draw_all(folder, 5) if int(path.stem[-1]) < each.get(shape, 0)]
    return pack(folder / "a.zip", pictures)


@pytest.mark.parametrize(
    ("each", "code"),
    [({}, "too_few_classes"), ({"disc": 5}, "too_few_classes"), ({"disc": 5, "comb": 2}, "too_few_pictures")],
)
def test_too_little_to_learn_from_fails_for_good(tmp_path: Path, each: dict[str, int], code: str) -> None:
    """Two classes at least, and of each one to fit to, one to stop by and one to measure with."""
    with pytest.raises(Fail) as caught:
        Attempt(tmp_path, TYPE, (_archive_of(tmp_path / "p", each),)).run()

    assert caught.value.code == code


def test_labels_and_inputs_belong_together(tmp_path: Path, archive: Path) -> None:
    """A picture without a class and a class without a picture are both mistakes."""
    (picture, _), *_ = draw_all(tmp_path / "p", 1)
    for labels in ({}, {"nobody.png": "disc"}):
        with pytest.raises(Fail) as caught:
            Attempt(tmp_path, TYPE, (picture,)).run(labels=labels)
        assert caught.value.code == "wrong_labels"


@pytest.mark.parametrize("stage", ["unpacking", "looking", "fitting"])
def test_a_cancelled_one_stops_in_any_stage(tmp_path: Path, archive: Path, stage: str) -> None:
    """And there is no model."""

    def stop(attempt: Attempt) -> None:
        if attempt.said[-1].stage == stage:
            attempt.context.stop("cancelled")

    attempt = Attempt(tmp_path, TYPE, (archive,), on_progress=stop)
    with pytest.raises(Cancelled):
        attempt.run()

    assert not (tmp_path / "outputs" / "model.onnx").exists()
    assert [said.stage for said in attempt.said].count(stage) == 1


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({"size": 40}, "/payload/size"),
        ({"size": 8192}, "/payload/size"),
        ({"holdout": 0}, "/payload/holdout"),
        ({"epochs": 0}, "/payload/epochs"),
        ({"learning_rate": 2}, "/payload/learning_rate"),
        ({"labels": {"a.png": "a/b"}}, "/payload/labels/a.png"),
    ],
)
def test_a_wrong_payload_is_refused_with_a_pointer_to_the_fault(payload: dict[str, Any], pointer: str) -> None:
    """Nothing is stored for it."""
    with pytest.raises(InvalidSubmission) as caught:
        starters().get(TYPE).validate(payload)

    assert [problem.pointer for problem in caught.value.problems] == [pointer]


def test_what_is_written_is_onnx() -> None:
    """The runtime computes what NumPy does, for graphs that branch, too."""
    import numpy as np
    import onnxruntime

    graph = share("_onnx")["Graph"]((0, 3))
    left = graph.add("Mul", [np.full(1, 2, np.float32)])
    right = graph.add("Relu", inputs=["image"])
    graph.add("Concat", attributes={"axis": 1}, inputs=[left, right])
    numbers = np.array([[1, -2, 300], [-4, 5, 6]], np.float32)

    (said,) = onnxruntime.InferenceSession(graph.write(6)).run(None, {"image": numbers})

    assert said.tolist() == np.hstack([numbers * 2, numbers.clip(0)]).tolist()
