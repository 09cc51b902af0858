"""How often somebody may ask, and how many streams they may hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runner.web import limits
from runner.web.limits import BURST_SECONDS, Rate, network_of
from tests.web.conftest import Served, serve
from tests.web.test_tasks import TASKS, submit


def test_so_many_at_once_and_then_so_many_a_second() -> None:
    """A burst is as good as the quiet before it; afterwards the wait is told."""
    rate = Rate(10)
    taken = [rate.take("ann", 100.0) for _ in range(10 * BURST_SECONDS)]
    assert taken == [0.0] * 40
    assert rate.take("ann", 100.0) == pytest.approx(0.1)
    assert rate.take("ann", 100.1) == 0.0
    assert rate.take("ann", 100.1) == pytest.approx(0.1)
    assert rate.take("ann", 200.0) == 0.0


def test_a_refused_request_costs_nothing() -> None:
    """Who keeps asking is not put off for ever."""
    rate = Rate(10)
    for _ in range(1000):
        rate.take("ann", 100.0)
    assert rate.take("ann", 100.11) == 0.0


def test_one_does_not_pay_for_another() -> None:
    """Each key has its own count."""
    rate = Rate(1)
    for _ in range(10):
        rate.take("ann", 100.0)
    assert rate.take("ann", 100.0) > 0
    assert rate.take("bob", 100.0) == 0.0


def test_very_many_keys_are_not_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody with a million addresses fills no memory."""
    monkeypatch.setattr(limits, "MAX_REMEMBERED", 10)
    rate = Rate(1)
    for number in range(100):
        rate.take(str(number), 100.0)
    assert len(rate._due_at) == 10


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("127.0.0.1", None),
        ("127.9.9.9", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("unknown", "unknown"),
    ],
)
def test_addresses_are_counted_as_clients_get_them(address: str, network: str | None) -> None:
    """One each, a network of IPv6, and never our own."""
    assert network_of(address) == network


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Served]:
    """A runner that allows very little, behind a proxy on this machine."""
    with serve(
        tmp_path,
        auth__mode="cookie",
        http__rate_per_user=1,
        http__rate_per_address=1,
        http__streams_per_user=2,
        http__trusted_proxies=["127.0.0.1"],
    ) as served:
        yield served


def asked_until_refused(client: httpx2.Client, path: str, **headers: str) -> list[httpx2.Response]:
    """The answers to requests as fast as they go, the last of which is refused, if any is."""
    answers = [client.get(path, headers=headers)]
    while answers[-1].status_code == 200 and len(answers) < 50:
        answers.append(client.get(path, headers=headers))
    return answers


def test_a_user_who_asks_too_often_is_told_to_wait(strict: Served) -> None:
    """429 and when; another user is served."""
    me = "/api/v1/users/me"
    answers = asked_until_refused(strict.tcp, me)
    assert len(answers) > BURST_SECONDS
    assert answers[-1].status_code == 429
    assert (answers[-1].json()["code"], answers[-1].headers["retry-after"]) == ("rate_limited", "1")
    assert httpx2.get(f"http://127.0.0.1:{strict.port}{me}").status_code == 200


def test_an_address_that_asks_too_often_is_told_to_wait(strict: Served) -> None:
    """Whoever it says it is; the proxy tells its address, and another one is served."""
    with httpx2.Client(base_url=f"http://127.0.0.1:{strict.port}") as client:
        assert asked_until_refused(client, "/live", **{"X-Forwarded-For": "192.0.2.1"})[-1].status_code == 429
        assert client.get("/live", headers={"X-Forwarded-For": "192.0.2.2"}).status_code == 200


def test_an_untrusted_proxy_is_not_believed(tmp_path: Path) -> None:
    """Else everybody could be anybody."""
    with serve(tmp_path, http__rate_per_address=1) as served:
        statuses = {served.tcp.get("/live", headers={"X-Forwarded-For": "192.0.2.1"}).status_code for _ in range(10)}
    assert statuses == {200}


def test_a_user_holds_so_many_streams_and_no_more(tmp_path: Path) -> None:
    """Closing one makes room; the person at this machine is not counted."""
    with serve(tmp_path, auth__mode="token", http__streams_per_user=2) as served:
        token = served.socket.post("/api/v1/tokens", json={"name": "ann"}).json()["token"]
        served.tcp.headers["Authorization"] = f"Bearer {token}"
        events = f"{TASKS}/{submit(served, delay='1h')['id']}/events"
        with ExitStack() as streams:
            for _ in range(2):
                assert streams.enter_context(served.tcp.stream("GET", events)).status_code == 200
            refused = served.tcp.get(events)
            assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")
            for _ in range(3):
                assert streams.enter_context(served.socket.stream("GET", events)).status_code == 200
        until = time.monotonic() + 10
        while (status := status_of(served.tcp, events)) == 429 and time.monotonic() < until:
            threading.Event().wait(0.05)
        assert status == 200


def status_of(client: httpx2.Client, path: str) -> int:
    """The status of a stream, of which nothing more is read."""
    with client.stream("GET", path) as stream:
        return stream.status_code


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Served]:
    """A runner that lets a user, ann, have one of each open."""
    limits = {"http__waits_per_user": 1, "http__drafts_per_user": 1, "http__uploads_per_user": 1}
    with serve(tmp_path, auth__mode="token", **limits) as served:
        token = served.socket.post("/api/v1/tokens", json={"name": "ann"}).json()["token"]
        served.tcp.headers["Authorization"] = f"Bearer {token}"
        yield served


def code_of(answer: httpx2.Response) -> tuple[int, str | None, bool]:
    """The status, our code for it, and whether it says when to ask again."""
    return answer.status_code, answer.json().get("code"), "retry-after" in answer.headers


@pytest.mark.parametrize("batch", [False, True])
def test_a_user_has_so_many_drafts_and_no_more(narrow: Served, batch: bool) -> None:
    """What is no draft is still taken; deleting one makes room; the admin is not counted."""
    body: Any = {"type": "echo", "draft": True}
    path = f"{TASKS}:batch" if batch else TASKS
    sent = [body] if batch else body
    draft = narrow.tcp.post(TASKS, json=body).json()["id"]
    assert code_of(narrow.tcp.post(path, json=sent)) == (429, "too_many_drafts", True)
    assert narrow.tcp.get(f"{TASKS}/count").json() == {"count": 1}
    assert narrow.tcp.post(TASKS, json={"type": "echo"}).status_code == 201
    assert narrow.socket.post(path, json=sent).status_code == 201
    assert narrow.tcp.delete(f"{TASKS}/{draft}").status_code == 200
    assert narrow.tcp.post(path, json=sent).status_code == 201


def test_many_drafts_at_once_do_not_get_past_the_limit(narrow: Served) -> None:
    """Those on their way in count."""
    with ThreadPoolExecutor(8) as threads:
        sent = [threads.submit(narrow.tcp.post, TASKS, json={"type": "echo", "draft": True}) for _ in range(16)]
        statuses = [each.result().status_code for each in sent]
    assert statuses.count(201) <= 1
    assert set(statuses) <= {201, 429}


def test_a_user_has_so_many_uploads_begun_and_no_more(narrow: Served) -> None:
    """Ending one makes room."""
    draft = narrow.tcp.post(TASKS, json={"type": "echo", "draft": True}).json()["id"]
    head = {"Tus-Resumable": "1.0.0", "Upload-Length": "3"}
    begun = narrow.tcp.post(f"{TASKS}/{draft}/uploads", headers=head)
    assert begun.status_code == 201
    assert code_of(narrow.tcp.post(f"{TASKS}/{draft}/uploads", headers=head)) == (429, "too_many_uploads", True)
    piece = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    assert narrow.tcp.patch(begun.headers["location"], headers=piece, content=b"abc").status_code == 204
    assert narrow.tcp.post(f"{TASKS}/{draft}/uploads", headers=head).status_code == 201


def test_a_user_has_so_many_requests_waiting_and_no_more(narrow: Served) -> None:
    """A look that does not wait is answered all the same, and the end of one wait makes room."""
    place = f"{TASKS}/{submit(narrow, delay='1h')['id']}"
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(narrow.tcp.get, place, params={"wait": 15})
        until = time.monotonic() + 10
        while not narrow.service.events.watcher_count and time.monotonic() < until:
            threading.Event().wait(0.01)
        assert code_of(narrow.tcp.get(place, params={"wait": 15})) == (429, "too_many_waits", True)
        assert narrow.tcp.get(place).status_code == 200
        assert narrow.tcp.post(f"{place}/cancel").status_code == 200
        assert waiting.result().json()["status"] == "cancelled"
    assert narrow.tcp.get(place, params={"wait": 15}).status_code == 200
