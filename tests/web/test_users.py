"""User records: made by the first change, written at most once a minute."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.config import Config, LimitsConfig
from runner.dispatch.delays import Clock, utc_now
from runner.intake.quota import Quota
from runner.service import Role, Service
from runner.store import Store
from runner.web.users import Users, Visit

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


class HandClock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The store of a runner that runs nothing."""
    config = Config.load(None, {"data_dir": str(tmp_path / "data"), "handlers_dir": str(tmp_path)}, environ={})
    service = Service(config, Role.VISIT)
    service.start()
    yield service.store
    service.close()


def last_accessed(store: Store) -> datetime:
    """What the store knows."""
    store.settle()
    return store.get_user("ann").last_accessed


def users_of(store: Store, clock: Clock = utc_now) -> Users:
    """Their records, in a store without quotas."""
    return Users(store, Quota(store.layout, LimitsConfig()), clock)


def test_a_look_makes_no_record_and_a_change_does(store: Store) -> None:
    """Whoever only looks leaves nothing behind."""
    users = users_of(store)
    assert users.note("ann", None, Visit.LOOK)
    assert users.find("ann") is None
    assert users.note("ann", None, Visit.CHANGE)
    store.settle()
    assert store.get_user("ann").user_id == "ann"


def test_a_record_is_written_once_a_minute(store: Store) -> None:
    """However often somebody comes."""
    clock = HandClock()
    users = users_of(store, clock)
    users.note("ann", None, Visit.CHANGE)
    clock.now += timedelta(seconds=59)
    users.note("ann", None, Visit.CHANGE)
    assert last_accessed(store) == NOON
    clock.now += timedelta(seconds=1)
    users.note("ann", None, Visit.LOOK)
    assert last_accessed(store) == NOON + timedelta(minutes=1)
    assert store.get_user("ann").created_at == NOON


def test_who_was_here_lately_is_not_asked_again(store: Store) -> None:
    """No disk, no thread: but only with the secret that is theirs, and only for a minute."""
    clock = HandClock()
    users = users_of(store, clock)
    users.note("ann", "a" * 64, Visit.CHANGE)
    assert users.is_settled("ann", "a" * 64)
    assert not users.is_settled("ann", "b" * 64)
    assert not users.is_settled("bob", None)
    clock.now += timedelta(minutes=1)
    assert not users.is_settled("ann", "a" * 64)


def test_another_secret_changes_nothing(store: Store) -> None:
    """Nor is the record's time moved."""
    clock = HandClock()
    users = users_of(store, clock)
    users.note("ann", "a" * 64, Visit.CHANGE)
    clock.now += timedelta(hours=1)
    assert not users.note("ann", "b" * 64, Visit.CHANGE)
    assert last_accessed(store) == NOON


def test_a_record_of_an_earlier_run_is_found(store: Store) -> None:
    """What was kept is read once, and then remembered."""
    users_of(store).note("ann", "a" * 64, Visit.CHANGE)
    store.settle()
    later = users_of(store)
    assert not later.is_settled("ann", "a" * 64)
    assert later.note("ann", "a" * 64, Visit.LOOK)
    assert later.is_settled("ann", "a" * 64)
