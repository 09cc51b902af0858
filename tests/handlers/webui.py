"""A small server that speaks the protocol of Stable Diffusion WebUI, and really draws: one colour for each seed.

As a program, `python -m tests.handlers.webui PORT SECONDS`, it takes so long for each image.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

WAIT_SECONDS = 20.0


class WebUIServer(ThreadingHTTPServer):
    """What the tests set, and what they look at. `hold` makes txt2img wait, at half of it, until it is released or
    interrupted."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Conversation)
        self.asked: list[tuple[str, Any]] = []
        self.changed = threading.Condition()
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        """Answers to give instead, by path, one after the other."""
        self.format = "PNG"
        self.grid = False
        self.broken = False
        tags = {"general": 0.9, "explicit": 0.05, "hat": 0.4, "1girl": 0.98, "long_hair": 0.8, "blurry": 0.1}
        self.caption: Any = {"caption": tags}
        self.released = threading.Event()
        self.released.set()
        self.interrupted = threading.Event()
        self.seconds_per_image = 0.0
        self.drawn = 0
        self.total = 1

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def hold(self) -> None:
        """From now on nothing is drawn before `released` is set."""
        self.released.clear()

    def requests(self, path: str) -> list[Any]:
        """The documents that came to that path."""
        with self.changed:
            return [document for where, document in self.asked if where == path]

    def await_request(self, path: str, count: int = 1) -> None:
        """So many requests have come to that path."""
        with self.changed:
            came = self.changed.wait_for(
                lambda: sum(where == path for where, _ in self.asked) >= count, timeout=WAIT_SECONDS
            )
        assert came, f"nothing came to {path}"

    def note(self, path: str, document: Any) -> tuple[int, Any] | None:
        """Writes the request down; the answer that was set for it, if any."""
        with self.changed:
            self.asked.append((path, document))
            self.changed.notify_all()
            waiting = self.answers.get(path)
            return waiting.pop(0) if waiting else None

    def draw(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to txt2img."""
        self.interrupted.clear()
        self.total, self.drawn = request["batch_size"] * request["n_iter"], 0
        first = request["seed"] if request["seed"] >= 0 else 1000
        seeds = [first + place for place in range(self.total)]
        images = []
        for seed in seeds:
            if self.interrupted.wait(self.seconds_per_image):
                break
            images.append(paint((request["width"], request["height"]), seed, self.format))
            self.drawn += 1
        while not self.released.wait(0.01) and not self.interrupted.is_set():
            pass
        grid = [paint((64, 64), 0, "PNG")] if self.grid else []
        info = json.dumps({"all_seeds": seeds, "index_of_first_image": len(grid)})
        texts = ["bm90IGFuIGltYWdl" if self.broken else image for image in grid + images]
        return {"images": texts, "parameters": request, "info": info}

    def tell_progress(self) -> dict[str, Any]:
        """The answer to progress."""
        done = self.drawn / self.total if self.released.is_set() else 0.5
        state = {"sampling_step": int(20 * done), "sampling_steps": 20, "job_no": 0, "job_count": 1}
        return {"progress": done, "eta_relative": 3.2, "state": state, "current_image": None, "textinfo": None}


def paint(size: tuple[int, int], seed: int, format: str) -> str:
    """An image of the seed's colour, in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (seed % 256, seed // 256 % 256, 128)).save(buffer, format)
    text = base64.b64encode(buffer.getvalue()).decode()
    return text if format == "PNG" else f"data:image/{format.lower()};base64,{text}"


class _Conversation(BaseHTTPRequestHandler):
    server: WebUIServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(None)

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _reply(self, document: Any) -> None:
        path = self.path.partition("?")[0]
        status, answer = self.server.note(path, document) or self._answer(path, document)
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client has gone, as it does when it is cancelled
            self.close_connection = True

    def _answer(self, path: str, document: Any) -> tuple[int, Any]:
        match path:
            case "/sdapi/v1/options":
                return 200, {"sd_model_checkpoint": "painter.safetensors [0123abcd]"}
            case "/sdapi/v1/txt2img":
                return 200, self.server.draw(document)
            case "/sdapi/v1/progress":
                return 200, self.server.tell_progress()
            case "/sdapi/v1/interrupt":
                self.server.interrupted.set()
                return 200, {}
            case "/tagger/v1/interrogate" | "/sdapi/v1/interrogate":
                self.server.released.wait(WAIT_SECONDS)
                return 200, self.server.caption
        return 404, {"detail": "Not Found"}

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serving(port: int = 0) -> Iterator[WebUIServer]:
    """A server, in threads of its own."""
    with WebUIServer(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with WebUIServer(int(sys.argv[1])) as program:
        program.seconds_per_image = float(sys.argv[2])
        program.serve_forever()
