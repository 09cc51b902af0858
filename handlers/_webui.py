"""The protocol of Stable Diffusion WebUI (AUTOMATIC1111, Forge and others that speak it), for handlers that need one.

Whether a WebUI is there, has its API on and gets along with its graphics card is a matter of the environment: such
failures are retried. What it says about the request itself is for good.
"""

import asyncio
import json
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator

from runner import Fail, Retry

from ._settings import Settings

if TYPE_CHECKING:
    import httpx2

MAX_ANSWER_BYTES = 1 << 30
QUICK_SECONDS = 10.0
CONNECT_SECONDS = 5.0
MAX_DETAIL = 500

UNAVAILABLE, BROKEN, REJECTED, REFUSED = "webui_unavailable", "webui_error", "webui_rejected", "webui_refused"


def require_address(url: str) -> str:
    """The address without a slash at its end, if it is one of HTTP."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address such as http://127.0.0.1:7860")
    return url.rstrip("/")


class WebUISettings(Settings):
    """Where the WebUI is; `auth` is `user:password`, as its option `--api-auth` has it."""

    url: Annotated[str, AfterValidator(require_address)] = "http://127.0.0.1:7860"
    auth: str = ""


class WebUI:
    """A client of one WebUI, to be used in `async with`. All that it asks raises `Retry` or `Fail`, with a code."""

    def __init__(self, settings: WebUISettings) -> None:
        import httpx2

        self.url = settings.url
        user, _, password = settings.auth.partition(":")
        self._client = httpx2.AsyncClient(
            auth=httpx2.BasicAuth(user, password) if settings.auth else None,
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def get(self, path: str, seconds: float | None = QUICK_SECONDS) -> Any:
        """What the WebUI answers, read as JSON; None: it may take as long as it likes."""
        return await self._ask("GET", path, None, seconds)

    async def post(self, path: str, document: object, seconds: float | None = QUICK_SECONDS) -> Any:
        """The same for a request with a document."""
        return await self._ask("POST", path, document, seconds)

    async def _ask(self, method: str, path: str, document: object, seconds: float | None) -> Any:
        import httpx2

        try:
            async with asyncio.timeout(seconds):
                status, body = await self._exchange(method, path, document)
        except TimeoutError:
            raise Retry(message=f"the WebUI at {self.url} gave no answer in {seconds:g} s", code=UNAVAILABLE) from None
        except httpx2.TransportError as error:
            text = f"no WebUI answers at {self.url} ({say(error)}); start it with --api, or configure its `url`"
            raise Retry(message=text, code=UNAVAILABLE) from error
        if status != 200:
            raise self._explain(status, path, find_detail(body))
        # Several images in base64 take long enough to parse that the loop would be felt to stand still.
        return await asyncio.to_thread(self._parse, body)

    async def _exchange(self, method: str, path: str, document: object) -> tuple[int, bytes]:
        async with self._client.stream(method, self.url + path, json=document) as response:
            return response.status_code, await self._read(response)

    async def _read(self, response: "httpx2.Response") -> bytes:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise Fail(f"the WebUI at {self.url} answers with more than {MAX_ANSWER_BYTES:,} bytes", code=BROKEN)
        return bytes(body)

    def _parse(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            text = f"what answers at {self.url} is no WebUI: {body[:80]!r}"
            raise Retry(message=text, code=UNAVAILABLE) from None

    def _explain(self, status: int, path: str, detail: str) -> Exception:
        where = f"the WebUI at {self.url}"
        if status in (401, 403):
            return Fail(f"{where} wants another user and password than `auth` in the configuration", code=REFUSED)
        if status == 404:
            text = f"{where} has no {path}: it runs without --api, or without the extension that brings it"
            return Retry(message=text, code=UNAVAILABLE)
        if status in (400, 413, 422):
            return Fail(f"{where} does not accept this: {detail}", code=REJECTED)
        return Retry(message=f"{where} answers {status}: {detail}", code=BROKEN)


def say(error: Exception) -> str:
    """An error of the network in words."""
    return str(error) or type(error).__name__


def find_detail(body: bytes) -> str:
    """What an answer that is an error says about it: its fields for that, else its text."""
    text = body[: 64 * MAX_DETAIL].decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        said = (document.get(key) for key in ("error", "detail", "errors"))
        text = ", ".join(part if isinstance(part, str) else json.dumps(part) for part in said if part) or text
    return text[:MAX_DETAIL].strip() or "no reason given"
