"""Unpack archives that anybody may have made: zip, tar, tar.gz and tar.bz2.

Everything is counted while it is read, so an archive that lies about itself fills neither the disk nor the memory. What
no honest archive of files needs is refused outright: absolute names, `..`, links, devices, names that occur twice,
encrypted members, and archives inside of the archive.
"""

import bz2
import errno
import gzip
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_IFDIR, S_IFMT, S_IFREG
from typing import IO, Protocol

from runner import Fail
from runner.handlers.media import HEAD_BYTES, media_type

CHUNK_BYTES = 1 << 18
MAX_DEPTH = 32
MAX_NAME_CHARACTERS = 1024
MAX_NOTE_BYTES = 1 << 16
FREE_BYTES = 1 << 20
BLOCK_BYTES = 512
ZIP_END = struct.Struct("<4s4H2LH")
ZIP_TAIL_BYTES = ZIP_END.size + 0xFFFF
ZIP_ENTRY_BYTES = 512
ODD = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:")
ARCHIVES = {
    "application/zip",
    "application/gzip",
    "application/vnd.rar",
    "application/x-7z-compressed",
    "application/x-bzip2",
    "application/x-tar",
    "application/x-xz",
}

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz")
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, NotImplementedError, ValueError)


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold: files, bytes when unpacked, and how many times its own size that may be.

    One MiB is always allowed, however well it was packed.
    """

    max_files: int = 20_000
    max_bytes: int = 1 << 30
    max_ratio: int = 100


class Readable(Protocol):
    """What a member is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""


def refuse(reason: str) -> Fail:
    """What is raised for an archive that is not safe to unpack."""
    return Fail(f"the archive is refused: {reason}", code="unsafe_archive")


def is_archive(path: Path) -> bool:
    """Whether a file is an archive that `unpack` takes; not one that is a document, such as `.docx` or `.jar`."""
    with path.open("rb") as file:
        kind = media_type(path.name, file.read(HEAD_BYTES))
    if kind in ("application/gzip", "application/x-bzip2"):
        return path.name.lower().endswith(COMPRESSED_TARS)
    return kind in ("application/zip", "application/x-tar")


def unpack(
    archive: Path, target: Path, *, check: Callable[[], None] = lambda: None, limits: Limits | None = None
) -> list[PurePosixPath]:
    """Write the files of the archive below the empty folder `target`; their names, sorted.

    `check` is called at least for every quarter of a megabyte and stops by raising. Raises Fail with code
    `unsafe_archive`, or `unreadable_archive` where it is damaged or of a kind that is not known.
    """
    unpacking = Unpacking(archive, target, check, limits or Limits())
    try:
        with archive.open("rb") as file:
            if file.read(2) == b"PK":
                unpacking.unpack_zip()
            else:
                unpacking.unpack_tar(file)
    except DAMAGE as error:
        raise Fail(f"the archive cannot be read: {error}", code="unreadable_archive") from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # what gzip, bz2 and zipfile raise for damage
            raise Fail(f"the archive cannot be read: {error}", code="unreadable_archive") from error
        raise
    return sorted(unpacking.names)


class Unpacking:
    """One archive on its way to the disk, and what is left of its limits."""

    def __init__(self, archive: Path, target: Path, check: Callable[[], None], limits: Limits) -> None:
        self.names: list[PurePosixPath] = []
        self._archive = archive
        self._target = target
        self._check = check
        self._limits = limits
        self._files_left = limits.max_files
        self._bytes_left = min(limits.max_bytes, max(FREE_BYTES, limits.max_ratio * archive.stat().st_size))

    def unpack_zip(self) -> None:
        """Write what a zip holds."""
        check_directory(self._archive, self._limits)
        with zipfile.ZipFile(self._archive) as archive:
            for member in archive.infolist():
                kind = S_IFMT(member.external_attr >> 16)
                if kind not in (0, S_IFREG, S_IFDIR):
                    raise refuse(f"{member.filename!r} is a link or a device")
                if member.flag_bits & 1:
                    raise refuse(f"{member.filename!r} is encrypted")
                # The library unpacks what it has read of the other kinds in one go, however large that gets.
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise refuse(f"{member.filename!r} is packed in an unusual way")
                name = self._admit(member.filename)
                if not member.is_dir():
                    with archive.open(member) as source:
                        self._write(name, source, self._spend)

    def unpack_tar(self, file: IO[bytes]) -> None:
        """Write what a tar holds, be it compressed or not."""
        file.seek(0)
        head = file.read(3)
        file.seek(0)
        if head[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as plain:
                self._write_members(Tape(plain, self._spend))
        elif head == b"BZh":
            with bz2.BZ2File(file) as plain:
                self._write_members(Tape(plain, self._spend))
        else:
            self._write_members(Tape(file, self._spend))

    def _write_members(self, tape: "Tape") -> None:
        for name, is_folder in tape.members():
            path = self._admit(name)
            if not is_folder:
                self._write(path, tape, lambda count: None)  # the tape tells what it was read

    def _spend(self, count: int) -> None:
        """So many bytes came out of the archive."""
        self._check()
        self._bytes_left -= count
        if self._bytes_left < 0:
            most, ratio = self._limits.max_bytes, self._limits.max_ratio
            raise refuse(f"unpacked it is larger than {most:,} bytes, or than {ratio} times its own size")

    def _admit(self, name: str) -> PurePosixPath:
        """The name as a path, if one more file of that name may be written."""
        self._check()
        self._files_left -= 1
        if self._files_left < 0:
            raise refuse(f"it holds more than {self._limits.max_files:,} files")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise refuse(f"{name[:80]!r} leads out of it")
        if len(path.parts) > MAX_DEPTH or len(name) > MAX_NAME_CHARACTERS or ODD.search(name):
            raise refuse(f"{name[:80]!r} is too long, too deep or too odd a name")
        return path

    def _write(self, name: PurePosixPath, source: Readable, spend: Callable[[int], None]) -> None:
        path = self._target / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                while chunk := source.read(CHUNK_BYTES):
                    if not file.tell() and media_type(name.name, chunk[:HEAD_BYTES]) in ARCHIVES:
                        raise refuse(f"{str(name)!r} is an archive, too")
                    spend(len(chunk))
                    file.write(chunk)
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            raise refuse(f"{str(name)!r} occurs twice") from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise refuse(f"{str(name)[:80]!r} is too long") from None
            raise
        self.names.append(name)


def check_directory(archive: Path, limits: Limits) -> None:
    """Refuse a zip whose table of contents is too long to be read into memory."""
    with archive.open("rb") as file:
        start = max(0, file.seek(0, 2) - ZIP_TAIL_BYTES)
        file.seek(start)
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < ZIP_END.size:
        raise zipfile.BadZipFile("its end is missing")
    _, _, _, _, _, size, _, _ = ZIP_END.unpack_from(tail, end)
    # A zip of 64 bits says 0xFFFFFFFF there: far more than any that is wanted here.
    if size > limits.max_files * ZIP_ENTRY_BYTES:
        raise refuse(f"it holds more than {limits.max_files:,} files")


class Tape:
    """A tar, read once from its start to its end; `read` gives the bytes of the member that comes just now.

    Formats: POSIX (ustar, pax) and GNU. Tells `spend` every byte that is read.
    """

    def __init__(self, file: Readable, spend: Callable[[int], None]) -> None:
        self._file = file
        self._spend = spend
        self._left = 0
        self._padding = 0

    def members(self) -> Iterator[tuple[str, bool]]:
        """The name of each file or folder, and whether it is a folder; then its content can be read."""
        said: dict[str, str] = {}
        while (header := self._next_header()) is not None:
            kind, size = chr(header[156]), parse_number(header[124:136])
            if kind in "xgL":
                said |= self._read_note(kind, size)
                continue
            if kind not in "0\x005":
                raise refuse(f"{name_of(header)!r} is a link, a device, or something unusual")
            self._open(int(said.get("size", size)))
            yield said.get("path") or name_of(header), kind == "5"
            said = {}
        while rest := self._file.read(CHUNK_BYTES):  # a sum of it all may stand at the very end
            self._spend(len(rest))

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes of the member; b"" at its end."""
        return self._take(min(size, self._left)) if self._left else b""

    def _open(self, size: int) -> None:
        if size < 0:
            raise refuse("a size in it is negative")
        self._left, self._padding = size, -size % BLOCK_BYTES

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if not data:
            raise EOFError("it ends in the middle of a file")
        self._spend(len(data))
        return data

    def _next_header(self) -> bytes | None:
        self._left, self._padding = self._left + self._padding, 0
        while self.read(CHUNK_BYTES):
            pass
        header = self._file.read(BLOCK_BYTES)
        if not header:
            raise EOFError("it breaks off")
        if not header.strip(b"\0"):
            return None
        if len(header) < BLOCK_BYTES or parse_number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise EOFError("it is no tar, or it is damaged")
        self._spend(BLOCK_BYTES)
        return header

    def _read_note(self, kind: str, size: int) -> dict[str, str]:
        """What is said about the member that follows: a long name, or the records of pax."""
        if size > MAX_NOTE_BYTES:
            raise refuse("a name in it is too long")
        self._open(size)
        data = b""
        while part := self.read(size):
            data += part
        text = data.rstrip(b"\0").decode("utf-8", "replace")
        if kind == "L":
            return {"path": text}
        return {} if kind == "g" else dict(parse_records(text))


def parse_records(text: str) -> Iterator[tuple[str, str]]:
    """The path and the size among the records of a pax header, which are lines `29 path=…`."""
    for line in text.split("\n"):
        key, _, value = line.partition(" ")[2].partition("=")
        if key == "path" or (key == "size" and value.isascii() and value.isdigit()):
            yield key, value
        if key.startswith("GNU.sparse"):
            raise refuse("a file in it has holes")


def parse_number(field: bytes) -> int:
    """A number of a tar header: octal, or binary where it is large."""
    if field[0] & 0x80:
        return int.from_bytes(field) & ((1 << 8 * len(field) - 1) - 1)
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise EOFError("it is no tar, or it is damaged") from None


def name_of(header: bytes) -> str:
    """The name in a tar header, with the folder that ustar keeps apart."""
    name, _, _ = header[:100].partition(b"\0")
    prefix, _, _ = header[345:500].partition(b"\0") if header[257:263] == b"ustar\0" else (b"", b"", b"")
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")
