"""The process that handler processes are forked from.

It is started once, imports what handlers need, and then forks a child in milliseconds for each attempt. It has one
thread and holds nothing of the owner's: no locks, no sockets but the one between them. It adopts orphans, and each
child adopts its own, so whoever is a child of the zygote without being known to it was left behind by an attempt that
is over, and is killed: nothing escapes by forking twice or by a session of its own. When the owner dies, however it
dies, the zygote kills all that descends from it and ends.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterable
from importlib import import_module
from typing import Final, NoReturn

from runner.execute import child
from runner.execute.kernel import Kernel, children_of
from runner.execute.wire import Frame, Verb, receive_request

PRELOAD: Final = ("asyncio", "pydantic", "runner.context", "runner.execute.child", "runner.handlers")

_OWNER_DIED: Final = signal.SIGUSR2
_IGNORED: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_SWEEP_SECONDS: Final = 0.02
_PATIENCE_SECONDS: Final = 5.0
"""How long the news of a child's end waits for its leftovers, which are killed but may hang in the kernel."""


def main(descriptor: int, owner: int, preload: Iterable[str]) -> None:
    """Serve the owner, process `owner`, on the socket `descriptor`, until it is gone."""
    kernel = Kernel()
    kernel.adopt_orphans()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in (*PRELOAD, *preload):
        with contextlib.suppress(ImportError):  # a handler that imports it will say so itself
            import_module(name)
    gc.collect()
    gc.freeze()  # what is never looked at again is never copied into a child
    with socket.socket(fileno=descriptor) as channel, contextlib.ExitStack() as stack:
        zygote = Zygote(channel, kernel)
        stack.callback(zygote.exterminate)
        if kernel.die_with_parent(_OWNER_DIED, owner):
            zygote.run()


class Zygote:
    """Forks, signals and buries children as the owner asks."""

    def __init__(self, owner: socket.socket, kernel: Kernel) -> None:
        self._owner = owner
        self._kernel = kernel
        self._pids: dict[int, int] = {}
        self._tokens: dict[int, int] = {}
        self._news = bytearray()
        self._ended: list[tuple[float, Frame]] = []
        self._sweeping = False
        self._orphaned = False
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        owner.setblocking(False)
        self._selector = selectors.PollSelector()
        self._selector.register(owner, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._wake_end = wake
        self._catch_signals()

    def run(self) -> None:
        """Serve until the owner has gone."""
        while not self._orphaned:
            self.run_once()

    def run_once(self) -> None:
        """Wait for something to happen, and see to it."""
        for key, events in self._selector.select(_SWEEP_SECONDS if self._sweeping else None):
            if key.fd == self._wake:
                self._drain_wake()
            elif events & selectors.EVENT_READ:
                self._serve_request()
        self._bury()
        self._tell()

    def exterminate(self) -> None:
        """Kill every descendant, and wait until none is left."""
        for pid in self._tokens:
            _kill_group(pid)
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        while self._reap_all() and time.monotonic() < give_up_at:
            for pid in children_of(os.getpid()):
                _kill(pid)
            self._selector.select(_SWEEP_SECONDS)
            self._drain_wake()

    def _catch_signals(self) -> None:
        # The owner decides when children end; a terminal or a service manager signals everybody.
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(_OWNER_DIED, self._note_death)
        signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)

    def _note_death(self, *_: object) -> None:
        self._orphaned = True

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake, 4096):
                pass

    def _serve_request(self) -> None:
        try:
            request = receive_request(self._owner)
        except BlockingIOError:
            return
        except ConnectionError:
            request = None
        if request is None:
            self._orphaned = True
            return
        frame, descriptors = request
        if frame.verb is Verb.FORK:
            self._fork(frame.token, descriptors)
        elif frame.token in self._pids:
            _kill_group(self._pids[frame.token], frame.number)

    def _fork(self, token: int, descriptors: list[int]) -> None:
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._say(Frame(Verb.REFUSED, token, error.errno or errno.EAGAIN))
        else:
            if pid == 0:
                self._become_child(zygote, descriptors)
            self._pids[token] = pid
            self._tokens[pid] = token
            self._say(Frame(Verb.FORKED, token, pid))
        for descriptor in descriptors:
            os.close(descriptor)

    def _become_child(self, zygote: int, descriptors: list[int]) -> NoReturn:
        """In the forked process: let go of what is the zygote's, and run the attempt."""
        try:
            signal.set_wakeup_fd(-1)
            for number in (*_IGNORED, signal.SIGCHLD, _OWNER_DIED):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            self._kernel.adopt_orphans()
            if not self._kernel.die_with_parent(signal.SIGKILL, zygote):
                os._exit(child.ALONE)
            self._owner.close()
            self._selector.close()
            os.close(self._wake)
            os.close(self._wake_end)
            child.main(*descriptors)
        except BaseException:  # noqa: BLE001 - nothing may get back into the zygote's loop in a second process
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(child.FAILED)

    def _bury(self) -> None:
        """Take note of the dead; kill what they left behind; pass the news on once nothing of them is left."""
        self._reap_all()
        if not self._sweeping:
            return
        leftovers = [pid for pid in children_of(os.getpid()) if pid not in self._tokens]
        for pid in leftovers:
            _kill_group_of(pid)
        now = time.monotonic()
        ready = [frame for at, frame in self._ended if not leftovers or at < now]
        self._ended = [(at, frame) for at, frame in self._ended if leftovers and at >= now]
        self._sweeping = bool(leftovers)
        for frame in ready:
            self._say(frame)

    def _reap_all(self) -> bool:
        """Collect the dead; whether any child is left."""
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return False
            if dead is None:
                return True
            self._reap(dead.si_pid)

    def _reap(self, pid: int) -> None:
        if pid in self._tokens:
            _kill_group(pid)  # while the dead one still keeps the group's number from being used again
        _, status = os.waitpid(pid, 0)
        token = self._tokens.pop(pid, None)
        if token is None:
            return
        del self._pids[token]
        code = os.waitstatus_to_exitcode(status)
        frame = Frame(Verb.ENDED, token, code)
        if code == child.ALONE:
            self._say(frame)
        else:
            self._sweeping = True
            self._ended.append((time.monotonic() + _PATIENCE_SECONDS, frame))

    def _say(self, frame: Frame) -> None:
        self._news += frame.encode()

    def _tell(self) -> None:
        """Send what the owner will take now. Never waits: the owner may be waiting for us."""
        try:
            while self._news:
                del self._news[: self._owner.send(self._news)]
        except BlockingIOError:
            pass
        except ConnectionError:
            self._orphaned = True
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._news else 0)
        self._selector.modify(self._owner, wanted)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _kill_group(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _kill_group_of(pid: int) -> None:
    """Kill a leftover, and its group unless that is the zygote's own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        group = os.getpgid(pid)
        if group != os.getpgid(0):
            os.killpg(group, signal.SIGKILL)
    _kill(pid)
