"""The folder of handlers: what is found in it, what is wrong with it, and how it is kept up with."""

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from runner.config import BackoffConfig, HandlerConfig, RetentionRule
from runner.errors import InvalidSubmission, UnknownHandler
from runner.handlers import Backoff, Delivery, HandlerOptions, Handlers, Isolation, handler


class Folder:
    """A folder of handlers that a test writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, source: str) -> Path:
        self.path.mkdir(exist_ok=True)
        file = self.path / name
        file.write_text("from runner import Context, handler\n" + dedent(source), encoding="utf-8")
        return file

    def load(self, overrides: Mapping[str, HandlerConfig] | None = None) -> Handlers:
        handlers = Handlers(self.path, overrides or {})
        handlers.load()
        return handlers


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty one, which does not even exist yet."""
    return Folder(tmp_path / "handlers")


def only_error(handlers: Handlers) -> tuple[str, int | None]:
    """The message and the line of the one failure."""
    (failure,) = handlers.errors.values()
    return failure.message, failure.line


# Declaring


def test_the_decorator_changes_nothing_about_the_function() -> None:
    """A test may import a handler and call it."""

    @handler
    def plain(ctx: object) -> str:
        return "called"

    @handler(timeout="2m")
    def with_options(ctx: object) -> str:
        return "called, too"

    assert (plain(None), with_options(None)) == ("called", "called, too")


def test_options_are_written_as_people_do() -> None:
    """Lengths of time, single patterns, and the backoff in the words of config.yaml."""
    options = HandlerOptions.model_validate(
        {
            "accepts": "image/*",
            "timeout": "2m",
            "retries": 5,
            "backoff": {"base": "500ms", "max": "1m"},
            "isolation": "process",
            "delivery": "at_most_once",
            "retention": {"completed": "7d"},
            "requires": "numpy",
        }
    )
    assert (options.accepts, options.timeout_seconds, options.requires) == (("image/*",), 120, ("numpy",))
    assert options.backoff == Backoff(base_seconds=0.5, max_seconds=60)
    assert (options.isolation, options.delivery) == (Isolation.PROCESS, Delivery.AT_MOST_ONCE)
    assert options.retention == RetentionRule(completed=7 * 86_400)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("timout=3", "timout: unknown option"),
        ("timeout='soon'", "timeout"),
        ("timeout=0", "timeout"),
        ("retries=-1", "retries"),
        ("accepts=['image']", 'a type such as "image/*" or a suffix such as ".csv"'),
        ("concurrency=0", "concurrency"),
        ("isolation='thread'", "an async def runs on the loop"),
        ("name='No Good'", "cannot name a task type"),
        ("memory_mb=100", "memory_mb can only be enforced with isolation process"),
    ],
)
def test_a_wrong_option_is_named_with_its_line(folder: Folder, options: str, message: str) -> None:
    """The file is not served, and says why."""
    folder.write("a.py", f"\n\n@handler({options})\nasync def work(ctx): ...")
    text, line = only_error(folder.load())
    assert message in text
    assert line == 4


def test_a_def_cannot_be_put_on_the_loop(folder: Folder) -> None:
    """It would hold up every other coroutine."""
    folder.write("a.py", "@handler(isolation='loop')\ndef work(ctx): ...")
    assert "make it an async def" in only_error(folder.load())[0]


def test_what_runs_where_follows_from_how_it_is_written(folder: Folder) -> None:
    """Def in a thread, async def on the loop."""
    folder.write("a.py", "@handler\ndef one(ctx): ...\n@handler(retries=0)\nasync def two(ctx): ...")
    assert [h.options.isolation for h in folder.load()] == [Isolation.THREAD, Isolation.LOOP]


# Loading


def test_every_handler_of_every_file_is_found(folder: Folder) -> None:
    """A file's name is only a home; the handlers are named by their functions, or as they say."""
    folder.write("images.py", '@handler\ndef resize(ctx):\n    """Make it smaller."""\n@handler\ndef crop(ctx): ...')
    folder.write("other.py", "@handler(name='embed-text', priority=3)\ndef embed(ctx): ...")
    handlers = folder.load()
    assert [found.name for found in handlers] == ["crop", "embed-text", "resize"]
    assert len(handlers) == 3
    resize = handlers.get("resize")
    assert (resize.doc, resize.path, handlers.get("embed-text").options.priority) == (
        "Make it smaller.",
        folder.path / "images.py",
        3,
    )
    assert (handlers.get("crop").doc, len(resize.version)) == ("", 12)


def test_a_folder_that_is_not_there_has_no_handlers(folder: Folder) -> None:
    """It may be made later."""
    assert list(folder.load()) == []


def test_what_is_no_file_of_handlers_is_left_alone(folder: Folder) -> None:
    """Underscore files are for sharing; folders, other files and hidden ones are nothing to us."""
    folder.write("_shared.py", "raise RuntimeError")
    folder.write(".hidden.py", "raise RuntimeError")
    folder.write("notes.txt", "raise RuntimeError")
    (folder.path / "folder.py").mkdir()
    (folder.path / "gone.py").symlink_to("nowhere")
    assert (list(folder.load()), dict(folder.load().errors)) == ([], {})


def test_files_share_what_underscore_files_define(folder: Folder) -> None:
    """Relative to their folder; what is imported is not a handler of the importing file."""
    folder.write("_shared.py", "@handler\ndef secret(ctx): ...\ndef twice(n): return 2 * n")
    folder.write("a.py", "from ._shared import secret, twice\n@handler\ndef work(ctx): return twice(4)")
    handlers = folder.load()
    assert [found.name for found in handlers] == ["work"]
    assert handlers.get("work").function(None) == 8
    assert not (folder.path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("source", "message", "line"),
    [
        ("def broken(:", "SyntaxError", 2),
        ("\nraise ValueError('x')", "ValueError: x", 3),
        ("import sys\nsys.exit(1)", "SystemExit: 1", 3),
        ("import there_is_no_such_module", "No module named 'there_is_no_such_module'", 2),
        ("def f(): g()\ndef g(): 1 / 0\nf()", "ZeroDivisionError", 3),
        ("@handler\ndef work(): ...", "work() needs a first parameter, for the context", 2),
        ("@handler\ndef work(*, ctx): ...", "needs a first parameter", 2),
        ("@handler\ndef work(ctx, *more): ...", "cannot fill *more", 2),
        ("@handler\ndef work(ctx, more, /): ...", "cannot fill more", 2),
        ("@handler\ndef work(ctx, n: 'Missing'): ...", "name 'Missing' is not defined", 2),
        ("class Odd: ...\n@handler\ndef work(ctx, n: Odd): ...", "cannot be validated", 3),
        ("from collections.abc import Callable\n@handler\ndef work(ctx, n: Callable): ...", "described as JSON", 3),
        ("@handler\ndef work(ctx): ...\n@handler(name='work')\ndef again(ctx): ...", "a second handler 'work'", 4),
        ("x = 1\n\0", "null bytes", None),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why_and_where(
    folder: Folder, source: str, message: str, line: int | None
) -> None:
    """And does not keep the others from being served."""
    folder.write("broken.py", source)
    folder.write("good.py", "@handler\ndef good(ctx): ...")
    handlers = folder.load()
    assert [found.name for found in handlers] == ["good"]
    text, at = only_error(handlers)
    assert message in text
    assert at == line or line is None


def test_annotations_for_type_checkers_need_not_exist(folder: Folder) -> None:
    """Those of the context and of the result are not looked at."""
    folder.write(
        "a.py",
        """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from somewhere import Thing
        @handler
        def work(ctx: "Thing", n: "int" = 1) -> "Thing": ...
        """,
    )
    assert folder.load().get("work").arguments({"n": "2"}) == {"n": 2}


def test_two_files_cannot_define_the_same_handler(folder: Folder) -> None:
    """The first one keeps it, and when that goes away the second one gets it."""
    first = folder.write("a.py", "@handler\ndef work(ctx): return 'a'")
    second = folder.write("b.py", "@handler\ndef work(ctx): return 'b'")
    handlers = folder.load()
    assert handlers.get("work").path == first
    assert only_error(handlers) == ("handler 'work' is already defined in a.py", 2)
    first.unlink()
    assert handlers.refresh([first]) == {"work"}
    assert handlers.get("work").path == second
    assert not handlers.errors


def test_a_file_that_cannot_be_read_says_so(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails is no reason to forget the others, nor what was read before."""
    path = folder.write("a.py", "@handler\ndef work(ctx): ...")
    handlers = folder.load()

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    handlers.refresh([path])
    assert only_error(handlers) == ("cannot be read: Permission denied", None)
    assert handlers.find("work")


# The payload


@pytest.fixture
def resize(folder: Folder) -> Handlers:
    """A handler with parameters of several kinds."""
    folder.write(
        "resize.py",
        """
        from typing import Annotated, Literal
        from pydantic import BaseModel, Field

        class Box(BaseModel):
            left: int
            top: int = 0

        @handler
        def resize(
            ctx: Context,
            width: Annotated[int, Field(ge=1, description="in pixels")] = 320,
            mode: Literal["fit", "fill"] = "fit",
            *,
            box: Box | None = None,
            tags: list[str] = [],
            copy: bool = False,
            _x: float = 1.0,
        ) -> None: ...
        """,
    )
    return folder.load()


def test_a_payload_becomes_typed_arguments_with_defaults(resize: Handlers) -> None:
    """Parameters may be called anything that Python allows."""
    arguments = resize.get("resize").arguments({"width": "640", "box": {"left": 3}, "copy": True, "_x": 2})
    box = arguments.pop("box")
    assert (box.left, box.top) == (3, 0)
    assert arguments == {"width": 640, "mode": "fit", "tags": [], "copy": True, "_x": 2.0}


def test_every_fault_of_a_payload_is_named_by_a_pointer(resize: Handlers) -> None:
    """All at once, RFC 6901, and nothing is said about fields that are right."""
    payload = {"width": 0, "mode": "stretch", "box": {"left": "x"}, "tags": ["a", 1], "a/b~": 1, "_x": float("nan")}
    with pytest.raises(InvalidSubmission) as caught:
        resize.get("resize").validate(payload)
    pointers = [problem.pointer for problem in caught.value.problems]
    assert pointers == [
        "/payload/width",
        "/payload/mode",
        "/payload/box/left",
        "/payload/tags/1",
        "/payload/_x",
        "/payload/a~1b~0",
    ]
    assert caught.value.problems[-1].message == "unknown parameter"


def test_the_schema_is_what_a_form_is_made_from(resize: Handlers) -> None:
    """Names, types, limits, defaults and descriptions, and no others allowed."""
    schema = resize.get("resize").schema
    assert list(schema["properties"]) == ["width", "mode", "box", "tags", "copy", "_x"]
    width = {"default": 320, "description": "in pixels", "minimum": 1, "title": "Width", "type": "integer"}
    assert schema["properties"]["width"] == width
    assert (schema["title"], schema["additionalProperties"]) == ("resize", False)


def test_a_mutable_default_is_not_shared_between_attempts(resize: Handlers) -> None:
    """As it would be between calls of a function."""
    found = resize.get("resize")
    found.arguments({"width": 1})["tags"].append("x")
    assert found.arguments({"width": 1})["tags"] == []


def test_a_handler_without_parameters_takes_no_payload(folder: Folder) -> None:
    """An empty one is fine."""
    folder.write("a.py", "@handler\ndef work(ctx): ...")
    found = folder.load().get("work")
    assert found.arguments({}) == {}
    with pytest.raises(InvalidSubmission, match="/payload/n: unknown parameter"):
        found.validate({"n": 1})


def test_an_unknown_parameter_is_answered_with_the_nearest_one(resize: Handlers) -> None:
    """Whoever mistyped it sees what was meant."""
    with pytest.raises(InvalidSubmission, match=r"/payload/widht: unknown parameter; did you mean 'width'\?"):
        resize.get("resize").validate({"widht": 1})


def test_a_handler_may_take_what_is_not_named(folder: Folder) -> None:
    """`**options` opens the payload, but not to the name of the context."""
    folder.write("a.py", "@handler\ndef work(ctx, n: int = 1, **options): ...")
    found = folder.load().get("work")
    assert found.arguments({"x": [1], "n": "2", "p0": 3}) == {"n": 2, "x": [1], "p0": 3}
    assert found.schema["additionalProperties"] is True
    with pytest.raises(InvalidSubmission, match="/payload/ctx"):
        found.validate({"ctx": 1})


# The configuration


def test_the_configuration_wins_over_the_decorator_by_what_it_gives(folder: Folder) -> None:
    """Key by key, also inside the backoff and the retention."""
    folder.write(
        "a.py",
        "@handler(queue='low', timeout=10, retries=1, backoff={'base': 5, 'factor': 3}, retention={'failed': '1d'})\n"
        "def work(ctx): ...",
    )
    override = HandlerConfig(
        timeout=None,
        retries=7,
        queue=None,
        backoff=BackoffConfig(base=9.0),
        retention=RetentionRule(completed=60.0),
        isolation="process",
        memory_mb=100,
        config={"key": 1},
    )
    options = folder.load({"work": override}).get("work").options
    assert (options.queue, options.timeout_seconds, options.retries) == ("low", None, 7)
    assert options.backoff == Backoff(base_seconds=9, factor=3)
    assert options.retention == RetentionRule(completed=60.0, failed=86_400.0)
    assert (options.isolation, options.memory_mb) == (Isolation.PROCESS, 100)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (HandlerConfig(accepts=("image",)), "handlers.work cannot be used:\naccepts.0: must be a type"),
        (HandlerConfig(memory_mb=100), "memory_mb can only be enforced"),
        (HandlerConfig(isolation="thread"), "an async def runs on the loop"),
    ],
)
def test_a_configuration_that_does_not_fit_a_handler_is_its_error(
    folder: Folder, override: HandlerConfig, message: str
) -> None:
    """It cannot be known before the file is read."""
    folder.write("a.py", "@handler\nasync def work(ctx): ...")
    assert message in only_error(folder.load({"work": override}))[0]


def test_a_handler_that_is_switched_off_is_not_served(folder: Folder) -> None:
    """And whoever asks for it hears where that was said."""
    folder.write("a.py", "@handler\ndef work(ctx): ...")
    handlers = folder.load({"work": HandlerConfig(enabled=False)})
    assert (list(handlers), handlers.find("work")) == ([], None)
    with pytest.raises(UnknownHandler, match="switched off: handlers.work.enabled"):
        handlers.get("work")


# Asking for one


def test_a_type_that_nobody_serves_is_answered_with_the_nearest(folder: Folder) -> None:
    """Or with all that there are."""
    assert _reason(folder.load(), "work") == "no handler 'work'; known: none"
    folder.write("a.py", "@handler\ndef thumbnail(ctx): ...\n@handler\ndef resize(ctx): ...")
    assert _reason(folder.load(), "thumbnial") == "no handler 'thumbnial'; did you mean 'thumbnail'?"
    assert _reason(folder.load(), "x") == "no handler 'x'; known: resize, thumbnail"


@pytest.mark.parametrize("name", ["work.py", "other.py"])
def test_a_type_whose_file_is_broken_is_answered_with_the_error(folder: Folder, name: str) -> None:
    """Whether the file is called as the handler or only defines it."""
    path = folder.write(name, "@handler\ndef work(ctx): ...\n1 / 0")
    assert (
        _reason(folder.load(), "work")
        == f"handler 'work' cannot be loaded: {path}:4: ZeroDivisionError: division by zero"
    )


def test_a_type_that_lacks_a_module_is_answered_with_the_command(folder: Folder) -> None:
    """The handler is there, shows what it needs, and is served once that is installed."""
    folder.write("a.py", "@handler(requires=['json', 'not_there_yet'], extra='video')\ndef work(ctx): ...")
    folder.write("b.py", "@handler(requires='not.there')\ndef other(ctx): ...")
    handlers = folder.load()
    assert _reason(handlers, "work") == "handler 'work' needs not_there_yet: pip install 'file-runner[video]'"
    assert _reason(handlers, "other") == "handler 'other' needs not.there: pip install not.there"
    found = handlers.find("work")
    assert found is not None
    assert found.missing() == ("not_there_yet",)


def test_a_program_is_looked_for_where_the_handler_finds_it(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PATH, in its configuration, or in a module that brings it."""
    folder.write("a.py", "@handler(requires='cutter|cutter_wheel', extra='video')\ndef work(ctx): ...")
    folder.write("b.py", "@handler(requires='cutter|json')\ndef other(ctx): ...")
    monkeypatch.setenv("PATH", str(tmp_path))
    handlers = folder.load()
    assert _reason(handlers, "work") == "handler 'work' needs cutter: pip install 'file-runner[video]'"
    assert handlers.get("other").missing() == ()
    (tmp_path / "cutter").touch(0o700)
    assert handlers.get("work").missing() == ()
    (tmp_path / "cutter").unlink()
    configured = folder.load({"work": HandlerConfig(config={"cutter": "/opt/cutter"})})
    assert configured.get("work").missing() == ()


def test_a_module_that_is_installed_later_is_found(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a restart."""
    folder.write("a.py", "@handler(requires='arrives_later')\ndef work(ctx): ...")
    handlers = folder.load()
    assert "arrives_later" in _reason(handlers, "work")
    (tmp_path / "arrives_later.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert handlers.get("work").name == handlers.get("work").name == "work"


def _reason(handlers: Handlers, type: str) -> str:
    with pytest.raises(UnknownHandler) as caught:
        handlers.get(type)
    assert caught.value.type == type
    return str(caught.value)


# Changes


def test_a_changed_file_brings_a_new_version_and_leaves_the_old_one_working(folder: Folder) -> None:
    """A task that runs on the old version finds everything as it was."""
    path = folder.write("a.py", "n = 1\n@handler\ndef work(ctx): return n")
    handlers = folder.load()
    old = handlers.get("work")
    folder.write("a.py", "n = 2\n@handler\ndef work(ctx): return n")
    assert handlers.refresh([path]) == {"work"}
    new = handlers.get("work")
    assert (old.function(None), new.function(None)) == (1, 2)
    assert old.version != new.version


def test_a_file_that_breaks_keeps_its_last_good_version_serving(folder: Folder) -> None:
    """Its error shows until it is mended."""
    path = folder.write("a.py", "@handler\ndef work(ctx): return 1")
    handlers = folder.load()
    folder.write("a.py", "@handler\ndef work(ctx): return")
    path.write_text("def work(")
    assert handlers.refresh([path]) == set()
    assert handlers.get("work").function(None) == 1
    assert list(handlers.errors) == [path]
    folder.write("a.py", "@handler\ndef work(ctx): return 2")
    assert handlers.refresh([path]) == {"work"}
    assert not handlers.errors


def test_a_file_that_goes_takes_its_handlers_with_it(folder: Folder) -> None:
    """As does one that does not define them any more."""
    path = folder.write("a.py", "@handler\ndef one(ctx): ...\n@handler\ndef two(ctx): ...")
    handlers = folder.load()
    folder.write("a.py", "@handler\ndef two(ctx): ...")
    assert handlers.refresh([path]) == {"one", "two"}
    assert [found.name for found in handlers] == ["two"]
    path.unlink()
    assert handlers.refresh([path]) == {"two"}
    assert list(handlers) == []


def test_a_change_of_what_is_shared_is_a_change_of_all(folder: Folder) -> None:
    """Even one of the same length within the same second."""
    shared = folder.write("_shared.py", "n = 1")
    folder.write("a.py", "from ._shared import n\n@handler\ndef work(ctx): return n")
    handlers = folder.load()
    old = handlers.get("work")
    folder.write("_shared.py", "n = 2")
    assert handlers.refresh([shared]) == {"work"}
    new = handlers.get("work")
    assert (old.function(None), new.function(None)) == (1, 2)
    assert old.version != new.version


class Changes:
    """Hears of changes, and waits for one."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._news = threading.Condition()

    def __call__(self, names: frozenset[str]) -> None:
        with self._news:
            self.names |= names
            self._news.notify_all()

    def wait_for(self, happened: Callable[[], object]) -> None:
        with self._news:
            assert self._news.wait_for(happened, 20)


@pytest.fixture
def watched(folder: Folder) -> Iterator[tuple[Handlers, Changes]]:
    """A folder with one handler that is watched."""
    folder.write("a.py", "@handler\ndef one(ctx): ...")
    handlers, changes = folder.load(), Changes()
    handlers.watch(changes, rescan_seconds=0.5)
    yield handlers, changes
    handlers.close()


def test_a_watched_folder_is_kept_up_with(folder: Folder, watched: tuple[Handlers, Changes]) -> None:
    """Files that come, change, break and go, in the time of a thought."""
    handlers, changes = watched
    folder.write("b.py", "@handler\ndef two(ctx): ...")
    changes.wait_for(lambda: handlers.find("two"))
    assert changes.names == {"two"}
    folder.write("b.py", "@handler\ndef two(ctx): ")
    changes.wait_for(lambda: handlers.errors)
    assert handlers.find("two")
    (folder.path / "b.py").unlink()
    changes.wait_for(lambda: not handlers.find("two"))
    assert not handlers.errors


def test_a_name_that_is_not_utf8_does_not_end_the_watch(folder: Folder, watched: tuple[Handlers, Changes]) -> None:
    """It ends the watcher below, which is started again."""
    handlers, changes = watched
    (folder.path / "caf\udce9.txt").touch()
    folder.write("b.py", "@handler\ndef two(ctx): ...")
    changes.wait_for(lambda: handlers.find("two"))
    folder.write("c.py", "@handler\ndef three(ctx): ...")
    changes.wait_for(lambda: handlers.find("three"))


def test_a_folder_that_is_replaced_is_still_watched(folder: Folder, watched: tuple[Handlers, Changes]) -> None:
    """As by a deployment, or a checkout; while there is none there are no handlers."""
    handlers, changes = watched
    folder.path.rename(folder.path.with_name("old"))
    changes.wait_for(lambda: not handlers.find("one"))
    folder.write("b.py", "@handler\ndef two(ctx): ...")
    changes.wait_for(lambda: handlers.find("two"))
