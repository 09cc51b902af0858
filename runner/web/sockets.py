"""The listening sockets: TCP, and `data/runner.sock`, whose path may be longer than the kernel's 108 bytes.

A path that is too long is reached through a descriptor of its directory (`/proc/self/fd/<n>/runner.sock`), or,
where there is no `/proc`, through a symbolic link in a private temporary directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from runner.errors import ConfigError

MAX_UNIX_PATH_BYTES: Final = 107 if sys.platform == "linux" else 103
LISTEN_BACKLOG: Final = 2048


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for the socket at `path` that fits into an address, good while the block lasts."""
    if len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES:
        yield str(path)
    elif Path("/proc/self/fd").is_dir():
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{directory}/{path.name}"
        finally:
            os.close(directory)
    else:
        private = tempfile.mkdtemp(prefix="runner-", dir="/tmp")  # $TMPDIR may be long, too
        try:
            Path(private, "d").symlink_to(path.parent)
            yield f"{private}/d/{path.name}"
        finally:
            shutil.rmtree(private)


def listen_on_path(path: Path) -> socket.socket:
    """A Unix socket at `path`, only for this user, in the place of any that a dead owner left.

    It is made under another name and renamed: at no time can anybody else connect, or find it half made.
    Only the directory's owner may call this.
    """
    made = path.with_name(path.name + ".new")
    made.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(listener.close)
        with short_path(made) as address:
            listener.bind(address)
        made.chmod(0o600)
        listener.listen(LISTEN_BACKLOG)
        made.rename(path)
        on_failure.pop_all()
    return listener


def listen_on_port(host: str, port: int) -> socket.socket:
    """A TCP socket. Raises ConfigError, which says what to change, when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=LISTEN_BACKLOG)
        # Whoever connects inherits it. asyncio sets it only on sockets that name their protocol, as this one does not;
        # and without it an answer in two pieces takes 40 ms, for the kernel waits for a word about the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "the port is taken; try --port 0 for any free one" if taken else error.strerror or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from error
    return listener


def can_connect(path: Path) -> bool:
    """Whether somebody answers at the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        with short_path(path) as address:
            probe.connect(address)
        return True
    return False
