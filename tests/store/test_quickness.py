"""Whether somebody who has other things to do may wait for the disk."""

from __future__ import annotations

from runner.store.quickness import KNOWN_SECONDS, QUICK_SECONDS, REMEMBERED, Quickness


class Disk:
    """Takes as long as it is told to, by a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.quickness = Quickness(lambda: self.now)

    def take(self, seconds: float, times: int = 1) -> bool:
        """Whether it is quick after so many flushes."""
        for _ in range(times):
            began = self.quickness.began()
            self.now += seconds
            self.quickness.note(began)
        return bool(self.quickness)


def test_a_disk_is_not_quick_before_it_has_shown_it() -> None:
    """Nor after a single flush: that may have been luck."""
    disk = Disk()
    assert not disk.quickness
    assert not disk.take(QUICK_SECONDS / 10)
    assert disk.take(QUICK_SECONDS / 10, 10 * REMEMBERED)


def test_a_disk_that_is_slow_never_becomes_quick() -> None:
    """What turns takes longer than that for each flush."""
    assert not Disk().take(QUICK_SECONDS * 2, 1000)


def test_one_slow_flush_is_an_accident_and_a_long_one_is_not() -> None:
    """What hangs once may hang again at once; it has to show for a while that it does not."""
    disk = Disk()
    disk.take(QUICK_SECONDS / 10, 100)
    assert disk.take(QUICK_SECONDS * REMEMBERED / 2)
    assert not disk.take(1.0)
    assert not disk.take(QUICK_SECONDS / 10, 2 * REMEMBERED)
    assert disk.take(QUICK_SECONDS / 10, 10 * REMEMBERED)


def test_after_a_long_rest_nobody_knows() -> None:
    """It may have gone to sleep. One flush tells."""
    disk = Disk()
    disk.take(QUICK_SECONDS / 10, 100)
    disk.now += KNOWN_SECONDS + 1
    assert not disk.quickness
    assert disk.take(QUICK_SECONDS / 10)
