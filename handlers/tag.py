"""Say what is in pictures, as tags: a Stable Diffusion WebUI does it, or a model on this machine.

What was tagged is kept: an attempt that follows a failure goes on with the picture that failed.
"""

import asyncio
import base64
import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import AfterValidator, Field

from runner import Context, Fail, handler
from runner.units import Size

from ._images import MAX_PIXELS, open_image
from ._items import Items
from ._naming import derive_name
from ._onnx_tagger import INVALID_MODEL, RATINGS, OnnxTagger
from ._settings import read_settings
from ._webui import REFUSED, WebUI, WebUISettings

Analyzer = Literal["auto", "wd14tagger", "deepbooru", "deepdanbooru", "onnx"]
Order = Literal["score", "alphabetical", "original"]
Format = Literal["txt", "json", "csv"]
TagName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]

WEIGHTED = re.compile(r"\((.+):([0-9.]+)\)")
SHOWN_TAGS = 16


def require_absolute(folder: Path) -> Path:
    """The folder, if its path does not depend on where we happen to run."""
    if not folder.expanduser().is_absolute():
        raise ValueError("must be an absolute path")
    return folder.expanduser()


class TagSettings(WebUISettings):
    """The WebUI, the models of this machine by their names, and limits."""

    models: dict[str, Annotated[Path, AfterValidator(require_absolute)]] = Field(default={})
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    answer_seconds: Annotated[float, Field(gt=0, le=3600)] = 300.0
    max_pixels: Annotated[int, Field(ge=1)] = MAX_PIXELS
    max_file_bytes: Size = 64 << 20


class Said(NamedTuple):
    """What an analyzer says of a picture: tags with their shares, None where it does not tell; and ratings."""

    tags: Mapping[str, float | None]
    ratings: Mapping[str, float]


class Wish(NamedTuple):
    """Which of the tags are wanted, and how."""

    threshold: float
    skip: frozenset[str]
    extend: Sequence[str]
    order: Order
    format: Format


class Analysis(Protocol):
    """Somebody who looks at pictures."""

    async def look(self, path: Path) -> Said:
        """What is in the picture. Raises `Fail` and `Retry`."""


@handler(
    accepts=["image/jpeg", "image/png", "image/webp"],
    timeout="6h",
    retries=3,
    backoff={"base": "15s", "max": "5m"},
    concurrency=1,
    isolation="process",
    extra="ml",
    requires=["numpy", "onnxruntime", "PIL"],
)
async def tag(  # noqa: PLR0913 - each is a field of the form
    ctx: Context,
    analyzer: Annotated[Analyzer, Field(description="auto: onnx if a model is configured, else the WebUI")] = "auto",
    model: Annotated[str, Field(max_length=200, description="its name; empty: the first, or wd14-convnext-v2")] = "",
    threshold: Annotated[float, Field(ge=0, le=1, description="tags with a smaller share are left out")] = 0.35,
    skip_tags: Annotated[list[TagName], Field(max_length=1000, description="tags that are left out")] = [],  # noqa: B006
    extend_tags: Annotated[list[TagName], Field(max_length=1000, description="tags that every picture gets")] = [],  # noqa: B006
    tag_order: Annotated[Order, Field(description="by share, by letter, or as the analyzer lists them")] = "score",
    save_type: Annotated[Format, Field(description="what the output of each picture is")] = "txt",
    limit: Annotated[int, Field(ge=1, le=100_000, description="pictures at most")] = 100,
) -> dict[str, object]:
    """Say what is in pictures, as tags in a text, JSON or CSV file for each."""
    settings = read_settings(ctx, TagSettings)
    wish = Wish(threshold, frozenset(map(plain, skip_tags)), extend_tags, tag_order, save_type)
    chosen = choose_analyzer(analyzer, settings)
    tagging = Tagging(ctx, wish, ctx.inputs[:limit])
    if chosen == "onnx":
        folder = choose_model(model, settings)
        tagger = await asyncio.to_thread(OnnxTagger, folder, settings.threads)
        return await tagging.run(LocalAnalysis(tagger, settings))
    async with WebUI(settings) as ui:
        return await tagging.run(WebUIAnalysis(ui, settings, chosen, model, threshold))


def choose_analyzer(wanted: Analyzer, settings: TagSettings) -> Analyzer:
    """Who does it."""
    if wanted != "auto":
        return "deepbooru" if wanted == "deepdanbooru" else wanted
    return "onnx" if settings.models else "wd14tagger"


def choose_model(name: str, settings: TagSettings) -> Path:
    """The folder of a model; a task names one of those that are configured, never a path."""
    found = settings.models.get(name) if name else next(iter(settings.models.values()), None)
    if found is None:
        known = ", ".join(settings.models) or "none; name one in handlers.tag.config.models"
        raise Fail(f"no model {name!r}; there are: {known}" if name else f"no model: {known}", code="unknown_model")
    return found


class LocalAnalysis:
    """A model on this machine."""

    def __init__(self, tagger: OnnxTagger, settings: TagSettings) -> None:
        self._tagger = tagger
        self._settings = settings

    async def look(self, path: Path) -> Said:
        """See Analysis."""
        return Said(*await asyncio.to_thread(self._look, path))

    def _look(self, path: Path) -> tuple[dict[str, float], dict[str, float]]:
        return self._tagger.tag(open_image(path, self._settings.max_pixels))


class WebUIAnalysis:
    """A WebUI with its own DeepBooru, or with an extension for the models of the WD14 family."""

    def __init__(self, ui: WebUI, settings: TagSettings, analyzer: Analyzer, model: str, threshold: float) -> None:
        self._ui = ui
        self._settings = settings
        self._path, self._request = "/sdapi/v1/interrogate", {"model": "deepbooru"}
        if analyzer != "deepbooru":
            asked: dict[str, Any] = {"model": model or "wd14-convnext-v2", "threshold": threshold, "batch_count": 1}
            self._path, self._request = "/tagger/v1/interrogate", asked

    async def look(self, path: Path) -> Said:
        """See Analysis."""
        image = await asyncio.to_thread(self._encode, path)
        answer = await self._ui.post(self._path, self._request | {"image": image}, self._settings.answer_seconds)
        said = read_answer(answer)
        if not said.tags and not said.ratings:
            raise Fail(f"the WebUI says nothing about {path.name}", code="no_tags")
        return said

    def _encode(self, path: Path) -> str:
        if path.stat().st_size > self._settings.max_file_bytes:
            raise Fail(f"{path.name} has more than {self._settings.max_file_bytes:,} bytes", code="image_too_large")
        open_image(path, self._settings.max_pixels).close()  # the WebUI shall not stumble over it
        return base64.b64encode(path.read_bytes()).decode()


def read_answer(answer: Any) -> Said:
    """What a WebUI says of a picture: a text, a list, shares by tag, or these in `tag` beside the ratings."""
    caption = (answer.get("caption") or answer.get("result")) if isinstance(answer, dict) else None
    if isinstance(caption, str):
        return Said(dict(map(read_tag, filter(None, map(str.strip, caption.split(","))))), {})
    if isinstance(caption, list):
        return Said({tag: None for tag in caption if isinstance(tag, str) and tag}, {})
    if not isinstance(caption, dict):
        return Said({}, {})
    if isinstance(caption.get("tag"), dict):
        ratings = caption.get("rating")
        return Said(numbers_of(caption["tag"]), numbers_of(ratings if isinstance(ratings, dict) else {}))
    tags = {name: share for name, share in caption.items() if name not in RATINGS and name != "rating"}
    return Said(numbers_of(tags), numbers_of({name: caption[name] for name in caption if name in RATINGS}))


def read_tag(text: str) -> tuple[str, float | None]:
    """A tag as a WebUI writes it: perhaps `(name:0.98)`, and with its brackets escaped."""
    weighted = WEIGHTED.fullmatch(text)
    name = (weighted[1] if weighted else text).replace("\\(", "(").replace("\\)", ")")
    try:
        return name, float(weighted[2]) if weighted else None
    except ValueError:
        return name, None


def numbers_of(shares: Mapping[Any, Any]) -> dict[str, float]:
    """What of it is a name and a number."""
    numbers = {str(name): share for name, share in shares.items() if isinstance(share, int | float)}
    return {name: float(share) for name, share in numbers.items() if 0 <= share <= 1}


def plain(tag: str) -> str:
    """The tag as it is compared: `Long Hair` is `long_hair`."""
    return tag.strip().lower().replace(" ", "_")


def choose_tags(said: Said, wish: Wish) -> list[tuple[str, float | None]]:
    """The tags that are wanted, in the order that is wanted; those that every picture gets come last."""
    found = [
        (name, share)
        for name, share in said.tags.items()
        if (share is None or share >= wish.threshold) and plain(name) not in wish.skip
    ]
    if wish.order == "score":
        found.sort(key=lambda tag: -1.0 if tag[1] is None else -tag[1])
    elif wish.order == "alphabetical":
        found.sort(key=lambda tag: plain(tag[0]))
    there = {plain(name) for name, _ in found}
    added = {plain(name): name.strip() for name in wish.extend}
    return found + [(name, None) for key, name in added.items() if key not in there]


class Tagging:
    """All the pictures of one task."""

    def __init__(self, ctx: Context, wish: Wish, paths: Sequence[Path]) -> None:
        self._ctx = ctx
        self._wish = wish
        self._paths = paths
        self._names = name_outputs(paths, wish.format)
        self._items = Items(ctx, [path.name for path in paths], "tag")
        self._outputs: list[str] = []
        self._tags: dict[str, list[str]] = {}
        self._failures: list[Fail] = []
        ctx.progress(10, f"{len(paths)} pictures", stage="preparing")

    async def run(self, analysis: Analysis) -> dict[str, object]:
        """Look at each picture; the result. Raises the first `Fail` if there is nothing to say of any of them."""
        for place in range(len(self._paths)):
            self._show(place)
            self._items.tell(place, "processing")
            self._items.tell(place, await self._try(analysis, place))
        self._items.flush()
        self._show(len(self._paths))
        if not self._tags:
            raise self._failures[0]
        failed = len(self._failures)
        return {"images": len(self._paths), "failed": failed, "outputs": self._outputs, "tags": self._tags}

    def _show(self, place: int) -> None:
        text = f"{place} of {len(self._paths)} pictures"
        self._ctx.progress(30 + 65 * place / len(self._paths), text, stage="tagging")

    async def _try(self, analysis: Analysis, place: int) -> str:
        """How it went with one picture; what is wrong with that one is a warning."""
        try:
            await self._look(analysis, place)
        except Fail as failure:
            if failure.code in (REFUSED, INVALID_MODEL):
                raise
            self._ctx.log.warning("%s", failure)
            self._failures.append(failure)
            return "failed"
        return "completed"

    async def _look(self, analysis: Analysis, place: int) -> None:
        path, name = self._paths[place], self._names[place]
        kept = self._ctx.kept / f"{place}.json"
        if not kept.exists():
            partial = kept.with_suffix(".part")
            partial.write_text(json.dumps(await analysis.look(path)), encoding="utf-8")
            partial.replace(kept)
        said = Said(*json.loads(kept.read_text(encoding="utf-8")))
        tags = choose_tags(said, self._wish)
        self._ctx.output(name).write_text(write(path, tags, said, self._wish.format), encoding="utf-8", newline="")
        self._outputs.append(name)
        self._tags[path.name] = [tag for tag, _ in tags[:SHOWN_TAGS]]


def name_outputs(paths: Sequence[Path], format: Format) -> list[str]:
    """The picture's name with another ending; a name that is taken already keeps its own ending, too."""
    names: dict[str, None] = {}
    for number, path in enumerate(paths, start=1):
        wanted = (path.stem, path.name, f"{path.stem}_{number}", f"{number}")
        names[next(name for stem in wanted if (name := derive_name(stem, f".{format}")) not in names)] = None
    return list(names)


def write(path: Path, tags: Sequence[tuple[str, float | None]], said: Said, format: Format) -> str:
    """The content of an output."""
    line = ", ".join(name for name, _ in tags)
    if format == "txt":
        return line
    if format == "csv":
        table = io.StringIO()
        csv.writer(table).writerows([("tag", "score"), *((name, share) for name, share in tags)])
        return table.getvalue()
    shares = {name: 1.0 if share is None else share for name, share in tags}
    ranked = sorted(shares.items(), key=lambda tag: -tag[1])
    document = {
        "image_path": path.name,
        "tags_string": line,
        "tags": shares,
        "ratings": said.ratings,
        "formatted": describe(line, said.ratings, ranked),
        "tags_sorted": [{"Name": name, "Confidence": share} for name, share in ranked],
        "created_at": datetime.now(UTC).isoformat(),
    }
    return json.dumps(document, ensure_ascii=False, indent=2)


def describe(line: str, ratings: Mapping[str, float], ranked: Sequence[tuple[str, float]]) -> str:
    """The same for people, as a WebUI shows it."""
    parts = ["Tags", line, "", "Rating confidents", *lines_of(ratings.items()), "Tag confidents", *lines_of(ranked)]
    return "\n".join(parts)


def lines_of(shares: Any) -> list[str]:
    """A name and a percentage a line, and an empty one at the end."""
    return [*(f"{name} {100 * share:.0f}%" for name, share in shares), ""]
