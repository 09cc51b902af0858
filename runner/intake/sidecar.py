"""JSON that comes as files: the parameters beside an input, and whole submissions.

`clip.mp4.json` beside `clip.mp4` holds its parameters; the two are one task. A name with a further ending before
`.json` is such a sidecar and waits for its file; `data.json` alone is an input like any other.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final, NoReturn

from runner import strictjson
from runner.errors import InvalidSubmission, Problem

SUFFIX: Final = ".json"
MAX_BYTES: Final = 64 * 1024

_ENDING: Final = re.compile(r"[^/]\.(?=[0-9]*[A-Za-z])[0-9A-Za-z]{1,10}\Z")
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
    try:
        value = strictjson.read(data)
    except strictjson.InvalidJson as error:
        _refuse(str(error))
    if not isinstance(value, dict):
        _refuse(f'must be an object such as {{"width": 320}}, not {_KINDS.get(type(value), "null")}')
    return value


def _refuse(message: str) -> NoReturn:
    raise InvalidSubmission((Problem("", message),))
