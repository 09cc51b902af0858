"""`python -m tests.crash kill --kills 10000`: one suite alone, its counters on the last line."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import runner
from tests.crash import disk, drops, inject, kill, model, orphans, owners, power, strace, victim
from tests.crash.faulty import Fault


class Counters(Protocol):
    """What a suite has counted; `str` of it is the last line."""

    @property
    def violations(self) -> int:
        """How many promises were broken."""


@dataclass(frozen=True)
class Suite:
    """One suite as the command line offers it. `numbers` are its options that are numbers, with their defaults;
    `obstacle` says why it cannot run here, if so."""

    summary: str
    run: Callable[[Path, argparse.Namespace], Counters]
    sabotage: type[StrEnum]
    numbers: Mapping[str, int]
    obstacle: Callable[[], str | None] = lambda: None
    add_options: Callable[[argparse.ArgumentParser], None] = field(default=lambda parser: None)


def _add_points(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fault", type=Fault, choices=list(Fault), help="fail in this way only")
    parser.add_argument("--call", help="only calls of this name, as runner.store.Files has them")


def _run_inject(root: Path, options: argparse.Namespace) -> Counters:
    faults = tuple(Fault) if options.fault is None else (options.fault,)
    points = inject.Points(faults, options.every, options.first, options.call)
    return inject.run_points(root, points, options.sabotage)


def _add_system_call(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--call", choices=list(strace.CALLS), help="this one only")
    parser.add_argument("--when", choices=strace.TIMES, help="this time only; 1+ is every time")


def _system_calls(options: argparse.Namespace) -> tuple[strace.Point, ...]:
    return strace.choose(options.call, options.when)[:: options.every]


def _add_kind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=orphans.KINDS, action="append", help="attempts of this kind only; repeatable")


def _kinds(options: argparse.Namespace) -> tuple[str, ...]:
    return orphans.KINDS if options.kind is None else tuple(options.kind)


def _add_disk(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--disk", type=disk.Disk, choices=list(disk.Disk), help="this one only")


def _disks(options: argparse.Namespace) -> tuple[disk.Disk, ...]:
    return tuple(disk.Disk) if options.disk is None else (options.disk,)


SUITES = {
    "drops": Suite(
        "kill -9 a runner while files are dropped",
        lambda root, options: drops.run_drops(root, options.kills, options.seed, options.sabotage, options.files),
        drops.Sabotage,
        {"kills": 1_000, "seed": 0, "files": drops.FILES_A_LIFE},
    ),
    "kill": Suite(
        "kill -9 a runner, again and again",
        lambda root, options: kill.run_kills(root, options.kills, options.seed, options.sabotage),
        victim.Sabotage,
        {"kills": 10_000, "seed": 0},
    ),
    "power": Suite(
        "cut the power of its filesystem",
        lambda root, options: power.run_cuts(root, options.cuts, options.seed, options.sabotage),
        victim.Sabotage,
        {"cuts": 1_000, "seed": 0},
        power.obstacle,
    ),
    "inject": Suite(
        "have the Nth call of its disk fail",
        _run_inject,
        inject.Sabotage,
        {"every": 1, "first": 1},
        add_options=_add_points,
    ),
    "owners": Suite(
        "kill the owner of a directory for which eight fight",
        lambda root, options: owners.run_rivals(root, options.reigns, options.sabotage),
        owners.Sabotage,
        {"reigns": 2_000},
    ),
    "disk": Suite(
        "fill its disk, and empty it again",
        lambda root, options: disk.run_rounds(root, options.rounds, options.sabotage, _disks(options)),
        disk.Sabotage,
        {"rounds": 10},
        disk.obstacle,
        _add_disk,
    ),
    "strace": Suite(
        "have the system calls of the command line fail",
        lambda root, options: strace.run_points(root, _system_calls(options), options.sabotage),
        strace.Sabotage,
        {"every": 1},
        strace.obstacle,
        _add_system_call,
    ),
    "orphans": Suite(
        "kill the owner of attempts of every kind",
        lambda root, options: orphans.run_rounds(root, options.rounds, options.sabotage, _kinds(options)),
        orphans.Sabotage,
        {"rounds": 20},
        add_options=_add_kind,
    ),
    "model": Suite(
        "compare the service with a dictionary",
        lambda root, options: model.run_examples(root, options.examples, options.steps, options.sabotage),
        model.Sabotage,
        {"examples": 500, "steps": 50},
    ),
}


def main() -> int:
    """0 if no promise was broken, or if one was that was meant to be; 1 otherwise; 2 if the suite cannot run here."""
    options = _parse()
    suite = SUITES[options.suite]
    if reason := suite.obstacle():
        sys.stderr.write(f"skipped: {reason}\n")
        return 2
    sys.stderr.write(f"trying {Path(runner.__file__).parent}\n")
    with tempfile.TemporaryDirectory(prefix="crash-", dir=options.dir) as folder:
        counters = suite.run(Path(folder), options)
    for fault in getattr(counters, "faults", ()):
        sys.stderr.write(f"{fault}\n")
    sys.stdout.write(f"{options.suite}: {counters}\n")
    return int((counters.violations == 0) is (options.sabotage != "none"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    suites = parser.add_subparsers(dest="suite", required=True)
    for name, suite in SUITES.items():
        options = suites.add_parser(
            name,
            help=suite.summary,
            description=sys.modules[suite.sabotage.__module__].__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        for number, default in suite.numbers.items():
            options.add_argument(f"--{number}", type=int, default=default, help=" ")
        suite.add_options(options)
        options.add_argument(
            "--sabotage",
            type=suite.sabotage,
            choices=list(suite.sabotage),
            default=suite.sabotage("none"),
            help="break this on purpose: then it is an error if nothing is noticed",
        )
        options.add_argument("--dir", help="where to work, instead of the system's temporary directory")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
