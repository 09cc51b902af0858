"""Files in line, a lane for each folder."""

from runner.intake.folders import Folder
from runner.intake.lanes import LONGEST_BACKOFF_SECONDS, Lanes

A, B = Folder("/inbox/a", "a"), Folder("/inbox/b", "b")


def _names(lanes: Lanes, limit: int, now: float = 0.0) -> dict[str, list[str]]:
    return {folder.handler: names for folder, names in lanes.next(limit, now)}


def test_lanes_share_a_batch_equally_and_what_one_leaves_goes_to_the_others() -> None:
    """Ten thousand files in one folder do not keep the one file of another waiting."""
    lanes = Lanes()
    lanes.add(A, [f"{number:05}" for number in range(10_000)])
    lanes.add(B, ["only"])
    shares = _names(lanes, 10)
    assert shares["b"] == ["only"]
    assert len(shares["a"]) in (5, 9)
    assert sum(map(len, shares.values())) <= 10


def test_a_lane_that_was_served_waits_for_the_others() -> None:
    """With room for one file at a time the lanes take turns."""
    lanes = Lanes()
    lanes.add(A, ["1", "2"])
    lanes.add(B, ["3", "4"])
    turns = [_names(lanes, 1) for _ in range(4)]
    assert turns == [{"a": ["1"]}, {"b": ["3"]}, {"a": ["2"]}, {"b": ["4"]}]


def test_a_file_stands_in_line_once() -> None:
    """Hints and scans find the same file again and again."""
    lanes = Lanes()
    assert lanes.add(A, ["1", "2"]) == 2
    lanes.put_first(A, ["0"])
    assert lanes.add(A, ["2", "0", "3"]) == 1
    assert _names(lanes, 10) == {"a": ["0", "1", "2", "3"]}


def test_a_blocked_lane_is_passed_over_until_its_time_and_waits_longer_each_time() -> None:
    """Back-off doubles to a limit and is forgotten when a file gets through."""
    lanes = Lanes()
    lanes.add(A, ["1"])
    lanes.block(A, "unknown_handler", "no handler a", now=0.0)
    assert _names(lanes, 1, now=0.4) == {}
    assert lanes.next_due(0.4) == 0.5
    for _ in range(12):
        lanes.block(A, "unknown_handler", "no handler a", now=0.0)
    assert lanes.next_due(0.0) == LONGEST_BACKOFF_SECONDS
    lanes.clear(A)
    assert _names(lanes, 1) == {"a": ["1"]}


def test_unblocking_tries_every_lane_at_once() -> None:
    """A handler came: no reason to sit out the back-off."""
    lanes = Lanes()
    lanes.add(A, ["1"])
    lanes.block(A, "unknown_handler", "no handler a", now=0.0, seconds=60)
    lanes.unblock()
    assert _names(lanes, 1) == {"a": ["1"]}


def test_empty_lanes_have_nothing_due() -> None:
    """Then the inbox sleeps until it is told something."""
    lanes = Lanes()
    lanes.add(A, ["1"])
    _names(lanes, 1)
    assert lanes.next_due(0.0) is None
    assert len(lanes) == 0
