"""`runner serve` as a process: what it prints, how it stands by, how it ends."""

from __future__ import annotations

import signal
import socket
import stat
import time
from pathlib import Path

import httpx2
import pytest

from runner.web.sockets import can_connect
from tests.e2e.conftest import CONFIG, Command, Serving


def test_it_says_where_it_is(project: Path) -> None:
    """The address and the inbox, once it answers there."""
    server = Serving(project)
    address = server.await_line(r"serving (http://127\.0\.0\.1:\d+) ")[1]
    inbox = server.await_line(r"inbox +(.*)")[1]
    assert httpx2.get(f"{address}/live").json() == {"status": "alive"}
    assert Path(inbox) == project / "data" / "inbox"
    assert stat.S_IMODE((project / "data" / "runner.sock").stat().st_mode) == 0o600
    assert server.stop() == 0


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_soon_and_cleanly(cli: Command, project: Path, serving: Serving, with_signal: signal.Signals) -> None:
    """A task that runs goes back to the queue; an open stream and an idle connection do not hold it up."""
    task_id = cli("submit", "wait_for", "--set", f"gate={project / 'gate'}").out.strip()
    transport = httpx2.HTTPTransport(uds=str(project / "data" / "runner.sock"))
    with (
        httpx2.Client(transport=transport, base_url="http://runner") as client,
        client.sse(f"/api/v1/tasks/{task_id}/events") as events,
    ):
        assert next(iter(events)).event == "status"
        began = time.monotonic()
        assert serving.stop(with_signal) == 0
    assert time.monotonic() - began < 5
    assert "Traceback" not in serving.printed
    assert not can_connect(project / "data" / "runner.sock")
    assert cli("show", task_id, "--json").json["status"] == "pending"


def test_a_second_one_stands_by_and_takes_over(cli: Command, project: Path, serving: Serving) -> None:
    """It says for whom it waits; when that one is killed, it serves."""
    standby = Serving(project)
    pid = standby.await_line(r"standing by: process (\d+) owns .* since \S+")[1]
    assert int(pid) == serving.process.pid
    serving.stop(signal.SIGKILL)
    standby.await_line("serving ")
    assert cli("submit", "count", "note.txt", "--wait").code == 0
    assert standby.stop() == 0


def test_a_standby_ends_when_it_is_told(project: Path, serving: Serving) -> None:
    """It owns nothing, so there is nothing to drain; the owner goes on."""
    standby = Serving(project)
    standby.await_line("standing by")
    assert standby.stop() == 0
    assert can_connect(project / "data" / "runner.sock")


def test_a_taken_port_is_a_matter_of_configuration(project: Path, serving: Serving) -> None:
    """Exit code 2, and the way out."""
    port = httpx2.URL(f"http://x{serving.printed.split('127.0.0.1')[1].split()[0]}").port
    other = Serving(project, "--data", "other", "--port", str(port))
    assert other.await_end() == 2
    assert "the port is taken" in other.printed


def test_a_taken_port_of_grpc_is_told_with_the_way_out(cli: Command, project: Path) -> None:
    """The rest of the runner goes on; the doctor knows, too."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (project / "config.yaml").write_text(CONFIG.replace("grpc: {port: 0}", f"grpc: {{port: {port}}}"))
        server = Serving(project)
        assert "`grpc: {port: " in server.await_line(rf"grpc +not served: .*:{port} is taken.*")[0]
        assert f":{port} is taken" in cli("doctor").out
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http: {prot: 1}", "config.yaml:1"),
        ("http: {host: 0.0.0.0}", "http.host"),
        ("auth: {mode: cokie}", "auth.mode"),
        ("data_dir: [", "config.yaml"),
    ],
)
def test_a_bad_configuration_is_named_with_its_line(cli: Command, project: Path, text: str, said: str) -> None:
    """Exit code 2, nothing is started."""
    (project / "config.yaml").write_text(text)
    ended = cli("serve")
    assert ended.code == 2
    assert said in ended.err
    assert not (project / "data").exists()


def test_a_directory_that_others_can_write_to_is_refused(cli: Command, project: Path) -> None:
    """Exit code 77 and the way out, in every command; a setting says that it is meant."""
    (project / "data").mkdir()
    (project / "data").chmod(0o777)
    refused = cli("serve")
    assert refused.code == cli("ls").code == 77
    assert "chmod go-w" in refused.err
    text = (project / "config.yaml").read_text()
    (project / "config.yaml").write_text(text.replace("storage: {", "storage: {allow_shared: true, "))
    assert cli("ls").code == 0


def test_what_it_makes_is_closed_to_others(project: Path, serving: Serving) -> None:
    """Whatever the umask of whoever started it."""
    made = [path for path in (project / "data").rglob("*") if not path.is_symlink()]
    assert len(made) > 10
    assert [path for path in made if path.stat().st_mode & 0o077] == []


def test_a_broken_handler_keeps_nothing_from_serving(cli: Command, project: Path) -> None:
    """It is shown by `runner handlers` while the others run."""
    (project / "handlers" / "broken.py").write_text("def (")
    server = Serving(project, "--json")
    server.await_line('"api": "http')
    assert "broken.py:1" in cli("handlers").err
    assert cli("submit", "count", "note.txt", "--wait").code == 0
    assert server.stop() == 0
