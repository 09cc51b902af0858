"""`Range` (RFC 9110, 14.2): what cannot be understood is as if it had not been said, and so is what asks too much.

Of several ranges those count that the file has; only where it has none of them the request is refused.
"""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

from runner.web.problems import HttpProblem

MAX_RANGES: Final = 100
_RANGE: Final = re.compile(r"[ \t]*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))[ \t]*", re.ASCII)


def drop_bad_range(scope: Scope, headers: Headers) -> None:
    """Takes the header out of the request unless it is a list of ranges of bytes, and not too many."""
    text = headers.get("range")
    if text is not None and not is_usable(text):
        _replace(scope, None)


def fit_range(scope: Scope, headers: Headers, size: int) -> None:
    """Takes out what a file of so many bytes does not have. Raises `HttpProblem` 416 where nothing is left; with
    `If-Range` the client is content with the whole file, too."""
    text = headers.get("range")
    if text is None:
        return
    parts = [part.strip() for part in text.partition("=")[2].split(",")]
    if fitting := [part for part in parts if _fits(part, size)]:
        _replace(scope, f"bytes={','.join(fitting)}")
    elif "if-range" in headers:
        _replace(scope, None)
    else:
        detail = f"the file has {size} bytes, and none of them is asked for"
        raise HttpProblem(416, "range_not_satisfiable", detail, {"Content-Range": f"bytes */{size}"})


def is_usable(text: str) -> bool:
    """Whether a server that knows ranges of bytes would do what is asked for."""
    unit, _, ranges = text.partition("=")
    parts = ranges.split(",")
    return unit.strip().lower() == "bytes" and len(parts) <= MAX_RANGES and all(map(_is_range, parts))


def _is_range(part: str) -> bool:
    match = _RANGE.fullmatch(part)
    return match is not None and not (match[2] and int(match[2]) < int(match[1]))


def _fits(part: str, size: int) -> bool:
    """Whether a range that can be understood has a byte in a file of that size."""
    match = _RANGE.fullmatch(part)
    assert match is not None, "the door has dropped what cannot be understood"
    return int(match[1]) < size if match[1] else size > 0 and int(match[3]) > 0


def _replace(scope: Scope, text: str | None) -> None:
    others = [(name, value) for name, value in scope["headers"] if name != b"range"]
    scope["headers"] = others if text is None else [*others, (b"range", text.encode())]
