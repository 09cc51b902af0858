"""`runner init` and `runner demo`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Command


def test_init_lays_out_a_folder_that_serves(cli: Command, project: Path) -> None:
    """Configuration, handlers and data; a handler of the starter set runs in it at once."""
    assert cli("init", "new").code == 0
    assert (project / "new" / "data").is_dir()
    config = project / "new" / "config.yaml"
    assert cli("submit", "checksum", "note.txt", "--wait", "--config", config).code == 0


def test_init_leaves_what_exists(cli: Command, project: Path) -> None:
    """A second time it writes nothing, and a changed file stays changed."""
    cli("init", "new")
    (project / "new" / "config.yaml").write_text("http: {port: 1}\n")
    assert cli("init", "new", "--json").json["written"] == []
    assert (project / "new" / "config.yaml").read_text() == "http: {port: 1}\n"


@pytest.mark.video
@pytest.mark.slow
def test_the_demo_shows_it_and_cleans_up(
    cli: Command, project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video is dropped, its mark removed; only the result is left, and its place is the last line."""
    pytest.importorskip("cv2")
    workspaces = tmp_path_factory.mktemp("demo")
    monkeypatch.setattr("tempfile.tempdir", str(workspaces))
    done = cli("demo")
    assert done.code == 0, done.err
    result = Path(done.out.splitlines()[-1])
    assert result.stat().st_size > 1000
    assert [path for path in workspaces.rglob("*") if path.is_file()] == [result]


@pytest.mark.video
def test_a_demo_without_its_extra_says_how_to_get_it(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command to install it, exit code 4."""
    monkeypatch.setattr("runner.ffmpeg.shutil.which", lambda _: None)
    monkeypatch.setattr("runner.ffmpeg._find_in_wheel", lambda: None)
    ended = cli("demo")
    assert ended.code == 4
    assert "file-runner[video]" in ended.err
