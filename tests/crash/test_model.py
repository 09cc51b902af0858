"""The comparison with a dictionary, for longer than in `tests/test_model.py`."""

from pathlib import Path

import pytest

from tests.crash.alone import run_alone

pytestmark = pytest.mark.timeout(0)  # the machine may be busy with something else


def test_the_service_is_as_good_as_a_dictionary_for_longer(tmp_path: Path, soak: int) -> None:
    """With `--soak` only: otherwise the test beside the others does it."""
    if soak == 1:
        pytest.skip("tests/test_model.py does it; here it takes minutes, with --soak")
    run_alone(tmp_path, "model", "--examples", 50 * soak, "--steps", 50)


def test_the_suite_notices_that_a_cancellation_is_forgotten(tmp_path: Path) -> None:
    """The dictionary does not forget it."""
    run_alone(tmp_path, "model", "--examples", 50, "--steps", 20, "--sabotage", "cancel_forgotten")
