"""What an attempt keeps for the next one."""

from pathlib import Path

import pytest

from runner.task import Status
from tests.rig import Rig, opened

HANDLERS = '''
"""What the tests run."""

from runner import Context, Fail, Retry, handler
from tests.rig import gate_of


@handler(retries=5, backoff={"base": 0, "jitter": 0})
def pile(ctx: Context, height: int, gate: str = "") -> list[str]:
    """Add a stone in each attempt, until they are as many as that; a gate is waited at before."""
    if gate and ctx.task.attempt == 1:
        gate_of(gate).enter()
        (ctx.kept / "0").touch()
        while not gate_of(gate).is_open(0.005):
            ctx.check()
    (ctx.kept / str(ctx.task.attempt)).touch()
    stones = sorted(path.name for path in ctx.kept.iterdir())
    if len(stones) < height:
        raise Retry(0, "not high enough", code="too_low")
    ctx.output("pile.txt").write_text(" ".join(stones))
    return stones


@handler(retries=0)
def give_up(ctx: Context) -> None:
    """Keep something, and fail for good."""
    (ctx.kept / "stone").touch()
    raise Retry(0, "not high enough", code="too_low")
'''


def _kept(rig: Rig) -> list[str]:
    return [path.name for path in (rig.data / "tmp").glob("*.kept")]


def test_a_retry_finds_what_the_attempt_before_it_kept(tmp_path: Path) -> None:
    """And when the task has completed nothing of it is left."""
    with opened(tmp_path, HANDLERS) as rig:
        task = rig.until(rig.submit("pile", height=3))
        rig.settle()

        assert (task.status, task.result) == (Status.COMPLETED, ["1", "2", "3"])
        assert _kept(rig) == []


def test_what_was_kept_outlives_the_runner(tmp_path: Path) -> None:
    """An attempt that was interrupted is not lost with all that it had done."""
    with opened(tmp_path, HANDLERS) as rig:
        gate = rig.gate()
        task = rig.submit("pile", height=1, gate=gate)
        rig.when(task, lambda now: now.status is Status.PROCESSING)
        while not _kept(rig):
            rig.settle()
        rig.close(grace_seconds=0)
        rig.open()

        assert "0" in rig.until(task).result


def test_a_failed_task_keeps_it_until_it_is_removed(tmp_path: Path) -> None:
    """Somebody may still ask for one more attempt; and the code of the last one is the handler's own."""
    with opened(tmp_path, HANDLERS) as rig:
        task = rig.until(rig.submit("give_up"))
        assert task.error is not None
        assert task.error.code == "too_low"
        assert _kept(rig) == [f"{task.id}.kept"]

        rig.it.delete(task.id)
        rig.settle()
        rig.restart()

        assert _kept(rig) == []


@pytest.mark.parametrize("name", ["gone.kept", "0.kept"])
def test_what_no_task_will_ask_for_goes_at_the_start(tmp_path: Path, name: str) -> None:
    """A runner that was killed between the end of a task and its tidying leaves nothing for ever."""
    with opened(tmp_path, HANDLERS) as rig:
        rig.close()
        (rig.data / "tmp" / name).mkdir()
        rig.open()

        assert _kept(rig) == []
