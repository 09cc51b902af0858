"""The service against a dictionary, as `tests/test_model.py` has it, with as many examples as one likes.

Hypothesis makes up what is done to both, owners that stop or die included; after each step they must agree.
"""

from __future__ import annotations

import tempfile
import traceback
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from runner import task as transitions
from tests.test_model import Owners


class Sabotage(StrEnum):
    """What is broken on purpose. `CANCEL_FORGOTTEN`: who cancels a task is told so, and it goes on."""

    NONE = "none"
    CANCEL_FORGOTTEN = "cancel_forgotten"


@dataclass
class Counters:
    """What was made up: `examples`, `tasks` in them, and `owners` that took over from one that had died."""

    examples: int = 0
    tasks: int = 0
    owners: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """1 if the two have ever disagreed."""
        return len(self.faults)

    def __str__(self) -> str:
        return f"examples {self.examples}, tasks {self.tasks}, owners {self.owners}, violations {self.violations}"


def run_examples(root: Path, examples: int, steps: int, sabotage: Sabotage = Sabotage.NONE) -> Counters:
    """So many examples of at most so many steps each; the first disagreement ends it."""
    counters = Counters()
    tempfile.tempdir = str(root)
    if sabotage is Sabotage.CANCEL_FORGOTTEN:
        transitions.cancel = _forget
    try:
        run_state_machine_as_test(_counted(counters), settings=_settings(examples, steps, sabotage))
    # Where an error should have been raised and was not, pytest raises what is no `Exception`.
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - hypothesis says how to come to it again
        counters.faults.append("".join(traceback.format_exception(error)))
    return counters


def _forget(task: transitions.Task, now: datetime, *, reason: str = "") -> transitions.Task:
    return task


def _counted(counters: Counters) -> type[Owners]:
    class Counted(Owners):
        def teardown(self) -> None:
            counters.examples += 1
            counters.tasks += len(self.model.tasks)
            counters.owners += self.owners - 1
            super().teardown()

    return Counted


def _settings(examples: int, steps: int, sabotage: Sabotage) -> settings:
    """To find the smallest example takes long, and nobody wants to know that of one that was made on purpose."""
    phases = (Phase.generate, Phase.shrink) if sabotage is Sabotage.NONE else (Phase.generate,)
    unhealthy = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        phases=phases,
        database=None,
        deadline=None,
        suppress_health_check=unhealthy,
    )
