"""Folders of the configuration, and what becomes of their files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.intake.folders import After, Folder, Remember
from runner.intake.seen import Memory, Seen
from tests.intake.conftest import Site

MakeSite = Callable[..., Site]


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder whose files stay, with one file in it."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "a.txt").write_text("first")
    return shelf


def _kept(shelf: Path, remember: Remember = Remember.STAT, handler: str = "keep") -> list[Folder]:
    return [Folder(str(shelf), handler, after=After.KEEP, remember=remember)]


def test_a_kept_file_is_taken_once_and_stays(make_site: MakeSite, shelf: Path) -> None:
    """Also over a restart; the task has a copy of its own, so a later change of the file does not reach it."""
    site = make_site(further=_kept(shelf))
    for _ in range(2):
        site.scan()
        site.scan()
        site.close()
        site.open()
    task = site.only_task()
    (shelf / "a.txt").write_text("changed in place")
    assert (site.data / task.input_files[0]).read_text() == "first"
    assert os.listdir(shelf) == ["a.txt"]
    assert site.inbox.explain(str(shelf / "b.txt")).kind == "absent"


def test_a_kept_file_that_changes_is_taken_again(make_site: MakeSite, shelf: Path) -> None:
    """As a new task; `why` knows the task of the file as it is now."""
    site = make_site(further=_kept(shelf))
    site.scan()
    (shelf / "a.txt").write_text("second, and longer")
    assert site.inbox.explain(str(shelf / "a.txt")).kind != "taken"
    site.scan()
    assert [(site.data / task.input_files[0]).read_text() for task in site.tasks()] == ["first", "second, and longer"]
    assert site.inbox.explain(str(shelf / "a.txt")).facts == {"task_id": site.tasks()[-1].id}


@pytest.mark.parametrize(("remember", "tasks"), [(Remember.STAT, 2), (Remember.CONTENT, 1)])
def test_by_content_a_file_that_only_looks_new_is_not_taken_again(
    make_site: MakeSite, shelf: Path, remember: Remember, tasks: int
) -> None:
    """A backup that is restored, a share that gives out other inodes."""
    site = make_site(further=_kept(shelf, remember))
    site.scan()
    (shelf / "copy").write_text("first")
    (shelf / "copy").rename(shelf / "a.txt")
    site.scan()
    site.scan()
    assert len(site.tasks()) == tasks


def test_a_crash_before_the_file_is_remembered_makes_no_second_task(make_site: MakeSite, shelf: Path) -> None:
    """The task's key is made of the same facts."""
    site = make_site(further=_kept(shelf))
    site.scan()
    site.close()
    for path in (site.data / "seen").iterdir():
        path.unlink()
    site.open()
    site.scan()
    assert site.inbox.explain(str(shelf / "a.txt")).facts == {"task_id": site.only_task().id}


def test_what_a_kept_folder_refuses_or_fails_stays_where_it_is(make_site: MakeSite, shelf: Path) -> None:
    """Nothing in it is changed, and the reason is told; it is not tried again until it changes."""
    site = make_site(further=_kept(shelf, handler="table"))
    site.scan()
    site.scan()
    (shelf / "b.csv").write_text("1,2")
    site.scan()
    site.fail(site.only_task())
    site.write_outbox()
    assert sorted(os.listdir(shelf)) == ["a.txt", "b.csv"]
    said = site.inbox.explain(str(shelf / "a.txt"))
    assert said.kind == "rejected"
    assert "not of a type that table accepts" in said.text


def test_the_parameters_of_a_kept_file_stay_too(make_site: MakeSite, shelf: Path) -> None:
    """Also when the next start looks at what was being taken."""
    (shelf / "a.txt.json").write_text('{"width": 5}')
    site = make_site(further=_kept(shelf, handler="resize"))
    site.scan()
    site.close()
    site.open()
    site.scan()
    assert site.only_task().payload == {"width": 5}
    assert sorted(os.listdir(shelf)) == ["a.txt", "a.txt.json"]


def test_a_file_that_changes_while_it_is_copied_waits(
    make_site: MakeSite, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of one content and half of another is never a task's."""
    site = make_site(further=_kept(shelf))
    copy = site.store.files.copy

    def copy_slowly(source: str, target: str) -> None:
        copy(source, target)
        Path(source).write_text("meanwhile")

    with monkeypatch.context() as patched:
        patched.setattr(site.store.files, "copy", copy_slowly)
        site.scan()
    assert site.tasks() == []
    assert site.inbox.explain(str(shelf / "a.txt")).kind == "unreadable"
    assert os.listdir(site.data / "tmp") == []
    site.inbox.holds.find(str(shelf / "a.txt")).due = 0.0  # type: ignore[union-attr]
    site.inbox.lanes.put_first(_kept(shelf)[0], ["a.txt"])
    site.inbox.run_once()
    assert (site.data / site.only_task().input_files[0]).read_text() == "meanwhile"


def test_after_delete_the_file_goes_with_success_and_not_before(make_site: MakeSite, tmp_path: Path) -> None:
    """A failed one lies in the error folder, as from everywhere."""
    drop = tmp_path / "drop"
    drop.mkdir()
    site = make_site(further=[Folder(str(drop), "keep", after=After.DELETE)])
    for name in ("good.txt", "bad.txt"):
        (drop / name).write_text(name)
    site.scan()
    bad, good = sorted(site.tasks(), key=lambda task: str(task.original_filename))
    assert (site.data / good.input_files[0]).exists()
    site.run(good)
    site.fail(bad)
    site.write_outbox()
    assert not (site.data / good.input_files[0]).exists()
    assert (drop / "error" / "bad.txt").read_text() == "bad.txt"


def test_memories_survive_torn_lines_odd_names_and_a_share_that_is_away(site: Site, tmp_path: Path) -> None:
    """What is gone is forgotten, unless everything is: then the share is not mounted."""
    shelf = tmp_path / "shelf"
    folder = Folder(str(shelf), "keep", after=After.KEEP)
    odd, memory = os.fsdecode(b"\xff\n"), Memory(1, 2, 3, "", "task")
    where = str(tmp_path / "seen")
    Seen(site.store.files, where).note(folder, odd, memory)
    Seen(site.store.files, where).note(folder, "gone", memory)
    (file,) = Path(where).iterdir()
    with file.open("ab") as lines:
        lines.write(b'["torn", nul')
    assert Seen(site.store.files, where).find(folder, "gone") == memory
    shelf.mkdir()
    (shelf / odd).write_text("x")
    again = Seen(site.store.files, where)
    assert (again.find(folder, odd), again.find(folder, "gone")) == (memory, None)
