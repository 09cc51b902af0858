"""The one seam between the runner and the disk.

Every call that can fail because of a disk goes through a `Files`, so that a test can make the Nth one fail.
Paths are `str`: a `Path` costs more than the system call that it names.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from runner.errors import CorruptRecord

_libc: Final = ctypes.CDLL(None, use_errno=True)
HAS_SYNCFS: Final = hasattr(_libc, "syncfs")
_M_ARENA_MAX: Final = -8
"""The option's number in glibc's `malloc.h`."""
_LINK_OR_SOCKET: Final = frozenset({errno.ELOOP, errno.ENXIO})


def give_back_memory() -> None:
    """Freed memory that the C library keeps goes back to the system, where the library can do that (glibc)."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def share_one_arena() -> None:
    """All threads get their memory from one place, where the C library would give each its own (glibc). Only one of
    them runs Python at a time; what one takes and another gives back fills those places up: a quarter more memory for
    the same tasks, and a system call for every one of them (measured). Before there are threads."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)


class Files:
    """The primitives, each one system call, and the few operations that are built on them."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """`os.open`, never inherited by a child."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        """`os.close`."""
        os.close(fd)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """`os.write`: how many bytes went; may be fewer than given."""
        return os.write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        """`os.ftruncate`: the file is `size` bytes long."""
        os.ftruncate(fd, size)

    def allocate(self, fd: int, size: int) -> None:
        """The file has its `size` bytes of the disk, whatever comes; zeros are written where it cannot be asked for."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            self.write_all(fd, bytes(size))

    def datasync(self, fd: int) -> None:
        """The bytes of `fd` are on the disk. After an error the descriptor must never be synced again: the kernel
        has marked the pages clean (fsyncgate, PostgreSQL 2018)."""
        if sys.platform == "darwin":
            self.sync(fd)
        else:
            os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        """`os.fsync`; on macOS `F_FULLFSYNC`, because `fsync` there stops at the drive's cache."""
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)

    def syncfs(self, fd: int) -> None:
        """Everything written before on the filesystem of `fd` is on the disk. Linux only."""
        if _libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def rename(self, source: str, target: str) -> None:
        """`os.rename`: atomic, replaces `target`."""
        os.rename(source, target)

    def link(self, source: str, target: str) -> None:
        """`os.link`: a second name for the same file."""
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        """`os.unlink`."""
        os.unlink(path)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        """`os.mkdir`."""
        os.mkdir(path, mode)

    def read(self, path: str) -> bytes:
        """The whole content of a file. A link is not followed, a pipe not waited for: they raise `CorruptRecord`."""
        fd = self._open_regular(path)
        try:
            chunks = []
            while chunk := os.read(fd, 1 << 20):
                chunks.append(chunk)
            return b"".join(chunks)
        finally:
            self.close(fd)

    def names(self, directory: str) -> list[str]:
        """The names in a directory, in no order."""
        return os.listdir(directory)

    # Built on the primitives

    def write_all(self, fd: int, data: bytes) -> None:
        """Writes all of `data`, however often the kernel takes only a part."""
        view = memoryview(data)
        while view:
            view = view[self.write(fd, view) :]

    def replace(self, path: str, data: bytes, temporary: str) -> None:
        """`path` holds `data`, atomically for readers, not yet durably. `temporary` is on the same filesystem."""
        fd = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.write_all(fd, data)
        finally:
            self.close(fd)
        self.rename(temporary, path)

    def make_directory(self, path: str) -> None:
        """`path` and its missing parents exist."""
        if os.path.isdir(path):
            return
        self.make_directory(os.path.dirname(path))
        try:
            self.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def remove(self, path: str) -> None:
        """`path` is not there any more, whether or not it was."""
        try:
            self.unlink(path)
        except FileNotFoundError:
            return

    def try_remove(self, path: str) -> bool:
        """`remove`, or False if the disk refuses: for what is in nobody's way if it stays."""
        try:
            self.remove(path)
        except OSError:
            return False
        return True

    def remove_tree(self, path: str) -> None:
        """The directory and all below it are gone, or whatever is in its place. Links are removed, never followed."""
        with contextlib.suppress(OSError):
            # Given a pipe, rmtree would wait for somebody to write into it.
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                self.unlink(path)

    def sync_path(self, path: str) -> None:
        """A file or directory entry table is on the disk."""
        fd = self.open(path, os.O_RDONLY)
        try:
            self.sync(fd)
        finally:
            self.close(fd)

    def sync_tree(self, directory: str) -> None:
        """Every regular file and directory below `directory`, and itself, is on the disk."""
        for parent, _, names in os.walk(directory):
            for name in names:
                if is_regular(path := os.path.join(parent, name)):
                    self.sync_path(path)
            self.sync_path(parent)

    def sync_filesystem(self, fd: int, written: Iterable[str]) -> None:
        """All of `written` (paths) is on the disk: by one `syncfs` where there is one, else file by file.

        `fd` is a directory of that filesystem. It must have been opened before the files were written: the kernel tells
        of an error in writing back once, and only those who have the filesystem open already.
        """
        if HAS_SYNCFS:
            self.syncfs(fd)
            return
        for path in written:
            self._sync_if_present(path)
        self.sync(fd)

    def move(self, source: str, target: str) -> None:
        """`source` is now `target`: by rename, or across filesystems by a durable copy that appears whole.

        When this returns exactly one of the two exists; after a crash the target may exist beside the source, and
        doing it again settles that.
        """
        try:
            self.rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self.copy(source, target)
            self.unlink(source)

    def copy(self, source: str, target: str) -> None:
        """A durable copy that is never visible half done."""
        partial = f"{target}.part"
        try:
            self._copy_bytes(source, partial)
            self.rename(partial, target)
        except OSError:
            self.try_remove(partial)
            raise
        self.sync_path(os.path.dirname(target))

    def link_or_copy(self, source: str, target: str) -> None:
        """`target` has the content of `source`: as a hard link where the filesystem allows, else as a copy."""
        try:
            self.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
            self.copy(source, target)

    def replace_durably(self, path: str, data: bytes) -> None:
        """`path` holds `data`, atomically and durably; at no moment of a power cut is it empty or torn."""
        temporary = f"{path}.tmp"
        fd = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.write_all(fd, data)
            self.sync(fd)
        finally:
            self.close(fd)
        self.rename(temporary, path)
        self.sync_path(os.path.dirname(path))

    def _open_regular(self, path: str) -> int:
        try:
            fd = self.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in _LINK_OR_SOCKET:
                raise CorruptRecord("it is a link or a socket") from error
            raise
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        self.close(fd)
        raise CorruptRecord("it is no regular file")

    def _copy_bytes(self, source: str, target: str) -> None:
        with open(source, "rb") as reader:
            fd = self.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                while chunk := reader.read(1 << 20):
                    self.write_all(fd, chunk)
                self.sync(fd)
            finally:
                self.close(fd)

    def _sync_if_present(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.sync_path(path)


def is_regular(path: str) -> bool:
    """Whether `path` is a file of its own: no link, pipe, socket or device, and there."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


class Layout:
    """Where everything lies below the data directory. The attributes are absolute paths as `str`."""

    def __init__(self, data: Path | str) -> None:
        self.data = str(data)
        self.version = f"{data}/VERSION"
        self.tasks = f"{data}/tasks"
        self.users = f"{data}/users"
        self.journal = f"{data}/journal"
        self.rewrite = f"{data}/journal/rewrite"
        self.index = f"{data}/index.db"
        self.uploads = f"{data}/uploads"
        self.results = f"{data}/results"
        self.logs = f"{data}/logs"
        self.locks = f"{data}/locks"
        self.tmp = f"{data}/tmp"  # noqa: S108 - below the data directory
        self.corrupt = f"{data}/corrupt"
        self.trash = f"{data}/trash"
        self.inbox = f"{data}/inbox"
        self.outbox = f"{data}/outbox"
        self.socket = f"{data}/runner.sock"

    @property
    def directories(self) -> tuple[str, ...]:
        """Every directory that must exist."""
        return (
            self.data, self.tasks, self.users, self.journal, self.uploads, self.results, self.logs, self.locks,
            self.tmp, self.corrupt, self.inbox, self.outbox,
        )  # fmt: skip

    @property
    def own_files(self) -> tuple[str, ...]:
        """The files that the store opens by these names, beside those of tasks, users and the journal."""
        index = (self.index, f"{self.index}-wal", f"{self.index}-shm")
        return (f"{self.tmp}/.reason", f"{self.tmp}/.write", f"{self.locks}/scribe.lock", self.rewrite, *index)

    def task(self, task_id: str) -> str:
        """The file of one task."""
        return f"{self.tasks}/{task_id}.json"

    def user(self, user_id: str) -> str:
        """The file of one user record."""
        return f"{self.users}/{user_id}.json"

    def log(self, task_id: str) -> str:
        """The log of one task."""
        return f"{self.logs}/{task_id}.jsonl"

    def upload(self, user_id: str, task_id: str) -> str:
        """The directory of one task's inputs."""
        return f"{self.uploads}/{user_id}/{task_id}"

    def result(self, user_id: str, task_id: str) -> str:
        """The directory of one task's outputs."""
        return f"{self.results}/{user_id}/{task_id}"

    def attempt(self, task_id: str, number: int) -> str:
        """The private directory of one attempt; its outputs become visible when it is published."""
        return f"{self.tmp}/{task_id}.{number}"

    def kept(self, task_id: str) -> str:
        """The directory that all attempts of one task share."""
        return f"{self.tmp}/{task_id}.kept"

    def relative(self, path: str) -> str:
        """`path` as task files say it: relative to the data directory."""
        return os.path.relpath(path, self.data)

    def absolute(self, path: str) -> str:
        """The opposite of `relative`; absolute paths stay as they are."""
        return path if path.startswith("/") else f"{self.data}/{path}"
