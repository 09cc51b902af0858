"""What survives `kill -9`."""

from pathlib import Path

import pytest

from tests.crash.kill import run_kills


@pytest.mark.timeout(600)
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, soak: int) -> None:
    """No accepted task is lost, none completes twice, no file is torn, however often the runner is killed."""
    verdict = run_kills(tmp_path, kills=150 * soak)
    assert verdict.acked > 0
    assert verdict.violations == 0, verdict
