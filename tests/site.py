"""A small real web server for tests of what calls one: each path does what a function says."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

LIMIT_SECONDS = 20.0
"""How long a test waits for what must happen."""


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What is sent back. `drip`: the body comes byte by byte, and waits for `Site.released` after each."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    drip: bool = False


Behaviour = Callable[[Asked], Answer]


class Site:
    """A server on an address of this machine: what was asked of it, and how it answers."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, certificate: Path | None = None) -> None:
        self.asked: list[Asked] = []
        self.routes: dict[str, Behaviour] = {}
        self.released = threading.Event()
        self._heard = threading.Condition()
        self._server = ThreadingHTTPServer((address, port), type("Handler", (_Handler,), {"site": self}))
        self.address, self.port = address, self._server.server_address[1]
        self.scheme = "http"
        if certificate:
            self.scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def url(self, path: str = "/", host: str | None = None) -> str:
        """The URL of a path, by the server's address or by another name for it."""
        return f"{self.scheme}://{host or self.address}:{self.port}{path}"

    def on(self, path: str, answer: Answer | Behaviour) -> None:
        """From now on the path is answered so; others with 404."""
        self.routes[path] = (lambda _: answer) if isinstance(answer, Answer) else answer

    def hear(self, asked: Asked) -> Answer:
        """Note the request, and find the answer."""
        with self._heard:
            self.asked.append(asked)
            self._heard.notify_all()
        behaviour = self.routes.get(asked.path)
        return behaviour(asked) if behaviour else Answer(404)

    def wait_for(self, count: int) -> list[Asked]:
        """All requests so far, once there are `count` of them."""
        with self._heard:
            assert self._heard.wait_for(lambda: len(self.asked) >= count, LIMIT_SECONDS), self.asked
            return list(self.asked)

    @contextmanager
    def serving(self) -> Iterator[Site]:
        """Answers until the `with` ends."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def make_certificate(folder: Path, name: str) -> Path:
    """A certificate for a server of that name, and its key, in one file."""
    path, key = folder / "both.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-days", "2"]
    try:
        subprocess.run([*command, *names, "-keyout", key, "-out", path], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl makes the certificate, and is not installed")
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: ClassVar[Site]

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.site.hear(Asked(self.command, self.path, headers, body))
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | dict(answer.headers)).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self._write(answer)

    def _write(self, answer: Answer) -> None:
        if not answer.drip:
            self.wfile.write(answer.body)
            return
        for place in range(len(answer.body)):
            self.wfile.write(answer.body[place : place + 1])
            self.site.released.wait(0.05)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def handle(self) -> None:
        with suppress(OSError):  # whoever called has hung up
            super().handle()
