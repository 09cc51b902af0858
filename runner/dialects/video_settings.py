"""The settings page of Video-In-Chinese: which services its processor uses, and with which keys.

They are its own, not the runner's, which only keeps them, in one file. Of a key nobody is shown more than its ends.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from pydantic import ConfigDict, ValidationError

from runner.errors import CorruptRecord, VersionMismatch
from runner.record import Record
from runner.store.files import Files

HIDDEN: Final = "***"
KEYS: Final = (
    "asr_api_key", "polishing_api_key", "translation_api_key", "optimization_api_key", "voice_cloning_api_key",
    "s2st_api_key",
)  # fmt: skip
NEEDED: Final = ("asr_api_key", "translation_api_key", "voice_cloning_api_key")
"""Without these keys it is not configured."""


class Changes(Record):
    """What is to be set; an empty text, and a key with its middle hidden, mean that it was not touched. `version` is
    that of the settings as the client knows them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 0
    processing_mode: str = ""
    asr_provider: str = ""
    asr_api_key: str = ""
    asr_endpoint: str = ""
    audio_separation_enabled: bool | None = None
    polishing_enabled: bool | None = None
    polishing_provider: str = ""
    polishing_api_key: str = ""
    polishing_endpoint: str = ""
    polishing_custom_prompt: str = ""
    polishing_video_type: str = ""
    translation_provider: str = ""
    translation_api_key: str = ""
    translation_endpoint: str = ""
    translation_video_type: str = ""
    optimization_enabled: bool | None = None
    optimization_provider: str = ""
    optimization_api_key: str = ""
    optimization_endpoint: str = ""
    voice_cloning_provider: str = ""
    voice_cloning_api_key: str = ""
    voice_cloning_endpoint: str = ""
    voice_cloning_auto_select_reference: bool | None = None
    s2st_provider: str = ""
    s2st_api_key: str = ""


FIRST: Final = Changes(
    processing_mode="standard",
    audio_separation_enabled=False,
    polishing_enabled=False,
    optimization_enabled=False,
    voice_cloning_auto_select_reference=True,
)
"""The settings before anybody has set any."""


class VideoSettings:
    """The settings, in the file at `path`. From any thread."""

    def __init__(self, files: Files, path: str) -> None:
        self._files = files
        self._path = path
        self._lock = threading.Lock()

    def shown(self) -> dict[str, Any]:
        """All of them, with the middle of each key hidden."""
        kept = self._read()
        values = kept.model_dump()
        values.update({name: hide(values[name]) for name in KEYS})
        return {"is_configured": all(getattr(kept, name) for name in NEEDED), **values}

    def change(self, changes: Changes) -> int:
        """The new version. Raises `VersionMismatch` when somebody else was faster. Durable."""
        with self._lock:
            kept = self._read()
            if changes.version != kept.version:
                raise VersionMismatch("settings", kept.version)
            said = changes.model_dump(exclude={"version"})
            touched = {name: value for name, value in said.items() if is_touched(value)}
            changed = kept.model_copy(update={**touched, "version": kept.version + 1})
            self._files.replace_durably(self._path, changed.model_dump_json(indent=2).encode())
        return changed.version

    def _read(self) -> Changes:
        try:
            return Changes.model_validate_json(self._files.read(self._path))
        except FileNotFoundError:
            return FIRST
        except ValidationError as error:
            raise CorruptRecord(f"{self._path} is damaged; mend it or remove it") from error


def is_touched(value: str | bool | None) -> bool:
    """Whether a value was meant to be set."""
    return value is not None and value != "" and not (isinstance(value, str) and HIDDEN in value)


def hide(key: str) -> str:
    """A key as it may be shown: nothing of a short one, three characters from either end of others."""
    if not key:
        return ""
    return f"{key[:3]}{HIDDEN}{key[-3:]}" if len(key) >= 12 else HIDDEN
