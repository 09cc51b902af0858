"""The benchmarks measure what they say, shown with counts that are too small to say anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import workspace
from bench.__main__ import main
from bench.child import OWN, figures_of
from bench.peers import command as peers_command
from bench.peers.installation import HUEY
from bench.report import percentile
from bench.workspace import RUNS

FAKE_PEER = """\
print('{"tasks_per_second": 1, "submitted_per_second": 2, "start_p50_ms": 3, "start_p99_ms": 4}')
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def bench(folder: Path, command: str) -> dict[str, Any]:
    """What `python -m bench COMMAND` prints last."""
    done = CliRunner().invoke(main, [*command.split(), "--dir", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("throughput --tasks 20", {"tasks_per_second", "rss_mb"}),
        ("throughput --tasks 20 --batch 1 --durability process --finished 40", {"tasks_per_second", "rss_mb"}),
        ("latency --samples 3", {"start_ms.p50", "start_ms.p99", "ack_ms"}),
        ("inbox-latency --samples 3", {"start_ms.p50", "start_ms.p99", "written_start_ms.p50"}),
        ("inbox-storm --files 20", {"tasks_per_second", "delivered_per_second"}),
        (
            "restart --finished 20 --pending 10 --unsettled 10 --rounds 1",
            {"ready_seconds.clean", "ready_seconds.killed"},
        ),
        ("list --finished 70 --samples 2", {"list_ms"}),
        ("memory --pending 20", {"rss_mb", "rss_mb_per_100000_pending"}),
        (
            "http --requests 40 --connections 4 --file-mb 1 --clients 10 --rounds 2",
            {"submit.ratio", "status.ratio", "upload.ratio", "download.ratio", "sse.reach_ms", "sse.kb_per_client"},
        ),
        ("scale --finished 10 --tasks 10", {"tasks_per_second.0", "tasks_per_second.10", "ratio.10"}),
        ("table --part 100000 --only throughput", {"part"}),
        ("repeat --rounds 1 throughput --tasks 10", {"medians.tasks_per_second"}),
    ],
)
def test_each_benchmark_ends_with_one_line_of_json(tmp_path: Path, command: str, keys: set[str]) -> None:
    """Scripts read the last line, by keys that do not change; afterwards nothing is left."""
    document = bench(tmp_path, command)
    assert document["benchmark"] == command.split(maxsplit=1)[0]
    assert keys <= figures_of(document).keys()
    assert list(tmp_path.iterdir()) == []


def test_a_filled_store_is_measured_in_again(tmp_path: Path) -> None:
    """To fill a million takes minutes: it is done once, and what a measurement leaves disturbs no other one."""
    past = f"--finished 30 --past {tmp_path / 'past'}"
    first = bench(tmp_path, f"restart --pending 10 --unsettled 10 --rounds 1 {past}")
    second = bench(tmp_path, f"throughput --tasks 20 {past}")
    assert first["fill_seconds"] > 0
    assert second["fill_seconds"] == 0
    assert len(list((tmp_path / "past" / "30" / "tasks").iterdir())) == 30 + 10 + 10 + 20


def test_two_checkouts_are_told_apart_by_ratios(tmp_path: Path) -> None:
    """A checkout measured beside itself: every figure is there, and the other one's `runner` is used."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "runner").symlink_to(OWN / "runner")
    (other / "handlers").symlink_to(OWN / "handlers")
    (other / "config.yaml").symlink_to(OWN / "config.yaml")
    document = bench(tmp_path, f"pair --rounds 1 --with {other} throughput --tasks 10")
    assert document["ratios"]["tasks_per_second"] == pytest.approx(
        document["here"]["tasks_per_second"] / document["there"]["tasks_per_second"], abs=0.01
    )


def test_a_folder_without_a_runner_is_no_checkout(tmp_path: Path) -> None:
    """Or the installed runner would be measured in its name."""
    done = CliRunner().invoke(main, ["pair", "--with", str(tmp_path), "throughput"])
    assert done.exit_code == 2
    assert "has no package `runner`" in done.output


def test_a_peer_is_measured_beside_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has both, and our rate by the peer's. The peer here is a script: a real one needs an installation."""
    script, environment = tmp_path / "peer.py", tmp_path / "cache" / "huey"
    script.write_text(FAKE_PEER)
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    (environment / "installed.txt").write_text("\n".join(HUEY))
    monkeypatch.setattr(peers_command, "HUEY_PEER", script)
    options = f"--tasks 10 --rounds 1 --peer huey-redis-always --cache {tmp_path / 'cache'}"
    document = bench(tmp_path, f"peers {options}")
    assert document["ratio"]["huey-redis-always"] == document["tasks_per_second"]["file-runner full"]


def test_no_figure_is_printed_of_tasks_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a runner that is fast because it does nothing right is found out."""
    broken = tmp_path / "handlers.py"
    text = "from runner import Fail, handler\n\n@handler()\ndef noop(ctx, x: int):\n    raise Fail('broken')\n"
    broken.write_text(text)
    monkeypatch.setattr(workspace, "HANDLERS", broken)
    done = CliRunner().invoke(main, ["throughput", "--tasks", "10", "--dir", str(tmp_path)])
    assert done.exit_code == 1
    assert "of 10 tasks 0 completed" in done.output
    assert "tasks_per_second" not in done.stdout


def test_a_kept_folder_can_be_looked_into(tmp_path: Path) -> None:
    """`--keep` leaves the data directory as the measurement left it."""
    bench(tmp_path, "throughput --tasks 10 --keep")
    assert len(list(tmp_path.glob(f"{RUNS}/throughput-*/data/tasks/*.json"))) == 10


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """Nearest rank: of 100 values the 99th is the second largest, and of few the largest."""
    assert [percentile(range(1, 101), percent) for percent in (50, 99)] == [50, 99]
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
