import base64
import hashlib
import hmac
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.context import Cancelled, Fail, Retry
from runner.errors import InvalidSubmission
from runner.task import Status
from tests.handlers.attempts import FOLDER, Attempt, parts_of
from tests.rig import Rig, opened
from tests.site import Answer, Asked, Site

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
HERE = {"outbound": {"networks": ["127.0.0.1/32"], "silence_timeout": "500ms"}}


@pytest.fixture
def site() -> Iterator[Site]:
    """A server that takes what it gets."""
    with Site().serving() as site:
        site.on("/", Answer(body=b'{"ok": true}', headers={"Content-Type": "application/json"}))
        yield site


def attempt(folder: Path, *inputs: Path, **config: Any) -> Attempt:
    """An attempt that may call this machine."""
    return Attempt(folder, "http_call", inputs, config={**HERE, **config})


def test_json_is_sent_and_the_answer_kept(site: Site, tmp_path: Path) -> None:
    """What the server gets is the JSON of the task, what it answers is the result."""
    result = attempt(tmp_path).run(url=site.url(), json={"n": [1, None, "ü"]}, headers={"X-Mine": "1"})

    (asked,) = site.asked
    assert (asked.method, asked.body) == ("POST", '{"n":[1,null,"ü"]}'.encode())
    assert (asked.headers["content-type"], asked.headers["x-mine"]) == ("application/json", "1")
    assert (result["status"], result["body"], result["headers"]["content-type"]) == (
        200,
        {"ok": True},
        "application/json",
    )


def test_a_file_is_sent_as_it_is(site: Site, tmp_path: Path) -> None:
    """Its bytes are the body, and progress tells how much of it is on its way."""
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(range(256)) * 1000)
    one = attempt(tmp_path, path)

    one.run(url=site.url(), method="PUT")

    (asked,) = site.asked
    assert (asked.method, asked.body) == ("PUT", path.read_bytes())
    assert asked.headers["content-length"] == "256000"
    assert one.said[-1].message == "sent 256,000 of 256,000 bytes"


def test_an_answer_is_saved_where_it_is_wanted(site: Site, tmp_path: Path) -> None:
    """As an output, of any type and size that the policy allows."""
    site.on("/picture", Answer(body=b"\x89PNG" * 50_000))
    one = attempt(tmp_path)

    result = one.run(url=site.url("/picture"), method="GET", save_as="a.png")

    assert one.made(result).read_bytes() == b"\x89PNG" * 50_000
    assert result["size_bytes"] == 200_000


def test_a_large_answer_that_nobody_saves_is_left_out(site: Site, tmp_path: Path) -> None:
    """The call has succeeded; to fail for its body's sake would make it twice."""
    site.on("/large", Answer(body=b"x" * 100_000))
    result = attempt(tmp_path).run(url=site.url("/large"), method="GET")
    assert (result["status"], result["body"]) == (200, None)
    assert "save_as" in result["note"]


def test_an_answer_beyond_the_policy_is_not_saved(site: Site, tmp_path: Path) -> None:
    """And the task fails, since its file is what was wanted."""
    site.on("/large", Answer(body=b"x" * 100_000))
    policy = {**HERE["outbound"], "max_body_bytes": "10KiB"}
    with pytest.raises(Fail) as caught:
        attempt(tmp_path, outbound=policy).run(url=site.url("/large"), method="GET", save_as="a.bin")
    assert caught.value.code == "answer_too_large"


@pytest.mark.parametrize("body", [b"not json", b'{"n": NaN}', b"\xff", b"[" * 500])
def test_an_answer_that_is_not_what_it_says_is_kept_as_text_or_not_at_all(
    site: Site, tmp_path: Path, body: bytes
) -> None:
    """A server's mistake does not fail a call that has succeeded."""
    site.on("/odd", Answer(body=body, headers={"Content-Type": "application/json"}))
    result = attempt(tmp_path).run(url=site.url("/odd"))
    assert result["body"] == (None if body == b"\xff" else body.decode())


def test_a_signature_can_be_checked_by_whoever_has_the_secret(site: Site, tmp_path: Path) -> None:
    """HMAC-SHA256 of `id.timestamp.body`, once for each secret."""
    attempt(tmp_path, secrets=[SECRET, "an older secret of ours"]).run(
        url=site.url(), json={"a": 1}, sign=True, message_id="msg_1"
    )

    (asked,) = site.asked
    assert asked.headers["webhook-id"] == "msg_1"
    signed = f"msg_1.{asked.headers['webhook-timestamp']}.".encode() + asked.body
    keys = (b"0123456789abcdef01234567", b"an older secret of ours")
    macs = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys]
    assert asked.headers["webhook-signature"] == f"v1,{macs[0]} v1,{macs[1]}"


def test_the_signature_is_that_of_the_standard() -> None:
    """The example in the specification of Standard Webhooks."""
    parts = parts_of("http_call")
    parcel = parts["Parcel"](b'{"test": 2432232314}', {})
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    signed = parts["signature_of"](parcel, (secret,), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330)
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_file_is_signed_like_anything_else(site: Site, tmp_path: Path) -> None:
    """Its bytes are what is signed."""
    path = tmp_path / "data.bin"
    path.write_bytes(b"x" * 200_000)
    attempt(tmp_path, path, secrets=["sixteen bytes or more"]).run(url=site.url(), sign=True, message_id="m")

    (asked,) = site.asked
    signed = f"m.{asked.headers['webhook-timestamp']}.".encode() + asked.body
    mac = base64.b64encode(hmac.digest(b"sixteen bytes or more", signed, hashlib.sha256)).decode()
    assert asked.headers["webhook-signature"] == f"v1,{mac}"


def test_without_a_secret_nothing_is_signed_and_nothing_sent(site: Site, tmp_path: Path) -> None:
    """A receiver that checks would refuse it, one that does not would be misled."""
    with pytest.raises(Fail, match="secrets") as caught:
        attempt(tmp_path).run(url=site.url(), sign=True)
    assert caught.value.code == "no_secret"
    assert site.asked == []


def test_headers_of_the_configuration_go_to_their_host_only(site: Site, tmp_path: Path) -> None:
    """A token need not stand in the task, and no other server gets it."""
    one = attempt(tmp_path, headers={"127.0.0.1": {"Authorization": "Bearer t"}, "other.example": {"X-Other": "1"}})
    one.run(url=site.url())
    (asked,) = site.asked
    assert asked.headers["authorization"] == "Bearer t"
    assert "x-other" not in asked.headers


def test_only_trusted_users_speak_in_the_operators_name(site: Site, tmp_path: Path) -> None:
    """Others get neither signatures nor the headers of the configuration, and keep their own."""
    config = {**HERE, "secrets": [SECRET], "headers": {"127.0.0.1": {"Authorization": "Bearer t"}}}
    stranger = Attempt(tmp_path, "http_call", (), config=config, user="ann")

    stranger.run(url=site.url(), headers={"X-Mine": "1"})
    assert "authorization" not in site.asked[0].headers
    with pytest.raises(Fail) as caught:
        stranger.run(url=site.url(), sign=True)
    assert caught.value.code == "not_trusted"
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    ("status", "headers", "expected", "after"),
    [
        (500, {}, Retry, None),
        (503, {"Retry-After": "120"}, Retry, 120.0),
        (429, {"Retry-After": "9999999"}, Retry, 86_400.0),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, Retry, 0.0),
        (503, {"Retry-After": "soon"}, Retry, None),
        (404, {}, Fail, None),
        (401, {}, Fail, None),
        (304, {}, Fail, None),
    ],
)
def test_the_status_decides_whether_it_is_tried_again(
    site: Site, tmp_path: Path, status: int, headers: dict[str, str], expected: type[Fail | Retry], after: float | None
) -> None:
    """What may pass is tried again, when the server wants it; what the caller did wrong is not."""
    site.on("/status", Answer(status, headers=headers))
    with pytest.raises((Fail, Retry), match=f"answers {status}") as caught:
        attempt(tmp_path).run(url=site.url("/status"))
    assert isinstance(caught.value, expected)
    assert caught.value.code == f"http_{status}"
    assert getattr(caught.value, "after", None) == after


@pytest.mark.parametrize(("status", "expected"), [(404, Retry), (302, Retry), (410, Fail), (503, Retry)])
def test_who_insists_is_satisfied_with_nothing_less(
    site: Site, tmp_path: Path, status: int, expected: type[Exception]
) -> None:
    """A webhook is delivered when its receiver says so, with 2xx; only one that is gone for good is given up."""
    site.on("/status", Answer(status, headers={"Location": "/"}))
    with pytest.raises((Fail, Retry)) as caught:
        attempt(tmp_path).run(url=site.url("/status"), insist=True)
    assert isinstance(caught.value, expected)
    assert len(site.asked) == 1


def test_a_server_that_is_slow_or_gone_is_tried_again(site: Site, tmp_path: Path) -> None:
    """It is not the task's fault."""

    def wait(_: Asked) -> Answer:
        site.released.wait()
        return Answer()

    site.on("/silent", wait)
    with pytest.raises(Retry) as slow:
        attempt(tmp_path).run(url=site.url("/silent"))
    with Site().serving() as gone:
        url = gone.url()
    with pytest.raises(Retry) as absent:
        attempt(tmp_path).run(url=url)
    assert slow.value.code == absent.value.code == "unreachable"


def test_private_addresses_are_out_of_reach(site: Site, tmp_path: Path) -> None:
    """By default; directly, and by a redirect from where one may go."""
    with pytest.raises(Fail) as direct:
        Attempt(tmp_path, "http_call", ()).run(url=site.url())
    site.on("/out", Answer(307, headers={"Location": "http://10.0.0.1/"}))
    with pytest.raises(Fail) as redirected:
        attempt(tmp_path).run(url=site.url("/out"))
    assert direct.value.code == redirected.value.code == "url_not_allowed"


def test_a_file_goes_along_with_a_redirect(site: Site, tmp_path: Path) -> None:
    """307 means: the same, there."""
    path = tmp_path / "data.bin"
    path.write_bytes(b"x" * 100_000)
    site.on("/moved", Answer(307, headers={"Location": "/"}))
    attempt(tmp_path, path).run(url=site.url("/moved"))
    assert [len(asked.body) for asked in site.asked] == [100_000, 100_000]


def test_a_call_is_cancelled_while_it_waits(site: Site, tmp_path: Path) -> None:
    """Nobody waits for a server that does not answer."""
    asked, policy = threading.Event(), {"networks": ["127.0.0.1/32"]}
    one = attempt(tmp_path, outbound=policy)

    def wait(_: Asked) -> Answer:
        one.context.stop("cancelled")
        asked.set()
        site.released.wait()
        return Answer()

    site.on("/silent", wait)
    with pytest.raises(Cancelled):
        one.run(url=site.url("/silent"))
    assert asked.is_set()


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({}, "/payload/url"),
        ({"url": "ftp://example.com/"}, "/payload/url"),
        ({"url": "http://user:word@example.com/"}, "/payload/url"),
        ({"url": "http://example.com/", "method": "TRACE"}, "/payload/method"),
        ({"url": "http://example.com/", "headers": {"A": "1\r\nB: 2"}}, "/payload/headers"),
        ({"url": "http://example.com/", "headers": {"Host": "other"}}, "/payload/headers"),
        ({"url": "http://example.com/", "headers": {"webhook-signature": "v1,"}}, "/payload/headers"),
        ({"url": "http://example.com/", "save_as": "../x"}, "/payload/save_as"),
        ({"url": "http://example.com/", "message_id": "a.b"}, "/payload/message_id"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused(tmp_path: Path, payload: dict[str, Any], pointer: str) -> None:
    """With a pointer to what is wrong, before anything is stored."""
    with pytest.raises(InvalidSubmission) as caught:
        attempt(tmp_path).run(**payload)
    assert [problem.pointer for problem in caught.value.problems] == [pointer]


@pytest.mark.parametrize(
    "config",
    [
        {"secrets": ["short"]},
        {"secrets": ["whsec_%%%"]},
        {"secret": "sixteen bytes or more"},
        {"outbound": {"host": ["a"]}},
        {"headers": {"a.example": {"Host": "x"}}},
    ],
)
def test_a_wrong_configuration_fails_the_task_and_keeps_its_secrets(tmp_path: Path, config: dict[str, Any]) -> None:
    """What is wrong is named, what is secret is not."""
    with pytest.raises(Fail) as caught:
        attempt(tmp_path, **config).run(url="http://127.0.0.1:1/")
    assert caught.value.code == "invalid_config"
    assert "%%%" not in str(caught.value)
    assert "sixteen" not in str(caught.value)


def test_two_bodies_are_one_too_many(tmp_path: Path) -> None:
    """A file and JSON, or two files: it is not for us to choose."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    for inputs, json in (((path, path), None), ((path,), {"a": 1})):
        with pytest.raises(Fail) as caught:
            attempt(tmp_path, *inputs).run(url="http://127.0.0.1:1/", json=json)
        assert caught.value.code == "wrong_inputs"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A runner with the handlers of this repository."""
    patient = {"outbound": {"networks": ["127.0.0.1/32"], "silence_timeout": "60s"}}
    with opened(tmp_path, handlers_dir=FOLDER, handlers__http_call={"config": patient}) as rig:
        yield rig


def test_a_call_outlives_its_runner(site: Site, rig: Rig) -> None:
    """The next owner makes it again."""
    released = threading.Event()

    def wait(_: Asked) -> Answer:
        released.wait()
        return Answer()

    site.on("/slow", wait)
    task = rig.submit("http_call", url=site.url("/slow"))
    site.wait_for(1)
    rig.close(grace_seconds=0)
    released.set()
    rig.open()
    assert rig.until(task).status is Status.COMPLETED


def test_a_task_that_is_cancelled_hangs_up(site: Site, rig: Rig) -> None:
    """In the middle of an answer that takes its time."""
    site.on("/drip", Answer(body=b"x" * 10_000, drip=True))
    task = rig.submit("http_call", url=site.url("/drip"))
    site.wait_for(1)
    rig.it.cancel(task.id)
    assert rig.until(task).status is Status.CANCELLED
    assert (rig.it.get(task.id).attempt, len(site.asked)) == (1, 1)
