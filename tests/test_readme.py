"""The README is what a new user types: its lines must work as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from tests.support.desk import TOKEN
from tests.support.server import ROOT, Server

README = (ROOT / "README.md").read_text()
API = README.partition("## The API in curl")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```sh\n(.*?)```", API, re.DOTALL)


def test_it_is_short() -> None:
    assert README.count("\n") <= 260


def test_what_it_names_is_there() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)\)", README)
    files = re.findall(r"`((?:examples|docs|tools|bench)/[\w./-]+)`", README)
    assert {name for name in links + files if not (ROOT / name).exists()} == set()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^|&& |sudo )make ([a-z]+)", README, re.M):
        assert re.search(rf"(?m)^{target}:", makefile), target


def test_nothing_leads_to_a_strangers_repository() -> None:
    # Whose github.com/frontdesk/... would be, nobody knows: buttons take the
    # repository from the page that they are pressed on.
    for path in (ROOT / "README.md", ROOT / "app.json", *ROOT.glob("docs/*.md")):
        assert not re.search(r"github\.com/frontdesk|deploy\?", path.read_text()), path


def test_the_first_snippet_needs_no_page_of_the_readers() -> None:
    first = re.search(r"```html\n(.*?)```", README, re.S)
    assert first
    assert "_next" not in first[1]
    assert "page=" not in first[1]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_every_curl_line_works(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(ADMIN_TOKEN=TOKEN)
    lines = "".join(BLOCKS).replace("URL=http://localhost:8000", f"URL={server.url}")
    assert lines.count("curl") >= 15
    # -f: an error status is a failure; each answer on a line of its own.
    script = f'set -e\ncurl() {{ command curl -fsS "$@"; echo; }}\n{lines}'
    run = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "ADMIN_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert '"database": "ok"' in run.stdout
    assert '"counted": true' in run.stdout
    assert '"messages": 2' in run.stdout  # erased by the last line
    assert (tmp_path / "backup.sqlite3").read_bytes().startswith(b"SQLite format 3")


def test_the_welcome_page_shows_the_same_snippets(serve: Callable[..., Server]) -> None:
    server = serve(PUBLIC_URL="https://desk.example")
    page = subprocess.run(
        ["curl", "-s", "-H", "Accept: text/html", server.url],
        capture_output=True,
        text=True,
    ).stdout
    shown = unescape(page)
    first = README.partition("```html\n")[2].partition("```")[0]
    snippets = re.findall(r"(?s)<form.*?</form>|<img.*?>", first)
    assert len(snippets) == 3
    for snippet in snippets:
        assert snippet in shown
