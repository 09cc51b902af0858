"""Call a web server: send JSON or a file, take what it answers. Signed, this delivers webhooks.

A signature is that of Standard Webhooks (https://www.standardwebhooks.com): HMAC-SHA256 of `id.timestamp.body`, so that
what a receiver needs to check it exists in most languages. The id stays the same however often the call is repeated.
"""

import base64
import binascii
import email.utils
import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field
from pydantic_core import from_json, to_json

from runner import Context, Fail, Retry, handler
from runner.errors import AnswerTooLarge, ConfigError, Unreachable, UrlNotAllowed

from ._naming import PlainName
from ._settings import Settings, read_settings

if TYPE_CHECKING:
    import httpx2

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]

CHUNK_BYTES = 64 << 10
MAX_KEPT_BYTES = 64 << 10
MAX_WAIT_SECONDS = 86_400.0
ENCODED = "whsec_"
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
TOLD = ("content-type", "content-length", "location", "retry-after", "etag", "last-modified")
OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"})
NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def require_url(url: str) -> str:
    """The URL, if its text allows it to be called; raises ValueError."""
    from runner.outbound import check_url

    try:
        check_url(url)
    except UrlNotAllowed as error:
        raise ValueError(str(error)) from None
    return url


def require_headers(headers: dict[str, str]) -> dict[str, str]:
    """The headers, if they may be sent; raises ValueError."""
    for name, value in headers.items():
        if not NAME.fullmatch(name) or not VALUE.fullmatch(value):
            raise ValueError(f"{name[:40]!r} is no header, or its value holds a line break")
        if name.lower() in OURS or name.lower().startswith("webhook-"):
            raise ValueError(f"{name} is set by the runner")
    return headers


def require_secrets(secrets: tuple[str, ...]) -> tuple[str, ...]:
    """The secrets, if each can sign; raises ValueError, which does not repeat them."""
    for secret in secrets:
        try:
            long_enough = len(key_of(secret)) >= 16
        except binascii.Error:
            raise ValueError(f"what follows {ENCODED} must be base64") from None
        if not long_enough:
            raise ValueError("a secret must have 16 bytes at least")
    return secrets


Url = Annotated[str, Field(max_length=8192), AfterValidator(require_url)]
Headers = Annotated[dict[str, str], Field(max_length=50), AfterValidator(require_headers)]


class CallSettings(Settings):
    """`secrets` sign, each one: with two of them receivers can change over. `headers`: by host, what it is sent beside
    what a task says. Both are for tasks of `trusted_users` only: nobody else speaks in the operator's name.
    `outbound`: a policy for calls to other servers."""

    trusted_users: tuple[str, ...] = ("local",)
    secrets: Annotated[tuple[str, ...], AfterValidator(require_secrets)] = ()
    headers: dict[str, Headers] = Field(default={})
    outbound: dict[str, Any] = Field(default={})


class Parcel(NamedTuple):
    """What is sent: bytes, or a file; and its headers."""

    content: "bytes | Upload"
    headers: dict[str, str]


class Upload:
    """A file's bytes, as often as they are asked for. Tells how much of it is on its way."""

    def __init__(self, ctx: Context, path: Path) -> None:
        self._ctx = ctx
        self.path = path
        self.size = path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        done = 0
        for chunk in pieces_of(self.path):
            yield chunk
            done += len(chunk)
            self._ctx.check()
            self._ctx.progress(50 * done / max(self.size, done), f"sent {done:,} of {self.size:,} bytes", "sending")


@handler(timeout="10m", retries=5, backoff={"base": "10s", "factor": 3, "max": "1h", "jitter": 0.2})
def http_call(  # noqa: PLR0913 - each is a field of the form
    ctx: Context,
    url: Annotated[Url, Field(description="http:// or https://; by default public addresses only")],
    method: Annotated[Method, Field(description="what to do there")] = "POST",
    json: Annotated[Any, Field(description="the body; or a file that comes along is")] = None,
    headers: Annotated[Headers, Field(description="kept with the task for all who see it")] = {},  # noqa: B006
    sign: Annotated[bool, Field(description="with the secrets of the configuration, as a webhook is")] = False,
    message_id: Annotated[str, Field(max_length=200, pattern=r"^[\w-]*$", description="without: the task's id")] = "",
    insist: Annotated[bool, Field(description="repeat after any answer but 2xx, and follow no redirect")] = False,
    save_as: Annotated[PlainName | None, Field(description="name of the output that gets the answer")] = None,
) -> dict[str, object]:
    """Call a web server, and keep what it answers."""
    from runner.outbound import Redirects, call, open_client, read_policy

    settings = read_settings(ctx, CallSettings)
    is_trusted = ctx.task.user_id in settings.trusted_users
    parcel = pack(ctx, json, {**headers, **(settings.headers.get(host_of(url), {}) if is_trusted else {})})
    if sign and not is_trusted:
        text = f"tasks of {ctx.task.user_id} are not signed: handlers.http_call.config.trusted_users"
        raise Fail(text, code="not_trusted")
    if sign:
        signed = signature_of(parcel, settings.secrets, message_id or ctx.task.id, int(time.time()))
        parcel = parcel._replace(headers=parcel.headers | signed)
    ctx.progress(0, f"calling {host_of(url)}", stage="calling")
    redirects = Redirects.ANSWER if insist else Redirects.FOLLOW
    try:
        policy = read_policy(settings.outbound)
        with (
            open_client(policy, check_cancelled=ctx.check) as client,
            call(client, method, url, headers=parcel.headers, content=parcel.content, redirects=redirects) as response,
        ):
            judge(response, insist)
            return take(ctx, response, save_as)
    except (UrlNotAllowed, AnswerTooLarge, ConfigError) as error:
        raise Fail(str(error), code=error.code) from error
    except Unreachable as error:
        raise Retry(None, str(error), error.code) from error


def host_of(url: str) -> str:
    """The host that a URL names."""
    from runner.outbound import check_url

    return check_url(url).host.lower().rstrip(".")


def pack(ctx: Context, json: Any, headers: Mapping[str, str]) -> Parcel:
    """The body that the task has, of either kind. Raises `Fail` for more than one."""
    if len(ctx.inputs) > 1 or (ctx.inputs and json is not None):
        raise Fail(f"http_call sends one body; it got {len(ctx.inputs)} files and json", code="wrong_inputs")
    given = {name.lower() for name in headers}
    if ctx.inputs:
        upload = Upload(ctx, ctx.inputs[0])
        kind = {} if "content-type" in given else {"Content-Type": "application/octet-stream"}
        return Parcel(upload, {**headers, **kind, "Content-Length": str(upload.size)})
    if json is None:
        return Parcel(b"", dict(headers))
    kind = {} if "content-type" in given else {"Content-Type": "application/json"}
    return Parcel(to_json(json), {**headers, **kind})


def signature_of(parcel: Parcel, secrets: Iterable[str], message_id: str, timestamp: int) -> dict[str, str]:
    """The three headers of a signed call. Raises `Fail` if there is nothing to sign with."""
    start = f"{message_id}.{timestamp}.".encode()
    body = [parcel.content] if isinstance(parcel.content, bytes) else pieces_of(parcel.content.path)
    macs = [hmac.new(key_of(secret), start, hashlib.sha256) for secret in secrets]
    if not macs:
        raise Fail("there is no secret to sign with: set handlers.http_call.config.secrets", code="no_secret")
    for chunk in body:
        for mac in macs:
            mac.update(chunk)
    signatures = " ".join(f"v1,{base64.b64encode(mac.digest()).decode()}" for mac in macs)
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": signatures}


def key_of(secret: str) -> bytes:
    """The bytes that a secret stands for: base64 after `whsec_`, else its text."""
    if secret.startswith(ENCODED):
        return base64.b64decode(secret.removeprefix(ENCODED), validate=True)
    return secret.encode()


def judge(response: "httpx2.Response", insist: bool) -> None:
    """Raise `Retry` or `Fail` unless the status is a good one."""
    status = response.status_code
    if 200 <= status < 300:
        return
    message = f"{response.url.host} answers {status} {response.reason_phrase}".strip()
    if status in PASSING or (insist and status != 410):
        raise Retry(wait_of(response.headers.get("retry-after", ""), time.time()), message, f"http_{status}")
    raise Fail(message, code=f"http_{status}")


def wait_of(text: str, now: float) -> float | None:
    """The seconds that a Retry-After asks for: a number of them, or a date (RFC 9110 10.2.3); a day at most."""
    if text.isdecimal() and len(text) < 10:
        return min(float(text), MAX_WAIT_SECONDS)
    with suppress(ValueError, OverflowError):
        return min(max(email.utils.parsedate_to_datetime(text).timestamp() - now, 0.0), MAX_WAIT_SECONDS)
    return None


def take(ctx: Context, response: "httpx2.Response", save_as: str | None) -> dict[str, object]:
    """The result of the task, with what the server answered, in a file if that is wanted."""
    told = {name: response.headers[name] for name in TOLD if name in response.headers}
    answer: dict[str, object] = {"status": response.status_code, "url": str(response.url), "headers": told}
    if save_as:
        return {**answer, "size_bytes": save(ctx, response, ctx.output(save_as)), "output": save_as}
    try:
        body = read_some(ctx, response)
    except (AnswerTooLarge, Unreachable) as error:
        # It was a good answer all the same: to call again for the rest of it would do the thing a second time.
        return {**answer, "body": None, "note": f"the body is left out: {error}"}
    return {**answer, "body": plain(body, told.get("content-type", ""))}


def save(ctx: Context, response: "httpx2.Response", target: Path) -> int:
    """Write the body to a file; how many bytes that were."""
    total = int(response.headers.get("content-length") or 0)
    done = 0
    with target.open("wb") as file:
        for chunk in response.iter_bytes(CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            ctx.progress(50 + 50 * done / max(total, done), f"{done:,} bytes", "saving")
    return done


def read_some(ctx: Context, response: "httpx2.Response") -> bytes:
    """The body, if it is small enough for a result. Raises `AnswerTooLarge`."""
    body = b""
    for chunk in response.iter_bytes(CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_KEPT_BYTES:
            raise AnswerTooLarge(f"it is larger than {MAX_KEPT_BYTES >> 10} KiB; save_as keeps it in a file")
    return body


def plain(body: bytes, kind: str) -> Any:
    """A body as it can stand in a result: what its JSON says, its text, or None if it is neither."""
    if "json" in kind.lower():
        with suppress(ValueError):
            return from_json(body, allow_inf_nan=False)
    with suppress(UnicodeDecodeError):
        return body.decode()
    return None


def pieces_of(path: Path) -> Iterator[bytes]:
    """A file's bytes, some at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
