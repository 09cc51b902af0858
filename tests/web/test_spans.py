"""Traces: a span for each request and each attempt, into a collector in memory and over the wire."""

from __future__ import annotations

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest

from runner.config import Config, TracesConfig
from runner.errors import ConfigError
from runner.service import Role, Service
from runner.traces import Traces, open_traces
from tests.web.conftest import Served, serve, serve_again
from tests.web.test_tasks import TASKS, finished

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def exporter(served: Served) -> InMemorySpanExporter:
    """What collects the spans of a runner."""
    exporter = InMemorySpanExporter()
    served.service.traces = Traces(SimpleSpanProcessor(exporter), TracesConfig(endpoint="memory"))
    return exporter


def collected(exporter: InMemorySpanExporter, number: int) -> dict[str, ReadableSpan]:
    """The spans by their names, once so many are there."""
    until = time.monotonic() + 20
    while len(exporter.get_finished_spans()) < number and time.monotonic() < until:
        threading.Event().wait(0.01)
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_and_an_attempt_are_a_span_each(served: Served, exporter: InMemorySpanExporter) -> None:
    """In the caller's trace, with what one searches by; a path is told as its route."""
    with serve_again(served) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        body = {"type": "fail", "metadata": {"traceparent": CALLER}}
        task = client.post(TASKS, json=body, headers={"traceparent": CALLER}).json()
        finished(served, task["id"])
        client.get(f"{TASKS}/{task['id']}")
        spans = collected(exporter, 3)
    assert set(spans) == {"POST /api/v1/tasks", "attempt fail", "GET /api/v1/tasks/{id}"}
    request, attempt = spans["POST /api/v1/tasks"], spans["attempt fail"]
    assert (request.attributes or {})["http.response.status_code"] == 201
    assert (request.kind, request.status.status_code) == (SpanKind.SERVER, StatusCode.UNSET)
    assert {f"{span.context.trace_id:032x}" for span in (request, attempt) if span.context} == {TRACE}
    assert {"runner.task.id": task["id"], "runner.attempt.outcome": "failed"}.items() <= (
        attempt.attributes or {}
    ).items()
    assert (attempt.status.status_code, attempt.status.description) == (StatusCode.ERROR, "it is broken")
    assert (attempt.end_time or 0) >= (attempt.start_time or 0) > 0


def test_nonsense_makes_a_trace_of_its_own_and_no_names(served: Served, exporter: InMemorySpanExporter) -> None:
    """An invented method, a path that is none, a parent that is none."""
    with serve_again(served) as port:
        for path in ("/nothing", "/else"):
            httpx2.request("BREW", f"http://127.0.0.1:{port}{path}", headers={"traceparent": "00-x"})
        spans = collected(exporter, 2)
    assert set(spans) == {"_OTHER"}


def test_nothing_is_traced_unless_it_is_asked_for(idle: Served) -> None:
    """The libraries are not even looked for."""
    assert idle.service.traces is None
    assert open_traces(TracesConfig()) is None


def test_without_the_extra_the_start_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And how to get it."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    config = Config.load(
        None, {"data_dir": str(tmp_path / "data"), "traces.endpoint": "http://localhost:1"}, environ={}
    )
    with pytest.raises(ConfigError, match=r"file-runner\[otel\]"):
        Service(config, Role.VISIT)


class Collector(BaseHTTPRequestHandler):
    """Takes what is sent, and keeps it."""

    bodies: list[bytes]

    def do_POST(self) -> None:
        """OTLP over HTTP."""
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""


def test_spans_are_sent_at_the_latest_when_the_runner_stops(tmp_path: Path) -> None:
    """To the address that is configured, over the wire."""
    bodies: list[bytes] = []
    collector = HTTPServer(("127.0.0.1", 0), type("Kept", (Collector,), {"bodies": bodies}))
    thread = threading.Thread(target=collector.serve_forever, args=(0.05,))
    thread.start()
    address = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    try:
        with serve(tmp_path, traces__endpoint=address) as served:
            assert served.tcp.get("/live").status_code == 200
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    assert b"GET /live" in b"".join(bodies)
