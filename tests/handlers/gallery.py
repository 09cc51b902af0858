"""Small real sites to crawl: a gallery that answers with documents, and one of pages of HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.site import Answer, Asked, Site

PNG = b"\x89PNG\r\n\x1a\n"
HTML: Mapping[str, str] = {"Content-Type": "text/html; charset=utf-8"}


class Moody(Site):
    """A site that first gives the answers in `moods`, by path, and only then its own. `images` is where files are."""

    def __init__(self) -> None:
        super().__init__()
        self.moods: dict[str, list[Answer]] = {}
        self.images: Site = self

    def hear(self, asked: Asked) -> Answer:
        """See Site."""
        answer = super().hear(asked)
        path = urlsplit(asked.path).path
        if self.moods.get(path):
            return self.moods[path].pop(0)
        return answer if answer.status != 404 else self.answer(path, parse_qs(urlsplit(asked.path).query))

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        """What the site itself says."""
        return Answer(404)

    def paths(self, beginning: str = "/") -> list[str]:
        """What was asked for, without the queries."""
        return [path for asked in self.asked if (path := urlsplit(asked.path).path).startswith(beginning)]


class GallerySite(Moody):
    """`works` are ids, and how many pictures each has; a search has two on a page."""

    def __init__(self, works: Mapping[str, int]) -> None:
        super().__init__()
        self.works = works

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        """See Moody."""
        match path.strip("/").split("/"):
            case ["ajax", "search", "artworks", _]:
                start = 2 * int(query["p"][0]) - 2
                found: list[dict[str, Any]] = [{"id": work} for work in list(self.works)[start : start + 2]]
                return self.tell({"illustManga": {"data": [*found, {"isAdContainer": True}], "total": 5}})
            case ["ajax", "user", _, "profile", "all"]:
                return self.tell({"illusts": dict.fromkeys(self.works), "manga": []})
            case ["ajax", "illust", work, "pages"] if work in self.works:
                urls = [self.images.url(f"/img/{work}_p{page}.png") for page in range(self.works[work])]
                return self.tell([{"urls": {"original": url}} for url in urls])
            case ["img", name]:
                return Answer(200, PNG + name.encode(), {"Content-Type": "image/png"})
        return Answer(404)

    @staticmethod
    def tell(body: object) -> Answer:
        """A document as the gallery sends it."""
        return Answer(200, json.dumps({"error": False, "message": "", "body": body}).encode())


class PageSite(Moody):
    """Two listings of two items each; an item shows a picture and a logo."""

    robots = b"User-agent: *\nDisallow: /works/private\n"

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        """See Moody."""
        match path.strip("/").split("/"):
            case ["robots.txt"]:
                return Answer(200, self.robots)
            case ["list"] if query.get("page") == ["2"]:
                return self.show('<a class=work href="private">4</a><a class=work href=three>3</a>', base="/works/")
            case ["list"]:
                elsewhere = "<a class=work href=https://elsewhere.example/9>9</a><a class=work href=mailto:a@b>m</a>"
                works = '<a class=work href="/works/one.html">1</a> <a class=work href="/works/two#top">2</a>'
                return self.show(f'{works} {elsewhere} <a rel=next href="?page=2">more</a>')
            case ["works", name]:
                return self.show(f'<img class=logo src=/logo.png><img class=art src="/img/{name}.jpg?size=full">')
            case ["img", name]:
                return Answer(200, PNG + name.encode(), {"Content-Type": "image/png"})
        return Answer(404)

    @staticmethod
    def show(body: str, base: str = "") -> Answer:
        """A page."""
        head = f'<base href="{base}">' if base else ""
        return Answer(200, f"<html><head>{head}</head><body>{body}</body></html>".encode(), HTML)
