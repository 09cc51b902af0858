"""Lengths of time and amounts of bytes, as people write them: "1h30m", "500ms", "2GB", "64MiB".

Inside the program a length of time is a float of seconds and an amount of bytes an int. The pydantic types `Duration`
and `Size` accept what people write, or the plain number, and hold the plain number.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Annotated, Final

from pydantic import BeforeValidator

_SECONDS: Final = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_BYTES: Final = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)},
}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|[wdhms])\s*")
_LENGTH: Final = re.compile(rf"(?:{_PART.pattern})+")
_AMOUNT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def parse_duration(value: str | float) -> float:
    """Seconds in `value`: "1h30m", "2m", "500ms", "7d", or a number of seconds.

    Units are w, d, h, m, s and ms, each used once. Raises ValueError for anything else, and for less than nothing.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f'must be a length of time such as "30s", "2m" or "1h30m", not {value!r}')
    if not isinstance(value, str):
        return _positive_seconds(value)
    text = value.strip().lower()
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _PART.findall(text) if _LENGTH.fullmatch(text) else []
    if not parts or len({unit for _, unit in parts}) < len(parts):
        raise ValueError(f'must be a length of time such as "30s", "2m" or "1h30m" (w d h m s ms), not {value!r}')
    return math.fsum(float(number) * _SECONDS[unit] for number, unit in parts)


def _positive_seconds(value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"must be a number of seconds, 0 or more, not {value!r}")
    return float(value)


def format_duration(seconds: float) -> str:
    """`seconds` as people write it, to the millisecond: "1h30m", "1.5s", "20ms", "0s". Raises as `parse_duration`."""
    milliseconds = round(_positive_seconds(seconds) * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    text = ""
    for unit in "dhm":
        count, milliseconds = divmod(milliseconds, round(_SECONDS[unit] * 1000))
        text += f"{count}{unit}" if count else ""
    return text + f"{milliseconds / 1000:g}s" if milliseconds or not text else text


def parse_size(value: str | int) -> int:
    """Bytes in `value`: "2GB" (thousands), "500MiB" (1024s), "10B", or a whole number of bytes.

    A lone "500M" means one thing to some and another to others, so it is refused. Raises ValueError for that and for
    anything else that is not a size.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _AMOUNT.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match and (match[2] in _BYTES or match[0].isdigit()):
        return round(float(match[1]) * _BYTES[match[2]]) if match[2] else int(match[1])
    raise ValueError(f'must be a size such as "500MB" (thousands), "64MiB" (1024s) or a number of bytes, not {value!r}')


def format_size(size: int) -> str:
    """`size` bytes for people, to three figures: "0B", "1.5KiB", "64MiB", "953MiB"."""
    if size < 1024:
        return f"{size}B"
    power = min((size.bit_length() - 1) // 10, 4)
    if round(size / 1024**power) == 1024 and power < 4:
        power += 1
    amount = size / 1024**power
    return f"{amount:.{0 if amount >= 100 else 1}f}".removesuffix(".0") + " KMGT"[power] + "iB"


Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=str | float)]
"""A pydantic field: seconds as a float; "1h30m" and 5400 are both accepted."""

Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=str | int)]
"""A pydantic field: bytes as an int; "64MiB" and 67108864 are both accepted."""


def read_instant(text: str) -> datetime:
    """An instant as the runner itself has written it. Raises `ValueError`, `TypeError`."""
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return instant
