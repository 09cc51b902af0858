"""An index of source code in one SQLite file: which files there are, their pieces, and a vector of each piece.

    about     key, value            format, model, dimension
    files     path, digest          one row a file; the digest (SHA-256) is that of its content
    pieces    digest, number, first_line, last_line, text, vector

Pieces belong to a content and not to a path: a file that was moved, or that exists twice, is not looked at again. A
vector is `dimension` floats of 32 bits, little-endian, of length one; the dot product of two says how alike they are.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from runner import Fail

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float32]

FORMAT, APPLICATION = "1", 0x66726369
MAGIC = b"SQLite format 3\0"
TABLES = f"""
    PRAGMA application_id = {APPLICATION};
    CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, digest TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS pieces (
        digest TEXT, number INTEGER, first_line INTEGER, last_line INTEGER, text TEXT, vector BLOB,
        PRIMARY KEY (digest, number)
    ) WITHOUT ROWID;
"""


class Piece(NamedTuple):
    """Some lines of a file, counted from 1, both ends included."""

    first_line: int
    last_line: int
    text: str


class Match(NamedTuple):
    """A piece that was found, and how well it fits, up to 1."""

    path: str
    score: float
    piece: Piece


def is_index(path: Path) -> bool:
    """Whether a file is such an index."""
    with path.open("rb") as file:
        head = file.read(72)
    return head.startswith(MAGIC) and int.from_bytes(head[68:72]) == APPLICATION


class CodeIndex:
    """An index that is open, to be closed by `with`. Raises Fail with code `invalid_index` for one of no use."""

    def __init__(self, path: Path, dimension: int, model: str) -> None:
        self._dimension = dimension
        try:
            self._data = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise unusable(path, str(error)) from error
        wanted = {"format": FORMAT, "dimension": str(dimension), "model": model}
        try:
            self._data.executescript(TABLES)
            said = dict(self._data.execute("SELECT key, value FROM about"))
            if not said:
                self._data.executemany("INSERT INTO about VALUES (?, ?)", wanted.items())
        except sqlite3.Error as error:
            self._data.close()
            raise unusable(path, str(error)) from error
        if said and said != wanted:
            self._data.close()
            raise unusable(path, f"it was made with {said}, not with {wanted}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()

    def files(self) -> dict[str, str]:
        """The digest of each file by its path."""
        return dict(self._data.execute("SELECT path, digest FROM files"))

    def knows(self, digest: str) -> bool:
        """Whether the pieces of such a content are there."""
        return self._data.execute("SELECT 1 FROM pieces WHERE digest = ? LIMIT 1", (digest,)).fetchone() is not None

    def put(self, path: str, digest: str) -> None:
        """There is a file of that content, which is known."""
        self._data.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (path, digest))

    def add(self, path: str, digest: str, pieces: Iterable[Piece], vectors: "Iterable[Numbers]") -> None:
        """There is a file of that content, which is made of these pieces; all of it or nothing."""
        rows = [
            (digest, number, *piece, vector.astype("<f4").tobytes())
            for number, (piece, vector) in enumerate(zip(pieces, vectors, strict=True))
        ]
        self._data.execute("BEGIN")
        self._data.executemany("INSERT OR REPLACE INTO pieces VALUES (?, ?, ?, ?, ?, ?)", rows)
        self.put(path, digest)
        self._data.execute("COMMIT")

    def remove(self, paths: Iterable[str]) -> None:
        """These files are gone."""
        self._data.execute("BEGIN")
        self._data.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])
        self._data.execute("COMMIT")

    def clean(self) -> None:
        """Forget the pieces that belong to no file any more."""
        self._data.execute("DELETE FROM pieces WHERE digest NOT IN (SELECT digest FROM files)")

    def count(self) -> dict[str, int]:
        """How many files and pieces there are."""
        return {name: self._data.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in ("files", "pieces")}  # noqa: S608

    def search(self, vector: "Numbers", most: int) -> list[Match]:
        """The pieces that are most like it, the best first, each file once."""
        import numpy as np

        keys, vectors = [], []
        with closing(self._data.execute("SELECT digest, number, vector FROM pieces")) as rows:
            for digest, number, data in rows:
                keys.append((digest, number))
                vectors.append(np.frombuffer(data, "<f4"))
        if not keys:
            return []
        scores = np.stack(vectors) @ vector
        best: dict[str, tuple[float, int]] = {}
        for place in np.argsort(-scores):
            digest, number = keys[place]
            best.setdefault(digest, (float(scores[place]), number))
            if len(best) >= most:
                break
        return [match for digest, (score, number) in best.items() for match in self._show(digest, number, score)][:most]

    def _show(self, digest: str, number: int, score: float) -> list[Match]:
        lines = "SELECT first_line, last_line, text FROM pieces WHERE digest = ? AND number = ?"
        piece = Piece(*self._data.execute(lines, (digest, number)).fetchone())
        paths = self._data.execute("SELECT path FROM files WHERE digest = ? ORDER BY path", (digest,))
        return [Match(path, round(score, 4), piece) for (path,) in paths]


def unusable(path: Path, reason: str) -> Fail:
    """The error for an index that is none, or not of this model."""
    return Fail(f"the index {path.name} cannot be used: {reason}", code="invalid_index")


def renamed(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Files that have another path now, by that path: the content is the same, and nothing is where it was."""
    gone = {digest: path for path, digest in before.items() if path not in now}
    return {path: gone[digest] for path, digest in now.items() if path not in before and digest in gone}
