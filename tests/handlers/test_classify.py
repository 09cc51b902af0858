import csv
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from runner.context import Cancelled, Fail
from runner.errors import InvalidSubmission
from tests.handlers.attempts import Attempt, starters
from tests.handlers.pictures import draw_all, pack

for module in ("magika", "numpy", "onnxruntime", "PIL"):
    pytest.importorskip(module, reason="needs the extra `ml`")

TYPE = "classify"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Real files, under names that say nothing of what they are."""
    folder = tmp_path_factory.mktemp("files")
    (picture, _), *_ = draw_all(folder / "pictures", 1)
    pages = {"a.bin": "README.md", "b.bin": "runner/task.py", "c.bin": "config.yaml", "d.bin": "Makefile"}
    for name, source in pages.items():
        shutil.copyfile(ROOT / source, folder / name)
    shutil.copyfile(picture, folder / "e.txt")
    return tuple(folder / name for name in (*pages, "e.txt"))


def _table(attempt: Attempt, result: dict[str, Any]) -> dict[str, dict[str, str]]:
    with (attempt.output_dir / result["table"]).open(encoding="utf-8", newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_files_are_known_by_their_content(tmp_path: Path, files: tuple[Path, ...]) -> None:
    """Whatever they are called; each has its line in the table, and its state."""
    attempt = Attempt(tmp_path, TYPE, files, filename="things.bin")

    result = attempt.run()

    table = _table(attempt, result)
    labels = {name: row["label"] for name, row in table.items()}
    assert labels == {"a.bin": "markdown", "b.bin": "python", "c.bin": "yaml", "d.bin": "makefile", "e.txt": "png"}
    assert table["e.txt"]["mime_type"] == "image/png"
    assert all(0.3 < float(row["score"]) <= 1 for row in table.values())
    assert result["output"] == result["table"] == "things_classes.csv"
    assert (result["files"], sum(result["classes"].values()), result["classes"]["image"]) == (5, 5, 1)
    assert {state.status for state in attempt.files.values()} == {"completed"}


@pytest.mark.parametrize(("by", "folder"), [("group", "code"), ("label", "python")])
def test_files_are_sorted_into_folders(tmp_path: Path, files: tuple[Path, ...], by: str, folder: str) -> None:
    """By kind or by type, with their content and under their names."""
    attempt = Attempt(tmp_path, TYPE, files)

    made = attempt.made(attempt.run(make="folders", by=by))

    with ZipFile(made) as archive:
        assert archive.read(f"{folder}/b.bin") == files[1].read_bytes()
        assert len(archive.namelist()) == 5
    assert made.name == "a_sorted.zip"


@pytest.mark.parametrize(("archives", "names"), [("open", ["x/a.md", "y.py"]), ("keep", ["a.zip"])])
def test_an_archive_is_looked_into_or_not(tmp_path: Path, archives: str, names: list[str]) -> None:
    """Its files keep their folders in their names."""
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(ROOT / "README.md", "x/a.md")
        archive.write(ROOT / "runner" / "task.py", "y.py")
    attempt = Attempt(tmp_path, TYPE, (tmp_path / "a.zip",))

    assert list(_table(attempt, attempt.run(archives=archives))) == names


def test_what_is_not_sure_enough_is_unknown(tmp_path: Path, files: tuple[Path, ...]) -> None:
    """Whoever sorts by it can ask for certainty."""
    result = Attempt(tmp_path, TYPE, files).run(threshold=1)

    assert result["classes"].get("unknown", 0) >= 3


def test_empty_and_odd_files_are_something_too(tmp_path: Path) -> None:
    """Nothing of what can be dropped makes it fail."""
    contents = {"empty": b"", "one": b"x", "zeros": bytes(5000), '=cmd,\n".bin': b"\xff\xfe" * 40}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    attempt = Attempt(tmp_path, TYPE, tuple(tmp_path / name for name in contents))

    table = _table(attempt, attempt.run())

    assert list(table) == list(contents)
    assert table["empty"]["label"] == "empty"


def test_a_trained_model_tells_pictures_apart(tmp_path: Path) -> None:
    """`train` makes it, the configuration names its folder, a task names it; what is no picture is told apart, too."""
    lesson = Attempt(tmp_path / "1", "train", (pack(tmp_path / "a.zip", draw_all(tmp_path / "p", 30)),))
    lesson.run()
    pictures = draw_all(tmp_path / "new", 5, seed=5)
    inputs = (*(path for path, _ in pictures), ROOT / "README.md")
    attempt = Attempt(tmp_path / "2", TYPE, inputs, config={"models": {"shapes": str(lesson.output_dir)}})

    table = _table(attempt, attempt.run(model="shapes"))

    assert sum(table[path.name]["label"] == shape for path, shape in pictures) >= 13
    assert table["README.md"]["label"] == "unreadable"
    assert attempt.files["README.md"].status == "failed"


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({}, "unknown_model"),
        ({"models": {"mine": "/nowhere"}}, "invalid_model"),
        ({"modles": {}}, "invalid_config"),
    ],
)
def test_a_model_that_is_not_there_fails_for_good(
    tmp_path: Path, files: tuple[Path, ...], config: dict[str, Any], code: str
) -> None:
    """The message says which there are."""
    with pytest.raises(Fail) as caught:
        Attempt(tmp_path, TYPE, files, config=config).run(model="mine")

    assert caught.value.code == code


def test_a_cancelled_one_stops_before_the_next_files(tmp_path: Path) -> None:
    """There is no table then."""
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(100):
            archive.writestr(f"{number}.txt", "text\n" * number)

    def stop(attempt: Attempt) -> None:
        if attempt.said[-1].stage == "looking":
            attempt.context.stop("cancelled")

    attempt = Attempt(tmp_path, TYPE, (tmp_path / "a.zip",), on_progress=stop)
    with pytest.raises(Cancelled):
        attempt.run()

    assert [said.stage for said in attempt.said].count("looking") == 1
    assert not list(attempt.output_dir.glob("*"))


def test_it_takes_a_file_at_least(tmp_path: Path) -> None:
    """Nothing comes of nothing."""
    with pytest.raises(Fail, match="one file or more"):
        Attempt(tmp_path, TYPE, ()).run()


@pytest.mark.parametrize(
    "payload", [{"make": "cake"}, {"by": "size"}, {"threshold": 2}, {"archives": "burn"}, {"model": 5}]
)
def test_a_wrong_payload_is_refused_with_a_pointer_to_the_fault(payload: dict[str, Any]) -> None:
    """Nothing is stored for it."""
    with pytest.raises(InvalidSubmission) as caught:
        starters().get(TYPE).validate(payload)

    assert [problem.pointer for problem in caught.value.problems] == [f"/payload/{next(iter(payload))}"]
