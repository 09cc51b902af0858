"""Raw settings, and where each of them came from: the file, the environment, the command line.

What they mean is in `config.py`. Only this module reads YAML, and only a small, plain part of it: mappings, lists and
scalars. `true` and `false` alone are booleans (so `dedupe: off` stays a word), there are no dates and no base-60
numbers; anchors, aliases, tags and duplicate keys are refused, for an alias bomb fits in 200 bytes (OWASP ASVS 1.5.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from runner.errors import ConfigError

MAX_FILE_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 32
ENVIRONMENT_PREFIX: Final = "RUNNER__"

KeyPath = tuple[str, ...]
"""The keys that lead to a setting: ("http", "port"). A place in a list counts as a key: ("inbox", "ignore", "0")."""


@dataclass
class Settings:
    """Nested raw values, the origin of each ("config.yaml:12", "RUNNER__HTTP__PORT"), and what was wrong with them."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, path: KeyPath, value: object, origin: str) -> None:
        """Set the value at `path`, whatever was there before, and remember where it came from.

        Nothing is changed where something that holds no keys stands on the way: that is the fault to report.
        """
        mapping = self.values
        for key in path[:-1]:
            inner = {} if mapping.get(key) is None else mapping[key]
            if not isinstance(inner, Mapping):
                return
            mapping[key] = mapping = dict(inner)
        mapping[path[-1]] = value
        self.origins = {known: where for known, where in self.origins.items() if known[: len(path)] != path}
        self.origins[path] = origin

    def origin(self, path: KeyPath) -> str:
        """Where the setting at `path` came from, or what is in it or encloses it; "" for a default."""
        if path and path not in self.origins:
            inside = (where for known, where in self.origins.items() if known[: len(path)] == path)
            if found := next(inside, ""):
                return found
        return next((self.origins[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.origins), "")

    def holds(self, path: KeyPath) -> bool:
        """Whether something was set at exactly `path`."""
        found: Any = self.values
        for key in path:
            if isinstance(found, Mapping) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            else:
                return False
        return True


def read_file(path: Path) -> Settings:
    """The settings in the YAML file at `path`.

    Raises ConfigError when nothing can be made of it; lesser faults, such as a duplicate key, are in `problems`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES // 1024} KiB; is it the right file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x})") from error
    return _parse(text, str(path))


def read_environment(settings: Settings, environ: Mapping[str, str]) -> None:
    """Lay `RUNNER__SECTION__KEY` variables over `settings`. A value is a scalar, or a [list] or {mapping} in YAML."""
    names = sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX))
    for name in names:
        path = tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
        try:
            if not all(path):
                raise ValueError("unknown; a setting is named like RUNNER__HTTP__PORT")
            settings.put(path, _parse_value(environ[name]), name)
        except (yaml.YAMLError, ValueError) as error:
            settings.problems.append(f"{name}: {_reason(error)}")


def read_variables(settings: Settings, environ: Mapping[str, str], paths: Mapping[str, KeyPath]) -> None:
    """Lay variables that have names of their own over `settings`, each at its place; empty ones are as if not set.
    Digits are a number where a port or the number of a database is wanted."""
    for name, path in paths.items():
        text = environ.get(name, "")
        if text:
            settings.put(path, int(text) if path[-1] in ("db", "port") and text.isdecimal() else text, name)


def read_options(settings: Settings, options: Mapping[str, Any]) -> None:
    """Lay options with dotted names ("http.port") over `settings`; their values are taken as they are."""
    for name, value in options.items():
        path = tuple(name.split("."))
        settings.put(path, value, option_name(path))


def variable_name(path: KeyPath) -> str:
    """The environment variable that sets `path`."""
    return ENVIRONMENT_PREFIX + "__".join(path).upper()


def option_name(path: KeyPath) -> str:
    """How an option of the command line that sets `path` is called in a problem."""
    return f"option {'.'.join(path)}"


_TAG: Final = "tag:yaml.org,2002:"
_SCALARS: Final = (
    ("null", r"~|null|", ("~", "n", "")),
    ("bool", r"true|false", tuple("tf")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", tuple("-+0123456789")),
    ("float", r"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?", tuple("-+0123456789")),
)
"""What a plain word is taken for: its type, the pattern of the whole word, the characters that it can begin with."""

_NOT_PLAIN: Final = ("[", "{", '"', "'")
"""How the value of a variable begins that is not to be taken as it is."""


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """`_SCALARS` in the shape that PyYAML wants: by first character."""
    resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, pattern, first in _SCALARS:
        for character in first:
            resolvers.setdefault(character, []).append((_TAG + kind, re.compile(rf"(?:{pattern})\Z")))
    return resolvers


class _Loader(yaml.SafeLoader):
    """Composes plain nodes only; what is refused raises a YAMLError with its place."""

    yaml_implicit_resolvers = _resolvers()
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As in PyYAML, without anchors, aliases, tags and bottomless nesting."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refusal("anchors and aliases (&name, *name) are not allowed here", event)
        if getattr(event, "tag", None):
            raise _refusal("tags (!name) are not allowed here", event)
        if self.depth >= MAX_DEPTH:
            raise _refusal(f"nested deeper than {MAX_DEPTH} levels", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refusal(reason: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = event.start_mark  # the stubs know of a second class of marks, of the loaders written in C
    return yaml.MarkedYAMLError(None, None, reason, mark)


@dataclass
class _Reader:
    """Makes plain values of nodes, keys as written; notes the line of each key and item, and what is wrong."""

    loader: _Loader
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def read(self, node: yaml.Node, path: KeyPath = ()) -> Any:
        self.lines[path] = node.start_mark.line + 1 if node.start_mark else 1
        if isinstance(node, yaml.MappingNode):
            return {key.value: self.read_entry(key, value, path) for key, value in self.entries(node, path)}
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, str(place))) for place, item in enumerate(node.value)]
        try:
            return self.loader.construct_object(node)
        except ValueError:  # a number of thousands of digits, which Python declines to read
            return node.value

    def read_entry(self, key: yaml.Node, value: yaml.Node, path: KeyPath) -> Any:
        found = self.read(value, (*path, key.value))
        self.lines[(*path, key.value)] = key.start_mark.line + 1
        return found

    def entries(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append((line, "a key must be a word"))
            elif (*path, key.value) in self.lines:
                name, first = ".".join((*path, key.value)), self.lines[(*path, key.value)]
                self.problems.append((line, f"{name}: set twice, first in line {first}"))
            else:
                yield key, value


def _parse(text: str, name: str) -> Settings:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}{_line(error)}: {_reason(error)}") from error
    reader = _Reader(loader)
    values = {} if node is None else reader.read(node)
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: must be a mapping: lines of `key: value`")
    origins = {path: f"{name}:{line}" for path, line in reader.lines.items()}
    problems = [f"{name}:{line}: {problem}" for line, problem in reader.problems]
    return Settings(values, {**origins, (): name}, problems)


def _parse_value(text: str) -> Any:
    """The value of a variable. Raises YAMLError or ValueError."""
    loader = _Loader(text)
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    node = (loader.get_single_node() if text[:1] in _NOT_PLAIN else None) or yaml.ScalarNode(tag, text)
    reader = _Reader(loader)
    value = reader.read(node)
    if reader.problems:
        raise ValueError(reader.problems[0][1])
    return value


def _line(error: yaml.YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f":{mark.line + 1}" if mark else ""


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        return " ".join(part for part in (error.problem, error.context) if part)
    return str(error).splitlines()[0]
