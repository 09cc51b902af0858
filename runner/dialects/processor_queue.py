"""What Video-In-Chinese keeps in Redis, for its processor to read and to write.

    task:{id}      hash   task_id status original_file_path result_file_path error_message created_at updated_at
    task:pending   list   ids that wait: LPUSH here, RPOP there; or JSON objects: RPUSH here, LPOP there

All values are text, empty where there is none. It needs the extra `redis`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from runner.config import ProcessorQueueConfig
from runner.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    import redis

PENDING: Final = "task:pending"
CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 3.0
RETRIES: Final = 3
MAX_CONNECTIONS: Final = 10
ENDED: Final = frozenset({"COMPLETED", "FAILED"})


class QueueDown(Unavailable):
    """Redis does not answer, or not as it should."""

    code = "redis_down"


@dataclass(frozen=True, slots=True)
class Order:
    """A film to be worked on. `path` is where its processor finds it."""

    task_id: str
    path: str
    created_at: datetime


class ProcessorQueue:
    """The queue and the records. From any thread; every method may raise `QueueDown`."""

    def __init__(self, config: ProcessorQueueConfig) -> None:
        import redis
        from redis.backoff import ExponentialBackoff
        from redis.retry import Retry

        self.pushes = config.push
        self._config = config
        self._errors = (redis.RedisError, OSError)
        self._client: redis.Redis = redis.Redis.from_url(
            config.address_url,
            decode_responses=True,
            max_connections=MAX_CONNECTIONS,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.01), RETRIES),
        )

    def close(self) -> None:
        """Lets go of its connections."""
        self._client.close()

    def record(self, order: Order) -> bool:
        """The record of a new task; False if it is there already."""
        key, at = _key(order.task_id), instant(order.created_at)
        with self._told():
            if not self._client.hsetnx(key, "task_id", order.task_id):
                return False
            values: dict[Any, Any] = {"status": "PENDING", "original_file_path": order.path, "created_at": at}
            self._client.hset(key, mapping=values | {"result_file_path": "", "error_message": "", "updated_at": at})
            if self._config.ttl is not None:
                self._client.expire(key, int(self._config.ttl))
        return True

    def push(self, order: Order) -> None:
        """The task waits for a processor."""
        with self._told():
            if self._config.queue_format == "id":
                self._client.lpush(PENDING, order.task_id)
            else:
                self._client.rpush(PENDING, _entry(order))

    def begin(self, order: Order) -> None:
        """Both, unless that was done before."""
        if self.record(order) and self.pushes:
            self.push(order)

    def find(self, task_id: str) -> Mapping[str, str]:
        """The record of a task, empty where there is none."""
        with self._told():
            found: Any = self._client.hgetall(_key(task_id))
        return dict(found)

    def write(self, task_id: str, at: datetime, **values: str) -> None:
        """Changes a record that is there."""
        with self._told():
            if self._client.exists(_key(task_id)):
                changed: dict[Any, Any] = {**values, "updated_at": instant(at)}
                self._client.hset(_key(task_id), mapping=changed)

    def withdraw(self, order: Order) -> None:
        """Nobody is to begin with it any more."""
        with self._told():
            self._client.lrem(PENDING, 0, order.task_id if self._config.queue_format == "id" else _entry(order))

    def forget(self, task_id: str) -> None:
        """There is no such task any more, and nothing to begin with."""
        with self._told():
            # In this order: if Redis goes away in between, what is left is found by its record.
            for entry in self._entries(task_id) if self._client.exists(_key(task_id)) else ():
                self._client.lrem(PENDING, 0, entry)
            self._client.delete(_key(task_id))

    def unfinished(self) -> Iterator[str]:
        """The ids of tasks that have not ended, as their records say."""
        with self._told():
            for key in self._client.scan_iter(match=_key("*"), count=1000, _type="hash"):
                if self._client.hget(key, "status") not in ENDED:
                    yield str(key).removeprefix(_key(""))

    def _entries(self, task_id: str) -> Iterator[str]:
        """How the task stands in the queue; of JSON nobody knows the path any more."""
        if self._config.queue_format == "id":
            yield task_id
            return
        named: Any = self._client.lrange(PENDING, 0, -1)
        yield from (entry for entry in named if f'"{task_id}"' in entry)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise QueueDown(f"Redis: {error}") from error


def connect(config: ProcessorQueueConfig) -> ProcessorQueue:
    """The queue, not asked anything yet. Raises `ConfigError` where the extra is missing."""
    if find_spec("redis") is None:
        raise ConfigError("dialects.video_in_chinese.redis needs the extra `redis`")
    return ProcessorQueue(config)


def instant(at: datetime) -> str:
    """RFC 3339, to the second, as it writes instants."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _key(task_id: str) -> str:
    return f"task:{task_id}"


def _entry(order: Order) -> str:
    return json.dumps({"task_id": order.task_id, "original_file_path": order.path}, separators=(",", ":"))
