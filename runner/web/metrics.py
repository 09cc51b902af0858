"""`GET /metrics`: the runner's state and what it has measured, as Prometheus reads it (text format 0.0.4).

Nothing is kept up to date for it: what is asked for is looked up when it is asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from runner.dispatch.delays import utc_now
from runner.meters import Histogram
from runner.service import Service
from runner.store.space import measure
from runner.web.crossing import in_thread
from runner.web.door import require_admin

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LAG_SAMPLE_SECONDS: Final = 0.01

K = TypeVar("K", bound=tuple[str, ...])
"""The values of a metric's labels."""


class RequestCounts:
    """How many requests were answered, by method and status. The event loop's thread."""

    METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()

    def count(self, method: str, status: int) -> None:
        """One more. An invented method is `other`: whoever invents very many makes no further series."""
        self.counts[method if method in self.METHODS else "other", status] += 1


class MetricsEndpoint:
    """The endpoint, and the collector behind it."""

    def __init__(self, service: Service, requests: RequestCounts) -> None:
        self._service = service
        self._requests = requests

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        require_admin(request)
        began = time.perf_counter()
        await asyncio.sleep(LAG_SAMPLE_SECONDS)
        lag = max(0.0, time.perf_counter() - began - LAG_SAMPLE_SECONDS)
        return Response(await in_thread(self._render, lag), media_type=CONTENT_TYPE)

    def _render(self, lag_seconds: float) -> bytes:
        # A twentieth of a second of imports, which only whoever is measured needs.
        from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected([*self._collect(), _gauge("event_loop_lag_seconds", LAG_HELP, lag_seconds)]))
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        return generate_latest(registry)

    def _collect(self) -> Iterator[Metric]:
        yield from self._tasks()
        yield from self._queues()
        yield from self._measured()
        yield from self._inbox()
        yield from self._disk()
        yield from self._web()

    def _tasks(self) -> Iterator[Metric]:
        totals = self._service.totals.read()
        yield _gauges("tasks", "Tasks that are kept, by status.", ("queue", "type", "status"), totals)
        health = self._service.health()
        yield _gauge("ready", "Whether new tasks are accepted and started.", int(health.ready))
        yield _gauge("running", "Attempts that run now.", health.details["running"])
        yield _gauge("files_behind", "Task files that are not up to date yet.", health.details["files_behind"])
        yield _gauge("handlers", "Handlers that are loaded.", health.details["handlers"])
        broken = len(health.details["broken_handlers"])
        yield _gauge("broken_handlers", "Files in the handlers folder that cannot be loaded.", broken)

    def _queues(self) -> Iterator[Metric]:
        waiting = {(row["queue"],): row["pending"] for row in self._service.queue_stats()}
        yield _gauges("queue_waiting", "Tasks that wait for a slot.", ("queue",), waiting)
        now = utc_now().timestamp()
        ages = {(queue,): max(0.0, now - us / 1e6) for queue, us in self._service.store.index.oldest_pending()}
        yield _gauges("queue_oldest_seconds", "Age of the oldest pending task.", ("queue",), ages)

    def _measured(self) -> Iterator[Metric]:
        meters = self._service.meters
        attempts = dict(meters.attempt_seconds)
        yield _histograms("attempt_seconds", "Length of attempts.", ("type", "outcome"), attempts)
        yield _histograms("commit_tasks", "Changes that became durable together.", (), {(): meters.batch_tasks})
        yield _histograms("sync_seconds", "Length of a flush of the journal.", (), {(): meters.sync_seconds})
        lag = {(): meters.inbox_lag_seconds}
        yield _histograms("inbox_lag_seconds", "From the last change of a dropped file to its task.", (), lag)

    def _inbox(self) -> Iterator[Metric]:
        inbox = self._service.inbox
        yield _gauge("inbox_waiting_files", "Files that are to be taken.", sum(map(len, inbox.lanes.all())))
        found = inbox.rounds.found_unannounced
        yield _counters("inbox_found_by_scan", "Files that the watcher had not announced.", (), {(): found})

    def _disk(self) -> Iterator[Metric]:
        room, storage = measure(self._service.store.layout.data), self._service.config.storage
        yield _gauge("disk_free_bytes", "Free bytes where the data is.", room.free_bytes)
        yield _gauge("disk_floor_bytes", "With less nothing new is accepted.", storage.min_free_bytes)
        if room.free_inodes is not None:
            yield _gauge("disk_free_inodes", "Free inodes where the data is.", room.free_inodes)
        yield _gauge("disk_floor_inodes", "With less nothing new is accepted.", storage.min_free_inodes)

    def _web(self) -> Iterator[Metric]:
        yield _gauge("watchers", "Streams of events that are open.", self._service.events.watcher_count)
        counts = {(method, str(status)): count for (method, status), count in dict(self._requests.counts).items()}
        yield _counters("http_requests", "Requests that were answered.", ("method", "status"), counts)


LAG_HELP: Final = "How much too late the event loop wakes, sampled now."


class _Collected:
    """What was collected, as a registry wants to be given it."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _gauge(name: str, text: str, value: float) -> Metric:
    return _gauges(name, text, (), {(): value})


def _gauges(name: str, text: str, labels: tuple[str, ...], values: Mapping[K, float]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(f"runner_{name}", text, labels=labels), values)


def _counters(name: str, text: str, labels: tuple[str, ...], values: Mapping[K, float]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(f"runner_{name}", text, labels=labels), values)


def _histograms(name: str, text: str, labels: tuple[str, ...], values: Mapping[K, Histogram]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(f"runner_{name}", text, labels=labels)
    for key, histogram in values.items():
        bounds = [*map(str, histogram.bounds), "+Inf"]
        family.add_metric(key, list(zip(bounds, itertools.accumulate(histogram.counts), strict=True)), histogram.total)
    return family


def _filled(family: Any, values: Mapping[K, float]) -> Metric:
    for key, value in values.items():
        family.add_metric(key, value)
    filled: Metric = family
    return filled
