"""One owner at a time, and never none for long."""

from pathlib import Path

import pytest

from tests.crash.alone import run_alone

pytestmark = pytest.mark.timeout(0)  # the suite has limits of its own, long ones


def test_of_eight_rivals_one_owns_the_directory_at_a_time(tmp_path: Path, soak: int) -> None:
    """However often the owner is killed: nobody else does anything meanwhile, and the next begins within a second."""
    run_alone(tmp_path, "owners", "--reigns", 40 * soak)


def test_the_suite_notices_that_no_lock_is_taken(tmp_path: Path) -> None:
    """Then all eight own it."""
    run_alone(tmp_path, "owners", "--reigns", 6, "--sabotage", "no_lock")
