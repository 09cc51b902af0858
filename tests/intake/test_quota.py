"""How much the files of a user take up, and may."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.config import LimitsConfig
from runner.errors import QuotaExceeded
from runner.intake.quota import PATIENCE, Quota
from runner.store.files import Layout


class StepClock:
    """A clock that goes on by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def stored(root: Path, folder: str, user_id: str, size: int) -> Path:
    """A file of a task of theirs."""
    path = root / folder / user_id / "t1" / "deep" / "file.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def quota_of(root: Path, most: int | None = 100) -> Quota:
    """The quotas of a data directory."""
    return Quota(Layout(str(root)), LimitsConfig(max_bytes_per_user=most))


def test_inputs_and_results_count_and_those_of_others_do_not(tmp_path: Path) -> None:
    """Whatever lies below the user's folders; what is not there counts nothing."""
    stored(tmp_path, "uploads", "ann", 30)
    stored(tmp_path, "results", "ann", 40)
    stored(tmp_path, "uploads", "bob", 500)
    quota = quota_of(tmp_path)
    assert (quota.used_by("ann"), quota.used_by("carl")) == (70, 0)
    quota.check("ann", 30)
    for user, size in (("ann", 31), ("bob", 0)):
        with pytest.raises(QuotaExceeded, match="delete some tasks"):
            quota.check(user, size)


def test_nobody_gets_past_it_by_being_quick(tmp_path: Path) -> None:
    """What comes in counts while it comes; two at once count together."""
    quota = quota_of(tmp_path)
    with quota.claiming("ann") as one, quota.claiming("ann") as other:
        one.add(60)
        other.add(40)
        with pytest.raises(QuotaExceeded):
            other.add(1)
        stored(tmp_path, "uploads", "ann", 100)
    with pytest.raises(QuotaExceeded):
        quota.check("ann", 1)


def test_what_was_given_up_does_not_count_for_ever(tmp_path: Path) -> None:
    """The next look finds that nothing of it is there."""
    clock = StepClock()
    quota = Quota(Layout(str(tmp_path)), LimitsConfig(max_bytes_per_user=100), clock)
    with quota.claiming("ann") as claim:
        claim.add(90)
    assert quota.used_by("ann") == 90
    clock.now += PATIENCE
    assert quota.used_by("ann") == 0


def test_a_look_that_takes_long_counts_for_long(tmp_path: Path) -> None:
    """At most a twentieth of the time is spent with looking."""
    clock = StepClock()
    quota = Quota(Layout(str(tmp_path)), LimitsConfig(max_bytes_per_user=100), clock)
    assert quota.used_by("ann") == 0
    stored(tmp_path, "uploads", "ann", 30)
    assert (quota.used_by("ann"), quota.is_known("ann")) == (0, True)
    clock.now += PATIENCE
    assert not quota.is_known("ann")
    assert quota.used_by("ann") == 30


def test_the_exempt_and_those_without_a_limit_have_any_number(tmp_path: Path) -> None:
    """And nothing is looked up for them."""
    stored(tmp_path, "uploads", "local", 1000)
    quota = quota_of(tmp_path)
    quota.check("local", 1 << 40)
    assert quota.is_known("local")
    quota.change(LimitsConfig())
    assert quota.limit_of("ann") is None
    quota.check("ann", 1 << 40)
