"""`Range` (RFC 9110, 14.2): what cannot be understood is as if it had not been said, and so is what asks too much."""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

MAX_RANGES: Final = 100
_RANGE: Final = re.compile(r"[ \t]*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))[ \t]*", re.ASCII)


def drop_bad_range(scope: Scope, headers: Headers) -> None:
    """Takes the header out of the request unless it is a list of ranges of bytes, and not too many."""
    text = headers.get("range")
    if text is not None and not is_usable(text):
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]


def is_usable(text: str) -> bool:
    """Whether a server that knows ranges of bytes would do what is asked for."""
    unit, _, ranges = text.partition("=")
    parts = ranges.split(",")
    return unit.strip().lower() == "bytes" and len(parts) <= MAX_RANGES and all(map(_is_range, parts))


def _is_range(part: str) -> bool:
    match = _RANGE.fullmatch(part)
    return match is not None and not (match[2] and int(match[2]) < int(match[1]))
