"""What survives of dropped files."""

from pathlib import Path

import pytest

from tests.crash.alone import run_alone
from tests.crash.drops import Sabotage

pytestmark = pytest.mark.timeout(600)


def test_each_dropped_file_is_one_task_however_often_the_runner_dies(tmp_path: Path, soak: int) -> None:
    """Moved, kept, known by content, or replaced by a newer one: none is missed, none is done twice."""
    run_alone(tmp_path, "drops", "--kills", 20 * soak)


def test_each_of_many_files_is_one_task_when_the_runner_dies_with_its_porters(tmp_path: Path, soak: int) -> None:
    """What they had done when they were killed with it, and what they had not, is all found again."""
    run_alone(tmp_path, "drops", "--kills", 4 * soak, "--files", 100)


def test_the_suite_notices_a_recovery_that_takes_no_file(tmp_path: Path) -> None:
    """Recorded, and then not renamed."""
    run_alone(tmp_path, "drops", "--kills", 60, "--sabotage", Sabotage.NOT_TAKEN_AGAIN)
