"""A line in the log for each request, or for those that an admin wants to know of."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Literal

from starlette.types import Scope

Which = Literal["off", "failures", "all"]
Count = Callable[[str, int], None]

CLIENT_WENT_AWAY: Final = 499
"""The status of a request that was not answered, because nobody waited any more. nginx calls it so."""

FAILURES: Final = frozenset({401, 403, 408, 429})
"""Beside defects, the answers that a person should know of: somebody tries what they may not, or too often."""

_log = logging.getLogger("runner.access")


class AccessLog:
    """Counts answers and logs them. The event loop's thread."""

    def __init__(self, which: Which, count: Count) -> None:
        self._which = which
        self._count = count

    def note(self, scope: Scope, status: int | None, seconds: float) -> None:
        """A request is over. `status` None: it was not answered."""
        status = status or CLIENT_WENT_AWAY
        method = scope.get("method", "WEBSOCKET")
        self._count(method, status)
        if self._which == "all" or (self._which == "failures" and (status >= 500 or status in FAILURES)):
            caller, client = scope.get("caller"), scope.get("client")
            fields = {
                "request_id": scope["request_id"],
                "method": method,
                "path": scope["path"],
                "status": status,
                "seconds": round(seconds, 6),
                "user_id": caller and caller.user_id,
                "address": client and client[0],
            }
            _log.info("request", extra=fields)
