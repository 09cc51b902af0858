"""What is said between the owner, the zygote and a child.

owner ↔ zygote: frames of nine bytes on a socket; FORK brings three descriptors along (brief, channel, output). A token,
counted by the owner, names a child: process ids are used again, tokens are not.

owner → child: the brief in an unlinked file: no limit of size, and nobody waits. It is one line of JSON, and the code
of the handler's file as the owner compiled it. Then lines on the channel: `C` and a Stop, `R` and the reply to a
submission.

child → owner: lines: `P` progress, `L` log, `F` files, `S` submission, `E` ending. Each line is one letter and JSON.
Paths are in it as their bytes, one character each (Latin-1), for they need not be UTF-8.
"""

from __future__ import annotations

import json
import marshal
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from runner.execute.assignment import Assignment, Ending
from runner.handlers import Handler, HandlerOptions
from runner.handlers.loading import Edition
from runner.task import FileState, Outcome, Progress, Task, TaskError, from_json, to_json

_FRAME: Final = struct.Struct("!Bii")
FRAME_BYTES: Final = _FRAME.size


class Verb(IntEnum):
    """What a frame says; `number` is what its last field holds."""

    FORK = 1
    """Owner: fork a child."""
    SIGNAL = 2
    """Owner: send the signal `number` to the child's process group."""
    FORKED = 3
    """Zygote: the child's process id is `number`."""
    ENDED = 4
    """Zygote: the child and all that it left behind are gone; `number` is its exit status, or minus its signal."""
    REFUSED = 5
    """Zygote: it could not be forked; `number` is the errno."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One sentence between the owner and the zygote."""

    verb: Verb
    token: int
    number: int = 0

    def encode(self) -> bytes:
        """The frame's nine bytes."""
        return _FRAME.pack(self.verb, self.token, self.number)


def decode_frames(buffer: bytearray) -> list[Frame]:
    """The whole frames at the start of `buffer`, which are taken out of it."""
    whole = len(buffer) - len(buffer) % FRAME_BYTES
    frames = [Frame(Verb(verb), token, number) for verb, token, number in _FRAME.iter_unpack(buffer[:whole])]
    del buffer[:whole]
    return frames


def send_fork(zygote: socket.socket, token: int, descriptors: Sequence[int]) -> None:
    """Ask for a child with these descriptors (brief, channel, output); the caller's copies stay open."""
    socket.send_fds(zygote, [Frame(Verb.FORK, token).encode()], descriptors)


def receive_request(owner: socket.socket) -> tuple[Frame, list[int]] | None:
    """The owner's next frame and its descriptors; None when the owner has gone."""
    data, descriptors, _, _ = socket.recv_fds(owner, FRAME_BYTES, 3)
    if len(data) < FRAME_BYTES:
        return None
    return decode_frames(bytearray(data))[0], descriptors


def line(kind: bytes, value: Any) -> bytes:
    """One line on the channel."""
    return kind + json.dumps(value, separators=(",", ":")).encode() + b"\n"


def path_to_text(path: Path) -> str:
    """The path's bytes, a character each."""
    return os.fsencode(path).decode("latin-1")


def text_to_path(text: str) -> Path:
    """The path that `path_to_text` was given."""
    return Path(os.fsdecode(text.encode("latin-1")))


def write_brief(assignment: Assignment) -> int:
    """What a child needs to know, in an unlinked file; its descriptor, to be closed by the caller."""
    handler = assignment.handler
    brief = {
        "task": to_json(assignment.task).decode(),
        "handler": {
            "name": handler.name,
            "path": path_to_text(handler.path),
            "version": handler.version,
            "text": handler.edition.text,
            "options": handler.options.model_dump(mode="json"),
        },
        "inputs": [path_to_text(path) for path in assignment.inputs],
        "private": path_to_text(assignment.output_dir),
        "config": dict(assignment.config),
    }
    with tempfile.TemporaryFile() if sys.platform != "linux" else open(os.memfd_create("brief"), "wb") as file:
        file.write(json.dumps(brief, default=str).encode() + b"\n" + marshal.dumps(handler.edition.code))
        file.flush()
        return os.dup(file.fileno())


@dataclass(frozen=True, slots=True)
class Brief:
    """The brief as a child reads it. The handler is still only its file, its name and its options."""

    task: Task
    edition: Edition
    name: str
    options: HandlerOptions
    inputs: tuple[Path, ...]
    private: str
    config: dict[str, Any]

    @property
    def scratch_dir(self) -> Path:
        """As in `Assignment`."""
        return Path(f"{self.private}.scratch")

    def assign(self, handler: Handler) -> Assignment:
        """The assignment, once the handler's file is loaded."""
        return Assignment(self.task, handler, tuple(map(str, self.inputs)), self.private, self.config)


def read_brief(descriptor: int) -> Brief:
    """The brief in that file, which is closed."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        brief = json.loads(file.readline())
        code = marshal.loads(file.read())  # noqa: S302 - written by our owner, for us, in this very version of Python
    handler = brief["handler"]
    return Brief(
        task=from_json(brief["task"].encode()),
        edition=Edition(text_to_path(handler["path"]), handler["version"], handler["text"], code),
        name=handler["name"],
        options=HandlerOptions.model_validate(handler["options"]),
        inputs=tuple(map(text_to_path, brief["inputs"])),
        private=str(text_to_path(brief["private"])),
        config=brief["config"],
    )


def encode_progress(progress: Progress) -> bytes:
    """A line for an attempt's progress."""
    at = progress.updated_at.isoformat() if progress.updated_at else None
    return line(b"P", [progress.percentage, progress.stage, progress.message, progress.metadata, at])


def decode_progress(text: bytes) -> Progress:
    """What `encode_progress` was given; `text` is the line without its letter."""
    percentage, stage, message, metadata, at = json.loads(text)
    return Progress(percentage=percentage, stage=stage, message=message, metadata=metadata, updated_at=at)


def encode_files(files: Sequence[FileState]) -> bytes:
    """A line for the items of work inside a task."""
    return line(b"F", [asdict(file) for file in files])


def decode_files(text: bytes) -> tuple[FileState, ...]:
    """What `encode_files` was given."""
    return tuple(FileState(**file) for file in json.loads(text))


def encode_ending(ending: Ending) -> bytes:
    """A line for how an attempt ended."""
    error = asdict(ending.error) if ending.error else None
    return line(b"E", [ending.outcome, ending.result, error, ending.after_seconds, ending.traceback])


def decode_ending(text: bytes) -> Ending:
    """What `encode_ending` was given."""
    outcome, result, error, after_seconds, trace = json.loads(text)
    return Ending(Outcome(outcome), result, TaskError(**error) if error else None, after_seconds, trace)
