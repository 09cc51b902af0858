"""`doctor`: what is wrong, what can be done about it, and doing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click

from runner.cli.connection import Api, task_path
from runner.cli.exits import CommandFailed, Exit
from runner.cli.options import Options, common_options
from runner.cli.output import print_json, safe
from runner.cli.tables import Column, Fit, print_table
from runner.client import ANSWER_SECONDS
from runner.config import Config
from runner.doctor import Doctor, Mended
from runner.errors import OwnerExists
from runner.store import Files, Layout
from runner.store.findings import Finding
from runner.store.owner import Owner
from runner.web.sockets import can_connect, short_path


@click.command()
@click.option("--repair", is_flag=True, help="Do what it proposes. No runner may serve the directory meanwhile.")
@common_options
def doctor(options: Options, repair: bool) -> int:
    """Check the data directory and what it needs. The exit code is 1 if something is wrong.

    It changes nothing but by --repair, which deletes nothing of yours: what is damaged goes to data/corrupt, what
    belongs to no task to data/trash, each with the reason beside it.
    """
    config = options.load_config()
    mended: list[Mended] = []
    if not Path(config.data_dir).is_dir():
        findings = [Finding("data", False, f"{config.data_dir} is not there; `runner serve` or `runner init` make it")]
    else:
        with ExitStack() as stack:
            visit = _Visit(config, stack)
            if repair:
                visit.check_ownership()
                mended = Doctor(config).mend()
            findings = list(visit.examine())
    _print(options, findings, mended)
    return Exit.OK if all(finding.is_well for finding in findings) else Exit.TASK_FAILED


class _Visit:
    """The directory's lock is held until `stack` ends, unless somebody else has it."""

    def __init__(self, config: Config, stack: ExitStack) -> None:
        self._config = config
        self._socket = Path(config.data_dir) / "runner.sock"
        self._is_answering = can_connect(self._socket)
        self._owner: OwnerExists | None = None
        self._failure = ""
        layout = Layout(config.data_dir)
        owner = Owner(Files(), layout)
        if not Path(layout.locks).is_dir():
            return  # there is nothing yet that could be owned
        try:
            owner.acquire()
            stack.callback(owner.release)
        except OwnerExists as error:
            self._owner = error
        except OSError as error:
            self._failure = f"cannot be taken: {error.strerror or error}"

    def check_ownership(self) -> None:
        """Raises `CommandFailed` where somebody else may be changing what is to be mended."""
        if self._owner is not None:
            raise CommandFailed(Exit.REFUSED, f"{self._owner}: nothing is mended while it runs; stop it first")
        if self._failure:
            raise CommandFailed(Exit.REFUSED, f"the lock of {self._config.data_dir} {self._failure}")

    def examine(self) -> Iterator[Finding]:
        """All there is to see; of the owner itself, if there is one, too."""
        yield from self._check_owner()
        if self._owner is None:
            yield from Doctor(self._config).examine()
            return
        if not self._is_answering:
            yield from Doctor(self._config, lambda task_id: False).examine()
            return
        with closing(Api(self._socket, Path(self._config.data_dir), lambda: False)) as api:
            yield from _check_health(self._socket)
            yield from Doctor(self._config, lambda task_id: _exists(api, task_id)).examine()

    def _check_owner(self) -> Iterator[Finding]:
        if self._failure:
            yield Finding("lock", False, self._failure)
            return
        is_owned = self._owner is not None
        yield Finding("lock", True, f"a runner owns the directory: {self._owner}" if is_owned else "nobody owns it")
        texts = {
            (True, True): "the owner answers",
            (True, False): "the owner does not answer at runner.sock; it starts, stops or hangs",
            (False, True): "somebody who is not the owner answers at runner.sock",
            (False, False): "nobody answers, as there is no owner",
        }
        yield Finding("socket", is_owned == self._is_answering, texts[is_owned, self._is_answering])


def _check_health(socket: Path) -> Iterator[Finding]:
    """What the owner says of itself, at `/ready`."""
    import httpx2

    try:
        with (
            short_path(socket) as address,
            httpx2.Client(transport=httpx2.HTTPTransport(uds=address, verify=False, trust_env=False)) as http,
        ):
            answer = http.get("http://runner/ready", timeout=ANSWER_SECONDS)
    except httpx2.HTTPError as error:
        yield Finding("owner", False, f"it does not say how it is: {error}")
        return
    said = answer.json()
    well = "it accepts tasks and starts them"
    yield Finding("owner", answer.is_success, well if answer.is_success else str(said.get("reason")))
    for door, reason in said.get("details", {}).get("closed_doors", {}).items():
        yield Finding(door, True, reason)


def _exists(api: Api, task_id: str) -> bool:
    try:
        api.get(task_path(task_id))
    except CommandFailed as failure:
        return failure.exit is not Exit.NOT_FOUND
    return True


def _print(options: Options, findings: list[Finding], mended: list[Mended]) -> None:
    if options.as_json:
        print_json({"findings": [_document(at) for at in findings], "mended": [_record(one) for one in mended]})
        return
    for one in mended:
        click.echo(
            safe(f"{'could not' if one.failure else 'did'} {one.finding.remedy}: {one.failure or one.finding.text}")
        )
    rows = [("ok" if at.is_well else "WRONG", at.check, _text(at)) for at in findings]
    print_table(("", "check", Column("", Fit.WRAP)), rows)


def _text(finding: Finding) -> str:
    return finding.text + (f"; --repair would {finding.remedy}" if finding.remedy else "")


def _document(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "ok": finding.is_well,
        "text": finding.text,
        "items": finding.items,
        "remedy": finding.remedy or None,
    }


def _record(one: Mended) -> dict[str, Any]:
    return {**_document(one.finding), "ok": not one.failure, "failure": one.failure or None}
