"""Fit a small image classifier to a folder of pictures for each class.

What is seen in a picture is fixed: how much of which colours and edges lies in each of 16 fields. Only the way from
there to the classes is fitted. That needs few pictures and some seconds; it tells apart what differs in colours and
shapes, and is no match for a large network.

The outputs together are a model that `classify` and `tag` load: `model.onnx` (pictures in, shares of the classes out),
`tags.csv` (the classes) and `model.json` (how a picture is prepared).
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from runner import Context, Fail, handler

from ._archives import is_archive, unpack
from ._images import open_image
from ._onnx import Graph
from ._onnx_tagger import fit as fit_picture
from ._softmax import Epoch, Head, Recipe, Split, confuse, draw_eye, fit, measure, rate, split

if TYPE_CHECKING:
    from ._softmax import Indices, Numbers

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
LEAST_PICTURES = 3
BATCH = 16
ClassName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f/]+$")]


class Sample(NamedTuple):
    """A picture and its class."""

    path: Path
    label: str


@handler(timeout="2h", retries=1, isolation="process", extra="ml", requires=("numpy", "onnxruntime", "PIL"))
def train(  # noqa: PLR0913 - each is a field of the form
    ctx: Context,
    labels: Annotated[
        dict[str, ClassName] | None,
        Field(description="The class of each input by its file name, where the inputs are pictures and no archive."),
    ] = None,
    size: Annotated[int, Field(ge=32, le=256, multiple_of=16, description="Pictures are brought to this size.")] = 64,
    holdout: Annotated[
        float, Field(ge=0.05, le=0.5, description="The share of pictures that is kept to measure the accuracy with.")
    ] = 0.2,
    epochs: Annotated[
        int, Field(ge=1, le=10_000, description="How often all pictures are gone through at most.")
    ] = 300,
    patience: Annotated[
        int, Field(ge=1, le=10_000, description="It ends when so many epochs have brought nothing better.")
    ] = 30,
    learning_rate: Annotated[float, Field(gt=0, le=1, description="How large the steps are.")] = 0.01,
    regularization: Annotated[
        float, Field(ge=0, le=10, description="How much large weights are held down; more for fewer pictures.")
    ] = 0.1,
    seed: Annotated[int, Field(ge=0, le=2**32 - 1, description="Decides which pictures are held out.")] = 0,
) -> dict[str, object]:
    """Fit a small image classifier to pictures sorted by class."""
    found = list(gather(ctx, labels or {}))
    require_enough([sample.label for sample in found])
    eye, count = draw_eye(size)
    features, samples = look(ctx, eye.write(count), size, found)
    names = require_enough([sample.label for sample in samples])
    answers = number_answers(samples, names)
    parts = split(answers, holdout, seed)
    recipe = Recipe(epochs, patience, learning_rate, regularization)
    head = fit(features, answers, parts, recipe, lambda epoch: tell(ctx, epoch, recipe))
    save(ctx, eye, head, names, size)
    return describe(head, features, answers, parts, names) | {"skipped": len(found) - len(samples)}


def gather(ctx: Context, labels: Mapping[str, str]) -> Iterator[Sample]:
    """All pictures: in an archive the folder of each is its class, of others `labels` says it."""
    if strange := labels.keys() - {path.name for path in ctx.inputs}:
        raise Fail(f"no input is called {', '.join(sorted(strange)[:5])}", code="wrong_labels")
    for number, path in enumerate(ctx.inputs):
        ctx.progress(0, path.name, stage="unpacking")
        if path.name in labels:
            yield Sample(path, labels[path.name])
        elif is_archive(path):
            yield from open_archive(ctx, path, ctx.scratch / str(number))
        else:
            raise Fail(f"{path.name} is no archive, and labels does not say its class", code="wrong_labels")


def open_archive(ctx: Context, archive: Path, target: Path) -> Iterator[Sample]:
    """The pictures of an archive; what lies in no folder, and what is hidden, is left out."""
    for name in unpack(archive, target, check=ctx.check):
        hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
        if name.suffix.lower() in SUFFIXES and len(name.parts) > 1 and not hidden:
            yield Sample(target / name, name.parent.name)


def require_enough(labels: Sequence[str]) -> list[str]:
    """The classes in order, if there are two and enough pictures of each."""
    counts = Counter(labels)
    if len(counts) < 2:
        raise Fail(
            f"it takes two classes or more, each a folder of pictures; found {len(counts)}", code="too_few_classes"
        )
    name, count = min(counts.items(), key=lambda item: item[1])
    if count < LEAST_PICTURES:
        text = f"{name!r} has {count} pictures that can be read, it takes {LEAST_PICTURES} of each class"
        raise Fail(text, code="too_few_pictures")
    return sorted(counts)


def look(ctx: Context, model: bytes, size: int, samples: Sequence[Sample]) -> "tuple[Numbers, list[Sample]]":
    """What is seen in each picture that can be read, and those; one that cannot is a warning."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    seen, kept = [], []
    for start in range(0, len(samples), BATCH):
        ctx.progress(5 + 55 * start / len(samples), f"{start} of {len(samples)} pictures", stage="looking")
        batch = [(sample, read(ctx, sample.path, size)) for sample in samples[start : start + BATCH]]
        good = [(sample, pixels) for sample, pixels in batch if pixels is not None]
        if good:
            seen.append(session.run(None, {"image": np.stack([pixels for _, pixels in good])})[0])
            kept += [sample for sample, _ in good]
    return (np.concatenate(seen) if seen else np.zeros((0, 0), np.float32)), kept


def read(ctx: Context, path: Path, size: int) -> "Numbers | None":
    """The picture as the model takes it, `[3, size, size]`."""
    import numpy as np

    ctx.check()
    try:
        picture = fit_picture(open_image(path), size, "stretch")
    except Fail as failure:
        ctx.log.warning("left out: %s", failure)
        return None
    return np.ascontiguousarray(np.asarray(picture, np.float32).transpose(2, 0, 1))


def number_answers(samples: Sequence[Sample], names: Sequence[str]) -> "Indices":
    """The class of each picture as a number."""
    import numpy as np

    places = {name: place for place, name in enumerate(names)}
    return np.array([places[sample.label] for sample in samples], np.intp)


def tell(ctx: Context, epoch: Epoch, recipe: Recipe) -> None:
    """Say how far the fitting is."""
    ctx.check()
    text = f"epoch {epoch.number} of at most {recipe.epochs}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.1%}"
    ctx.progress(60 + 39 * epoch.number / recipe.epochs, text, stage="fitting")


def save(ctx: Context, eye: Graph, head: Head, names: Sequence[str], size: int) -> None:
    """Write the model; its parts have the names that those who load it look for."""
    eye.add("Gemm", [head.weights, head.offsets])
    eye.add("Softmax")
    ctx.output("model.onnx").write_bytes(eye.write(len(names)))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [("tag_id", "name", "category"), *((number, name, 0) for number, name in enumerate(names))]
    )
    ctx.output("tags.csv").write_text(table.getvalue(), encoding="utf-8")
    preparation = {"size": size, "fit": "stretch", "channels": "rgb"}
    ctx.output("model.json").write_text(json.dumps(preparation) + "\n", encoding="utf-8")


def describe(head: Head, features: "Numbers", answers: "Indices", parts: Split, names: Sequence[str]) -> dict[str, Any]:
    """The result of the task; the accuracy is that of pictures which the fitting has not seen."""
    shares = head.judge(features[parts.held_out])
    table = confuse(shares, answers[parts.held_out], len(names))
    fitted = measure(0, head.judge(features[parts.fitted]), answers[parts.fitted])
    held_out = measure(0, shares, answers[parts.held_out])
    return {
        "classes": list(names),
        "pictures": len(answers),
        "held_out": len(parts.held_out),
        "accuracy": round(held_out.accuracy, 4),
        "loss": round(held_out.loss, 4),
        "training_accuracy": round(fitted.accuracy, 4),
        "epochs": head.epochs,
        "best_epoch": head.best.number,
        "per_class": rate(table, names),
        "confusion": table,
        "output": "model.onnx",
    }
