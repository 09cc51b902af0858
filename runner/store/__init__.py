"""The store: tasks and users as files, durable at the speed of a journal.

The protocol, which every module here keeps a part of:

* **The journal is the truth in flight.** A change is a record in `journal/<n>.log`. The committer writes the records of
  all changes that wait, and one `fdatasync` covers them all; only then may anybody see a change or be told of it.
* **Task files are the truth at rest.** `tasks/<id>.json` is written behind, latest version only, by rename and without
  a sync, *after its record is durable*. Until it is written, memory answers for it.
* **A checkpoint** seals the segment, *waits until everything sealed is written*, syncs the whole filesystem once, and
  *only then* drops the sealed segments. At every instant a task's newest version is thus on the disk in the journal,
  in its file, or in both.
* **The index is a cache** (`index.db`): unfinished tasks are in memory, finished ones only on disk, lists are answered
  from the index. It can be deleted while nobody owns the directory.
* **Recovery** replays what segments are left over the files; the table is in `recovery.py`.
* **One owner.** All this assumes one process, which holds `locks/owner.lock`.

Breaking any of the three orders in italics loses tasks in a power cut; the fault tests show it for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.store.blobs import Handover, Identity
    from runner.store.changes import Change, Create, KeyTaken, Remove, RemoveUser, SaveUser, Transition, Update
    from runner.store.committer import Done, Durability
    from runner.store.files import Files, Layout
    from runner.store.query import TaskPage, TaskQuery
    from runner.store.store import StorageInterface, Store, StoreOptions
    from runner.store.users import User

_HOMES = {
    "blobs": ("Handover", "Identity"),
    "changes": ("Change", "Create", "KeyTaken", "Remove", "RemoveUser", "SaveUser", "Transition", "Update"),
    "committer": ("Done", "Durability"),
    "files": ("Files", "Layout"),
    "query": ("TaskPage", "TaskQuery"),
    "store": ("StorageInterface", "Store", "StoreOptions"),
    "users": ("User",),
}  # fmt: skip

__all__ = [
    "Change", "Create", "Done", "Durability", "Files", "Handover", "Identity", "KeyTaken", "Layout", "Remove",
    "RemoveUser", "SaveUser", "StorageInterface", "Store", "StoreOptions", "TaskPage", "TaskQuery", "Transition",
    "Update", "User",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Loaded on first use: the scribe process needs three small modules of this package and none of the others.
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
