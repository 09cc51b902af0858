"""`runner new NAME`: a first handler and its test, to be changed."""

from __future__ import annotations

from keyword import iskeyword
from pathlib import Path
from string import Template
from typing import Final

from runner.errors import Refused
from runner.handlers.declaration import NAME

_HANDLER: Final = Template('''\
"""$name: say here what it is for."""

from runner import Context, handler


@handler(timeout="2m")
def $name(ctx: Context, greeting: str = "Hello") -> dict[str, int]:
    """Write a greeting, and count the bytes of the files that came with it."""
    size = 0
    for number, path in enumerate(ctx.inputs, start=1):
        ctx.check()  # stops here when somebody cancels, or the time is up
        size += path.stat().st_size
        ctx.progress(100 * number / len(ctx.inputs), f"read {path.name}")
    ctx.output("greeting.txt").write_text(f"{greeting}, {size} bytes\\n", encoding="utf-8")
    return {"size": size}
''')

_TEST: Final = Template('''\
"""Tests of the handler $name."""

from pathlib import Path

from runner.execute.once import run_once
from runner.handlers import Handlers

HANDLERS = Path(__file__).parents[1] / "$folder"


def test_${name}_greets(tmp_path: Path) -> None:
    """The greeting names the size of the input, and the result holds it."""
    dropped = tmp_path / "note.txt"
    dropped.write_text("four")
    handlers = Handlers(HANDLERS)
    handlers.load()

    run = run_once(handlers.get("$name"), [dropped], {"greeting": "Good day"}, output_dir=tmp_path / "out")

    assert run.ending.result == {"size": 4}
    assert [path.read_text() for path in run.outputs] == ["Good day, 4 bytes\\n"]
''')


def create_handler(name: str, handlers_dir: Path, tests_dir: Path | None = None) -> tuple[Path, ...]:
    """Write `handlers_dir`/NAME.py, and `tests_dir`/test_NAME.py unless that is None; the files written.

    The test expects `handlers_dir` beside `tests_dir`. Raises Refused for a name that cannot be used, and for a file
    that exists; then nothing was written.
    """
    if not NAME.fullmatch(name) or not name.isidentifier() or iskeyword(name):
        raise Refused(f"{name!r} cannot name a handler: a-z first, then a-z, 0-9 and _, such as resize_image")
    wanted = {handlers_dir / f"{name}.py": _HANDLER}
    if tests_dir:
        wanted[tests_dir / f"test_{name}.py"] = _TEST
    for path in wanted:
        if path.exists():
            raise Refused(f"{path} exists; nothing was written")
    for path, template in wanted.items():
        _write_new(path, template.substitute(name=name, folder=handlers_dir.name))
    return tuple(wanted)


def _write_new(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Refused(f"{path} exists; it was left alone") from None
