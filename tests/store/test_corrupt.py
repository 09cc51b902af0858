"""Whatever lies in the place of a file, the store opens, the others are there, and what was damaged is kept aside."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.errors import CorruptRecord, Degraded, FormatError, NotFound
from runner.store import Files, Layout, SaveUser, Store, TaskQuery, User
from runner.store.journal import Kind, decode, encode, replay
from runner.store.recovery import check_format
from runner.task import from_json, to_json
from tests.store.samples import LAZY, NOW, FaultyFiles, Stores, crash, create, finish, make_task

USERS = [User(user_id=user_id, created_at=NOW, last_accessed=NOW) for user_id in ("u", "v")]
NEWER = json.dumps({**json.loads(to_json(make_task("wait"))), "colour": "red"}).encode()
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "torn": lambda content: content[: len(content) // 2],
    "noise": lambda content: random.Random(1).randbytes(700),
    "zeros": lambda content: bytes(700),
    "deep": lambda content: b"[" * 100_000,
    "deep object": lambda content: b'{"id":' * 100_000,
    "list": lambda content: b"[1, 2]",
    "null": lambda content: b"null",
    "object": lambda content: b'{"id": 1e400}',
    "newer": lambda content: NEWER,
}
SHAPES = ("link", "dead link", "loop", "pipe", "directory", "socket")
RECORDS = ("tasks/wait.json", "tasks/done.json", "users/u.json")
"""What is set aside, with a reason, whatever it is."""
OWN = ("index.db", "index.db-wal", "index.db-shm", "journal/rewrite", "locks/scribe.lock", "tmp/.write", "tmp/.reason")
"""What the store can do without."""


def ruin(path: Path, kind: str) -> None:
    """Puts something else in the place of a file."""
    content = path.read_bytes() if path.is_file() else b""
    path.unlink(missing_ok=True)
    if kind in CONTENTS:
        path.write_bytes(CONTENTS[kind](content))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
        (path / "inside").touch()
    elif kind == "socket":
        _bind(path)
    else:
        elsewhere = path.parent.parent / f"{path.name}.elsewhere"
        if kind == "link":
            elsewhere.write_bytes(content)
        path.symlink_to(path if kind == "loop" else elsewhere)


def _bind(path: Path) -> None:
    """A path of a test may be too long for an address."""
    before = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(before)


class Memory(Files):
    """A disk on which some files have another content than on the real one, so that a thousand of them are quick."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def read(self, path: str) -> bytes:
        return self.contents[path] if path in self.contents else super().read(path)


def flipped(data: bytes, place: int, chance: random.Random) -> bytes:
    """The same with one bit of that byte turned."""
    return data[:place] + bytes((data[place] ^ 1 << chance.randrange(8),)) + data[place + 1 :]


@pytest.fixture
def killed(lazy_store: Store, tmp_path: Path) -> Path:
    """A directory as a kill left it: some tasks in files and index, one only in the journal."""
    create(lazy_store, "wait", "other", "done")
    finish(lazy_store, "done")
    lazy_store.commit([SaveUser(user) for user in USERS])
    lazy_store.checkpointer.checkpoint()
    create(lazy_store, "late")
    return crash(lazy_store, tmp_path / "killed")


def ids(store: Store) -> set[str]:
    """The tasks that a list has."""
    return {task.id for task in store.list(TaskQuery(size=100)).tasks}


def set_aside(data: Path) -> set[str]:
    """What is in corrupt/; each with its reason beside it."""
    names = set(os.listdir(data / "corrupt"))
    reasons = {name for name in names if name.endswith(".reason.txt")}
    assert {name.removesuffix(".reason.txt") for name in reasons} == names - reasons
    assert all((data / "corrupt" / name).read_text().strip() for name in reasons)
    return names - reasons


@pytest.mark.parametrize("kind", [*CONTENTS, *SHAPES])
def test_a_record_that_is_something_else_is_set_aside_and_the_others_go_on(
    killed: Path, stores: Stores, kind: str
) -> None:
    """Unfinished, finished, user: it is gone, never read as empty, and never fatal."""
    for place in RECORDS:
        ruin(killed / place, kind)
    store = stores.open(killed, LAZY)
    assert (store.find("wait"), store.find("done")) == (None, None)
    with pytest.raises(NotFound):
        store.get_user("u")
    assert store.get_user("v") == USERS[1]
    create(store, "new")
    assert ids(store) == {"other", "late", "new"}
    assert set_aside(killed) == {"wait.json", "done.json", "u.json"}


@pytest.mark.parametrize("kind", [*CONTENTS, *SHAPES])
def test_whatever_is_in_the_place_of_the_stores_own_files_nothing_is_lost(
    killed: Path, stores: Stores, kind: str
) -> None:
    """Index, notes, locks, temporary files: none of them is the truth, and no link or pipe in their place is used."""
    for place in OWN:
        ruin(killed / place, kind)
    store = stores.open(killed, LAZY)
    finish(store, "late")
    store.checkpointer.checkpoint()
    assert ids(store) == {"wait", "other", "done", "late"}
    assert store.get_task("late").is_terminal
    assert not [path for path in killed.glob("*.elsewhere") if path.name != "index.db.elsewhere" and path.read_bytes()]


@pytest.mark.parametrize("kind", [*(name for name in CONTENTS if name != "torn"), *SHAPES])
def test_a_format_that_cannot_be_read_is_refused_in_one_line(killed: Path, kind: str) -> None:
    """To guess would be to destroy what a newer version has written."""
    ruin(killed / "VERSION", kind)
    with pytest.raises(FormatError, match=r"VERSION does not say a format") as refused:
        check_format(Files(), Layout(killed))
    assert len(str(refused.value)) < 300 + len(str(killed))


def test_no_truncation_of_a_task_file_is_taken_for_a_task(killed: Path, stores: Stores) -> None:
    """Every one of them; the last line's end alone may be missing."""
    disk = Memory()
    store = stores.open(killed, LAZY, files=disk)
    path = Path(store.layout.task("done"))
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        disk.contents[str(path)] = whole[:length]
        with pytest.raises(CorruptRecord):
            from_json(whole[:length])
    assert store.find("done") is None
    assert set_aside(killed) == {"done.json"}


def test_no_flipped_bit_in_a_task_file_is_an_error(killed: Path, stores: Stores) -> None:
    """It is the task, with another value, or it is none: a file has no checksum, so that people can edit it."""
    disk, chance = Memory(), random.Random(2)
    store = stores.open(killed, LAZY, files=disk)
    path = Path(store.layout.task("done"))
    whole = path.read_bytes()
    for place in range(len(whole)):
        disk.contents[str(path)] = flipped(whole, place, chance)
        task = store.find("done")
        assert task is None or task.id == "done"
        if task is None and not path.exists():
            path.write_bytes(whole)


def test_no_truncation_and_no_flipped_bit_of_the_journal_gives_what_nobody_wrote(killed: Path) -> None:
    """What is read back are whole records, in their order."""
    segment = max((killed / "journal").glob("*.log"))
    disk, chance = Memory(), random.Random(3)
    whole = (
        b"".join(encode(seq, Kind.TASK, to_json(make_task(f"t{seq}"))) for seq in range(1, 5)) + segment.read_bytes()
    )
    written = [entry.body for _, entry in decode(whole)]
    for place in range(len(whole)):
        for data in (whole[:place], flipped(whole, place, chance)):
            disk.contents["1.log"] = data
            bodies = [entry.body for entry in replay(disk, "1.log", 1)[1]]
            assert [body for body in written if body in bodies] == bodies


def test_a_sound_record_with_wrong_content_costs_nothing_but_itself(killed: Path, stores: Stores) -> None:
    """Its checksum is right, so somebody wrote it: a copy is kept, and no good file is written over."""
    segment = max((killed / "journal").glob("*.log"))
    seq = 1 + max(entry.seq for _, entry in decode(segment.read_bytes()))
    bodies = [
        (Kind.TASK, b'{"id":"done"}'), (Kind.TASK, b'{"id":"unended'), (Kind.TASK, b"[]"), (Kind.USER, b"{}"),
        (Kind.REMOVAL, b"\xff/\xff"), (Kind.TASK, NEWER), (Kind.TASK, to_json(make_task("last"))),
    ]  # fmt: skip
    with segment.open("ab") as journal:
        journal.write(b"".join(encode(seq + place, *record) for place, record in enumerate(bodies)))
    store = stores.open(killed, LAZY)
    assert ids(store) == {"wait", "other", "done", "late", "last"}
    assert store.get_task("done").is_terminal
    assert any("record of task done is left out" in note for note in stores.found.notes)
    assert (killed / "corrupt" / segment.name).read_bytes() == segment.read_bytes()


ODD_NAMES = (
    ".json", ".hidden.json", "a b.json", "UPPER.json", "no-ending", "wait.json~", "wait.json.tmp", "x" * 250 + ".json",
    "名.json", os.fsdecode(b"\xff\xfe.json"), "line\nbreak.json", "\x1b[31m.json",
)  # fmt: skip


@pytest.mark.parametrize("rebuilt", [False, True])
def test_names_that_nobody_gave_do_no_harm(killed: Path, stores: Stores, rebuilt: bool) -> None:
    """Among tasks, users, segments and logs; what is no task is set aside when all files are read."""
    for folder in ("tasks", "users", "journal", "logs", "uploads", "results", "tmp", "locks", "corrupt"):
        for name in ODD_NAMES:
            (killed / folder / name).write_text("?")
    for digits in ("²".encode(), "١".encode(), b"-1", b"", b"9" * 40):
        (killed / "journal" / os.fsdecode(digits + b".log")).write_text("?")
    if rebuilt:
        (killed / "index.db").unlink()
    store = stores.open(killed, LAZY)
    assert ids(store) == {"wait", "other", "done", "late"}
    assert store.find(".hidden") is store.find("UPPER") is None
    assert not set(ODD_NAMES[:4]) & set(os.listdir(killed / "tasks")) if rebuilt else True
    store.checkpointer.checkpoint()


def test_a_task_file_under_another_name_is_no_second_task(killed: Path, stores: Stores) -> None:
    """A copy that a person made; the one that has its name stays the truth."""
    shutil.copy(killed / "tasks" / "done.json", killed / "tasks" / "copy.json")
    (killed / "index.db").unlink()
    store = stores.open(killed, LAZY)
    assert ids(store) == {"wait", "other", "done", "late"}
    assert set_aside(killed) == {"copy.json"}


def test_a_user_record_of_somebody_else_is_set_aside(killed: Path, stores: Stores) -> None:
    """Or a copied file would be a second user with the same secret."""
    shutil.copy(killed / "users" / "v.json", killed / "users" / "w.json")
    store = stores.open(killed, LAZY)
    with pytest.raises(NotFound):
        store.get_user("w")
    assert set_aside(killed) == {"w.json"}


def test_a_user_record_that_the_disk_does_not_give_is_no_new_user(killed: Path, stores: Stores) -> None:
    """It may be there again in a moment, and a record made anew would be written over it."""
    disk = FaultyFiles()
    store = stores.open(killed, LAZY, files=disk)
    disk.fail("open", "users/u.json")
    with pytest.raises(Degraded, match=r"u\.json cannot be read"):
        store.get_user("u")
    disk.heal()
    assert store.get_user("u") == USERS[0]


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_removed_may_be_anything(killed: Path, kind: str) -> None:
    """A pipe is not waited for, and what a link leads to stays."""
    elsewhere = killed / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    path = killed / "results" / "x"
    if kind == "link":
        path.symlink_to(elsewhere)
    else:
        ruin(path, kind)
    Files().remove_tree(str(path))
    assert not os.path.lexists(path)
    assert (elsewhere / "kept").exists()
