"""The inbox as a person sees it: what is dropped, where it goes, and what is said about it."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.errors import DiskFull
from runner.intake import inbox, taking
from runner.intake.folders import Folder
from runner.intake.forecast import Forecast
from runner.intake.inbox import Notice
from runner.intake.names import path_of
from runner.task import Status
from tests.intake.conftest import Site

MakeSite = Callable[..., Site]


def _why(site: Site, name: str) -> str:
    return site.inbox.explain(str(site.data / "inbox" / name)).kind


# Taking


def test_a_dropped_file_becomes_a_task_and_leaves_the_inbox(site: Site) -> None:
    """A file in a handler's folder is a task of that handler, its content the task's input."""
    site.drop("keep/a.txt", "hello")
    site.scan()
    task = site.only_task()
    assert (task.type, task.user_id, task.original_filename, task.source) == ("keep", "local", "a.txt", "inbox")
    assert (site.data / task.input_files[0]).read_text() == "hello"
    assert site.listing("inbox") == []


def test_a_folder_is_made_for_each_handler(site: Site) -> None:
    """Also for one that comes later."""
    assert sorted(path.name for path in (site.data / "inbox").iterdir()) == ["keep", "resize", "table"]
    _write_handler(site, "late")
    site.handlers.refresh_changed()
    site.scan()
    assert (site.data / "inbox" / "late").is_dir()


def test_a_hint_is_enough(site: Site) -> None:
    """No scan is needed for a file that an event announced."""
    path = site.drop("keep/a.txt")
    site.inbox.rounds._next_scan = float("inf")
    site.inbox._heed(Notice(changed={str(path)}))
    assert site.inbox.run_once().taken == 1


def test_the_same_name_twice_is_two_tasks(site: Site) -> None:
    """A camera that names every picture alike."""
    for content in ("first", "second"):
        site.drop("keep/image.jpg", content)
        site.scan()
    inputs = [(site.data / task.input_files[0]).read_text() for task in site.tasks()]
    assert inputs == ["first", "second"]
    assert [task.drop.outbox for task in site.tasks() if task.drop] == [
        "outbox/keep/image.jpg",
        "outbox/keep/image.jpg.2",
    ]


def test_a_users_folder_makes_that_users_tasks(site: Site) -> None:
    """`inbox/@anna/keep/`."""
    site.drop("@anna/keep/a.txt")
    site.scan()
    assert site.only_task().user_id == "anna"
    assert site.only_task().input_files[0].startswith("uploads/anna/")


def test_a_tree_moved_in_is_a_task_for_each_file_with_its_path_kept(site: Site) -> None:
    """A hint names the new folder only; all that is in it is found."""
    tree = site.root / "tree"
    for number in range(20):
        (tree / f"sub{number % 3}").mkdir(parents=True, exist_ok=True)
        (tree / f"sub{number % 3}" / f"{number}.txt").write_text("x")
    tree.rename(site.data / "inbox" / "keep" / "tree")
    site.inbox.rounds._next_scan = float("inf")
    site.inbox._heed(Notice(changed={str(site.data / "inbox" / "keep" / "tree")}))
    taken = site.inbox.run_once().taken + site.inbox.run_once().taken
    assert taken == 20
    names = {task.drop.name for task in site.tasks() if task.drop}
    assert "tree/sub1/1.txt" in names


def test_odd_names_make_the_round_trip(site: Site) -> None:
    """Any bytes, the longest name, both spellings of é, twins by case, a leading dash, a newline."""
    names = [
        b"caf\xe9.txt", b"a" * 251 + b".txt", "é.txt".encode(), b"e\xcc\x81.txt", b"A.txt", b"a.txt", b"-rf", b"a\nb",
    ]  # fmt: skip
    for name in names:
        with open(os.fsencode(site.data) + b"/inbox/keep/" + name, "wb") as file:
            file.write(name)
    site.scan()
    dropped = [task.drop for task in site.tasks()]
    kept = {os.fsencode(path_of(drop.path, drop.raw)).rpartition(b"/")[2] for drop in dropped if drop}
    assert kept == set(names)
    assert {(site.data / task.input_files[0]).read_bytes() for task in site.tasks()} == set(names)


def test_nothing_is_taken_beyond_claim_ahead_and_the_rest_stays_visible(make_site: MakeSite) -> None:
    """Files wait as files until earlier tasks have started."""
    site = make_site(claim_ahead=3)
    for number in range(5):
        site.drop(f"keep/{number}.txt")
    site.scan()
    site.inbox.run_once()
    assert len(site.tasks()) == 3
    assert _why(site, "keep/4.txt") == "claim_ahead"
    for task in site.tasks()[:2]:
        site.run(task)
    assert site.inbox.run_once().taken == 2


def test_a_file_for_which_there_is_room_does_not_wait_for_ever_for_a_whole_batch(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not behind files without a handler, though nothing that waits as a task starts."""
    monkeypatch.setattr(inbox, "FULL_SECONDS", 0.0)
    site = make_site(claim_ahead=10)
    for number in range(6):
        site.drop(f"keep/{number}.txt")
    site.scan()
    for number in range(20):
        site.drop(f"unknown/{number}.txt")
    site.drop("table/a.csv", "1,2")
    site.scan()
    assert sorted(task.type for task in site.tasks()) == ["keep"] * 6 + ["table"]


def test_a_file_in_line_is_told_about_when_it_starts(make_site: MakeSite) -> None:
    """From what tasks of its type took: those taken before it count too."""
    site = make_site(claim_ahead=2)
    for name in ("a", "b", "c", "d"):
        site.drop(f"keep/{name}.txt")
    site.scan()
    said = site.inbox.explain(str(site.data / "inbox" / "keep" / "d.txt"), lambda _type, _user: Forecast(60.0, 20, 2))
    assert said.kind == "claim_ahead"
    assert said.facts["estimate_seconds"] == 90.0
    assert said.text.endswith("as the last 20 of its type took, it starts in about 1m30s")


def test_files_of_one_folder_do_not_keep_those_of_another_waiting(make_site: MakeSite) -> None:
    """With room for two, each folder gets one."""
    site = make_site(claim_ahead=2)
    for number in range(5):
        site.drop(f"keep/{number}.txt")
    site.drop("table/a.csv", "1,2")
    site.scan()
    assert {task.type for task in site.tasks()} == {"keep", "table"}


# Readiness


def test_a_growing_file_waits_and_holds_up_nobody(site: Site) -> None:
    """It is taken when its writer has closed it, whole."""
    path = site.data / "inbox" / "keep" / "big.bin"
    with path.open("wb") as writer:
        writer.write(b"half")
        writer.flush()
        site.drop("keep/small.txt")
        assert site.scan().taken == 1
        assert _why(site, "keep/big.bin") == "writing"
        writer.write(b" and half")
    _pass_until(site, lambda: len(site.tasks()) == 2)
    assert (site.data / site.tasks()[1].input_files[0]).read_bytes() == b"half and half"


def test_a_growing_file_is_reported_with_its_speed(site: Site) -> None:
    """`why` says since when, how much, and how fast."""
    with (site.data / "inbox" / "keep" / "big.bin").open("wb") as writer:
        writer.write(b"x" * 5000)
        writer.flush()
        site.scan()
        facts = site.inbox.explain(writer.name).facts
    assert facts["bytes"] == 5000
    assert {"since", "bytes_per_second", "unchanged_seconds"} <= facts.keys()


def test_an_empty_file_waits_and_says_so(site: Site) -> None:
    """Until it has content, or is gone."""
    path = site.data / "inbox" / "keep" / "empty"
    path.touch()
    site.scan()
    assert _why(site, "keep/empty") == "empty"
    path.unlink()
    _pass_until(site, lambda: len(site.inbox.holds) == 0)
    assert site.tasks() == []


def test_an_ignored_name_is_never_taken_and_its_rule_is_told(site: Site) -> None:
    """`.part` waits for its final name, which is a new file."""
    part = site.drop("keep/film.mp4.part")
    site.scan()
    assert site.tasks() == []
    assert "not finished" in site.inbox.explain(str(part)).text
    part.rename(part.with_suffix(""))
    site.scan()
    assert site.only_task().original_filename == "film.mp4"


def test_a_file_that_changes_between_look_and_rename_is_taken_later_and_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that was recorded for the old content fails with a reason; the new content is a task of its own."""
    path = site.drop("keep/a.txt", "old")
    take = site.inbox.taking._take

    def change_then_take(pairs: list, meanwhile: object) -> object:  # type: ignore[type-arg]
        path.write_text("newer")
        monkeypatch.setattr(site.inbox.taking, "_take", take)
        return take(pairs, meanwhile)  # type: ignore[arg-type]

    monkeypatch.setattr(site.inbox.taking, "_take", change_then_take)
    site.scan()
    _pass_until(site, lambda: not path.exists())
    first, second = site.tasks()
    assert (first.status, first.error and first.error.code) == (Status.FAILED, "input_missing")
    assert (site.data / second.input_files[0]).read_text() == "newer"


# Sidecars and documents


def test_a_file_and_its_sidecar_are_one_task(site: Site) -> None:
    """`clip.mp4.json` holds the parameters of `clip.mp4`; both leave the inbox."""
    site.drop("resize/clip.mp4.json", '{"width": 320}')
    site.drop("resize/clip.mp4")
    site.scan()
    assert site.only_task().payload == {"width": 320}
    assert site.listing("inbox") == []


def test_a_sidecar_waits_for_its_file(site: Site) -> None:
    """Drop the parameters first, and nothing can go wrong."""
    site.drop("resize/clip.mp4.json", '{"width": 320}')
    site.scan()
    assert _why(site, "resize/clip.mp4.json") == "file"
    site.drop("resize/clip.mp4")
    site.scan()
    assert site.only_task().payload == {"width": 320}


def test_a_sidecar_that_comes_a_little_late_is_in_time(site: Site) -> None:
    """A file whose parameters do not suffice waits for two seconds before it is refused."""
    site.drop("resize/clip.mp4")
    site.scan()
    assert _why(site, "resize/clip.mp4") == "parameters"
    site.drop("resize/clip.mp4.json", '{"width": 320}')
    _pass_until(site, lambda: len(site.tasks()) == 1)
    assert site.only_task().payload == {"width": 320}


def test_a_sidecar_being_written_holds_its_file_back(site: Site) -> None:
    """Half the parameters would be the wrong ones."""
    with (site.data / "inbox" / "resize" / "clip.mp4.json").open("w") as writer:
        writer.write('{"width": 3')
        writer.flush()
        site.drop("resize/clip.mp4")
        site.scan()
        assert "parameters" in site.inbox.explain(str(site.data / "inbox/resize/clip.mp4")).text
        writer.write("20}")
    _pass_until(site, lambda: len(site.tasks()) == 1)
    assert site.only_task().payload == {"width": 320}


def test_a_json_file_alone_is_an_input(site: Site) -> None:
    """`data.json` has no further ending, so it is nobody's sidecar."""
    site.drop("keep/data.json", "[1, 2, 3]")
    site.scan()
    assert site.only_task().original_filename == "data.json"


def test_a_document_is_a_whole_submission(site: Site) -> None:
    """With type, payload, priority and the files that lie beside it."""
    site.drop("film.mp4", "frames")
    order = {"type": "resize", "payload": {"width": 10}, "priority": 7, "inputs": ["film.mp4"]}
    site.drop("order.json", json.dumps(order))
    site.scan()
    task = site.only_task()
    assert (task.type, task.payload, task.priority) == ("resize", {"width": 10}, 7)
    assert (site.data / task.input_files[0]).read_text() == "frames"
    assert not (site.data / "inbox" / "order.json").exists()


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ({"type": "nobody"}, "nobody"),
        ({"type": "resize", "payload": {"width": "wide"}}, "/payload/width"),
        ({"type": "keep", "colour": "red"}, "/colour"),
        ({"type": "keep", "inputs": ["/etc/passwd"]}, "/inputs/0"),
        ({"type": "keep", "inputs": ["../../secret"]}, "/inputs/0"),
        ({"type": "keep", "inputs": ["missing.mp4"]}, "/inputs/0"),
        ({"type": "keep", "inputs": "film.mp4"}, "/inputs"),
    ],
)
def test_a_wrong_document_goes_to_error_with_the_field(site: Site, order: object, says: str) -> None:
    """Nothing is stored, nothing outside the inbox is read."""
    site.drop("order.json", json.dumps(order))
    (site.root / "secret").write_text("secret")
    site.scan()
    assert site.tasks() == []
    assert says in (site.data / "inbox" / "error" / "order.json.error.txt").read_text()


# Refusals


def test_a_refused_file_goes_to_error_with_the_reason_and_how_to_retry(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The field is named; moved back up with what was missing, the file is a task."""
    monkeypatch.setattr(taking, "SIDECAR_GRACE_SECONDS", 0.0)
    path = site.drop("resize/clip.mp4")
    _pass_until(site, lambda: not path.exists())
    error = site.data / "inbox" / "resize" / "error"
    reason = (error / "clip.mp4.error.txt").read_text()
    assert "/payload/width" in reason
    assert "move the file" in reason
    site.drop("resize/clip.mp4.json", '{"width": 1}')
    (error / "clip.mp4").rename(path)
    site.scan()
    assert site.only_task().payload == {"width": 1}
    assert site.listing("inbox") == []


def test_a_file_of_the_wrong_type_goes_to_error(site: Site) -> None:
    """`accepts` of the handler says what it takes."""
    site.drop("table/picture.png", b"\x89PNG\r\n\x1a\n")
    site.scan()
    assert site.listing("inbox") == ["table/error/picture.png", "table/error/picture.png.error.txt"]
    assert site.tasks() == []


def test_a_second_refused_file_of_one_name_replaces_nothing(site: Site) -> None:
    """Both are there, each with its reason."""
    for content in ("one", "two"):
        site.drop("table/a.txt", content)
        site.scan()
    error = site.data / "inbox" / "table" / "error"
    assert [(error / name).read_text() for name in ("a.txt", "a.2.txt")] == ["one", "two"]
    assert (error / "a.2.txt.error.txt").exists()


def test_a_broken_sidecar_sends_both_to_error(site: Site) -> None:
    """Moved back up together they are one task again."""
    site.drop("resize/clip.mp4.json", '{"width": 320')
    site.drop("resize/clip.mp4")
    site.scan()
    assert site.listing("inbox/resize/error") == ["clip.mp4", "clip.mp4.error.txt", "clip.mp4.json"]
    assert "not JSON" in (site.data / "inbox/resize/error/clip.mp4.error.txt").read_text()


def test_links_pipes_and_sockets_are_refused_and_never_opened(site: Site) -> None:
    """They go aside by name; what they point to stays untouched and unread."""
    keep = site.data / "inbox" / "keep"
    (site.root / "secret").write_text("secret")
    (keep / "link").symlink_to(site.root / "secret")
    (keep / "into").symlink_to(site.root)
    os.mkfifo(keep / "pipe")
    site.scan()
    assert site.tasks() == []
    assert (keep / "error" / "link").is_symlink()
    assert "symbolic link" in (keep / "error" / "link.error.txt").read_text()
    assert "named pipe" in (keep / "error" / "pipe.error.txt").read_text()


def test_a_file_that_cannot_be_moved_aside_stays_and_is_explained(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only share is a circumstance: the loop goes on, the file is tried again."""

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    site.drop("table/a.txt")
    site.drop("table/b.csv", "1")
    monkeypatch.setattr(site.store.files, "make_directory", refuse)
    site.inbox.rounds.run_once(time.monotonic())
    site.inbox.run_once()
    assert _why(site, "table/a.txt") == "unreadable"


def test_a_file_that_is_gone_leaves_no_reason_behind(site: Site) -> None:
    """Somebody took it back just when it was to be refused."""
    path = site.drop("table/a.txt")
    take = site.inbox.taking._take
    site.inbox.taking._take = lambda *batch: (take(*batch), path.unlink())[0]  # type: ignore[func-returns-value]
    site.scan()
    assert site.listing("inbox") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_lets_nothing_go_makes_no_tasks(site: Site) -> None:
    """A read-only share: the file waits and the reason is told."""
    path = site.drop("keep/share/a.txt")
    path.parent.chmod(0o500)
    site.scan()
    site.inbox.run_once()
    assert _why(site, "keep/share/a.txt") == "fixed"
    assert site.tasks() == []
    path.parent.chmod(0o700)


def test_a_file_that_cannot_be_moved_does_not_make_one_task_after_another(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try is recorded with its reason; the file is left alone for a long while."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(site.store.blobs, "take", refuse)
    site.drop("keep/a.txt")
    for _ in range(5):
        site.scan()
    assert site.only_task().status is Status.FAILED
    explanation = site.inbox.explain(str(site.data / "inbox/keep/a.txt"))
    assert (explanation.kind, "not permitted" in explanation.text) == ("fixed", True)


def test_directories_that_were_emptied_go_after_a_while(site: Site) -> None:
    """A fresh one stays, somebody may be about to use it; so do those that the runner took nothing from."""
    site.drop("keep/tree/sub/a.txt")
    (site.data / "inbox" / "keep" / "mine").mkdir()
    site.scan()
    site.inbox.run_once()
    site.inbox.taking.remove_emptied(time.time())
    assert (site.data / "inbox" / "keep" / "tree" / "sub").is_dir()
    for _ in range(2):
        site.inbox.taking.remove_emptied(time.time() + 3600)
    assert [path.name for path in (site.data / "inbox" / "keep").iterdir()] == ["mine"]


# Circumstances


def test_files_without_a_handler_wait_and_the_nearest_name_is_told(site: Site) -> None:
    """A folder with a typing error; nothing is refused, and the handler may still come."""
    site.drop("kep/a.txt")
    site.scan()
    explanation = site.inbox.explain(str(site.data / "inbox/kep/a.txt"))
    assert explanation.kind == "no_handler"
    assert "keep" in explanation.text
    _write_handler(site, "kep")
    site.handlers.refresh_changed()
    site.inbox.lanes.unblock()
    site.scan()
    assert site.only_task().type == "kep"


def test_over_the_limit_files_wait_in_the_inbox(site: Site) -> None:
    """`max_pending` is nobody's fault; the files are taken when there is room."""
    site.drop("keep/a.txt")
    site.gate.waiting = 10**9
    site.scan()
    assert _why(site, "keep/a.txt") == "queue_full"
    site.gate.waiting = 0
    site.inbox.lanes.unblock()
    assert site.scan().taken == 1


def test_a_full_disk_pauses_the_inbox_and_then_it_goes_on(site: Site) -> None:
    """Nothing goes to error, nothing is lost."""
    site.drop("keep/a.txt")
    site.store.space.shortage = "0 bytes are free"
    site.scan()
    assert _why(site, "keep/a.txt") == "paused"
    site.store.space.shortage = None
    site.inbox.taking.pause = None
    assert site.scan().taken == 1


def test_a_pause_names_its_reason_in_the_report(site: Site) -> None:
    """What the page shows."""
    site.inbox.taking._wait(DiskFull("no room"), time.monotonic())
    site.drop("keep/a.txt")
    site.scan()
    report = json.loads(json.dumps(site.inbox.report()))
    assert report["paused"] == {"code": "disk_full", "reason": "no room"}
    assert [folder["waiting"] for folder in report["folders"] if folder["handler"] == "keep"] == [1]


# Explanations


def test_every_place_has_an_explanation(site: Site) -> None:
    """Whatever a person asks about, inside or outside."""
    site.drop("keep/a.txt")
    site.scan()
    site.drop("notes.txt")
    site.drop("table/a.txt")
    site.scan()
    assert _why(site, "keep/a.txt") == "taken"
    assert _why(site, "keep/never.txt") == "absent"
    assert _why(site, "notes.txt") == "stray"
    assert _why(site, "table/error/a.txt") == "rejected"
    assert _why(site, "table/a.txt") == "rejected"
    assert _why(site, "keep") == "folder"
    assert (_why(site, "../tasks"), _why(site, "../elsewhere")) == ("outside", "absent")
    assert site.drop("keep/b.txt").exists()
    assert _why(site, "keep/b.txt") == "unseen"


# Restarts and faults


def test_a_crash_between_record_and_rename_is_mended_at_the_next_start(site: Site) -> None:
    """The file is the task's, once; nothing is left in the inbox."""
    path = site.drop("keep/a.txt", "hello")
    blobs = site.store.blobs
    site.door._rename = lambda task: task  # type: ignore[method-assign]
    site.scan()
    assert path.exists()
    assert blobs is not None
    site.close()
    site.open()
    site.scan()
    assert not path.exists()
    assert (site.data / site.only_task().input_files[0]).read_text() == "hello"


def test_a_taken_file_survives_a_crash_before_its_task_file_is_written(site: Site) -> None:
    """The journal alone says what became of it; the file is in `uploads` and nowhere else."""
    site.drop("keep/a.txt", "hello")
    site.scan()
    crashed = site.root / "crashed"
    shutil.copytree(site.data, crashed)
    shutil.rmtree(crashed / "tasks")
    (crashed / "index.db").unlink()
    config = site.config.model_copy(update={"data_dir": crashed})
    later = Site(site.root, config)
    later.open()
    try:
        assert (crashed / later.only_task().input_files[0]).read_text() == "hello"
    finally:
        later.close()


def test_tasks_from_before_a_restart_count_as_taken(make_site: MakeSite) -> None:
    """`claim_ahead` holds over a restart."""
    site = make_site(claim_ahead=2)
    for number in range(4):
        site.drop(f"keep/{number}.txt")
    site.scan()
    site.close()
    site.open()
    site.scan()
    assert len(site.tasks()) == 2


def test_a_further_folder_is_one_line_of_configuration(make_site: MakeSite, tmp_path: Path) -> None:
    """A scanner's folder with its own user and payload; missing, it hurts nobody."""
    scans = tmp_path / "scans"
    folder = Folder(str(scans), "resize", user_id="anna", payload={"width": 7})
    site = make_site(further=[folder])
    site.scan()
    scans.mkdir()
    (scans / "page.png").write_text("x")
    site.scan()
    task = site.only_task()
    assert (task.user_id, task.payload, task.drop and task.drop.path) == ("anna", {"width": 7}, f"{scans}/page.png")


def test_the_running_inbox_takes_what_is_dropped_and_survives_the_loss_of_its_folder(site: Site) -> None:
    """With the real watcher: a rename, a tree, a name that is not UTF-8, the folder removed and made again."""
    site.inbox.start()
    site.drop("keep/a.txt")
    _until(lambda: len(site.tasks()) == 1)
    with open(os.fsencode(site.data) + b"/inbox/keep/\xff", "wb") as file:
        file.write(b"x")
    _until(lambda: len(site.tasks()) == 2)
    shutil.rmtree(site.data / "inbox")
    _until((site.data / "inbox" / "keep").is_dir)
    site.drop("keep/tree/b.txt")
    _until(lambda: len(site.tasks()) == 3)
    assert site.failures == []


def test_a_loop_that_ends_by_an_error_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a half-dead inbox."""

    def break_down() -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(site.inbox, "run_once", break_down)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    site.inbox.start()
    _until(lambda: len(site.failures) == 1)
    assert str(site.failures[0]) == "bug"


def _pass_until(site: Site, condition: Callable[[], bool]) -> None:
    """Makes passes, waiting as the inbox itself would."""
    end = time.monotonic() + 10
    site.inbox.rounds.ask(0.0)
    while not condition():
        assert time.monotonic() < end
        site.inbox._receive(min(site.inbox._seconds_to_wait(), 1.0))
        site.inbox.run_once()


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def _write_handler(site: Site, name: str) -> None:
    text = f"from runner import Context, handler\n\n@handler\ndef {name}(ctx: Context) -> None:\n    pass\n"
    (site.config.handlers_dir / f"{name}.py").write_text(text)
