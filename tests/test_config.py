"""The configuration: what wins, what is refused, and how it is said."""

import re
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runner.config import Config, HttpConfig, RetentionRule
from runner.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the configuration of a test stands."""
    return tmp_path / "config.yaml"


def load(file: Path, text: str | bytes = b"", **environ: str) -> Config:
    """The configuration from a file with `text`, and variables given without their prefix."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Config.load(file, {}, {f"RUNNER__{name}": value for name, value in environ.items()})


def problems(file: Path, text: str | bytes = b"", **environ: str) -> list[str]:
    """What is wrong with them, without the name of the folder."""
    with pytest.raises(ConfigError) as refusal:
        load(file, text, **environ)
    lines = refusal.value.problems or (str(refusal.value),)
    return [line.replace(f"{file.parent}/", "") for line in lines]


def test_the_shipped_file_says_the_defaults(file: Path) -> None:
    """A person who reads config.yaml reads what holds without it."""
    file.write_bytes((ROOT / "config.yaml").read_bytes())
    assert Config.load(file, {}, {}) == load(file)


def test_the_shipped_file_names_every_key(file: Path) -> None:
    """Nothing can be configured that config.yaml does not show."""
    shown = yaml.safe_load((ROOT / "config.yaml").read_text())
    defaults = Config().model_dump(by_alias=True)
    assert shown.keys() == defaults.keys()
    for section, values in defaults.items():
        if isinstance(values, dict):
            assert shown[section].keys() == values.keys(), section


@pytest.mark.parametrize("example", ["nightly", "thumbnail"])
def test_the_examples_in_the_comments_of_the_shipped_file_hold(file: Path, example: str) -> None:
    """A commented schedule or handler can be used as it stands, and names every key of its kind."""
    text = (ROOT / "config.yaml").read_text()
    block = re.search(rf"^#   {example}:\n(?:#     .*\n)+", text, re.MULTILINE)
    assert block
    section = "schedules" if example == "nightly" else "handlers"
    config = load(file, f"{section}:\n" + re.sub(r"^# ", "", block[0], flags=re.MULTILINE))
    entry = getattr(config, section)[example]
    assert entry.model_fields_set == set(type(entry).model_fields)


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner starts in an empty folder, and keeps its data there."""
    monkeypatch.chdir(tmp_path)
    config = Config.load(None, {}, {})
    assert config.model_copy(update={"data_dir": Path("data"), "handlers_dir": Path("handlers")}) == Config()
    assert (config.data_dir, config.handlers_dir) == (tmp_path / "data", tmp_path / "handlers")


def test_the_file_in_the_current_folder_is_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No option is needed for the usual place."""
    file.write_text("http: {port: 9001}")
    monkeypatch.chdir(file.parent)
    assert Config.load(None, {}, {}).http.port == 9001


def test_options_win_over_the_environment_and_that_over_the_file(file: Path) -> None:
    """One order of precedence, for every key."""
    file.write_text("http: {port: 1, host: localhost}\nlimits: {global: 1}\ngrpc: {port: 1}")
    environ = {"RUNNER__HTTP__PORT": "2", "RUNNER__LIMITS__GLOBAL": "2"}
    config = Config.load(file, {"http.port": 3}, environ)
    assert (config.http.port, config.limits.global_, config.grpc.port, config.http.host) == (3, 2, 1, "localhost")


def test_a_folder_is_beside_the_file_that_names_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--config` from elsewhere does not move the data; a path typed by hand means where it was typed."""
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    file.write_text("data_dir: here")
    config = Config.load(file, {"handlers_dir": Path("typed")}, {})
    assert (config.data_dir, config.handlers_dir) == (file.parent / "here", elsewhere / "typed")
    assert Config.load(file, {}, {"RUNNER__DATA_DIR": "there"}).data_dir == elsewhere / "there"


def test_a_folder_may_be_in_the_home_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` means what it means in a shell."""
    monkeypatch.setenv("HOME", "/home/ann")
    assert load(file, "data_dir: ~/runs").data_dir == Path("/home/ann/runs")


@pytest.mark.parametrize(
    ("variable", "value", "path", "expected"),
    [
        ("HTTP__PORT", "9000", "http.port", 9000),
        ("LIMITS__PER_USER", "null", "limits.per_user", None),
        ("LIMITS__PER_USER", "", "limits.per_user", None),
        ("LIMITS__EXEMPT_USERS", "[ann, bob]", "limits.exempt_users", ("ann", "bob")),
        ("LIMITS__PER_TYPE", "{a: 2}", "limits.per_type", {"a": 2}),
        ("LIMITS__PER_TYPE__THUMBNAIL", "2", "limits.per_type", {"thumbnail": 2}),
        ("INBOX__DEDUPE", "off", "inbox.dedupe", "off"),
        ("INBOX__SUPERSEDE", "true", "inbox.supersede", True),
        ("INBOX__FORCE_POLLING", "true", "inbox.force_polling", True),
        ("INBOX__IGNORE", '["*.bak"]', "inbox.ignore", ("*.bak",)),
        ("DRAIN__GRACE_PERIOD", "1m", "drain.grace_period", 60.0),
        ("STORAGE__MIN_FREE_BYTES", "1GB", "storage.min_free_bytes", 10**9),
        ("HTTP__HOST", "::1", "http.host", "::1"),
    ],
)
def test_a_variable_sets_any_kind_of_value(file: Path, variable: str, value: str, path: str, expected: object) -> None:
    """Plain words as they are; lists and mappings in YAML."""
    config = load(file, **{variable: value})
    section, key = path.split(".")
    assert getattr(getattr(config, section), key) == expected


def test_other_programs_variables_are_left_alone(file: Path) -> None:
    """Only the prefix with two underscores is ours."""
    file.write_text("")
    assert Config.load(file, {}, {"RUNNER_OS": "Linux", "PATH": "/bin"}) == load(file)


def test_the_standard_queues_are_always_there(file: Path) -> None:
    """A bare number is a weight, and naming one queue does not take the others away."""
    queues = load(file, "queues: {fast: 7, low: {weight: 2, concurrency: 1}}").queues
    assert {name: queue.weight for name, queue in queues.items()} == {
        "critical": 10, "high": 5, "default": 3, "low": 2, "fast": 7,
    }  # fmt: skip
    assert queues["low"].concurrency == 1


def test_a_part_without_lines_is_as_if_left_out(file: Path) -> None:
    """A section of which every line was commented out is no mistake."""
    assert load(file, "http:\nhandlers:\nlimits:\n  per_type:\n") == load(file)


def test_a_handler_overrides_only_what_was_given(file: Path) -> None:
    """A null is given: it takes the decorator's timeout away."""
    handler = load(file, "handlers: {thumbnail: {timeout: null, retries: 0}}").handlers["thumbnail"]
    assert handler.given() == {"timeout": None, "retries": 0}


def test_one_length_of_retention_is_for_every_status(file: Path) -> None:
    """`thumbnail: 1d` is short for three lines; a rule may name one status alone."""
    rules = load(file, "retention: {per_type: {a: 1d, b: {failed: null}}}").retention.per_type
    assert rules["a"] == RetentionRule(completed=86400, failed=86400, cancelled=86400)
    assert rules["b"].given() == {"failed": None}


def test_a_loop_that_is_not_installed_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and not when the first client comes."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(ValidationError, match=r"uvloop is not installed here: pip install 'file-runner\[fast\]'"):
        Config(http=HttpConfig(event_loop="uvloop"))


def test_the_configuration_cannot_be_changed() -> None:
    """A part that was handed its section can rely on it."""
    with pytest.raises(ValidationError, match="frozen"):
        Config().http.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("http:\n  prot: 80", "config.yaml:2: http.prot: unknown; did you mean http.port?"),
        ("port: 80", "config.yaml:1: port: unknown; did you mean http.port?"),
        ("durabilty: full", "config.yaml:1: durabilty: unknown; did you mean durability?"),
        ("outbox: {qqq: 1}", "config.yaml:1: outbox.qqq: unknown; known here: enabled, link"),
        (
            "handlers:\n  x:\n    timout: 2m",
            "config.yaml:3: handlers.x.timout: unknown; did you mean handlers.x.timeout?",
        ),
        (
            "handlers: {x: {backoff: {bas: 2m}}}",
            "config.yaml:1: handlers.x.backoff.bas: unknown; did you mean handlers.x.backoff.base?",
        ),
        ("<<: {durability: full}", "config.yaml:1: <<: unknown; known here: data_dir, durability, http"),
        ('http: {port: "80"}', 'config.yaml:1: http.port: must be a whole number, not "80"'),
        ("http: {port: true}", "config.yaml:1: http.port: must be a whole number, not true"),
        ("http: {port: 70000}", "config.yaml:1: http.port: must be less than or equal to 65535, not 70000"),
        ("http: 80", "config.yaml:1: http: must hold keys of its own, in the lines below it, not 80"),
        ("handlers: [a]", 'config.yaml:1: handlers: must hold keys of its own, in the lines below it, not ["a"]'),
        ("data_dir: ''", "config.yaml:1: data_dir: must name a folder"),
        ("limits: {global: 0}", "config.yaml:1: limits.global: must be greater than or equal to 1, not 0"),
        ("limits: {exempt_users: ann}", 'config.yaml:1: limits.exempt_users: must be a list such as [a, b], not "ann"'),
        (
            "limits:\n  exempt_users:\n    - ann\n    - 5",
            "config.yaml:4: limits.exempt_users.1: must be text; put it in quotes, not 5",
        ),
        ("durability: maybe", "config.yaml:1: durability: must be 'full' or 'process', not \"maybe\""),
        ("inbox: {enabled: 5}", "config.yaml:1: inbox.enabled: must be true or false, not 5"),
        (
            "inbox: {force_polling: maybe}",
            "config.yaml:1: inbox.force_polling: must be true or false or must be 'auto', not \"maybe\"",
        ),
        ("inbox: {settle_seconds: soon}", "config.yaml:1: inbox.settle_seconds: must be a length of time such as"),
        ("inbox: {rescan_seconds: 0}", "config.yaml:1: inbox.rescan_seconds: must be greater than 0, not 0"),
        ("storage: {ballast_bytes: 16M}", "config.yaml:1: storage.ballast_bytes: must be a size such as"),
        ("queues: {low: 0}", "config.yaml:1: queues.low: must be greater than or equal to 1, not 0"),
        (
            "handlers:\n  x:\n    queue: fats",
            "config.yaml:3: handlers.x.queue: must be one of queues (critical, high, default, low), not 'fats'",
        ),
        (
            "handlers: {x: {backoff: {factor: inf}}}",
            "config.yaml:1: handlers.x.backoff.factor: must be a finite number",
        ),
        ("schedules:\n  n:\n    cron: '0 0 * * *'", "config.yaml:2: schedules.n.type: is missing"),
        (
            "schedules: {n: {type: x, cron: '61 * * * *'}}",
            "config.yaml:1: schedules.n.cron: must be five cron fields such as \"30 2 * * mon\", not '61 * * * *': bad",
        ),
        (
            "schedules: {n: {type: x, cron: '0 0 * * *', timezone: Mars/Base}}",
            'config.yaml:1: schedules.n.timezone: must be the name of a time zone such as "Asia/Shanghai", not \'Mars',
        ),
        (
            "http:\n  host: 0.0.0.0",
            "config.yaml:2: http.host: '0.0.0.0' can be reached from other machines, and auth.mode local trusts "
            "whoever reaches it; set auth.mode to cookie or token, or http.host to 127.0.0.1",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_line_and_what_is_allowed(file: Path, text: str, problem: str) -> None:
    """One problem, told so that it can be mended without the manual."""
    (line,) = problems(file, text)
    assert line.startswith(problem)


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("HTTP__PROT", "80", "RUNNER__HTTP__PROT: unknown; did you mean RUNNER__HTTP__PORT?"),
        ("HTP__PORT", "80", "RUNNER__HTP__PORT: htp: unknown; did you mean http?"),
        ("HTTP_PORT", "80", "RUNNER__HTTP_PORT: unknown; did you mean RUNNER__HTTP__PORT?"),
        ("HTTP__PORT", "x", 'RUNNER__HTTP__PORT: must be a whole number, not "x"'),
        ("HTTP__PORT", "", "RUNNER__HTTP__PORT: must be a whole number, not null"),
        ("HTTP__PORT", "9" * 5000, 'RUNNER__HTTP__PORT: must be a whole number, not "9999'),
        ("HTTP__ALLOWED_HOSTS", "[", "RUNNER__HTTP__ALLOWED_HOSTS: expected the node content"),
        ("HANDLERS", "{x: {timout: 1}}", "RUNNER__HANDLERS: handlers.x.timout: unknown; did you mean"),
        ("HANDLERS", "{x: 1, x: 2}", "RUNNER__HANDLERS: x: set twice"),
        ("", "1", "RUNNER__: unknown; a setting is named like RUNNER__HTTP__PORT"),
        ("HTTP____PORT", "1", "RUNNER__HTTP____PORT: unknown; a setting is named like RUNNER__HTTP__PORT"),
    ],
)
def test_a_wrong_variable_is_named(file: Path, variable: str, value: str, problem: str) -> None:
    """A misspelt variable must not be ignored in silence."""
    (line,) = problems(file, **{variable: value})
    assert line.startswith(problem)


def test_a_wrong_option_is_named(file: Path) -> None:
    """What came by the command line is not blamed on the file."""
    file.write_text("http: {port: 80}")
    with pytest.raises(ConfigError, match='option http.port: must be a whole number, not "x"'):
        Config.load(file, {"http.port": "x"}, {})


def test_every_problem_is_told_at_once(file: Path) -> None:
    """Nobody mends one line, starts again, and meets the next; what sets what is said in one go."""
    text = "durability: maybe\nhttp:\n  port: x\n  port: y\nlimits: 5\n"
    found = problems(file, text, LOG__LEVEL="loud", LIMITS__GLOBAL="7")
    assert [line.split(": ")[:2] for line in found] == [
        ["config.yaml:4", "http.port"],
        ["config.yaml:1", "durability"],
        ["config.yaml:3", "http.port"],
        ["config.yaml:5", "limits"],
        ["RUNNER__LOG__LEVEL", "must be 'debug', 'info', 'warning' or 'error', not \"loud\""],
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x [1]\nb: *x", "config.yaml:1: anchors and aliases (&name, *name) are not allowed here"),
        ("data_dir: d\nhttp: *x", "config.yaml:2: anchors and aliases (&name, *name) are not allowed here"),
        ("log: !!python/object/apply:os.system [x]", "config.yaml:1: tags (!name) are not allowed here"),
        ("data_dir: [", "config.yaml:1: expected the node content"),
        ("a: b\n  c: d", "config.yaml:2: mapping values are not allowed here"),
        ("x: " + "[" * 1000, "config.yaml:1: nested deeper than 32 levels"),
        ("a: 1\n---\nb: 2", "config.yaml:2: but found another document"),
        ("- a\n- b", "config.yaml: must be a mapping: lines of `key: value`"),
        ("? [a]\n: b", "config.yaml:1: a key must be a word"),
        ("http: {port: " + "9" * 5000 + "}", 'config.yaml:1: http.port: must be a whole number, not "9999'),
        (b"ok: 1\nname: caf\xe9\n", "config.yaml:2: not UTF-8 (byte 0xe9)"),
        (b"a: \x00", "config.yaml: unacceptable character #x0000"),
        ("#" * 70_000, "config.yaml is larger than 64 KiB; is it the right file?"),
    ],
)
def test_a_file_that_is_not_plain_yaml_is_refused(file: Path, text: str | bytes, problem: str) -> None:
    """Refused before anything is made of it, with the line where it has one."""
    assert problems(file, text)[0].startswith(problem)


PIECES = st.sampled_from(
    [*"-:[]{}&*!?|>'\"#%@`,~.0a \n\t", "\n  ", ": ", "- ", "http", "port", "handlers", "9e9", "\x85", "\ud7ff"]
)


@given(st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=40).map("".join).map(str.encode)))
def test_no_bytes_whatever_end_in_anything_but_an_answer(data: bytes) -> None:
    """A configuration, or a ConfigError: never a traceback from inside the parser."""
    with TemporaryDirectory() as folder, suppress(ConfigError):
        load(Path(folder) / "config.yaml", data)
    with TemporaryDirectory() as folder, suppress(ConfigError):
        load(Path(folder) / "config.yaml", HANDLERS__X__CONFIG=data.decode("utf-8", "replace"))


def test_a_missing_file_is_refused(file: Path) -> None:
    """A path that was given must be there; the defaults do not stand in for it."""
    with pytest.raises(ConfigError, match="config.yaml cannot be read: No such file"):
        Config.load(file, {}, {})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_this_machine_may_be_served_without_authentication(file: Path, host: str) -> None:
    """Every way to say loopback."""
    assert load(file, f"http: {{host: '{host}'}}").http.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "", "example.org"])
def test_other_machines_are_served_only_with_authentication(file: Path, host: str) -> None:
    """Anything else needs a mode that asks who is there."""
    assert "auth.mode" in problems(file, f"http: {{host: '{host}'}}")[0]
    assert load(file, f"http: {{host: '{host}'}}\nauth: {{mode: token}}").auth.mode == "token"


def test_words_that_old_yaml_takes_for_other_things_stay_words(file: Path) -> None:
    """`off`, `no`, dates and 1:30 are text; 1_000_000 and 1e3 are numbers."""
    text = "handlers: {x: {config: {a: off, b: no, c: 2026-01-01, d: 1:30, e: 1_000, f: 1e3, g: 010, h: ~, i: .5}}}"
    assert load(file, text).handlers["x"].config == {
        "a": "off", "b": "no", "c": "2026-01-01", "d": "1:30", "e": 1000, "f": 1000.0, "g": 10.0, "h": None, "i": ".5",
    }  # fmt: skip


def test_a_watched_folder_is_beside_the_file_that_names_it(file: Path) -> None:
    """As every folder; what is not said has its default."""
    config = load(file, "inbox: {folders: [{path: scans/../in, handler: ocr, after: keep}]}")
    (folder,) = config.inbox.folders
    assert (folder.path, folder.user_id, folder.after) == (file.parent / "in", "local", "keep")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("inbox: {folders: [{path: in}]}", "config.yaml:1: inbox.folders.0.handler: is missing"),
        (
            "inbox: {folders: [{path: in, handler: a, handlr: b}]}",
            "config.yaml:1: inbox.folders.0.handlr: unknown; did you mean inbox.folders.0.handler?",
        ),
        (
            "inbox: {folders: [{path: in, handler: a}, {path: in/b, handler: b}]}",
            "config.yaml:1: inbox.folders.1.path: 'in/b' and 'in' lie in each other",
        ),
        (
            "inbox: {folders: [{path: data/tasks, handler: a}]}",
            "inbox.folders.0.path: 'data/tasks' and data_dir lie in each other; ",
        ),
        (
            "inbox: {folders: [{path: in, handler: a, user_id: ../b}]}",
            "config.yaml:1: inbox.folders.0.user_id: must be a name of a-z, 0-9",
        ),
    ],
)
def test_a_watched_folder_that_cannot_be_is_refused(file: Path, text: str, says: str) -> None:
    """With its line and what is wrong."""
    (problem,) = problems(file, text)
    assert problem.startswith(says)
