"""Run a program: a list of arguments, never a line for a shell. Off, and nothing is allowed, unless configured.

The program runs in an empty folder of its own, with a small environment, limits, and nothing of the runner's open. What
it prints is the task's log, what it writes to `{outputs}` is the task's output. It is killed with all that it started.
"""

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from runner import Context, Fail, Retry, handler
from runner.units import Duration, Size

from ._naming import PlainName
from ._settings import Settings, read_settings

MAX_PRINTED_BYTES = 1 << 20
MAX_LINE_BYTES = 4096
MAX_REASON = 500
LOOK_UP_SECONDS = 0.2
PATIENCE_SECONDS = 2.0
LINE_END = re.compile(rb"\r\n|\n|\r")
PROGRESS = re.compile(r"::progress (\d{1,3}(?:\.\d+)?)(?: (.*))?")

# Limits hold from the first instruction of the program on, and need no code between fork and exec in a process with
# threads: another interpreter sets them and then becomes the program.
LAUNCH = """
import json, os, resource, signal, sys
for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by the interpreter, and so by what it becomes
    signal.signal(number, signal.SIG_DFL)
for name, wanted in json.loads(sys.argv[1]).items():
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (limit, limit))
try:
    os.execve(sys.argv[2], sys.argv[3:], os.environ)
except OSError as error:
    sys.exit(f"{sys.argv[2]} cannot be run: {error.strerror}")
"""


def split_beginning(entry: Any) -> Any:
    """A program's name stands for a beginning of one word."""
    return (entry,) if isinstance(entry, str) else entry


def require_argument(text: str) -> str:
    """The argument, if a program can be given it; raises ValueError."""
    text.encode()
    if "\0" in text:
        raise ValueError("an argument cannot hold a zero byte")
    return text


Beginning = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(split_beginning)]
Argument = Annotated[str, Field(max_length=32_768), AfterValidator(require_argument)]


class ShellSettings(Settings):
    """`allow`: programs, or beginnings of argument lists such as [git, log]; nothing else runs. `path`: where programs
    are looked for. `env`: what is in their environment beside PATH, HOME, TMPDIR and LANG. None: no limit."""

    allow: tuple[Beginning, ...] = ()
    path: str = "/usr/local/bin:/usr/bin:/bin"
    env: dict[str, str] = Field(default={})
    cpu: Annotated[Duration, Field(ge=1)] | None = None
    memory: Annotated[Size, Field(ge=64 << 20)] | None = None
    file_size: Size | None = 10 << 30
    open_files: Annotated[int, Field(ge=16)] | None = 1024
    processes: Annotated[int, Field(ge=1)] | None = None


@handler(enabled=False, timeout="10m", retries=0, isolation="process")
def shell(
    ctx: Context,
    argv: Annotated[
        list[Argument],
        Field(min_length=1, max_length=1000, description="the program and its arguments; {input} {inputs} {outputs}"),
    ],
    stdin: Annotated[bool, Field(description="the first file is the program's standard input")] = False,
    stdout: Annotated[PlainName | None, Field(description="name of the output that gets what it prints")] = None,
) -> dict[str, object]:
    """Run a program that the configuration allows."""
    settings = read_settings(ctx, ShellSettings)
    program = find_program(argv, settings)
    folder, results = make_folders(ctx)
    arguments = fill_in(argv, ctx.inputs, results)
    if stdin and not ctx.inputs:
        raise Fail("stdin wants a file, and none came along", code="wrong_inputs")
    started = time.monotonic()
    ctx.progress(0, f"running {argv[0]}", stage="running")
    with contextlib.ExitStack() as files:
        source = files.enter_context(ctx.inputs[0].open("rb")) if stdin else subprocess.DEVNULL
        target = files.enter_context(ctx.output(stdout).open("wb")) if stdout else subprocess.PIPE
        process = files.enter_context(running(launch(program, arguments, settings), folder, settings, source, target))
        printed = listen(ctx, process)
    require_success(argv[0], process.returncode, printed)
    outputs = [*([stdout] if stdout else []), *keep(ctx, results)]
    return {"exit_status": 0, "seconds": round(time.monotonic() - started, 3), "outputs": outputs}


def find_program(argv: Sequence[str], settings: ShellSettings) -> str:
    """The file of the program. Raises `Fail` unless it is allowed, and there."""
    if not any(tuple(argv[: len(beginning)]) == beginning for beginning in settings.allow):
        allowed = ", ".join(" ".join(beginning) for beginning in settings.allow) or "nothing"
        text = f"{argv[0]!r} with these arguments is not in handlers.shell.config.allow; allowed: {allowed}"
        raise Fail(text, code="command_not_allowed")
    if "/" in argv[0] and not argv[0].startswith("/"):
        raise Fail(f"{argv[0]!r} is neither a name nor an absolute path", code="command_not_allowed")
    found = shutil.which(argv[0], path=settings.path)
    if found is None:
        raise Fail(f"there is no program {argv[0]!r} in {settings.path}", code="program_missing")
    return found


def make_folders(ctx: Context) -> tuple[Path, Path]:
    """Where the program runs, and where it puts its outputs: both empty."""
    folder, results = ctx.scratch / "work", ctx.scratch / "outputs"
    folder.mkdir()
    results.mkdir()
    return folder, results


def fill_in(argv: Sequence[str], inputs: Sequence[Path], results: Path) -> list[str]:
    """The arguments with paths in the place of `{input}`, the first file; `{inputs}`, one argument for each; and
    `{outputs}`. The paths are absolute: none is taken for an option."""
    filled: list[str] = []
    for argument in argv:
        if argument == "{inputs}":
            filled += map(str, inputs)
            continue
        if "{input}" in argument and not inputs:
            raise Fail("{input} stands for a file, and none came along", code="wrong_inputs")
        first = str(inputs[0]) if inputs else ""
        filled.append(argument.replace("{input}", first).replace("{outputs}", str(results)))
    return filled


def launch(program: str, arguments: Sequence[str], settings: ShellSettings) -> list[str]:
    """The arguments of an interpreter that sets the limits and becomes the program."""
    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": None if settings.cpu is None else round(settings.cpu),
        "RLIMIT_AS": settings.memory,
        "RLIMIT_FSIZE": settings.file_size,
        "RLIMIT_NOFILE": settings.open_files,
        "RLIMIT_NPROC": settings.processes,
    }
    limits = {name: limit for name, limit in wanted.items() if limit is not None}
    return [sys.executable, "-I", "-S", "-c", LAUNCH, json.dumps(limits), program, *arguments]


@contextlib.contextmanager
def running(
    command: Sequence[str], folder: Path, settings: ShellSettings, stdin: IO[bytes] | int, stdout: IO[bytes] | int
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, in a session of its own; when the `with` ends, nothing of that session is left."""
    home = str(folder)
    env = {"PATH": settings.path, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", **settings.env}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.STDOUT if stdout == subprocess.PIPE else subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and all of its group: asked first, then killed."""
    try:
        if process.poll() is None:
            signal_group(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_SECONDS)
    finally:
        signal_group(process, signal.SIGKILL)
        process.wait()


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal whatever is left of the process's group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def listen(ctx: Context, process: subprocess.Popen[bytes]) -> "Printed":
    """Put what is printed into the log until the process has ended. Raises Cancelled."""
    pipe = process.stdout or process.stderr
    assert pipe is not None
    printed = Printed(ctx)
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            ctx.check()
            # What it has started may outlive it and keep the pipe open: its own end is what counts.
            ended = process.poll() is not None
            if selector.select(0 if ended else LOOK_UP_SECONDS):
                data = os.read(pipe.fileno(), 65_536)
                printed.feed(data)
                if data:
                    continue
                break
            if ended:
                break
    printed.finish()
    await_end(ctx, process)
    return printed


def await_end(ctx: Context, process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that has closed what it prints to. Raises Cancelled."""
    while process.poll() is None:
        ctx.check()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_UP_SECONDS)


class Printed:
    """What a program prints, as lines of the log; those that begin with `::progress` are its progress. After a
    mebibyte the rest is passed over."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._rest = b""
        self._room = MAX_PRINTED_BYTES
        self.last = ""

    def feed(self, data: bytes) -> None:
        """Take in what came."""
        if self._room <= 0:
            return
        kept, self._room = data[: self._room], self._room - len(data)
        *lines, self._rest = LINE_END.split(self._rest + kept)
        if len(self._rest) > MAX_LINE_BYTES or self._room <= 0:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._say(line)
        if self._room <= 0:
            self._ctx.log.warning("more than %d KiB was printed; the rest is not kept", MAX_PRINTED_BYTES >> 10)

    def finish(self) -> None:
        """Take what was printed last without an end of line for a line."""
        self._say(self._rest)

    def _say(self, line: bytes) -> None:
        for start in range(0, len(line), MAX_LINE_BYTES):
            text = line[start : start + MAX_LINE_BYTES].decode("utf-8", "replace")
            if match := PROGRESS.fullmatch(text):
                self._ctx.progress(float(match[1]), match[2] or "", stage="running")
            elif text.strip():
                self.last = text.strip()
                self._ctx.log.info("%s", text)


def require_success(name: str, status: int, printed: Printed) -> None:
    """Raise `Retry`, with what it said last, unless the program ended well."""
    said = f": {printed.last[:MAX_REASON]}" if printed.last else ""
    if status > 0:
        raise Retry(None, f"{name} ended with status {status}{said}", "exit_status")
    if status < 0:
        with contextlib.suppress(ValueError):
            name = f"{name} ({signal.Signals(-status).name})"
        raise Retry(None, f"{name} was killed by signal {-status}{said}", "killed")


def keep(ctx: Context, results: Path) -> list[str]:
    """Make outputs of the files that the program left; the names of those. Only files: a link would lead elsewhere."""
    kept = []
    for path in sorted(results.iterdir()):
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ValueError("it is no file")
            target = ctx.output(path.name)
        except ValueError as error:
            ctx.log.warning("%s is left out: %s", path.name, error)
            continue
        shutil.move(path, target)
        kept.append(target.name)
    return kept
