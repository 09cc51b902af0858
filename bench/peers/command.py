"""The runner beside its peers, in turn, as ratios."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from bench.child import OWN, Checkout, checkouts
from bench.peers.installation import HUEY, default_cache, install
from bench.report import NotMeasured, Report, Row, print_report
from bench.workspace import Place, fresh_folder, place_options

HUEY_PEER: Final = Path(__file__).parent / "huey_peer.py"

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """A peer at one setting, and ours that survives what it survives (a task that waits; huey loses those that run)."""

    backend: str
    survives: str
    durability: str


PEERS: Final = {
    "huey-redis-always": Peer("redis-always", "power cut", "full"),
    "huey-redis-everysec": Peer("redis-everysec", "power cut but for a second", "process"),
    "huey-sqlite-fsync": Peer("sqlite-fsync", "power cut", "full"),
    "huey-sqlite": Peer("sqlite", "kill -9", "process"),
}


@click.command()
@click.option("--tasks", type=click.IntRange(1), default=20_000)
@click.option("--samples", type=click.IntRange(1), default=200, help="For the latency from submission to start.")
@click.option("--rounds", type=click.IntRange(1), default=3)
@click.option("--peer", "names", type=click.Choice(list(PEERS)), multiple=True, help="Which ones; all by default.")
@click.option(
    "--cache", type=click.Path(file_okay=False, path_type=Path), default=default_cache, help="Keeps the environment."
)
@place_options
def peers(place: Place, tasks: int, samples: int, rounds: int, names: tuple[str, ...], cache: Path) -> None:
    """Throughput beside huey's, with the same no-op job: one worker process, 8 threads, all on this machine."""
    python = install(cache.absolute(), "huey", HUEY)
    found: dict[str, list[Document]] = {}
    with checkouts(OWN) as (here,), fresh_folder(place, "peers") as folder:
        for _ in range(rounds):
            for name, measure in _contestants(here, python, folder, names or tuple(PEERS), tasks, samples).items():
                found.setdefault(name, []).append(measure())
    settings = {"tasks": tasks, "samples": samples, "rounds": rounds}
    print_report(_report(found, settings), place)


def _contestants(
    here: Checkout, python: Path, folder: Path, names: Sequence[str], tasks: int, samples: int
) -> dict[str, Callable[[], Document]]:
    """What is measured in one round, in this order."""
    inner = Place(folder, keep=True)

    def measure_own(durability: str) -> Callable[[], Document]:
        arguments = ("throughput", "--tasks", str(tasks), "--batch", "1", "--durability", durability)
        return lambda: here.measure(inner, arguments)

    def measure_peer(peer: Peer) -> Callable[[], Document]:
        return lambda: _measure_peer(python, inner, peer, tasks, samples)

    own = {_own_name(PEERS[name]): measure_own(PEERS[name].durability) for name in names}
    return {**own, **{name: measure_peer(PEERS[name]) for name in names}}


def _measure_peer(python: Path, place: Place, peer: Peer, tasks: int, samples: int) -> Document:
    with fresh_folder(place, peer.backend) as folder:
        command = [str(python), str(HUEY_PEER), peer.backend, str(folder), str(tasks), str(samples)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise NotMeasured(f"{peer.backend} ended with {done.returncode}")
    document: Document = json.loads(done.stdout.splitlines()[-1])
    return document


def _own_name(peer: Peer) -> str:
    return f"file-runner {peer.durability}"


def _report(found: Mapping[str, Sequence[Document]], settings: Mapping[str, Any]) -> Report:
    rates = {name: [document["tasks_per_second"] for document in documents] for name, documents in found.items()}
    ratios = {
        name: statistics.median(ours / theirs for ours, theirs in zip(rates[_own_name(peer)], rates[name], strict=True))
        for name, peer in PEERS.items()
        if name in found
    }
    rows: list[Row] = [("", "tasks/s", "ours by theirs", "submitted/s", "start p50/p99 ms", "queued task survives")]
    rows += [_row(name, documents, ratios.get(name)) for name, documents in found.items()]
    figures = {
        "tasks_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": {name: round(ratio, 2) for name, ratio in ratios.items()},
    }
    return Report("peers", settings, figures, rows)


def _row(name: str, documents: Sequence[Document], ratio: float | None) -> Row:
    rate, submitted = (_median(documents, key) for key in ("tasks_per_second", "submitted_per_second"))
    start = "see latency"
    if "start_p50_ms" in documents[0]:
        start = f"{_median(documents, 'start_p50_ms'):.1f} / {_median(documents, 'start_p99_ms'):.1f}"
    survives = PEERS[name].survives if name in PEERS else {"full": "power cut", "process": "kill -9"}[name.split()[1]]
    return (name, f"{rate:,.0f}", f"{ratio:.2f}" if ratio else "–", f"{submitted:,.0f}", start, survives)


def _median(documents: Sequence[Document], key: str) -> float:
    values: list[float] = [document[key] for document in documents]
    return statistics.median(values)
