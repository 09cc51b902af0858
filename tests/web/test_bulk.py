"""One change to many tasks, and changes meant for one version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import Served
from tests.web.test_tasks import TASKS, finished, submit

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def change(served: Served, verb: str, **body: Any) -> dict[str, Any]:
    """The report of a bulk change."""
    answer = served.tcp.post(f"{TASKS}:{verb}", json=body)
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()
    return report


def test_all_that_match_are_cancelled_retried_and_deleted(served: Served) -> None:
    """Filters are those of lists; the report counts."""
    for number in range(3):
        submit(served, delay="1h", client_id="me", payload={"text": str(number)})
    other = submit(served, delay="1h")
    assert change(served, "cancel", client="me") == {"matched": 3, "changed": 3, "failed": [], "more": False}
    assert change(served, "retry", client="me", status="cancelled")["changed"] == 3
    for task in served.tcp.get(TASKS, params={"client": "me"}).json():
        finished(served, task["id"])
    assert change(served, "delete", client="me", status=["completed"])["changed"] == 3
    assert [task["id"] for task in served.tcp.get(TASKS).json()] == [other["id"]]


def test_tasks_are_named_by_their_ids_too(served: Served) -> None:
    """What cannot be changed is listed with the reason, and does not keep the others from it."""
    done, waiting = finished(served, submit(served)["id"]), submit(served, delay="1h")
    report = change(served, "cancel", ids=[done["id"], waiting["id"], UNKNOWN])
    assert (report["matched"], report["changed"]) == (2, 1)
    assert {failure["id"]: failure["code"] for failure in report["failed"]} == {
        UNKNOWN: "not_found",
        done["id"]: "illegal_transition",
    }


def test_a_limit_says_that_there_are_more(served: Served) -> None:
    """The newest ones first."""
    tasks = [submit(served, delay="1h", payload={"text": str(number)}) for number in range(3)]
    report = change(served, "cancel", type="echo", limit=2)
    assert (report["matched"], report["changed"], report["more"]) == (2, 2, True)
    assert served.tcp.get(f"{TASKS}/{tasks[0]['id']}").json()["status"] == "pending"


@pytest.mark.parametrize(
    "body",
    [{}, [], {"ids": [], "type": "echo"}, {"limit": 5}, {"size": 5, "type": "echo"}, {"limit": 0, "type": "echo"},
     {"type": None}, {"status": []}, {"text": ""}, {"user": None}, {"type": "echo", "text": None}, {"ids": None},
     {"type": "echo", "nothing": 1}, {"status": ["scheduled"]}, {"status": ["gone"]}, {"status": [[1]]}],
)  # fmt: skip
def test_all_of_them_is_never_a_default(idle: Served, body: Any) -> None:
    """Nor is anything that is not understood."""
    assert idle.tcp.post(f"{TASKS}:cancel", json=body).status_code == 422


def test_a_change_can_be_meant_for_one_version(served: Served, tmp_path: Path) -> None:
    """`If-Match` with the `ETag` that the reader has seen: else 412, and nothing changes."""
    task = served.tcp.get(f"{TASKS}/{submit(served, delay='1h')['id']}")
    seen, one = task.headers["etag"], f"{TASKS}/{task.json()['id']}"
    assert seen == f'"{task.json()["version"]}"'
    for tag in ('"999"', f"W/{seen}", "nonsense", ""):
        refused = served.tcp.post(f"{one}/cancel", headers={"If-Match": tag})
        assert (refused.status_code, refused.json()["code"]) == (412, "version_mismatch")
    cancelled = served.tcp.post(f"{one}/cancel", headers={"If-Match": f'"999", {seen}'})
    assert cancelled.json()["status"] == "cancelled"
    assert served.tcp.post(f"{one}/retry", headers={"If-Match": seen}).status_code == 412
    assert served.tcp.delete(one, headers={"If-Match": seen}).status_code == 412
    assert served.tcp.delete(one, headers={"If-Match": cancelled.headers["etag"]}).status_code == 200


def test_a_draft_is_changed_only_as_it_was_seen(served: Served) -> None:
    """Starting it, and giving it a file."""
    draft = submit(served, "measure", draft=True)
    one, stale = f"{TASKS}/{draft['id']}", {"If-Match": '"1"'}
    assert served.tcp.put(f"{one}/inputs/a.txt", content=b"1", headers=stale).status_code == 200
    assert served.tcp.put(f"{one}/inputs/b.txt", content=b"1", headers=stale).status_code == 412
    assert served.tcp.post(f"{one}/start", headers=stale).status_code == 412
    assert served.tcp.post(f"{one}/start", headers={"If-Match": "*"}).status_code == 200
