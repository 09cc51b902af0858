import io
import os
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from runner.context import Cancelled, Fail
from tests.handlers.attempts import share

PARTS = share("_archives")
Content = dict[str, bytes]

FILES: Content = {
    "readme.md": b"# hello\n",
    "src/main.py": b"print(1)\n" * 500,
    "src/deep/er/x.txt": b"",
    "ünï.txt": b"x",
}


def _unpack(archive: Path, target: Path, **options: Any) -> list[PurePosixPath]:
    names: list[PurePosixPath] = PARTS["unpack"](archive, target, **options)
    return names


def _make_zip(path: Path, files: Content = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _make_tar(path: Path, files: Content = FILES, format: int = tarfile.PAX_FORMAT) -> Path:
    packed = path.suffix.removeprefix(".")
    with tarfile.open(path, f"w:{packed if packed != 'tar' else ''}", format=format) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _make_special(path: Path, name: str, type: bytes) -> Path:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = type, "/etc/passwd"
        archive.addfile(member)
    return path


def _make_zip_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo("link")
        member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    return path


def _encrypt(path: Path) -> Path:
    """A zip whose member says that it is encrypted."""
    data = bytearray(_make_zip(path, {"a.txt": b"secret"}).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)
    return path


def _code_of(archive: Path, target: Path, **options: Any) -> str:
    with pytest.raises(Fail) as caught:
        _unpack(archive, target, **options)
    return caught.value.code


@pytest.mark.parametrize("make", [_make_zip, _make_tar])
@pytest.mark.parametrize("suffix", ["tar", "gz", "bz2"])
def test_what_was_packed_is_unpacked(tmp_path: Path, make: Callable[[Path], Path], suffix: str) -> None:
    """Every file with its content, in its folder; their names are handed back in order."""
    archive = make(tmp_path / f"a.{suffix}")

    names = _unpack(archive, tmp_path / "out")

    assert names == sorted(map(PurePosixPath, FILES))
    assert {str(name): (tmp_path / "out" / name).read_bytes() for name in names} == FILES


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_every_format_of_tar(tmp_path: Path, format: int) -> None:
    """Each format keeps them in another place."""
    name = f"{'folder/' * 13}{'n' * 60}.txt"
    assert _unpack(_make_tar(tmp_path / "a.tar", {name: b"x"}, format), tmp_path / "out") == [PurePosixPath(name)]


def test_folders_and_an_empty_archive_are_no_files(tmp_path: Path) -> None:
    """Nothing is made for a folder that holds none."""
    assert _unpack(_make_zip(tmp_path / "a.zip", {}), tmp_path / "1") == []
    assert _unpack(_make_zip(tmp_path / "b.zip", {"empty/": b""}), tmp_path / "2") == []
    assert _unpack(_make_special(tmp_path / "c.tar", "empty", tarfile.DIRTYPE), tmp_path / "3") == []


@pytest.mark.parametrize("make", [_make_zip, _make_tar])
@pytest.mark.parametrize(
    "name",
    ["/etc/cron", "../up", "a/../../up", "..", "a\\b", "C:x", "line\nbreak", "d/" * 40 + "x", "n" * 300, "x" * 2000],
)
def test_a_name_that_leads_out_or_is_odd_is_refused(
    tmp_path: Path, make: Callable[[Path, Content], Path], name: str
) -> None:
    """And nothing lies outside of the target."""
    archive = make(tmp_path / "a.tar", {"fine.txt": b"1", name: b"2"})
    before = sorted(tmp_path.iterdir())

    assert _code_of(archive, tmp_path / "out") == "unsafe_archive"
    assert {path.name for path in (tmp_path / "out").rglob("*")} <= {"fine.txt", *["d"] * 40, "a"}
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out"])


@pytest.mark.parametrize(
    "type",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_and_devices_are_refused(tmp_path: Path, type: bytes) -> None:
    """Whatever they point to."""
    assert _code_of(_make_special(tmp_path / "a.tar", "odd", type), tmp_path / "out") == "unsafe_archive"
    assert list(tmp_path.glob("out/*")) == []


def _make_zip_of_bzip2(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.txt", bytes(500_000))
    return path


@pytest.mark.parametrize("make", [_make_zip_link, _encrypt, _make_zip_of_bzip2])
def test_a_zip_with_a_link_or_a_password_or_of_another_kind_is_refused(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    """None of them is of use here, and some kinds cannot be unpacked bit by bit."""
    assert _code_of(make(tmp_path / "a.zip"), tmp_path / "out") == "unsafe_archive"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a.txt", "a.txt/b.txt"])
def test_a_name_that_occurs_twice_is_refused(tmp_path: Path, second: str) -> None:
    """Which of them is meant, different programs see differently."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "1")
        archive.writestr(second, "2")

    assert _code_of(tmp_path / "a.zip", tmp_path / "out") == "unsafe_archive"


@pytest.mark.parametrize("make", [_make_zip, _make_tar])
@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({f"{number}": b"" for number in range(11)}, {"max_files": 10}),
        ({"a": os.urandom(3_000_000)}, {"max_bytes": 2_000_000}),
        ({"a": bytes(2_000_000)}, {}),
        ({f"{number}": bytes(200_000) for number in range(10)}, {}),
    ],
)
def test_an_archive_that_holds_too_much_is_refused(
    tmp_path: Path, make: Callable[[Path, Content], Path], files: Content, limits: dict[str, int]
) -> None:
    """Too many files, too many bytes, or more than a hundred times its own size; before much is written."""
    archive = make(tmp_path / "a.gz", files)

    assert _code_of(archive, tmp_path / "out", limits=PARTS["Limits"](**limits)) == "unsafe_archive"
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("*")) <= 2_100_000


def test_what_a_zip_says_of_its_sizes_is_not_believed(tmp_path: Path) -> None:
    """A member that claims to hold ten bytes is not read to its end."""
    data = _make_zip(tmp_path / "a.zip", {"a": bytes(5_000_000)}).read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(struct.pack("<L", 5_000_000), struct.pack("<L", 10)))

    assert _code_of(tmp_path / "a.zip", tmp_path / "out") in ("unsafe_archive", "unreadable_archive")


def test_a_table_of_contents_without_end_is_not_read(tmp_path: Path) -> None:
    """It would fill the memory before the first file is counted."""
    archive = _make_zip(tmp_path / "a.zip", {f"{number:090}": b"" for number in range(300)})

    assert _code_of(archive, tmp_path / "out", limits=PARTS["Limits"](max_files=10)) == "unsafe_archive"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [_make_zip, _make_tar])
@pytest.mark.parametrize("inner", ["inner.zip", "inner.tar", "inner.txt.gz"])
def test_an_archive_inside_of_an_archive_is_refused(
    tmp_path: Path, make: Callable[[Path, Content], Path], inner: str
) -> None:
    """Whatever it is called."""
    content = (_make_zip if inner == "inner.zip" else _make_tar)(tmp_path / inner)

    assert _code_of(make(tmp_path / "a.tar", {"innocent": content.read_bytes()}), tmp_path / "out") == "unsafe_archive"


def test_a_document_that_is_a_zip_by_its_nature_is_no_archive(tmp_path: Path) -> None:
    """Office files are packed that way, and nobody unpacks them here."""
    content = _make_zip(tmp_path / "i.zip").read_bytes()

    assert _unpack(_make_zip(tmp_path / "a.zip", {"letter.docx": content}), tmp_path / "out") == [
        PurePosixPath("letter.docx")
    ]


@pytest.mark.parametrize("make", [_make_zip, _make_tar])
def test_a_damaged_archive_is_unreadable(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Cut off anywhere, it is one error with a code; garbled anywhere, it is never another error than Fail."""
    data = make(tmp_path / "a.gz").read_bytes()
    for cut in (0, 1, 30, len(data) // 2, len(data) - 9):
        (tmp_path / "cut").write_bytes(data[:cut])
        assert _code_of(tmp_path / "cut", tmp_path / f"out{cut}") == "unreadable_archive"
    for place in range(0, len(data), 7):
        (tmp_path / "bad").write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        with suppress(Fail):
            _unpack(tmp_path / "bad", tmp_path / f"bad{place}")


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("a.zip", _make_zip, True),
        ("a.txt", _make_zip, True),
        ("a.docx", _make_zip, False),
        ("a.tar", _make_tar, True),
        ("a.tar.gz", _make_tar, True),
        ("a.log.gz", _make_tar, False),
    ],
)
def test_an_archive_is_known_by_its_content(
    tmp_path: Path, name: str, make: Callable[[Path], Path], expected: bool
) -> None:
    """But a document that is packed, and a single file that is, are none."""
    assert PARTS["is_archive"](make(tmp_path / name)) is expected


def test_what_is_no_archive_is_unreadable(tmp_path: Path) -> None:
    """Text, for example."""
    (tmp_path / "a.txt").write_text("no archive\n" * 100)

    assert _code_of(tmp_path / "a.txt", tmp_path / "out") == "unreadable_archive"
    assert not PARTS["is_archive"](tmp_path / "a.txt")


@pytest.mark.parametrize("make", [_make_zip, _make_tar])
def test_unpacking_can_be_stopped_in_the_middle_of_a_file(
    tmp_path: Path, make: Callable[[Path, Content], Path]
) -> None:
    """A large member does not hold up a cancel."""
    archive = make(tmp_path / "a.tar", {"a": os.urandom(3_000_000)})
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        _unpack(archive, tmp_path / "out", check=check)

    assert (tmp_path / "out" / "a").stat().st_size < 1_500_000


def test_a_bomb_needs_little_memory(tmp_path: Path) -> None:
    """Ten gigabytes of nothing, in a header or as a file, are refused within 200 MB of address space more."""
    bomb = tarfile.TarInfo("x")
    bomb.type, bomb.size = tarfile.XHDTYPE, 10_000_000_000
    (tmp_path / "bomb.tar").write_bytes(bomb.tobuf(tarfile.GNU_FORMAT) + bytes(2_000_000))
    program = (
        "import resource, sys; from pathlib import Path; from runner.context import Fail\n"
        "from tests.handlers.attempts import share; unpack = share('_archives')['unpack']\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (400 << 20, 400 << 20))\n"
        "try: unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except Fail as error: print(error.code)\n"
    )

    command = [sys.executable, "-c", program, str(tmp_path / "bomb.tar"), str(tmp_path / "out")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])

    assert told.stdout.strip() == "unsafe_archive"
