"""Cookies are signed; nobody else's are believed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.errors import ConfigError, UnsafeAccess
from runner.store import Files
from runner.web.keys import COOKIE_AGE, Identity, Signer, read_keys

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ANN = Identity("ann", "s" * 43, NOW)
OLD, NEW = b"o" * 32, b"n" * 32


def test_what_was_signed_is_believed() -> None:
    """With all that it says."""
    assert Signer([NEW]).verify(Signer([NEW]).sign(ANN), NOW) == ANN


@pytest.mark.parametrize(
    "value", ["", ".", "...", "a.b.c.d", "ann.0.s.", Signer([OLD]).sign(ANN), "\udcff.1.2.\udcff", "é" * 100]
)
def test_what_was_not_signed_is_not(value: str) -> None:
    """Whatever it is, it does not break the check either."""
    assert Signer([NEW]).verify(value, NOW) is None


def test_no_part_of_a_cookie_can_be_changed() -> None:
    """Neither the user nor the instant, the secret or the signature."""
    value = Signer([NEW]).sign(ANN)
    changed = (value[:n] + ("A" if value[n] != "A" else "B") + value[n + 1 :] for n in range(len(value) - 1))
    assert not any(Signer([NEW]).verify(other, NOW) for other in changed)


def test_an_old_cookie_is_believed_no_more() -> None:
    """A browser forgets it after 30 days, and so do we."""
    value = Signer([NEW]).sign(ANN)
    assert Signer([NEW]).verify(value, NOW + COOKIE_AGE) == ANN
    assert Signer([NEW]).verify(value, NOW + COOKIE_AGE + timedelta(seconds=1)) is None


def test_a_replaced_key_is_believed_as_long_as_it_is_in_the_list() -> None:
    """The newest one signs."""
    value = Signer([OLD]).sign(ANN)
    assert Signer([NEW, OLD]).verify(value, NOW) == ANN
    assert Signer([NEW, OLD]).sign(ANN) == Signer([NEW]).sign(ANN)


def test_the_keys_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    """0600, and the same ones the next time; a line above them is a newer one."""
    path = tmp_path / "secret.key"
    (made,) = read_keys(Files(), str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_keys(Files(), str(path)) == (made,)
    path.write_bytes(NEW + b"\n" + made + b"\n")
    assert read_keys(Files(), str(path)) == (NEW, made)


def test_a_key_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    """The power went while the first one was written."""
    (tmp_path / "secret.key.new").write_bytes(b"half")
    (made,) = read_keys(Files(), str(tmp_path / "secret.key"))
    assert len(made) >= 32
    assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_keys_that_others_can_read_are_refused(tmp_path: Path, mode: int) -> None:
    """Whoever reads them can be anybody."""
    path = tmp_path / "secret.key"
    path.write_bytes(NEW)
    path.chmod(mode)
    with pytest.raises(UnsafeAccess, match="chmod 600"):
        read_keys(Files(), str(path))


@pytest.mark.parametrize("content", [b"", b"\n", b"short\n", NEW + b"\nshort\n"])
def test_keys_that_can_be_guessed_are_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file is not a key."""
    path = tmp_path / "secret.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        read_keys(Files(), str(path))
