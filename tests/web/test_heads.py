"""The head of a request, in which a field is found at once."""

from __future__ import annotations

from runner.web.heads import Head

FIELDS = [(b"host", b"a"), (b"x-one", b"1"), (b"x-one", b"2"), (b"caf\xe9", b"\xe9")]


def test_of_a_field_that_is_there_twice_the_first_one_counts() -> None:
    """As for whoever looks at one after the other; both are there for who asks for all."""
    head = Head({"headers": FIELDS})
    assert (head["x-one"], head.get("X-One"), head.getlist("x-one")) == ("1", "1", ["1", "2"])


def test_names_are_found_in_any_case_and_values_are_latin() -> None:
    """RFC 9110, 5.1; what is not there is not there."""
    head = Head({"headers": FIELDS})
    assert head["HOST"] == "a"
    assert head["Café"] == "é"
    assert "host" in head
    assert "range" not in head
    assert (head.get("range"), head.get("range", "")) == (None, "")
