"""`GET /openapi.json` (OpenAPI 3.1), made of the models that check requests, and `GET /docs`, the same for people."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import Any, Final

from pydantic.json_schema import models_json_schema
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.handlers import Handlers
from runner.store import TaskQuery
from runner.task import Task
from runner.web.crossing import in_thread
from runner.web.door import caller_of
from runner.web.operations import JSON, OPERATIONS, TEXT, Operation, Schema

TASK_ID: Final[Schema] = {"type": "string", "pattern": "^[0-9a-z][0-9a-z_-]{0,63}$"}
SHORT_NAMES: Final = {"user_id": "user", "client_id": "client"}
"""What filters are called in a query, where that is not the name of the field."""

PROBLEM: Final[Schema] = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "stable, for machines"},
        "request_id": {"type": "string", "description": "what to look for in the log"},
        "problems": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"pointer": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
    "required": ["status", "code", "detail", "request_id"],
}

STYLE: Final = (
    "body{font:16px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em;color-scheme:light dark}"
    "summary{cursor:pointer}code{font-size:.95em}pre{overflow:auto;padding:1em;background:#8882}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
DOCS_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'; base-uri 'none'"


class OpenApiEndpoints:
    """The endpoints. What handlers take is described only to callers who are known."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    async def document(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return Response(to_json(await self._described(request)), media_type=JSON)

    async def page(self, request: Request) -> Response:
        """`GET /docs`."""
        page = await in_thread(render, await self._described(request))
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": DOCS_POLICY})

    async def _described(self, request: Request) -> dict[str, Any]:
        handlers = () if caller_of(request).is_new else self._handlers
        schemas = {handler.name: handler.schema for handler in handlers}
        return await in_thread(describe, schemas)


def describe(payloads: Mapping[str, Schema]) -> dict[str, Any]:
    """The OpenAPI document; `payloads` are the parameters of the handlers by their names."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "file-runner",
            "version": _version(),
            "description": "Tasks for handlers, from files or JSON",
        },
        "paths": paths,
        "components": {
            "schemas": {**_schemas(), **_payloads(payloads), "Problem": PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def render(document: Mapping[str, Any]) -> str:
    """The document as one page of HTML, which needs nothing else."""
    operations = [
        (operation["tags"][0], method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    operations.sort(key=lambda entry: entry[0])
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>file-runner API</title><style>{STYLE}</style>"]
    parts.append("<h1>file-runner API</h1><p>For machines: <a href=/openapi.json>/openapi.json</a></p>")
    for group, entries in groupby(operations, key=lambda entry: entry[0]):
        parts.append(f"<h2>{escape(group)}</h2>")
        parts.extend(_rendered(method, path, operation) for _, method, path, operation in entries)
    parts.append("<h2>Schemas</h2>")
    parts.extend(_details(escape(name), schema) for name, schema in document["components"]["schemas"].items())
    return "\n".join(parts)


def _rendered(method: str, path: str, operation: Mapping[str, Any]) -> str:
    about = {name: operation[name] for name in ("parameters", "requestBody", "responses") if operation.get(name)}
    return _details(f"<code>{method} {escape(path)}</code> {escape(operation['summary'])}", about)


def _details(summary: str, about: Any) -> str:
    text = escape(to_json(about, indent=2).decode())
    return f"<details><summary>{summary}</summary><pre>{text}</pre></details>"


def _operation(method: str, path: str, operation: Operation) -> dict[str, Any]:
    answered: dict[str, Any] = {"description": "done"}
    if operation.status != 204 and operation.group != "uploads":
        answers = {operation.media_type: operation.answer} | dict.fromkeys(operation.as_text, TEXT)
        answered["content"] = {media_type: {"schema": schema} for media_type, schema in answers.items()}
    failed = {"description": "a problem", "content": {"application/problem+json": {"schema": _ref("Problem")}}}
    described: dict[str, Any] = {
        "operationId": _name(method, path),
        "summary": operation.summary,
        "tags": [operation.group],
        "parameters": [*_in_path(path), *_in_query(operation)],
        "responses": {str(operation.status): answered, "default": failed},
    }
    if operation.is_for_admin:
        described["description"] = "For the admin only."
    if (content := _body(operation)) is not None:
        described["requestBody"] = {"required": not operation.is_body_optional, "content": content}
    return described


def _body(operation: Operation) -> dict[str, Any] | None:
    if operation.takes_file:
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if operation.body is None:
        return None
    schema = _ref(operation.body.__name__)
    return {JSON: {"schema": {"type": "array", "items": schema} if operation.takes_many else schema}}


def _in_path(path: str) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", path):
        schema = TASK_ID if name == "id" else {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _in_query(operation: Operation) -> Iterator[dict[str, Any]]:
    query = dict(operation.query or {})
    if operation.has_filters:
        properties = TaskQuery.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
        query |= {SHORT_NAMES.get(name, name): _as_text(schema) for name, schema in properties.items()}
    for name, schema in query.items():
        yield {"name": name, "in": "query", "required": name in ("target", "task_ids"), "schema": schema}


def _as_text(schema: Schema) -> Schema:
    """The schema of a value that comes as text: an instant may be a number, too, of seconds since 1970."""
    if any(kind.get("format") == "date-time" for kind in schema.get("anyOf", ())):
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "number"}]}
    return schema


def _schemas() -> dict[str, Any]:
    """Of everything that requests and answers hold. What is shown of a task is more than what is kept of it."""
    bodies = {operation.body for operation in OPERATIONS.values() if operation.body is not None}
    wanted = [(body, "validation") for body in sorted(bodies, key=lambda body: body.__name__)]
    _, described = models_json_schema(
        [*wanted, (Task, "serialization"), (TaskQuery, "validation")],  # type: ignore[list-item]
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Any] = described["$defs"]
    schemas["Task"] |= {"additionalProperties": True}
    return schemas


def _payloads(payloads: Mapping[str, Schema]) -> dict[str, Any]:
    """By handler; references inside a handler's schema go on pointing inside it."""
    return {
        f"payload.{name}": _moved(schema, f"#/components/schemas/payload.{name}") for name, schema in payloads.items()
    }


def _moved(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        return {
            key: f"{place}{inner[1:]}" if key == "$ref" and isinstance(inner, str) and inner.startswith("#/")
            else _moved(inner, place)
            for key, inner in value.items()
        }  # fmt: skip
    return [_moved(inner, place) for inner in value] if isinstance(value, list) else value


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _name(method: str, path: str) -> str:
    words = re.findall(r"[a-z]+", path.removeprefix("/api/v1"))
    return "_".join((method.lower(), *words))


def _version() -> str:
    try:
        return version("file-runner")
    except PackageNotFoundError:
        return "0"
