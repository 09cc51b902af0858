"""`/api/user/` and `/api/session/`: who the browser is, what it has, and who has logged in there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from runner.dialects.mediacraft import words
from runner.dialects.mediacraft.accounts import Account, Accounts
from runner.dialects.mediacraft.tasks import read_any_object, read_object
from runner.dialects.mediacraft.words import answer, instant, refuse
from runner.service import Service
from runner.store import TaskQuery
from runner.store.query import MAX_PAGE_SIZE
from runner.task import Status
from runner.web.crossing import in_thread
from runner.web.door import Caller, caller_of
from runner.web.routing import route
from runner.web.users import Users

ACCOUNT: Final = "mediacraft_account"
"""Where a user's record names the account that has logged in."""

HASHED_AT_ONCE: Final = 2
"""A crowd at the door must neither take all memory nor all threads."""

MIN_PASSWORD: Final = 6
MAX_PASSWORD: Final = 1024


class PeopleEndpoints:
    """The endpoints."""

    def __init__(self, service: Service, users: Users, accounts: Accounts) -> None:
        self._service = service
        self._users = users
        self._accounts = accounts
        self._hashing = asyncio.Semaphore(HASHED_AT_ONCE)

    @property
    def routes(self) -> tuple[BaseRoute, ...]:
        """Their paths."""
        return (
            route("/api/user/info", GET=self.info),
            route("/api/user/tasks", GET=self.tasks),
            route("/api/user/stats", GET=self.stats),
            route("/api/user/register", POST=self.register),
            route("/api/user/login", POST=self.log_in),
            route("/api/user/logout", POST=self.log_out),
            route("/api/user/profile", GET=self.profile),
            route("/api/session/init", GET=self.begin_session, POST=self.begin_session),
            route("/api/session/info", GET=self.begin_session),
        )

    async def info(self, request: Request) -> Response:
        """`GET /api/user/info`."""
        caller = caller_of(request)
        counts = await in_thread(self._counts, caller)
        data = {
            **await in_thread(self._record, caller),
            "task_count": sum(counts.values()),
            "task_stats": counts,
        }
        return answer(request, data)

    async def tasks(self, request: Request) -> Response:
        """`GET /api/user/tasks`: all of them, or the newest thousand."""
        caller = caller_of(request)
        page = await in_thread(self._service.list_tasks, TaskQuery(user_id=caller.sees, size=MAX_PAGE_SIZE, page=0))
        data = {
            "tasks": [words.record_of(task) for task in page.tasks],
            "total_count": page.total,
            "status_stats": await in_thread(self._counts, caller),
        }
        return answer(request, data)

    async def stats(self, request: Request) -> Response:
        """`GET /api/user/stats`."""
        counts = await in_thread(self._counts, caller_of(request))
        data = {"task_count": sum(counts.values()), "task_stats": counts}
        return answer(request, data)

    async def register(self, request: Request) -> Response:
        """`POST /api/user/register`."""
        username, password, email = _credentials(await read_object(request))
        if len(password) < MIN_PASSWORD:
            raise refuse(400, f"A password has at least {MIN_PASSWORD} characters")
        async with self._hashing:
            account = await in_thread(self._accounts.register, caller_of(request).user_id, username, password, email)
        return answer(request, {"user": _shown(account)}, message="User registered")

    async def log_in(self, request: Request) -> Response:
        """`POST /api/user/login`."""
        username, password, _ = _credentials(await read_object(request))
        async with self._hashing:
            account = await in_thread(self._accounts.log_in, username, password)
        if account is None:
            raise refuse(401, "Invalid username or password")
        await in_thread(self._users.change_metadata, caller_of(request).user_id, {ACCOUNT: account.username})
        return answer(request, {"user": _shown(account)}, message="Login successful")

    async def log_out(self, request: Request) -> Response:
        """`POST /api/user/logout`."""
        await read_any_object(request)
        await in_thread(self._users.change_metadata, caller_of(request).user_id, {ACCOUNT: None})
        return answer(request, None, message="Logout successful")

    async def profile(self, request: Request) -> Response:
        """`GET /api/user/profile`."""
        account = await in_thread(self._logged_in, caller_of(request))
        if account is None:
            raise refuse(401, "Not logged in")
        return answer(request, {"user": _shown(account), **_shown(account)})

    async def begin_session(self, request: Request) -> Response:
        """`GET /api/session/init`: what pages call before anything else. The cookies are the door's."""
        caller = caller_of(request)
        record = await in_thread(self._record, caller)
        flat = {"sid": caller.user_id, "created": caller.is_new, "session_info": record}
        return answer(request, flat, flat=flat)

    async def health(self, request: Request) -> Response:
        """`GET /health`, on MediaCraft's own port."""
        health = await in_thread(self._service.health)
        status = "healthy" if health.ready else "unhealthy"
        body = {"status": status, "timestamp": instant(datetime.now(UTC))}
        return Response(to_json(body), 200 if health.ready else 503, media_type=words.JSON)

    def _record(self, caller: Caller) -> dict[str, Any]:
        """The user's record; who is here is here now, whenever that was last written."""
        user, now = self._users.find(caller.user_id), datetime.now(UTC)
        tasks = self._service.list_tasks(TaskQuery(user_id=caller.user_id, size=MAX_PAGE_SIZE)).tasks
        metadata = {} if user is None else user.metadata
        return {
            "user_id": caller.user_id,
            "created_at": instant(now if user is None else user.created_at),
            "last_accessed": instant(now),
            "tasks": [task.id for task in tasks],
            "metadata": {name: value for name, value in metadata.items() if name != ACCOUNT},
        }

    def _counts(self, caller: Caller) -> dict[str, int]:
        counts = {status: self._service.count(TaskQuery(user_id=caller.user_id, status=(status,))) for status in Status}
        return words.count_by_status(counts)

    def _logged_in(self, caller: Caller) -> Account | None:
        user = self._users.find(caller.user_id)
        name = None if user is None else user.metadata.get(ACCOUNT)
        return self._accounts.find(name) if isinstance(name, str) else None


def _shown(account: Account) -> dict[str, Any]:
    return {
        "user_id": account.user_id,
        "username": account.username,
        "email": account.email,
        "created_at": instant(account.created_at),
        "last_login": instant(account.last_login),
    }


def _credentials(body: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Name, password and address. Raises `HttpProblem` 400."""
    username, password, email = body.get("username"), body.get("password"), body.get("email")
    if not isinstance(username, str) or not isinstance(password, str) or not username.strip() or not password:
        raise refuse(400, "username and password are required")
    if len(username) > 100 or len(password) > MAX_PASSWORD:
        raise refuse(400, "username or password is too long")
    if email is not None and (not isinstance(email, str) or len(email) > 254):
        raise refuse(400, "email must be an address")
    return username.strip(), password, email or None
