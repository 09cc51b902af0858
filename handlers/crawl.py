"""Fetch the files of a gallery, or of any site: a listing leads to items, an item has files, the files are outputs.

What was found and what was downloaded is kept for the next attempt, which goes on from there.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

from runner import Context, Fail, Retry, handler
from runner.errors import OutboundError
from runner.units import Size

from ._fetching import BadStatus, Fetcher, FetchSettings, passes
from ._items import Items
from ._keeping import link_or_copy
from ._listings import Gallery, Listing, Site, suffix_of
from ._settings import read_settings
from ._webui import require_address

MAX_NAMED = 10_000  # all of them are among the task's output files

Kind = Literal["tag", "user", "illust", "page"]
Order = Literal["date_d", "date", "popular_d", "popular_male_d", "popular_female_d"]
Selector = Annotated[str, Field(max_length=500)]
Number = Annotated[str, Field(pattern=r"^([0-9]{1,20})?$")]
Header = Annotated[str, Field(max_length=8192, pattern=r"^[\x20-\x7e]*$")]

NEEDED: dict[Kind, str] = {"tag": "query", "user": "user_id", "illust": "illust_id", "page": "url"}


class CrawlSettings(FetchSettings):
    """Which gallery, with which cookie if a task says `default`, through which proxy if it wants one, and how much."""

    base_url: Annotated[str, AfterValidator(require_address)] = "https://www.pixiv.net"
    cookie: Header = ""
    proxy: Annotated[str, Field(max_length=500)] = ""
    max_total_bytes: Size = 20 << 30


class Image(NamedTuple):
    """A file to fetch, and what the output is called."""

    url: str
    name: str


@handler(
    timeout="6h",
    retries=3,
    backoff={"base": "30s", "max": "10m"},
    concurrency=1,
    isolation="process",
    extra="crawl",
    requires=["selectolax", "protego"],
)
def crawl(  # noqa: PLR0913 - each is a field of the form
    ctx: Context,
    type: Annotated[Kind, Field(description="what is looked for: in the gallery, or on the page of any site")],
    query: Annotated[str, Field(max_length=500, description="tag: tags, with commas between them")] = "",
    user_id: Annotated[Number, Field(description="user: whose works")] = "",
    illust_id: Annotated[Number, Field(description="illust: which work")] = "",
    url: Annotated[str, Field(max_length=2000, description="page: the first page of the listing")] = "",
    links: Annotated[Selector, Field(description="page: CSS, from the listing to items; empty: it has the files")] = "",
    more: Annotated[Selector, Field(description="page: CSS, to the next page of the listing")] = "[rel=next]",
    files: Annotated[Selector, Field(description="page: CSS, what to download")] = "img",
    order: Annotated[Order, Field(description="tag: newest first, oldest first, or the most popular")] = "date_d",
    mode: Annotated[Literal["all", "safe", "r18"], Field(description="tag: for whom")] = "all",
    limit: Annotated[int, Field(ge=1, le=10_000, description="items at most")] = 100,
    max_images: Annotated[int, Field(ge=0, le=100_000, description="files at most; 0: all of the items")] = 0,
    delay: Annotated[float, Field(ge=0, le=600, description="seconds between two requests")] = 1.0,
    cookie: Annotated[Header, Field(description="for the gallery; default: the one that is configured")] = "",
    proxy_enabled: Annotated[bool, Field(description="go through the proxy that is configured")] = False,
    proxy_url: Annotated[str, Field(max_length=500, description="plays no part: only the configuration says it")] = "",
) -> dict[str, object]:
    """Download the images of a tag, a user, a work, or any listing of pages."""
    wanted = {"tag": query, "user": user_id, "illust": illust_id, "page": url}[type].strip()
    if not wanted:
        raise Fail(f"a crawl of type {type} needs {NEEDED[type]}", code="missing_parameter")
    settings = read_settings(ctx, CrawlSettings)
    if proxy_enabled and not settings.proxy:
        raise Fail("no proxy is configured: handlers.crawl.config.proxy", code="no_proxy")
    with Fetcher(ctx, settings, delay, settings.proxy if proxy_enabled else "") as fetcher:
        listing: Listing = Site(fetcher, wanted, links, more, files)
        if type != "page":
            cookie = settings.cookie if cookie == "default" else cookie
            listing = Gallery(fetcher, settings.base_url, type, wanted, order, mode, cookie)
        return Crawl(ctx, listing, settings).run(limit, max_images)


class Crawl:
    """One task: what it found, and what it has of that."""

    def __init__(self, ctx: Context, listing: Listing, settings: CrawlSettings) -> None:
        self._ctx = ctx
        self._listing = listing
        self._settings = settings
        self._bytes = 0
        self._barren = 0

    def run(self, limit: int, max_images: int) -> dict[str, object]:
        """Find and fetch everything; the result. Raises `Retry` where another attempt may bring more, else `Fail`."""
        try:
            items = self._list_items(limit)
            found = self._find_images(items)
        except OutboundError as error:
            raise explain(error) from error
        images = found[:max_images] if max_images else found
        names = self._fetch_all(images)
        if images and not names:
            raise Retry(message=f"none of {len(images)} files could be downloaded", code="nothing_downloaded")
        return {
            "items": len(items),
            "items_without_files": self._barren,
            "images_found": len(found),
            "expected_images": len(images),
            "images_downloaded": len(names),
            "has_limit": max_images > 0,
            "images": names[:MAX_NAMED],
        }

    def _list_items(self, limit: int) -> list[str]:
        """The items; from an earlier attempt, if that had found them all."""
        kept = self._ctx.kept / "items.json"
        if not kept.exists():
            self._ctx.progress(5, "looking at the listing", stage="listing")
            items: dict[str, None] = {}
            for item in self._listing.find_items():
                items[item] = None
                if len(items) >= limit:
                    break
            replace(kept, json.dumps(list(items)))
        found: list[str] = json.loads(kept.read_bytes())
        self._ctx.progress(20, f"{len(found)} items", stage="listing")
        self._ctx.log.info("%d items", len(found))
        return found

    def _find_images(self, items: list[str]) -> list[Image]:
        """The files of all items, each once. An item that cannot be read is left out, if it is not the only one."""
        kept = self._ctx.kept / "files.jsonl"
        known = dict(read_lines(kept))
        replace(kept, "".join(map(write_line, known.items())))
        images: dict[str, Image] = {}
        with kept.open("a", encoding="utf-8") as notes:
            for number, item in enumerate(items, start=1):
                if item not in known:
                    known[item] = self._read_item(item, alone=len(items) == 1)
                    notes.write(write_line((item, known[item])))
                    notes.flush()
                self._barren += not known[item]
                stem = self._listing.name(item, number)
                for place, url in enumerate(known[item]):
                    images.setdefault(url, Image(url, f"{stem}_p{place:02}{suffix_of(url)}"))
                text = f"{number} of {len(items)} items, {len(images)} files"
                self._ctx.progress(20 + 30 * number / len(items), text, stage="looking")
        return list(images.values())

    def _read_item(self, item: str, *, alone: bool) -> list[str]:
        try:
            return list(self._listing.find_files(item))
        except OutboundError as error:
            if alone or passes(error):
                raise
            self._ctx.log.warning("left out %s: %s", item, error)
            return []

    def _fetch_all(self, images: list[Image]) -> list[str]:
        """The names of the outputs. A file that is not to be had is a warning."""
        items = Items(self._ctx, [image.name for image in images], "download")
        names = []
        for place, image in enumerate(images):
            self._ctx.check()
            items.tell(place, "processing")
            try:
                self._fetch(image)
            except OutboundError as error:
                self._ctx.log.warning("cannot download %s: %s", image.url, error)
                items.tell(place, "failed")
            else:
                names.append(image.name)
                items.tell(place, "completed")
            text = f"{place + 1} of {len(images)} files, {self._bytes:,} bytes"
            self._ctx.progress(50 + 49 * (place + 1) / len(images), text, stage="downloading")
        items.flush()
        return names

    def _fetch(self, image: Image) -> None:
        folder = self._ctx.kept / "files"
        folder.mkdir(exist_ok=True)
        target = folder / image.name
        if not target.exists():
            self._listing.download(image.url, target)
        self._bytes += target.stat().st_size
        if self._bytes > self._settings.max_total_bytes:
            raise Fail(f"more than {self._settings.max_total_bytes:,} bytes in all", code="too_large")
        link_or_copy(target, self._ctx.output(image.name))


def explain(error: OutboundError) -> Exception:
    """What an attempt ends with when the site does not say what it has."""
    if passes(error):
        return Retry(message=f"the site cannot be read: {error}", code="site_unavailable")
    if isinstance(error, BadStatus):
        code = {401: "access_denied", 403: "access_denied", 404: "not_found", 410: "not_found"}
        return Fail(f"the site cannot be read: {error}", code=code.get(error.status, error.code))
    return Fail(str(error), code=error.code)


def replace(path: Path, text: str) -> None:
    """The file holds the text, and never half of it."""
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_line(looked_at: tuple[str, list[str]]) -> str:
    """An item and its files, as `read_lines` reads them."""
    return json.dumps(looked_at) + "\n"


def read_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The items that were looked at, with their files; a last line that was cut off was not."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            item, urls = json.loads(line)
        except ValueError:
            continue
        yield item, urls
