"""What file names say: which are never taken, and how names that are not UTF-8 are shown and kept.

Inside the intake a path is a `str` as `os.fsdecode` makes it: bytes that are not UTF-8 are lone surrogates, and every
system call gives them back as they were. JSON cannot hold those, so a task keeps a readable text and, only where the
text is not enough, the bytes percent-encoded (RFC 3986).
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

ERROR_FOLDER: Final = "error"
"""The folder, in a handler's own, for what was refused or failed."""
REASON: Final = ".error.txt"
"""What the name of a reason file ends with."""
LOCAL_USER: Final = "local"
"""Whose files lie in the inbox without a name of a user."""
MAX_NAME_BYTES: Final = 255
"""The longest name that Linux filesystems hold."""

_UNFINISHED: Final = (
    ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".opdownload", ".filepart", ".aria2", ".!ut",
    ".!qb", ".!sync", ".bts", ".swp", ".swx", "~",
)  # fmt: skip
_LITTER: Final = frozenset(
    (
        "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin",
        "system volume information", "lost+found", "__macosx", "icon\r",
    )
)  # fmt: skip
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LONGEST_PART: Final = 200
"""Of the names in an entry; leaves room for a number behind one."""
_LONGEST_NUMBERED: Final = MAX_NAME_BYTES - 16
"""Leaves room for what is put behind the name of a file: `.json`, `.error.txt`."""
_PLAIN: Final = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_-]{0,127}")


class Ignored:
    """The rules by which a name is never taken: the runner's own and the shell patterns of the configuration."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._patterns = [(pattern, re.compile(fnmatch.translate(pattern))) for pattern in patterns]

    def rule(self, name: str) -> str | None:
        """Why one component of a path is not taken, or None if it may be. Costs less than a system call."""
        if name[0] in ".~":
            return "names that begin with . or ~ belong to programs at work"
        lowered = name.lower()
        if lowered.endswith(_UNFINISHED):
            return f"*{next(ending for ending in _UNFINISHED if lowered.endswith(ending))}: not finished yet"
        if lowered in _LITTER:
            return f"{name}: left behind by a system, not by a person"
        if name.endswith(REASON):
            return f"*{REASON}: the reason why a file was not taken"
        return self._configured(name) if self._patterns else None

    def _configured(self, name: str) -> str | None:
        for pattern, expression in self._patterns:
            if expression.match(name):
                return f"{pattern}: a pattern of `inbox.ignore`"
        return None


def entry_of(user_id: str, handler: str, name: str) -> str:
    """The outbox entry of a file, relative to the data directory, as long as no other has it. `name`: its path below
    its folder."""
    owner = "" if user_id == LOCAL_USER else f"@{user_id}/"
    if not is_kept_in_entry(name):
        name = "/".join(with_suffix(part, "", _LONGEST_PART) for part in text_of(name).split("/"))
    return f"outbox/{owner}{handler}/{name}"


def is_kept_in_entry(name: str) -> bool:
    """Whether an entry has exactly this name."""
    return name.isascii() and len(name) <= _LONGEST_PART


def is_plain(name: str) -> bool:
    """Whether a name that came from outside, such as a handler's, may be part of a path as it is."""
    return _PLAIN.fullmatch(name) is not None


def is_utf8(name: str) -> bool:
    """Whether a name as `os.fsdecode` made it holds no bytes that are not UTF-8."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_of(name: str) -> str:
    r"""A name or path as JSON can hold it: exact if it is UTF-8, else with `\xff` for each byte that is not."""
    return name if is_utf8(name) else os.fsencode(name).decode("utf-8", "backslashreplace")


def shown(name: str) -> str:
    r"""A name for people: one line, composed (NFC), control characters and changes of direction as `\x0a`."""
    if name.isascii() and name.isprintable():
        return name
    return _CONTROL.sub(_escape, unicodedata.normalize("NFC", text_of(name)))


def raw_of(path: str) -> str | None:
    """The bytes of a path that is not UTF-8, percent-encoded; None where `text_of` is exact."""
    return None if is_utf8(path) else quote_from_bytes(os.fsencode(path), safe="/")


def path_of(text: str, raw: str | None) -> str:
    """The path that `text_of` and `raw_of` were made from."""
    return text if raw is None else os.fsdecode(unquote_to_bytes(raw))


def with_suffix(name: str, suffix: str, longest: int = MAX_NAME_BYTES) -> str:
    """`name` + `suffix`, its end replaced by a hash where that would be longer than `longest` bytes."""
    if name.isascii() and suffix.isascii() and len(name) + len(suffix) <= longest:
        return name + suffix
    room = longest - len(os.fsencode(suffix))
    data = os.fsencode(name)
    if len(data) <= room:
        return name + suffix
    mark = f"~{hashlib.sha256(data).hexdigest()[:8]}"
    return data[: room - len(mark)].decode("utf-8", "ignore") + mark + suffix


def numbered(name: str, number: int) -> str:
    """`name` for the first, `clip.2.mp4` for the second of that name: the ending stays, so the type does."""
    if number == 1:
        return name
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending) > 16:
        return with_suffix(name, f".{number}", _LONGEST_NUMBERED)
    return with_suffix(stem, f".{number}{dot}{ending}", _LONGEST_NUMBERED)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
