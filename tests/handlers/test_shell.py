import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runner.context import Cancelled, Fail, Retry
from runner.errors import InvalidSubmission, UnknownHandler
from runner.handlers import Handlers
from runner.task import Status
from tests.handlers.attempts import FOLDER, Attempt
from tests.rig import Rig


def attempt(folder: Path, *inputs: Path, **config: Any) -> Attempt:
    """An attempt that may run a few programs."""
    return Attempt(folder, "shell", inputs, config={"allow": ["sh", "cat", "cp", ["echo", "-n"]], **config})


def script(text: str) -> list[str]:
    """The arguments of a shell that runs a script."""
    return ["sh", "-c", text]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An input."""
    path = tmp_path / "-n letter.txt"
    path.write_text("hello\n")
    return path


def test_it_is_off_unless_it_is_switched_on() -> None:
    """Nobody runs programs because a file lies in a folder."""
    handlers = Handlers(FOLDER)
    handlers.load()
    assert "shell" not in {handler.name for handler in handlers}
    with pytest.raises(UnknownHandler, match=r"switched off: handlers\.shell\.enabled"):
        handlers.get("shell")


def test_files_go_in_and_come_out(tmp_path: Path, file: Path) -> None:
    """`{input}` is the first file, whatever its name looks like, and `{outputs}` the folder of outputs."""
    one = attempt(tmp_path, file)
    result = one.run(argv=["cp", "{input}", "{outputs}/copy.txt"])

    assert (one.output_dir / "copy.txt").read_text() == "hello\n"
    assert (result["exit_status"], result["outputs"]) == (0, ["copy.txt"])


def test_all_files_are_arguments(tmp_path: Path, file: Path) -> None:
    """`{inputs}` is as many arguments as there are files, spaces and all."""
    one = attempt(tmp_path, file, file)
    one.run(argv=["cat", "{inputs}"], stdout="both.txt")
    assert (one.output_dir / "both.txt").read_text() == "hello\nhello\n"


def test_a_file_can_be_the_standard_input(tmp_path: Path, file: Path) -> None:
    """For programs that read from there."""
    one = attempt(tmp_path, file)
    one.run(argv=["cat"], stdin=True, stdout="letter.txt")
    assert (one.output_dir / "letter.txt").read_text() == "hello\n"


def test_what_is_printed_is_the_log(tmp_path: Path) -> None:
    """Both streams, line by line; progress where the program says so."""
    one = attempt(tmp_path)
    one.run(argv=script("echo one; echo '::progress 40 nearly half'; echo two >&2; printf three"))
    assert one.log == [("info", "one"), ("info", "two"), ("info", "three")]
    assert [(said.percentage, said.message) for said in one.said] == [(0, "running sh"), (40, "nearly half")]


def test_arguments_are_never_a_line_for_a_shell(tmp_path: Path) -> None:
    """What would be a command there is text here."""
    one = attempt(tmp_path)
    one.run(argv=["echo", "-n", "$(id); rm -rf / `id` | & > x"])
    assert one.log == [("info", "$(id); rm -rf / `id` | & > x")]


@pytest.mark.parametrize("argv", [["rm", "x"], ["echo", "x"], ["/bin/cat"], ["./sh"], ["echo"], ["../bin/sh"]])
def test_only_what_is_allowed_runs(tmp_path: Path, argv: list[str]) -> None:
    """A program by the name that it has in the list, and with the arguments that the list begins with."""
    with pytest.raises(Fail, match="allowed: sh, cat, cp, echo -n") as caught:
        attempt(tmp_path).run(argv=argv)
    assert caught.value.code == "command_not_allowed"


def test_nothing_is_allowed_by_default(tmp_path: Path) -> None:
    """Switched on alone, it runs nothing."""
    with pytest.raises(Fail, match="allowed: nothing"):
        Attempt(tmp_path, "shell", ()).run(argv=["true"])


def test_programs_are_looked_for_where_the_configuration_says(tmp_path: Path) -> None:
    """Not in the runner's own PATH, and not in the current folder."""
    tmp_path.joinpath("tool").write_text("#!/bin/sh\necho here\n")
    tmp_path.joinpath("tool").chmod(0o700)
    with pytest.raises(Fail) as caught:
        attempt(tmp_path, allow=["tool"]).run(argv=["tool"])
    assert caught.value.code == "program_missing"

    one = attempt(tmp_path, allow=["tool"], path=str(tmp_path))
    one.run(argv=["tool"])
    assert one.log == [("info", "here")]


def test_a_file_that_is_no_program_says_so(tmp_path: Path) -> None:
    """It may be run, but cannot be."""
    tmp_path.joinpath("tool").write_text("no program")
    tmp_path.joinpath("tool").chmod(0o700)
    with pytest.raises(Retry, match=r"tool cannot be run: Exec format error"):
        attempt(tmp_path, allow=["tool"], path=str(tmp_path)).run(argv=["tool"])


def test_the_environment_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of the runner are not the program's; home and temporary files are in a folder that goes."""
    monkeypatch.setenv("SECRET_TOKEN", "x")
    one = attempt(tmp_path, env={"MINE": "1"}, path="/usr/bin:/bin")
    one.run(argv=script("env | sort; pwd; ls -A"))
    names = {line.partition("=")[0] for _, line in one.log[:-1]}
    work = str(one.context.scratch / "work")
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {"HOME", "LANG", "MINE", "PATH", "TMPDIR"}
    assert one.log[-1] == ("info", work)
    assert ("info", f"HOME={work}") in one.log


def test_limits_hold(tmp_path: Path) -> None:
    """On files, memory and open files, for the program and what it starts; no core is written."""
    limits = {"cpu": "5s", "memory": "512MiB", "file_size": "1MiB", "open_files": 32, "processes": 4000}
    one = attempt(tmp_path, **limits)
    one.run(argv=script("ulimit -c; ulimit -t; ulimit -v; ulimit -n"))
    assert [line for _, line in one.log] == ["0", "5", str(512 * 1024), "32"]

    with pytest.raises(Retry) as caught:
        attempt(tmp_path / "two", **limits).run(argv=["cat", "/dev/zero"], stdout="much.bin")
    assert caught.value.code == "killed"
    assert "SIGXFSZ" in str(caught.value)


def test_a_bad_end_says_what_was_said_last(tmp_path: Path) -> None:
    """The status, and the last line."""
    with pytest.raises(Retry, match=r"^sh ended with status 3: no such thing$") as caught:
        attempt(tmp_path).run(argv=script("echo working; echo no such thing >&2; exit 3"))
    assert caught.value.code == "exit_status"


def test_too_much_print_is_cut(tmp_path: Path) -> None:
    """The log has a mebibyte of it, and a word on the rest; the program does not wait for a reader."""
    one = attempt(tmp_path)
    one.run(argv=script("yes 0123456789 | head -c 3000000; echo the end"))
    assert 1_000_000 < sum(len(line) + 1 for level, line in one.log if level == "info") <= (1 << 20) + 1
    assert one.log[-1][0] == "warning"


def test_only_files_are_outputs(tmp_path: Path) -> None:
    """A link would show what lies elsewhere."""
    one = attempt(tmp_path)
    result = one.run(argv=[*script("cd $1; echo x >a; ln -s /etc/passwd b; mkdir c; echo x >.d"), "-", "{outputs}"])
    assert result["outputs"] == ["a"]
    assert [name for name, _ in ((line.split()[0], level) for level, line in one.log)] == [".d", "b", "c"]


def test_what_is_left_running_is_not_waited_for(tmp_path: Path) -> None:
    """And does not stay: the task ends when its program has, and takes the rest with it."""
    one = attempt(tmp_path)
    one.run(argv=script("sleep 1000 & echo $!"))
    assert ends(int(one.log[0][1]))


def test_a_cancel_kills_the_program_and_what_it_started(tmp_path: Path) -> None:
    """Also what does not listen to a polite word."""
    one = attempt(tmp_path)
    one.on_progress = lambda one: one.context.stop("cancelled") if one.said[-1].percentage else None
    with pytest.raises(Cancelled):
        one.run(argv=script("sleep 1000 & echo $!; trap '' TERM; echo ::progress 1; wait; wait"))
    assert ends(int(one.log[0][1]))


def is_running(pid: int) -> bool:
    """Whether there is such a process, dead ones that nobody has asked about aside."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ends(pid: int) -> bool:
    """Whether the process is gone, or goes soon: a kill takes effect a little later."""
    pause = threading.Event()
    return any(not is_running(pid) or pause.wait(0.02) for _ in range(1000))


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"argv": []},
        {"argv": "rm -rf /"},
        {"argv": ["sh", "a\0b"]},
        {"argv": ["sh"], "stdout": "../x"},
        {"argv": ["sh"], "shell": True},
    ],
)
def test_a_payload_that_does_not_fit_is_refused(tmp_path: Path, payload: dict[str, Any]) -> None:
    """A line for a shell, above all."""
    with pytest.raises(InvalidSubmission):
        attempt(tmp_path).run(**payload)


@pytest.mark.parametrize("payload", [{"argv": ["cat", "{input}"]}, {"argv": ["cat"], "stdin": True}])
def test_a_file_that_did_not_come_is_missed(tmp_path: Path, payload: dict[str, Any]) -> None:
    """Before anything runs."""
    with pytest.raises(Fail) as caught:
        attempt(tmp_path).run(**payload)
    assert caught.value.code == "wrong_inputs"


@contextmanager
def a_runner(folder: Path) -> Iterator[Rig]:
    """A runner that may run a shell."""
    settings = {"enabled": True, "config": {"allow": ["sh"]}}
    rig = Rig(folder, {"handlers": {"shell": settings}}, (FOLDER / "shell.py").read_text())
    for name in ("_naming.py", "_settings.py"):
        rig.handlers.joinpath(name).write_text((FOLDER / name).read_text())
    try:
        yield rig.open()
    finally:
        rig.close()


def test_a_runner_keeps_what_the_program_made(tmp_path: Path) -> None:
    """From the submission to the log and the outputs."""
    with a_runner(tmp_path) as rig:
        task = rig.until(rig.submit("shell", argv=[*script("echo done >$0/a.txt; echo said"), "{outputs}"]))
        assert task.result["outputs"] == ["a.txt"]
        assert rig.it.output(task, "a.txt").read_text() == "done\n"
        assert rig.log_of(task)[-1] == "said"


def test_a_cancel_reaches_what_has_left_the_group(tmp_path: Path) -> None:
    """In a runner the attempt has a process of its own, and ends with all that descends from it."""
    with a_runner(tmp_path) as rig:
        text = "setsid sleep 1000 & echo $!; echo ::progress 1; wait"
        task = rig.submit("shell", argv=script(text))
        rig.when(task, lambda now: now.progress is not None and now.progress.percentage == 1)
        pid = next(int(line) for line in rig.log_of(task) if line.isdecimal())
        assert is_running(pid)
        rig.it.cancel(task.id)
        assert rig.until(task).status is Status.CANCELLED
    assert ends(pid)
