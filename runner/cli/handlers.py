"""`handlers`, `run` and `new`: the user's own functions."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.connection import connect
from runner.cli.exits import Exit
from runner.cli.options import Options, common_options
from runner.cli.output import print_error, print_fields, print_json, print_note, safe
from runner.cli.payload import hinting, read_payload
from runner.cli.tables import Column, Fit, print_table

if TYPE_CHECKING:
    from runner.execute.once import Run


@click.command()
@click.argument("name", required=False)
@common_options
def handlers(options: Options, name: str | None) -> None:
    """List the handlers, or show one of them: its parameters and options."""
    with connect(options) as api:
        found = api.get(f"/handlers/{name}" if name else "/handlers")
    if name:
        return print_handler(options, found)
    if options.as_json:
        return print_json(found)
    print_table(("handler", Column("takes", Fit.WRAP), "needs", Column("", Fit.WRAP)), map(_row, found["handlers"]))
    lacking = [handler for handler in found["handlers"] if not handler["available"]]
    if extras := sorted({handler["extra"] for handler in lacking if handler["extra"]}):
        print_note(f"to install what they need: pip install 'file-runner[{','.join(extras)}]'")
    for failure in found["errors"]:
        print_error(f"{failure['path']}:{failure['line'] or 1}: {failure['message']}")
    return None


@click.command()
@click.argument("name")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A parameter; its value is JSON or text.")
@click.option("--payload", metavar="JSON", help="All parameters as one JSON object; @FILE reads it from a file.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where outputs go. Default: ./NAME-output.")
@common_options
def run(
    options: Options, name: str, files: tuple[Path, ...], settings: tuple[str, ...], payload: str | None,
    output: Path | None,
) -> int:  # fmt: skip
    """Run one handler here and now, without a server: the way to develop one."""
    from runner.execute.once import run_once
    from runner.execute.prints import Echo, overheard
    from runner.handlers import Handlers
    from runner.intake.admission import Arrival, check_files

    config = options.load_config()
    found = Handlers(Path(config.handlers_dir), config.handlers)
    found.load()
    handler, parameters = found.get(name), read_payload(payload, settings)
    with hinting(name):
        handler.validate(parameters)
    check_files(handler, tuple(Arrival(path, path.name) for path in files))
    with overheard(Echo.NONE):  # it says what was printed itself, beside what is logged
        outcome = run_once(
            handler,
            [path.absolute() for path in files],
            parameters,
            output_dir=output or Path(f"{name}-output"),
            config=config.handlers[name].config if name in config.handlers else {},
            say=print_note,
        )
    return _print_run(options, outcome)


@click.command()
@click.argument("name")
@click.option("--tests", type=click.Path(path_type=Path), help="Where the test goes. Default: ./tests.")
@click.option("--no-test", is_flag=True, help="Only the handler.")
@common_options
def new(options: Options, name: str, tests: Path | None, no_test: bool) -> None:
    """Write a first handler and its test, to be changed."""
    from runner.handlers.template import create_handler

    handlers_dir = Path(options.load_config().handlers_dir)
    written = create_handler(name, handlers_dir, None if no_test else tests or handlers_dir.parent / "tests")
    if options.as_json:
        return print_json({"written": [str(path) for path in written]})
    for path in written:
        click.echo(safe(str(path)))
    return click.echo(f"try it: runner run {name} FILE", err=True)


def print_handler(options: Options, handler: dict[str, Any]) -> None:
    """One handler: what it does and what can be set."""
    if options.as_json:
        print_json(handler)
        return
    click.echo(safe(f"{handler['name']}: {handler['doc'] or 'no description'}"))
    print_fields(
        {
            "file": handler["path"],
            "takes": ", ".join(handler["accepts"]) or "any file, or none",
            "missing": handler["missing"] and f"{', '.join(handler['missing'])}: {remedy(handler)}",
            **{name: value for name, value in handler["options"].items() if name != "accepts"},
            **_health_of(handler),
        }
    )
    rows = _parameter_rows(handler["schema"])
    if rows:
        click.echo()
        print_table(("parameter", Column("type", Fit.WRAP), Column("default", Fit.CUT), Column("", Fit.WRAP)), rows)


def _health_of(handler: dict[str, Any]) -> dict[str, str]:
    """How it fared since the runner was started."""
    health = handler.get("health")
    if health is None:
        return {}
    error = health["last_error"]
    attempts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(health["attempts"].items()))
    told = f"{error['at']}  {error['code']}: {error['message']}  (task {error['task_id']})" if error else ""
    return {"attempts": attempts or "none since the start", "last error": told}


def _parameter_rows(schema: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    required = schema.get("required", [])
    return [
        (
            f"--set {name}=…",
            _kind(parameter, schema.get("$defs", {})),
            "required" if name in required else _default(parameter),
            parameter.get("description", ""),
        )
        for name, parameter in schema.get("properties", {}).items()
    ]


def remedy(handler: dict[str, Any]) -> str:
    """The command that installs what a handler lacks."""
    extra = handler["extra"]
    return f"pip install 'file-runner[{extra}]'" if extra else f"pip install {' '.join(handler['missing'])}"


def _row(handler: dict[str, Any]) -> tuple[object, ...]:
    missing = "" if handler["available"] else handler["extra"] or ", ".join(handler["missing"])
    doc, *_ = (handler["doc"] or "").splitlines() or [""]
    return handler["name"], ", ".join(handler["accepts"]), missing, doc


def _kind(parameter: dict[str, Any], definitions: dict[str, Any]) -> str:
    """The shape of a parameter, short: "integer", "fast | slow", "array of {x, y, width, height}"."""
    if "enum" in parameter:
        return " | ".join(map(str, parameter["enum"]))
    if "const" in parameter:
        return str(parameter["const"])
    if several := parameter.get("anyOf") or parameter.get("oneOf"):
        return " | ".join(dict.fromkeys(_kind(one, definitions) for one in several))
    if "$ref" in parameter:
        return _kind(definitions[parameter["$ref"].rpartition("/")[2]], definitions)
    if "properties" in parameter:
        return f"{{{', '.join(parameter['properties'])}}}"
    kind = str(parameter.get("type", "any"))
    return f"{kind} of {_kind(parameter['items'], definitions)}" if isinstance(parameter.get("items"), dict) else kind


def _default(parameter: dict[str, Any]) -> str:
    import json

    return json.dumps(parameter["default"], ensure_ascii=False) if "default" in parameter else ""


def _print_run(options: Options, outcome: Run) -> int:
    ending = outcome.ending
    error = asdict(ending.error) if ending.error else None
    outputs = [str(path) for path in outcome.outputs]
    if options.as_json:
        print_json({"outcome": ending.outcome, "result": ending.result, "error": error, "output_files": outputs})
    else:
        click.echo(safe(f"{ending.outcome}{': ' + error['message'] if error else ''}"))
        if ending.result is not None:
            print_json(ending.result)
        for path in outputs:
            click.echo(safe(path))
    if ending.traceback:
        click.echo(ending.traceback, file=sys.stderr)
    return Exit.OK if ending.outcome == "completed" else Exit.TASK_FAILED
