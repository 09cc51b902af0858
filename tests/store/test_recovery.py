"""Whatever state the last owner left the directory in: what was acknowledged is there, and it opens.

Each test copies the directory of a store that is still open, as a kill would leave it, does something to the copy, and
opens it.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner import task as transitions
from runner.errors import Degraded, FormatError
from runner.store import Durability, Files, Layout, Remove, RemoveUser, SaveUser, Store, TaskQuery, Update, User
from runner.store import recovery as module
from runner.store.aside import quarantine
from runner.store.index import Index
from runner.store.journal import Kind, encode
from runner.store.recovery import check_format, recover
from runner.task import Status, from_json, to_json, to_pretty_json
from tests.store.samples import LATER, LAZY, NOW, FaultyFiles, Stores, create, fail, finish, make_task, start


class Crash:
    """The directory as a kill left it, and what the next owner makes of it."""

    def __init__(self, path: Path, stores: Stores) -> None:
        self.path = path
        self.layout = Layout(path)
        self._stores = stores

    @property
    def segment(self) -> Path:
        """The newest segment of the journal."""
        return max(Path(self.layout.journal).glob("*.log"))

    @property
    def notes(self) -> str:
        """What recovery said."""
        return "\n".join(self._stores.found.notes)

    @property
    def found(self) -> module.Recovered:
        """What recovery found."""
        return self._stores.found

    def open(self, files: Files | None = None) -> Store:
        """The next owner."""
        return self._stores.open(self.path, LAZY, files=files)


@pytest.fixture
def crash(lazy_store: Store, stores: Stores, tmp_path: Path) -> Callable[[], Crash]:
    """Makes the copy."""

    def make() -> Crash:
        return Crash(Path(shutil.copytree(lazy_store.layout.data, tmp_path / "crashed", symlinks=True)), stores)

    return make


MakeCrash = Callable[[], Crash]


def statuses(store: Store) -> dict[str, str]:
    """What a list says of every task, and the files say the same."""
    tasks = store.list(TaskQuery(size=1000)).tasks
    return {task.id: task.status for task in tasks}


def populate(store: Store) -> None:
    """A task of each kind."""
    create(store, "wait", "run", "done", "failed", "again", "gone")
    create(store, "draft", status=Status.CREATED)
    start(store, "run")
    finish(store, "done")
    for task_id in ("failed", "again", "gone"):
        fail(store, task_id)
    store.commit((Update("again", lambda task: transitions.retry(task, LATER)), Remove("gone")))


POPULATION = {
    "wait": "pending", "run": "processing", "done": "completed", "failed": "failed", "again": "pending",
    "draft": "created",
}  # fmt: skip


@pytest.mark.parametrize("flushed", ["nothing", "rows", "everything", "checkpoint", "half"])
def test_everything_acknowledged_is_there_after_a_kill(lazy_store: Store, crash: MakeCrash, flushed: str) -> None:
    """However far the files and the index were behind the journal."""
    populate(lazy_store)
    if flushed == "rows":
        lazy_store.writer.flush_rows()
    elif flushed == "checkpoint":
        lazy_store.checkpointer.checkpoint()
    elif flushed != "nothing":
        lazy_store.writer.flush()
    if flushed == "half":
        create(lazy_store, "later")
        finish(lazy_store, "wait")
    crashed = crash()
    expected = POPULATION | ({"later": "pending", "wait": "completed"} if flushed == "half" else {})
    store = crashed.open()
    assert statuses(store) == expected
    assert {task.id for task in crashed.found.live} == {
        task_id for task_id, status in expected.items() if status in ("pending", "processing", "created")
    }
    files = {name.removesuffix(".json") for name in os.listdir(crashed.layout.tasks)}
    assert files == expected.keys()


def test_recovery_can_be_killed_and_done_again(lazy_store: Store, crash: MakeCrash) -> None:
    """It changes nothing that the second one needs."""
    populate(lazy_store)
    crashed = crash()
    for _ in range(3):
        index = Index(crashed.layout.index)
        found = recover(Files(), crashed.layout, index, lambda line: None)
        index.close()
        assert len(found.live) == 4
    assert statuses(crashed.open()) == POPULATION


def test_unfinished_tasks_come_oldest_first(lazy_store: Store, crash: MakeCrash) -> None:
    """They queue again in this order."""
    for hour in (3, 1, 2):
        create(lazy_store, f"t{hour}", created_at=NOW.replace(hour=hour))
    crashed = crash()
    crashed.open()
    assert [task.id for task in crashed.found.live] == ["t1", "t2", "t3"]


def test_numbers_go_on_behind_those_of_the_last_owner(lazy_store: Store, crash: MakeCrash, stores: Stores) -> None:
    """Segments and records: the one after that finds no gap."""
    create(lazy_store, "t1")
    crashed = crash()
    create(crashed.open(), "t2")
    later = Crash(Path(shutil.copytree(crashed.path, crashed.path.parent / "twice")), stores)
    assert (statuses(later.open()), later.found.last_segment, later.found.last_seq) == (
        {"t1": "pending", "t2": "pending"},
        2,
        2,
    )
    assert later.notes == ""


# Files against the journal


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "other", "link", "pipe", "directory", "older"])
def test_a_file_that_is_behind_is_rewritten_from_the_journal(lazy_store: Store, crash: MakeCrash, damage: str) -> None:
    """Whatever is there in its place."""
    create(lazy_store, "t1")
    finish(lazy_store, "t1")
    lazy_store.writer.flush()
    crashed = crash()
    path = Path(crashed.layout.task("t1"))
    content = path.read_bytes()
    path.unlink()
    ruin(path, damage, content)
    assert crashed.open().get_task("t1").status is Status.COMPLETED
    assert path.read_bytes() == content


def ruin(path: Path, damage: str, content: bytes) -> None:
    """Puts something else there."""
    if damage == "link":
        path.symlink_to(__file__)
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage == "directory":
        (path / "inside").mkdir(parents=True)
    elif damage != "missing":
        other = {"empty": b"", "torn": content[:50], "other": content.replace(b'"t1"', b'"t2"'), "older": b""}
        older = to_pretty_json(make_task("t1"))
        path.write_bytes(older if damage == "older" else other[damage])


def test_a_file_that_is_newer_than_the_journal_is_kept(lazy_store: Store, crash: MakeCrash) -> None:
    """In durability `process` a power cut may take the journal's end and leave the file."""
    create(lazy_store, "t1")
    crashed = crash()
    newer = transitions.cancel(make_task("t1"), LATER)
    Path(crashed.layout.task("t1")).write_bytes(to_pretty_json(newer))
    store = crashed.open()
    assert (store.get_task("t1"), statuses(store), crashed.found.rewritten) == (newer, {"t1": "cancelled"}, 0)


def test_a_file_that_is_up_to_date_is_left_alone(lazy_store: Store, crash: MakeCrash) -> None:
    """Recovery costs reads, not writes."""
    populate(lazy_store)
    lazy_store.writer.flush()
    crashed = crash()
    crashed.open()
    assert crashed.found.rewritten == 0


def test_after_a_failed_sync_even_newer_files_are_written_again(lazy_store: Store, crash: MakeCrash) -> None:
    """In the version that they have."""
    create(lazy_store, "t1")
    crashed = crash()
    newer = transitions.cancel(make_task("t1"), LATER)
    path = Path(crashed.layout.task("t1"))
    path.write_bytes(to_pretty_json(newer))
    Path(crashed.layout.rewrite).touch()
    inode = path.stat().st_ino
    assert crashed.open().get_task("t1") == newer
    assert path.stat().st_ino != inode


def test_a_removed_task_stays_removed(lazy_store: Store, crash: MakeCrash) -> None:
    """With its log, inputs, outputs and row, though a kill came before they went."""
    create(lazy_store, "t1")
    fail(lazy_store, "t1")
    lazy_store.writer.flush()
    lazy_store.commit((Remove("t1"),))
    crashed = crash()
    Path(crashed.layout.upload("u", "t1")).mkdir(parents=True)
    store = crashed.open()
    assert (store.find("t1"), statuses(store)) == (None, {})
    assert not Path(crashed.layout.upload("u", "t1")).exists()


def test_users_are_recovered_with_the_tasks(lazy_store: Store, crash: MakeCrash) -> None:
    """The saved are there, the removed are not."""
    for user_id in ("u", "v"):
        lazy_store.commit((SaveUser(User(user_id=user_id, created_at=NOW, last_accessed=NOW)),))
    lazy_store.commit((RemoveUser("v"),))
    crashed = crash()
    assert crashed.open().user_ids() == ("u",)


# Files that no journal knows


@pytest.mark.parametrize("damage", ["empty", "torn", "other", "link", "pipe", "directory"])
def test_an_unfinished_task_whose_file_is_damaged_is_set_aside_with_a_reason(
    lazy_store: Store, crash: MakeCrash, damage: str
) -> None:
    """It is never read as empty, its row goes, and the others run."""
    create(lazy_store, "t1", "t2")
    lazy_store.checkpointer.checkpoint()
    crashed = crash()
    path = Path(crashed.layout.task("t1"))
    content = path.read_bytes()
    path.unlink()
    ruin(path, damage, content)
    store = crashed.open()
    assert (statuses(store), store.find("t1")) == ({"t2": "pending"}, None)
    assert sorted(os.listdir(crashed.layout.corrupt)) == ["t1.json", "t1.json.reason.txt"]
    assert Path(crashed.layout.corrupt, "t1.json.reason.txt").read_text().strip() in crashed.notes


def test_a_finished_task_whose_file_is_damaged_is_set_aside_when_it_is_looked_at(
    lazy_store: Store, crash: MakeCrash
) -> None:
    """A million of them are not looked at before."""
    create(lazy_store, "t1", "t2")
    finish(lazy_store, "t1")
    finish(lazy_store, "t2")
    lazy_store.checkpointer.checkpoint()
    crashed = crash()
    Path(crashed.layout.task("t1")).write_bytes(b"{")
    store = crashed.open()
    assert store.find("t1") is None
    assert statuses(store) == {"t2": "completed"}
    assert "t1.json" in os.listdir(crashed.layout.corrupt)


def test_a_task_file_deleted_by_hand_makes_that_task_gone(lazy_store: Store, crash: MakeCrash) -> None:
    """Finished or not, without an error, and lists and counts follow."""
    populate(lazy_store)
    lazy_store.checkpointer.checkpoint()
    crashed = crash()
    for task_id in ("wait", "done"):
        Path(crashed.layout.task(task_id)).unlink()
    store = crashed.open()
    rest = {task_id: status for task_id, status in POPULATION.items() if task_id not in ("wait", "done")}
    assert (statuses(store), store.find("wait"), store.find("done")) == (rest, None, None)
    assert store.count(TaskQuery()) == len(rest)
    assert crashed.notes == ""


def test_a_task_file_put_there_by_hand_is_found_by_its_id(lazy_store: Store, crash: MakeCrash) -> None:
    """And in lists after the index is deleted."""
    crashed = crash()
    Path(crashed.layout.task("t9")).write_bytes(to_pretty_json(make_task("t9", status=Status.CANCELLED)))
    Path(crashed.layout.index).unlink()
    store = crashed.open()
    assert (store.get_task("t9").id, statuses(store)) == ("t9", {"t9": "cancelled"})


def test_two_damaged_files_of_one_name_are_both_kept(layout: Layout, files: FaultyFiles) -> None:
    """Nothing in corrupt/ is overwritten, whatever it is."""
    for content in ("first", "second"):
        Path(layout.task("t1")).write_text(content)
        quarantine(files, layout, layout.task("t1"), f"it is the {content}")
    corrupt = Path(layout.corrupt)
    assert [(corrupt / name).read_text() for name in ("t1.json", "t1.json.2")] == ["first", "second"]
    assert (corrupt / "t1.json.2.reason.txt").read_text() == "it is the second\n"


def test_an_unfinished_task_that_cannot_be_read_is_left_out_and_stays(
    lazy_store: Store, crash: MakeCrash, files: FaultyFiles
) -> None:
    """One bad sector must not keep the others from running; the next start tries again."""
    create(lazy_store, "t1", "t2")
    lazy_store.checkpointer.checkpoint()
    crashed = crash()
    disk = FaultyFiles()
    disk.fail("open", "t1.json")
    store = crashed.open(disk)
    assert [task.id for task in crashed.found.live] == ["t2"]
    assert "t1.json cannot be read and is left out: Input/output error" in crashed.notes
    with pytest.raises(Degraded, match="t1.json cannot be read"):
        store.get_task("t1")
    assert statuses(store) == {"t2": "pending"}
    disk.heal()
    assert statuses(store) == {"t1": "pending", "t2": "pending"}


# The journal


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\x13", encode(99, Kind.TASK, to_json(make_task("t9")))[:-1]])
def test_a_torn_tail_is_ignored_without_a_word(
    lazy_store: Store, crash: MakeCrash, stores: Stores, tail: bytes
) -> None:
    """Every kill may leave one, and it is no news at the starts after that either."""
    create(lazy_store, "t1")
    crashed = crash()
    with crashed.segment.open("ab") as segment:
        segment.write(tail)
    create(crashed.open(), "t2")
    later = Crash(Path(shutil.copytree(crashed.path, crashed.path.parent / "twice")), stores)
    assert statuses(later.open()) == {"t1": "pending", "t2": "pending"}
    assert (crashed.notes, later.notes, os.listdir(later.layout.corrupt)) == ("", "", [])


def test_damage_in_the_midst_costs_what_it_hit_and_is_said(lazy_store: Store, crash: MakeCrash) -> None:
    """The rest is used; a copy is kept for a person."""
    create(lazy_store, "t1", "t2", "t3")
    crashed = crash()
    whole = bytearray(crashed.segment.read_bytes())
    whole[len(whole) // 2] ^= 1
    name = crashed.segment.name
    crashed.segment.write_bytes(whole)
    assert statuses(crashed.open()) == {"t1": "pending", "t3": "pending"}
    assert f"journal segment {name} is damaged" in crashed.notes
    assert Path(crashed.layout.corrupt, name).read_bytes() == whole


def test_a_missing_end_of_an_older_segment_is_said(lazy_store: Store, crash: MakeCrash) -> None:
    """The next one's numbers begin too late for it to have been torn by a crash."""
    create(lazy_store, "t1", "t2")
    lazy_store.committer.rotate()
    create(lazy_store, "t3")
    crashed = crash()
    first = min(Path(crashed.layout.journal).glob("*.log"))
    first.write_bytes(first.read_bytes()[:-10])
    assert statuses(crashed.open()) == {"t1": "pending", "t3": "pending"}
    assert f"journal segment {first.name} is damaged" in crashed.notes


def test_a_segment_that_is_no_file_is_set_aside(lazy_store: Store, crash: MakeCrash) -> None:
    """The other segments are used."""
    create(lazy_store, "t1")
    crashed = crash()
    Path(crashed.layout.journal, "0000000000000000.log").symlink_to(__file__)
    assert statuses(crashed.open()) == {"t1": "pending"}
    assert "0000000000000000.log: it is a link" in crashed.notes


def test_a_segment_that_cannot_be_read_stops_the_start(lazy_store: Store, crash: MakeCrash, stores: Stores) -> None:
    """To go on without it would lose what was acknowledged; and nothing stays open."""
    create(lazy_store, "t1")
    crashed = crash()
    disk = FaultyFiles()
    disk.fail("open", ".log")
    with pytest.raises(OSError, match="Input/output error"):
        crashed.open(disk)
    disk.heal()
    assert statuses(crashed.open(disk)) == {"t1": "pending"}


@pytest.mark.parametrize("seed", range(20))
def test_no_flipped_bit_anywhere_keeps_the_store_from_opening(lazy_store: Store, crash: MakeCrash, seed: int) -> None:
    """In journal, files and index; what is left is what some record said."""
    chance = random.Random(seed)
    populate(lazy_store)
    lazy_store.writer.flush()
    crashed = crash()
    paths = [crashed.segment, Path(crashed.layout.index), *Path(crashed.layout.tasks).iterdir()]
    for path in paths:
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    store = crashed.open()
    assert statuses(store).keys() <= POPULATION.keys()
    assert len(statuses(store)) >= len(POPULATION) - 1


def test_a_record_whose_id_is_not_at_its_front_is_read_all_the_same(lazy_store: Store, crash: MakeCrash) -> None:
    """Another version may write the fields in another order."""
    crashed = crash()
    turned = json.dumps(dict(reversed(json.loads(to_json(make_task("t1"))).items()))).encode()
    crashed.segment.write_bytes(encode(1, Kind.TASK, turned))
    assert statuses(crashed.open()) == {"t1": "pending"}


# The index


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "directory", "schema", "pages", "link"])
def test_an_index_that_cannot_be_used_is_rebuilt(lazy_store: Store, crash: MakeCrash, damage: str) -> None:
    """It is a cache: deleted, damaged or of another schema, nothing is lost."""
    populate(lazy_store)
    lazy_store.checkpointer.checkpoint()
    crashed = crash()
    path = Path(crashed.layout.index)
    ruin_index(path, damage)
    assert statuses(crashed.open()) == POPULATION
    assert len(crashed.found.live) == 4


def test_an_index_deleted_while_somebody_uses_it_costs_nothing(lazy_store: Store, crash: MakeCrash) -> None:
    """It is read and written on until the end, though nobody sees it, and made anew by the next owner."""
    populate(lazy_store)
    lazy_store.writer.flush()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{lazy_store.layout.index}{suffix}").unlink()
    create(lazy_store, "later")
    lazy_store.writer.flush()
    assert statuses(lazy_store) == POPULATION | {"later": "pending"}
    lazy_store.checkpointer.checkpoint()
    assert statuses(crash().open()) == POPULATION | {"later": "pending"}


def ruin_index(path: Path, damage: str) -> None:
    """Does that to it."""
    if damage == "pages":
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        data = path.read_bytes()
        path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
        return
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    if damage == "directory":
        path.mkdir()
    elif damage == "link":
        path.symlink_to("nowhere")
    elif damage == "schema":
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
    elif damage != "missing":
        path.write_bytes(b"" if damage == "empty" else b"garbage" * 1000)


def test_a_rebuild_says_how_far_it_is_and_sets_aside_what_is_no_task(
    lazy_store: Store, crash: MakeCrash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million files take a while."""
    monkeypatch.setattr(module, "REBUILD_CHUNK", 2)
    populate(lazy_store)
    lazy_store.checkpointer.checkpoint()
    crashed = crash()
    Path(crashed.layout.index).unlink()
    Path(crashed.layout.tasks, "stranger.json").write_text("{}")
    Path(crashed.layout.tasks, "\udcff.json").write_text("{}")
    Path(crashed.layout.tasks, "notes.txt").write_text("not ours")
    said: list[str] = []
    index = Index(crashed.layout.index)
    recover(Files(), crashed.layout, index, said.append)
    index.close()
    assert said[-1] == "rebuilding the index: 8 of 8 tasks"
    assert {"stranger.json", "\udcff.json"} <= set(os.listdir(crashed.layout.corrupt))
    assert Path(crashed.layout.tasks, "notes.txt").exists()


def test_a_row_that_is_behind_its_file_is_mended(lazy_store: Store, crash: MakeCrash) -> None:
    """The file was edited, or restored, while nobody owned the directory."""
    create(lazy_store, "t1")
    lazy_store.checkpointer.checkpoint()
    crashed = crash()
    Path(crashed.layout.task("t1")).write_bytes(to_pretty_json(transitions.cancel(make_task("t1"), LATER)))
    assert statuses(crashed.open()) == {"t1": "cancelled"}
    assert crashed.found.live == []


def test_a_disk_that_fails_under_the_index_is_not_taken_for_damage(
    lazy_store: Store, crash: MakeCrash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To delete and rebuild it would make things worse."""
    create(lazy_store, "t1")
    crashed = crash()

    def fail(*_: Any) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("runner.store.scribe.write_rows", fail)
        with pytest.raises(OSError, match="disk I/O error"):
            crashed.open()
    assert statuses(crashed.open()) == {"t1": "pending"}


# The format


def test_a_new_directory_gets_todays_format(layout: Layout, files: FaultyFiles) -> None:
    """And is accepted afterwards."""
    check_format(files, layout)
    assert Path(layout.version).read_text() == "1\n"
    check_format(files, layout)


@pytest.mark.parametrize("text", ["2\n", "999", "", "one", "0", "-1", "1.5", "\N{SUPERSCRIPT TWO}", "9" * 5000])
def test_another_format_is_refused_untouched(data: Path, stores: Stores, layout: Layout, text: str) -> None:
    """A newer version knows what to do with it; this one would not."""
    Path(layout.version).write_text(text)
    with pytest.raises(FormatError, match="newer version of the runner|does not say a format"):
        stores.open(data)
    assert Path(layout.version).read_text() == text
    assert os.listdir(layout.journal) == []


def test_a_format_file_that_is_none_is_refused(layout: Layout, files: FaultyFiles) -> None:
    """Better no start than a wrong one."""
    Path(layout.version).symlink_to(__file__)
    with pytest.raises(FormatError, match="VERSION does not say a format: it is a link"):
        check_format(files, layout)


def test_an_older_format_is_brought_up_step_by_step(
    layout: Layout, files: FaultyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short anywhere, it goes on from there."""
    monkeypatch.setattr(module, "FORMAT", 3)
    Path(layout.version).write_text("1\n")
    done: list[int] = []

    def second(files: Files, layout: Layout) -> None:
        done.append(2)
        if done == [1, 2]:
            raise OSError(errno.EIO, "cut short")

    migrations = {1: lambda files, layout: done.append(1), 2: second}
    with pytest.raises(OSError, match="cut short"):
        check_format(files, layout, migrations)
    assert Path(layout.version).read_text() == "2\n"
    check_format(files, layout, migrations)
    assert (done, Path(layout.version).read_text()) == ([1, 2, 2], "3\n")


FORMAT_1 = Path(__file__).parent.parent / "fixtures" / "format-1"


def test_a_directory_of_format_1_loads_for_ever(stores: Stores, tmp_path: Path) -> None:
    """The fixture was written by the first version: a checkpoint, and a journal that goes on from it, cut by a kill."""
    data = Path(shutil.copytree(FORMAT_1, tmp_path / "old"))
    store = stores.open(data)
    expected = json.loads((FORMAT_1 / "EXPECTED.json").read_text())
    assert statuses(store) == expected["statuses"]
    assert [store.get_user(user_id).user_id for user_id in expected["users"]] == expected["users"]
    assert store.find(expected["removed"]) is None
    for task_id in expected["statuses"]:
        assert from_json(to_json(store.get_task(task_id))) == store.get_task(task_id)


# Room


def test_on_a_full_disk_the_ballast_lets_the_store_open(lazy_store: Store, crash: MakeCrash) -> None:
    """Or a runner that stopped on a full disk could not be started to clean up."""
    create(lazy_store, "t1")
    crashed = crash()
    ballast = Path(crashed.layout.locks, "ballast")
    ballast.touch()
    disk = FaultyFiles()
    disk.fail("write", ".write", errno.ENOSPC, times=1)
    assert statuses(crashed.open(disk)) == {"t1": "pending"}
    assert not ballast.exists()


def test_without_room_the_start_says_so(lazy_store: Store, crash: MakeCrash) -> None:
    """And leaves everything as it is."""
    create(lazy_store, "t1")
    crashed = crash()
    disk = FaultyFiles()
    disk.fail("write", ".write", errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        crashed.open(disk)
    assert statuses(crashed.open()) == {"t1": "pending"}


def test_in_durability_process_a_kill_loses_nothing_either(stores: Stores, data: Path, tmp_path: Path) -> None:
    """Only a power cut may."""
    store = stores.open(data, replace(LAZY, durability=Durability.PROCESS))
    populate(store)
    crashed = Crash(Path(shutil.copytree(data, tmp_path / "killed")), stores)
    assert statuses(crashed.open()) == POPULATION
