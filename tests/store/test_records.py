"""Tombstones hold all that is left to do for who was removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.store import Layout
from runner.store.records import Removal, RemovedUser
from tests.store.samples import FaultyFiles


@pytest.mark.parametrize("removal", [Removal("t", "u"), Removal("t-1_x", "local"), Removal("t", "")])
def test_a_removal_reads_back(removal: Removal) -> None:
    """As the journal has it."""
    assert Removal.decode(removal.encode()) == removal


def test_a_removed_user_leaves_no_record(layout: Layout, files: FaultyFiles) -> None:
    """Done once or twice; tasks and files of theirs stay."""
    Path(layout.user("u")).touch()
    Path(layout.upload("u", "t")).mkdir(parents=True)
    for _ in range(2):
        RemovedUser("u").apply(files, layout)
    assert (Path(layout.user("u")).exists(), Path(layout.upload("u", "t")).exists()) == (False, True)
