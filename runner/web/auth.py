"""Who comes through TCP, by `auth.mode`: the person at this machine, a browser by its cookie, a program by its token.

A cookie holds the user's id and a secret of 256 random bits, and is signed; the user's record holds the secret's hash.
The signature tells a visitor of ours from a forger without a look at the disk; the hash ends a cookie with its record.
"""

from __future__ import annotations

import secrets
import uuid
from datetime import timedelta
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from runner.config import AuthConfig
from runner.dispatch.delays import Clock, utc_now
from runner.store import Store
from runner.task import Source
from runner.web.crossing import in_thread
from runner.web.door import (
    LOCAL_USER,
    LOOPBACK_NAMES,
    SAFE_METHODS,
    Admitted,
    Auth,
    Caller,
    Entrance,
    Standing,
    host_name,
)
from runner.web.keys import COOKIE_AGE, Identity, Signer, read_keys
from runner.web.problems import HttpProblem
from runner.web.tokens import Scope as TokenScope
from runner.web.tokens import Tokens
from runner.web.users import Users, Visit

OPEN_PATHS: Final = frozenset({"/docs", "/health", "/live", "/openapi.json", "/ready"})
"""What answers to anybody, and says nothing of anybody: to probes, and to people who read."""

_FOR_ALL: Final = OPEN_PATHS | {"/"}

ANONYMOUS: Final = "anonymous"
RENEW_AFTER: Final = timedelta(days=1)
_SCHEME: Final = "bearer "


class LocalAuth:
    """`local`: whoever reaches the port is the person at this machine, of whom no record is needed."""

    _PERSON: Final = Admitted(Caller(Entrance.TCP, LOCAL_USER, Source.HTTP))

    async def identify(self, scope: Scope, headers: Headers) -> Admitted:
        """See `Auth`."""
        return self._PERSON


class TokenAuth:
    """`token`: whoever bears one is its user."""

    def __init__(self, tokens: Tokens, users: Users) -> None:
        self._tokens = tokens
        self._users = users

    async def identify(self, scope: Scope, headers: Headers) -> Admitted:
        """See `Auth`."""
        if "authorization" in headers:
            return Admitted(await self.believe(scope, headers["authorization"]))
        if scope["path"] in _FOR_ALL:
            return Admitted(_anybody())
        raise _unauthorized("auth_required", "send a token: Authorization: Bearer …; `runner token add` makes one")

    async def believe(self, scope: Scope, authorization: str) -> Caller:
        """The bearer of a token. Raises `HttpProblem` 401 for one that is none of ours."""
        is_bearer = authorization[: len(_SCHEME)].lower() == _SCHEME
        token = self._tokens.find(authorization[len(_SCHEME) :].strip()) if is_bearer else None
        if token is None:
            raise _unauthorized("invalid_token", "this token is not known here, or was removed")
        sees = None if token.scope is TokenScope.ADMIN else token.user_id
        caller = Caller(Entrance.TCP, token.user_id, Source.HTTP, sees)
        await _note(self._users, caller, scope)
        return caller


class CookieAuth:
    """`cookie`: each browser is a user of its own; programs, and the admin, bear tokens."""

    def __init__(self, signer: Signer, tokens: TokenAuth, users: Users, clock: Clock = utc_now) -> None:
        self._signer = signer
        self._tokens = tokens
        self._users = users
        self._clock = clock

    async def identify(self, scope: Scope, headers: Headers) -> Admitted:
        """See `Auth`."""
        if "authorization" in headers:
            return Admitted(await self._tokens.believe(scope, headers["authorization"]))
        name = cookie_name(scope, headers)
        value = cookie_parser(headers.get("cookie", "")).get(name, "")
        identity = self._signer.verify(value, self._clock())
        if identity is not None:
            caller = _browser(identity, Standing.KNOWN)
            if await _note(self._users, caller, scope, identity.secret_sha256):
                return Admitted(caller, self._renewed(name, identity, value))
        return self._welcome(scope, name)

    def _welcome(self, scope: Scope, name: str) -> Admitted:
        """Somebody new, who may look around. Nothing is stored of who never does anything."""
        if scope["path"] in _FOR_ALL:
            return Admitted(_anybody())
        if scope.get("method") not in SAFE_METHODS:
            raise _unauthorized("auth_required", "send the cookie that GET /api/v1/users/me sets, or a token")
        identity = Identity(str(uuid.uuid4()), secrets.token_urlsafe(32), self._clock())
        return Admitted(_browser(identity, Standing.NEW), (_set_cookie(name, self._signer.sign(identity)),))

    def _renewed(self, name: str, identity: Identity, value: str) -> tuple[str, ...]:
        """A cookie that lasts longer, or has the newest key's signature; none where the one that came will do."""
        now = self._clock()
        is_young = now - identity.issued_at < RENEW_AFTER
        if is_young and self._signer.sign(identity) == value:
            return ()
        return (_set_cookie(name, self._signer.sign(identity._replace(issued_at=now))),)


def make_auth(config: AuthConfig, store: Store, users: Users, tokens: Tokens) -> Auth:
    """What `auth.mode` says. Raises `UnsafeAccess` or `ConfigError` when the keys of cookies cannot be used."""
    if config.mode == "local":
        return LocalAuth()
    by_token = TokenAuth(tokens, users)
    if config.mode == "token":
        return by_token
    return CookieAuth(Signer(read_keys(store.files, f"{store.layout.data}/secret.key")), by_token, users)


def cookie_name(scope: Scope, headers: Headers) -> str:
    """`__Host-uid`: a browser takes that name only with `Secure`, for the whole host and from it alone (RFC 6265bis).

    Plain `uid` where a browser would not send a secure cookie: on unencrypted loopback.
    """
    is_loopback = scope["scheme"] in ("http", "ws") and host_name(headers) in LOOPBACK_NAMES
    return "uid" if is_loopback else "__Host-uid"


def _set_cookie(name: str, value: str) -> str:
    secure = "; Secure" if name.startswith("__Host-") else ""
    return f"{name}={value}; Path=/; Max-Age={int(COOKIE_AGE.total_seconds())}; HttpOnly; SameSite=Lax{secure}"


def _browser(identity: Identity, standing: Standing) -> Caller:
    return Caller(Entrance.TCP, identity.user_id, Source.HTTP, identity.user_id, standing)


def _anybody() -> Caller:
    return Caller(Entrance.TCP, ANONYMOUS, Source.HTTP, ANONYMOUS, Standing.NEW)


async def _note(users: Users, caller: Caller, scope: Scope, secret_sha256: str | None = None) -> bool:
    """Keeps the caller's record up to date. False: the record has another secret."""
    if scope["path"] in _FOR_ALL or users.is_settled(caller.user_id, secret_sha256):
        return True
    visit = Visit.LOOK if scope["type"] == "websocket" or scope["method"] in SAFE_METHODS else Visit.CHANGE
    return await in_thread(users.note, caller.user_id, secret_sha256, visit)


def _unauthorized(code: str, detail: str) -> HttpProblem:
    return HttpProblem(401, code, detail, {"WWW-Authenticate": "Bearer"})
