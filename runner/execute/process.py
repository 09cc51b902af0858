"""Attempts in processes of their own: they can be killed, and their crash is nobody else's.

One thread supervises all children and owns everything about them; other threads only leave it notes. A child is asked
to stop over its channel; after a while its process group gets TERM, which raises Cancelled in the handler; after a
while more it gets KILL. An attempt has ended when the zygote says that its process and all that descends from it are
gone, not when the child says so: a retry never overlaps with what it follows.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from runner.errors import RunnerError, ShuttingDown, Unavailable
from runner.execute.assignment import Assignment, Ending, Haste, Monitor, Stop
from runner.execute.attempt import not_started
from runner.execute.ward import Ward
from runner.execute.wire import FRAME_BYTES, Frame, Verb, decode_frames

Key: TypeAlias = tuple[str, int]

_PATIENCE_SECONDS: Final = 1.0
_GRACE_SECONDS: Final = 5.0
_LAST_PATIENCE_SECONDS: Final = 0.2
_LAST_GRACE_SECONDS: Final = 1.0
_JOIN_SECONDS: Final = 10.0


class ProcessExecutor:
    """Runs handlers with isolation process, one child each. See Executor for the methods.

    A stop is a request first, TERM after `patience_seconds`, KILL after `grace_seconds` more. Modules in `preload` are
    imported once, before the children are forked, where they exist.
    """

    def __init__(
        self,
        *,
        preload: Iterable[str] = (),
        patience_seconds: float = _PATIENCE_SECONDS,
        grace_seconds: float = _GRACE_SECONDS,
    ) -> None:
        self._lock = threading.Lock()
        self._preload = tuple(preload)
        self._patience_seconds = patience_seconds
        self._grace_seconds = grace_seconds
        self._supervisor: _Supervisor | None = None
        self._closed = False

    def warm_up(self) -> None:
        """Start the zygote now rather than with the first attempt; returns at once."""
        with self._lock:
            supervisor = self._open_supervisor()
            supervisor.post(supervisor.warm_up)

    def run(self, assignment: Assignment, monitor: Monitor) -> None:
        """See Executor."""
        with self._lock:
            supervisor = self._open_supervisor()
            supervisor.post(partial(supervisor.start, assignment, monitor))

    def stop(self, task_id: str, attempt: int, reason: Stop) -> None:
        """See Executor."""
        if self._supervisor:
            self._supervisor.post(partial(self._supervisor.stop, (task_id, attempt), reason))

    def close(self, grace_seconds: float) -> None:
        """See Executor."""
        with self._lock:
            self._closed = True
        if self._supervisor:
            self._supervisor.post(partial(self._supervisor.close, grace_seconds))
            self._supervisor.thread.join(grace_seconds + _JOIN_SECONDS)

    def _open_supervisor(self) -> _Supervisor:
        if self._closed:
            raise ShuttingDown("the executor is closed")
        if self._supervisor is None:
            self._supervisor = self._start_supervisor()
        if not self._supervisor.thread.is_alive():
            raise Unavailable("the supervisor of handler processes has failed; the runner must be restarted")
        return self._supervisor

    def _start_supervisor(self) -> _Supervisor:
        supervisor = _Supervisor(self._preload, self._patience_seconds, self._grace_seconds)
        try:
            supervisor.thread.start()
        except RuntimeError:
            supervisor.let_go()
            raise
        return supervisor


class _Supervisor:
    """Looks after the zygote and all children. Every method but `post` belongs to its own thread."""

    def __init__(self, preload: tuple[str, ...], patience_seconds: float, grace_seconds: float) -> None:
        self.thread = threading.Thread(target=self.run, name="handler-processes", daemon=True)
        self._preload = preload
        self._patience_seconds = patience_seconds
        self._grace_seconds = grace_seconds
        self._notes: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._waker, self._wake = socket.socketpair()
        for end in (self._waker, self._wake):
            end.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, self._drain_wake)
        self._zygote: _Zygote | None = None
        self._wards: dict[int, Ward] = {}
        self._tokens: dict[Key, int] = {}
        self._last_token = 0
        self._errands: list[threading.Thread] = []
        self._stop_all_at: float | None = None
        self._closing = False

    def post(self, note: Callable[[], None]) -> None:
        """Have `note` called in the supervisor's thread; from any thread."""
        self._notes.append(note)
        with contextlib.suppress(BlockingIOError, OSError):  # awake already, or closed
            self._waker.send(b"\0")

    def run(self) -> None:
        """Supervise until closed and no child is left."""
        try:
            while not self._closing or self._wards:
                self.run_once()
        finally:
            self.let_go()

    def run_once(self) -> None:
        """Wait for something to happen, or for the next moment that was set, and see to it."""
        for key, _ in self._selector.select(self._time_left()):
            # The news before it may have closed this one.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        while self._notes:
            self._notes.popleft()()
        self._act_on_time()

    def warm_up(self) -> None:
        """Have a zygote. Raises OSError."""
        if self._zygote is None:
            self._zygote = _Zygote(self._preload)
            self._selector.register(self._zygote.socket, selectors.EVENT_READ, self._hear_zygote)

    def start(self, assignment: Assignment, monitor: Monitor) -> None:
        """Have a child run the assignment."""
        self._last_token += 1
        try:
            self.warm_up()
            ward = Ward(assignment, monitor, self._last_token)
        except OSError as error:
            monitor.ended(assignment, not_started(error))
            monitor.settle(Haste.NOW)
            return
        self._wards[ward.token] = ward
        self._tokens[_key(assignment)] = ward.token
        self._selector.register(ward.channel, selectors.EVENT_READ, partial(self._hear, ward))
        self._selector.register(ward.output, selectors.EVENT_READ, partial(self._hear_output, ward))
        assert self._zygote is not None
        try:
            ward.fork(self._zygote.socket)
        except ConnectionError:
            pass  # the zygote has died, which the next round notices
        except OSError as error:
            self._bury(ward, not_started(error))

    def stop(self, key: Key, reason: Stop) -> None:
        """Ask the child to stop, and plan what follows if it does not."""
        ward = self._wards.get(self._tokens.get(key, 0))
        if ward and ward.reason is None:
            self._stop(ward, reason, self._patience_seconds, self._grace_seconds)

    def close(self, grace_seconds: float) -> None:
        """End when all children have; stop those that have not after `grace_seconds`."""
        self._closing = True
        self._stop_all_at = time.monotonic() + grace_seconds

    def _stop(self, ward: Ward, reason: Stop, patience_seconds: float, grace_seconds: float) -> None:
        if ward.reason is None:
            ward.ask(reason)
        term_at = time.monotonic() + patience_seconds
        ward.signals = deque([(term_at, signal.SIGTERM), (term_at + grace_seconds, signal.SIGKILL)])

    def _time_left(self) -> float | None:
        """Seconds until something is to be done, or None."""
        moments = [ward.signals[0][0] for ward in self._wards.values() if ward.signals]
        if self._stop_all_at is not None:
            moments.append(self._stop_all_at)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _act_on_time(self) -> None:
        now = time.monotonic()
        if self._stop_all_at is not None and now >= self._stop_all_at:
            self._stop_all_at = None
            for ward in self._wards.values():
                self._stop(ward, Stop.DRAINED, _LAST_PATIENCE_SECONDS, _LAST_GRACE_SECONDS)
        for ward in self._wards.values():
            while ward.signals and ward.signals[0][0] <= now:
                _, number = ward.signals.popleft()
                if self._zygote:
                    self._zygote.signal(ward.token, number)

    def _hear(self, ward: Ward) -> None:
        try:
            for type, payload, inputs in ward.hear():
                # Not here: a submission waits for the disk, and the other children would wait for it.
                self._run_errand(partial(_submit, ward, type, payload, inputs))
        except EOFError:
            self._selector.unregister(ward.channel)

    def _hear_output(self, ward: Ward) -> None:
        try:
            ward.listen_to_output()
        except EOFError:
            self._selector.unregister(ward.output)

    def _hear_zygote(self) -> None:
        assert self._zygote is not None
        try:
            frames = self._zygote.receive()
        except EOFError:
            self._lose_zygote()
            return
        for frame in frames:
            ward = self._wards.get(frame.token)
            if ward is None:
                continue
            if frame.verb is Verb.FORKED:
                ward.pid = frame.number
            elif frame.verb is Verb.REFUSED:
                self._bury(ward, not_started(OSError(frame.number, os.strerror(frame.number))))
            else:
                self._hear_the_last(ward)
                self._bury(ward, ward.finish(frame.number))

    def _hear_the_last(self, ward: Ward) -> None:
        """Take in what the dead child has left in its channel and its output."""
        for source, hear in ((ward.channel, self._hear), (ward.output, self._hear_output)):
            while self._is_heard(source) and _is_readable(source):
                hear(ward)

    def _is_heard(self, source: socket.socket | int) -> bool:
        try:
            self._selector.get_key(source)
        except KeyError:
            return False
        return True

    def _bury(self, ward: Ward, ending: Ending) -> None:
        """Forget the child, and tell how its attempt ended."""
        for source in (ward.channel, ward.output):
            if self._is_heard(source):
                self._selector.unregister(source)
        ward.close()
        del self._wards[ward.token]
        del self._tokens[_key(ward.assignment)]
        scratch = ward.assignment.scratch_dir
        if scratch.exists():
            self._run_errand(partial(_clean_up_and_tell, scratch, ward, ending))
        else:
            ward.monitor.ended(ward.assignment, ending)
            ward.monitor.settle(Haste.NOW)

    def _lose_zygote(self) -> None:
        """The zygote has died, and the kernel has killed its children; their own are killed here, by group."""
        assert self._zygote is not None
        self._selector.unregister(self._zygote.socket)
        self._zygote.close()
        self._zygote = None
        for ward in list(self._wards.values()):
            if ward.pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(ward.pid, signal.SIGKILL)
            self._hear_the_last(ward)
            self._bury(ward, ward.finish(-signal.SIGKILL))

    def _run_errand(self, errand: Callable[[], None]) -> None:
        self._errands = [thread for thread in self._errands if thread.is_alive()]
        thread = threading.Thread(target=errand, name="handler-errand", daemon=True)
        self._errands.append(thread)
        thread.start()

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)

    def let_go(self) -> None:
        """Close what is open. On its own thread, or where that could not be started."""
        for thread in self._errands:
            thread.join()
        for ward in self._wards.values():
            ward.close()
        if self._zygote:
            self._zygote.close()
        self._selector.close()
        self._waker.close()
        self._wake.close()


class _Zygote:
    """The zygote as its owner sees it. Raises OSError if it cannot be started."""

    def __init__(self, preload: tuple[str, ...]) -> None:
        self.socket, theirs = socket.socketpair()
        self._heard = bytearray()
        path = [str(Path(entry).absolute()) for entry in sys.path]
        main = f"main({theirs.fileno()}, {os.getpid()}, {preload!r})"
        code = f"import sys; sys.path[:] = {path!r}; from runner.execute.zygote import main; {main}"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError:
            self.socket.close()
            raise
        finally:
            theirs.close()

    def signal(self, token: int, number: signal.Signals) -> None:
        """Have the child's process group signalled, if it still runs."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(Frame(Verb.SIGNAL, token, number).encode())

    def receive(self) -> list[Frame]:
        """What it says. Raises EOFError when it has died."""
        try:
            data = self.socket.recv(4096 * FRAME_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError
        self._heard += data
        return decode_frames(self._heard)

    def close(self) -> None:
        """Let it end, and with it all that is left of its descendants; then wait for it."""
        self.socket.close()
        try:
            self._process.wait(_JOIN_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _key(assignment: Assignment) -> Key:
    return (assignment.task.id, assignment.task.attempt)


def _is_readable(source: socket.socket | int) -> bool:
    with selectors.PollSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        return bool(selector.select(0))


def _submit(ward: Ward, type: str, payload: dict[str, Any], inputs: tuple[Path, ...]) -> None:
    answer = {"code": "internal_error", "message": "the submission failed; the runner's log says why"}
    try:
        answer = {"id": ward.monitor.submitted(ward.assignment, type, payload, inputs)}
    except RunnerError as error:
        answer = {"code": error.code, "message": str(error)}
    finally:
        ward.reply(answer)


def _clean_up_and_tell(scratch: Path, ward: Ward, ending: Ending) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    ward.monitor.ended(ward.assignment, ending)
    ward.monitor.settle(Haste.NOW)
