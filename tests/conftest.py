"""What every test gets: a clean environment, asyncio for async tests, and `--soak`."""

import os

import pytest
from hypothesis import settings

# A busy machine makes single examples slow; the timeout of the whole test stands.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--soak N`: tests that repeat something do it N times as often."""
    parser.addoption("--soak", type=int, default=1, metavar="N", help="repeat what is random N times as often")


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> int:
    """How many times as often as usual a random test repeats itself; 1 but for `make soak`."""
    times: int = request.config.getoption("--soak")
    return times


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the runner does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have configured a runner of their own."""
    for name in list(os.environ):
        if name.startswith("RUNNER__"):
            monkeypatch.delenv(name)
