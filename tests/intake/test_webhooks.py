import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.config import Config, WebhooksConfig
from runner.errors import ConfigError, DiskFull, InvalidSubmission, KeyConflict, LimitReached, RunnerError
from runner.intake.admission import Origin, Submission
from runner.intake.webhooks import Webhooks, message_of, problems_of
from runner.service import Role, Service
from runner.store import TaskQuery
from runner.store.committer import Done
from runner.task import Source, Status, Task
from tests.rig import gate_of
from tests.site import Answer, Asked, Site
from tests.store.samples import NOW, make_task
from tests.store.test_corrupt import ruin

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 20.0
SECRET = b"0123456789abcdef01234567"

HANDLERS = '''
"""What the tests run."""

from typing import Any

from runner import Context, Fail, handler
from tests.rig import gate_of


@handler
def echo(ctx: Context, value: Any = None) -> Any:
    """Give back what was given."""
    ctx.output("echo.txt").write_text(str(value))
    return value


@handler
def fail(ctx: Context) -> None:
    """Never work."""
    raise Fail("it is broken", code="broken")


@handler
def wait(ctx: Context, gate: str) -> None:
    """Wait until told to stop."""
    gate_of(gate).enter()
    while not gate_of(gate).is_open(0.005):
        ctx.check()
'''


class Place:
    """A runner and a receiver of webhooks, opened and closed again and again."""

    def __init__(self, root: Path, site: Site) -> None:
        self.site = site
        self._root = root
        handlers = root / "handlers"
        handlers.mkdir()
        handlers.joinpath("tested.py").write_text(HANDLERS)
        for name in ("http_call.py", "_naming.py", "_settings.py"):
            handlers.joinpath(name).write_text((ROOT / "handlers" / name).read_text())
        self.service: Service | None = None

    def open(self, networks: tuple[str, ...] = ("127.0.0.1/32",), **webhooks: Any) -> Service:
        """A runner with webhooks, at the same data as the last one."""
        call = {
            "backoff": {"base": 0.01, "factor": 1, "jitter": 0},
            "config": {
                "secrets": [f"whsec_{base64.b64encode(SECRET).decode()}"],
                "outbound": {"networks": networks},
            },
        }
        config = Config.model_validate(
            {
                "data_dir": self._root / "data",
                "handlers_dir": self._root / "handlers",
                "storage": {"min_free_bytes": 0, "min_free_inodes": 0, "ballast_bytes": 0},
                "webhooks": {"enabled": True, **webhooks},
                "handlers": {"http_call": call},
            }
        )
        self.service = Service(config, Role.SERVE)
        self.service.start()
        return self.service

    def close(self) -> None:
        """An orderly end."""
        if self.service:
            self.service.close()
            self.service = None


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place whose receiver takes everything at /hook."""
    with Site().serving() as site:
        site.on("/hook", Answer(204))
        place = Place(tmp_path, site)
        yield place
        place.close()


def run(service: Service, type: str, metadata: dict[str, str] | None = None, **payload: Any) -> Task:
    """A task, once it has ended."""
    submission = Submission(type=type, payload=payload, metadata=metadata or {})
    task = service.submit(submission, Origin(Source.HTTP))
    return service.wait(task.id, LIMIT_SECONDS)


def messages(service: Service) -> list[Task]:
    """The tasks that deliver."""
    service.store.settle()
    return list(service.all_tasks(TaskQuery(type="http_call", size=100)))


def said(asked: Asked) -> dict[str, Any]:
    """What a message says, if its signature is right."""
    signed = f"{asked.headers['webhook-id']}.{asked.headers['webhook-timestamp']}.".encode() + asked.body
    mac = base64.b64encode(hmac.digest(SECRET, signed, hashlib.sha256)).decode()
    assert asked.headers["webhook-signature"] == f"v1,{mac}"
    message: dict[str, Any] = json.loads(asked.body)
    return message


def test_whoever_submits_can_be_told(place: Place) -> None:
    """The URL in the metadata gets a signed message about the task's end."""
    task = run(place.open(), "echo", {"webhook": place.site.url("/hook"), "order": "17"}, value={"n": 1})

    (asked,) = place.site.wait_for(1)
    message = said(asked)
    assert (asked.method, asked.headers["webhook-id"]) == ("POST", f"{task.id}-{task.version}")
    assert message["type"] == "task.completed"
    assert message["data"]["id"] == task.id
    assert message["data"]["metadata"]["order"] == "17"
    assert message["data"]["result"] == {"n": 1}
    assert message["data"]["output_files"] == ["echo.txt"]


def test_failed_and_cancelled_tasks_are_told_of_too(place: Place) -> None:
    """Whatever way a task ends, it has ended."""
    service = place.open(on_complete={"fail": place.site.url("/hook"), "wait": place.site.url("/hook")})
    run(service, "fail")
    task = service.submit(Submission(type="wait", payload={"gate": "webhook"}), Origin(Source.HTTP))
    gate_of("webhook").await_entered()
    service.cancel(task.id)

    heard = {message["type"]: message for message in map(said, place.site.wait_for(2))}
    assert heard["task.failed"]["data"]["error"]["code"] == "broken"
    assert heard["task.cancelled"]["data"]["id"] == task.id


def test_a_message_is_not_told_of(place: Place) -> None:
    """Everything has a webhook, but for the webhooks."""
    service = place.open(on_complete={"*": place.site.url("/hook")})
    run(service, "echo")
    place.site.wait_for(1)
    (message,) = messages(service)
    assert service.wait(message.id, LIMIT_SECONDS).status is Status.COMPLETED
    # Messages are handed in in order: one about the first message would come before the one about this task.
    run(service, "echo")
    place.site.wait_for(2)
    assert len(messages(service)) == 2


def test_everybody_is_told_and_nobody_twice(place: Place) -> None:
    """The same address from two places is one; long ones that begin alike are two."""
    long = "/hook" + "k" * 300
    one, other = place.site.url(long), place.site.url(f"{long}/other")
    for path in (long, f"{long}/other"):
        place.site.on(path, Answer(200))
    run(place.open(on_complete={"*": one, "echo": other}), "echo", {"webhook": one})
    assert sorted(asked.path for asked in place.site.wait_for(2)) == [long, f"{long}/other"]


def test_a_message_is_repeated_until_it_is_taken(place: Place) -> None:
    """The receiver gets the same id again, and answers 2xx at last."""
    answers = [Answer(500), Answer(404), Answer(302, headers={"Location": "/elsewhere"}), Answer(200)]
    place.site.on("/hook", lambda _: answers.pop(0))
    run(place.open(), "echo", {"webhook": place.site.url("/hook")})

    asked = place.site.wait_for(4)
    assert len({one.headers["webhook-id"] for one in asked}) == 1
    assert {one.path for one in asked} == {"/hook"}


def test_what_a_crash_kept_from_being_told_is_told_later(place: Place) -> None:
    """The task ended, and then the runner, before it could hand the message in."""
    service = place.open()
    service._webhooks.hear = lambda transitions: None  # type: ignore[method-assign]
    run(service, "echo", {"webhook": place.site.url("/hook")})
    assert messages(service) == []
    place.close()

    place.open()
    assert said(place.site.wait_for(1)[0])["type"] == "task.completed"


def test_what_was_told_is_not_told_again(place: Place) -> None:
    """The next owner looks at what ended lately, and finds that all of it is known."""
    service = place.open()
    run(service, "echo", {"webhook": place.site.url("/hook")})
    place.site.wait_for(1)
    place.close()

    service = place.open()
    run(service, "echo", {"webhook": place.site.url("/hook")})
    place.site.wait_for(2)
    assert len(messages(service)) == 2


def test_what_ended_while_there_were_no_webhooks_is_not_told_of(place: Place) -> None:
    """Switching them on does not send the past."""
    run(place.open(enabled=False), "echo", {"webhook": place.site.url("/hook")})
    place.close()
    service = place.open()
    run(service, "echo", {"webhook": place.site.url("/hook")})
    place.site.wait_for(1)
    assert len(messages(service)) == 1


@pytest.mark.parametrize("kind", ["torn", "list", "deep", "pipe", "directory", "link"])
def test_a_mark_that_cannot_be_read_costs_a_longer_look(place: Place, tmp_path: Path, kind: str) -> None:
    """Rather tell twice, which the keys prevent, than not at all; whatever is in its place."""
    service = place.open()
    service._webhooks.hear = lambda transitions: None  # type: ignore[method-assign]
    run(service, "echo", {"webhook": place.site.url("/hook")})
    place.close()
    ruin(tmp_path / "data" / "webhooks.json", kind)

    place.open()
    place.site.wait_for(1)


@pytest.mark.parametrize("is_raised", [True, False], ids=["at once", "by the disk"])
@pytest.mark.parametrize("obstacle", [DiskFull("full"), LimitReached("too many wait")], ids=lambda one: one.code)
def test_what_is_not_taken_for_now_is_handed_in_later(
    place: Place, monkeypatch: pytest.MonkeyPatch, obstacle: RunnerError, is_raised: bool
) -> None:
    """A full disk and a full queue pass; the message waits for that."""
    monkeypatch.setattr("runner.intake.webhooks.RETRY_SECONDS", 0)
    taken: list[Submission] = []
    obstacles = [obstacle]

    def submit(submission: Submission, _: Origin, done: Done) -> None:
        error = obstacles.pop() if obstacles else None
        if error and is_raised:
            raise error
        taken.extend([] if error else [submission])
        done((), error)

    store = place.open().store
    webhooks = Webhooks(WebhooksConfig(enabled=True), store, submit, lambda *_: None)
    task = make_task(status="failed", completed_at=NOW, metadata={"webhook": "http://one.example/"})
    assert [webhooks.run_once([task]), webhooks.run_once([]), webhooks.run_once([])] == [0, 1, 0]
    assert [submission.payload["url"] for submission in taken] == ["http://one.example/"]


def test_a_message_that_is_there_already_is_there(place: Place) -> None:
    """Also if it was made before a change of the configuration."""

    def submit(_: Submission, __: Origin, done: Done) -> None:
        done((), KeyConflict("webhook:…", "t2"))

    webhooks = Webhooks(WebhooksConfig(enabled=True), place.open().store, submit, lambda *_: None)
    task = make_task(status="failed", completed_at=NOW, metadata={"webhook": "http://one.example/"})
    assert [webhooks.run_once([task]), webhooks.run_once([])] == [1, 0]


@pytest.mark.parametrize(
    "url", ["ftp://example.com/", "http://a:b@example.com/", "nonsense", "http://127.0.0.1/", "http://[::1]:8080/"]
)
def test_an_address_that_is_none_has_a_problem(url: str) -> None:
    """Unless such addresses mean nothing here."""
    (problem,) = problems_of({"webhook": url}, WebhooksConfig(enabled=True))
    assert problem.pointer == "/metadata/webhook"
    for config in (WebhooksConfig(), WebhooksConfig(enabled=True, from_metadata=False)):
        assert list(problems_of({"webhook": url}, config)) == []


def test_an_address_that_is_none_is_refused(place: Place) -> None:
    """With the submission, so that whoever made it hears of it."""
    service = place.open()
    with pytest.raises(InvalidSubmission, match="/metadata/webhook"):
        service.submit(Submission(type="echo", metadata={"webhook": "nonsense"}), Origin(Source.HTTP))


def test_an_address_inside_the_network_is_not_called(place: Place) -> None:
    """The message fails, with the reason; the task itself has long completed."""
    service = place.open(networks=())
    url = place.site.url("/hook", host="localhost")
    with service.events.subscribe() as watcher:
        assert run(service, "echo", {"webhook": url}).status is Status.COMPLETED
        while event := watcher.get(LIMIT_SECONDS):
            if event.data.get("type") == "http_call" and event.data["status"] == "failed":
                break
    assert event is not None
    assert event.data["error"]["code"] == "url_not_allowed"


def test_without_a_sender_the_task_says_why_nobody_was_told(place: Place, tmp_path: Path) -> None:
    """The line is in its log."""
    tmp_path.joinpath("handlers", "http_call.py").unlink()
    service = place.open()
    task = run(service, "echo", {"webhook": place.site.url("/hook")})
    with service.events.subscribe({task.id}) as watcher:
        lines = [event.data["message"] for event in service.events.history(task.id) if event.kind == "log"]
        if not lines:
            event = watcher.get(LIMIT_SECONDS)
            assert event is not None
            lines = [event.data["message"]]
    assert lines[0].startswith("the webhook was refused: no handler 'http_call'")


def test_a_large_result_is_left_out() -> None:
    """It can be fetched; a receiver's limit is not ours to guess."""
    task = make_task(result="x" * 100_000, completed_at=NOW)
    assert message_of(task)["data"]["result"] is None
    assert message_of(task)["data"]["result_left_out"] is True


def test_a_configured_address_that_is_none_is_named() -> None:
    """At the start, not when the first task ends."""
    with pytest.raises((ConfigError, ValueError), match="http:// or https://"):
        WebhooksConfig.model_validate({"on_complete": {"*": "example.com/hook"}})
