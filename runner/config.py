"""Everything that can be configured: one frozen section for each part, and `Config.load`, the way to get them.

Each part is handed its own section and sees no other. What is set later in this list wins: the defaults here, the file
(`config.yaml`), the environment (`RUNNER__HTTP__PORT=9000`), the command line. No other module reads the environment.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin
from urllib.parse import quote
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from runner.errors import ConfigError, UrlNotAllowed
from runner.settings import (
    KeyPath,
    Settings,
    option_name,
    read_environment,
    read_file,
    read_options,
    read_variables,
    variable_name,
)
from runner.units import Duration, Size

OTHER_VARIABLES: Final[Mapping[str, KeyPath]] = {
    "LOCAL_STORAGE_PATH": ("dialects", "video_in_chinese", "storage_path"),
    "REDIS_ADDR": ("dialects", "video_in_chinese", "redis", "address"),
    "REDIS_DB": ("dialects", "video_in_chinese", "redis", "db"),
    "REDIS_PASSWORD": ("dialects", "video_in_chinese", "redis", "password"),
    "TASK_GRPC_PORT": ("grpc", "port"),
}
"""What Video-In-Chinese's task service calls its settings in the environment."""

DEFAULT_FILE: Final = Path("config.yaml")
STANDARD_QUEUES: Final = {"critical": 10, "high": 5, "default": 3, "low": 1}

Count = Annotated[int, Field(strict=True, ge=1)]
Whole = Annotated[int, Field(strict=True, ge=0)]
EventLoop = Literal["asyncio", "uvloop"]
Port = Annotated[int, Field(strict=True, ge=0, le=65535)]
Rate = Annotated[float, Field(gt=0)]
Length = Annotated[Duration, Field(gt=0)]


def _check_cron(expression: str) -> str:
    try:
        CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        reason = str(error).lower()
        raise ValueError(f'must be five cron fields such as "30 2 * * mon", not {expression!r}: {reason}') from error
    return expression


def _check_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f'must be the name of a time zone such as "Asia/Shanghai", not {name!r}') from error
    return name


def _check_path(path: Path) -> Path:
    if path == Path():
        raise ValueError("must name a folder")
    return path


def _check_user_id(user_id: str) -> str:
    if not re.fullmatch("[0-9a-z][0-9a-z_-]{0,63}", user_id):
        raise ValueError(f"must be a name of a-z, 0-9, - and _, not {user_id!r}")
    return user_id


Cron = Annotated[str, AfterValidator(_check_cron)]
UserId = Annotated[str, AfterValidator(_check_user_id)]
TimeZone = Annotated[str, AfterValidator(_check_timezone)]
Folder = Annotated[Path, AfterValidator(_check_path)]


S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A frozen part of the configuration. A key without a value, its lines commented out, is as if left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty_parts(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        parts = {field.alias or name for name, field in cls.model_fields.items() if field.default_factory is not None}
        return {key: value for key, value in data.items() if value is not None or key not in parts}


class HttpConfig(Section):
    """Where HTTP is served, and how much is taken from one client. Port 0: any free one. No `allowed_hosts`: the
    address itself, and localhost. Rates are requests a second; None: no limit. `limits.exempt_users` are not held to
    what is per user, nor this machine's own addresses to what is per address. `event_loop` is whose loop serves."""

    host: str = "127.0.0.1"
    port: Port = 8080
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: Size = 1024**2
    max_connections: Count = 4096
    rate_per_address: Rate | None = 100
    rate_per_user: Rate | None = 50
    streams_per_user: Count | None = 20
    waits_per_user: Count | None = 50
    drafts_per_user: Count | None = 1000
    uploads_per_user: Count | None = 100
    trusted_proxies: tuple[str, ...] = ()
    max_upload_bytes: Size = 16 * 1024**3
    upload_expires: Length = 86400.0
    allowed_roots: tuple[Folder, ...] = ()
    event_loop: EventLoop = "asyncio"

    @field_validator("event_loop")
    @classmethod
    def _check_loop(cls, event_loop: EventLoop) -> EventLoop:
        if event_loop == "uvloop" and find_spec("uvloop") is None:
            raise ValueError("uvloop is not installed here: pip install 'file-runner[fast]'")
        return event_loop


class GrpcConfig(Section):
    """Where gRPC is served, and whether it says what it serves to whoever asks (server reflection). Port 0: any.

    `certificate` and `key` are files in PEM; with them it is served by TLS, and with `client_ca` only to clients that
    have a certificate of that authority.
    """

    host: str = "127.0.0.1"
    port: Port = 50050
    reflection: bool = True
    certificate: Folder | None = None
    key: Folder | None = None
    client_ca: Folder | None = None

    @model_validator(mode="after")
    def _check_tls(self) -> GrpcConfig:
        if (self.certificate is None) != (self.key is None) or (self.client_ca and self.certificate is None):
            raise ValueError("certificate and key go together, and client_ca with them")
        return self


class LimitsConfig(Section):
    """How much may run, and wait, at once. None: no limit. `exempt_users` are not held to the limits per user."""

    global_: Count = Field(default=5, alias="global")
    per_user: Count | None = 1
    exempt_users: tuple[str, ...] = ("local",)
    per_type: Mapping[str, Count] = Field(default_factory=lambda: {"crawl": 1, "generate": 1, "tag": 1})
    max_pending: Count | None = 1_000_000
    max_pending_per_user: Count | None = 100_000
    max_bytes_per_user: Size | None = None
    on_limit: Literal["queue", "reject"] = "queue"


class QueueConfig(Section):
    """A named line: its share of the starts when several lines wait, and how many of its tasks may run at once."""

    weight: Count
    concurrency: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_a_bare_weight(cls, data: Any) -> Any:
        return {"weight": data} if isinstance(data, int) else data


def _with_standard_queues(queues: Mapping[str, QueueConfig]) -> Mapping[str, QueueConfig]:
    return {name: QueueConfig(weight=weight) for name, weight in STANDARD_QUEUES.items()} | dict(queues)


Queues = Annotated[Mapping[str, QueueConfig], AfterValidator(_with_standard_queues)]
"""Queues by name. The standard ones are always there; what is given changes their weights, or adds more."""


class InboxFolderConfig(Section):
    """A further folder whose files are tasks of one handler and user; `payload` is laid under what a sidecar says.

    `after`: the file becomes the task's (`move`), is removed once that has completed (`delete`), or stays (`keep`), and
    then what was taken is remembered: by path, size, time and inode, or by `content` too. `settle_seconds`: files are
    ready when they did not change for so long; None: as soon as nobody writes them. `done_marker`: a file is whole when
    `<name>.done` is there; `checksum`: and when it has the sum in `<name>.sha256`. `dedupe` and `supersede`: None is as
    the inbox has it.
    """

    path: Folder
    handler: str
    user_id: UserId = "local"
    payload: Mapping[str, Any] = Field(default_factory=dict)
    after: Literal["move", "keep", "delete"] = "move"
    remember: Literal["stat", "content"] = "stat"
    settle_seconds: Length | None = None
    recursive: bool = True
    done_marker: bool = False
    checksum: bool = False
    dedupe: Literal["off", "content"] | None = None
    supersede: bool | None = None


class InboxConfig(Section):
    """How dropped files are noticed and taken. `claim_ahead`: how many may wait as tasks before the rest stay files.
    `dedupe`: content that was dropped before gets the earlier result. `supersede`: a newer file of a name cancels the
    task of the older one."""

    enabled: bool = True
    settle_seconds: Length = 2.0
    rescan_seconds: Length = 5.0
    watch_step_ms: Count = 1
    watch_debounce_ms: Count = 10
    claim_ahead: Count = 1000
    dedupe: Literal["off", "content"] = "off"
    supersede: bool = False
    force_polling: bool | Literal["auto"] = "auto"
    ignore: tuple[str, ...] = ()
    folders: tuple[InboxFolderConfig, ...] = ()


class OutboxConfig(Section):
    """How the results of dropped files are laid out for people. `hard`: a link where possible, else a copy."""

    enabled: bool = True
    link: Literal["hard", "copy"] = "hard"


def _check_url(url: str) -> str:
    from runner.outbound import check_url  # brings a client for HTTP along, which few configurations need

    try:
        check_url(url)
    except UrlNotAllowed as error:
        raise ValueError(str(error)) from error
    return url


class WebhooksConfig(Section):
    """Who is told when a task ends. `on_complete`: a URL by handler, `*` for every one. `from_metadata`: also the URL
    in a task's own metadata. `retries`: how often a message that is not taken is repeated."""

    enabled: bool = False
    on_complete: Mapping[str, Annotated[str, AfterValidator(_check_url)]] = Field(default_factory=dict)
    from_metadata: bool = True
    retries: Whole = 10


class StorageConfig(Section):
    """When the store writes, how much room it leaves on the disk, and whether others may write there, or other
    machines, too."""

    write_behind_seconds: Duration = 0.05
    overload_seconds: Length = 2.0
    checkpoint_bytes: Size = 32 * 1024**2
    checkpoint_seconds: Length = 60.0
    min_free_bytes: Size = 500_000_000
    min_free_inodes: Whole = 10_000
    ballast_bytes: Size = 16 * 1024**2
    allow_shared: bool = False
    allow_network: bool = False


class Overrides(Section):
    """A section that changes what another place says: only by the keys that were given."""

    def given(self) -> dict[str, Any]:
        """The keys that were set and their values, None included: `timeout: null` takes a timeout away."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class RetentionRule(Overrides):
    """How long finished tasks stay, by status; one length is for each. None: for ever. Left out: a wider rule says."""

    completed: Duration | None = None
    failed: Duration | None = None
    cancelled: Duration | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_one_length_for_all(cls, data: Any) -> Any:
        return dict.fromkeys(cls.model_fields, data) if isinstance(data, str | int | float) else data


class RetentionConfig(Section):
    """What cleanup removes: finished tasks by age and number, drafts and idle users by age. None: never."""

    completed: Duration | None = 7 * 86400.0
    failed: Duration | None = 30 * 86400.0
    cancelled: Duration | None = 7 * 86400.0
    per_type: Mapping[str, RetentionRule] = Field(default_factory=dict)
    per_user: Mapping[str, RetentionRule] = Field(default_factory=dict)
    drafts: Duration | None = 86400.0
    idle_users: Duration | None = 30 * 86400.0
    max_bytes: Size | None = None
    max_tasks: Whole | None = None
    interval: Length = 3600.0


class ScheduleConfig(Section):
    """A task to submit again and again. A fire later than `misfire_grace_seconds` was missed: run once, or skip."""

    cron: Cron
    type: str
    payload: Mapping[str, Any] = Field(default_factory=dict)
    timezone: TimeZone = "UTC"
    misfire: Literal["run_once", "skip"] = "run_once"
    misfire_grace_seconds: Duration = 60.0
    queue: str | None = None
    priority: int | None = None
    user_id: str = "local"
    enabled: bool = True


class BackoffConfig(Overrides):
    """The wait before retry n: `base` × `factor`ⁿ⁻¹, at most `max`, moved by up to `jitter` (0.1: ±10 %) at random."""

    base: Duration | None = None
    factor: float | None = Field(default=None, ge=1)
    max: Duration | None = None
    jitter: float | None = Field(default=None, ge=0, le=1)


class HandlerConfig(Overrides):
    """What overrides the options of a handler's decorator. `config` is free, and the handler's `ctx.config`."""

    enabled: bool = True
    accepts: tuple[str, ...] | None = None
    queue: str | None = None
    priority: int | None = None
    timeout: Length | None = None
    retries: Whole | None = None
    backoff: BackoffConfig | None = None
    concurrency: Count | None = None
    per_user: Count | None = None
    isolation: Literal["thread", "loop", "process"] | None = None
    delivery: Literal["at_least_once", "at_most_once"] | None = None
    memory_mb: Count | None = None
    retention: RetentionRule | None = None
    config: Mapping[str, Any] = Field(default_factory=dict)


class DialectConfig(Section):
    """Whether another system's contract is spoken, on which further port (None: only at that of HTTP; 0: any free one),
    and pages of which other origins may ask, such as http://localhost:3000."""

    enabled: bool = True
    port: Port | None = None
    origins: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _accept_a_bare_switch(cls, data: Any) -> Any:
        return {"enabled": data} if isinstance(data, bool) else data


class RunningTasksConfig(Section):
    """codebase-embedder's section of that name, in its units (milliseconds, seconds). `max_scan_time` ends a list that
    takes too long; the others are about Redis, which there is none of here, and change nothing."""

    redis_timeout: Whole = 5000
    scan_batch_size: Count = 100
    max_scan_time: Count = 10_000
    cache_enabled: bool = False
    cache_ttl: Whole = 60
    worker_count: Count = 10


class EmbedderConfig(DialectConfig):
    """codebase-embedder."""

    running_tasks: RunningTasksConfig = Field(default_factory=RunningTasksConfig)


class PixivtailorConfig(DialectConfig):
    """PixivTailor. `folder` is where its relative folders (images/, tags/, cache/) lie; None: data/pixivtailor.
    `webui_must_answer`: what is to be drawn is refused with 503 while the WebUI does not answer."""

    folder: Folder | None = None
    webui_must_answer: bool = True


class MediacraftConfig(DialectConfig):
    """MediaCraft. `on_limit`: a task that could not start at once is refused, or waits for its turn."""

    origins: tuple[str, ...] = ("http://localhost:3000", "http://127.0.0.1:3000")
    on_limit: Literal["queue", "reject"] = "reject"


class ProcessorQueueConfig(Section):
    """Where Video-In-Chinese's processor takes its work from. `url`, or `address` (host:port) with `password` and `db`;
    None of both: no Redis is asked. `push` false: tasks are only shown there. `ttl`: how long a record stays."""

    url: str | None = None
    address: str | None = None
    password: str = ""
    db: Whole = 0
    queue_format: Literal["id", "json"] = "id"
    push: bool = True
    ttl: Length | None = None

    @property
    def address_url(self) -> str:
        """Where Redis is; empty: nowhere."""
        if self.url is not None or self.address is None:
            return self.url or ""
        secret = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{secret}{self.address}/{self.db}"


class VideoInChineseConfig(DialectConfig):
    """Video-In-Chinese: its gRPC is at `grpc`, its gateway's HTTP at `port`. `type` is the handler of its tasks.
    `storage_path`: a folder in which films and results lie as its own service laid them; None: only in `data_dir`."""

    type: str = "video_in_chinese"
    max_upload_bytes: Size = 2048 * 1024**2
    storage_path: Folder | None = None
    redis: ProcessorQueueConfig = Field(default_factory=ProcessorQueueConfig)


class DialectsConfig(Section):
    """Which other systems' contracts are spoken."""

    taskflow: DialectConfig = Field(default_factory=DialectConfig)
    pixivtailor: PixivtailorConfig = Field(default_factory=PixivtailorConfig)
    mediacraft: MediacraftConfig = Field(default_factory=MediacraftConfig)
    embedder: EmbedderConfig = Field(default_factory=EmbedderConfig)
    video_in_chinese: VideoInChineseConfig = Field(default_factory=VideoInChineseConfig)


class AuthConfig(Section):
    """Who somebody is. `local`: whoever reaches the runner is the person at this machine."""

    mode: Literal["local", "cookie", "token"] = "local"


class LogConfig(Section):
    """What the runner says on stderr, and in which shape. `requests`: of which requests it says a line; `failures` are
    those that were not let in, came too often, or met a defect."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"
    requests: Literal["off", "failures", "all"] = "failures"


class TracesConfig(Section):
    """Where traces are sent, by OTLP over HTTP. None: there are none. `ratio`: how many of those that no caller has
    decided about."""

    endpoint: str | None = None
    service: str = "file-runner"
    ratio: float = Field(default=1.0, ge=0, le=1)


class DrainConfig(Section):
    """How a stop goes: what runs may go on for `grace_period` seconds, then it is requeued."""

    grace_period: Duration = 30.0


class Config(Section):
    """The whole configuration. `Config()` is the defaults; `data_dir` and `handlers_dir` are absolute after `load`."""

    data_dir: Folder = Path("data")
    durability: Literal["full", "process"] = "full"
    http: HttpConfig = Field(default_factory=HttpConfig)
    grpc: GrpcConfig = Field(default_factory=GrpcConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    queues: Queues = Field(default_factory=lambda: _with_standard_queues({}))
    inbox: InboxConfig = Field(default_factory=InboxConfig)
    outbox: OutboxConfig = Field(default_factory=OutboxConfig)
    webhooks: WebhooksConfig = Field(default_factory=WebhooksConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)
    retention: RetentionConfig = Field(default_factory=RetentionConfig)
    schedules: Mapping[str, ScheduleConfig] = Field(default_factory=dict)
    handlers_dir: Folder = Path("handlers")
    handlers: Mapping[str, HandlerConfig] = Field(default_factory=dict)
    dialects: DialectsConfig = Field(default_factory=DialectsConfig)
    auth: AuthConfig = Field(default_factory=AuthConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    traces: TracesConfig = Field(default_factory=TracesConfig)
    drain: DrainConfig = Field(default_factory=DrainConfig)

    @classmethod
    def load(
        cls, path: Path | None, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
    ) -> Config:
        """Read the file at `path`, lay the environment and then `overrides` (dotted keys: "http.port") over it.

        None: `config.yaml` in the current folder if there is one, else the defaults. A relative `data_dir` or
        `handlers_dir` means beside the file that says it, or in the current folder where no file does.
        Raises ConfigError with every problem found, each naming the line, variable or option to mend.
        """
        file = path or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
        settings = read_file(file) if file else Settings()
        read_variables(settings, environ, OTHER_VARIABLES)
        read_environment(settings, environ)
        read_options(settings, overrides or {})
        return _with_processor(_check_watched(_located(_checked(settings, file), settings, file)))


def _checked(settings: Settings, file: Path | None) -> Config:
    problems = settings.problems
    try:
        config = Config.model_validate(settings.values)
        problems = [*problems, *(_line(settings, path, reason) for path, reason in _contradictions(config))]
    except ValidationError as error:
        config = Config()
        problems = [*problems, *_described(error, settings)]
    if problems:
        raise ConfigError(f"{file or 'the configuration'} cannot be used:", tuple(problems))
    return config


def _contradictions(config: Config) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong between two settings that are each fine."""
    for section, host in (("http", config.http.host), ("grpc", config.grpc.host)):
        if config.auth.mode == "local" and not _is_loopback(host):
            yield (
                (section, "host"),
                f"{host!r} can be reached from other machines, and auth.mode local trusts whoever reaches it; "
                f"set auth.mode to cookie or token, or {section}.host to 127.0.0.1",
            )
    yield from _nested(config.inbox.folders)
    wanted = [(("schedules", name, "queue"), schedule.queue) for name, schedule in config.schedules.items()]
    wanted += [(("handlers", name, "queue"), handler.queue) for name, handler in config.handlers.items()]
    for path, queue in wanted:
        if queue is not None and queue not in config.queues:
            yield path, f"must be one of queues ({', '.join(config.queues)}), not {queue!r}"


def _nested(folders: tuple[InboxFolderConfig, ...]) -> Iterator[tuple[KeyPath, str]]:
    """A file may lie in one watched folder only."""
    paths = [Path(os.path.normpath(folder.path)) for folder in folders]
    for number, path in enumerate(paths):
        for other in paths[:number]:
            if path.is_relative_to(other) or other.is_relative_to(path):
                yield ("inbox", "folders", str(number), "path"), f"{str(path)!r} and {str(other)!r} lie in each other"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _described(error: ValidationError, settings: Settings) -> list[str]:
    """One line for each setting that pydantic refuses; a union's several complaints are one."""
    reasons: dict[KeyPath, list[str]] = {}
    values: dict[KeyPath, str] = {}
    for fault in error.errors(include_url=False):
        path = tuple(str(key) for key in fault["loc"])
        if fault["type"] == "missing":
            reasons[path] = ["is missing"]
        elif fault["type"] == "extra_forbidden":
            reasons[path] = [_unknown(path, settings)]
        else:
            # Behind the keys stand names of pydantic's own: which member of a union, which validator.
            path = next(path[:n] for n in range(len(path), -1, -1) if settings.holds(path[:n]))
            reasons.setdefault(path, []).append(_WORDS.get(fault["type"]) or _plain(fault["msg"]))
            if fault["type"] != "value_error":
                values[path] = f", not {json.dumps(fault['input'], default=str, ensure_ascii=False):.60}"
    return [_line(settings, path, " or ".join(found) + values.get(path, "")) for path, found in reasons.items()]


_WORDS: Final = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must hold keys of its own, in the lines below it",
    "int_type": "must be a whole number",
    "mapping_type": "must hold keys of its own, in the lines below it",
    "model_type": "must hold keys of its own, in the lines below it",
    "string_type": "must be text; put it in quotes",
    "tuple_type": "must be a list such as [a, b]",
}
"""What we say instead of pydantic, where its words are about Python."""


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _unknown(path: KeyPath, settings: Settings) -> str:
    siblings = [(*path[:-1], key) for key in _fields(_kind(path[:-1]))]
    nearest = _nearest(path, siblings)
    if not nearest:
        return f"unknown; known here: {', '.join(key for *_, key in siblings)}"
    by_variable = settings.origin(path) == variable_name(path)
    return f"unknown; did you mean {variable_name(nearest) if by_variable else '.'.join(nearest)}?"


def _nearest(path: KeyPath, siblings: list[KeyPath]) -> KeyPath | None:
    """The setting that `path` is most likely meant to be: one beside it by its last key, any other by all of them."""
    others = [other for other in _paths(Config, ()) if other[:-1] != path[:-1] and path[: len(other)] != other]
    scores = {other: _likeness(".".join(path), ".".join(other)) for other in others}
    scores |= {sibling: _likeness(path[-1], sibling[-1]) for sibling in siblings}
    nearest = max(scores, key=scores.__getitem__)
    return nearest if scores[nearest] >= 0.6 else None


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def _line(settings: Settings, path: KeyPath, reason: str) -> str:
    origin = settings.origin(path)
    place = () if origin in (variable_name(path), option_name(path)) else (".".join(path),)
    return ": ".join(part for part in (origin, *place, reason) if part)


def _located(config: Config, settings: Settings, file: Path | None) -> Config:
    """The configuration with its folders made absolute."""
    folders: dict[str, Any] = {}
    for name in ("data_dir", "handlers_dir"):
        typed = settings.origin((name,)) in (variable_name((name,)), option_name((name,)))
        home = file.parent if file and not typed else Path()
        folders[name] = (home / getattr(config, name).expanduser()).absolute()
    films = ("dialects", "video_in_chinese")
    placed = _placed(config.dialects.video_in_chinese, films, ("storage_path",), settings, file)
    folders["dialects"] = config.dialects.model_copy(update={"video_in_chinese": placed})
    folders["grpc"] = _placed(config.grpc, ("grpc",), ("certificate", "key", "client_ca"), settings, file)
    typed = settings.origin(("inbox", "folders")) == variable_name(("inbox", "folders"))
    watched = _watched(config, file.parent if file and not typed else Path())
    return config.model_copy(update={**folders, "inbox": config.inbox.model_copy(update={"folders": watched})})


def _placed(section: S, path: KeyPath, names: Sequence[str], settings: Settings, file: Path | None) -> S:
    """A section with its files made absolute: beside the file that says them, else in the current folder."""
    changes = {}
    for name in names:
        given: Path | None = getattr(section, name)
        if given is not None:
            home = file.parent if file and settings.origin((*path, name)).startswith(str(file)) else Path()
            changes[name] = (home / given.expanduser()).absolute()
    return section.model_copy(update=changes)


def _watched(config: Config, home: Path) -> tuple[InboxFolderConfig, ...]:
    paths = (Path(os.path.normpath((home / folder.path.expanduser()).absolute())) for folder in config.inbox.folders)
    return tuple(
        folder.model_copy(update={"path": path}) for folder, path in zip(config.inbox.folders, paths, strict=True)
    )


def _with_processor(config: Config) -> Config:
    """What the dialect says of Redis is the handler's, too, which waits for the processor: it is said in one place."""
    dialect = config.dialects.video_in_chinese
    if not dialect.redis.address_url:
        return config
    roots = (config.data_dir / "uploads", *config.http.allowed_roots, *filter(None, [dialect.storage_path]))
    known = config.handlers.get(dialect.type) or HandlerConfig()
    said = {"redis": dialect.redis, "roots": tuple(str(root.resolve()) for root in roots), **known.config}
    handler = known.model_copy(update={"config": said})
    return config.model_copy(update={"handlers": {**config.handlers, dialect.type: handler}})


def _check_watched(config: Config) -> Config:
    """Nobody's own files become tasks. Raises `ConfigError`."""
    problems = tuple(
        f"inbox.folders.{number}.path: {str(folder.path)!r} and data_dir lie in each other; what the runner keeps "
        "there would be taken"
        for number, folder in enumerate(config.inbox.folders)
        if folder.path.is_relative_to(config.data_dir) or config.data_dir.is_relative_to(folder.path)
    )
    if problems:
        raise ConfigError("the configuration cannot be used:", problems)
    return config


def _kind(path: KeyPath) -> Any:
    """The annotation of the setting at `path`."""
    kind: Any = Config
    for key in path:
        kind = _fields(kind).get(key) or get_args(kind)[0 if get_origin(kind) is tuple else -1]
    return kind


def _fields(kind: Any) -> dict[str, Any]:
    """The keys of a section and their annotations; nothing for what has no keys of its own, or free ones."""
    section = next(
        (part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, Section)), None
    )
    if section is None or get_origin(kind) in (Mapping, tuple):
        return {}
    return {field.alias or name: field.annotation for name, field in section.model_fields.items()}


def _paths(kind: Any, path: KeyPath) -> Iterator[KeyPath]:
    """Every setting that has a name of its own, sections too."""
    for key, annotation in _fields(kind).items():
        yield (*path, key)
        yield from _paths(annotation, (*path, key))
