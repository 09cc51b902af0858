"""Inputs come in by rename, outputs come out by rename, and what is not regular or not wanted never shows."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runner.errors import NotFound
from runner.store import Durability, Handover, Identity, Layout
from runner.store.blobs import Blobs
from tests.store.samples import FaultyFiles


@pytest.fixture(params=Durability)
def blobs(request: pytest.FixtureRequest, layout: Layout, files: FaultyFiles) -> Blobs:
    """In either durability."""
    return Blobs(files, layout, request.param)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of somebody's."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"content")
    return path


def write_outputs(layout: Layout, *names: str, number: int = 1) -> Path:
    """The private folder of an attempt, with these files in it."""
    private = Path(layout.attempt("t", number))
    for name in names:
        (private / name).parent.mkdir(parents=True, exist_ok=True)
        (private / name).write_text(f"attempt {number}")
    return private


@pytest.mark.parametrize(("how", "stays", "same"), [("move", False, True), ("link", True, True), ("copy", True, False)])
def test_an_input_is_handed_over_as_was_agreed(
    blobs: Blobs, layout: Layout, source: Path, how: str, *, stays: bool, same: bool
) -> None:
    """Moved, shared or copied; whole in any case."""
    inode = source.stat().st_ino
    target = Path(layout.upload("u", "t"), "photo.jpg")
    blobs.hand_over(str(source), str(target), Handover(how))
    assert (target.read_bytes(), source.exists(), target.stat().st_ino == inode) == (b"content", stays, same)


@pytest.mark.parametrize("how", list(Handover))
def test_what_somebody_left_who_died_is_in_nobodys_way(
    blobs: Blobs, layout: Layout, source: Path, how: Handover
) -> None:
    """It came in, and was not recorded any more."""
    target = Path(layout.upload("u", "t"), "photo.jpg")
    target.parent.mkdir(parents=True)
    target.write_text("left behind")
    blobs.hand_over(str(source), str(target), how)
    assert target.read_bytes() == b"content"


def test_a_link_is_handed_over_as_what_it_stands_for(blobs: Blobs, layout: Layout, source: Path) -> None:
    """From its new place it would lead elsewhere."""
    (source.parent / "link.jpg").symlink_to("photo.jpg")
    target = Path(layout.upload("u", "t"), "link.jpg")
    blobs.hand_over(str(source.parent / "link.jpg"), str(target), Handover.LINK)
    assert (target.is_symlink(), target.read_bytes()) == (False, b"content")


def test_in_durability_full_an_input_is_synced_before_any_record_names_it(
    layout: Layout, files: FaultyFiles, source: Path
) -> None:
    """If it cannot be, the submission fails."""
    files.fail("sync", "uploads")
    target = f"{layout.upload('u', 't')}/photo.jpg"
    with pytest.raises(OSError, match="Input/output error"):
        Blobs(files, layout, Durability.FULL).hand_over(str(source), target, Handover.COPY)
    Blobs(files, layout, Durability.PROCESS).hand_over(str(source), target, Handover.LINK)


def test_a_dropped_file_can_be_taken_again_and_again(blobs: Blobs, layout: Layout, source: Path) -> None:
    """Recovery does not know how far it came; but a file that is nowhere is told."""
    target = f"{layout.upload('u', 't')}/photo.jpg"
    wanted = Identity.of(str(source))
    for _ in range(3):
        blobs.take(str(source), target, wanted)
    assert (Path(target).read_bytes(), source.exists()) == (b"content", False)
    Path(target).unlink()
    with pytest.raises(FileNotFoundError):
        blobs.take(str(source), target, wanted)


def test_outputs_appear_all_at_once_under_their_names(blobs: Blobs, layout: Layout) -> None:
    """Sorted, with the folders that the handler made, relative to the data directory."""
    private = write_outputs(layout, "b.txt", "pages/1.png", "名.txt")
    assert blobs.publish("t", 1, "u") == ("results/u/t/b.txt", "results/u/t/pages/1.png", "results/u/t/名.txt")
    assert not private.exists()


def test_an_attempt_that_wrote_nothing_has_no_outputs(blobs: Blobs, layout: Layout) -> None:
    """And makes no folder."""
    assert blobs.publish("t", 1, "u") == ()
    assert os.listdir(layout.results) == []


def test_only_the_last_attempts_outputs_are_there(blobs: Blobs, layout: Layout) -> None:
    """Not mixed with those of the one before."""
    write_outputs(layout, "old.txt")
    blobs.publish("t", 1, "u")
    write_outputs(layout, "new.txt", number=2)
    assert blobs.publish("t", 2, "u") == ("results/u/t/new.txt",)
    assert os.listdir(layout.result("u", "t")) == ["new.txt"]


def test_links_and_pipes_are_no_outputs(blobs: Blobs, layout: Layout) -> None:
    """They could lead anywhere, or block whoever reads them."""
    private = write_outputs(layout, "a.txt")
    (private / "link").symlink_to("/etc/passwd")
    (private / "folder").symlink_to("/etc")
    os.mkfifo(private / "pipe")
    assert blobs.publish("t", 1, "u") == ("results/u/t/a.txt",)


def test_an_output_that_json_cannot_name_is_refused_before_anything_moves(blobs: Blobs, layout: Layout) -> None:
    """The attempt fails with the reason, instead of an ending that can never be recorded."""
    private = write_outputs(layout, "a.txt")
    (private / "\udcff.txt").touch()
    with pytest.raises(OSError, match="not UTF-8") as refused:
        blobs.publish("t", 1, "u")
    assert refused.value.errno == errno.EILSEQ
    assert (private.exists(), os.listdir(layout.results)) == (True, [])


def test_outputs_that_cannot_be_synced_are_not_published(layout: Layout, files: FaultyFiles) -> None:
    """A completion must not name what a power cut takes away."""
    private = write_outputs(layout, "a.txt")
    files.fail("sync", "a.txt")
    with pytest.raises(OSError, match="Input/output error"):
        Blobs(files, layout, Durability.FULL).publish("t", 1, "u")
    assert (private.exists(), os.listdir(layout.results)) == (True, [])


def test_what_nobody_wants_is_discarded(blobs: Blobs, layout: Layout) -> None:
    """Twice is fine."""
    write_outputs(layout, "a.txt")
    blobs.publish("t", 1, "u")
    write_outputs(layout, "b.txt", number=2)
    for _ in range(2):
        blobs.discard("t", 2)
        blobs.discard_results("u", "t")
    assert (os.listdir(layout.tmp), os.listdir(f"{layout.results}/u")) == ([], [])


def test_an_output_is_found_by_its_name_and_a_name_never_becomes_a_path(blobs: Blobs, layout: Layout) -> None:
    """Only what the task names can be had."""
    outputs = ("results/u/t/a.txt", "results/u/t/pages/1.png")
    assert blobs.output(outputs, "pages/1.png") == f"{layout.data}/results/u/t/pages/1.png"
    for name in ("../../../VERSION", "results/u/t/a.txt", "1.png", "", "/etc/passwd"):
        with pytest.raises(NotFound):
            blobs.output(outputs, name)


def test_a_file_that_was_changed_is_another_one(source: Path) -> None:
    """What was decided about the one does not hold for the other."""
    before = Identity.of(str(source))
    assert Identity.of(str(source)) == before
    source.write_bytes(b"other content")
    assert Identity.of(str(source)) != before
    (source.parent / "link").symlink_to(source)
    assert Identity.of(str(source.parent / "link")).inode != before.inode
