"""What the runner says on stderr: JSON lines or text for people, set up in one place.

Modules log through the standard library; structlog renders. Whatever a client, a file name or a handler put into a
message arrives escaped and cut to size, so that no line can forge another one or move a terminal's cursor (OWASP ASVS
16.4.1). Credentials never arrive at all.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, TextIO

from runner.config import LogConfig

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

MAX_FIELD_CHARACTERS: Final = 1024
MAX_TRACEBACK_CHARACTERS: Final = 16 * 1024
SECRET_FIELDS: Final = frozenset({"authorization", "cookie", "password", "secret", "set-cookie", "token"})
MUTE_LIBRARIES: Final = ("python_multipart",)
"""They warn of what clients get wrong, who are told so themselves."""

QUIET_LIBRARIES: Final = ("apscheduler", "httpcore2", "httpx2", "tzlocal", "uvicorn", "watchfiles")

# C0, DEL, C1, the two Unicode line breaks, the marks that turn the direction of writing, and what names that are not
# UTF-8 have in the place of their bytes, which no stream takes.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_BUT_LINES: Final = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def set_up_logs(config: LogConfig, stream: TextIO | None = None) -> None:
    """Sends every log record of the process to `stream` (stderr), as `config` says. Replaces an earlier set-up."""
    to = stream or sys.stderr
    handler = logging.StreamHandler(to)
    handler.setFormatter(_Formatter(partial(_renderer, config, is_terminal=to.isatty())))
    logging.basicConfig(handlers=[handler], level=config.level.upper(), force=True)
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(config.level.upper())))
    for name in MUTE_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


def escape(text: str, limit: int = MAX_FIELD_CHARACTERS, unsafe: re.Pattern[str] = _UNSAFE) -> str:
    """`text` in one line without control characters, at most `limit` characters and a word on what is missing."""
    missing = len(text) - limit
    shown = text[:limit] + (f"… ({missing} more)" if missing > 0 else "")
    return unsafe.sub(lambda match: match[0].encode("unicode_escape").decode(), shown)


class _Formatter(logging.Formatter):
    """Has structlog render. That is imported when there is something to say: with what it brings along it takes a tenth
    of a second and 4 MB, which a start and an idle runner do without."""

    def __init__(self, make_renderer: Callable[[], logging.Formatter]) -> None:
        super().__init__()
        self._make_renderer = make_renderer

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        try:
            return self._renderer.format(record)
        except (ImportError, OSError):
            # No descriptor is left to import it by, or somebody has removed it: all the more this must be said.
            return escape(super().format(record), MAX_TRACEBACK_CHARACTERS, _UNSAFE_BUT_LINES)

    @cached_property
    def _renderer(self) -> logging.Formatter:
        return self._make_renderer()


def _shared() -> list[Processor]:
    import structlog

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _make_safe,
    ]


def _renderer(config: LogConfig, *, is_terminal: bool) -> logging.Formatter:
    import structlog

    renderer: Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False, default=repr)
        if config.format == "json"
        else structlog.dev.ConsoleRenderer(colors=is_terminal, pad_event_to=0)
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *_shared()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )


def _make_safe(_logger: object, _method: str, fields: EventDict) -> Mapping[str, Any]:
    return {name: value if name.startswith("_") else _safe(name, value) for name, value in fields.items()}


def _safe(name: str, value: Any) -> Any:
    if name.lower() in SECRET_FIELDS:
        return "[redacted]"
    if name == "exception":
        return escape(str(value), MAX_TRACEBACK_CHARACTERS, _UNSAFE_BUT_LINES)
    if isinstance(value, str):
        return escape(value)
    return value if isinstance(value, bool | int | float | None) else escape(repr(value))
