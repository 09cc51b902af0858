"""What lies in the watched folders, asked of the disk: the truth that notifications only hint at."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sized
from dataclasses import dataclass, field
from typing import Final, Protocol

from runner.intake.admission import NAME
from runner.intake.folders import Folder, Folders
from runner.intake.names import ERROR_FOLDER, Ignored

MAX_NAMES: Final = 50_000
"""So many files of one directory are noted at a time; the others are only counted until those are taken."""


class Known(Container[str], Sized, Protocol):
    """The paths under a folder of files that need not be found again."""


@dataclass(slots=True)
class Listing:
    """The files of one directory. `below`: its path under the folder, empty at the top.

    `names` are sorted. `known`: how many others are known already. `beyond`: how many more there are than were noted.
    `ignored`: name → rule; `unfinished`: the inodes of those. `inner`: the names of its subdirectories. `trouble`: why
    it could not be read.
    """

    folder: Folder
    below: str
    names: list[str] = field(default_factory=list)
    known: int = 0
    beyond: int = 0
    ignored: dict[str, str] = field(default_factory=dict)
    unfinished: set[int] = field(default_factory=set)
    inner: list[str] = field(default_factory=list)
    trouble: OSError | None = None

    def name_of(self, name: str) -> str:
        """The path under the folder of one name of this directory."""
        return f"{self.below}/{name}" if self.below else name


def list_folder(folder: Folder, ignored: Ignored, below: str = "", known: Known = frozenset()) -> Iterator[Listing]:
    """The directory `below` the folder and all under it, one listing each, error folders left out. No link is
    followed; a directory that cannot be read is listed with its `trouble`."""
    waiting = [below]
    while waiting:
        listing = list_directory(folder, waiting.pop(), ignored, known)
        yield listing
        if folder.recursive:
            waiting.extend(listing.name_of(name) for name in reversed(listing.inner))


def list_directory(folder: Folder, below: str, ignored: Ignored, known: Known = frozenset()) -> Listing:
    """One directory."""
    listing = Listing(folder, below)
    path, front = (folder.absolute(below), f"{below}/") if below else (folder.path, "")
    room = MAX_NAMES - len(known)
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if front + entry.name in known:
                    listing.known += 1
                else:
                    _note(listing, entry, ignored, room)
    except OSError as error:
        listing.trouble = error
    listing.names.sort()
    listing.inner.sort()
    return listing


def _note(listing: Listing, entry: os.DirEntry[str], ignored: Ignored, room: int) -> None:
    name = entry.name
    if rule := ignored.rule(name):
        listing.ignored[name] = rule
        listing.unfinished.add(entry.inode())
    elif entry.is_dir(follow_symlinks=False):
        if listing.below or name != ERROR_FOLDER:
            listing.inner.append(name)
    elif len(listing.names) < room:
        listing.names.append(name)
    else:
        listing.beyond += 1


def find_folders(folders: Folders) -> Iterator[Folder]:
    """Every folder to look into now: those that exist in the inbox, and the further ones of the configuration."""
    yield from _find_in_inbox(folders, folders.of_documents())
    yield from folders.further


def _find_in_inbox(folders: Folders, top: Folder) -> Iterator[Folder]:
    yield top
    for name in list_directory(top, "", folders.ignored).inner:
        if not name.startswith("@"):
            yield folders.of_handler(name, top.user_id)
        elif top.path == folders.root and NAME.fullmatch(name[1:]):
            yield from _find_in_inbox(folders, folders.of_documents(name[1:]))
