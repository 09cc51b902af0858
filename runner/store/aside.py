"""Where things go that nobody may delete and nobody can use: corrupt/ and trash/, each with its reason beside it."""

from __future__ import annotations

import os
from typing import Final

from runner.store.files import Files, Layout

LONGEST_NAME_BYTES: Final = 200
REASON: Final = ".reason.txt"


def quarantine(files: Files, layout: Layout, path: str, reason: str) -> str:
    """Moves what is not the file that it should be to corrupt/, with the reason beside it; returns where it is now.
    Raises `FileNotFoundError` when somebody else has moved it."""
    return _put_aside(files, layout, path, f"{layout.corrupt}/{_shortened(os.path.basename(path))}", reason)


def throw_away(files: Files, layout: Layout, path: str, reason: str) -> str:
    """Moves what belongs to nobody to trash/, under a name that says where it was; else like `quarantine`."""
    files.make_directory(layout.trash)
    name = layout.relative(path).replace("/", ".")
    return _put_aside(files, layout, path, f"{layout.trash}/{_shortened(name)}", reason)


def count_aside(files: Files, directory: str) -> int:
    """How many things lie in corrupt/ or trash/, their reasons not counted."""
    try:
        return sum(not name.endswith(REASON) for name in files.names(directory))
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _put_aside(files: Files, layout: Layout, path: str, target: str, reason: str) -> str:
    target = _free_name(target)
    files.rename(path, target)
    text = f"{reason}\n".encode("utf-8", "backslashreplace")
    files.replace(f"{target}{REASON}", text, f"{layout.tmp}/.reason")
    return target


def _free_name(path: str) -> str:
    """`path`, or one of path.2, path.3, … that is not taken: nothing that is there is overwritten."""
    taken, free = 0, 1
    while os.path.lexists(_numbered(path, free)):
        taken, free = free, free * 2
    while free - taken > 1:
        middle = (taken + free) // 2
        taken, free = (middle, free) if os.path.lexists(_numbered(path, middle)) else (taken, middle)
    return _numbered(path, free)


def _numbered(path: str, number: int) -> str:
    return path if number == 1 else f"{path}.{number}"


def _shortened(name: str) -> str:
    """A name with room for a number and an ending behind it."""
    return os.fsdecode(os.fsencode(name)[:LONGEST_NAME_BYTES])
