"""The shipped command line on a system whose calls fail."""

from pathlib import Path

import pytest

from tests.crash.alone import run_alone
from tests.crash.strace import obstacle

SAMPLE = 17
"""One point in so many; with `--soak 10` nearly all."""

pytestmark = [
    pytest.mark.skipif(obstacle() is not None, reason=obstacle() or ""),
    pytest.mark.timeout(0),  # the suite has limits of its own, long ones
]


def test_what_the_command_line_says_is_so_whatever_system_call_fails(tmp_path: Path, soak: int) -> None:
    """It ends with an exit code that is documented, and names no task that is not there."""
    run_alone(tmp_path, "strace", "--every", max(1, SAMPLE // soak))


def test_the_suite_notices_an_acknowledgement_without_a_record(tmp_path: Path) -> None:
    """The journal cannot be written, and nobody says so."""
    run_alone(tmp_path, "strace", "--call", "write", "--when", "1+", "--every", 3, "--sabotage", "error_swallowed")
