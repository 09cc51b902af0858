"""`/metrics` as Prometheus reads it."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.web.conftest import Served, serve
from tests.web.test_tasks import finished, submit


def scraped(served: Served) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels."""
    answer = served.tcp.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_happened_can_be_read(served: Served) -> None:
    """Tasks by type and status, attempts by outcome, commits, flushes, the disk, requests."""
    finished(served, submit(served)["id"])
    finished(served, submit(served, "fail")["id"])
    submit(served, delay="1h")
    found = scraped(served)
    assert found["runner_tasks", (("queue", "default"), ("status", "completed"), ("type", "echo"))] == 1
    assert found["runner_attempt_seconds_count", (("outcome", "failed"), ("type", "fail"))] == 1
    assert found["runner_queue_waiting", (("queue", "critical"),)] == 0
    assert found["runner_queue_oldest_seconds", (("queue", "default"),)] >= 0
    assert found["runner_sync_seconds_count", ()] >= 1
    assert found["runner_commit_tasks_bucket", (("le", "+Inf"),)] == found["runner_commit_tasks_count", ()] >= 3
    assert found["runner_disk_free_bytes", ()] > found["runner_disk_floor_bytes", ()] == 0
    assert found["runner_inbox_found_by_scan_total", ()] == found["runner_inbox_waiting_files", ()] == 0
    assert found["runner_http_requests_total", (("method", "POST"), ("status", "201"))] == 3
    assert 0 <= found["runner_event_loop_lag_seconds", ()] < 10
    assert found["runner_ready", ()] == 1
    assert found["process_open_fds", ()] > 0


def test_invented_methods_make_no_further_series(idle: Served) -> None:
    """Else anybody could fill Prometheus."""
    for method in ("BREW", "WHEN"):
        idle.tcp.request(method, "/live")
    names = {dict(labels).get("method") for name, labels in scraped(idle) if name == "runner_http_requests_total"}
    assert "other" in names
    assert not names & {"BREW", "WHEN"}


def test_users_are_not_told_of_others(tmp_path: Path) -> None:
    """It says what everybody does."""
    with serve(tmp_path, auth__mode="cookie") as served:
        assert served.tcp.get("/metrics").status_code == 403
        assert served.socket.get("/metrics").status_code == 200
