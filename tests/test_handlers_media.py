"""What a file is, and who takes it."""

import pytest

from runner.handlers.media import matches, media_type


@pytest.mark.parametrize(
    ("filename", "head", "expected"),
    [
        ("a.txt", b"\x89PNG\r\n\x1a\n", "image/png"),
        ("a.PNG", b"", "image/png"),
        ("a.jpg", b"not a jpeg", "image/jpeg"),
        ("a", b"\xff\xd8\xff\xe0", "image/jpeg"),
        ("a.csv", b"a,b\n", "text/csv"),
        ("a.webp", b"RIFF\0\0\0\0WEBP", "image/webp"),
        ("a.bin", b"\0\0\0\x18ftypisom", "video/mp4"),
        ("a.mov", b"\0\0\0\x18ftypqt  ", "video/quicktime"),
        ("a.heic", b"\0\0\0\x18ftypheic", "image/heic"),
        ("a.webm", b"\x1a\x45\xdf\xa3", "video/webm"),
        ("a.mkv", b"\x1a\x45\xdf\xa3", "video/x-matroska"),
        ("a", b"\x1a\x45\xdf\xa3", "video/x-matroska"),
        ("a.docx", b"PK\x03\x04", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("a.mp4", b"PK\x03\x04", "application/zip"),
        ("a", b"PK\x03\x04", "application/zip"),
        ("a.tar", b"\0" * 257 + b"ustar", "application/x-tar"),
        ("a.pdf", b"%PDF-1.7", "application/pdf"),
        ("a.yml", b"", "application/yaml"),
        ("unknown.xyzzy", b"", "application/octet-stream"),
        ("", b"", "application/octet-stream"),
        ("caf\udce9.mp4", b"", "video/mp4"),
    ],
)
def test_the_first_bytes_tell_what_a_file_is_or_else_its_name(filename: str, head: bytes, expected: str) -> None:
    """A wrong suffix does not make a PNG a text; a container asks the name which of its kinds it is."""
    assert media_type(filename, head) == expected


@pytest.mark.parametrize(
    ("patterns", "filename", "head", "fits"),
    [
        ((), "anything", b"", True),
        (("image/*",), "a.png", b"", True),
        (("image/*",), "a.png", b"%PDF-", False),
        (("image/png", "image/jpeg"), "a.gif", b"", False),
        (("video/*", ".csv"), "A.CSV", b"", True),
        ((".tar.gz",), "a.tar.gz", b"\x1f\x8b\x08", True),
        ((".csv",), "csv", b"", False),
    ],
)
def test_a_handler_takes_what_fits_one_of_its_patterns(
    patterns: tuple[str, ...], filename: str, head: bytes, fits: bool
) -> None:
    """Types by what the file is, suffixes by what it is called; no patterns take everything."""
    assert matches(patterns, filename, head) is fits
