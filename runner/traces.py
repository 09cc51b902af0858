"""Traces, by OpenTelemetry: a span for each request, and one for each attempt of a task.

Off unless `traces.endpoint` names where to send them; the libraries are the extra `otel`. Spans are made when they are
over, of what is known by then anyway, so nothing is carried through the runner for them. A caller's `traceparent` (W3C
Trace Context) is the parent: in a request's header, and for attempts in the task's metadata.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from runner.config import TracesConfig
from runner.errors import ConfigError
from runner.store import Transition
from runner.task import Attempt, Outcome, Status, Task

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import StatusCode

TIMEOUT_SECONDS: Final = 3.0
"""For which the end of the process waits, if nobody collects them."""

PARENT: Final = "traceparent"
FAILURES: Final = frozenset({Outcome.FAILED, Outcome.TIMED_OUT, Outcome.LOST, Outcome.INTERRUPTED})


def open_traces(config: TracesConfig) -> Traces | None:
    """What the configuration says; None: no traces. Raises `ConfigError` where the extra is not installed."""
    if config.endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"traces.endpoint needs the extra `otel`, pip install 'file-runner[otel]': {error}"
        ) from error
    exporter = OTLPSpanExporter(config.endpoint, timeout=TIMEOUT_SECONDS)
    return Traces(BatchSpanProcessor(exporter), config)


class Traces:
    """Makes spans, and hands them to a processor. From any thread; nothing waits for whoever collects them."""

    def __init__(self, processor: SpanProcessor, config: TracesConfig) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource({"service.name": config.service})
        sampler = ParentBasedTraceIdRatio(config.ratio)
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("file-runner")
        self._propagator = TraceContextTextMapPropagator()

    def note_request(
        self, name: str, attributes: Mapping[str, str | int], seconds: float, parent: str | None, fault: str | None
    ) -> None:
        """A request that is over now and took so long. `fault`: what went wrong, if that was our fault."""
        from opentelemetry.trace import SpanKind

        ended = time.time_ns()
        span = self._tracer.start_span(
            name, self._context(parent), SpanKind.SERVER, dict(attributes), start_time=ended - int(seconds * 1e9)
        )
        if fault is not None:
            span.set_status(_error(), fault)
        span.end(ended)

    def hear(self, transitions: Sequence[Transition]) -> None:
        """A batch was committed: the attempts that ended in it."""
        for before, task, removed in transitions:
            if before is Status.PROCESSING and task.status is not Status.PROCESSING and not removed:
                self._note_attempt(task, task.attempts[-1])

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()

    def _note_attempt(self, task: Task, attempt: Attempt) -> None:
        if attempt.ended_at is None or attempt.outcome is None:
            return
        attributes: dict[str, str | int] = {
            "runner.task.id": task.id,
            "runner.task.type": task.type,
            "runner.task.queue": task.queue,
            "runner.user.id": task.user_id,
            "runner.attempt.number": attempt.number,
            "runner.attempt.outcome": str(attempt.outcome),
        }
        parent = self._context(task.metadata.get(PARENT))
        began = _nanoseconds(attempt.started_at)
        span = self._tracer.start_span(f"attempt {task.type}", parent, attributes=attributes, start_time=began)
        if attempt.outcome in FAILURES:
            span.set_status(_error(), attempt.error.message if attempt.error else str(attempt.outcome))
        span.end(_nanoseconds(attempt.ended_at))

    def _context(self, parent: str | None) -> Context:
        """The trace that a `traceparent` names; a new one for what is none."""
        from opentelemetry.context import Context

        return self._propagator.extract({PARENT: parent or ""}, Context())


def _error() -> StatusCode:
    from opentelemetry.trace import StatusCode

    return StatusCode.ERROR


def _nanoseconds(instant: datetime) -> int:
    return int(instant.timestamp() * 1e6) * 1000
