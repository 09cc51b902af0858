"""What a handler holds while it runs."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from runner.context import Cancelled, Context, Retry, Snooze
from runner.task import FileState, Progress, Status, Task


@dataclass
class Attempt:
    """An attempt, and who hears what its context says."""

    folder: Path
    inputs: tuple[Path, ...] = ()
    config: Mapping[str, Any] = field(default_factory=lambda: {"key": "value"})
    said: list[Any] = field(default_factory=list)

    @property
    def task(self) -> Task:
        now = datetime.now(UTC)
        return Task(id="1", type="work", user_id="local", status=Status.PROCESSING, created_at=now, updated_at=now)

    @property
    def output_dir(self) -> Path:
        return self.folder / "deep" / "outputs"

    @property
    def scratch_dir(self) -> Path:
        return self.folder / "deep" / "scratch"

    @property
    def kept_dir(self) -> Path:
        return self.folder / "deep" / "kept"

    def progressed(self, work: Any, progress: Progress, /) -> None:
        self.said.append(progress)

    def logged(self, work: Any, level: str, message: str, /) -> None:
        self.said.append((level, message))

    def filed(self, work: Any, files: tuple[FileState, ...], /) -> None:
        self.said.append(files)

    def submitted(self, work: Any, type: str, payload: dict[str, Any], inputs: tuple[Path, ...], /) -> str:
        self.said.append((type, payload, inputs))
        return "child"


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """An attempt whose folders do not exist yet."""
    return Attempt(tmp_path)


@pytest.fixture
def ctx(attempt: Attempt) -> Context:
    """Its context."""
    return Context(attempt, attempt)


def test_a_context_shows_its_attempt(ctx: Context) -> None:
    """The task, its files and the handler's configuration."""
    assert (ctx.task.id, ctx.inputs, ctx.config["key"]) == ("1", (), "value")


def test_nothing_is_made_on_the_disk_before_it_is_asked_for(ctx: Context, tmp_path: Path) -> None:
    """A handler that writes nothing costs no folder."""
    ctx.close()
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_a_file_in_the_private_folder(ctx: Context, attempt: Attempt) -> None:
    """The folder exists when the path is handed out, and nobody else may look into it."""
    assert ctx.output("a.txt") == attempt.output_dir / "a.txt"
    assert attempt.output_dir.stat().st_mode & 0o777 == 0o700
    assert ctx.output("视频　名.mp4").parent == attempt.output_dir


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "a\0b", "a\nb", "a\x9fb", "x" * 256, "ü" * 128],
)
def test_an_output_cannot_be_anywhere_else(ctx: Context, tmp_path: Path, name: str) -> None:
    """A name that came from outside gets no further than this."""
    with pytest.raises(ValueError, match="an output"):
        ctx.output(name)
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_odd_input_can_be_used_for_an_output(ctx: Context) -> None:
    """The bytes that are no text are replaced, as the name will be part of JSON."""
    assert ctx.output("caf\udce9.png").name == "caf\ufffd.png"


def test_the_scratch_folder_is_private_and_removed_by_closing(ctx: Context) -> None:
    """With all that is in it."""
    (ctx.scratch / "x").touch()
    assert ctx.scratch.stat().st_mode & 0o777 == 0o700
    ctx.close()
    assert not ctx.scratch.exists()


@pytest.mark.parametrize(
    ("said", "percentage"), [(0, 0), (12.5, 12.5), (100, 100), (100.0001, 100), (-3, 0), (math.nan, 0), (math.inf, 100)]
)
def test_progress_is_a_number_from_0_to_100(ctx: Context, attempt: Attempt, said: float, percentage: float) -> None:
    """What a division has made of it is put right; a handler does not fail because of its progress bar."""
    before = datetime.now(UTC)
    ctx.progress(said, "reading", stage="one")
    (progress,) = attempt.said
    assert (progress.percentage, progress.message, progress.stage) == (percentage, "reading", "one")
    assert before <= progress.updated_at <= datetime.now(UTC)
    assert Progress(**asdict(progress)) == progress


def test_the_log_takes_arguments_as_logging_does(ctx: Context, attempt: Attempt) -> None:
    """A message without arguments may hold per cent signs."""
    ctx.log.debug("a %s %d", "b", 3)
    ctx.log.info("100 %")
    ctx.log.warning(ValueError("x"))
    ctx.log.error({"a": 1})
    assert attempt.said == [("debug", "a b 3"), ("info", "100 %"), ("warning", "x"), ("error", "{'a': 1}")]


def test_items_of_work_and_children_are_handed_on(ctx: Context, attempt: Attempt) -> None:
    """Paths may be given as text."""
    ctx.files([FileState(path="a", status="done")])
    assert ctx.submit("next", {"n": 1}, ["a.txt"]) == "child"  # type: ignore[list-item]
    assert ctx.submit("next") == "child"
    assert attempt.said == [
        (FileState(path="a", status="done"),),
        ("next", {"n": 1}, (Path("a.txt"),)),
        ("next", {}, ()),
    ]


def test_a_stop_is_seen_and_its_first_reason_stays(ctx: Context) -> None:
    """`check` raises from then on."""
    ctx.check()
    assert not ctx.cancelled
    for reason in ("timed_out", "cancelled"):
        ctx.stop(reason)
    with pytest.raises(Cancelled, match="timed_out"):
        ctx.check()


def test_a_stopped_attempt_is_cancelled(ctx: Context) -> None:
    """For handlers that look and then leave in their own way."""
    ctx.stop("drained")
    assert ctx.cancelled


def test_waits_may_be_written_as_people_do() -> None:
    """The same texts as in the configuration."""
    assert (Retry(after="2m").after, Retry().after, Retry(1.5).after, Snooze("1h").seconds) == (120, None, 1.5, 3600)


@pytest.mark.parametrize("wait", [-1, math.nan, math.inf, "soon"])
def test_a_wait_that_is_none_is_refused_where_it_is_written(wait: float | str) -> None:
    """In the handler, whose traceback shows the line."""
    with pytest.raises(ValueError, match="must be"):
        Retry(after=wait)
    with pytest.raises(ValueError, match="must be"):
        Snooze(wait)


def test_everything_for_handlers_is_imported_from_the_package() -> None:
    """And nothing else is there by accident."""
    import runner

    for name in runner.__all__:
        assert getattr(runner, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        runner.nothing  # noqa: B018
