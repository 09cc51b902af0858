"""`runner token`, with and without somebody who serves."""

from __future__ import annotations

from pathlib import Path

import httpx2

from tests.e2e.conftest import Command, Serving


def test_a_token_is_made_listed_and_removed(cli: Command) -> None:
    """Without a runner, too: the next one knows it."""
    made = cli("token", "add", "ci", "--user", "ann", "--scope", "admin")
    assert made.out.startswith("fr_")
    assert cli("token", "ls", "--json").json[0]["user_id"] == "ann"
    assert "ci" in cli("token", "ls").out
    assert cli("token", "add", "ci").code == 4
    assert cli("token", "rm", "ci").code == 0
    assert cli("token", "rm", "ci").code == 3
    assert cli("token", "ls", "--json").json == []


def test_a_token_lets_a_program_in(cli: Command, project: Path) -> None:
    """The moment it is made."""
    (project / "config.yaml").write_text((project / "config.yaml").read_text() + "auth: {mode: token}\n")
    server = Serving(project)
    address = server.await_line(r"serving (http://127\.0\.0\.1:\d+) ")[1]
    assert httpx2.get(f"{address}/api/v1/tasks").status_code == 401
    token = cli("token", "add", "ann").out.strip()
    me = httpx2.get(f"{address}/api/v1/users/me", headers={"Authorization": f"Bearer {token}"}).json()
    assert (me["user_id"], me["scope"]) == ("ann", "user")
    assert server.stop() == 0
