"""Hints that something changed in a folder, from watchfiles. A scan is the truth; this only makes it soon.

What watchfiles does not do, and who does it:
* One name that is not UTF-8 ends its iteration: it is started again, with back-off, and `on_start` asks for a scan.
* Files from before the watch stood are not reported, nor is what a folder held when it was moved in, nor what an
  overflow of the kernel's queue swallowed: `on_start`, the scan of new folders and the slow scan of everything.
* A folder that is removed and made again is not watched any more: `restart`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import watchfiles
from watchfiles import Change
from watchfiles.main import FileChange

FIRST_BACKOFF_SECONDS: Final = 0.05
LONGEST_BACKOFF_SECONDS: Final = 30.0
HEALTHY_SECONDS: Final = 60.0
"""After a watch that stood this long, back-off begins anew."""
MOMENT_SECONDS: Final = 0.1
BUSY_PAUSE_SECONDS: Final = 0.02

_log = logging.getLogger(__name__)


OnChange = Callable[[set[str], set[str]], None]
"""Gets the paths that were made or changed, and those that were removed or moved away."""


class Load:
    """Whether this process is hard at work: for more than half of the last moments of one processor.

    `clock` and `work` are seconds that have passed, and seconds of processor that were used.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, work: Callable[[], float] = time.process_time
    ) -> None:
        self._clock = clock
        self._work = work
        self._since, self._used = clock(), work()
        self._is_high = False

    def is_high(self) -> bool:
        """Quick: measured ten times a second."""
        now = self._clock()
        if now - self._since >= MOMENT_SECONDS:
            used = self._work()
            self._is_high = used - self._used > (now - self._since) / 2
            self._since, self._used = now, used
        return self._is_high


class Stop:
    """Asked by watchfiles every `step` milliseconds; the first time, the watch stands.

    Each time takes the interpreter from whoever has it. So while there is much to do the answer takes a little longer,
    and so does the next question: a file is noticed `BUSY_PAUSE_SECONDS` later, and requests over HTTP are served by
    an eighth faster (measured)."""

    def __init__(self, on_start: Callable[[], None], load: Load) -> None:
        self._on_start: Callable[[], None] | None = on_start
        self._load = load
        self.asked = False

    def is_set(self) -> bool:
        """Whether to stop watching."""
        if self._on_start is not None:
            on_start, self._on_start = self._on_start, None
            on_start()
        if self._load.is_high():
            time.sleep(BUSY_PAUSE_SECONDS)
        return self.asked


class Watcher:
    """Watches directories in a thread of its own, until `close`.

    `on_start` is told whenever a watch stands from which nothing earlier is known. It and `on_change` are called on the
    watcher's thread and must be quick. `paths` is asked at each beginning. `watch` is `watchfiles.watch`, or a test's.
    """

    def __init__(
        self,
        paths: Callable[[], Iterable[str]],
        on_change: OnChange,
        on_start: Callable[[], None],
        *,
        step_ms: int,
        debounce_ms: int,
        watch: Callable[..., Iterator[set[FileChange]]] = watchfiles.watch,
    ) -> None:
        self._paths = paths
        self._on_change = on_change
        self._on_start = on_start
        self._step_ms = step_ms
        self._debounce_ms = debounce_ms
        self._watch = watch
        self._closed = threading.Event()
        self._load = Load()
        self._stop = Stop(self._begin, self._load)
        self._skip_unreadable = False
        self._backoff = 0.0
        self._began_at = 0.0
        self._thread = threading.Thread(target=self.run, name="inbox-watcher", daemon=True)
        self.is_watching = False
        self.failures = 0
        self.failure = ""

    def start(self) -> None:
        """Begins in a thread; `on_start` says when it stands."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and waits for it."""
        self._closed.set()
        self._stop.asked = True
        if self._thread.ident is not None:
            self._thread.join()

    def restart(self) -> None:
        """The directories are other ones than those that are watched, though their names are the same."""
        self._stop.asked = True

    def run(self) -> None:
        """Watches until `close`, again and again."""
        while not self._closed.wait(self._backoff):
            self.run_once()

    def run_once(self) -> None:
        """Watches until told to stop or until it fails."""
        self._stop = Stop(self._begin, self._load)
        if self._closed.is_set():
            return
        try:
            self._follow()
            self._backoff = 0.0
        # Around one watcher: whatever ends it, the files must still be noticed. watchfiles raises RuntimeErrors of its
        # own for names that are not UTF-8, OSErrors for missing or denied folders and when no more can be watched.
        except Exception as error:  # noqa: BLE001
            self._note_failure(error)
        finally:
            self.is_watching = False

    def _follow(self) -> None:
        changes = self._watch(
            *self._paths(),
            watch_filter=None,
            step=self._step_ms,
            debounce=self._debounce_ms,
            rust_timeout=0,
            stop_event=self._stop,
            raise_interrupt=False,
            ignore_permission_denied=self._skip_unreadable,
        )
        for batch in changes:
            removed = {path for change, path in batch if change is Change.deleted}
            changed = {path for change, path in batch if change is not Change.deleted}
            self._on_change(changed, removed - changed)

    def _begin(self) -> None:
        self._began_at = time.monotonic()
        self.is_watching = True
        self._on_start()

    def _note_failure(self, error: Exception) -> None:
        # With unreadable folders skipped every other fault of a folder is skipped too, so only where it must be.
        self._skip_unreadable = self._skip_unreadable or isinstance(error, PermissionError)
        self.failures += 1
        self.failure = str(error)
        stood = self.is_watching and time.monotonic() - self._began_at > HEALTHY_SECONDS
        doubled = FIRST_BACKOFF_SECONDS if stood else max(self._backoff * 2, FIRST_BACKOFF_SECONDS)
        self._backoff = min(doubled, LONGEST_BACKOFF_SECONDS)
        _log.warning("the inbox's watcher failed; it is scanned until the next try: %s", error)
