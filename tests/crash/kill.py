"""`kill -9`, again and again: the same directory goes on through many lives."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from tests.crash.forks import Child
from tests.crash.judge import Told, Verdict, judge
from tests.crash.victim import Sabotage, await_opening, live_and_die, prepare, size_of

LIVES_A_DIRECTORY = 50
LONGEST_LIFE_SECONDS = 0.02


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
    oracle, stderr = directory / "oracle", directory / "stderr"
    for _ in range(lives):
        said = size_of(oracle)
        victim = Child(lambda: live_and_die(root, directory / "data", oracle, "process", sabotage), stderr)
        if chance.random() < 0.8:  # else it dies while it recovers
            await_opening(oracle, said, victim, stderr)
        time.sleep(chance.random() * LONGEST_LIFE_SECONDS)
        victim.kill()
        victim.wait()
