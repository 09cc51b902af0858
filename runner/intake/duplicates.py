"""Content that was dropped before: found by its bytes, the handler's version and the parameters together.

The facts are the unique key of the first task that has them, so whether there is an earlier one is the store's to say.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from typing import Final

from pydantic_core import to_json

from runner.handlers import Handlers
from runner.intake.admission import Submission
from runner.intake.entries import Entries
from runner.intake.holds import Why
from runner.intake.inspection import Held, Ready
from runner.intake.names import shown
from runner.intake.rejects import Rejects
from runner.intake.seen import digest_of
from runner.store import Identity, Store
from runner.task import Status, Task

NOTE: Final = "duplicate.txt"
"""The file of an outbox entry that says whose result it holds."""
MAX_DIGESTS: Final = 10_000


class Duplicates:
    """Asks of a file whether its result is there already. The inbox's thread."""

    def __init__(self, store: Store, handlers: Handlers, rejects: Rejects) -> None:
        self._store = store
        self._handlers = handlers
        self._rejects = rejects
        self._entries = Entries(store.files, store.layout, link=store.files.link_or_copy, name="duplicate")
        self._digests: OrderedDict[tuple[int, int, int, int], str] = OrderedDict()

    def look(self, file: Ready, submission: Submission) -> Submission | Task | Held:
        """What to do about a file: hand in this, show the result of that earlier task, or wait for one to end.
        Raises `OSError`, and `RunnerError` if the store cannot be asked."""
        if self._rejects.has_reason(file.folder, file.name):
            return submission  # a person moved it back up: it is to run
        key = self._key(file, submission)
        earlier = self._store.find_key(file.folder.user_id, key)
        if earlier is None:
            return submission.model_copy(update={"unique_key": key})
        if earlier.status is Status.COMPLETED:
            return earlier
        if earlier.is_terminal:
            return submission
        return Held(Why.DUPLICATE, f"it has the same content as task {earlier.id}, which has not ended yet")

    def show(self, file: Ready, earlier: Task, entry: str) -> bool:
        """The earlier result lies in this entry too, and then the file goes; False if it changed meanwhile.
        Raises `OSError`."""
        self._entries.publish(earlier, entry)
        self._entries.note(entry, NOTE, _note(file.name, earlier))
        self._sync(self._store.layout.absolute(entry))
        path = file.folder.absolute(file.name)
        if Identity.of(path) != Identity(*file.seen.content):
            return False
        self._store.files.remove(path)
        if file.sidecar is not None:
            self._store.files.remove(file.folder.absolute(file.sidecar))
        return True

    def _sync(self, entry: str) -> None:
        # No task knows of this entry, so after a power cut nobody would write it again, and the file would be gone.
        self._store.files.sync_tree(entry)
        self._store.files.sync_path(os.path.dirname(entry))

    def _key(self, file: Ready, submission: Submission) -> str:
        version = self._handlers.get(submission.type).version
        facts = to_json([self._digest(file), submission.type, version, submission.payload])
        return f"same:{hashlib.sha256(facts).hexdigest()}"

    def _digest(self, file: Ready) -> str:
        digest = self._digests.get(file.seen.content)
        if digest is None:
            digest = self._digests[file.seen.content] = digest_of(file.folder.absolute(file.name))
            if len(self._digests) > MAX_DIGESTS:
                self._digests.popitem(last=False)
        return digest


def _note(name: str, earlier: Task) -> str:
    first = shown(earlier.original_filename or "an earlier file")
    return (
        f"{shown(name)} has the same content and parameters as {first},\n"
        f"so the result here is that of task {earlier.id}, which completed at {earlier.completed_at:%Y-%m-%d %H:%M:%S} "
        f"UTC.\n\nTo run it all the same: runner rerun {earlier.id}\n"
    )
