"""The inbox as a person sees it: what is dropped, where it goes, what is said about it."""

from tests.intake.conftest import Site


def test_a_dropped_file_becomes_a_task_and_leaves_the_inbox(site: Site) -> None:
    """A file in a handler's folder is a task of that handler, its content the task's input."""
    site.drop("keep/a.txt", "hello")
    site.scan()
    task = site.only_task()
    assert (task.type, task.original_filename, task.source) == ("keep", "a.txt", "inbox")
    assert (site.data / task.input_files[0]).read_text() == "hello"
    assert site.listing("inbox") == []
