"""User records are kept as tasks are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.errors import NotFound
from runner.store import RemoveUser, Store, User
from tests.store.samples import LATER, NOW, Stores, crash

USER = User(user_id="u", created_at=NOW, last_accessed=NOW, metadata={"theme": "dark"})


def test_a_user_is_kept_from_the_moment_it_is_saved(stores: Stores, data: Path, lazy_store: Store) -> None:
    """In memory, after a crash, and in a file that a person can read."""
    lazy_store.save_user(USER)
    assert lazy_store.get_user("u") == USER
    later = stores.open(crash(lazy_store, data.parent / "crashed"))
    assert (later.get_user("u"), later.user_ids()) == (USER, ("u",))
    assert '"theme": "dark"' in Path(later.layout.user("u")).read_text()


def test_the_last_record_counts(lazy_store: Store) -> None:
    """Each save replaces."""
    lazy_store.save_user(USER)
    lazy_store.writer.flush()
    seen = USER.model_copy(update={"last_accessed": LATER})
    lazy_store.save_user(seen)
    assert lazy_store.get_user("u") == seen
    lazy_store.writer.flush()
    assert lazy_store.get_user("u") == seen


def test_a_removed_user_is_not_there(stores: Stores, data: Path, lazy_store: Store) -> None:
    """At once, and after a crash."""
    lazy_store.save_user(USER)
    lazy_store.writer.flush()
    lazy_store.commit((RemoveUser("u"),))
    with pytest.raises(NotFound):
        lazy_store.get_user("u")
    later = stores.open(crash(lazy_store, data.parent / "crashed"))
    with pytest.raises(NotFound):
        later.get_user("u")
    assert later.user_ids() == ()


@pytest.mark.parametrize("damage", ["torn", "link"])
def test_a_damaged_record_is_set_aside_with_its_reason(store: Store, damage: str) -> None:
    """Its user is a new one; it does not fail every request for ever."""
    path = Path(store.layout.user("u"))
    if damage == "torn":
        path.write_bytes(USER.to_json()[:20])
    else:
        path.symlink_to(__file__)
    for _ in range(2):
        with pytest.raises(NotFound):
            store.get_user("u")
    assert sorted(os.listdir(store.layout.corrupt)) == ["u.json", "u.json.reason.txt"]
    store.save_user(USER)
    assert store.get_user("u") == USER
