"""`kill -9`, again and again: the same directory goes on through many lives."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
from pathlib import Path

from tests.crash.judge import Told, Verdict, judge
from tests.crash.victim import Sabotage, live_and_die, prepare

LIVES_A_DIRECTORY = 50
LONGEST_LIFE_SECONDS = 0.02
OPEN_SECONDS = 10.0


def run_kills(root: Path, kills: int, seed: int = 0, sabotage: Sabotage = Sabotage.NONE) -> Verdict:
    """Kills a runner so many times, 0 to 20 ms after it has opened its directory or while it does."""
    verdict, chance = Verdict(), random.Random(seed)
    prepare(root)
    while verdict.deaths < kills:
        lives = min(LIVES_A_DIRECTORY, kills - verdict.deaths)
        directory = root / f"lives-{verdict.deaths}"
        _live_through(root, directory, lives, chance, sabotage)
        verdict.deaths += lives
        judge(root, directory / "data", Told.read(directory / "oracle"), "process", verdict)
        shutil.rmtree(directory)
    return verdict


def _live_through(root: Path, directory: Path, lives: int, chance: random.Random, sabotage: Sabotage) -> None:
    directory.mkdir()
    oracle = directory / "oracle"
    for _ in range(lives):
        child = os.fork()
        if child == 0:
            _be_a_victim(root, directory, oracle, sabotage)
        if chance.random() < 0.8:  # else it dies while it recovers
            _await_opening(oracle, child)
        time.sleep(chance.random() * LONGEST_LIFE_SECONDS)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _be_a_victim(root: Path, directory: Path, oracle: Path, sabotage: Sabotage) -> None:
    try:
        live_and_die(root, directory / "data", oracle, "process", sabotage)
    except BaseException:  # noqa: BLE001 - a forked child must never return into its parent's code
        traceback.print_exc()
    finally:
        os._exit(70)


def _await_opening(oracle: Path, child: int) -> None:
    """Until the child says that it has opened its directory."""
    before = oracle.stat().st_size if oracle.exists() else 0
    until = time.monotonic() + OPEN_SECONDS
    while not (oracle.exists() and oracle.stat().st_size > before):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended or time.monotonic() > until:
            raise AssertionError(f"the victim did not open its directory: status {status}")
        time.sleep(0.0005)
