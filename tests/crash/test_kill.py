"""What survives `kill -9`."""

from pathlib import Path

import pytest

from tests.crash.kill import run_kills
from tests.crash.victim import Sabotage


@pytest.mark.timeout(600)
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, soak: int) -> None:
    """No accepted task is lost, none completes twice, no file is torn, however often the runner is killed."""
    verdict = run_kills(tmp_path, kills=150 * soak)
    assert verdict.acked > 0
    assert verdict.violations == 0, verdict


@pytest.mark.timeout(600)
def test_the_suite_notices_what_is_acknowledged_too_early(tmp_path: Path) -> None:
    """Before it is written: a few deaths are enough to lose some of it."""
    for seed in range(10):
        if run_kills(tmp_path / str(seed), kills=10, seed=seed, sabotage=Sabotage.WRITTEN_LATE).violations:
            return
    pytest.fail("acknowledging too early went unnoticed in 100 deaths")
