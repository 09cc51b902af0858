"""The porter: what the inbox and the outbox do with very many files, done in a process of its own.

Looking at a dropped file, giving it to its task and putting a result into the outbox are some ten short system calls
each. Every one gives up the interpreter lock, and beside busy threads waits for it afterwards; as one message for
hundreds of files they cost the runner next to nothing, and use the other core.

It does only what goes smoothly. What it says nothing of, because something is unusual about it, because it failed or
because the porter died, is looked at or done again by whoever asked, as it would have been without a porter; so all
that it does may be done twice. It is started when many files have come, is asked once it has begun, and ends when none
have come for a while: nobody waits for it to start, and a file that comes alone never for it at all.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from runner.errors import CorruptRecord
from runner.intake.entries import Entries
from runner.intake.names import ERROR_FOLDER, is_kept_in_entry, path_of
from runner.intake.readiness import Sighting, Writer, look, open_folder
from runner.intake.sidecar import partner_of, sidecar_of
from runner.store import Files, Identity, Layout
from runner.store.blobs import Blobs
from runner.store.committer import Durability
from runner.store.servant import Servant, serve
from runner.task import Status

MANY: Final = 64
"""So many files at once are worth a message."""
STORM: Final = 2000
"""So many of those are worth a process."""
IDLE_SECONDS: Final = 30.0
STALE_SECONDS: Final = 1.0
"""What was seen longer ago is looked at again."""

_tuple: Final = tuple.__new__
_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """A directory: the path of the folder that it is in, its own below that, and what the names of the entries of its
    files begin with, relative to the data directory."""

    folder: str
    below: str
    entries: str


class Glance(NamedTuple):
    """What was seen of a plain file, and whether the outbox has nothing of its name. Plain is what nobody writes, what
    has some bytes and no other links, and no parameters, be it beside it or in the error folder."""

    seen: Sighting
    is_new: bool

    @classmethod
    def of(cls, said: Sequence[int]) -> Glance:
        """As the process says it: whether it is new, and the numbers of what was seen."""
        is_new, *numbers = said
        # As `Glance(…)` and `Sighting(…)` make them, at a third of the cost.
        return _tuple(cls, (_tuple(Sighting, (*numbers, Writer.NONE)), bool(is_new)))


class Load(NamedTuple):
    """A file to be taken: where it is, where it goes (absolute), and what `Identity` it had."""

    source: str
    target: str
    device: int
    inode: int
    size: int
    mtime_ns: int


class Delivery(NamedTuple):
    """A completed task whose entry is in the outbox: when it completed (RFC 3339), whose it is, and the path of the
    file that it was made from."""

    completed_at: str
    entry: str
    user_id: str
    path: str


class Porter:
    """Asks the process. One thread, which must live as long as it; each answer may be of fewer than were asked for."""

    def __init__(self, layout: Layout, link: str, *, many: int = MANY, storm: int = STORM) -> None:
        self._servant = Servant(__name__, layout, link)
        self._many = many
        self._storm = storm
        self._wanted = 0
        self._last_wanted = 0.0
        self._is_starting = False
        self._heed: Callable[[Any], None] | None = None
        self._looked_at = 0.0
        self._seen: dict[Place, dict[str, Any]] = {}
        self._carried: Sequence[bool] = ()

    @property
    def is_up(self) -> bool:
        """Whether there is a process."""
        return self._servant.process is not None

    def start(self) -> None:
        """Has the process begin; until it has, it is asked nothing."""
        self._is_starting = True
        self._try(lambda: self._servant.send(("carry", [])))

    def expect(self, count: int) -> None:
        """So many files are about to be asked about together: the process begins now, if they are worth one."""
        if count >= self._storm:
            self._wanted, self._last_wanted = count, time.monotonic()
            if not self.is_up:
                self.start()

    @property
    def is_ready(self) -> bool:
        """Whether there is a process that has begun."""
        if self._is_starting and self._servant.has_answered():
            self.await_start()
        return self.is_up and not self._is_starting

    def await_start(self) -> None:
        """Waits until it has begun."""
        if self._is_starting:
            self._is_starting = False
            self._try(self._servant.receive)

    def look(self, place: Place, names: Sequence[str]) -> dict[str, Glance]:
        """Those of the files in a directory that are plain."""
        if place not in self._seen:
            self._collect()
        seen = self._seen.pop(place, {}) if time.monotonic() - self._looked_at < STALE_SECONDS else {}
        unseen = [name for name in names if name not in seen]
        seen |= self._ask("look", unseen, *place) or {}
        return {name: Glance.of(seen[name]) for name in names if name in seen}

    def look_ahead(self, place: Place, names: Sequence[str]) -> None:
        """The next `look` will be at these; the process may begin while we do something else."""
        self._collect()  # what nobody has asked for would count as seen now, if it came in later
        self._seen.clear()
        if self._is_worth_it(len(names)):
            self._looked_at = time.monotonic()
            self._begin(partial(self._keep_seen, place), "look", names, *place)

    def carry_ahead(self, loads: Sequence[Load]) -> bool:
        """See `Blobs.take`; the process may be at it while we do something else. False: it was not asked."""
        self._carried = ()
        return self._is_worth_it(len(loads)) and self._begin(self._keep_carried, "carry", [*map(tuple, loads)])

    def carried(self) -> Sequence[bool]:
        """Which of the files of the last `carry_ahead` are their task's now; empty if nobody can say."""
        self._collect()
        return self._carried

    def deliver(self, task_ids: Sequence[str]) -> dict[str, Delivery]:
        """Puts the results of tasks that have completed into the outbox."""
        delivered = self._ask("deliver", task_ids) or {}
        return {task_id: Delivery(*said) for task_id, said in delivered.items()}

    def rest(self) -> None:
        """Ends the process if nothing was asked of it for a while."""
        if self.is_up and time.monotonic() - self._last_wanted > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """Ends the process, after the request at hand."""
        self._collect()
        self._is_starting = False
        self._servant.close()

    def _ask(self, what: str, items: Sequence[Any], *rest: str) -> Any:
        if not self._is_worth_it(len(items)):
            return None
        self._collect()
        return self._try(lambda: self._servant.ask((what, items, *rest)))

    def _begin(self, heed: Callable[[Any], None], *request: Any) -> bool:
        """Asks, and leaves the answer to `heed`, which gets None if there is none."""
        self._collect()
        self._heed = heed
        self._try(lambda: self._servant.send(request))
        return self._heed is not None

    def _collect(self) -> None:
        """What was begun is done, and the process free for something else."""
        if self._heed is not None:
            heed, self._heed = self._heed, None
            heed(self._try(self._servant.receive))

    def _keep_seen(self, place: Place, seen: dict[str, Any] | None) -> None:
        self._seen[place] = seen or {}

    def _keep_carried(self, carried: Sequence[bool] | None) -> None:
        self._carried = carried or ()

    def _try(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except (EOFError, OSError) as error:
            self._heed, self._is_starting = None, False
            _log.warning("the process that handles many files at once has died, or does not start: %r", error)
            return None

    def _is_worth_it(self, count: int) -> bool:
        if count < self._many:
            return False
        now = time.monotonic()
        if now - self._last_wanted > IDLE_SECONDS:
            self._wanted = 0
        self._wanted += count
        self._last_wanted = now
        if self._wanted < self._storm:
            return False
        if not self.is_up:
            self.start()
        return self.is_ready


# In the process


def main(data: str, owner: int, link: str) -> None:
    """The porter's process. `link`: whether outputs are linked into the outbox (`hard`) or copied."""
    logging.disable()
    layout, files = Layout(data), Files()
    blobs = Blobs(files, layout, Durability.PROCESS)
    entries = Entries(files, layout, link=files.link_or_copy if link == "hard" else files.copy)
    chores: dict[str, Callable[..., Any]] = {
        "look": lambda names, *place: _look(layout, names, Place(*place)),
        "carry": lambda loads: [_carry(blobs, Load(*load)) for load in loads],
        "deliver": lambda task_ids: _deliver_all(entries, files, layout, task_ids),
    }
    serve(layout, owner, lambda request: chores[request[0]](*request[1:]))


def _look(layout: Layout, names: Sequence[str], place: Place) -> dict[str, tuple[int, ...]]:
    try:
        fd = open_folder(place.folder, place.below)
    except OSError:
        return {}
    beside = [fd, *_open_error_folder(place)]
    try:
        found = ((name, _find_plain(beside, name)) for name in names)
        return {name: (_is_new(layout, place, name), *seen[:-1]) for name, seen in found if seen is not None}
    finally:
        for directory in beside:
            os.close(directory)


def _open_error_folder(place: Place) -> list[int]:
    with suppress(OSError):
        return [open_folder(place.folder, f"{ERROR_FOLDER}/{place.below}" if place.below else ERROR_FOLDER)]
    return []


def _is_new(layout: Layout, place: Place, name: str) -> bool:
    return is_kept_in_entry(name) and not os.path.lexists(f"{layout.data}/{place.entries}{name}")


def _find_plain(beside: Sequence[int], name: str) -> Sighting | None:
    """What is seen of a file in the first of some directories, if it is plain, and no sidecar: none has one for it."""
    if partner_of(name) is not None:
        return None
    with suppress(OSError):
        seen = look(beside[0], name)
        is_whole = stat.S_ISREG(seen.mode) and seen.writer is Writer.NONE and seen.size > 0 and seen.links == 1
        if is_whole and not any(_is_there(fd, sidecar_of(name)) for fd in beside):
            return seen
    return None


def _is_there(fd: int, name: str) -> bool:
    return os.access(name, os.F_OK, dir_fd=fd, follow_symlinks=False)


def _carry(blobs: Blobs, load: Load) -> bool:
    try:
        blobs.take(load.source, load.target, Identity(*load[2:]))
    except OSError:
        return False
    return True


def _deliver_all(entries: Entries, files: Files, layout: Layout, task_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    delivered = {task_id: _deliver(entries, files, layout, task_id) for task_id in task_ids}
    return {task_id: tuple(said) for task_id, said in delivered.items() if said is not None}


def _deliver(entries: Entries, files: Files, layout: Layout, task_id: str) -> Delivery | None:
    """What has completed never changes again, so whatever file says so is up to date."""
    with suppress(OSError, CorruptRecord, ValueError, LookupError, TypeError):
        body = files.read(layout.task(task_id))
        # Read by `orjson` only to see some texts: the entry gets the bytes as they are.
        task = orjson.loads(body)
        drop, is_completed = task["drop"], task["status"] == Status.COMPLETED
        if is_completed and drop["outbox"] and entries.add(task_id, drop["outbox"], body, task["output_files"]):
            return Delivery(task["completed_at"], drop["outbox"], task["user_id"], path_of(drop["path"], drop["raw"]))
    return None


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
