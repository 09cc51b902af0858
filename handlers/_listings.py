"""What can be crawled: a gallery that answers with documents, and any site whose listings are pages of HTML.

Both say the same two things: which items there are, and which files an item has.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote, urldefrag, urlencode, urljoin, urlsplit

from runner import Fail
from runner.errors import OutboundError

from ._fetching import Fetcher
from ._naming import derive_name

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser

MAX_LISTING_PAGES = 1000
ATTRIBUTES = ("href", "data-src", "src", "content")
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


class Listing(Protocol):
    """Something to crawl. All of it raises `OutboundError` and `Fail`."""

    def find_items(self) -> Iterator[str]:
        """The items, page by page; each is a text that means it."""

    def find_files(self, item: str) -> Sequence[str]:
        """The URLs of an item's files."""

    def name(self, item: str, number: int) -> str:
        """What the item, the `number`-th from 1, is called in names of files."""

    def download(self, url: str, target: Path) -> None:
        """Write one of the files to `target`, which appears when all of it is there."""


class UnusableAnswer(OutboundError):
    """The site answers with something else than what its listings are made of."""

    code = "unusable_answer"


@dataclass(frozen=True)
class Gallery:
    """A gallery that speaks the protocol of Pixiv's pages. `kind` is tag, user or illust, and `key` says which."""

    fetcher: Fetcher
    base_url: str
    kind: str
    key: str
    order: str
    mode: str
    cookie: str

    def find_items(self) -> Iterator[str]:
        """The ids of its works; those of a search page by page, the newest of a user first."""
        if self.kind == "illust":
            yield self.key
        elif self.kind == "user":
            works = self._ask(f"/ajax/user/{self.key}/profile/all")
            yield from sorted({*_ids_of(works, "illusts"), *_ids_of(works, "manga")}, key=int, reverse=True)
        else:
            yield from self._search()

    def _search(self) -> Iterator[str]:
        words = self.key.replace(",", " ")
        for number in range(1, MAX_LISTING_PAGES + 1):
            asked = {
                "word": words, "order": self.order, "mode": self.mode, "p": number,
                "s_mode": "s_tag_full", "type": "", "lang": "zh",
            }  # fmt: skip
            found = _works_of(self._ask(f"/ajax/search/artworks/{quote(words, safe='')}?{urlencode(asked)}"))
            yield from found
            if not found:
                return

    def find_files(self, item: str) -> list[str]:
        """The originals of one work."""
        pages = self._ask(f"/ajax/illust/{item}/pages")
        urls = [page.get("urls", {}).get("original") for page in pages if isinstance(page, dict)]
        return [urljoin(self.base_url, url) for url in urls if isinstance(url, str)]

    def name(self, item: str, number: int) -> str:
        """The id; it is the same however the work was found."""
        return f"artworks_{item}"

    def download(self, url: str, target: Path) -> None:
        """Write one of the originals to `target`."""
        self.fetcher.download(url, self._headers_for(url), target)

    def _headers_for(self, url: str) -> Mapping[str, str]:
        """The referer, which its servers of images want; the cookie goes to the gallery alone."""
        headers = {"referer": f"{self.base_url}/"}
        if self.cookie and _site_of(url) == _site_of(self.base_url):
            headers["cookie"] = self.cookie
        return headers

    def _ask(self, path: str) -> Any:
        url = self.base_url + path
        _, body = self.fetcher.get_page(url, {"accept": "application/json", **self._headers_for(url)})
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise UnusableAnswer(f"{url} is not what a gallery answers: {body[:80]!r}")
        if document.get("error"):
            raise UnusableAnswer(f"{self.base_url} says: {document.get('message') or 'an error'}")
        return document.get("body") or []


def _ids_of(works: Any, kind: str) -> list[str]:
    """What a user has of one kind; the gallery sends a list where there is nothing."""
    held = works.get(kind) if isinstance(works, dict) else None
    return [key for key in held if str(key).isdecimal()] if isinstance(held, dict) else []


def _works_of(body: Any) -> list[str]:
    """The ids on one page of a search; advertisements among them have none."""
    parts = [body.get(key) for key in ("illustManga", "illust", "manga")] if isinstance(body, dict) else []
    held = [part["data"] for part in parts if isinstance(part, dict) and isinstance(part.get("data"), list)]
    found = [str(work["id"]) for work in (held[0] if held else []) if isinstance(work, dict) and "id" in work]
    return [work for work in found if work.isdecimal()]


@dataclass(frozen=True)
class Site:
    """Any site. `links` selects what leads from a listing to an item, empty: the listing is the item itself; `more`
    what leads to the next listing; `files` what an item is to be had for. They are CSS selectors."""

    fetcher: Fetcher
    url: str
    links: str
    more: str
    files: str

    def find_items(self) -> Iterator[str]:
        """The addresses of pages, in the order in which they are listed. Pages of other sites are none of its own."""
        seen, url = set[str](), self.url
        for _ in range(MAX_LISTING_PAGES):
            seen.add(url)
            where, page = self._open(url)
            found = self._select(page, where, self.links) if self.links else [url]
            yield from (item for item in found if _site_of(item) == _site_of(self.url))
            following = self._select(page, where, self.more) if self.more else []
            url = next((page for page in following if _site_of(page) == _site_of(self.url)), "")
            if not url or url in seen:
                return

    def find_files(self, item: str) -> list[str]:
        """What the page shows or links to."""
        where, page = self._open(item)
        return self._select(page, where, self.files)

    def name(self, item: str, number: int) -> str:
        """Its number and the last part of its address."""
        last = unquote(urlsplit(item).path).rstrip("/").rpartition("/")[2]
        return derive_name(f"{number:04}_{SUFFIX.sub('', last)[:40]}".rstrip("_"), "")

    def download(self, url: str, target: Path) -> None:
        """Write one of the files to `target`, wherever it lies, if programs are welcome there."""
        self.fetcher.require_welcome(url)
        self.fetcher.download(url, {"referer": self.url}, target)

    def _open(self, url: str) -> "tuple[str, LexborHTMLParser]":
        from selectolax.lexbor import LexborHTMLParser

        self.fetcher.require_welcome(url)
        where, body = self.fetcher.get_page(url, {"accept": "text/html", "referer": self.url})
        page = LexborHTMLParser(body)
        base = page.css_first("base[href]")
        return urljoin(where, (base.attributes.get("href") or "") if base else ""), page

    def _select(self, page: "LexborHTMLParser", where: str, selector: str) -> list[str]:
        """The addresses that the selected elements lead to, each once."""
        from selectolax.lexbor import SelectolaxError

        try:
            nodes = page.css(selector)
        except SelectolaxError:
            raise Fail(f"{selector!r} is no CSS selector", code="invalid_selector") from None
        named = [next((value for key in ATTRIBUTES if (value := node.attributes.get(key))), "") for node in nodes]
        urls = [resolve(where, name) for name in named if name]
        return list(dict.fromkeys(url for url in urls if url))


def resolve(where: str, reference: str) -> str:
    """What a reference on a page means, without its fragment; empty if it is no address of HTTP."""
    try:
        url = urldefrag(urljoin(where, reference.strip())).url
        return url if urlsplit(url).scheme in ("http", "https") else ""
    except ValueError:
        return ""


def _site_of(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def suffix_of(url: str) -> str:
    """The suffix of the file that a URL names, in small letters; empty without one."""
    name = urlsplit(url).path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 and SUFFIX.fullmatch(name[dot:]) else ""
