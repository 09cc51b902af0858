"""Make source code searchable by meaning: cut it into pieces, and put a vector of each into an index.

Only what is new is looked at: a file whose content the index knows costs nothing. What an attempt has done is kept, so
that one that follows a failure goes on from there.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from runner import Context, Fail, FileState, handler
from runner.units import Size

from ._archives import is_archive, unpack
from ._code_index import CodeIndex, Match, Piece, is_index, renamed
from ._keeping import link_or_copy
from ._minilm import Encoder, find_model
from ._settings import Settings, read_settings

if TYPE_CHECKING:
    from ._minilm import Numbers

SKIPPED_FOLDERS = {"__MACOSX", "__pycache__", "build", "dist", "node_modules", "site-packages", "target", "venv"}
BINARY_BYTES = 8192
MAX_LINE_CHARACTERS = 1000
SHOWN_CHARACTERS = 500
TELL_SECONDS = 0.25
PIECES_AT_ONCE = 16
TOP_LEVEL = re.compile(r"[^\s)\]}#]")
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def require_absolute(path: Path) -> Path:
    """The path, if it does not depend on where we happen to run."""
    if not path.expanduser().is_absolute():
        raise ValueError("must be an absolute path")
    return path.expanduser()


Absolute = Annotated[Path, AfterValidator(require_absolute)]


class EmbedSettings(Settings):
    """Where the model and the indexes are, and folders of this machine that tasks may name."""

    model: Absolute | None = None
    index_dir: Absolute | None = None
    folders: dict[str, Absolute] = Field(default={})
    max_file_bytes: Size = 256 << 10
    threads: Annotated[int, Field(ge=1, le=64)] = 1


class Source(NamedTuple):
    """A file of source code: its path as the index has it, and where it lies."""

    name: str
    path: Path


@handler(timeout="6h", retries=3, concurrency=1, isolation="process", extra="ml", requires="numpy")
def embed_code(
    ctx: Context,
    query: Annotated[
        str, Field(max_length=2000, description="What to look for in the index once it is up to date; in plain words.")
    ] = "",
    top: Annotated[int, Field(ge=1, le=100, description="How many files to find at most.")] = 10,
    index: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="The name of the index.")
    ] = "code",
    folder: Annotated[str, Field(max_length=200, description="A configured folder of this machine to index.")] = "",
    missing: Annotated[
        Literal["remove", "keep"], Field(description="What becomes of files that the index has and the sources lack.")
    ] = "remove",
    piece_characters: Annotated[int, Field(ge=100, le=4000, description="About how long a piece is.")] = 400,
) -> dict[str, object]:
    """Make source code searchable by meaning, and search it."""
    settings = read_settings(ctx, EmbedSettings)
    # OpenBLAS waits in busy loops: on a machine that does other work, more threads make it slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(settings.threads))
    sources = list(gather(ctx, settings, folder))
    if not sources and not query:
        raise Fail("there is neither source code nor a query", code="wrong_inputs")
    working = open_working(ctx, settings, index, ctx.kept if sources else ctx.scratch)
    if not sources and not working.exists():
        raise Fail(f"there is no index {index!r} to search, and no source code to make one of", code="unknown_index")
    encoder = Encoder(find_model(settings.model))
    model = settings.model.name if settings.model else "all-MiniLM-L6-v2"
    with CodeIndex(working, encoder.dimension, model) as data:
        result: dict[str, Any] = {}
        if sources:
            result = Update(ctx, encoder, data, piece_characters).run(sources, missing)
        if query:
            (vector,) = encoder.encode([query], ctx.check)
            result["matches"] = [describe(match) for match in data.search(vector, top)]
        result["index"] = data.count()
    return result | (publish(ctx, working, settings, index) if sources else {})


def open_working(ctx: Context, settings: EmbedSettings, name: str, folder: Path) -> Path:
    """The index to work on: what an earlier attempt left, else a copy of the one that came along or that is stored."""
    working = folder / "index.sqlite"
    if working.exists():
        return working
    given = [path for path in ctx.inputs if is_index(path)]
    stored = settings.index_dir / f"{name}.sqlite" if settings.index_dir else None
    start = given[0] if given else stored
    if start is not None and start.is_file():
        shutil.copyfile(start, working.with_suffix(".part"))
        working.with_suffix(".part").replace(working)
    return working


def gather(ctx: Context, settings: EmbedSettings, folder: str) -> Iterator[Source]:
    """The source code of all inputs, and of the folder."""
    if folder:
        if folder not in settings.folders:
            known = ", ".join(settings.folders) or "none; name one in handlers.embed_code.config.folders"
            raise Fail(f"no folder {folder!r}; there are: {known}", code="unknown_folder")
        yield from walk(ctx, settings.folders[folder], settings.max_file_bytes)
    for number, path in enumerate(ctx.inputs):
        ctx.progress(0, path.name, stage="unpacking")
        if is_archive(path):
            names = unpack(path, ctx.scratch / str(number), check=ctx.check)
            found = [Source(str(name), ctx.scratch / str(number) / name) for name in names if is_shown(name.parts)]
            yield from (source for source in found if is_source(source.path, settings.max_file_bytes))
        elif not is_index(path):
            yield Source(path.name, path)


def walk(ctx: Context, root: Path, max_bytes: int) -> Iterator[Source]:
    """The source code below a folder; links are not followed."""
    for folder, folders, files in os.walk(root):
        ctx.check()
        folders[:] = sorted(name for name in folders if is_shown([name]))
        for name in sorted(files):
            path = Path(folder, name)
            if is_shown([name]) and not path.is_symlink() and is_source(path, max_bytes):
                yield Source(path.relative_to(root).as_posix(), path)


def is_shown(parts: Sequence[str]) -> bool:
    """Whether a path is neither hidden nor in a folder of things that were made or fetched."""
    return not any(part.startswith(".") or part in SKIPPED_FOLDERS for part in parts)


def is_source(path: Path, max_bytes: int) -> bool:
    """Whether a file is text, and not too long to have been written by somebody."""
    try:
        with path.open("rb") as file:
            return 0 < os.fstat(file.fileno()).st_size <= max_bytes and b"\0" not in file.read(BINARY_BYTES)
    except OSError:
        return False


class Share(NamedTuple):
    """Which of how many files it is."""

    number: int
    total: int


class Update:
    """Brings an index up to date, and tells how each file fares."""

    def __init__(self, ctx: Context, encoder: Encoder, index: CodeIndex, piece_characters: int) -> None:
        self._ctx = ctx
        self._encoder = encoder
        self._index = index
        self._piece_characters = piece_characters
        self._states: dict[str, FileState] = {}
        self._told_at = 0.0

    def run(self, sources: Sequence[Source], missing: Literal["remove", "keep"]) -> dict[str, Any]:
        """Do it; how many files were added, modified, renamed and deleted, left as they are, and failed."""
        before = self._index.files()
        texts = {source.name: source.path for source in sources}
        now = {name: digest_of(path) for name, path in texts.items()}
        moved = renamed(before, now) if missing == "remove" else {}
        gone = [path for path in before if path not in now] if missing == "remove" else []
        work = {name: decide(name, before, now, moved) for name in now}
        self._list(work, [path for path in gone if path not in moved.values()])
        todo = [name for name, operate in work.items() if operate]
        for number, name in enumerate(todo):
            self._embed(name, texts[name], now[name], Share(number, len(todo)))
        self._index.remove(gone)
        self._index.clean()
        self._finish()
        counts = [state.operate for state in self._states.values() if state.status == "completed"]
        unchanged = len(work) - len(todo)
        return {operate: counts.count(operate) for operate in OPERATIONS} | {
            "unchanged": unchanged,
            "failed": sum(state.status == "failed" for state in self._states.values()),
        }

    def _list(self, work: Mapping[str, str], gone: Sequence[str]) -> None:
        self._states = {name: FileState(path=name, operate=operate) for name, operate in work.items() if operate}
        self._states |= {path: FileState(path=path, operate="delete") for path in gone}
        self._ctx.files(list(self._states.values()))

    def _embed(self, name: str, path: Path, digest: str, share: Share) -> None:
        self._show(name, share, 0.0)
        self._tell(name, "processing")
        if self._index.knows(digest):
            self._index.put(name, digest)
            return self._tell(name, "completed")
        try:
            pieces = list(cut(path.read_text(encoding="utf-8"), self._piece_characters))
        except UnicodeDecodeError as error:
            self._ctx.log.warning("%s is left out: %s", name, error)
            self._index.remove([name])
            return self._tell(name, "failed")
        # The path says much of what a file is about.
        texts = [HUMP.sub(" ", f"{name}\n{piece.text}") for piece in pieces]
        vectors = [vector for some in self._encode(name, texts, share) for vector in some]
        self._index.add(name, digest, pieces, vectors)
        return self._tell(name, "completed")

    def _encode(self, name: str, texts: Sequence[str], share: Share) -> Iterator["Numbers"]:
        for start in range(0, len(texts), PIECES_AT_ONCE):
            self._show(name, share, start / len(texts))
            yield self._encoder.encode(texts[start : start + PIECES_AT_ONCE], self._ctx.check)

    def _show(self, name: str, share: Share, done: float) -> None:
        text = f"{share.number} of {share.total} files: {name}"
        self._ctx.progress(5 + 90 * (share.number + done) / share.total, text, stage="embedding")

    def _tell(self, name: str, status: str) -> None:
        self._states[name] = replace(self._states[name], status=status)
        if time.monotonic() - self._told_at >= TELL_SECONDS:
            self._told_at = time.monotonic()
            self._ctx.files(list(self._states.values()))

    def _finish(self) -> None:
        for name, state in self._states.items():
            if state.operate == "delete":
                self._states[name] = replace(state, status="completed")
        self._ctx.files(list(self._states.values()))


OPERATIONS = ("add", "modify", "rename", "delete")


def decide(name: str, before: Mapping[str, str], now: Mapping[str, str], moved: Mapping[str, str]) -> str:
    """What is to be done about a file; "" if nothing."""
    if before.get(name) == now[name]:
        return ""
    if name in before:
        return "modify"
    return "rename" if name in moved else "add"


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cut(text: str, characters: int) -> Iterator[Piece]:
    """Pieces of about so many characters, which begin where something new begins, if they can."""
    lines: list[str] = []
    first = 1
    for number, line in enumerate(text.splitlines(), start=1):
        length = sum(map(len, lines))
        is_full = length + len(line) > characters or (length > characters // 2 and TOP_LEVEL.match(line))
        if lines and is_full:
            yield from piece_of(first, lines)
            lines, first = [], number
        lines.append(line[:MAX_LINE_CHARACTERS])
    yield from piece_of(first, lines)


def piece_of(first: int, lines: Sequence[str]) -> Iterator[Piece]:
    """One piece, unless it is blank."""
    if any(line.strip() for line in lines):
        yield Piece(first, first + len(lines) - 1, "\n".join(lines))


def describe(match: Match) -> dict[str, Any]:
    """What the result says of a match."""
    first, last, text = match.piece
    return {
        "path": match.path,
        "score": match.score,
        "first_line": first,
        "last_line": last,
        "text": text[:SHOWN_CHARACTERS],
    }


def publish(ctx: Context, working: Path, settings: EmbedSettings, name: str) -> dict[str, object]:
    """Make the index an output, and store it where the next task looks for it."""
    output = ctx.output(f"{name}.sqlite")
    link_or_copy(working, output)
    if settings.index_dir:
        settings.index_dir.mkdir(parents=True, exist_ok=True)
        partial = settings.index_dir / f".{name}.{ctx.task.id}.part"
        shutil.copyfile(working, partial)
        partial.replace(settings.index_dir / f"{name}.sqlite")
    return {"output": output.name}
