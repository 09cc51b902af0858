"""Who has been here: user records, kept up to date at most once a minute, and `GET /users/me`."""

from __future__ import annotations

import hmac
import threading
from collections import OrderedDict
from collections.abc import Mapping
from datetime import timedelta
from enum import Enum, auto
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.dispatch.delays import Clock, utc_now
from runner.errors import NotFound, ShuttingDown
from runner.intake.quota import Quota
from runner.store import SaveUser, Store, TaskQuery
from runner.store.users import User
from runner.task import Status
from runner.web.crossing import in_thread
from runner.web.door import caller_of

MAX_KNOWN: Final = 10_000
WRITE_EVERY: Final = timedelta(minutes=1)


class Visit(Enum):
    """What a request is about to do. A record is made only of who makes a `CHANGE`: visitors who never do, and programs
    that drop their cookies, leave nothing on the disk."""

    LOOK = auto()
    CHANGE = auto()


class Users:
    """The records of users, those of the latest ones in memory. From any thread; only `is_settled` never blocks."""

    def __init__(self, store: Store, quota: Quota, clock: Clock = utc_now) -> None:
        self._store = store
        self._quota = quota
        self._clock = clock
        self._known: OrderedDict[str, User] = OrderedDict()
        self._lock = threading.Lock()
        self._changing = threading.Lock()

    def is_settled(self, user_id: str, secret_sha256: str | None) -> bool:
        """Whether there is nothing to ask or to write: the user is known, the secret theirs, the record recent."""
        user = self._known.get(user_id)
        return user is not None and self._is_recent(user) and is_theirs(user, secret_sha256)

    def note(self, user_id: str, secret_sha256: str | None, visit: Visit) -> bool:
        """A user is here. False: this is not their secret, and nothing was written. Not durable when it returns."""
        user = self.find(user_id)
        if user is not None and not is_theirs(user, secret_sha256):
            return False
        if user is not None and self._is_recent(user):
            return True
        with self._changing:
            self._write(user_id, secret_sha256, visit)
        return True

    def _write(self, user_id: str, secret_sha256: str | None, visit: Visit) -> None:
        user, now = self.find(user_id), self._clock()
        if user is None and visit is Visit.CHANGE:
            user = User(user_id=user_id, created_at=now, last_accessed=now, secret_sha256=secret_sha256)
            self._save(user)
        elif user is not None and not self._is_recent(user):
            self._save(user.model_copy(update={"last_accessed": now}))

    def find(self, user_id: str) -> User | None:
        """A user's record, if there is one."""
        with self._lock:
            if (known := self._known.get(user_id)) is not None:
                self._known.move_to_end(user_id)
                return known
        try:
            user = self._store.get_user(user_id)
        except NotFound:
            return None
        self._remember(user)
        return user

    def change_metadata(self, user_id: str, changes: Mapping[str, Any]) -> None:
        """A user's notes with these values; None takes one away. Not durable when it returns."""
        with self._changing:
            user, now = self.find(user_id), self._clock()
            if user is None:
                user = User(user_id=user_id, created_at=now, last_accessed=now)
            metadata = {name: value for name, value in {**user.metadata, **changes}.items() if value is not None}
            self._save(user.model_copy(update={"metadata": metadata, "last_accessed": now}))

    def statistics(self, user_id: str) -> dict[str, Any]:
        """How many tasks a user has, in all and by status; how many bytes their files take up, and may (None: any)."""
        counts = {str(status): self._count(user_id, status) for status in Status}
        stored = {"bytes": self._quota.used_by(user_id), "max_bytes": self._quota.limit_of(user_id)}
        return {"tasks": sum(counts.values()), **counts, **stored}

    def _count(self, user_id: str, status: Status) -> int:
        return self._store.count(TaskQuery(user_id=user_id, status=(status,)))

    def _is_recent(self, user: User) -> bool:
        return self._clock() - user.last_accessed < WRITE_EVERY

    def _save(self, user: User) -> None:
        self._remember(user)
        try:
            self._store.submit((SaveUser(user),))
        except ShuttingDown:
            return

    def _remember(self, user: User) -> None:
        with self._lock:
            self._known[user.user_id] = user
            self._known.move_to_end(user.user_id)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)


def is_theirs(user: User, secret_sha256: str | None) -> bool:
    """Whether a browser's secret is this user's. Who comes without one has been identified by other means."""
    if secret_sha256 is None:
        return True
    return hmac.compare_digest(user.secret_sha256 or "", secret_sha256)


class UserEndpoints:
    """The endpoints."""

    def __init__(self, users: Users) -> None:
        self._users = users

    async def me(self, request: Request) -> Response:
        """`GET /users/me`."""
        caller = caller_of(request)
        user = await in_thread(self._users.find, caller.user_id)
        document = {
            "user_id": caller.user_id,
            "scope": caller.scope,
            "created_at": user and user.created_at,
            "last_accessed": user and user.last_accessed,
            "metadata": user.metadata if user else {},
            "statistics": await in_thread(self._users.statistics, caller.user_id),
        }
        return Response(to_json(document), media_type="application/json")
