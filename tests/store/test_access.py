"""Nobody else can write where the runner believes what it reads."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from runner.errors import UnsafeAccess
from runner.store import Layout
from runner.store.access import check_access


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A directory with an inbox."""
    layout = Layout(tmp_path / "data")
    Path(layout.inbox).mkdir(parents=True)
    for path in (layout.data, layout.inbox):
        Path(path).chmod(0o700)
    return layout


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_others_may_look(layout: Layout, mode: int) -> None:
    """What a person allows others to read is their business."""
    Path(layout.data).chmod(mode)
    check_access(layout)


def test_a_directory_that_is_not_there_yet_is_fine(tmp_path: Path) -> None:
    """It will be made, and be closed."""
    check_access(Layout(tmp_path / "later"))


@pytest.mark.parametrize("mode", [0o777, 0o703, 0o1777])
def test_others_must_not_write(layout: Layout, mode: int) -> None:
    """Neither to the directory nor to the inbox; the message says what to do."""
    for path in (layout.data, layout.inbox):
        Path(path).chmod(mode)
        with pytest.raises(UnsafeAccess, match=f"chmod go-w {path}"):
            check_access(layout)
        Path(path).chmod(0o700)


def test_a_group_must_not_write_unless_it_is_of_one(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many systems give each user a group of their own, and let it write."""
    Path(layout.data).chmod(0o770)
    gid, user = Path(layout.data).stat().st_gid, pwd.getpwuid(os.geteuid())
    own = pwd.struct_passwd((user.pw_name, "x", user.pw_uid, gid, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: own)
    monkeypatch.setattr(grp, "getgrgid", lambda _: grp.struct_group((user.pw_name, "x", gid, [])))
    check_access(layout)
    monkeypatch.setattr(grp, "getgrgid", lambda _: grp.struct_group((user.pw_name, "x", gid, ["bob"])))
    with pytest.raises(UnsafeAccess):
        check_access(layout)


def test_a_directory_of_somebody_else_is_refused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """They could change everything at any time."""
    monkeypatch.setattr(os, "geteuid", lambda: Path(layout.data).stat().st_uid + 1)
    with pytest.raises(UnsafeAccess, match="belongs to user"):
        check_access(layout)
