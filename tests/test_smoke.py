"""make smoke against a real service, a broken one and none at all."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import requests

from tests.support.mailjet import StandIn
from tests.support.ports import free_port
from tests.support.server import ROOT, Server, mail_settings

CHECKS = ["health", "preflight", "contact", "hit", "read"]


def smoke(url: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--silent", "--no-print-directory", "smoke", f"URL={url}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_smoke_ticks_everything_and_nothing_is_mailed(
    serve: Callable[..., Server], mailjet: StandIn
) -> None:
    server = serve(ADMIN_TOKEN="the-owners-own-token", **mail_settings(mailjet))
    done = smoke(server.url)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"✓ {name}" for name in CHECKS]
    export = requests.get(
        f"{server.url}/export/messages.json", auth=("", "the-owners-own-token")
    )
    assert [message["held"] for message in export.json()] == [True]
    assert requests.get(f"{server.url}/health").json()["outbox"] == "ok"
    assert mailjet.requests == []


def test_smoke_works_with_listed_origins(serve: Callable[..., Server]) -> None:
    server = serve(ALLOWED_ORIGINS="https://owner.example")
    assert smoke(f"http://localhost:{server.port}/").returncode == 0


def test_smoke_fails_where_something_does(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    with sqlite3.connect(tmp_path / "frontdesk.db") as connection:
        connection.execute("DROP TABLE message")
    connection.close()
    done = smoke(server.url)
    assert done.returncode != 0
    lines = done.stdout.splitlines()
    assert any(line.startswith("✗ contact") for line in lines)
    assert {"✓ hit", "✓ read"} <= set(lines)


def test_smoke_fails_where_nobody_answers() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = smoke(url)
    assert done.returncode != 0
    assert [line[0] for line in done.stdout.splitlines()] == ["✗"] * len(CHECKS)
