"""The checkup finds what is wrong, and nothing else, whoever works on the directory meanwhile."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.store import Files, Layout, SaveUser, User
from runner.store.checkup import Checkup
from runner.store.findings import Finding
from tests.store.samples import LAZY, NOW, OPTIONS, FaultyFiles, Stores, create, finish, make_task


@pytest.fixture
def sound(stores: Stores, data: Path) -> Layout:
    """A directory that a store has left well: tasks that wait and have ended, a user, an upload, a result, a log."""
    store = stores.open(data, OPTIONS)
    create(store, "wait", input_files=("uploads/u/wait/in.txt",))
    create(store, "done", "other")
    finish(store, "done")
    store.commit((SaveUser(User(user_id="u", created_at=NOW, last_accessed=NOW)),))
    for path in ("uploads/u/wait/in.txt", "results/u/done/out.txt", "logs/done.jsonl"):
        Path(data, path).parent.mkdir(parents=True, exist_ok=True)
        Path(data, path).touch()
    stores.close()
    return Layout(data)


def ill(layout: Layout, files: Files | None = None, exists: Callable[[str], bool] | None = None) -> list[Finding]:
    """What is not well."""
    return [one for one in Checkup(files or Files(), layout, exists).run() if not one.is_well]


def test_a_sound_directory_is_well(sound: Layout) -> None:
    """After a clean stop, and with a journal that a kill has left."""
    assert ill(sound) == []


def test_nothing_is_wrong_while_somebody_works(stores: Stores, data: Path) -> None:
    """Files, rows and segments come and go under the checkup; what is on its way is no fault."""
    store, over = stores.open(data, OPTIONS), threading.Event()

    def work() -> None:
        for number in range(100_000):
            if over.is_set():
                return
            create(store, f"t{number}")
            finish(store, f"t{number}")
            if number % 10 == 9:
                store.checkpointer.checkpoint()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert [ill(store.layout, exists=lambda task_id: store.find(task_id) is not None) for _ in range(10)] == [
            []
        ] * 10
    finally:
        over.set()
        worker.join()


def link_to_nowhere(path: Path) -> None:
    """A link in the place of a file."""
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def change_row(path: Path) -> None:
    """A row that says something else than the file."""
    connection = sqlite3.connect(path)
    connection.execute("UPDATE tasks SET status = 'failed' WHERE id = 'done'")
    connection.commit()
    connection.close()


FAULTS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "torn task": ("tasks", "tasks/done.json", lambda path: path.write_text("{")),
    "stray file": ("tasks", "tasks/letter.txt", lambda path: path.touch()),
    "copied task": ("tasks", "tasks/copy.json", lambda path: shutil.copy(path.parent / "done.json", path)),
    "torn user": ("users", "users/u.json", lambda path: path.write_text("{")),
    "row": ("index", "index.db", change_row),
    "noise": ("index", "index.db", lambda path: path.write_bytes(b"noise" * 1000)),
    "pipe": ("places", "index.db-wal", os.mkfifo),
    "log": ("places", "logs/done.jsonl", link_to_nowhere),
    "upload": ("orphans", "uploads/u/nobody", lambda path: path.mkdir(parents=True)),
    "result": ("orphans", "results/v/nobody", lambda path: path.mkdir(parents=True)),
    "orphaned log": ("orphans", "logs/nobody.jsonl", lambda path: path.touch()),
    "version": ("format", "VERSION", lambda path: path.write_text("")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_mended_without_deleting_anything(sound: Layout, fault: str) -> None:
    """What is set aside lies with its reason in corrupt/ or trash/, and is named by what it was."""
    check, place, make = FAULTS[fault]
    path = Path(sound.data, place)
    make(path)
    before = {at.name for at in Path(sound.data).rglob("*")}
    (found,) = ill(sound)
    assert (found.check, bool(found.remedy), found.repair is not None) == (check, True, True)
    assert {at.name for at in Path(sound.data).rglob("*")} == before
    assert found.repair is not None
    found.repair()
    assert {one.check for one in ill(sound)} <= {"corrupt", "orphans", "index"}
    kept = [at.name for name in ("corrupt", "trash") for at in Path(sound.data).glob(f"{name}/*")]
    assert check == "index" or {name.rpartition(".reason")[0] for name in kept if name.endswith(".reason.txt")}


def test_a_damaged_segment_is_told_and_left_to_the_next_start(stores: Stores, sound: Layout) -> None:
    """Recovery uses what can be read, and keeps a copy."""
    store = stores.open(Path(sound.data), LAZY)
    create(store, "a", "b", "c")
    segment = max(Path(sound.journal).glob("*.log"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    assert [(one.check, one.items) for one in ill(sound)] == [("journal", (segment.name,))]


def test_a_file_that_the_disk_does_not_give_is_told_and_left_where_it_is(sound: Layout) -> None:
    """It may be there again; nothing that belongs to it is an orphan."""
    disk = FaultyFiles()
    disk.fail("open", "done.json")
    (found,) = ill(sound, disk)
    assert (found.check, found.remedy, found.items) == ("disk", "", ("done.json: Input/output error",))


def test_a_task_without_its_file_is_told(sound: Layout) -> None:
    """Nobody but a person can do something about it."""
    Path(sound.data, "uploads/u/wait/in.txt").unlink()
    (found,) = ill(sound)
    assert (found.check, found.items, found.remedy) == ("files", ("wait (uploads/u/wait/in.txt)",), "")


def test_what_the_owner_knows_is_no_orphan(sound: Layout) -> None:
    """It is asked before anything is called so."""
    upload = Path(sound.data, "uploads/u/new")
    upload.mkdir()
    assert [one.check for one in ill(sound)] == ["orphans"]
    assert ill(sound, exists=lambda task_id: False) == []  # it may be on its way
    os.utime(upload, (0, 0))
    assert [one.check for one in ill(sound, exists=lambda task_id: False)] == ["orphans"]
    assert ill(sound, exists=lambda task_id: task_id == "new") == []


def test_of_a_newer_format_nothing_else_is_said(sound: Layout) -> None:
    """What a task is, only the version that wrote it knows; and there is no remedy."""
    Path(sound.version).write_text("2\n")
    Path(sound.data, "tasks", "odd.json").touch()
    (found,) = ill(sound)
    assert (found.check, found.remedy, "newer" in found.text) == ("format", "", True)


def test_a_task_of_the_journal_alone_is_nobodys_fault(stores: Stores, sound: Layout, tmp_path: Path) -> None:
    """Its file, missing or torn, is written by the next start."""
    store = stores.open(Path(sound.data), OPTIONS)
    create(store, "late")
    store.writer.flush()
    killed = Layout(shutil.copytree(sound.data, tmp_path / "killed"))
    Path(killed.task("late")).write_text("{")
    assert ill(killed) == []
    Path(killed.task("late")).unlink()
    assert ill(killed) == []
    assert make_task("late").id in {task.id for task in stores.open(Path(killed.data)).live()}
