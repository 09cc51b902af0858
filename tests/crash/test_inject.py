"""What survives a disk that fails at any call."""

from pathlib import Path

import pytest

from tests.crash.alone import run_alone
from tests.crash.inject import Sabotage

SAMPLE = 41
"""One call in so many; `--soak 10` leaves out fewer, and all of them are tried by hand."""

pytestmark = pytest.mark.timeout(0)  # the suite has limits of its own, long ones


def test_whatever_call_fails_what_was_acknowledged_is_kept(tmp_path: Path, soak: int) -> None:
    """Killed before or after it, EIO, ENOSPC, EMFILE, a part written: nothing is lost, done twice or left torn."""
    run_alone(tmp_path, "inject", "--every", max(1, SAMPLE // soak))


@pytest.mark.parametrize(
    ("sabotage", "fault", "call", "every"),
    [
        (Sabotage.NOT_WAITED_FOR, "kill_after", "unlink", 1),
        (Sabotage.ERROR_SWALLOWED, "eio_from_there_on", "write", 20),
        (Sabotage.TAIL_LEFT, "short_write_enospc", "write", 3),
    ],
)
def test_the_suite_notices_what_is_broken_on_purpose(
    tmp_path: Path, sabotage: Sabotage, fault: str, call: str, every: int
) -> None:
    """Files that a checkpoint does not wait for, errors that nobody hears of, and a torn end that stays."""
    run_alone(tmp_path, "inject", "--sabotage", sabotage, "--fault", fault, "--call", call, "--every", every)
