"""PixivTailor's configurations: named sets of parameters to draw by, one JSON file each in `data/configs/`."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from runner.dialects.pixivtailor.tasks import read_object
from runner.dialects.pixivtailor.words import answer, refuse
from runner.store.files import Files
from runner.web.crossing import in_thread
from runner.web.door import require_admin
from runner.web.routing import route

_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
ABOUT: Final = frozenset(
    {"id", "name", "category", "description", "is_default", "created_at", "updated_at", "version", "tags", "config"}
)
"""What a file says of itself; all else are parameters, unless it has them in `config`."""

MAX_CONFIGS: Final = 10_000
MAX_NAME: Final = 200


class StoredConfig:
    """One of them."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = dict(document)

    @property
    def parameters(self) -> dict[str, Any]:
        """What is drawn by it."""
        inner = self.document.get("config")
        if isinstance(inner, dict):
            return inner
        return {name: value for name, value in self.document.items() if name not in ABOUT}

    @property
    def category(self) -> str:
        """Where pages list it."""
        return str(self.document.get("category") or "")


class Configs:
    """The files. From any thread; every method waits for the disk."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        self._changing = threading.Lock()

    def get(self, config_id: str) -> StoredConfig:
        """One by its id. Raises `HttpProblem` 404."""
        if _ID.fullmatch(config_id):
            try:
                document = from_json(self._files.read(self._path(config_id)))
            except FileNotFoundError:
                pass
            except ValueError as error:
                raise refuse(500, f"the configuration {config_id} is damaged") from error
            else:
                if isinstance(document, dict):
                    return StoredConfig({**document, "id": config_id})
        raise refuse(404, "Config not found")

    def all(self) -> list[StoredConfig]:
        """All that can be read, by name."""
        found = []
        self._files.make_directory(self._directory)
        for name in self._files.names(self._directory)[:MAX_CONFIGS]:
            config_id, dot, suffix = name.rpartition(".")
            if not dot or suffix != "json" or not _ID.fullmatch(config_id):
                continue
            document = self._try_read(config_id)
            if document is not None:
                found.append(StoredConfig({**document, "id": config_id}))
        return sorted(found, key=lambda config: str(config.document.get("name", "")))

    def add(self, document: Mapping[str, Any]) -> StoredConfig:
        """A new one, durable. Raises `HttpProblem` 400 without a name, 409 if there is one of that name or id."""
        name, config_id = document.get("name"), document.get("id") or uuid.uuid4().hex[:8]
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
            raise refuse(400, "a configuration needs a name")
        if not isinstance(config_id, str) or not _ID.fullmatch(config_id):
            raise refuse(400, "an id is made of letters, digits, - and _")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._changing:
            known = self.all()
            if any(one.document.get("name") == name or one.document["id"] == config_id for one in known):
                raise refuse(409, f"there is a configuration {name!r} already")
            if len(known) >= MAX_CONFIGS:
                raise refuse(400, f"there are {MAX_CONFIGS} configurations already")
            return self._save({**document, "id": config_id, "created_at": now, "updated_at": now})

    def change(self, config_id: str, changes: Mapping[str, Any]) -> StoredConfig:
        """One with other members; durable. Raises `HttpProblem` 404."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._changing:
            known = self.get(config_id).document
            return self._save({**known, **changes, "id": config_id, "updated_at": now})

    def remove(self, config_id: str) -> None:
        """It is forgotten. Raises `HttpProblem` 404."""
        with self._changing:
            self.get(config_id)
            self._files.remove(self._path(config_id))

    def make_default(self, config_id: str) -> StoredConfig:
        """It, and no other, is the default. Raises `HttpProblem` 404."""
        with self._changing:
            chosen = self.get(config_id)
            for config in self.all():
                is_chosen = config.document["id"] == config_id
                if bool(config.document.get("is_default")) != is_chosen:
                    self._save({**config.document, "is_default": is_chosen})
            return StoredConfig({**chosen.document, "is_default": True})

    def default(self) -> StoredConfig:
        """The default one. Raises `HttpProblem` 404."""
        for config in self.all():
            if config.document.get("is_default"):
                return config
        raise refuse(404, "there is no default configuration")

    def _try_read(self, config_id: str) -> dict[str, Any] | None:
        try:
            document = from_json(self._files.read(self._path(config_id)))
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def _save(self, document: Mapping[str, Any]) -> StoredConfig:
        self._files.make_directory(self._directory)
        self._files.replace_durably(self._path(str(document["id"])), to_json(document, indent=2) + b"\n")
        return StoredConfig(document)

    def _path(self, config_id: str) -> str:
        return f"{self._directory}/{config_id}.json"


class ConfigEndpoints:
    """The endpoints. The configurations are everybody's, so where there are several users the admin changes them."""

    def __init__(self, configs: Configs) -> None:
        self._configs = configs

    @property
    def routes(self) -> tuple[BaseRoute, ...]:
        """Their paths."""
        one = "/api/configs/{id}"
        return (
            route("/api/configs", GET=self.list_configs, POST=self.create),
            route("/api/configs/create", POST=self.create),
            route("/api/configs/categories", GET=self.categories, POST=self.categories),
            route("/api/configs/default", GET=self.default),
            route("/api/configs/import", POST=self.import_many),
            route("/api/configs/export", GET=self.export, POST=self.export),
            route(one, GET=self.show, PUT=self.change, DELETE=self.remove),
            route(f"{one}/default", POST=self.make_default),
        )

    async def list_configs(self, request: Request) -> Response:
        """`GET /api/configs`."""
        asked = request.query_params
        known = await in_thread(self._configs.all)
        category, name = asked.get("category", ""), asked.get("name", "").casefold()
        found = [
            config.document
            for config in known
            if category in ("", config.category) and name in str(config.document.get("name", "")).casefold()
        ]
        page, size = _number(asked.get("page"), 1), min(_number(asked.get("pageSize"), 20), 1000)
        data = {
            "configs": found[(page - 1) * size : page * size],
            "total": len(found),
            "page": page,
            "page_size": size,
            "categories": _categories(known),
        }
        return answer(data)

    async def create(self, request: Request) -> Response:
        """`POST /api/configs/create`, and `POST /api/configs`."""
        require_admin(request)
        return answer((await in_thread(self._configs.add, await read_object(request))).document)

    async def show(self, request: Request) -> Response:
        """`GET /api/configs/{id}`."""
        return answer((await in_thread(self._configs.get, request.path_params["id"])).document)

    async def change(self, request: Request) -> Response:
        """`PUT /api/configs/{id}`."""
        require_admin(request)
        body = await read_object(request)
        return answer((await in_thread(self._configs.change, request.path_params["id"], body)).document)

    async def remove(self, request: Request) -> Response:
        """`DELETE /api/configs/{id}`."""
        require_admin(request)
        await in_thread(self._configs.remove, request.path_params["id"])
        return answer({"message": "config deleted"})

    async def categories(self, request: Request) -> Response:
        """`/api/configs/categories`."""
        return answer({"categories": _categories(await in_thread(self._configs.all))})

    async def default(self, request: Request) -> Response:
        """`GET /api/configs/default`."""
        return answer((await in_thread(self._configs.default)).document)

    async def make_default(self, request: Request) -> Response:
        """`POST /api/configs/{id}/default`."""
        require_admin(request)
        return answer((await in_thread(self._configs.make_default, request.path_params["id"])).document)

    async def import_many(self, request: Request) -> Response:
        """`POST /api/configs/import`: `{configs: […]}`; what is there already is left alone."""
        require_admin(request)
        wanted = (await read_object(request)).get("configs")
        if not isinstance(wanted, list) or not all(isinstance(one, dict) for one in wanted):
            raise refuse(400, "configs must be a list of configurations")
        known = [config.document.get("name") for config in await in_thread(self._configs.all)]
        new = [one for one in wanted if one.get("name") not in known]
        for one in new:
            await in_thread(self._configs.add, {name: value for name, value in one.items() if name != "id"})
        return answer({"imported": len(new), "skipped": len(wanted) - len(new)})

    async def export(self, request: Request) -> Response:
        """`/api/configs/export`."""
        return answer({"configs": [config.document for config in await in_thread(self._configs.all)]})


def _categories(configs: list[StoredConfig]) -> list[str]:
    return sorted({config.category for config in configs if config.category})


def _number(text: str | None, otherwise: int) -> int:
    is_number = text is not None and text.isascii() and text.isdecimal() and 0 < len(text) < 8 and int(text) > 0
    return int(text) if is_number and text is not None else otherwise
