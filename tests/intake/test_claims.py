"""What a ready file is handed in as."""

import uuid

from runner.intake.claims import IDS_AT_ONCE, Ids


def test_ids_made_in_bulk_are_uuids_of_version_4() -> None:
    """As everywhere else; also those of the second system call."""
    ids = Ids()
    made = [ids.next() for _ in range(IDS_AT_ONCE + 1)]
    assert len(set(made)) == len(made)
    assert all(str(uuid.UUID(one)) == one and uuid.UUID(one).version == 4 for one in made)
    assert {uuid.UUID(one).variant for one in made} == {uuid.RFC_4122}
