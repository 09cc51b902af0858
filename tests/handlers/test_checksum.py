import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from runner.context import Cancelled, Fail
from tests.handlers.attempts import Attempt, parts_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of somewhat more than two chunks."""
    path = tmp_path / "data.bin"
    path.write_bytes(b"0123456789abcdef" * 600_000)
    return path


def test_the_digest_and_the_size_are_those_of_the_file(tmp_path: Path, file: Path) -> None:
    """The result says what hashlib says of the whole file."""
    result = Attempt(tmp_path, "checksum", (file,)).run()

    assert result["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert result["size_bytes"] == 9_600_000


@pytest.mark.parametrize(
    "name",
    ["data.bin", "two words.bin", "back\\slash\nand line", "ünï.bin", b"\xff.bin".decode(errors="surrogateescape")],
)
def test_sha256sum_accepts_the_output(tmp_path: Path, name: str) -> None:
    """The output is a line that `sha256sum --check` verifies beside the file, whatever the file is called."""
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    path = tmp_path / name
    path.write_bytes(b"content")
    attempt = Attempt(tmp_path, "checksum", (path,))

    made = attempt.made(attempt.run())

    assert subprocess.run(["sha256sum", "--check", "--strict", made], cwd=tmp_path, check=False).returncode == 0


def test_the_output_speaks_of_the_name_that_the_person_knows(tmp_path: Path, file: Path) -> None:
    """The name under which a file is stored is not the one that its owner gave it."""
    attempt = Attempt(tmp_path, "checksum", (file,), filename="holiday.mp4")

    made = attempt.made(attempt.run())

    assert made.name == "holiday.mp4.sha256"
    assert made.read_text().endswith("  holiday.mp4\n")


def test_an_empty_file_has_a_checksum_too(tmp_path: Path) -> None:
    """Nothing is divided by nothing."""
    path = tmp_path / "empty"
    path.touch()

    result = Attempt(tmp_path, "checksum", (path,)).run()

    assert result["sha256"] == hashlib.sha256().hexdigest()


def test_it_tells_how_far_it_is_after_each_chunk(tmp_path: Path, file: Path) -> None:
    """Progress rises to 100 and names bytes."""
    attempt = Attempt(tmp_path, "checksum", (file,))
    attempt.run()

    shares = [said.percentage for said in attempt.said]
    assert shares == sorted(shares)
    assert len(shares) == 3
    assert shares[-1] == 100
    assert attempt.said[-1].message == "9,600,000 of 9,600,000 bytes"


def test_a_cancelled_one_stops_at_the_next_chunk(tmp_path: Path, file: Path) -> None:
    """Cancelling a large file does not wait for its end."""
    attempt = Attempt(tmp_path, "checksum", (file,), on_progress=lambda attempt: attempt.context.stop("cancelled"))

    with pytest.raises(Cancelled):
        attempt.run()

    assert len(attempt.said) == 1


@pytest.mark.parametrize("count", [0, 2])
def test_it_takes_one_file(tmp_path: Path, file: Path, count: int) -> None:
    """A second file is not silently left out."""
    with pytest.raises(Fail, match=f"one file, not {count}"):
        Attempt(tmp_path, "checksum", (file,) * count).run()


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("clip", "clip.mp4"),
        (".env", "env.mp4"),
        ("..", "output.mp4"),
        ("a/b\\c\nd", "a_b_c_d.mp4"),
        ("ä" * 200, "ä" * 125 + ".mp4"),
        (b"\xff".decode(errors="surrogateescape"), "\N{REPLACEMENT CHARACTER}.mp4"),
    ],
)
def test_a_derived_name_is_one_that_an_output_can_have(tmp_path: Path, stem: str, name: str) -> None:
    """Whatever an input is called, an output can be named after it."""
    derived = parts_of("checksum")["derive_name"](stem, ".mp4")

    assert derived == name
    assert Attempt(tmp_path, "checksum", ()).context.output(derived).name == name
