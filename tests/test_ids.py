"""Random names, drawn many at a time."""

from __future__ import annotations

import uuid

from runner.ids import AT_ONCE, Digits, Ids


def test_ids_made_in_bulk_are_uuids_of_version_4() -> None:
    """As everywhere else; also those of the second system call."""
    ids = Ids()
    made = [ids.next() for _ in range(AT_ONCE + 1)]
    assert len(set(made)) == len(made)
    assert all(str(uuid.UUID(one)) == one and uuid.UUID(one).version == 4 for one in made)
    assert {uuid.UUID(one).variant for one in made} == {uuid.RFC_4122}


def test_digits_are_as_many_as_were_asked_for() -> None:
    """And nobody gets those of another."""
    digits = Digits(16)
    made = {digits.next() for _ in range(AT_ONCE + 1)}
    assert len(made) == AT_ONCE + 1
    assert {len(bytes.fromhex(one)) for one in made} == {8}
