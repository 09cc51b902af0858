"""Fetch pages and files from other people's servers: politely, with patience, and only from where that is allowed."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field

from runner import Context, Fail
from runner.errors import ConfigError, OutboundError, Unreachable
from runner.units import Duration, Size

from ._settings import Settings

if TYPE_CHECKING:
    import httpx2
    from protego import Protego

T = TypeVar("T")

LOOK_UP_SECONDS = 0.1
MAX_ROBOTS_BYTES = 512 << 10
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class BadStatus(OutboundError):
    """The server answers, but not with what was asked for. `wait_seconds`: when it wants to be asked again."""

    code = "bad_status"

    def __init__(self, status: int, wait_seconds: float = 0.0) -> None:
        super().__init__(f"the server answers {status}")
        self.status = status
        self.wait_seconds = wait_seconds


class NotAFile(OutboundError):
    """Where a file was expected there is a page, or nothing."""

    code = "not_a_file"


class KeptOut(OutboundError):
    """The site's robots.txt asks programs to stay away from there."""

    code = "robots_disallowed"


class FetchSettings(Settings):
    """How we call: `outbound` is a policy for calls to other servers. Times in seconds, or as `30s`."""

    outbound: dict[str, Any] = Field(default={})
    user_agent: Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[\x20-\x7e]+$")] = "file-runner"
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    backoff: Duration = 2.0
    max_backoff: Duration = 30.0
    page_timeout: Annotated[Duration, Field(gt=0)] = 30.0
    download_timeout: Annotated[Duration, Field(gt=0)] = 1800.0
    max_page_bytes: Size = 16 << 20
    max_file_bytes: Size = 100 << 20
    robots: bool = True


def passes(error: OutboundError) -> bool:
    """Whether the same request may succeed a little later."""
    return error.status in PASSING if isinstance(error, BadStatus) else isinstance(error, Unreachable)


class Fetcher:
    """Asks one thing at a time, with `delay_seconds` between two requests. Used in `with`; what it asks for raises
    `OutboundError`, and `Cancelled` within a quarter of a second."""

    def __init__(self, ctx: Context, settings: FetchSettings, delay_seconds: float, proxy: str = "") -> None:
        self._ctx = ctx
        self._settings = settings
        self._delay_seconds = delay_seconds
        self._due = 0.0
        self._robots: dict[str, Protego] = {}
        section = settings.outbound | ({"proxy": proxy} if proxy else {})
        self._pages = self._open(section, settings.page_timeout, settings.max_page_bytes)
        self._files = self._open(section, settings.download_timeout, settings.max_file_bytes)

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._pages.close()
        self._files.close()

    def _open(self, section: Mapping[str, Any], seconds: float, max_bytes: int) -> "httpx2.Client":
        from runner.outbound import open_client, read_policy

        try:
            policy = read_policy(section)
        except ConfigError as error:
            text = f"handlers.{self._ctx.task.type}.config.outbound cannot be used: {error}"
            raise Fail(text, code="invalid_config") from None
        policy = policy.model_copy(update={"total_seconds": seconds, "max_body_bytes": max_bytes})
        return open_client(policy, check_cancelled=self._ctx.check)

    def get_page(self, url: str, headers: Mapping[str, str]) -> tuple[str, bytes]:
        """Where the page was in the end, and its bytes."""
        return self._with_patience(self._pages, url, headers, lambda response: (str(response.url), response.read()))

    def download(self, url: str, headers: Mapping[str, str], target: Path) -> None:
        """Write a file to `target`; that name appears when all of it is there."""
        partial = target.with_name(f"{target.name}.part")

        def save(response: "httpx2.Response") -> None:
            if response.headers.get("content-type", "").startswith("text/html"):
                raise NotAFile("there is a page, not a file")
            with partial.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                if not file.tell():
                    raise NotAFile("the file is empty")

        self._with_patience(self._files, url, headers, save)
        partial.replace(target)

    def require_welcome(self, url: str) -> None:
        """Raise `KeptOut` if robots.txt of the site asks to stay away; its delay is kept, if it is longer than ours."""
        if not self._settings.robots:
            return
        parts = urlsplit(url)
        site = f"{parts.scheme}://{parts.netloc}"
        if site not in self._robots:
            self._robots[site] = self._read_robots(site)
            wanted = self._robots[site].crawl_delay(self._settings.user_agent)
            self._delay_seconds = max(self._delay_seconds, min(wanted or 0.0, self._settings.max_backoff))
        if not self._robots[site].can_fetch(url, self._settings.user_agent):
            raise KeptOut("robots.txt of the site asks programs to stay away from there")

    def _read_robots(self, site: str) -> "Protego":
        from protego import Protego

        try:
            _, body = self.get_page(f"{site}/robots.txt", {})
        except BadStatus as error:
            if passes(error):
                raise
            body = b""
        return Protego.parse(body[:MAX_ROBOTS_BYTES].decode("utf-8", "replace"))

    def _with_patience(
        self, client: "httpx2.Client", url: str, headers: Mapping[str, str], take: "Callable[[httpx2.Response], T]"
    ) -> T:
        wait = self._settings.backoff
        for left in reversed(range(self._settings.retries + 1)):
            try:
                return self._ask(client, url, headers, take)
            except OutboundError as error:
                if not left or not passes(error):
                    raise
                wanted = error.wait_seconds if isinstance(error, BadStatus) else 0.0
                wait = min(max(wait, wanted), self._settings.max_backoff)
                self._ctx.log.info("%s: %s; again in %g s", url, error, wait)
                self.wait(wait)
                wait *= 2
        raise AssertionError("the last of several tries returns or raises")

    def _ask(
        self, client: "httpx2.Client", url: str, headers: Mapping[str, str], take: "Callable[[httpx2.Response], T]"
    ) -> T:
        from runner.outbound import call

        self.wait(self._due - time.monotonic())
        self._due = time.monotonic() + self._delay_seconds
        with call(client, "GET", url, headers={"user-agent": self._settings.user_agent, **headers}) as response:
            if response.status_code != 200:
                raise BadStatus(response.status_code, read_wait(response.headers.get("retry-after", "")))
            return take(response)

    def wait(self, seconds: float) -> None:
        """Do nothing for so long, or until told to stop."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._ctx.check()
            time.sleep(min(left, LOOK_UP_SECONDS))


def read_wait(retry_after: str) -> float:
    """The seconds that a Retry-After says; 0 for a date, or nonsense."""
    return float(retry_after) if retry_after.isdecimal() and len(retry_after) < 10 else 0.0
