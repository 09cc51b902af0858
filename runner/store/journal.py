"""The write-ahead journal: segments of checksummed records, appended and synced by one thread.

A segment is `journal/<n>.log`, n counting up. A record is a header of 17 bytes and a body:

    length u32 | crc32 u32 | seq u64 | kind u8 | body

little-endian; `length` is the body's, the checksum covers seq, kind and body, and `seq` counts up by one over all
segments. A record that is short or whose checksum fails ends its segment: it is a write that nobody was told of.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from runner.errors import FormatError
from runner.store.files import Files

_HEADER = struct.Struct("<IIQB")
_SIGNED = struct.Struct("<QB")
TASK_FRONT = b'{"id":"'
"""What the body of every task's record begins with."""
_NAME = re.compile(r"[0-9]{1,18}\.log")
MAX_BODY = 64 * 1024 * 1024


class Kind(IntEnum):
    """What a record's body is: a task's JSON, a removed task's `Removal`, a user's JSON, a removed user's id."""

    TASK = 1
    REMOVAL = 2
    USER = 3
    USER_REMOVAL = 4


class Entry(NamedTuple):
    """One record as read back."""

    seq: int
    kind: Kind
    body: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment as read back. `damaged`: whole records follow bytes that are none; bytes that are none at its end are
    what a crash leaves, and nobody was told of them. `first_seq` and `last_seq` are 0 if it has no whole record."""

    number: int
    path: str
    damaged: bool
    first_seq: int
    last_seq: int


def encode(seq: int, kind: Kind, body: bytes) -> bytes:
    """One record's bytes."""
    return _head(seq, kind, body) + body


def _head(seq: int, kind: Kind, body: bytes) -> bytes:
    return _HEADER.pack(len(body), zlib.crc32(body, zlib.crc32(_SIGNED.pack(seq, kind))), seq, kind)


def decode(data: bytes) -> Iterator[tuple[int, Entry]]:
    """The whole records at the front of `data`, each with the offset at which it ends; stops at the first bad one.
    Raises `FormatError` for a whole record of a kind that is not known: a newer version wrote it."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, checksum, seq, kind = _HEADER.unpack_from(data, offset)
        end = offset + _HEADER.size + length
        if length > MAX_BODY or end > len(data):
            return
        body = data[offset + _HEADER.size : end]
        if zlib.crc32(body, zlib.crc32(_SIGNED.pack(seq, kind))) != checksum:
            return
        yield end, Entry(seq, _kind(kind), body)
        offset = end


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        raise FormatError(
            f"the journal has records of kind {number}, which a newer version wrote: upgrade it"
        ) from None


def segments(files: Files, directory: str) -> list[tuple[int, str]]:
    """The numbers and paths of the segments in `directory`, oldest first."""
    found = [(int(name[:-4]), f"{directory}/{name}") for name in files.names(directory) if _NAME.fullmatch(name)]
    return sorted(found)


class Journal:
    """The segment that is being written. One thread appends; it is the committer."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        self._fd = -1
        self._last_number = 0
        self.number = 0
        self.seq = 0
        self.size = 0
        self._good = (0, 0)
        self._synced_seq = 0

    def open(self, number: int, seq: int) -> None:
        """Begins segment `number`; the next record gets `seq + 1`. The new name is durable when this returns; if it
        raises, nothing has changed, and that number is not used again."""
        self._last_number = number
        fd = self._create(f"{self._directory}/{number:016d}.log")
        self._fd, self.number, self.seq, self.size = fd, number, seq, 0
        self._good = (seq, 0)
        self._synced_seq = seq

    def append(self, records: Iterable[tuple[Kind, bytes]]) -> None:
        """Writes the records, in order, in one go; not yet synced."""
        seq = self.seq
        parts: list[bytes] = []
        for kind, body in records:
            seq += 1
            parts += (_head(seq, kind, body), body)
        data = b"".join(parts)
        self._good = (self.seq, self.size)
        self._files.write_all(self._fd, data)
        self.seq = seq
        self.size += len(data)

    def sync(self) -> None:
        """Everything appended before this call is on the disk. After an error this segment must not be used again: see
        `repeat`. May run beside `append`."""
        seq = self.seq
        self._files.datasync(self._fd)
        self._synced_seq = seq

    def repeat(self) -> None:
        """Begins the segment in which all that was appended after the last good `sync` must be appended again."""
        self.seq = self._synced_seq
        self.rotate()

    def undo(self) -> None:
        """Cuts off the last append, whole or partial: nobody was told of it, and what follows must be readable."""
        self.seq, self.size = self._good
        self._files.truncate(self._fd, self.size)

    def try_undo(self) -> bool:
        """`undo`, or False if the disk refuses even that."""
        try:
            self.undo()
        except OSError:
            return False
        return True

    def seal(self) -> int:
        """`rotate`, unless the segment is empty; returns the number of the newest segment that is sealed."""
        return self.rotate() if self.size else self.number - 1

    def rotate(self) -> int:
        """Seals the segment and begins the next; returns the sealed one's number. All of it has been synced or,
        in durability `process`, is synced by the checkpoint that follows. If it raises, the segment goes on."""
        sealed, fd = self.number, self._fd
        self.open(self._last_number + 1, self.seq)
        self._files.close(fd)
        return sealed

    def close(self) -> None:
        """Closes the segment; idempotent."""
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1

    def sync_sealed(self, up_to: int) -> None:
        """The segments up to and including number `up_to` are on the disk, or it raises `OSError`."""
        for number, path in segments(self._files, self._directory):
            if number <= up_to:
                self._files.sync_path(path)

    def drop(self, up_to: int) -> None:
        """Removes the segments up to and including number `up_to`: what they say is on the disk elsewhere."""
        for number, path in segments(self._files, self._directory):
            if number <= up_to:
                self._files.remove(path)
        self._files.sync_path(self._directory)

    def _create(self, path: str) -> int:
        fd = self._files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        try:
            self._files.sync_path(self._directory)
        except OSError:
            self._files.close(fd)
            with contextlib.suppress(OSError):
                self._files.remove(path)
            raise
        return fd


def replay(files: Files, path: str, number: int) -> tuple[Segment, list[Entry]]:
    """The whole records of one segment, and in what state it is. Raises `CorruptRecord` if it is no regular file."""
    data = files.read(path)
    entries: list[Entry] = []
    good, damaged = _read_records(data, 0, entries), False
    while (start := _next_task_record(data, good)) is not None:
        damaged = True
        good = _read_records(data, start, entries)
    first, last = (entries[0].seq, entries[-1].seq) if entries else (0, 0)
    return Segment(number, path, damaged, first, last), entries


def _read_records(data: bytes, start: int, entries: list[Entry]) -> int:
    """Adds the whole records from `start` on; returns where they end."""
    end = start
    for length, entry in decode(data[start:] if start else data):
        end = start + length
        entries.append(entry)
    return end


def _next_task_record(data: bytes, offset: int) -> int | None:
    """Where the next whole record of a task begins behind damage, if there is one."""
    found = data.find(TASK_FRONT, offset + _HEADER.size)
    while found >= 0:
        start = found - _HEADER.size
        length = _HEADER.unpack_from(data, start)[0]
        if next(decode(data[start : found + length]), None) is not None:
            return start
        found = data.find(TASK_FRONT, found + 1)
    return None
