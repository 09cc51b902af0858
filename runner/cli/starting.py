"""`init` and `demo`: the first minutes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Final

import click

from runner.cli.connection import Api, Duty, connect
from runner.cli.exits import CommandFailed, Exit
from runner.cli.options import Options, common_options
from runner.cli.output import print_json, print_note, safe

DEMO_HANDLER: Final = "watermark_removal"
DEMO_SECONDS: Final = 4
TAKEN_WITHIN_SECONDS: Final = 20.0


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@common_options
def init(options: Options, directory: Path) -> None:
    """Lay out config.yaml, handlers/ and data/ in a folder. What exists stays as it is."""
    written = [str(path) for path in lay_out(directory)]
    if options.as_json:
        return print_json({"directory": str(directory.absolute()), "written": written})
    for path in written:
        click.echo(safe(path))
    return click.echo(f"next: cd {safe(str(directory))} && runner serve", err=True)


def lay_out(directory: Path) -> Iterator[Path]:
    """Copies the starter set; yields what was written."""
    starter = find_starter()
    handlers = (
        path for path in (starter / "handlers").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    sources = [starter / "config.yaml", *sorted(handlers)]
    for source in sources:
        target = directory / source.relative_to(starter)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            yield target
    data = directory / "data"
    if not data.exists():
        data.mkdir(mode=0o700)
        yield data


def find_starter() -> Path:
    """The folder with the first config.yaml and handlers/: in the wheel, or the checkout itself."""
    package = Path(__file__).parents[1]
    for place in (package / "starter", package.parent):
        if (place / "config.yaml").is_file() and (place / "handlers").is_dir():
            return place
    raise CommandFailed(Exit.NOT_FOUND, "this installation has no starter set; install the wheel again")


@click.command()
@click.option("--keep", is_flag=True, help="Keep the demo's folder with everything in it.")
@common_options
def demo(options: Options, keep: bool) -> int:
    """See it work: a short video is made, dropped and cleaned.

    It gets a data directory of its own, of which only the result is left.
    """
    from runner.cli.following import follow, print_end

    workspace = Path(tempfile.mkdtemp(prefix="runner-demo-"))
    with ExitStack() as stack:
        if not keep:
            stack.callback(_clean, workspace)
        list(lay_out(workspace))
        with _demo_runner(workspace) as api:
            dropped = _drop_video(api.data_dir / "inbox" / DEMO_HANDLER)
            print_note(f"dropped {dropped}")
            task = follow(api, _await_task(api))
        result = _keep_result(workspace, task)
        return print_end(options, {**task, "output_files": result, "drop": None}, workspace)


def _demo_runner(workspace: Path) -> AbstractContextManager[Api]:
    """A runner of its own: its settings are those of the starter set, whatever those around it are."""
    return connect(Options(workspace / "config.yaml", workspace / "data", as_json=False), Duty.SERVE)


def _drop_video(inbox: Path) -> Path:
    """A few seconds of a test picture with a mark in its corner, and a tone, dropped as a person would."""
    from runner.ffmpeg import run

    made, target = inbox.parent.parent / "tmp" / "holiday.mp4", inbox / "holiday.mp4"
    picture = f"testsrc2=size=640x360:rate=25:duration={DEMO_SECONDS},drawbox=x=20:y=20:w=120:h=40:color=white:t=fill"
    tone = f"sine=frequency=440:duration={DEMO_SECONDS}"
    run(
        ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", tone, "-pix_fmt", "yuv420p", made],
        duration_seconds=DEMO_SECONDS,
    )
    inbox.mkdir(parents=True, exist_ok=True)
    (inbox / "holiday.mp4.json").write_text('{"regions": [[10, 10, 150, 70]]}')
    return made.rename(target)


def _await_task(api: Api) -> str:
    """The id of the task that the dropped file becomes, within moments."""
    until = time.monotonic() + TAKEN_WITHIN_SECONDS
    while time.monotonic() < until:
        if tasks := api.get("/tasks", type=DEMO_HANDLER):
            return str(tasks[0]["id"])
        time.sleep(0.02)
    raise CommandFailed(Exit.TASK_FAILED, "the dropped file was not taken")


def _keep_result(workspace: Path, task: dict[str, Any]) -> list[str]:
    """The outputs, moved to the top of the workspace: all that is left of it."""
    kept = []
    for path in task["output_files"]:
        source = workspace / "data" / path
        kept.append(str(source.rename(workspace / source.name)))
    return kept


def _clean(workspace: Path) -> None:
    """Leaves the results."""
    for path in workspace.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name == "config.yaml":
            path.unlink()
    if not any(workspace.iterdir()):
        workspace.rmdir()
