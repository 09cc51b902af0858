"""A handler of the starter set, run as an executor runs it: its payload validated, a real context, private folders."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from runner.config import HandlerConfig
from runner.context import Cancelled, Context
from runner.handlers import Handlers
from runner.handlers.loading import package_name
from runner.task import FileState, Progress, Status, Task

FOLDER = Path(__file__).parents[2] / "handlers"


@cache
def _load() -> tuple[Handlers, Mapping[str, ModuleType]]:
    handlers = Handlers(FOLDER, {"shell": HandlerConfig(enabled=True)})
    handlers.load()
    assert not handlers.errors, handlers.errors
    # Now: when other tests load the same folder, its shared files are imported anew, and ours keep theirs.
    package = f"{package_name(FOLDER)}."
    return handlers, {name[len(package) :]: it for name, it in sys.modules.items() if name.startswith(f"{package}_")}


def starters() -> Handlers:
    """The handlers of the repository, those too that are off by default."""
    return _load()[0]


def parts_of(type: str) -> Mapping[str, Any]:
    """The names that the file of a handler defines, to test them one by one."""
    handler = starters().find(type)
    assert handler is not None
    module: Mapping[str, Any] = handler.function.__globals__
    return module


def share(name: str) -> Mapping[str, Any]:
    """What a file that the handlers share defines, such as `_archives`."""
    return vars(_load()[1][name])


@dataclass
class Attempt:
    """One attempt: made with a folder of its own, filled with inputs, then `run`. It hears what the handler says."""

    folder: Path
    type: str
    inputs: tuple[Path, ...]
    filename: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    user: str = "local"
    on_progress: Callable[["Attempt"], None] = lambda attempt: None
    number: int = 1
    said: list[Progress] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, FileState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context = Context(self, self)
        self._running: asyncio.Future[dict[str, Any]] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def task(self) -> Task:
        now = datetime.now(UTC)
        return Task(
            id="00000000-0000-4000-8000-000000000000",
            type=self.type,
            user_id=self.user,
            status=Status.PROCESSING,
            original_filename=self.filename,
            attempt=self.number,
            created_at=now,
            updated_at=now,
        )

    @property
    def output_dir(self) -> Path:
        return self.folder / "outputs"

    @property
    def scratch_dir(self) -> Path:
        return self.folder / "scratch"

    @property
    def kept_dir(self) -> Path:
        return self.folder / "kept"

    def run(self, **payload: Any) -> dict[str, Any]:
        """Validate the payload, call the handler, and hand back its result. A coroutine that was told to stop, by
        whoever heard its progress, is cancelled as a loop would do it, and raises Cancelled."""
        handler = starters().get(self.type)
        if handler.is_async:
            return asyncio.run(self._await(handler.function(self.context, **handler.arguments(payload))))
        result: dict[str, Any] = handler.function(self.context, **handler.arguments(payload))
        return result

    async def _await(self, attempt: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        self._running = asyncio.ensure_future(attempt)
        self._loop = asyncio.get_running_loop()
        try:
            return await self._running
        except asyncio.CancelledError:
            raise Cancelled(self.context.stopped) from None

    def cancel(self) -> None:
        """What an executor does when somebody cancels. From any thread."""
        self.context.stop("cancelled")
        if self._running is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._running.cancel)

    def made(self, result: Mapping[str, Any]) -> Path:
        """The output that a result names."""
        return self.output_dir / str(result["output"])

    def progressed(self, work: Any, progress: Progress, /) -> None:
        self.said.append(progress)
        self.on_progress(self)

    def logged(self, work: Any, level: str, message: str, /) -> None:
        self.log.append((level, message))

    def filed(self, work: Any, files: tuple[FileState, ...], /) -> None:
        self.files = {file.path: file for file in files}

    def submitted(self, work: Any, type: str, payload: dict[str, Any], inputs: tuple[Path, ...], /) -> str:
        raise AssertionError("no starter has children")
