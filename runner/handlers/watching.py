"""When to look at a folder again: soon after something changed in it, and every few seconds in any case."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Final

import watchfiles

_STEP_MS: Final = 50
_DEBOUNCE_MS: Final = 200


def hints(directory: Path, stop: Event, rescan_seconds: float) -> Iterator[None]:
    """Yield whenever it is worth looking, and every `rescan_seconds`, until `stop` is set.

    A folder that is not there, or is replaced by another, and a watcher that fails only make hints rarer.
    """
    while not stop.is_set():
        try:
            yield from _changes(directory, stop, rescan_seconds)
        # UnicodeDecodeError: one file name that is not UTF-8. RuntimeError: what watchfiles raises for the rest.
        except (OSError, RuntimeError, UnicodeDecodeError):
            stop.wait(1)
            yield


def _changes(directory: Path, stop: Event, rescan_seconds: float) -> Iterator[None]:
    changes = watchfiles.watch(
        directory,
        watch_filter=None,
        step=_STEP_MS,
        debounce=_DEBOUNCE_MS,
        rust_timeout=int(rescan_seconds * 1000),
        yield_on_timeout=True,
        recursive=False,
        raise_interrupt=False,
        stop_event=stop,
    )
    for _ in changes:
        yield
