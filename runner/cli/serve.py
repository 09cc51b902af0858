"""`serve`: owns the data directory until told to stop."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from socket import socket
from typing import Final, NoReturn

import click

from runner.cli.exits import Exit
from runner.cli.options import Options, common_options
from runner.cli.output import print_json, print_note, safe
from runner.config import Config
from runner.dialects.listeners import listening_for_dialects, make_app, make_dialects
from runner.dialects.video_grpc import TaskServer
from runner.errors import OwnerExists
from runner.execute.prints import Echo, overheard
from runner.logs import set_up_logs
from runner.service import LeftOver, Service
from runner.web.app import Site
from runner.web.protocol import Patience
from runner.web.server import Companion, Server, listening
from runner.web.sockets import listen_on_port

LOOPS: Final = frozenset({"committer", "syncer", "writer", "checkpointer", "dispatcher", "inbox", "outbox", "events"})
"""The threads without which nothing goes on. Those that handlers start may fail as they like."""

MAX_DESCRIPTORS: Final = 65536
PRIVATE: Final = 0o077
"""The umask: what is made, by handlers too, is for this user alone."""

_log = logging.getLogger(__name__)


@click.command()
@click.option("--host", help="The address to serve HTTP at.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port to serve HTTP at; 0 is any free one.")
@common_options
def serve(options: Options, host: str | None, port: int | None) -> None:
    """Own the data directory: watch the inbox, run tasks, answer HTTP.

    While another process owns it, this one stands by and takes over the moment that one ends.
    """
    gc.disable()  # until what stays is loaded: `spare_the_collector`
    config = options.load_config(http__host=host, http__port=port)
    set_up_logs(config.log)
    os.umask(PRIVATE)
    threading.excepthook = _end_loudly
    signal.signal(signal.SIGTERM, _end)
    with ExitStack() as stack:
        stack.enter_context(overheard(Echo.SHOWN))
        service = Service(config)
        service.open(_announce, print_note)
        stack.callback(service.close)
        _tell_what_goes_on(service.left_over())
        # Before anything runs: an address that is taken is the user's mistake, and no task's business.
        tcp = stack.enter_context(listen_on_port(config.http.host, config.http.port))
        ports = stack.enter_context(listening_for_dialects(config))
        service.run_tasks()
        spare_the_collector()
        sockets = stack.enter_context(listening(Path(config.data_dir) / "runner.sock", tcp, *ports.values()))
        patience = Patience(max_connections=min(config.http.max_connections, _allow_descriptors() // 2))
        site = Site(service, config)
        dialects = make_dialects(site)
        companions = tuple(chain.from_iterable(dialect.companions for dialect in dialects))
        announce = partial(_print_addresses, options, config, tcp, ports, companions, service.closed_doors)
        app = make_app(site, dialects, {at.getsockname()[1]: name for name, at in ports.items()})
        Server(app, service.events, announce, patience, companions, config.http.event_loop).run(sockets)


def _allow_descriptors() -> int:
    """As many open files as the system lets this user have, of which clients never get more than half: a runner
    without a descriptor for its journal is none. How many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def _end(_signal: int, _frame: object) -> NoReturn:
    """SIGTERM before the server listens to it, and during the drain: what is open is closed on the way out."""
    sys.exit(Exit.OK)


def spare_the_collector() -> None:
    """What has been loaded stays, and tasks hold no cycles: Python's collector would look at all of it again and again,
    for a tenth of the time that a short task takes (measured)."""
    # Not collected before: next to none of it is garbage, and to look takes as long as a tenth of a start.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


def _end_loudly(failure: threading.ExceptHookArgs) -> None:
    """A loop has failed that the runner cannot do without. What is acknowledged is in the journal; the next start, or
    the standby, goes on from there. Half a runner would be worse than none."""
    name = failure.thread.name if failure.thread is not None else ""
    _log.critical("thread %s failed", name, exc_info=failure.exc_value)
    if name in LOOPS:
        os._exit(Exit.TASK_FAILED)


def _tell_what_goes_on(left: LeftOver) -> None:
    """After a crash or a restart."""
    if left.tasks:
        tasks = "1 task of the last run goes on" if left.tasks == 1 else f"{left.tasks} tasks of the last run go on"
        how_many = "it" if left.tasks == 1 else f"{left.interrupted} of them"
        were = "was" if left.interrupted == 1 else "were"
        print_note(f"{tasks}; {how_many} {were} interrupted" if left.interrupted else tasks)


def _announce(error: OwnerExists) -> None:
    print_note(f"standing by: {error}")


def _print_addresses(
    options: Options,
    config: Config,
    tcp: socket,
    ports: Mapping[str, socket],
    companions: Sequence[Companion],
    closed_doors: Mapping[str, str],
) -> None:
    address, inbox = _address(tcp), Path(config.data_dir) / "inbox"
    grpc = [one.address for one in companions if isinstance(one, TaskServer) and one.address]
    if options.as_json:
        dialects = {name: _address(at) for name, at in ports.items()}
        known = {"address": address, "api": f"{address}/api/v1", "inbox": str(inbox)}
        print_json({**known, "dialects": dialects, "grpc": grpc[0] if grpc else None})
    else:
        click.echo(f"serving {address}  (API: {address}/docs)\ninbox   {safe(str(inbox))}")
        for name, listener in ports.items():
            click.echo(f"dialect {_address(listener)}  ({name})")
        for at in grpc:
            click.echo(f"grpc    {at}  (task.TaskService)")
        for door, reason in closed_doors.items():
            print_note(f"{door:<7} {reason}")
    sys.stdout.flush()


def _address(listener: socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
