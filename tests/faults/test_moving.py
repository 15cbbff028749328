"""Moving house: from a SQLite file to Postgres with one command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frontdesk.settings import sqlite_path
from tests.support.desk import Desk
from tests.support.server import ROOT
from tools import move

EXPORTS = ("messages", "subscribers", "hits")


@pytest.fixture
def target_url(
    database_url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> str:
    """An empty database of the other kind, without a schema."""
    if sqlite_path(database_url) is None:
        return f"sqlite:///{tmp_path}/target.db"
    return request.getfixturevalue("postgres").blank_url()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/move.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def exports(desk: Desk) -> dict[str, Any]:
    return {n: desk.owner("GET", f"/export/{n}.json").json for n in EXPORTS}


def test_everything_moves_and_mailed_links_work_on(
    make_desk: Callable[..., Desk], database_url: str, target_url: str
) -> None:
    old = make_desk(secret_keys=())  # the database keeps one, and it moves too
    for n in range(3):
        old.post("/contact", {"email": "ada@example.com", "message": f"Grüße {n} 🖋"})
        old.post("/hits", {"page": f"/{n}"})
    old.post("/newsletter", {"email": "bob@example.com"})
    link = old.drain()[-1]["Headers"]["List-Unsubscribe"].strip("<>")
    old.post("/contact", {"email": "ada@example.com", "message": "not yet mailed"})
    before = exports(old)
    assert all(before.values())

    moved = run(database_url, target_url)
    assert moved.returncode == 0, moved.stderr
    assert f"{'message':12}{4:>10}\n" in moved.stdout
    assert "counts are the same" in moved.stdout

    new = make_desk(secret_keys=(), database_url=target_url)
    assert exports(new) == before
    assert [mail["TextPart"].count("not yet mailed") for mail in new.drain()] == [1]
    new.post("/contact", {"email": "ada@example.com", "message": "in the new house"})
    assert len(new.drain()) == 2
    assert new.post(link.removeprefix("https://desk.example"), {}).status_code == 200
    assert [row["status"] for row in new.subscribers()] == ["left"]


def test_nothing_moves_into_a_house_that_is_lived_in(
    desk: Desk, database_url: str, target_url: str
) -> None:
    desk.post("/contact", {"email": "ada@example.com", "message": "Hello"})
    assert run(database_url, target_url).returncode == 0
    again = run(database_url, target_url)
    assert again.returncode == 1
    assert again.stderr == "Nothing was moved: the target is not empty\n"


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b"], ["a://", "b://", "c"]])
def test_a_wrong_call_shows_how_to_call(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert move.main(arguments) == 2
    assert (
        "usage: python tools/move.py SOURCE_URL TARGET_URL" in capsys.readouterr().err
    )
