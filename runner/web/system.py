"""Everything that is not one task: handlers, queues, why, cleanup, health."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.errors import NotFound
from runner.handlers import Handler, LoadFailure
from runner.rpc.health import service_health
from runner.service import GcMode, Health, Service
from runner.web.crossing import in_thread
from runner.web.door import Caller, caller_of, require_admin
from runner.web.parameters import task_id_in
from runner.web.problems import invalid

JSON: Final = "application/json"


class SystemEndpoints:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handlers(self, request: Request) -> Response:
        """`GET /handlers`."""
        return _json(await in_thread(self._describe_handlers, caller_of(request)))

    async def handler(self, request: Request) -> Response:
        """`GET /handlers/{name}`."""
        handler = self._service.handlers.find(request.path_params["name"])
        if handler is None:
            raise NotFound("handler", request.path_params["name"])
        return _json(await in_thread(self._described, handler, caller_of(request)))

    async def queue_stats(self, request: Request) -> Response:
        """`GET /queues/stats`."""
        queue = request.query_params.get("queue")
        rows = await in_thread(self._service.queue_stats)
        if queue is not None and queue not in {row["queue"] for row in rows}:
            raise NotFound("queue", queue)
        return _json([row for row in rows if queue in (None, row["queue"])])

    async def why(self, request: Request) -> Response:
        """`GET /why`."""
        target = request.query_params.get("target")
        if not target:
            raise invalid("/target", "must be the id of a task or the path of a file")
        sees = caller_of(request).sees
        if sees is not None:
            # Which files there are is nobody's business but the admin's.
            target = (await in_thread(self._service.get, task_id_in(target), sees)).id
        return _json(await in_thread(self._service.why, target))

    async def inbox(self, request: Request) -> Response:
        """`GET /inbox`: what waits in the watched folders, and why. Which files there are is for the admin."""
        require_admin(request)
        return _json(await in_thread(self._service.inbox.report))

    async def gc(self, request: Request) -> Response:
        """`POST /gc`."""
        require_admin(request)
        mode = request.query_params.get("mode", GcMode.APPLY)
        if mode not in frozenset(GcMode):
            raise invalid("/mode", f"must be {' or '.join(GcMode)}, not {mode!r}")
        return _json(await in_thread(self._service.gc, GcMode(mode)))

    async def health(self, request: Request) -> Response:
        """`GET /health`: whether all is well, with details."""
        health = await self._health(request)
        status = "healthy" if health.ready else "unhealthy"
        services = {"store": "; ".join(health.reasons) or "healthy", **self._services(request)}
        document = {"status": status, "timestamp": datetime.now(UTC), "services": services, "details": health.details}
        return _json(document, 200 if health.ready else 503)

    async def ready(self, request: Request) -> Response:
        """`GET /ready`: whether new tasks are accepted and started."""
        health = await self._health(request)
        if health.ready:
            return _json({"status": "ready", "details": health.details})
        reasons = {"reason": "; ".join(health.reasons), "reasons": health.reasons}
        return _json({"status": "not ready", **reasons, "details": health.details}, 503)

    async def live(self, _request: Request) -> Response:
        """`GET /live`: whether the process answers at all."""
        return _json({"status": "alive"})

    async def _health(self, request: Request) -> Health:
        """The runner's health; its details are for its admin."""
        health = await in_thread(self._service.health)
        return health if caller_of(request).is_admin else replace(health, details={})

    def _services(self, request: Request) -> dict[str, str]:
        """How the services are that tasks are handed on to; what they say of themselves is for the runner's admin."""
        return service_health(self._service.config) if caller_of(request).is_admin else {}

    def _described(self, handler: Handler, caller: Caller) -> dict[str, Any]:
        """The handler as `caller` may see it: where its file lies, and how it fares, is for the admin."""
        description = describe_handler(handler)
        if not caller.is_admin:
            return {**description, "path": None, "health": None}
        meters = self._service.meters
        error = meters.last_error_of(handler.name)
        health = {"attempts": meters.attempts_of(handler.name), "last_error": error and error._asdict()}
        return {**description, "health": health}

    def _describe_handlers(self, caller: Caller) -> dict[str, Any]:
        handlers = self._service.handlers
        failures = handlers.errors.values() if caller.is_admin else ()
        return {
            "handlers": [self._described(handler, caller) for handler in handlers],
            "errors": [_describe_failure(failure) for failure in failures],
        }


def describe_handler(handler: Handler) -> dict[str, Any]:
    """What a person or a form needs to know of a handler. `missing`: the modules without which it cannot run."""
    missing = handler.missing()
    return {
        "name": handler.name,
        "doc": handler.doc,
        "available": not missing,
        "missing": missing,
        "extra": handler.options.extra,
        "accepts": handler.options.accepts,
        "schema": handler.schema,
        "options": handler.options.model_dump(mode="json"),
        "version": handler.version,
        "path": str(handler.path),
    }


def _describe_failure(failure: LoadFailure) -> dict[str, Any]:
    return {"path": str(failure.path), "line": failure.line, "message": failure.message, "at": failure.at}


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type=JSON)
