"""JSON that comes as files: the parameters beside an input, and whole submissions.

`clip.mp4.json` beside `clip.mp4` holds its parameters; the two are one task. A name with a further ending before
`.json` is such a sidecar and waits for its file; `data.json` alone is an input like any other.

Parsing refuses what another parser might read differently: duplicate keys, NaN and Infinity, numbers beyond 64 bits,
lone surrogates, a byte order mark, and more than `MAX_DEPTH` levels.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, Final, NoReturn

from runner.errors import InvalidSubmission, Problem

SUFFIX: Final = ".json"
MAX_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 64

_ENDING: Final = re.compile(r"[^/]\.(?=[0-9]*[A-Za-z])[0-9A-Za-z]{1,10}\Z")
_OPENING: Final = frozenset("[{")
_CLOSING: Final = frozenset("]}")
_MAX_INTEGER: Final = 2**63
_KINDS: Final = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}


def sidecar_of(name: str) -> str:
    """The name of the parameter file for an input."""
    return name + SUFFIX


def partner_of(name: str) -> str | None:
    """The input that a parameter file belongs to, or None if the name is not that of a parameter file: without
    `.json` it must still end like a file (`clip.mp4`, not `data` or `report.2026`)."""
    if not name.endswith(SUFFIX):
        return None
    partner = name[: -len(SUFFIX)]
    return partner if _ENDING.search(partner) else None


def read_object(directory_fd: int, name: str) -> dict[str, Any]:
    """The JSON object in a file of an open directory; no link is followed. Raises `InvalidSubmission`, `OSError`.

    What is parsed is a copy, so that a change of the file meanwhile changes nothing.
    """
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    with os.fdopen(fd, "rb") as file:
        return parse_object(file.read(MAX_BYTES + 1))


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object that `data` is. Raises `InvalidSubmission` with what is wrong and where."""
    if len(data) > MAX_BYTES:
        _refuse(f"is larger than {MAX_BYTES} bytes")
    text = _decode(data)
    _check_depth(text)
    try:
        parsed = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        _refuse(f"is not JSON: {error.msg.lower()} at line {error.lineno}, column {error.colno}")
    if not isinstance(parsed, dict):
        _refuse(f'must be an object such as {{"width": 320}}, not {_KINDS.get(type(parsed), "null")}')
    _check_surrogates(parsed, text)
    return parsed


def _decode(data: bytes) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        _refuse("begins with a byte order mark; save it as plain UTF-8")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        _refuse(f"is not UTF-8: byte {error.start}")


def _check_depth(text: str) -> None:
    """Counts brackets outside strings, because the parser's own recursion has no limit that can be set."""
    depth, in_string, escaped = 0, False, False
    for character in text:
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in _OPENING:
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(f"is nested deeper than {MAX_DEPTH} levels")
        elif character in _CLOSING:
            depth -= 1


def _check_surrogates(parsed: dict[str, Any], text: str) -> None:
    if "\\u" in text:
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            _refuse("holds half of a surrogate pair")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            _refuse(f"holds the key {key!r} twice")
        found[key] = value
    return found


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -_MAX_INTEGER <= int(digits) < _MAX_INTEGER:
        _refuse(f"holds a number beyond 64 bits: {digits[:24]}")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        _refuse(f"holds a number beyond what can be counted: {digits[:24]}")
    return number


def _constant(name: str) -> NoReturn:
    _refuse(f"holds {name}, which is not JSON")


def _refuse(message: str) -> NoReturn:
    raise InvalidSubmission((Problem("", message),))


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
