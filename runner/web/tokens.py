"""Bearer tokens (RFC 6750): made, listed and taken away through the Unix socket only, kept as hashes in
`data/tokens.json`."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.dispatch.delays import Clock, utc_now
from runner.errors import CorruptRecord, NotFound, Refused
from runner.intake.admission import NAME
from runner.record import Record
from runner.store.files import Files
from runner.web.bodies import read_json
from runner.web.crossing import in_thread
from runner.web.door import Entrance, caller_of
from runner.web.keys import hash_secret
from runner.web.problems import HttpProblem

PREFIX: Final = "fr_"
"""Begins every token, so that scanners of published code can find it."""

MAX_BODY_BYTES: Final = 4096

Name = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]


class Scope(StrEnum):
    """What a token lets its bearer do: see and change their own tasks, or everybody's and the runner too."""

    USER = "user"
    ADMIN = "admin"


class NewToken(Record):
    """What a token is asked for with. `user_id` None: the same as `name`."""

    name: Name
    user_id: Name | None = None
    scope: Scope = Scope.USER


class Token(Record):
    """A token as it is kept."""

    name: str
    user_id: str
    scope: Scope
    created_at: AwareDatetime
    sha256: str

    def shown(self) -> dict[str, Any]:
        """The token as it is listed."""
        return self.model_dump(mode="json", exclude={"sha256"})


class NameTaken(Refused):
    """There is a token of that name."""

    code = "name_taken"


_TOKENS: Final = TypeAdapter(tuple[Token, ...])


class Tokens:
    """All of them, in memory and in the file at `path`. From any thread; `find` never blocks."""

    def __init__(self, files: Files, path: str, clock: Clock = utc_now) -> None:
        self._files = files
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._by_hash = {token.sha256: token for token in self._read()}

    def __iter__(self) -> Iterator[Token]:
        return iter(sorted(self._by_hash.values(), key=lambda token: token.name))

    def find(self, secret: str) -> Token | None:
        """Whose token that is. It is looked up by its hash, so how long it takes says nothing of the secret."""
        return self._by_hash.get(hash_secret(secret))

    def add(self, wanted: NewToken) -> tuple[Token, str]:
        """A new token and its secret, which is never to be seen again. Durable. Raises `NameTaken`."""
        secret = PREFIX + secrets.token_urlsafe(32)
        token = Token(
            name=wanted.name,
            user_id=wanted.user_id or wanted.name,
            scope=wanted.scope,
            created_at=self._clock(),
            sha256=hash_secret(secret),
        )
        with self._lock:
            if any(known.name == token.name for known in self._by_hash.values()):
                raise NameTaken(f"there is a token {token.name!r}; remove it first, or choose another name")
            self._write({**self._by_hash, token.sha256: token})
        return token, secret

    def remove(self, name: str) -> None:
        """It is not believed any more. Durable. Raises `NotFound`."""
        with self._lock:
            left = {sha256: token for sha256, token in self._by_hash.items() if token.name != name}
            if len(left) == len(self._by_hash):
                raise NotFound("token", name)
            self._write(left)

    def _read(self) -> tuple[Token, ...]:
        try:
            return _TOKENS.validate_json(self._files.read(self._path))
        except FileNotFoundError:
            return ()
        except ValidationError as error:
            raise CorruptRecord(f"{self._path} is not a list of tokens: {error}") from error

    def _write(self, tokens: dict[str, Token]) -> None:
        self._files.replace_durably(self._path, _TOKENS.dump_json(tuple(tokens.values()), indent=2) + b"\n")
        self._by_hash = tokens


class TokenEndpoints:
    """The endpoints."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def add(self, request: Request) -> Response:
        """`POST /tokens`."""
        _check_entrance(request)
        wanted = NewToken.model_validate(await read_json(request, MAX_BODY_BYTES))
        token, secret = await in_thread(self._tokens.add, wanted)
        return Response(to_json({**token.shown(), "token": secret}), 201, media_type="application/json")

    async def list(self, request: Request) -> Response:
        """`GET /tokens`."""
        _check_entrance(request)
        return Response(to_json([token.shown() for token in self._tokens]), media_type="application/json")

    async def remove(self, request: Request) -> Response:
        """`DELETE /tokens/{name}`."""
        _check_entrance(request)
        await in_thread(self._tokens.remove, request.path_params["name"])
        return Response(to_json({"message": "token removed"}), media_type="application/json")


def _check_entrance(request: Request) -> None:
    if caller_of(request).entrance is not Entrance.SOCKET:
        raise HttpProblem(403, "forbidden", "tokens are made and removed through the Unix socket: runner token")
