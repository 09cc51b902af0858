from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from runner.context import Cancelled, Fail, Retry
from runner.errors import InvalidSubmission
from tests.handlers.attempts import Attempt
from tests.handlers.gallery import HTML, PNG, GallerySite, PageSite
from tests.site import Answer, Site

LOOPBACK = {"networks": ["127.0.0.0/8"]}
AT_ONCE = {"outbound": LOOPBACK, "backoff": 0}
BUSY = Answer(503)


@pytest.fixture
def gallery() -> Iterator[GallerySite]:
    """Five works, the second with two pictures."""
    with GallerySite({"11": 1, "12": 2, "13": 1, "14": 1, "15": 1}).serving() as site:
        assert isinstance(site, GallerySite)
        yield site


@pytest.fixture
def pages() -> Iterator[PageSite]:
    """Four items on two listings; one is private."""
    with PageSite().serving() as site:
        assert isinstance(site, PageSite)
        yield site


def _attempt(folder: Path, site: Site, **settings: Any) -> Attempt:
    return Attempt(folder, "crawl", (), config={"base_url": site.url(""), **AT_ONCE, **settings})


def _look_at_works(attempt: Attempt, site: Site, **payload: Any) -> dict[str, Any]:
    wanted = {"type": "page", "url": site.url("/list"), "links": "a.work", "files": "img.art", "delay": 0}
    return attempt.run(**wanted | payload)


def test_a_tag_is_followed_from_page_to_page(tmp_path: Path, gallery: GallerySite) -> None:
    """Two works are on a page; the third page has the last one, and the fourth none."""
    attempt = _attempt(tmp_path, gallery)

    result = attempt.run(type="tag", query="sea,boat", order="popular_d", mode="safe", delay=0)

    names = [f"artworks_{work}_p00.png" for work in (11, 12, 13, 14, 15)]
    names.insert(2, "artworks_12_p01.png")
    assert result == {
        "items": 5,
        "items_without_files": 0,
        "images_found": 6,
        "expected_images": 6,
        "images_downloaded": 6,
        "has_limit": False,
        "images": names,
    }
    assert (attempt.output_dir / names[2]).read_bytes() == PNG + b"12_p1.png"
    assert {name: file.status for name, file in attempt.files.items()} == dict.fromkeys(names, "completed")


def test_a_search_asks_what_the_gallery_understands(tmp_path: Path, gallery: GallerySite) -> None:
    """Commas are spaces: works that have all of the tags."""
    _attempt(tmp_path, gallery).run(type="tag", query="sea,boat", order="popular_d", mode="safe", limit=1, delay=0)

    asked = urlsplit(gallery.asked[0].path)
    assert asked.path == "/ajax/search/artworks/sea%20boat"
    query = parse_qs(asked.query, keep_blank_values=True)
    assert (query["word"], query["order"], query["mode"], query["p"]) == (["sea boat"], ["popular_d"], ["safe"], ["1"])
    assert (query["s_mode"], query["type"], query["lang"]) == (["s_tag_full"], [""], ["zh"])


def test_a_user_is_crawled_from_the_newest_work_on(tmp_path: Path, gallery: GallerySite) -> None:
    """The limit counts works, not pictures."""
    result = _attempt(tmp_path, gallery).run(type="user", user_id="7", limit=2, delay=0)

    assert result["images"] == ["artworks_15_p00.png", "artworks_14_p00.png"]


def test_one_work_is_all_of_its_pictures_up_to_a_number(tmp_path: Path, gallery: GallerySite) -> None:
    """What was found is told, although not all of it is fetched."""
    result = _attempt(tmp_path, gallery).run(type="illust", illust_id="12", max_images=1, delay=0)

    assert result["images"] == ["artworks_12_p00.png"]
    assert (result["images_found"], result["expected_images"], result["has_limit"]) == (2, 1, True)


@pytest.mark.parametrize(("cookie", "sent"), [("default", "session=7"), ("mine=1", "mine=1"), ("", None)])
def test_the_cookie_is_for_the_gallery_alone(
    tmp_path: Path, gallery: GallerySite, cookie: str, sent: str | None
) -> None:
    """Its pictures lie on other servers, which get the referer that they want, and no more."""
    with GallerySite({}).serving() as images:
        gallery.images = images
        _attempt(tmp_path, gallery, cookie="session=7").run(type="illust", illust_id="11", cookie=cookie, delay=0)

        assert gallery.asked[0].headers.get("cookie") == sent
        assert images.asked[0].headers.get("cookie") is None
        assert images.asked[0].headers["referer"] == gallery.url("/")


def test_a_task_may_go_through_the_proxy_that_is_configured(tmp_path: Path, gallery: GallerySite) -> None:
    """Everything of it does; the task says only whether. The gallery is the proxy, and plays what is behind it."""
    config = {"base_url": "http://away.example", "proxy": gallery.url(""), "outbound": {"hosts": ["away.example"]}}
    gallery.address, gallery.port = "away.example", 80
    attempt = Attempt(tmp_path, "crawl", (), config=config)

    result = attempt.run(type="illust", illust_id="12", delay=0, proxy_enabled=True, proxy_url="http://10.0.0.1:3128")

    assert result["images_downloaded"] == 2
    assert all(asked.path.startswith("http://away.example") for asked in gallery.asked)


def test_a_server_that_is_busy_is_asked_again(tmp_path: Path, gallery: GallerySite) -> None:
    """For pages and for files; nothing is lost by that."""
    gallery.moods = {"/ajax/illust/11/pages": [BUSY, BUSY, BUSY], "/img/11_p0.png": [BUSY, Answer(429), BUSY]}

    result = _attempt(tmp_path, gallery).run(type="illust", illust_id="11", delay=0)

    assert (result["images_downloaded"], len(gallery.paths("/img"))) == (1, 4)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404),
        Answer(200, b"<html>please log in", HTML),
        Answer(200, b""),
        Answer(200, b"x" * 2000),
        Answer(200, b"cut off", {"Content-Length": "100", "Connection": "close"}),
        Answer(302, b"", {"Location": "http://169.254.169.254/latest/meta-data"}),
    ],
)
def test_a_file_that_is_not_to_be_had_is_a_warning(tmp_path: Path, gallery: GallerySite, answer: Answer) -> None:
    """The others are fetched, and nothing half done is among them."""
    gallery.moods = {"/img/12_p0.png": [answer] * 4}
    attempt = _attempt(tmp_path, gallery, max_file_bytes=1000)

    result = attempt.run(type="illust", illust_id="12", delay=0)

    assert (result["images"], result["expected_images"]) == (["artworks_12_p01.png"], 2)
    assert attempt.files["artworks_12_p00.png"].status == "failed"
    assert [path.name for path in attempt.output_dir.iterdir()] == ["artworks_12_p01.png"]
    assert [level for level, _ in attempt.log].count("warning") == 1


def test_when_no_file_is_to_be_had_the_task_is_tried_again(tmp_path: Path, gallery: GallerySite) -> None:
    """A crawl that brought nothing is no success."""
    gallery.moods = {"/img/11_p0.png": [Answer(404)]}

    with pytest.raises(Retry, match="none of 1") as failed:
        _attempt(tmp_path, gallery).run(type="illust", illust_id="11", delay=0)

    assert failed.value.code == "nothing_downloaded"


def test_nothing_found_is_a_result(tmp_path: Path, gallery: GallerySite) -> None:
    """A tag that nobody uses has no works."""
    gallery.works = {}

    result = _attempt(tmp_path, gallery).run(type="tag", query="nobody", delay=0)

    assert (result["items"], result["images"]) == (0, [])


def test_the_next_attempt_asks_only_for_what_is_missing(tmp_path: Path, gallery: GallerySite) -> None:
    """The listing, two works and their files are there already, whenever the attempt before it was stopped."""
    first = _attempt(tmp_path, gallery)
    first.on_progress = lambda it: it.context.stop("drained") if it.said[-1].message.startswith("2 of 6") else None
    with pytest.raises(Cancelled):
        first.run(type="tag", query="sea", delay=0)
    gallery.asked.clear()

    result = _attempt(tmp_path, gallery).run(type="tag", query="sea", delay=0)

    assert result["images_downloaded"] == 6
    assert gallery.paths() == [f"/img/{name}.png" for name in ("12_p1", "13_p0", "14_p0", "15_p0")]


def test_works_that_were_looked_at_are_not_looked_at_again(tmp_path: Path, gallery: GallerySite) -> None:
    """Not even if the last line of the notes was cut off by a crash."""
    gallery.moods = {"/ajax/illust/13/pages": [BUSY] * 4}
    with pytest.raises(Retry) as failed:
        _attempt(tmp_path, gallery).run(type="user", user_id="7", delay=0)
    assert failed.value.code == "site_unavailable"
    gallery.asked.clear()
    with (tmp_path / "kept" / "files.jsonl").open("a") as notes:
        notes.write('["13", ["htt')

    result = _attempt(tmp_path, gallery).run(type="user", user_id="7", delay=0)

    assert result["images_downloaded"] == 6
    assert gallery.paths("/ajax") == [f"/ajax/illust/{work}/pages" for work in (13, 12, 11)]


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (Answer(404), Fail, "not_found"),
        (Answer(403), Fail, "access_denied"),
        (Answer(400), Fail, "bad_status"),
        (Answer(200, b'{"error": true, "message": "no such user"}'), Fail, "unusable_answer"),
        (Answer(200, b"<html>", HTML), Fail, "unusable_answer"),
        (Answer(500), Retry, "site_unavailable"),
    ],
)
def test_a_gallery_that_says_no_is_believed_and_one_that_is_down_is_asked_later(
    tmp_path: Path, gallery: GallerySite, answer: Answer, kind: type[Retry] | type[Fail], code: str
) -> None:
    """Each with its own code."""
    gallery.moods = {"/ajax/user/7/profile/all": [answer] * 4}

    with pytest.raises(kind) as failed:
        _attempt(tmp_path, gallery).run(type="user", user_id="7", delay=0)

    assert isinstance(failed.value, Retry | Fail)
    assert failed.value.code == code


def test_an_item_that_is_gone_is_left_out(tmp_path: Path, gallery: GallerySite) -> None:
    """One of many is no reason to fail."""
    gallery.moods = {"/ajax/illust/12/pages": [Answer(404)]}
    attempt = _attempt(tmp_path, gallery)

    result = attempt.run(type="tag", query="sea", delay=0)

    assert (result["items"], result["items_without_files"], result["images_downloaded"]) == (5, 1, 4)
    assert ("warning", "left out 12: the server answers 404") in attempt.log


def test_cancelling_does_not_wait_for_a_slow_server(tmp_path: Path, gallery: GallerySite) -> None:
    """A file that comes byte by byte is left where it is."""
    gallery.moods = {"/img/11_p0.png": [Answer(200, b"x" * 10_000, drip=True)]}
    attempt = _attempt(tmp_path, gallery)
    attempt.on_progress = lambda it: it.context.stop("cancelled") if it.said[-1].percentage >= 50 else None

    with pytest.raises(Cancelled):
        attempt.run(type="illust", illust_id="11", delay=0)

    assert not attempt.output_dir.exists()


def test_cancelling_does_not_wait_for_a_pause_to_end(tmp_path: Path, gallery: GallerySite) -> None:
    """Between two requests may lie minutes."""
    attempt = _attempt(tmp_path, gallery)
    attempt.on_progress = lambda it: it.context.stop("cancelled") if it.said[-1].percentage >= 20 else None

    with pytest.raises(Cancelled):
        attempt.run(type="tag", query="sea", delay=600, limit=1)

    assert gallery.paths("/ajax/illust") == []


def test_no_crawl_gets_into_this_network(tmp_path: Path, pages: PageSite) -> None:
    """Unless the configuration says that it may."""
    with pytest.raises(Fail, match="not a public address") as failed:
        _look_at_works(_attempt(tmp_path, pages, outbound={}), pages)

    assert (failed.value.code, pages.asked) == ("url_not_allowed", [])


def test_all_files_together_have_a_limit(tmp_path: Path, gallery: GallerySite) -> None:
    """A site without an end does not fill the disk."""
    with pytest.raises(Fail, match="20 bytes in all") as failed:
        _attempt(tmp_path, gallery, max_total_bytes=20).run(type="tag", query="sea", delay=0)

    assert failed.value.code == "too_large"


def test_any_site_can_be_crawled_by_its_links(tmp_path: Path, pages: PageSite) -> None:
    """From listing to listing, to the items of this site, and to what robots.txt allows; base and fragments count."""
    attempt = _attempt(tmp_path, pages)

    result = _look_at_works(attempt, pages)

    assert result["images"] == ["0001_one_p00.jpg", "0002_two_p00.jpg", "0004_three_p00.jpg"]
    assert (result["items"], result["items_without_files"]) == (4, 1)
    assert pages.paths("/robots.txt") == ["/robots.txt"]
    assert pages.paths("/works/private") == []
    assert attempt.log[1][1].startswith(f"left out {pages.url('/works/private')}: robots.txt")


def test_robots_are_let_in_where_the_configuration_says_so(tmp_path: Path, pages: PageSite) -> None:
    """For one's own sites."""
    result = _look_at_works(_attempt(tmp_path, pages, robots=False), pages)

    assert (result["images_downloaded"], pages.paths("/robots.txt")) == (4, [])


def test_a_site_without_robots_txt_is_open_and_one_that_cannot_say_is_not(tmp_path: Path, pages: PageSite) -> None:
    """As RFC 9309 has it."""
    pages.moods = {"/robots.txt": [Answer(404), *[BUSY] * 4]}

    assert _look_at_works(_attempt(tmp_path / "a", pages), pages)["images_downloaded"] == 4
    with pytest.raises(Retry) as failed:
        _look_at_works(_attempt(tmp_path / "b", pages), pages)

    assert failed.value.code == "site_unavailable"


def test_a_listing_can_be_the_item_itself(tmp_path: Path, pages: PageSite) -> None:
    """Then its own files are fetched, and there is nothing to follow."""
    result = _look_at_works(_attempt(tmp_path, pages), pages, url=pages.url("/works/one.html"), links="", more="")

    assert result["images"] == ["0001_one_p00.jpg"]


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"type": "tag"}, "missing_parameter"),
        ({"type": "user", "query": "sea"}, "missing_parameter"),
        ({"type": "illust"}, "missing_parameter"),
        ({"type": "page", "url": "file:///etc/passwd"}, "url_not_allowed"),
        ({"type": "tag", "query": "sea", "proxy_enabled": True}, "no_proxy"),
    ],
)
def test_what_cannot_be_crawled_fails_for_good(
    tmp_path: Path, gallery: GallerySite, payload: dict[str, Any], code: str
) -> None:
    """Nothing is asked of anybody."""
    with pytest.raises(Fail) as failed:
        _attempt(tmp_path, gallery, robots=False).run(**payload)

    assert (failed.value.code, gallery.asked) == (code, [])


def test_a_selector_that_is_none_is_named(tmp_path: Path, pages: PageSite) -> None:
    """The page was read, but nothing can be found in it."""
    with pytest.raises(Fail, match=r"'a\[' is no CSS selector") as failed:
        _look_at_works(_attempt(tmp_path, pages), pages, links="a[")

    assert failed.value.code == "invalid_selector"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_url": "pixiv.net"}, "base_url: must be an address"),
        ({"outbound": {"proxy": "http://127.0.0.1:9"}}, "a proxy needs hosts"),
        ({"retries": -1}, "retries: "),
        ({"outbound": {"networks": ["here"]}}, "outbound cannot be used"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, gallery: GallerySite, settings: dict[str, Any], words: str) -> None:
    """With the place where to mend it."""
    with pytest.raises(Fail, match=words) as failed:
        _attempt(tmp_path, gallery, **settings).run(type="tag", query="sea")

    assert failed.value.code == "invalid_config"


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({"type": "everything"}, "/payload/type"),
        ({"type": "user", "user_id": "1/2"}, "/payload/user_id"),
        ({"type": "tag", "limit": 0}, "/payload/limit"),
        ({"type": "tag", "cookie": "a\r\nb: c"}, "/payload/cookie"),
    ],
)
def test_a_wrong_parameter_is_refused_at_the_door(
    tmp_path: Path, gallery: GallerySite, payload: dict[str, Any], pointer: str
) -> None:
    """With the field that is wrong."""
    with pytest.raises(InvalidSubmission) as refused:
        _attempt(tmp_path, gallery).run(**payload)

    assert [problem.pointer for problem in refused.value.problems] == [pointer]
