"""A newer file of the same name."""

from collections.abc import Callable

import pytest

from runner.intake.succession import Succession
from runner.task import Status
from tests.intake.conftest import Site

MakeSite = Callable[..., Site]


def _statuses(site: Site) -> list[Status]:
    return [task.status for task in site.tasks()]


def test_a_newer_file_cancels_the_waiting_task_of_the_older_one(make_site: MakeSite) -> None:
    """Its reason names the newer one; other names are left alone."""
    site = make_site(supersede=True)
    for name in ("a.txt", "other.txt", "a.txt"):
        site.drop(f"keep/{name}")
        site.scan()
    first, other, second = site.tasks()
    assert (first.status, other.status, second.status) == (Status.CANCELLED, Status.PENDING, Status.PENDING)
    assert first.error is not None
    assert second.id in first.error.message


def test_by_default_both_run(site: Site) -> None:
    """Nothing that was dropped is lost unless asked for."""
    for _ in range(2):
        site.drop("keep/a.txt")
        site.scan()
    assert _statuses(site) == [Status.PENDING, Status.PENDING]


def test_a_task_that_has_ended_stays_as_it_is(make_site: MakeSite) -> None:
    """It is not in the way of anything."""
    site = make_site(supersede=True)
    site.drop("keep/a.txt")
    site.scan()
    site.run(site.only_task())
    site.drop("keep/a.txt")
    site.scan()
    assert _statuses(site) == [Status.COMPLETED, Status.PENDING]


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_a_restart_forgets_no_older_task(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch, is_cut_off: bool
) -> None:
    """Whether it came before the newer file, or between the newer task and the cancelling."""
    site = make_site(supersede=True)
    site.drop("keep/a.txt")
    site.scan()
    with monkeypatch.context() as patched:
        if is_cut_off:
            patched.setattr(Succession, "_cancel", lambda *_: None)
            site.drop("keep/a.txt")
            site.scan()
        site.close()
    site.open()
    if not is_cut_off:
        site.drop("keep/a.txt")
        site.scan()
    assert _statuses(site) == [Status.CANCELLED, Status.PENDING]
