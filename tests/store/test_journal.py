"""What is appended reads back, whole records only, in order; damage costs what it hit and nothing more."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import CorruptRecord, FormatError
from runner.store.files import Layout
from runner.store.journal import Entry, Journal, Kind, Segment, decode, encode, replay, segments
from runner.task import to_json
from tests.store.samples import FaultyFiles, make_task

BODIES = [to_json(make_task(f"t{number}")) for number in range(6)]


@pytest.fixture
def journal(layout: Layout, files: FaultyFiles) -> Iterator[Journal]:
    """A journal whose first segment is 1."""
    journal = Journal(files, layout.journal)
    journal.open(1, 0)
    yield journal
    journal.close()


def add(journal: Journal, *bodies: bytes) -> None:
    """Appends and syncs records."""
    journal.append([(Kind.TASK, body) for body in bodies])
    journal.sync()


def read(layout: Layout) -> list[Entry]:
    """Every record of every segment."""
    disk = FaultyFiles()
    return [entry for number, path in segments(disk, layout.journal) for entry in replay(disk, path, number)[1]]


def write_segment(layout: Layout, data: bytes, number: int = 1) -> tuple[Segment, list[Entry]]:
    """A segment with exactly these bytes, read back."""
    path = Path(layout.journal) / f"{number:016d}.log"
    path.write_bytes(data)
    return replay(FaultyFiles(), str(path), number)


def test_records_read_back_in_order_over_all_segments(journal: Journal, layout: Layout) -> None:
    """Their numbers count up by one, wherever a segment ends."""
    add(journal, BODIES[0], BODIES[1])
    assert journal.rotate() == 1
    journal.append([(Kind.REMOVAL, b"u/t1"), (Kind.USER, b"{}"), (Kind.USER_REMOVAL, b"u")])
    assert [(entry.seq, entry.kind, entry.body) for entry in read(layout)] == [
        (1, Kind.TASK, BODIES[0]),
        (2, Kind.TASK, BODIES[1]),
        (3, Kind.REMOVAL, b"u/t1"),
        (4, Kind.USER, b"{}"),
        (5, Kind.USER_REMOVAL, b"u"),
    ]


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=200)), max_size=8), st.data())
def test_a_segment_cut_anywhere_reads_as_its_whole_records(
    records: list[tuple[Kind, bytes]], data: st.DataObject
) -> None:
    """A torn write is a write that nobody was told of."""
    parts = [encode(number, kind, body) for number, (kind, body) in enumerate(records, start=1)]
    whole = b"".join(parts)
    cut = data.draw(st.integers(0, len(whole)))
    found = [(entry.kind, entry.body) for _, entry in decode(whole[:cut])]
    ends = [sum(map(len, parts[: count + 1])) for count in range(len(parts))]
    assert found == records[: sum(end <= cut for end in ends)]


def test_a_torn_tail_is_no_damage(layout: Layout) -> None:
    """Every kill may leave one."""
    whole = encode(1, Kind.TASK, BODIES[0])
    for cut in (1, 16, 17, 18, len(whole) - 1):
        segment, entries = write_segment(layout, whole + encode(2, Kind.TASK, BODIES[1])[:cut])
        assert (segment.damaged, segment.last_seq, len(entries)) == (False, 1, 1)


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\xff" * 4096])
def test_a_tail_of_zeros_is_none(layout: Layout, tail: bytes) -> None:
    """A power cut may leave a file longer than what was written to it."""
    segment, entries = write_segment(layout, encode(1, Kind.TASK, BODIES[0]) + tail)
    assert (segment.damaged, len(entries)) == (False, 1)


def test_damage_costs_the_record_that_it_hit(layout: Layout) -> None:
    """What follows it is found again by its front and proven by its checksum."""
    parts = [encode(number, Kind.TASK, body) for number, body in enumerate(BODIES, start=1)]
    hurt = bytearray(b"".join(parts))
    hurt[len(parts[0]) + 50] ^= 1  # in the second record's body
    hurt[sum(map(len, parts[:4])) + 1] ^= 1  # in the fifth one's length
    segment, entries = write_segment(layout, bytes(hurt))
    assert (segment.damaged, segment.first_seq, segment.last_seq) == (True, 1, 6)
    assert [entry.seq for entry in entries] == [1, 3, 4, 6]


@pytest.mark.parametrize("seed", range(50))
def test_no_flipped_bit_is_believed(layout: Layout, seed: int) -> None:
    """Of six records at most one is lost, and none is another than it was."""
    chance = random.Random(seed)
    whole = bytearray(b"".join(encode(number, Kind.TASK, body) for number, body in enumerate(BODIES, start=1)))
    whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    _, entries = write_segment(layout, bytes(whole))
    assert len(entries) == 5
    assert all(BODIES[entry.seq - 1] == entry.body for entry in entries)


def test_a_record_inside_a_payload_is_not_taken_for_one(layout: Layout) -> None:
    """Whoever writes a task's payload cannot write the journal: its header has bytes that JSON escapes."""
    forged = encode(9, Kind.TASK, BODIES[5]).decode("latin-1")
    body = to_json(make_task("t1", payload={"x": forged}))
    torn = encode(1, Kind.TASK, body)[:-5]
    segment, entries = write_segment(layout, torn)
    assert (segment.damaged, entries) == (False, [])


def test_a_whole_record_of_an_unknown_kind_is_a_newer_version(layout: Layout) -> None:
    """To skip it would be to lose what it says."""
    signed = struct.pack("<QB", 1, 99)
    record = struct.pack("<IIQB", 1, zlib.crc32(b"x", zlib.crc32(signed)), 1, 99) + b"x"
    with pytest.raises(FormatError, match="kind 99"):
        write_segment(layout, record)


def test_an_empty_segment_says_nothing(layout: Layout) -> None:
    """Every clean end leaves one."""
    segment, entries = write_segment(layout, b"")
    assert (segment.first_seq, segment.last_seq, segment.damaged, entries) == (0, 0, False, [])


def test_a_link_is_no_segment(layout: Layout) -> None:
    """Recovery sets it aside."""
    path = f"{layout.journal}/0000000000000001.log"
    Path(path).symlink_to(__file__)
    with pytest.raises(CorruptRecord):
        replay(FaultyFiles(), path, 1)


def test_only_numbered_logs_are_segments_in_the_order_of_their_numbers(layout: Layout) -> None:
    """Whatever else lies there."""
    for name in ("0000000000000010.log", "9.log", "x.log", "1.txt", "rewrite"):
        Path(layout.journal, name).touch()
    assert [number for number, _ in segments(FaultyFiles(), layout.journal)] == [9, 10]


def test_an_append_that_failed_leaves_no_trace(journal: Journal, layout: Layout, files: FaultyFiles) -> None:
    """Half a record in the middle would hide what follows."""
    add(journal, BODIES[0])

    files.fail("write", times=1)
    with pytest.raises(OSError, match="Input/output error"):
        journal.append([(Kind.TASK, BODIES[1])])
    assert journal.try_undo()
    add(journal, BODIES[2])
    assert [(entry.seq, entry.body) for entry in read(layout)] == [(1, BODIES[0]), (2, BODIES[2])]


def test_what_was_appended_whole_can_be_undone_too(journal: Journal, layout: Layout) -> None:
    """The last append, and no more."""
    add(journal, BODIES[0])
    journal.append([(Kind.TASK, BODIES[1]), (Kind.TASK, BODIES[2])])
    journal.undo()
    assert [entry.seq for entry in read(layout)] == [1]


def test_a_disk_that_refuses_even_that_is_told(journal: Journal, files: FaultyFiles) -> None:
    """The committer then stops."""
    files.fail("truncate")
    assert not journal.try_undo()


def test_after_a_failed_sync_the_same_numbers_come_again(journal: Journal, layout: Layout, files: FaultyFiles) -> None:
    """So that recovery sees no gap, whether or not the old segment kept them."""
    add(journal, BODIES[0])
    journal.append([(Kind.TASK, BODIES[1])])
    files.fail("datasync", times=1)
    with pytest.raises(OSError, match="Input/output error"):
        journal.sync()
    journal.repeat()
    add(journal, BODIES[1], BODIES[2])
    assert [entry.seq for entry in read(layout)] == [1, 2, 2, 3]


@pytest.mark.parametrize("call", ["open", "sync"])
def test_a_rotation_that_fails_leaves_the_segment_in_use(
    journal: Journal, layout: Layout, files: FaultyFiles, call: str
) -> None:
    """No descriptors, no inodes: the next checkpoint tries again, and nothing is lost meanwhile."""
    add(journal, BODIES[0])
    files.fail(call, times=1)
    with pytest.raises(OSError, match="Input/output error"):
        journal.rotate()
    add(journal, BODIES[1])
    assert journal.rotate() == 1
    add(journal, BODIES[2])
    assert [entry.seq for entry in read(layout)] == [1, 2, 3]


def test_even_a_name_that_cannot_be_taken_back_does_not_stop_rotation(
    journal: Journal, layout: Layout, files: FaultyFiles
) -> None:
    """An empty segment is left over, and the next one gets another number."""
    files.fail("sync", times=1)
    files.fail("unlink", times=1)
    with pytest.raises(OSError, match="Input/output error"):
        journal.rotate()
    assert journal.rotate() == 1
    assert journal.number == 3


def test_an_empty_segment_is_not_sealed(journal: Journal, layout: Layout) -> None:
    """A checkpoint that cannot succeed makes no file a second."""
    add(journal, BODIES[0])
    assert [journal.seal(), journal.seal(), journal.seal()] == [1, 1, 1]
    assert len(segments(FaultyFiles(), layout.journal)) == 2


def test_segments_are_dropped_oldest_first(journal: Journal, layout: Layout, files: FaultyFiles) -> None:
    """Were a task's removal dropped before its creation, the task would come back."""
    for body in BODIES[:3]:
        add(journal, body)
        journal.rotate()
    files.fail("unlink", "2.log")
    with pytest.raises(OSError, match="Input/output error"):
        journal.drop(3)
    assert [number for number, _ in segments(files, layout.journal)] == [2, 3, 4]
    files.heal()
    journal.drop(3)
    assert [number for number, _ in segments(files, layout.journal)] == [4]


def test_closing_twice_is_fine(journal: Journal) -> None:
    """The fixture does it a third time."""
    journal.close()
    journal.close()
