"""What a process prints, as lines."""

from runner.execute.transcript import MAX_BYTES, Transcript


def test_lines_are_put_together_from_pieces() -> None:
    """Output comes in pieces of any size."""
    transcript = Transcript()
    assert transcript.feed(b"on") == []
    assert transcript.feed(b"e\ntwo\nth") == ["one", "two"]
    assert transcript.finish() == ["th"]
    assert transcript.finish() == []


def test_a_progress_bar_makes_lines_and_empty_ones_are_left_out() -> None:
    """Ffmpeg and others end their lines with a carriage return."""
    assert Transcript().feed(b"1 %\r2 %\r\n\n\n3 %\n") == ["1 %", "2 %", "3 %"]


def test_bytes_that_are_no_text_are_replaced() -> None:
    """A log is text."""
    assert Transcript().feed(b"caf\xe9\n") == ["caf\ufffd"]


def test_a_line_without_end_is_cut() -> None:
    """Nobody waits for its end, and no line of the log is endless."""
    lines = Transcript().feed(b"x" * 10_000)
    assert [len(line) for line in lines] == [4096, 4096, 1808]


def test_after_the_limit_the_rest_is_dropped_and_said_so_once() -> None:
    """What came before is kept to the last byte."""
    transcript = Transcript()
    lines = [line for _ in range(3) for line in transcript.feed(b"y\n" * (MAX_BYTES // 4))]
    assert lines.count("y") == MAX_BYTES // 2
    assert lines[-1] == "(more than 1024 KiB was printed; the rest is not kept)"
    assert transcript.feed(b"more\n") == transcript.finish() == []
