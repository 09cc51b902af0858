"""The outbox as a person sees it."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runner.events import Event, Kind, TaskLogs
from runner.intake import inspection
from runner.intake import outbox as module
from runner.intake.entries import Mark, log_line, number_entry
from runner.store import Transition
from runner.task import Status, Task
from tests.intake.conftest import Site

MakeSite = Callable[..., Site]


def _drop_and_run(site: Site, name: str, **outputs: str) -> Task:
    site.drop(name)
    site.scan()
    return site.run(site.tasks()[-1], **outputs)


def _entry(site: Site, name: str) -> Path:
    return site.data / "outbox" / name


def _task_in(entry: Path) -> dict[str, object]:
    return dict(json.loads((entry / "task.json").read_text()))


def test_a_completed_file_has_an_entry_with_its_outputs(site: Site) -> None:
    """Hard links: nothing is stored twice."""
    task = _drop_and_run(site, "keep/film.mp4", **{"clean.mp4": "frames"})
    site.write_outbox()
    assert site.listing("outbox/keep/film.mp4") == ["clean.mp4", "task.json"]
    assert _task_in(_entry(site, "keep/film.mp4"))["status"] == "completed"
    linked = _entry(site, "keep/film.mp4") / "clean.mp4"
    assert linked.samefile(site.data / task.output_files[0])


def test_a_tree_keeps_its_paths_and_a_user_their_own_place(site: Site) -> None:
    """`outbox/@anna/keep/2026/a.txt/`."""
    _drop_and_run(site, "@anna/keep/2026/a.txt")
    site.write_outbox()
    assert (_entry(site, "@anna/keep/2026/a.txt") / "task.json").exists()


def test_files_of_one_name_have_numbered_entries(site: Site) -> None:
    """Whether the earlier one still runs or has an entry already."""
    for _ in range(3):
        site.drop("keep/image.jpg")
        site.scan()
    for task in reversed(site.tasks()):
        site.run(task)
    site.write_outbox()
    found = sorted(path.name for path in _entry(site, "keep").iterdir())
    assert found == ["image.jpg", "image.jpg.2", "image.jpg.3"]
    _drop_and_run(site, "keep/image.jpg")
    site.write_outbox()
    assert (_entry(site, "keep") / "image.jpg.4").is_dir()


def test_the_number_is_found_in_few_looks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera's thousandth `image.jpg` does not cost a thousand looks."""
    names = module.Names(site.store.layout)
    taken = {number_entry("outbox/keep/image.jpg", number) for number in range(1, 1001)}
    names.keep(taken)
    looks: list[str] = []
    is_taken = names._is_taken

    def count(entry: str) -> bool:
        looks.append(entry)
        return is_taken(entry)

    monkeypatch.setattr(names, "_is_taken", count)
    wanted = module.Wanted("local", "keep", "image.jpg", is_new=False)
    assert names.reserve([wanted]) == ["outbox/keep/image.jpg.1001"]
    assert len(looks) < 30


def test_odd_names_have_readable_entries(site: Site) -> None:
    """Bytes that are not UTF-8 are escaped, a name at the limit leaves room for a number."""
    for name in (b"caf\xe9.txt", b"a" * 255):
        with open(os.fsencode(site.data) + b"/inbox/keep/" + name, "wb") as file:
            file.write(b"x")
        site.scan()
        site.run(site.tasks()[-1])
    site.write_outbox()
    names = sorted(path.name for path in _entry(site, "keep").iterdir())
    assert "caf\\xe9.txt" in names
    assert len(names) == 2
    assert all(len(name) <= 200 for name in names)


def test_what_the_handler_said_is_in_the_log(site: Site) -> None:
    """One line each, with the time; a handler that says nothing has no log."""
    task = _drop_and_run(site, "keep/a.txt")
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    said = Event(1, task.id, "local", Kind.LOG, at, {"level": "info", "message": "half way"})
    shown = Event(2, task.id, "local", Kind.PROGRESS, at, {"percentage": 50.0449, "stage": "read", "message": ""})
    TaskLogs(Path(site.store.layout.logs)).append([said, shown])
    site.write_outbox()
    log = (_entry(site, "keep/a.txt") / "log.txt").read_text()
    assert log == "2026-01-02 03:04:05 info half way\n2026-01-02 03:04:05 50 % read\n"
    assert log == log_line(said) + log_line(shown)


def test_an_output_named_like_our_own_files_is_kept_beside_them(site: Site) -> None:
    """Nothing of the handler's is lost, nothing of ours replaced."""
    _drop_and_run(site, "keep/a.txt", **{"task.json": "mine", "log.txt": "mine too"})
    site.write_outbox()
    assert site.listing("outbox/keep/a.txt") == ["log.2.txt", "task.2.json", "task.json"]
    assert _task_in(_entry(site, "keep/a.txt"))["status"] == "completed"


def test_a_running_task_has_an_entry_after_a_second(site: Site) -> None:
    """It says `processing`, and completes in place, `task.json` last."""
    site.drop("keep/a.txt")
    site.scan()
    now = [100.0]
    site.outbox._clock = lambda: now[0]
    running = replace(site.store.get_task(site.only_task().id), status=Status.PROCESSING)
    site.outbox.run_once([Transition(Status.PENDING, running)])
    assert not _entry(site, "keep/a.txt").exists()
    now[0] += 1.5
    assert site.outbox.run_once([]).refreshed == 1
    assert _task_in(_entry(site, "keep/a.txt"))["status"] == "pending"
    site.run(site.only_task(), out="done")
    site.write_outbox()
    assert _task_in(_entry(site, "keep/a.txt"))["status"] == "completed"
    assert site.listing("outbox/keep/a.txt") == ["out", "task.json"]


def test_what_a_failed_task_was_made_from_goes_back_to_error(site: Site) -> None:
    """With the reason and its parameters; moved up again it is a new task with the same parameters."""
    site.drop("resize/clip.mp4.json", '{"width": 5}')
    site.drop("resize/clip.mp4", "frames")
    site.scan()
    task = site.fail(site.only_task(), "no frames in it")
    site.write_outbox()
    error = site.data / "inbox" / "resize" / "error"
    assert site.listing("inbox/resize/error") == ["clip.mp4", "clip.mp4.error.txt", "clip.mp4.json"]
    reason = (error / "clip.mp4.error.txt").read_text()
    assert "no frames in it" in reason
    assert task.id in reason
    (error / "clip.mp4.json").rename(error.parent / "clip.mp4.json")
    (error / "clip.mp4").rename(error.parent / "clip.mp4")
    site.scan()
    again = site.tasks()[-1]
    assert again.id != task.id
    assert again.payload == {"width": 5}
    assert site.listing("inbox") == []


@pytest.mark.parametrize("below", ["", "trip/"])
def test_a_failed_file_that_is_moved_back_alone_keeps_its_parameters(
    site: Site, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody wants it run with others; those that follow their file are waited for."""
    path = site.drop(f"resize/{below}clip.mp4.json", '{"width": 5}').with_suffix("")
    site.drop(f"resize/{below}clip.mp4", "frames")
    site.scan()
    site.fail(site.only_task(), "no frames in it")
    site.write_outbox()
    (site.data / "inbox" / "resize" / "error" / below / "clip.mp4").rename(path)
    site.scan()
    assert len(site.tasks()) == 1
    site.inbox.holds.release(str(path))
    monkeypatch.setattr(inspection, "FOLLOWS_SECONDS", 0.0)
    site.scan()
    assert [task.payload for task in site.tasks()] == [{"width": 5}] * 2
    assert site.listing("inbox") == []


def test_what_stays_in_error_is_not_another_files(site: Site) -> None:
    """A new file of the same name is a new one: the parameters and the reason there are not its own."""
    site.drop("keep/a.txt.json", "{}")
    site.drop("keep/a.txt")
    site.scan()
    site.fail(site.only_task())
    site.write_outbox()
    error = site.data / "inbox" / "keep" / "error"
    (error / "a.txt.json").write_text('{"unknown": 1}')
    site.drop("keep/a.txt")
    site.scan()
    assert len(site.tasks()) == 2
    assert (error / "a.txt.error.txt").exists()


def test_a_failed_document_leaves_its_reason(site: Site) -> None:
    """The document itself was used up; `runner retry` tries it again."""
    site.drop("order.json", '{"type": "keep"}')
    site.scan()
    task = site.fail(site.only_task())
    site.write_outbox()
    assert task.id in (site.data / "inbox" / "error" / "order.json.error.txt").read_text()
    assert _task_in(_entry(site, "keep/order.json"))["status"] == "failed"


def test_a_retried_task_updates_its_entry(site: Site) -> None:
    """The same entry, by the task's id; no second one."""
    from runner import task as transitions
    from runner.store import Update

    site.drop("keep/a.txt")
    site.scan()
    task = site.fail(site.only_task())
    site.write_outbox()
    site.store.commit((Update(task.id, lambda now: transitions.retry(now, datetime.now(UTC))),))
    site.run(task, out="x")
    site.write_outbox()
    assert [path.name for path in _entry(site, "keep").iterdir()] == ["a.txt"]
    assert _task_in(_entry(site, "keep/a.txt"))["status"] == "completed"


def test_a_deleted_task_takes_its_entry_along(site: Site) -> None:
    """And no other that stands in its place."""
    task = _drop_and_run(site, "keep/a.txt")
    other = _drop_and_run(site, "keep/a.txt")
    site.write_outbox()
    site.remove(task)
    site.write_outbox()
    assert [path.name for path in _entry(site, "keep").iterdir()] == ["a.txt.2"]
    assert _task_in(_entry(site, "keep/a.txt.2"))["id"] == other.id


def test_a_folder_that_somebody_put_in_the_way_is_left_alone(site: Site) -> None:
    """The entry goes beside it."""
    site.drop("keep/a.txt")
    site.scan()
    _entry(site, "keep/a.txt").mkdir(parents=True)
    (_entry(site, "keep/a.txt") / "notes").write_text("mine")
    site.run(site.only_task())
    site.write_outbox()
    assert site.listing("outbox/keep") == ["a.txt.2/task.json", "a.txt/notes"]


def test_after_a_crash_the_missing_entries_are_written_and_no_others(site: Site) -> None:
    """Done again it changes nothing; an entry that a person removed long ago stays removed."""
    old = _drop_and_run(site, "keep/old.txt")
    _drop_and_run(site, "keep/kept.txt")
    site.write_outbox()
    _drop_and_run(site, "keep/missing.txt", out="x")
    assert not _entry(site, "keep/missing.txt").exists()
    before = _entry(site, "keep/kept.txt").stat().st_ino
    site.close()
    site.open()
    assert site.listing("outbox/keep/missing.txt") == ["out", "task.json"]
    assert _entry(site, "keep/kept.txt").stat().st_ino == before
    assert old.id == _task_in(_entry(site, "keep/old.txt"))["id"]


def test_after_a_clean_stop_nothing_is_written_again(site: Site) -> None:
    """A person who removed an entry does not find it back."""
    site.outbox.start()
    _drop_and_run(site, "keep/a.txt")
    site.outbox.hear(site.heard)
    site.close()
    for path in sorted(_entry(site, "keep/a.txt").iterdir()):
        path.unlink()
    _entry(site, "keep/a.txt").rmdir()
    site.open()
    assert site.listing("outbox/keep") == []


def test_a_torn_entry_is_written_anew(site: Site) -> None:
    """A power cut may leave an empty `task.json` behind."""
    _drop_and_run(site, "keep/a.txt", out="x")
    site.write_outbox()
    (_entry(site, "keep/a.txt") / "task.json").write_text("")
    site.close()
    site.open()
    whole = [path for path in _entry(site, "keep").iterdir() if (path / "task.json").stat().st_size]
    assert [_task_in(path)["status"] for path in whole] == ["completed"]


def test_a_damaged_mark_only_means_more_looks(site: Site) -> None:
    """All entries are looked at again."""
    mark = Mark(site.store.files, site.store.layout)
    (site.data / "outbox" / ".published").write_text('{"until": 3')
    assert mark.read() == datetime.fromtimestamp(0, UTC)


def test_an_entry_that_cannot_be_written_is_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the mark does not move past it."""
    _drop_and_run(site, "keep/a.txt")
    (site.data / "outbox" / "keep").write_text("a file where the folder should be")
    site.write_outbox()
    assert site.outbox.failure is not None
    (site.data / "outbox" / "keep").unlink()
    monkeypatch.setattr(site.outbox, "_next_retry", 0.0)
    site.outbox.run_once([])
    assert (_entry(site, "keep/a.txt") / "task.json").exists()


def test_without_an_outbox_failures_still_go_to_error(make_site: MakeSite) -> None:
    """`outbox.enabled: false`."""
    site = make_site(outbox={"enabled": False})
    site.drop("keep/a.txt")
    site.scan()
    site.fail(site.only_task())
    site.write_outbox()
    assert site.listing("inbox/keep/error") == ["a.txt", "a.txt.error.txt"]
    assert site.listing("outbox") == []


def test_outputs_can_be_copies(make_site: MakeSite) -> None:
    """`outbox.link: copy`, for those who edit what they find there."""
    site = make_site(outbox={"link": "copy"})
    task = _drop_and_run(site, "keep/a.txt", out="x")
    site.write_outbox()
    copied = _entry(site, "keep/a.txt") / "out"
    assert copied.read_text() == "x"
    assert not copied.samefile(site.data / task.output_files[0])


def test_the_running_outbox_writes_what_it_hears(site: Site) -> None:
    """In its own thread; closing waits for the last entry."""
    site.outbox.start()
    _drop_and_run(site, "keep/a.txt")
    site.outbox.hear(site.heard)
    site.outbox.close()
    assert _task_in(_entry(site, "keep/a.txt"))["status"] == "completed"


def test_while_many_files_are_taken_only_a_few_entries_are_written(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits to become a task comes first; the rest is written when that is over, and nothing is forgotten."""
    monkeypatch.setattr(module, "FEW", 10)
    for number in range(70):
        site.drop(f"keep/{number}.txt")
    site.scan()
    for task in site.tasks():
        site.run(task)
    site.write_outbox()
    assert len(site.listing("outbox/keep")) == 10
    site.outbox._way_until = 0.0
    site.outbox.run_once([])
    assert len(site.listing("outbox/keep")) == 70


def test_of_very_many_ended_tasks_only_the_ids_are_remembered(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read again when their turn comes; one that was retried meanwhile is left for its next end."""
    monkeypatch.setattr(module, "MAX_REMEMBERED", 0)
    _drop_and_run(site, "keep/a.txt")
    site.drop("keep/b.txt")
    site.scan()
    failed = site.fail(next(task for task in site.tasks() if task.status is Status.PENDING))
    news, site.heard = site.heard, []
    site.retry(failed)
    site.outbox.run_once(news)
    assert site.listing("outbox/keep") == ["a.txt/task.json"]
    site.run(failed)
    site.write_outbox()
    assert site.listing("outbox/keep") == ["a.txt/task.json", "b.txt/task.json"]


def test_a_stop_does_not_wait_for_all_entries_and_the_next_start_writes_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop is quick however many wait."""
    monkeypatch.setattr(module, "CLOSE_SECONDS", -1.0)
    monkeypatch.setattr(module, "FEW", 0)
    site.outbox._way_until = float("inf")
    _drop_and_run(site, "keep/a.txt")
    site.outbox._closing.is_set = lambda: False  # type: ignore[method-assign]
    site.outbox.hear(site.heard)
    site.outbox._news.put(None)
    site.outbox.run()
    assert site.listing("outbox/keep") == []
    site.close()
    site.open()
    assert site.listing("outbox/keep") == ["a.txt/task.json"]
