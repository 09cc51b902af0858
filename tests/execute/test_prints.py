"""What handlers print that have no process of their own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.execute import Executors
from runner.execute.prints import Echo, overheard
from tests.execute.stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A folder of handlers, and executors that are closed afterwards."""
    executors = Executors()
    yield Stage(tmp_path, executors)
    executors.close(grace_seconds=0)


@pytest.mark.parametrize(
    "source",
    [
        """
        @handler
        def talk(ctx):
            print("one")
            ctx.log.warning("two")
            print("three", end="")
        """,
        """
        import asyncio
        @handler
        async def talk(ctx):
            print("one")
            ctx.log.warning("two")
            await asyncio.to_thread(print, "three", end="")
        """,
    ],
)
def test_what_a_handler_prints_is_in_its_log_and_on_the_terminal(
    stage: Stage, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if it had a process of its own, and nothing is lost for want of an end of line."""
    with overheard(Echo.SHOWN):
        _, recorder = stage.begin(source)
        recorder.wait()
    assert recorder.log == [("info", "one"), ("warning", "two"), ("info", "three")]
    assert capsys.readouterr().out == "one\nthree"


def test_what_others_print_is_in_no_log(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is what a handler prints shown where the output is the answer of a command."""
    with overheard(Echo.NONE):
        _, recorder = stage.begin("@handler\ndef talk(ctx): print('its own')")
        recorder.wait()
        sys.stdout.write("ours\n")
    assert recorder.lines == ["its own"]
    assert capsys.readouterr().out == "ours\n"
