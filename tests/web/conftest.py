"""A real runner, served for real on a Unix socket and on TCP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.routing import Route

from runner.config import Config, EventLoop
from runner.service import Service
from runner.web.app import Site, create_app
from runner.web.protocol import Patience
from runner.web.server import Server, listening
from runner.web.sockets import listen_on_port

HANDLERS = '''
"""What the tests run."""

import time
from pathlib import Path

from runner import Context, Fail, Retry, handler


@handler()
def echo(ctx: Context, text: str = "hello", times: int = 1) -> dict[str, str]:
    """Say a text again."""
    ctx.log.info("saying it")
    ctx.progress(50, "half way")
    return {"text": text * times}


@handler()
def wait_for(ctx: Context, gate: str) -> str:
    """Run until a file appears."""
    ctx.progress(10, "waiting")
    while not Path(gate).exists():
        ctx.check()
        time.sleep(0.005)
    return "opened"


@handler(retries=0)
def fail(ctx: Context) -> None:
    """Never work."""
    raise Fail("it is broken", code="broken")


@handler(retries=1)
def fail_for_now(ctx: Context) -> None:
    """Ask to be tried again in an hour."""
    raise Retry(3600, "not now")


@handler(accepts=[".txt"])
def measure(ctx: Context) -> dict[str, int]:
    """Count the bytes of text files."""
    ctx.output("sizes ü.txt").write_text("".join(f"{path.name}\\n" for path in ctx.inputs))
    ctx.output("page.html").write_text("<script>alert(1)</script>")
    return {"bytes": sum(path.stat().st_size for path in ctx.inputs)}
'''


@dataclass(frozen=True)
class Served:
    """A running runner: `tcp` and `socket` are clients of its two entrances."""

    service: Service
    tcp: httpx2.Client
    socket: httpx2.Client
    data: Path
    port: int


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A runner on an empty directory, with a few handlers."""
    with serve(tmp_path) as served:
        yield served


@pytest.fixture(scope="session")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A runner for requests that must not change anything, so that all of them can share it."""
    with serve(tmp_path_factory.mktemp("idle")) as served:
        yield served


def routes_of(served: Served) -> list[Route]:
    """Every route of the API."""
    routes = Site(served.service, served.service.config).routes
    return [route for route in routes if isinstance(route, Route)]


@contextmanager
def serve(tmp_path: Path, **settings: Any) -> Iterator[Served]:
    """A runner in a folder; in the names of `settings`, `__` stands for a dot."""
    (tmp_path / "handlers").mkdir(exist_ok=True)
    (tmp_path / "handlers" / "samples.py").write_text(HANDLERS)
    data = tmp_path / "data"
    config = Config.load(
        None,
        {
            "data_dir": str(data),
            "handlers_dir": str(tmp_path / "handlers"),
            "storage.min_free_bytes": 0,
            "storage.ballast_bytes": 0,
            "drain.grace_period": 0.2,
            **{name.replace("__", "."): value for name, value in settings.items()},
        },
        environ={},
    )
    service = Service(config)
    service.start()
    server = Server(create_app(service, config), service.events)
    with listen_on_port("127.0.0.1", 0) as listener, listening(data / "runner.sock", listener) as sockets:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=(sockets,))
        thread.start()
        with (
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as tcp,
            httpx2.Client(
                base_url="http://runner", timeout=20, transport=httpx2.HTTPTransport(uds=str(data / "runner.sock"))
            ) as socket,
        ):
            yield Served(service, tcp, socket, data, port)
        server.should_exit = True
        thread.join()
    service.close()


@contextmanager
def serve_again(
    served: Served,
    patience: Patience = Patience(),  # noqa: B008 - it is frozen
    event_loop: EventLoop = "asyncio",
) -> Iterator[int]:
    """Another app over the same service, which remembers nothing of its callers; yields its port."""
    service = served.service
    server = Server(create_app(service, service.config), service.events, patience=patience, event_loop=event_loop)
    with listen_on_port("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
