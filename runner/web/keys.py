"""The keys that sign cookies: `data/secret.key`, one a line. The first signs, and all of them are believed.

So a key is replaced by writing a new line above it, and taking the old one away when the last cookie that it signed has
expired. The file is made at the first need, for its owner alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from runner.errors import ConfigError, UnsafeAccess
from runner.store.files import Files

COOKIE_AGE: Final = timedelta(days=30)
MIN_KEY_BYTES: Final = 32
_PURPOSE: Final = b"runner cookie 1:"


class Identity(NamedTuple):
    """Who a browser is. `secret` proves it; `issued_at` is when the browser was last told."""

    user_id: str
    secret: str
    issued_at: datetime

    @property
    def secret_sha256(self) -> str:
        """What the server keeps of the secret."""
        return hash_secret(self.secret)


class Signer:
    """Makes cookies' values of identities, and identities of values that it has made. From any thread."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys

    def sign(self, identity: Identity) -> str:
        """The value of the cookie, signed by the newest key."""
        content = f"{identity.user_id}.{int(identity.issued_at.timestamp()):x}.{identity.secret}"
        return f"{content}.{_mac(self._keys[0], content)}"

    def verify(self, value: str, now: datetime) -> Identity | None:
        """Who that is; None for a value that none of the keys has signed, or that is too old."""
        content, _, mac = value.rpartition(".")
        given = mac.encode("utf-8", "replace")
        if not any(hmac.compare_digest(_mac(key, content).encode(), given) for key in self._keys):
            return None
        user_id, issued, secret = content.split(".")
        issued_at = datetime.fromtimestamp(int(issued, 16), UTC)
        return None if now - issued_at > COOKIE_AGE else Identity(user_id, secret, issued_at)


def hash_secret(secret: str) -> str:
    """SHA-256 in hexadecimal. No slow hash is needed where a secret has 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def read_keys(files: Files, path: str) -> tuple[bytes, ...]:
    """The keys in the file at `path`, which is made if need be.

    Raises `UnsafeAccess` when others can read it, `ConfigError` when it holds no key or too short a one.
    """
    if not os.path.lexists(path):
        _make(files, path)
    return _read(files, path)


def _make(files: Files, path: str) -> None:
    """A file that is there is whole, whenever the power goes: it is written under another name."""
    temporary = f"{path}.new"
    files.remove(temporary)
    fd = files.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        files.write_all(fd, secrets.token_urlsafe(32).encode() + b"\n")
        files.sync(fd)
    finally:
        files.close(fd)
    files.rename(temporary, path)
    files.sync_path(str(Path(path).parent))


def _read(files: Files, path: str) -> tuple[bytes, ...]:
    found = os.lstat(path)
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UnsafeAccess(f"{path} must belong to you and be closed to everybody else: chmod 600 {path}")
    keys = tuple(line.strip() for line in files.read(path).splitlines() if line.strip())
    if not keys or min(map(len, keys)) < MIN_KEY_BYTES:
        raise ConfigError(f"{path} must hold a key of at least {MIN_KEY_BYTES} characters in each line")
    return keys


def _mac(key: bytes, content: str) -> str:
    digest = hmac.digest(key, _PURPOSE + content.encode("utf-8", "replace"), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
