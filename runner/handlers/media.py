"""What a file is: by its first bytes where they tell, else by its name."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from mimetypes import MimeTypes
from typing import Final

HEAD_BYTES: Final = 512
"""How many bytes from the start of a file are enough."""

UNKNOWN: Final = "application/octet-stream"

_MAGIC: Final = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"8BPS", "image/vnd.adobe.photoshop"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/x-wav"),
    (8, b"AVI ", "video/x-msvideo"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftypheic", "image/heic"),
    (4, b"ftypmif1", "image/heif"),
    (4, b"ftypM4A", "audio/mp4"),
    (4, b"ftypqt", "video/quicktime"),
    (4, b"ftyp", "video/mp4"),
    (0, b"FLV\x01", "video/x-flv"),
    (0, b"\x00\x00\x01\xba", "video/mpeg"),
    (0, b"fLaC", "audio/flac"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"\x1f\x8b\x08", "application/gzip"),
    (0, b"BZh", "application/x-bzip2"),
    (0, b"\xfd7zXZ\x00", "application/x-xz"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"Rar!\x1a\x07", "application/vnd.rar"),
    (257, b"ustar", "application/x-tar"),
    (0, b"SQLite format 3\x00", "application/vnd.sqlite3"),
    (0, b"\x7fELF", "application/x-executable"),
)
# The first bytes name only the container of these; which of its kinds it is, the name knows.
_CONTAINERS: Final = (
    (b"PK\x03\x04", "application/zip", ("application/",)),
    (b"\x1a\x45\xdf\xa3", "video/x-matroska", ("video/", "audio/")),
    (b"OggS", "audio/ogg", ("video/", "audio/")),
    (b"0&\xb2u\x8ef\xcf\x11", "video/x-ms-wmv", ("video/", "audio/")),
)
# The same on every machine: without what the system's own tables add.
_TYPES: Final = MimeTypes().types_map[True] | {
    ".avif": "image/avif",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".epub": "application/epub+zip",
    ".flac": "audio/flac",
    ".heic": "image/heic",
    ".heif": "image/heif",
    ".md": "text/markdown",
    ".mkv": "video/x-matroska",
    ".ndjson": "application/x-ndjson",
    ".ogg": "audio/ogg",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ogv": "video/ogg",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".wmv": "video/x-ms-wmv",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}


def media_type(filename: str, head: bytes) -> str:
    """The media type of a file of that name which begins with `head` (`HEAD_BYTES` are enough; may be empty)."""
    by_name = _by_name(filename)
    for magic, container, families in _CONTAINERS:
        if head.startswith(magic):
            return by_name if by_name.startswith(families) and by_name != UNKNOWN else container
    return next((kind for offset, magic, kind in _MAGIC if head.startswith(magic, offset)), by_name)


def matches(patterns: Iterable[str], filename: str, head: bytes) -> bool:
    """Whether one of `patterns`, such as `image/*` or `.csv`, fits the file. No patterns fit everything."""
    wanted = tuple(patterns)
    suffixes = tuple(pattern for pattern in wanted if pattern.startswith("."))
    if not wanted or filename.lower().endswith(suffixes):
        return True
    kind = media_type(filename, head)
    return any(fnmatch.fnmatchcase(kind, pattern) for pattern in wanted if not pattern.startswith("."))


def _by_name(filename: str) -> str:
    dot = filename.rfind(".")
    suffix = filename[dot:].lower() if dot >= 0 else ""
    return _TYPES.get(suffix, UNKNOWN)
