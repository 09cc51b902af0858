from pathlib import Path

from tests.handlers.attempts import Attempt, parts_of


def test_of_very_many_items_the_first_are_shown(tmp_path: Path) -> None:
    """They are part of a record that is written again and again; at the end what is shown is as it is."""
    attempt = Attempt(tmp_path, "crawl", ())
    items = parts_of("crawl")["Items"](attempt.context, [f"{number}.png" for number in range(2000)], "download")

    for place in (0, 1, 999, 1000, 1999):
        items.tell(place, "completed")
    items.flush()

    done = [name for name, file in attempt.files.items() if file.status == "completed"]
    assert (len(attempt.files), done) == (1000, ["0.png", "1.png", "999.png"])
