"""How many bytes a user's files take up, and how many they may: inputs, results, and what is on its way in.

What lies on the disk is added up by looking there, and what was found counts for twenty times as long as the looking
took: so it never costs more than a twentieth of anybody's time, and of a user with few files it is never old. What has
come in since then is added, so nobody gets past their quota by being quick; and before somebody is refused it is looked
again a little sooner, for they may have made room.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from runner.config import LimitsConfig
from runner.errors import QuotaExceeded
from runner.store.files import Layout

PATIENCE: Final = 20
PATIENCE_BEFORE_REFUSAL: Final = 4
MAX_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found on the disk, when (monotonic seconds), and how long that took."""

    bytes: int
    at: float
    seconds: float

    def is_good(self, now: float, patience: int) -> bool:
        """Whether it counts for those who have so much patience."""
        return now < self.at + patience * self.seconds


class Claim:
    """What one request brings in. It counts from its first byte; released, it counts as what lies on the disk."""

    def __init__(self, quota: Quota, user_id: str) -> None:
        self.size = 0
        self._quota = quota
        self._user_id = user_id

    def add(self, size: int) -> None:
        """So many bytes more. Raises `QuotaExceeded`; may look at the disk."""
        if self._quota.limit_of(self._user_id) is not None:
            self._quota.claim(self._user_id, size)
            self.size += size


class Quota:
    """The bytes of all users. From any thread; what may look at the disk says so."""

    def __init__(self, layout: Layout, limits: LimitsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._layout = layout
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._found: dict[str, _Found] = {}
        self._claimed: Counter[str] = Counter()
        self._since: Counter[str] = Counter()
        self._further: list[Callable[[str], int]] = []

    def change(self, limits: LimitsConfig) -> None:
        """Other limits from now on."""
        self._limits = limits

    def count_also(self, further: Callable[[str], int]) -> None:
        """What else a user has: looked up whenever the disk is looked at."""
        self._further.append(further)

    def limit_of(self, user_id: str) -> int | None:
        """How many bytes a user may have; None: any number."""
        return None if user_id in self._limits.exempt_users else self._limits.max_bytes_per_user

    def is_known(self, user_id: str) -> bool:
        """Whether `check` would answer without a look at the disk."""
        found = self._found.get(user_id)
        return self.limit_of(user_id) is None or (found is not None and found.is_good(self._clock(), PATIENCE))

    def used_by(self, user_id: str, patience: int = PATIENCE) -> int:
        """How many bytes a user has. May look at the disk."""
        found = self._found.get(user_id)
        if found is None or not found.is_good(self._clock(), patience):
            found = self._look(user_id)
        return found.bytes + self._since[user_id]

    def check(self, user_id: str, size: int = 0) -> None:
        """Raises `QuotaExceeded` where so many bytes more are too many, or nothing is left. May look at the disk."""
        self._check(user_id, size, 0)

    @contextmanager
    def claiming(self, user_id: str) -> Iterator[Claim]:
        """What comes in while the block lasts."""
        claim = Claim(self, user_id)
        try:
            yield claim
        finally:
            with self._lock:
                self._claimed[user_id] -= claim.size
                self._since[user_id] += claim.size

    def claim(self, user_id: str, size: int) -> None:
        """What `Claim.add` does."""
        with self._lock:
            self._claimed[user_id] += size
            claimed = self._claimed[user_id]
        try:
            self._check(user_id, 0, claimed)
        except QuotaExceeded:
            with self._lock:
                self._claimed[user_id] -= size
            raise

    def _check(self, user_id: str, size: int, claimed: int) -> None:
        limit = self.limit_of(user_id)
        if limit is None:
            return
        used = 0
        for patience in (PATIENCE, PATIENCE_BEFORE_REFUSAL):
            used = self.used_by(user_id, patience)
            if used + claimed + size <= limit and used < limit:
                return
        raise QuotaExceeded(f"your files may take up {limit} bytes, and {used} of them are used; delete some tasks")

    def _look(self, user_id: str) -> _Found:
        with self._lock:
            # What is released from here on may be counted twice until the next look, but never not at all.
            self._since.pop(user_id, None)
        began = self._clock()
        folders = (f"{self._layout.uploads}/{user_id}", f"{self._layout.results}/{user_id}")
        total = sum(map(_size_of, folders)) + sum(further(user_id) for further in self._further)
        ended = self._clock()
        found = _Found(total, ended, ended - began)
        with self._lock:
            if len(self._found) >= MAX_REMEMBERED:
                self._found.clear()
            self._found[user_id] = found
        return found


def _size_of(directory: str) -> int:
    """The bytes of all files below a folder; of what goes away meanwhile nothing."""
    total, folders = 0, [directory]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total
