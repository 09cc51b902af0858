"""Who is let in through TCP: nobody whom a web page sends."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from runner.config import HttpConfig
from runner.task import Source
from runner.web.door import Entrance, admin, allowed_hosts, find_fault, is_socket

HOSTS = allowed_hosts(HttpConfig())
OWN = {"host": "127.0.0.1:8080"}


def fault_of(method: str, headers: dict[str, str]) -> str | None:
    """The code with which a request is refused, if it is."""
    fault = find_fault({"method": method, "scheme": "http"}, Headers(headers), HOSTS)
    return fault.code if fault else None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080"])
def test_our_own_names_are_served(host: str) -> None:
    """With and without a port, in any case."""
    assert fault_of("GET", {"host": host}) is None


@pytest.mark.parametrize(
    "host", ["", "evil.example", "127.0.0.1.evil.example", "evil.example:8080", "x@localhost", "localhost:8080/", "::1"]
)
def test_a_foreign_host_name_is_refused(host: str) -> None:
    """A page that rebinds its own name to 127.0.0.1 reads nothing here."""
    assert fault_of("GET", {"host": host}) == "invalid_host"


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8080"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "https://127.0.0.1:8080"},
        {"origin": "null"},
    ],
)
def test_another_sites_page_changes_nothing(headers: dict[str, str]) -> None:
    """Neither by form nor by script, whatever its content type; reading is left to the browser's own rules."""
    assert fault_of("POST", OWN | headers) == "cross_site_request"
    assert fault_of("DELETE", OWN | headers) == "cross_site_request"
    assert fault_of("GET", OWN | headers) is None


@pytest.mark.parametrize(
    "headers", [{}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": "http://127.0.0.1:8080"}]
)
def test_programs_and_our_own_pages_may_change_things(headers: dict[str, str]) -> None:
    """A program sends neither header; our page sends its own origin."""
    assert fault_of("POST", OWN | headers) is None


def test_a_request_of_two_lengths_is_refused() -> None:
    """What one server reads as one request another reads as two."""
    assert fault_of("GET", OWN | {"content-length": "3", "transfer-encoding": "chunked"}) == "ambiguous_length"


def test_the_socket_is_the_admin_and_the_command_line_is_known() -> None:
    """A listener without a port is the socket; what names itself elsewhere gains nothing."""
    assert is_socket({"server": ("/data/runner.sock", None)})
    assert not is_socket({"server": ("127.0.0.1", 8080)})
    caller = admin(Headers({"user-agent": "runner-cli/1"}))
    assert (caller.entrance, caller.source, caller.may_name_files) == (Entrance.SOCKET, Source.CLI, True)
    assert admin(Headers({})).source == Source.HTTP


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "http://127.0.0.1:8080"}, None),
        ({}, None),
        ({"origin": "http://evil.example"}, "cross_site_request"),
        ({"origin": "http://127.0.0.1:9999"}, "cross_site_request"),
        ({"sec-fetch-site": "cross-site"}, "cross_site_request"),
        ({"host": "evil.example"}, "invalid_host"),
    ],
)
def test_another_sites_page_opens_no_websocket(headers: dict[str, str], code: str | None) -> None:
    """A handshake is a GET that the same-origin rules of browsers do not hold back."""
    fault = find_fault({"type": "websocket", "scheme": "ws"}, Headers(OWN | headers), HOSTS)
    assert (fault and fault.code) == code


def test_configured_hosts_replace_our_own() -> None:
    """What is listed is the whole list."""
    assert allowed_hosts(HttpConfig(allowed_hosts=("Runner.example",))) == {"runner.example"}
