"""A span for each request, where traces are wanted (`runner/traces.py`)."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

from runner.traces import PARENT, Traces
from runner.web.door import Register

KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


class TracedRegister:
    """Tells another register of each request, and the traces too. Attributes are those of OpenTelemetry's conventions
    for HTTP servers; a path is told as the route that it is, so ids make no names of their own."""

    def __init__(self, register: Register, traces: Traces) -> None:
        self._register = register
        self._traces = traces

    def note(self, scope: Scope, status: int | None, seconds: float) -> None:
        """See `Register`."""
        self._register.note(scope, status, seconds)
        method = scope.get("method", "GET")
        known = method if method in KNOWN_METHODS else "_OTHER"
        route = getattr(scope.get("route"), "path", None)
        attributes: dict[str, str | int] = {
            "http.request.method": known,
            "url.path": scope["path"][:256],
            "url.scheme": scope["scheme"],
            "runner.request.id": scope["request_id"],
        }
        if route is not None:
            attributes["http.route"] = route
        if status is not None:
            attributes["http.response.status_code"] = status
        fault = str(status) if status is not None and status >= 500 else None
        name = known if route is None else f"{known} {route}"
        self._traces.note_request(name, attributes, seconds, Headers(scope=scope).get(PARENT), fault)
