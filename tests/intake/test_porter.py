"""Very many files are handled by a process of its own, and come to the same end as a few."""

import os
import select
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from runner.intake import porter as module
from runner.intake.inbox import Notice
from runner.intake.names import entry_of
from runner.intake.porter import Load, Place, Porter
from runner.intake.taking import Summary
from runner.store import Identity
from runner.task import Status
from tests.intake.conftest import Site

MakeSite = Callable[..., Site]


@pytest.fixture
def busy(make_site: MakeSite) -> Site:
    """A site whose porters do everything, however little it is."""
    site = make_site()
    for porter in (site.porter, site.outbox_porter):
        porter._many = porter._storm = 1
        porter.start()
    for porter in (site.porter, site.outbox_porter):
        porter.await_start()
    return site


def _place(site: Site, below: str = "") -> Place:
    folder = site.data / "inbox" / "keep"
    return Place(str(folder), below, entry_of("local", "keep", f"{below}/" if below else ""))


def _load(source: Path, target: Path) -> Load:
    seen = Identity.of(str(source))
    return Load(str(source), str(target), seen.device, seen.inode, seen.size, seen.mtime_ns)


def _kill(porter: Porter) -> None:
    assert porter._servant.process is not None
    os.kill(porter._servant.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, porter._servant.process.pid, os.WEXITED | os.WNOWAIT)


def test_a_file_goes_all_the_way_by_the_porters(busy: Site) -> None:
    """Taken, run and delivered, its path kept, its number given."""
    for _ in range(2):
        busy.drop("keep/2026/a.txt")
        busy.scan()
        busy.run(next(task for task in busy.tasks() if task.status is Status.PENDING), out="x")
        busy.store.writer.flush()
        busy.write_outbox()
    found = [f"2026/{name}/{file}" for name in ("a.txt.2", "a.txt") for file in ("out", "task.json")]
    assert (busy.listing("outbox/keep"), busy.listing("inbox")) == (found, [])
    assert busy.porter.is_up
    assert busy.outbox_porter.is_up


def test_only_what_is_plain_and_whole_is_seen(busy: Site) -> None:
    """The rest is left to whoever asked: it is open, has a sidecar, is one, is a link, or is gone."""
    for name in ("a.txt", "b.txt", "b.txt.json", "c.txt"):
        busy.drop(f"keep/{name}")
    (busy.data / "inbox/keep/link").symlink_to("a.txt")
    (busy.data / "outbox/keep/a.txt").mkdir(parents=True)
    names = ["a.txt", "b.txt", "b.txt.json", "c.txt", "link", "gone", "d.txt"]
    busy.drop("keep/d.txt")
    with (busy.data / "inbox/keep/c.txt").open("a"):
        seen = busy.porter.look(_place(busy), names)
    assert {name: glance.is_new for name, glance in seen.items()} == {"a.txt": False, "d.txt": True}
    assert seen["a.txt"].seen.size == len(b"content")


def test_what_asks_for_a_second_look_is_not_plain(busy: Site) -> None:
    """Without a byte, with another name, or with parameters that were left in the error folder."""
    for name in ("empty", "linked", "left.txt", "plain.txt", "error/left.txt.json", "error/plain.txt"):
        busy.drop(f"keep/{name}", "" if name == "empty" else "content")
    os.link(busy.data / "inbox/keep/linked", busy.root / "other")
    assert set(busy.porter.look(_place(busy), ["empty", "linked", "left.txt", "plain.txt"])) == {"plain.txt"}


def test_what_was_looked_at_ahead_is_not_looked_at_again(busy: Site) -> None:
    """Not even if it is gone meanwhile: that it is the same file is asked when it is taken."""
    path = busy.drop("keep/a.txt")
    busy.porter.look_ahead(_place(busy), ["a.txt"])
    busy.porter._collect()
    path.unlink()
    assert set(busy.porter.look(_place(busy), ["a.txt", "b.txt"])) == {"a.txt"}
    assert not busy.porter.look(_place(busy), ["a.txt"])


def test_what_was_seen_long_ago_is_looked_at_again(busy: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may have begun to write."""
    path = busy.drop("keep/a.txt")
    busy.porter.look_ahead(_place(busy), ["a.txt"])
    monkeypatch.setattr(module, "STALE_SECONDS", -1.0)
    busy.porter._collect()
    path.unlink()
    assert not busy.porter.look(_place(busy), ["a.txt"])


def test_what_nobody_asked_for_is_forgotten_with_the_next_look_ahead(busy: Site) -> None:
    """Though it was not even received: its age would count from the later look."""
    path = busy.drop("keep/a.txt")
    busy.drop("keep/below/b.txt")
    busy.porter.look_ahead(_place(busy), ["a.txt"])
    select.select([busy.porter._servant._pipes()[1]], [], [], 20)
    path.unlink()
    busy.porter.look_ahead(_place(busy, "below"), ["b.txt"])
    assert not busy.porter.look(_place(busy), ["a.txt"])


def test_a_file_is_carried_once_and_only_if_it_is_the_same(busy: Site, tmp_path: Path) -> None:
    """Asked again, it says yes again; a newer file of the name stays."""
    target = tmp_path / "data/uploads/local/t1/a.txt"
    load = _load(busy.drop("keep/a.txt"), target)
    assert busy.porter.carry_ahead([load])
    assert list(busy.porter.carried()) == [True]
    busy.drop("keep/a.txt", "newer")
    other = load._replace(target=str(tmp_path / "data/uploads/local/t2/a.txt"))
    assert busy.porter.carry_ahead([load, other])
    assert list(busy.porter.carried()) == [True, False]
    assert (target.read_text(), busy.listing("inbox/keep")) == ("content", ["a.txt"])


def test_only_what_has_completed_is_delivered(busy: Site) -> None:
    """A failure is more than an entry, and what has no file yet is known to memory only."""
    for name in ("a.txt", "b.txt", "c.txt"):
        busy.drop(f"keep/{name}")
    busy.scan()
    completed, failed, waiting = busy.tasks()
    completed = busy.run(completed)
    busy.fail(failed)
    busy.store.writer.flush()
    assert completed.completed_at is not None
    assert completed.drop is not None
    assert completed.drop.outbox is not None
    found = busy.outbox_porter.deliver([completed.id, failed.id, waiting.id, "nothing"])
    assert list(found) == [completed.id]
    completed_at, *rest = found[completed.id]
    assert datetime.fromisoformat(completed_at) == completed.completed_at
    assert rest == [completed.drop.outbox, "local", completed.drop.path]


def test_a_porter_that_dies_costs_no_file(busy: Site) -> None:
    """What it did not say is done without it, and another one begins."""
    for number in range(3):
        busy.drop(f"keep/{number}.txt")
        if number == 1:
            _kill(busy.porter)
            _kill(busy.outbox_porter)
        busy.scan()
        busy.run(busy.tasks()[-1])
        busy.store.writer.flush()
        busy.write_outbox()
    assert busy.listing("outbox/keep") == [f"{number}.txt/task.json" for number in range(3)]
    assert busy.listing("inbox") == []
    assert busy.porter.is_up
    assert busy.outbox_porter.is_up


def test_few_files_do_not_start_a_process_and_none_waits_for_it(site: Site) -> None:
    """Nor do many now and then; and it ends when no more come."""
    porter = Porter(site.store.layout, "hard", many=2, storm=4)
    site.drop("keep/a.txt")
    place, ups = _place(site), []
    for names in (["a.txt"], ["a.txt"], ["a.txt", "b.txt"], ["a.txt", "b.txt"]):
        assert not porter.look(place, names)
        ups.append(porter.is_up)
    porter.await_start()
    assert set(porter.look(place, ["a.txt", "b.txt"])) == {"a.txt"}
    for idle_seconds in (0, module.IDLE_SECONDS + 1):
        porter._last_wanted -= idle_seconds
        porter.rest()
        ups.append(porter.is_up)
    assert ups == [False, False, False, True, True, False]


def test_the_porters_begin_when_many_files_are_seen_to_come(site: Site) -> None:
    """And the outbox leaves what ends meanwhile to its own, as long as files are taken; it is not left to nobody."""
    site.porter._storm = site.outbox_porter._storm = 80
    site.porter._many = 1000
    for number in range(80):
        site.drop(f"keep/{number}.txt")
    site.inbox._heed(Notice(changed={str(site.data / f"inbox/keep/{number}.txt") for number in range(80)}))
    assert site.porter.is_up
    site.inbox.taking.run_once(70, 0.0, Summary())
    for task in site.tasks():
        site.run(task)
    site.outbox.make_way(80)
    site.outbox._way_until = float("inf")
    site.write_outbox()
    assert (site.outbox_porter.is_up, site.listing("outbox/keep")) == (True, [])
    site.outbox_porter.await_start()
    site.store.writer.flush()
    site.outbox.run_once([])
    assert len(site.listing("outbox/keep")) == 70


def test_without_an_outbox_no_porter_begins_for_it(make_site: Callable[..., Site]) -> None:
    """However many files come: it would have nothing to carry."""
    site = make_site(outbox={"enabled": False})
    site.outbox.make_way(100_000)
    site.write_outbox()
    assert not site.outbox_porter.is_up


def test_the_next_files_are_looked_at_while_the_last_ones_move(busy: Site) -> None:
    """A name that comes again meanwhile is another file, once the first one has gone; each is one task."""
    keep, taking = busy.inbox.folders.of_handler("keep"), busy.inbox.taking
    for name in ("a.txt", "b.txt"):
        busy.drop(f"keep/{name}", f"first {name}")
    busy.inbox.lanes.add(keep, ["a.txt", "b.txt"])
    taking.run_once(1, 0.0, Summary())
    assert (taking.is_under_way, busy.gate.released) == (True, [])
    busy.porter._collect()
    busy.drop("keep/a.txt", "second a.txt")
    busy.inbox.lanes.add(keep, ["a.txt"])
    while busy.inbox.lanes or taking.is_under_way:
        taking.run_once(10, 0.0, Summary())
    assert busy.listing("inbox") == []
    taken = [(busy.data / task.input_files[0]).read_text() for task in busy.tasks()]
    assert sorted(taken) == ["first a.txt", "first b.txt", "second a.txt"]
    assert len(busy.gate.released) == 3


def test_files_that_move_start_whatever_becomes_of_the_next_ones(busy: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are settled while those are on their way to the disk, or were refused."""
    for name in ("a.txt", "b.txt"):
        busy.drop(f"keep/{name}")
    busy.inbox.lanes.add(busy.inbox.folders.of_handler("keep"), ["a.txt", "b.txt"])
    busy.inbox.taking.run_once(1, 0.0, Summary())
    assert (busy.inbox.taking.is_under_way, busy.gate.released) == (True, [])
    monkeypatch.setattr(busy.store.space, "shortage", "the disk is full")
    busy.inbox.taking.run_once(1, 0.0, Summary())
    assert (busy.listing("inbox"), len(busy.gate.released)) == (["keep/b.txt"], 1)


def test_a_scan_finds_nothing_new_in_files_that_move(busy: Site) -> None:
    """Or it would think that events are missing, and not trust this filesystem any more."""
    for number in range(10):
        busy.drop(f"keep/{number}")
    busy.inbox.lanes.add(busy.inbox.folders.of_handler("keep"), map(str, range(10)))
    busy.inbox.taking.run_once(9, 0.0, Summary())
    assert busy.inbox.taking.is_under_way
    summary = busy.scan()
    assert (summary.found, summary.taken) == (0, 10)
