"""JSON (RFC 8259) read strictly, by one reader wherever it comes from.

Refused is what another parser might read differently: duplicate keys, NaN and Infinity, numbers beyond 64 bits or
beyond what can be counted, lone surrogates, a byte order mark, anything but UTF-8, more than `MAX_LEVELS` levels.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

MAX_LEVELS: Final = 64
MAX_INTEGER: Final = 2**63 - 1

_STRINGS: Final = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""It fits wherever a quote is, an unfinished string too: one that did not would be tried at each quote to the end."""
_MAX_DIGITS: Final = 20


class InvalidJson(ValueError):
    """The text is not JSON that can be used. The message goes on after "the text …": "is not UTF-8: byte 3"."""

    code = "invalid_json"


class DuplicateKey(InvalidJson):
    """An object has a key twice, and which value counts is anybody's guess."""

    code = "duplicate_key"


def read(data: bytes) -> Any:
    """The value that `data` is. Raises `InvalidJson`."""
    text = _decode(data)
    _check_levels(text)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidJson(f"is not JSON: {error.msg.lower()} at line {error.lineno}, column {error.colno}") from error
    if "\\u" in text:
        _check_surrogates(value)
    return value


def _decode(data: bytes) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        raise InvalidJson("begins with a byte order mark; send plain UTF-8")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidJson(f"is not UTF-8: byte {error.start}") from error


def _check_levels(text: str) -> None:
    """Counted beforehand, because the parser's own recursion has no limit that can be set."""
    if text.count("[") + text.count("{") <= MAX_LEVELS:
        return
    level = 0
    for character in _STRINGS.sub("", text):
        level += (character in "[{") - (character in "]}")
        if level > MAX_LEVELS:
            raise InvalidJson(f"is nested deeper than {MAX_LEVELS} levels")


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidJson("holds half of a surrogate pair") from error


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DuplicateKey(f"holds the key {twice!r} twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS or not -MAX_INTEGER <= int(digits) <= MAX_INTEGER:
        raise InvalidJson(f"holds a number beyond 64 bits: {digits[:24]}")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise InvalidJson(f"holds a number beyond what can be counted: {digits[:24]}")
    return number


def _constant(name: str) -> NoReturn:
    raise InvalidJson(f"holds {name}, which is not JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
