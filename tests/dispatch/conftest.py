"""A runner in this process, with gates and a clock."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Rig, opened


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Makes running rigs; keywords are keys of the configuration, with two underscores for a dot."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(opened(tmp_path, **settings))


@pytest.fixture
def rig(make_rig: Callable[..., Any]) -> Any:
    """A running rig with the default configuration."""
    return make_rig()
