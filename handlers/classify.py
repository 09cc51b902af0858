"""Say what files are, by their content: as a table, or sorted into folders.

Magika knows some two hundred types, by a small neural network that looks at the bytes. A model that `train` made, or
any other that `tag` takes, says instead which of its classes a picture shows.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pydantic import AfterValidator, Field

from runner import Context, Fail, FileState, handler

from ._archives import is_archive, unpack
from ._images import MAX_PIXELS, open_image
from ._naming import derive_name, name_of
from ._onnx_tagger import INVALID_MODEL, OnnxTagger
from ._settings import Settings, read_settings

UNKNOWN, UNREADABLE = "unknown", "unreadable"
BATCH, MAX_STATES = 16, 1000
COPY_BYTES = 1 << 20


def require_absolute(folder: Path) -> Path:
    """The folder, if its path does not depend on where we happen to run."""
    if not folder.expanduser().is_absolute():
        raise ValueError("must be an absolute path")
    return folder.expanduser()


class ClassifySettings(Settings):
    """The models of this machine by their names, and limits."""

    models: dict[str, Annotated[Path, AfterValidator(require_absolute)]] = Field(default={})
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    max_pixels: Annotated[int, Field(ge=1)] = MAX_PIXELS


class Item(NamedTuple):
    """A file, and the name by which its owner knows it."""

    name: str
    path: Path


class Verdict(NamedTuple):
    """What a file is: a class and how sure that is, 0 to 1; and what content of that type is like."""

    label: str
    score: float
    group: str = ""
    mime_type: str = ""
    description: str = ""


class Judge(Protocol):
    """Somebody who knows classes of files."""

    def judge(self, paths: Sequence[Path]) -> list[Verdict]:
        """What each of them is."""


@handler(timeout="2h", retries=1, isolation="process", extra="ml", requires=("magika", "numpy", "onnxruntime", "PIL"))
def classify(
    ctx: Context,
    model: Annotated[
        str, Field(max_length=200, description="A configured model that tells pictures apart; empty: types of content.")
    ] = "",
    make: Annotated[
        Literal["table", "folders"], Field(description="folders: a zip with a folder for each class; or only a table.")
    ] = "table",
    by: Annotated[
        Literal["group", "label"],
        Field(
            description="Folders by kind, such as code or image, or by type, such as python; a model has types only."
        ),
    ] = "group",
    threshold: Annotated[
        float, Field(ge=0, le=1, description="A class that is less sure than that counts as unknown.")
    ] = 0.0,
    archives: Annotated[
        Literal["open", "keep"], Field(description="open: the files inside of zip and tar archives are looked at.")
    ] = "open",
) -> dict[str, object]:
    """Say what files are, by their content, in a table or sorted into folders."""
    if not ctx.inputs:
        raise Fail("classify takes one file or more", code="wrong_inputs")
    judge = choose_judge(ctx, model)
    items = list(gather(ctx)) if archives == "open" else [Item(path.name, path) for path in ctx.inputs]
    verdicts = [doubt(verdict, threshold) for verdict in look(ctx, judge, items)]
    classes = [verdict.group if by == "group" and not model else verdict.label for verdict in verdicts]
    stem = Path(name_of(ctx)).stem
    table = ctx.output(derive_name(stem, "_classes.csv"))
    table.write_text(tabulate(items, verdicts), encoding="utf-8", newline="")
    result = {"files": len(items), "classes": dict(Counter(classes).most_common()), "table": table.name}
    if make == "table":
        return result | {"output": table.name}
    sorted_name = derive_name(stem, "_sorted.zip")
    sort(ctx, items, classes, ctx.output(sorted_name))
    return result | {"output": sorted_name}


def choose_judge(ctx: Context, model: str) -> Judge:
    """A task names a model that is configured, never a path."""
    settings = read_settings(ctx, ClassifySettings)
    if not model:
        return ContentJudge()
    if model not in settings.models:
        known = ", ".join(settings.models) or "none; name one in handlers.classify.config.models"
        raise Fail(f"no model {model!r}; there are: {known}", code="unknown_model")
    return PictureJudge(ctx, OnnxTagger(settings.models[model], settings.threads), settings.max_pixels)


def gather(ctx: Context) -> Iterator[Item]:
    """The inputs, and instead of archives what is in them."""
    for number, path in enumerate(ctx.inputs):
        ctx.progress(0, path.name, stage="unpacking")
        if not is_archive(path):
            yield Item(path.name, path)
            continue
        folder = ctx.scratch / str(number)
        before = f"{path.name}/" if len(ctx.inputs) > 1 else ""
        for name in unpack(path, folder, check=ctx.check):
            yield Item(f"{before}{name}", folder / name)


class ContentJudge:
    """Magika: types of content."""

    def __init__(self) -> None:
        from magika import Magika

        self._magika = Magika()

    def judge(self, paths: Sequence[Path]) -> list[Verdict]:
        """See Judge."""
        verdicts = []
        for found in self._magika.identify_paths(list(paths)):
            if not found.ok:
                verdicts.append(Verdict(UNREADABLE, 0.0, UNREADABLE))
                continue
            kind = found.output
            verdicts.append(Verdict(str(kind.label), found.score, kind.group, kind.mime_type, kind.description))
        return verdicts


class PictureJudge:
    """A model: the class of which a picture has the largest share."""

    def __init__(self, ctx: Context, tagger: OnnxTagger, max_pixels: int) -> None:
        self._ctx = ctx
        self._tagger = tagger
        self._max_pixels = max_pixels

    def judge(self, paths: Sequence[Path]) -> list[Verdict]:
        """See Judge."""
        return [self._judge(path) for path in paths]

    def _judge(self, path: Path) -> Verdict:
        self._ctx.check()
        try:
            tags, ratings = self._tagger.tag(open_image(path, self._max_pixels))
        except Fail as failure:
            if failure.code == INVALID_MODEL:
                raise
            self._ctx.log.warning("%s", failure)
            return Verdict(UNREADABLE, 0.0)
        label, share = max((tags or ratings).items(), key=lambda tag: tag[1])
        return Verdict(label, share)


def look(ctx: Context, judge: Judge, items: Sequence[Item]) -> Iterator[Verdict]:
    """What each file is, with progress and a state for each."""
    states = [FileState(path=item.name, operate="classify") for item in items[:MAX_STATES]]
    for start in range(0, len(items), BATCH):
        ctx.check()
        ctx.progress(5 + 85 * start / len(items), f"{start} of {len(items)} files", stage="looking")
        batch = items[start : start + BATCH]
        verdicts = judge.judge([item.path for item in batch])
        for place, verdict in enumerate(verdicts[: max(0, MAX_STATES - start)], start):
            status = "failed" if verdict.label == UNREADABLE else "completed"
            states[place] = replace(states[place], status=status)
        ctx.files(states)
        yield from verdicts


def doubt(verdict: Verdict, threshold: float) -> Verdict:
    """The same, or "unknown" where it is not sure enough."""
    if verdict.score >= threshold or verdict.label == UNREADABLE:
        return verdict
    return Verdict(UNKNOWN, verdict.score, UNKNOWN)


def tabulate(items: Sequence[Item], verdicts: Sequence[Verdict]) -> str:
    """A line for each file, under a header."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("path", *Verdict._fields))
    for item, verdict in zip(items, verdicts, strict=True):
        name = item.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        writer.writerow((name, *verdict._replace(score=round(verdict.score, 4))))
    return table.getvalue()


def sort(ctx: Context, items: Sequence[Item], classes: Sequence[str], target: Path) -> None:
    """Write a zip with a folder for each class; a file keeps the folders that it lay in."""
    with ZipFile(target, "w", ZIP_DEFLATED) as archive:
        for number, (item, folder) in enumerate(zip(items, classes, strict=True)):
            ctx.progress(90 + 9 * number / len(items), f"{number} of {len(items)} files", stage="sorting")
            name = f"{folder.replace('/', '_')}/{item.name}".encode("utf-8", "surrogateescape").decode(
                "utf-8", "replace"
            )
            entry = ZipInfo.from_file(item.path, name, strict_timestamps=False)
            entry.compress_type = ZIP_DEFLATED
            with item.path.open("rb") as source, archive.open(entry, "w") as copy:
                while chunk := source.read(COPY_BYTES):
                    ctx.check()
                    copy.write(chunk)
