"""What becomes of attempts whose owner dies."""

import sys
from pathlib import Path

import pytest

from tests.crash.alone import run_alone
from tests.crash.orphans import Sabotage

FEW = ("thread", "family", "stopped", "poison", "deaf")
"""With `--soak`, and by hand, there are more."""

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs what only Linux offers"),
    pytest.mark.timeout(0),  # the suite has limits of its own, long ones
]


def test_two_attempts_of_a_task_never_overlap(tmp_path: Path, soak: int) -> None:
    """Threads, processes that have forked twice, processes that are stopped, attempts that are out of time; and what
    kills its owner is given up."""
    kinds = [] if soak > 1 else [option for kind in FEW for option in ("--kind", kind)]
    run_alone(tmp_path, "orphans", "--rounds", soak, *kinds)


@pytest.mark.parametrize(
    ("sabotage", "kind"),
    [(Sabotage.NOT_ISOLATED, "family"), (Sabotage.NOT_FENCED, "deaf"), (Sabotage.NOT_COUNTED, "poison")],
)
def test_the_suite_notices_what_is_broken_on_purpose(tmp_path: Path, sabotage: Sabotage, kind: str) -> None:
    """Processes that nobody ends, the result of a lost attempt that is taken, and owners that die for ever."""
    run_alone(tmp_path, "orphans", "--rounds", 1, "--kind", kind, "--sabotage", sabotage)
