"""What survives a power cut."""

from pathlib import Path

import pytest

from tests.crash.power import obstacle, run_cuts
from tests.crash.victim import Sabotage

pytestmark = [
    pytest.mark.skipif(obstacle() is not None, reason=obstacle() or ""),
    pytest.mark.timeout(600),
]


def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path, soak: int) -> None:
    """Durability `full`: no accepted task and no completion is lost, no file is torn."""
    verdict = run_cuts(tmp_path, cuts=40 * soak)
    assert verdict.acked > 0
    assert verdict.violations == 0, verdict


@pytest.mark.parametrize(
    "sabotage", [Sabotage.JOURNAL_NOT_SYNCED, Sabotage.DROPPED_BEFORE_SYNC, Sabotage.NOT_WAITED_FOR]
)
def test_the_suite_notices_what_is_broken_on_purpose(tmp_path: Path, sabotage: Sabotage) -> None:
    """Each of the three orders that the store keeps is needed: without it tasks are lost within a few cuts."""
    for seed in range(12):
        if run_cuts(tmp_path / str(seed), cuts=10, seed=seed, sabotage=sabotage).violations:
            return
    pytest.fail(f"{sabotage} went unnoticed in 120 power cuts")
