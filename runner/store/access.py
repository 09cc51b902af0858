"""Who else can write where only the runner, and those who drop files, should.

Whoever can write to the data directory can make tasks finish, replace results and forge records; whoever can write to
the inbox can submit in the name of its owner.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator

from runner.errors import UnsafeAccess
from runner.store.files import Layout


def check_access(layout: Layout) -> None:
    """Raises `UnsafeAccess` with every fault of `find_faults`."""
    if faults := tuple(find_faults(layout)):
        allowed = "storage.allow_shared lets the runner start all the same"
        raise UnsafeAccess("\n".join((*faults, allowed)))


def find_faults(layout: Layout) -> Iterator[str]:
    """What lets others in, a line each; nothing for directories that are not there yet."""
    for directory in (layout.data, layout.inbox):
        try:
            found = os.stat(directory)
        except FileNotFoundError:
            continue
        if found.st_uid != os.geteuid():
            yield f"{directory} belongs to user {found.st_uid}, not to the one who runs this"
        elif found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _is_own(found.st_gid)):
            yield f"others can write to {directory} (mode {stat.S_IMODE(found.st_mode):04o}): chmod go-w {directory}"


def _is_own(gid: int) -> bool:
    """Whether a group is the private one that many systems give to each user: nobody else is in it."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and gid == user.pw_gid and set(group.gr_mem) <= {user.pw_name}
