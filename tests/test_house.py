"""The shape of the house: who may import whom, and how large a room may be."""

from __future__ import annotations

import ast
import subprocess
from dataclasses import replace
from pathlib import Path

import falcon.testing
import pytest

from api import create_app, routes
from frontdesk.resources import Resource
from tests.support.desk import Desk
from tests.support.server import ROOT

STORY = {path.stem: path for path in ROOT.glob("*.py") if path.stem.isidentifier()}
PARTS = {f"frontdesk.{p.stem}": p for p in (ROOT / "frontdesk").glob("*.py")}
ROOMS = [*STORY.values(), *PARTS.values(), ROOT / "gunicorn.conf.py"]


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_imports_run_from_the_root_into_the_parts_and_never_back() -> None:
    for name, path in PARTS.items():
        assert not imports(path) & STORY.keys(), name


def test_imports_have_no_circles() -> None:
    ours = STORY | PARTS
    left = {name: imports(path) & ours.keys() for name, path in ours.items()}
    while left:
        leaves = {name for name, uses in left.items() if not uses & left.keys()}
        assert leaves, f"a circle among {sorted(left)}"
        left = {name: uses for name, uses in left.items() if name not in leaves}


def test_the_root_has_few_entries() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {path.partition("/")[0] for path in listed.stdout.splitlines()}
    visible = {name for name in top if not name.startswith(".")}
    assert len(visible) <= 26, sorted(visible)


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.name)
def test_rooms_and_functions_are_small(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= 800
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, node.name


# --- what opens a route ----------------------------------------------------------

ONLY_THE_OWNER = {
    "/desk",
    "/desk/messages/{message_id}",
    "/doctor",
    "/export/{name}",
    "/export/backup.sqlite3",
    "/people/{email:path}",
}
ONLY_A_TOKEN = {
    "/newsletter/confirm/{token}",
    "/newsletter/unsubscribe/{token}",
    "/newsletter/not-me/{token}",
    "/release/{token}",
    "/mailjet/{token}",
}
LIMITED = {
    "/contact": {"POST": "contact"},
    "/f/{any}": {"POST": "contact"},
    "/p/{project}/f/{any}": {"POST": "contact"},
    "/s/{any}": {"POST": "contact"},
    "/submit": {"POST": "contact"},
    "/ajax/{any}": {"POST": "contact"},
    "/{address:address}": {"POST": "contact"},
    "/newsletter": {"POST": "newsletter"},
    "/f/newsletter": {"POST": "newsletter"},
    "/p/{project}/f/newsletter": {"POST": "newsletter"},
    "/s/newsletter": {"POST": "newsletter"},
    "/subscribe/post": {"POST": "newsletter"},
    "/hits": {"POST": "hits"},
    "/hits.gif": {"GET": "hits"},
    "/hits.svg": {"GET": "hits"},
    "/hits/chart.svg": {"GET": "charts"},
}


def test_each_route_says_what_opens_it(desk: Desk) -> None:
    found: dict[str, Resource] = dict(routes(desk.app.service))
    assert {p for p, r in found.items() if r.for_owner} == ONLY_THE_OWNER
    assert {p for p, r in found.items() if r.by_token} == ONLY_A_TOKEN
    assert {p: r.limited for p, r in found.items() if r.limited} == LIMITED
    assert {p for p, r in found.items() if r.with_credentials} == {
        path for path in found if path.startswith("/hits")
    }


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nothing_that_is_the_owners_opens_without_the_token(desk: Desk) -> None:
    for path in ONLY_THE_OWNER:
        address = path.replace("{name}", "messages.json").replace("{email:path}", "a@b")
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
            answer = desk.client.simulate_request(method, address)
            assert answer.status_code in (401, 405, 429), (method, address)
            desk.clock.advance(3600)


# --- two applications in one process ---------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_two_applications_on_two_databases_live_in_one_process(
    desk: Desk, tmp_path: Path
) -> None:
    settings = replace(
        desk.settings,
        database_url=f"sqlite:///{tmp_path}/second.db",
        site_name="second.example",
    )
    app = create_app(settings, clock=desk.clock, transport=desk.mailbox)
    second = Desk(
        app, falcon.testing.TestClient(app), desk.clock, desk.mailbox, settings
    )
    for n in range(3):
        desk.post("/contact", {"email": "ada@example.com", "message": f"First {n}"})
        second.post("/contact", {"email": "ben@example.com", "message": f"Other {n}"})
    assert {m["email"] for m in desk.messages()} == {"ada@example.com"}
    assert {m["email"] for m in second.messages()} == {"ben@example.com"}
    subjects = {mail["Subject"] for mail in second.drain()}
    assert subjects == {"[second.example] Message from ben@example.com"}
    assert len(desk.drain()) == 6
    second.close()
