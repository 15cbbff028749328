"""make smoke against a real service, a broken one and none at all."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

import smoke
from tests.conftest import ROOT, Server, free_port, mail_settings
from tests.standin import StandIn

CHECKS = ["health", "preflight", "contact", "hit", "read"]


def test_smoke_ticks_everything_and_nothing_is_mailed(
    serve: Callable[..., Server], mailjet: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(ADMIN_TOKEN="owner", **mail_settings(mailjet))
    assert smoke.main(server.url) == 0
    assert capsys.readouterr().out.splitlines() == [f"✓ {name}" for name in CHECKS]
    export = requests.get(f"{server.url}/export/messages.json", auth=("", "owner"))
    assert [message["held"] for message in export.json()] == [True]
    assert requests.get(f"{server.url}/health").json()["outbox"]["waiting"] == 0
    assert mailjet.requests == []


def test_smoke_works_with_listed_origins(serve: Callable[..., Server]) -> None:
    server = serve(ALLOWED_ORIGINS="https://owner.example")
    assert smoke.main(f"http://localhost:{server.port}/") == 0


def test_smoke_fails_where_something_does(
    serve: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve()
    with sqlite3.connect(tmp_path / "frontdesk.db") as connection:
        connection.execute("DROP TABLE message")
    connection.close()
    assert smoke.main(server.url) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "✗ contact" in lines
    assert {"✓ hit", "✓ read"} <= set(lines)


def test_smoke_fails_where_nobody_answers() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        "make",
        "--silent",
        "--no-print-directory",
        "smoke",
        f"URL={url}",
        f"PYTHON={sys.executable}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert [line[0] for line in done.stdout.splitlines()] == ["✗"] * len(CHECKS)
