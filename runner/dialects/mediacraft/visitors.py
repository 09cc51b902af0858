"""Who somebody is to MediaCraft: a browser, by its cookies, in every `auth.mode`.

Two cookies name one user. `user_id` is the UUID that MediaCraft's document speaks of; it is a name and proves nothing.
`session_id` proves it: the user's id and a secret, signed like the cookies of `auth.mode: cookie`, by the same keys. In
that mode the browser is given that cookie, too, so it is one user on every page.

Who has no cookie, a forged or an old one, is a new user. Programs of the time before cookies (`/api/video/`) need none:
without one they are all one user, whose tasks are anybody's who knows their ids.
"""

from __future__ import annotations

import secrets
import uuid
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from runner.dispatch.delays import Clock, utc_now
from runner.task import Source
from runner.web.auth import OPEN_PATHS, RENEW_AFTER, cookie_name
from runner.web.crossing import in_thread
from runner.web.door import SAFE_METHODS, Admitted, Caller, Entrance, Standing
from runner.web.keys import COOKIE_AGE, Identity, Signer
from runner.web.users import Users, Visit

NAME_COOKIE: Final = "user_id"
PROOF_COOKIE: Final = "session_id"
LEGACY_PREFIX: Final = "/api/video/"
NOBODY: Final = "mediacraft"
"""The user of programs without cookies."""


class Visitors:
    """See `runner.web.door.Auth`. `shared` says that our own pages know browsers by their cookie, too."""

    def __init__(self, signer: Signer, users: Users, *, shared: bool, clock: Clock = utc_now) -> None:
        self._signer = signer
        self._users = users
        self._is_shared = shared
        self._clock = clock

    async def identify(self, scope: Scope, headers: Headers) -> Admitted:
        """Who asks: whoever a cookie says, or somebody new."""
        cookies = cookie_parser(headers.get("cookie", ""))
        names = (PROOF_COOKIE, cookie_name(scope, headers)) if self._is_shared else (PROOF_COOKIE,)
        for name in names:
            identity = self._signer.verify(cookies.get(name, ""), self._clock())
            if identity is not None and await self._note(scope, identity):
                is_complete = cookies.get(NAME_COOKIE) == identity.user_id and name == PROOF_COOKIE
                is_fine = is_complete and self._is_young(identity)
                due = () if is_fine else self._cookies(scope, headers, identity)
                return Admitted(_browser(identity, Standing.KNOWN), due)
        if scope["path"].startswith(LEGACY_PREFIX) or scope["path"] in OPEN_PATHS:
            return Admitted(Caller(Entrance.TCP, NOBODY, Source.HTTP, NOBODY))
        return await self._welcome(scope, headers)

    async def _welcome(self, scope: Scope, headers: Headers) -> Admitted:
        identity = Identity(str(uuid.uuid4()), secrets.token_urlsafe(32), self._clock())
        await self._note(scope, identity)
        return Admitted(_browser(identity, Standing.NEW), self._cookies(scope, headers, identity))

    def _is_young(self, identity: Identity) -> bool:
        return self._clock() - identity.issued_at < RENEW_AFTER

    def _cookies(self, scope: Scope, headers: Headers, identity: Identity) -> tuple[str, ...]:
        proof = self._signer.sign(identity._replace(issued_at=self._clock()))
        pairs = [(NAME_COOKIE, identity.user_id), (PROOF_COOKIE, proof)]
        if self._is_shared:
            pairs.append((cookie_name(scope, headers), proof))
        secure = "; Secure" if scope["scheme"] in ("https", "wss") else ""
        age = int(COOKIE_AGE.total_seconds())
        return tuple(f"{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax{secure}" for name, value in pairs)

    async def _note(self, scope: Scope, identity: Identity) -> bool:
        """Keeps the user's record up to date. False: the record has another secret."""
        if self._users.is_settled(identity.user_id, identity.secret_sha256):
            return True
        visit = Visit.LOOK if scope.get("method") in SAFE_METHODS else Visit.CHANGE
        return await in_thread(self._users.note, identity.user_id, identity.secret_sha256, visit)


def _browser(identity: Identity, standing: Standing) -> Caller:
    return Caller(Entrance.TCP, identity.user_id, Source.HTTP, identity.user_id, standing)
