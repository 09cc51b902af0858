"""`python -m tests.crash kill --kills 10000`: one suite alone, its counters on the last line."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.crash.judge import Verdict
from tests.crash.kill import run_kills
from tests.crash.power import obstacle, run_cuts
from tests.crash.victim import Sabotage


def main() -> int:
    """0 if no promise was broken, or if one was that was meant to be; 1 otherwise; 2 if the suite cannot run here."""
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="crash-", dir=options.dir) as folder:
        verdict = _run(options, Path(folder))
    if verdict is None:
        return 2
    sys.stdout.write(f"{options.suite}: {verdict}\n")
    return int((verdict.violations == 0) is (options.sabotage is not Sabotage.NONE))


def _run(options: argparse.Namespace, root: Path) -> Verdict | None:
    if options.suite == "kill":
        return run_kills(root, options.kills, options.seed, options.sabotage)
    reason = obstacle()
    if reason is not None:
        sys.stderr.write(f"skipped: {reason}\n")
        return None
    return run_cuts(root, options.cuts, options.seed, options.sabotage)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    suites = parser.add_subparsers(dest="suite", required=True)
    kill = suites.add_parser("kill", help="kill -9 a runner")
    kill.add_argument("--kills", type=int, default=10_000)
    power = suites.add_parser("power", help="cut the power of its filesystem")
    power.add_argument("--cuts", type=int, default=1_000)
    for suite in (kill, power):
        suite.add_argument("--seed", type=int, default=0)
        suite.add_argument("--sabotage", type=Sabotage, choices=list(Sabotage), default=Sabotage.NONE)
        suite.add_argument("--dir", help="where to work; not on tmpfs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
