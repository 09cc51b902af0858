"""Content that comes again."""

from collections.abc import Callable

import pytest

from runner.task import Status
from tests.intake.conftest import Site

MakeSite = Callable[..., Site]


@pytest.fixture
def thrifty(make_site: MakeSite) -> Site:
    """A site that does not run the same content twice."""
    return make_site(dedupe="content")


def test_known_content_gets_the_earlier_result_and_is_told_so(thrifty: Site) -> None:
    """Under its own name, whatever that is; the file leaves the inbox, and `why` names the task."""
    thrifty.drop("keep/first.txt", "same")
    thrifty.scan()
    task = thrifty.run(thrifty.only_task(), out="result")
    thrifty.write_outbox()
    path = thrifty.drop("keep/second.txt", "same")
    assert thrifty.scan().duplicates == 1
    assert thrifty.only_task() == task
    assert thrifty.listing("outbox/keep/second.txt") == ["duplicate.txt", "out", "task.json"]
    assert f"of task {task.id}" in (thrifty.data / "outbox/keep/second.txt/duplicate.txt").read_text()
    assert not path.exists()
    assert thrifty.inbox.explain(str(path)).facts == {"task_id": task.id}


def test_by_default_the_same_content_is_run_again(site: Site) -> None:
    """Who drops a file wants it run."""
    site.drop("keep/first.txt", "same")
    site.scan()
    site.run(site.only_task())
    site.drop("keep/second.txt", "same")
    site.scan()
    assert len(site.tasks()) == 2


def test_other_parameters_or_another_version_of_the_handler_make_it_another_task(thrifty: Site) -> None:
    """What comes out would be another, too."""

    def drop_and_run(width: int) -> int:
        thrifty.drop("resize/a.png.json", f'{{"width": {width}}}')
        thrifty.drop("resize/a.png", "same")
        thrifty.scan()
        for task in thrifty.tasks():
            if task.status is Status.PENDING:
                thrifty.run(task)
        return len(thrifty.tasks())

    assert [drop_and_run(1), drop_and_run(2), drop_and_run(2)] == [1, 2, 2]
    assert thrifty.listing("inbox/resize") == []
    with (thrifty.config.handlers_dir / "all.py").open("a") as file:
        file.write("# changed\n")
    thrifty.handlers.load()
    assert drop_and_run(2) == 3


def test_while_the_earlier_task_runs_the_file_waits(thrifty: Site) -> None:
    """Two that come at once, too: one is a task, the other waits for its result."""
    for name in ("a", "b"):
        thrifty.drop(f"keep/{name}.txt", "same")
    thrifty.scan()
    thrifty.inbox.run_once()
    task = thrifty.only_task()
    (left,) = (thrifty.data / "inbox" / "keep").iterdir()
    said = thrifty.inbox.explain(str(left))
    assert (said.kind, task.id in said.text) == ("duplicate", True)
    thrifty.run(task)
    thrifty.inbox.lanes.put_first(thrifty.inbox.folders.of_handler("keep"), [left.name])
    thrifty.inbox.run_once()
    assert (thrifty.only_task().id, left.exists()) == (task.id, False)


def test_after_a_failure_and_from_the_error_folder_it_runs(thrifty: Site) -> None:
    """Who moves a file back up wants it tried again, though other tasks have done the same since."""
    thrifty.drop("keep/a.txt", "same")
    thrifty.scan()
    thrifty.fail(thrifty.only_task())
    thrifty.write_outbox()
    thrifty.drop("keep/b.txt", "same")
    thrifty.scan()
    assert len(thrifty.tasks()) == 2
    error = thrifty.data / "inbox" / "keep" / "error"
    (error / "a.txt").rename(error.parent / "a.txt")
    thrifty.scan()
    assert len(thrifty.tasks()) == 3
    assert thrifty.listing("inbox/keep") == []
