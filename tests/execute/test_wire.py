"""What is said between the owner, the zygote and a child."""

import os
import socket
from pathlib import Path

from runner.execute.thread import ThreadExecutor
from runner.execute.wire import (
    Frame,
    Verb,
    decode_frames,
    path_to_text,
    read_brief,
    receive_request,
    send_fork,
    text_to_path,
    write_brief,
)
from tests.execute.stage import Stage


def test_frames_are_put_together_from_pieces() -> None:
    """A stream knows no frames; what is not whole stays for later."""
    first, second = Frame(Verb.FORKED, 1, 4711), Frame(Verb.ENDED, 2, -9)
    buffer = bytearray(first.encode() + second.encode()[:4])
    assert decode_frames(buffer) == [first]
    buffer += second.encode()[4:]
    assert decode_frames(buffer) == [second]
    assert decode_frames(buffer) == []


def test_a_request_to_fork_brings_its_descriptors() -> None:
    """They are other numbers for the same open files; a closed socket is an owner that has gone."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull) as file:
        send_fork(ours, 7, [file.fileno()])
        request = receive_request(theirs)
        assert request is not None
        frame, (descriptor,) = request
        assert (frame, Path(f"/proc/self/fd/{descriptor}").readlink()) == (Frame(Verb.FORK, 7), Path(os.devnull))
        os.close(descriptor)
        ours.close()
        assert receive_request(theirs) is None


def test_any_path_survives() -> None:
    """Names that are not UTF-8, too."""
    for path in (Path("/a/ü"), Path(os.fsdecode(b"/a/\xff"))):
        assert text_to_path(path_to_text(path)) == path


def test_a_brief_is_read_as_it_was_written(tmp_path: Path) -> None:
    """All but the function itself, which the child makes from the code."""
    stage = Stage(tmp_path, ThreadExecutor())
    handler = stage.write('@handler(isolation="process", memory_mb=100)\ndef work(ctx): ...')
    assignment = stage.assign(handler, {"a": [1]}, (tmp_path / "in.txt",), {"key": "value"})
    brief = read_brief(write_brief(assignment))
    assert (brief.task, brief.name, brief.options) == (assignment.task, "work", handler.options)
    assert brief.edition == handler.edition
    assert brief.assign(handler) == assignment
