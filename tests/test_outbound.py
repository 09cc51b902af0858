import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest

from runner.errors import AnswerTooLarge, ConfigError, Unreachable, UrlNotAllowed
from runner.outbound import Policy, Resolve, call, check_address, check_url, open_client, read_policy, resolve
from tests.site import Answer, Asked, Site, make_certificate

HERE = read_policy({"networks": ["127.0.0.1/32"]})


@pytest.fixture
def site() -> Iterator[Site]:
    """A server that says hello."""
    with Site().serving() as site:
        site.on("/", Answer(body=b"hello"))
        yield site


def read(url: str, policy: Policy = HERE, resolve: Resolve = resolve) -> bytes:
    """The body of an answer."""
    with open_client(policy, resolve=resolve) as client, call(client, "GET", url) as response:
        return response.read()


def named(*addresses: str) -> Resolve:
    """Every name means these addresses."""
    return lambda host, port: addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "168.63.129.16",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "2001:db8::1",
    ],
)
def test_what_is_not_public_is_not_called(address: str) -> None:
    """The machine itself, its networks, the inside of a cloud, and the same written as IPv6, are out of reach."""
    with pytest.raises(UrlNotAllowed):
        check_address(address, Policy())


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"])
def test_what_is_public_may_be_called(address: str) -> None:
    """Negative control of the one above."""
    check_address(address, Policy())


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://127.0.0.1:6379/_INFO",
        "//example.com/",
        "example.com",
        "http://",
        "http://user:word@example.com/",
        "http://example.com\r\nHost: other/",
        "http://exa mple.com/",
        "http://example.com:99999/",
        "",
    ],
)
def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    """Another scheme, a user name in it, no host, or no URL at all."""
    with pytest.raises(UrlNotAllowed):
        check_url(url)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_not_called_however_it_is_written(site: Site, host: str) -> None:
    """Odd ways to write an address mean the same to the system, so they do to the check."""
    with pytest.raises((UrlNotAllowed, Unreachable)):
        read(site.url(host=host), Policy())
    assert site.asked == []


def test_a_network_that_is_allowed_can_be_called(site: Site) -> None:
    """`networks` opens what the policy names."""
    assert read(site.url()) == b"hello"


def test_with_hosts_only_those_are_called(site: Site) -> None:
    """A list of names is the whole list; a star stands for what is below one."""
    policy = read_policy({"hosts": ["*.good.example", "good.example"], "networks": ["127.0.0.1/32"]})
    to_site = named("127.0.0.1")

    assert read(site.url(host="api.good.example"), policy, to_site) == b"hello"
    assert read(site.url(host="GOOD.example."), policy, to_site) == b"hello"
    for other in ("evilgood.example", "good.example.evil", "127.0.0.1"):
        with pytest.raises(UrlNotAllowed):
            read(site.url(host=other), policy, to_site)


def test_one_address_of_many_that_is_not_allowed_refuses_them_all(site: Site) -> None:
    """A name that means a public and a private address is not tried with either."""
    with pytest.raises(UrlNotAllowed):
        read(site.url(host="two.example"), resolve=named("127.0.0.1", "10.0.0.1"))
    assert site.asked == []


def test_a_name_that_changes_its_meaning_gains_nothing(site: Site) -> None:
    """The connection goes to the address that was checked; the name is asked for once."""
    asked: list[str] = []

    def rebind(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    with Site("127.0.0.2", site.port).serving() as inside:
        inside.on("/", Answer(body=b"secret"))
        assert read(site.url(host="rebind.example"), resolve=rebind) == b"hello"
        assert asked == ["rebind.example"]
        assert inside.asked == []


def test_the_next_address_is_tried_if_one_does_not_answer(site: Site) -> None:
    """A server with two addresses, one of them dead, is reached."""
    policy = read_policy({"networks": ["127.0.0.0/8"]})
    assert read(site.url(host="two.example"), policy, named("127.0.0.3", "127.0.0.1")) == b"hello"


def test_the_name_is_what_the_server_hears(site: Site) -> None:
    """Connected to by its number, a server is still asked for by its name."""
    read(site.url(host="named.example"), resolve=named("127.0.0.1"))
    assert site.asked[0].headers["host"] == f"named.example:{site.port}"


def test_a_redirect_to_where_nobody_may_go_is_not_followed(site: Site) -> None:
    """Each hop is checked as the first one was."""
    with Site("127.0.0.2").serving() as inside:
        for number, target in enumerate([inside.url(), "file:///etc/passwd", "http://169.254.169.254/latest/"]):
            site.on(f"/{number}", Answer(302, headers={"Location": target}))
            with pytest.raises((UrlNotAllowed, Unreachable)):
                read(site.url(f"/{number}"))
        assert inside.asked == []


def test_redirects_end(site: Site) -> None:
    """A circle is left after as many hops as the policy allows."""
    site.on("/round", Answer(302, headers={"Location": "/round"}))
    with pytest.raises(Unreachable, match="redirects"):
        read(site.url("/round"), HERE.model_copy(update={"max_redirects": 3}))
    assert len(site.asked) == 4


def test_what_was_meant_for_one_server_is_not_told_to_another(site: Site) -> None:
    """Headers of the caller stay behind when a redirect leads to another server."""
    policy = read_policy({"networks": ["127.0.0.0/8"]})
    with Site("127.0.0.2").serving() as other, open_client(policy) as client:
        other.on("/", Answer())
        site.on("/moved", Answer(307, headers={"Location": "/here"}))
        site.on("/here", Answer(307, headers={"Location": other.url()}))
        with call(client, "POST", site.url("/moved"), headers={"X-Key": "secret"}, content=b"{}"):
            pass
        assert [asked.headers.get("x-key") for asked in site.asked + other.asked] == ["secret", "secret", None]


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "5000", "Connection": "close"}])
def test_an_answer_that_is_too_large_is_broken_off(site: Site, headers: dict[str, str]) -> None:
    """Whatever it says of its size, no more than the policy allows is kept."""
    site.on("/large", Answer(body=b"x" * 5000, headers=headers))
    with pytest.raises(AnswerTooLarge, match="4KiB"):
        read(site.url("/large"), HERE.model_copy(update={"max_body_bytes": 4096}))


def test_an_answer_that_does_not_say_its_size_is_broken_off_too(site: Site) -> None:
    """The bytes are counted as they come."""
    chunk = b"800\r\n" + b"x" * 2048 + b"\r\n"
    site.on("/endless", Answer(body=chunk * 10, headers={"Transfer-Encoding": "chunked", "Content-Length": ""}))
    with pytest.raises((AnswerTooLarge, Unreachable)):
        read(site.url("/endless"), HERE.model_copy(update={"max_body_bytes": 4096}))


def test_a_compressed_answer_is_refused(site: Site) -> None:
    """Nobody asked for one, and a small one can fill the memory."""
    site.on("/bomb", Answer(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}))
    with pytest.raises(Unreachable, match="compressed"):
        read(site.url("/bomb"))
    assert site.asked[0].headers["accept-encoding"] == "identity"


def test_an_answer_in_drips_has_a_time_to_end(site: Site) -> None:
    """A server that keeps sending a little does not hold a task for ever."""
    site.on("/drip", Answer(body=b"x" * 10_000, drip=True))
    with pytest.raises(Unreachable, match="took longer than 300ms"):
        read(site.url("/drip"), HERE.model_copy(update={"total_seconds": 0.3}))


def test_a_silent_server_is_given_up(site: Site) -> None:
    """Nothing at all for `silence_timeout` is no answer."""

    def wait(_: Asked) -> Answer:
        site.released.wait()
        return Answer()

    site.on("/silent", wait)
    with pytest.raises(Unreachable, match="in time"):
        read(site.url("/silent"), HERE.model_copy(update={"silence_seconds": 0.3}))


def test_a_call_that_waits_can_be_told_to_stop(site: Site) -> None:
    """Whoever cancels does not wait for a slow server."""
    told = threading.Event()

    def wait(_: Asked) -> Answer:
        told.set()
        site.released.wait()
        return Answer()

    def check() -> None:
        if told.is_set():
            raise KeyError("stop")

    site.on("/silent", wait)
    with open_client(HERE, check_cancelled=check) as client, pytest.raises(KeyError, match="stop"):
        client.get(site.url("/silent"))


def test_a_server_that_is_not_there_is_unreachable() -> None:
    """No name, and nobody who listens."""
    with Site().serving() as gone:
        url = gone.url()
    with pytest.raises(Unreachable, match="refused"):
        read(url)
    with pytest.raises(Unreachable, match="no address"):
        read("http://nowhere.example/", resolve=named())


def test_proxies_of_the_environment_play_no_part(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name itself, and check nothing."""
    with Site().serving() as proxy:
        for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url())
        assert read(site.url()) == b"hello"
        assert proxy.asked == []


def test_one_connection_serves_many_requests(site: Site) -> None:
    """A crawler that asks a hundred times connects once, and resolves once."""
    asked: list[str] = []

    def remember(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    with open_client(HERE, resolve=remember) as client:
        for _ in range(3):
            assert client.get(site.url(host="kept.example")).content == b"hello"
    assert asked == ["kept.example"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for secure.example, and its key, in one file."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "secure.example")


def test_a_pinned_address_must_show_the_certificate_of_the_name(certificate: Path) -> None:
    """Connected to by number, the server still has to be who was asked for."""
    policy = HERE.model_copy(update={"ca_file": certificate})
    with Site(certificate=certificate).serving() as site:
        site.on("/", Answer(body=b"hello"))
        assert read(site.url(host="secure.example"), policy, named("127.0.0.1")) == b"hello"
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            read(site.url(host="other.example"), policy, named("127.0.0.1"))
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            read(site.url(host="secure.example"), HERE, named("127.0.0.1"))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"host": ["a.example"]}, "host: Extra inputs"),
        ({"hosts": ["http://a.example"]}, "hosts.0: must be a name"),
        ({"networks": ["10.0.0.1/8"]}, "networks.0"),
        ({"total_timeout": "soon"}, "total_timeout: must be a length of time"),
    ],
)
def test_a_policy_that_cannot_be_read_names_its_faults(section: dict[str, object], said: str) -> None:
    """What an operator mistyped is no rule that is silently left out."""
    with pytest.raises(ConfigError, match=said):
        read_policy(section)


def test_a_file_of_certificates_that_is_none_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    """Not one of the server that is called."""
    with pytest.raises(ConfigError, match="ca_file"):
        open_client(HERE.model_copy(update={"ca_file": tmp_path / "absent.pem"}))


def test_the_client_itself_keeps_to_the_policy(site: Site) -> None:
    """Whoever uses httpx2's own methods, redirects too, is held to the same."""
    site.on("/out", Answer(302, headers={"Location": "http://10.0.0.1/"}))
    with open_client(HERE) as client, pytest.raises(UrlNotAllowed):
        client.get(site.url("/out"), follow_redirects=True)
    with open_client(HERE) as client, pytest.raises(httpx2.ConnectError):
        client.get("http://nowhere.invalid/")


def test_through_a_proxy_only_hosts_that_are_named_are_called(site: Site) -> None:
    """It looks up names itself: where they lead to cannot be checked."""
    policy = read_policy({"proxy": site.url(""), "hosts": ["away.example"]})
    site.on("http://away.example/", Answer(body=b"from far away"))

    assert read("http://away.example/", policy, named("127.0.0.1")) == b"from far away"
    for url in ("http://localhost/", "http://127.0.0.1/", "http://elsewhere.example/"):
        with pytest.raises(UrlNotAllowed):
            read(url, policy)


def test_a_redirect_behind_a_proxy_is_checked_too(site: Site) -> None:
    """The proxy may well get to where nobody should."""
    policy = read_policy({"proxy": site.url(""), "hosts": ["away.example"]})
    site.on("http://away.example/", Answer(302, headers={"Location": "http://metadata.internal/"}))

    with pytest.raises(UrlNotAllowed):
        read("http://away.example/", policy)


def test_a_proxy_is_told_who_calls_and_may_refuse(site: Site) -> None:
    """By the name and the password in its address; a refusal of a tunnel is a server that cannot be reached."""
    policy = read_policy({"proxy": site.url("").replace("//", "//ann:secret@"), "hosts": ["away.example"]})
    site.on("http://away.example/", Answer(body=b"hello"))

    read("http://away.example/", policy)

    assert site.asked[0].headers["proxy-authorization"] == "Basic YW5uOnNlY3JldA=="
    with pytest.raises(Unreachable, match="501"):
        read("https://away.example/", policy)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"proxy": "http://127.0.0.1:3128"}, "needs hosts"),
        ({"proxy": "127.0.0.1:3128", "hosts": ["a.example"]}, "must be an address"),
        ({"proxy": "socks5://127.0.0.1", "hosts": ["a.example"]}, "must be an address"),
        ({"proxy": "http://[", "hosts": ["a.example"]}, "must be an address"),
        ({"proxy": "http://a:b:c", "hosts": ["a.example"]}, "must be an address"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_a_fault_of_the_configuration(section: dict[str, object], said: str) -> None:
    """Said before anything is called."""
    with pytest.raises(ConfigError, match=said):
        read_policy(section)
