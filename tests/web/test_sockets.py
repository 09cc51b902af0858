"""The Unix socket: private from its first moment, and reachable however long its path."""

from __future__ import annotations

import socket
import stat
import threading
from pathlib import Path

import pytest

from runner.errors import ConfigError
from runner.web.sockets import can_connect, listen_on_path, listen_on_port, short_path


def long_path(directory: Path) -> Path:
    """A socket path of more than the kernel's 108 bytes."""
    deep = directory / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    return deep / "runner.sock"


@pytest.mark.parametrize("make", [lambda directory: directory / "runner.sock", long_path])
def test_a_socket_is_only_for_its_user_and_can_be_reached(make: object, tmp_path: Path) -> None:
    """Whatever the length of its path."""
    assert callable(make)
    path: Path = make(tmp_path)
    with listen_on_path(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert can_connect(path)
    assert not can_connect(path)


def test_a_socket_that_a_dead_owner_left_is_replaced(tmp_path: Path) -> None:
    """`kill -9` leaves the file behind; the next owner takes its place."""
    path = tmp_path / "runner.sock"
    listen_on_path(path).close()
    with listen_on_path(path):
        assert can_connect(path)


def test_nobody_answers_where_there_is_no_socket(tmp_path: Path) -> None:
    """A missing file and a plain one are both nobody."""
    (tmp_path / "plain").touch()
    assert not can_connect(tmp_path / "missing")
    assert not can_connect(tmp_path / "plain")


def test_a_long_path_is_reached_without_proc_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on Linux a private link does the same."""
    path = long_path(tmp_path)
    real = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda self: str(self) != "/proc/self/fd" and real(self))
    with listen_on_path(path):
        assert can_connect(path)
        with short_path(path) as address:
            assert len(address) < 60


def test_many_threads_reach_a_long_path_at_once(tmp_path: Path) -> None:
    """The way there is not a change of the working directory, which all threads share."""
    path = long_path(tmp_path)
    reached: list[bool] = []
    with listen_on_path(path):
        threads = [threading.Thread(target=lambda: reached.append(can_connect(path))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert reached == [True] * 8


def test_a_taken_port_is_named_with_the_way_out() -> None:
    """The most common reason why a server does not start is said in words."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port}: the port is taken"):
            listen_on_port("127.0.0.1", port)


def test_an_answer_in_two_pieces_does_not_wait_for_the_client() -> None:
    """Head and body leave at once: Nagle's algorithm is off for whoever connects."""
    with listen_on_port("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
