"""Accounts: a name and a password, so that MediaCraft's pages know whom to greet.

An account is no user of the runner: tasks belong to the browser's cookie, whoever has logged in there. Passwords are
kept as scrypt hashes (RFC 7914), with a salt of their own and the parameters of the day, one file an account:
`data/accounts/<SHA-256 of the name>.json`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import threading
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from runner.dispatch.delays import Clock, utc_now
from runner.errors import CorruptRecord, Refused
from runner.record import Record
from runner.store.files import Files

COST: Final = 2**15
BLOCK: Final = 8
PARALLEL: Final = 1
SALT_BYTES: Final = 16
HASH_BYTES: Final = 32
MAX_MEMORY_BYTES: Final = 128 * 1024 * 1024


class NameTaken(Refused):
    """There is an account of that name."""

    code = "name_taken"


class Password(Record):
    """A hash and what it was made with; bytes in base64."""

    salt: str
    hash: str
    cost: int = COST
    block: int = BLOCK
    parallel: int = PARALLEL


class Account(Record):
    """Somebody who has registered."""

    user_id: str
    username: str
    email: str | None = None
    created_at: datetime
    last_login: datetime | None = None
    password: Password


class Accounts:
    """The files. From any thread; every method waits, for the disk or for the hash: 32 MiB and a tenth of a second."""

    def __init__(self, files: Files, directory: str, clock: Clock = utc_now) -> None:
        self._files = files
        self._directory = directory
        self._clock = clock
        self._changing = threading.Lock()
        self._decoy: Password | None = None

    def register(self, user_id: str, username: str, password: str, email: str | None) -> Account:
        """A new account. Durable. Raises `NameTaken`."""
        kept = self._hash(password)
        account = Account(user_id=user_id, username=username, email=email, created_at=self._clock(), password=kept)
        with self._changing:
            if self.find(username) is not None:
                raise NameTaken("Username already exists")
            self._save(account)
        return account

    def log_in(self, username: str, password: str) -> Account | None:
        """The account, if that is its password. It takes as long where there is no such account."""
        account = self.find(username)
        is_right = self._is_right(password, self._any_password() if account is None else account.password)
        if account is None or not is_right:
            return None
        with self._changing:
            account = account.model_copy(update={"last_login": self._clock()})
            self._save(account)
        return account

    def find(self, username: str) -> Account | None:
        """An account by its name. Raises `CorruptRecord`."""
        try:
            data = self._files.read(self._path(username))
        except FileNotFoundError:
            return None
        try:
            return Account.model_validate_json(data)
        except ValidationError as error:
            raise CorruptRecord(f"{self._path(username)} is no account: {error}") from error

    def _save(self, account: Account) -> None:
        self._files.make_directory(self._directory)
        self._files.replace_durably(self._path(account.username), account.model_dump_json(indent=2).encode() + b"\n")

    def _path(self, username: str) -> str:
        """Names are not told apart by case, and no name is ever part of a path."""
        return f"{self._directory}/{hashlib.sha256(username.casefold().encode()).hexdigest()}.json"

    def _hash(self, password: str) -> Password:
        salt = os.urandom(SALT_BYTES)
        made = self._derive(password, salt, COST, BLOCK, PARALLEL)
        return Password(salt=base64.b64encode(salt).decode(), hash=base64.b64encode(made).decode())

    def _is_right(self, password: str, kept: Password) -> bool:
        made = self._derive(password, base64.b64decode(kept.salt), kept.cost, kept.block, kept.parallel)
        return hmac.compare_digest(made, base64.b64decode(kept.hash))

    def _any_password(self) -> Password:
        """What nobody's password is compared with."""
        if self._decoy is None:
            self._decoy = self._hash(secrets.token_urlsafe())
        return self._decoy

    def _derive(self, password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
        return hashlib.scrypt(
            password.encode(), salt=salt, n=cost, r=block, p=parallel, maxmem=MAX_MEMORY_BYTES, dklen=HASH_BYTES
        )
