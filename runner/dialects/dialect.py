"""What a dialect says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.routing import BaseRoute

from runner.web.door import Auth, Manners
from runner.web.problems import Envelope
from runner.web.server import Companion


@dataclass(frozen=True, slots=True)
class Dialect:
    """Another system's contract. `own_routes` are served only on its own port, before `routes`; `prefixes` are paths
    below which nothing else is. `auth` None: callers are known as everywhere. `companions` are started with the server,
    and stopped with it."""

    name: str
    routes: tuple[BaseRoute, ...]
    envelope: Envelope
    own_routes: tuple[BaseRoute, ...] = ()
    prefixes: tuple[str, ...] = ()
    auth: Auth | None = None
    origins: frozenset[str] = frozenset()
    companions: tuple[Companion, ...] = ()

    @property
    def manners(self) -> Manners:
        """How the door meets who comes for it."""
        return Manners(self.envelope, self.auth, frozenset(origin.lower() for origin in self.origins))
