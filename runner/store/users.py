"""User records: `users/<user>.json`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from runner.errors import CorruptRecord


class User(BaseModel):
    """Whoever owns tasks. `metadata` is free for front ends; instants are aware UTC.

    `secret_sha256`: by what a browser proves to be this user, in hexadecimal; None for users without a cookie.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_id: str
    created_at: datetime
    last_accessed: datetime
    secret_sha256: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    def to_json(self) -> bytes:
        """The record as its file and the journal hold it."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def read_user(data: bytes, user_id: str) -> User:
    """The record of that user in `data`. Raises `CorruptRecord`."""
    try:
        user = User.model_validate_json(data)
    except ValueError as error:
        raise CorruptRecord(f"not a user record: {str(error).splitlines()[0]}") from error
    if user.user_id != user_id:
        raise CorruptRecord(f"it says that its user is {user.user_id!r}")
    return user
