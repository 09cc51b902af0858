"""Which folders are watched, and what a path inside them stands for.

    inbox/<handler>/…            files for that handler, of the user `local`
    inbox/<handler>/error/…      what was refused or failed; never taken from there
    inbox/@<user>/<handler>/…    the same for another user
    inbox/*.json                 submission documents; inbox/@<user>/*.json of that user
    any folder of the configuration, for one handler and one user

Everything here is decided from the text of a path; the disk is asked in `scan` and `readiness`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from runner.config import InboxConfig, InboxFolderConfig
from runner.intake.admission import NAME
from runner.intake.names import ERROR_FOLDER, LOCAL_USER, Ignored

DONE: Final = ".done"
"""What is put behind a file's name to say that the file is whole."""
SUM: Final = ".sha256"
"""What is put behind a file's name for the file that holds its checksum."""


_ANY: Final = "x"
"""A name that no rule speaks of: what holds for it holds for a directory's other names, but for such rules."""


class After(StrEnum):
    """What becomes of a file when it is taken. `MOVE`: it is the task's. `DELETE`: likewise, and it is removed when
    the task has completed. `KEEP`: it stays where it is; the task gets a copy."""

    MOVE = "move"
    KEEP = "keep"
    DELETE = "delete"


class Remember(StrEnum):
    """How a kept file is known again. `STAT`: by size, time and inode. `CONTENT`: by its bytes, where those differ."""

    STAT = "stat"
    CONTENT = "content"


@dataclass(frozen=True, slots=True)
class Folder:
    """One place whose files become tasks of one handler and one user.

    `path` is absolute. `payload` is laid under what a sidecar says. `settle_seconds`: how long a file must not have
    changed; None where the absence of a writer is proof enough. `documents`: the files are submission documents, and
    `handler` is empty.
    """

    path: str
    handler: str
    user_id: str = LOCAL_USER
    payload: Mapping[str, Any] = field(default_factory=dict)
    settle_seconds: float | None = None
    recursive: bool = True
    documents: bool = False
    after: After = After.MOVE
    remember: Remember = Remember.STAT
    done_marker: bool = False
    checksum: bool = False
    dedupe: bool = False
    supersede: bool = False

    @property
    def companions(self) -> tuple[str, ...]:
        """The endings of the files that each file waits for."""
        return (DONE,) * self.done_marker + (SUM,) * self.checksum

    @property
    def is_kept(self) -> bool:
        """Whether its files stay, so that nothing in it is ever changed."""
        return self.after is After.KEEP

    @property
    def error_path(self) -> str:
        """Where its refused and failed files go."""
        return f"{self.path}/{ERROR_FOLDER}"

    def absolute(self, name: str) -> str:
        """The path of a file below this folder."""
        return f"{self.path}/{name}"


class Standing(StrEnum):
    """What a path is to the inbox."""

    FILE = "file"
    FOLDER = "folder"
    ERROR = "error"
    IGNORED = "ignored"
    STRAY = "stray"
    OUTSIDE = "outside"


class Place(NamedTuple):
    """Where a path stands. `name` is the path below the folder; `rule` says why an ignored one is never taken."""

    standing: Standing
    folder: Folder | None = None
    name: str = ""
    rule: str = ""


class Manner(NamedTuple):
    """What holds for the folders of the inbox itself; see `Folder`."""

    dedupe: bool = False
    supersede: bool = False


class Folders:
    """The inbox at `root` and the `further` folders of the configuration. Pure; any thread."""

    def __init__(
        self, root: str, ignored: Ignored, further: Sequence[Folder] = (), manner: Manner | None = None
    ) -> None:
        self.root = root
        self._manner = manner or Manner()
        self.ignored = ignored
        self.further = tuple(sorted(further, key=lambda folder: -len(folder.path)))
        self._by_path = {folder.path: folder for folder in further}

    def of_handler(self, handler: str, user_id: str = LOCAL_USER) -> Folder:
        """The folder of the inbox where files for `handler` are dropped."""
        below = handler if user_id == LOCAL_USER else f"@{user_id}/{handler}"
        return self._known(f"{self.root}/{below}", handler, user_id)

    def of_documents(self, user_id: str = LOCAL_USER) -> Folder:
        """The folder where submission documents of a user are dropped."""
        path = self.root if user_id == LOCAL_USER else f"{self.root}/@{user_id}"
        return self._known(path, "", user_id)

    def locate(self, path: str) -> Place:
        """What `path`, absolute and without `..`, stands for. A file and a directory are told apart by the disk, so
        whatever may be taken is a `FILE` here."""
        folder = self.find_further(path)
        if folder is not None:
            return self._below(folder, path[len(folder.path) + 1 :])
        if path == self.root:
            return Place(Standing.FOLDER, self.of_documents())
        if not path.startswith(f"{self.root}/"):
            return Place(Standing.OUTSIDE)
        return self._in_inbox(path[len(self.root) + 1 :])

    def find_further(self, path: str) -> Folder | None:
        """The folder of the configuration that a path is in, or None."""
        for folder in self.further:
            if path.startswith(folder.path) and path[len(folder.path) : len(folder.path) + 1] in ("/", ""):
                return folder
        return None

    def sort(self, paths: Iterable[str]) -> Iterator[tuple[Folder, list[str]]]:
        """The folders that paths are in, each with the names of those that may be taken or asked about. What `locate`
        says, for thousands of paths: a directory's standing is found out once."""
        by_directory: dict[str, list[str]] = {}
        for path in paths:
            directory, _, name = path.rpartition("/")
            by_directory.setdefault(directory, []).append(name)
        for directory, names in by_directory.items():
            inside = self.locate(f"{directory}/{_ANY}")
            if inside.standing is Standing.FILE and inside.folder is not None and inside.folder.handler:
                below, rule = inside.name.removesuffix(_ANY), self.ignored.rule
                wanted = (name for name in names if not rule(name) and (below or name != ERROR_FOLDER))
                yield inside.folder, [below + name for name in wanted]
            else:
                yield from self._sort_each(directory, names)

    def _sort_each(self, directory: str, names: Iterable[str]) -> Iterator[tuple[Folder, list[str]]]:
        for name in names:
            place = self.locate(f"{directory}/{name}")
            if place.folder is not None:
                is_wanted = place.standing in (Standing.FILE, Standing.STRAY)
                yield place.folder, [place.name] if is_wanted else []

    def _in_inbox(self, below: str) -> Place:
        user_id, rest = LOCAL_USER, below
        if below[0] == "@":
            owner, _, rest = below.partition("/")
            user_id = owner[1:]
            if not NAME.fullmatch(user_id):
                return Place(Standing.IGNORED, rule=f"{owner} is not @ and the name of a user")
            if not rest:
                return Place(Standing.FOLDER, self.of_documents(user_id))
        handler, _, name = rest.partition("/")
        if handler == ERROR_FOLDER:
            return Place(Standing.ERROR, self.of_documents(user_id), rest)
        if not name:
            return self._at_top(handler, user_id)
        if rule := self.ignored.rule(handler):
            return Place(Standing.IGNORED, rule=rule)
        return self._below(self.of_handler(handler, user_id), name)

    def _at_top(self, name: str, user_id: str) -> Place:
        if rule := self.ignored.rule(name):
            return Place(Standing.IGNORED, rule=rule)
        if name.endswith(".json"):
            return Place(Standing.FILE, self.of_documents(user_id), name)
        return Place(Standing.STRAY, self.of_documents(user_id), name)

    def _below(self, folder: Folder, name: str) -> Place:
        if not name:
            return Place(Standing.FOLDER, folder)
        parts = name.split("/")
        if parts[0] == ERROR_FOLDER:
            return Place(Standing.ERROR, folder, name)
        if len(parts) > 1 and not folder.recursive:
            return Place(Standing.IGNORED, folder, name, f"{folder.path} is watched without its subfolders")
        for part in parts:
            if rule := self.ignored.rule(part):
                return Place(Standing.IGNORED, folder, name, rule)
        return Place(Standing.FILE, folder, name)

    def _known(self, path: str, handler: str, user_id: str) -> Folder:
        folder = self._by_path.get(path)
        if folder is None:
            is_handlers = bool(handler)
            folder = Folder(
                path,
                handler,
                user_id,
                documents=not is_handlers,
                recursive=is_handlers,
                dedupe=is_handlers and self._manner.dedupe,
                supersede=is_handlers and self._manner.supersede,
            )
            self._by_path[path] = folder
        return folder


def manner_of(config: InboxConfig) -> Manner:
    """What the configuration says of the inbox itself."""
    return Manner(config.dedupe == "content", config.supersede)


def configured_folder(config: InboxFolderConfig, manner: Manner) -> Folder:
    """A folder of the configuration. `manner`: of the inbox, for what it does not say itself."""
    after = After(config.after)
    dedupe = manner.dedupe if config.dedupe is None else config.dedupe == "content"
    return Folder(
        str(config.path),
        config.handler,
        config.user_id,
        config.payload,
        config.settle_seconds,
        config.recursive,
        after=after,
        remember=Remember(config.remember),
        done_marker=config.done_marker,
        checksum=config.checksum,
        dedupe=dedupe and after is not After.KEEP,
        supersede=manner.supersede if config.supersede is None else config.supersede,
    )
