"""What a path in the inbox stands for, from its text alone."""

import pytest

from runner.intake.folders import Folder, Folders, Place, Standing
from runner.intake.names import Ignored

NAS = Folder("/mnt/nas/scans", "ocr", user_id="anna")
FOLDERS = Folders("/data/inbox", Ignored(), [NAS, Folder("/mnt/nas/scans/flat", "ocr", recursive=False)])


def _place(path: str) -> Place:
    return FOLDERS.locate(path)


@pytest.mark.parametrize(
    ("path", "handler", "user_id", "name"),
    [
        ("/data/inbox/keep/a.txt", "keep", "local", "a.txt"),
        ("/data/inbox/keep/tree/sub/a.txt", "keep", "local", "tree/sub/a.txt"),
        ("/data/inbox/@anna/keep/a.txt", "keep", "anna", "a.txt"),
        ("/mnt/nas/scans/2026/a.pdf", "ocr", "anna", "2026/a.pdf"),
        ("/mnt/nas/scans/flat/a.pdf", "ocr", "local", "a.pdf"),
    ],
)
def test_a_file_belongs_to_the_handler_and_user_of_its_folder(path: str, handler: str, user_id: str, name: str) -> None:
    """The name is the path below the folder."""
    place = _place(path)
    assert place.standing is Standing.FILE
    assert place.folder is not None
    assert (place.folder.handler, place.folder.user_id, place.name) == (handler, user_id, name)


@pytest.mark.parametrize(
    ("path", "standing"),
    [
        ("/data/inbox", Standing.FOLDER),
        ("/data/inbox/@anna", Standing.FOLDER),
        ("/mnt/nas/scans", Standing.FOLDER),
        ("/data/inbox/keep/error/a.txt", Standing.ERROR),
        ("/data/inbox/keep/error", Standing.ERROR),
        ("/data/inbox/error/a.json", Standing.ERROR),
        ("/data/inbox/keep/tree/error/a.txt", Standing.FILE),
        ("/data/inbox/keep/.git/config", Standing.IGNORED),
        ("/data/inbox/.stfolder/a", Standing.IGNORED),
        ("/data/inbox/@../keep/a.txt", Standing.IGNORED),
        ("/data/inbox/@Anna/keep/a.txt", Standing.IGNORED),
        ("/mnt/nas/scans/flat/sub/a.pdf", Standing.IGNORED),
        ("/data/inbox/a.txt", Standing.STRAY),
        ("/data/inbox/a.json", Standing.FILE),
        ("/data/outbox/keep/a.txt", Standing.OUTSIDE),
        ("/data/inboxes/keep/a.txt", Standing.OUTSIDE),
        ("/mnt/nas/scans2/a.pdf", Standing.OUTSIDE),
    ],
)
def test_every_path_has_one_standing(path: str, standing: Standing) -> None:
    """Only the error folder at a handler's top is the runner's; a folder of that name in a tree is the person's."""
    assert _place(path).standing is standing


def test_a_document_at_the_top_has_no_handler_yet() -> None:
    """The document itself says which."""
    place = _place("/data/inbox/@anna/order.json")
    assert place.folder is not None
    assert place.folder.documents
    assert place.folder.user_id == "anna"


def test_many_paths_are_sorted_as_each_would_be_located() -> None:
    """Thousands of hints at once cost one look at each directory, and mean the same."""
    paths = [
        "/data/inbox/keep/a.txt", "/data/inbox/keep/b.part", "/data/inbox/keep/error", "/data/inbox/keep/error/a.txt",
        "/data/inbox/keep/tree/a.txt", "/data/inbox/order.json", "/data/inbox/stray.txt", "/mnt/nas/scans/a.pdf",
        "/data/inbox/.stfolder/a", "/elsewhere/a.txt",
    ]  # fmt: skip
    wanted = {
        (place.folder.path, place.name)
        for place in map(_place, paths)
        if place.folder is not None and place.standing in (Standing.FILE, Standing.STRAY)
    }
    assert {(folder.path, name) for folder, names in FOLDERS.sort(paths) for name in names} == wanted
    assert ("/data/inbox/keep", "a.txt") in wanted
