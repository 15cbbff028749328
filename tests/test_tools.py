"""The tools that an owner uses: restoring a backup, reading a file of settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.support.desk import TOKEN
from tests.support.server import ROOT, Server
from tools import restore


def run(*arguments: object, tool: str = "restore") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / f"{tool}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def write(server: Server, text: str) -> None:
    letter = {"email": "ada@example.com", "message": text}
    assert requests.post(f"{server.url}/contact", json=letter).status_code == 200


def fetch(server: Server, path: str) -> requests.Response:
    owner = {"Authorization": f"Bearer {TOKEN}"}
    return requests.get(server.url + path, headers=owner)


def messages(server: Server) -> set[str]:
    rows = fetch(server, "/export/messages.json").json()
    return {row["message"] for row in rows}


def test_a_backup_takes_the_place_of_a_killed_services_database(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    database, backup = tmp_path / "frontdesk.db", tmp_path / "backup.sqlite3"
    server = serve(ADMIN_TOKEN=TOKEN)
    write(server, "before")
    backup.write_bytes(fetch(server, "/export/backup.sqlite3").content)
    write(server, "after")

    refused = run(backup, f"sqlite:///{database}")
    assert refused.returncode == 1
    stop_first = "Nothing was restored: the service still runs: stop it first\n"
    assert refused.stderr == stop_first
    assert messages(server) == {"before", "after"}

    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()
    assert (tmp_path / "frontdesk.db-wal").stat().st_size  # what a kill leaves behind
    inode = database.stat().st_ino
    restored = run(backup, f"sqlite:///{database}")
    assert restored.returncode == 0, restored.stderr
    assert f"{'message':12}{1:>10,}" in restored.stdout
    assert database.stat().st_ino == inode  # so that its owner stays

    again = serve(ADMIN_TOKEN=TOKEN)
    assert messages(again) == {"before"}
    write(again, "anew")
    assert messages(again) == {"before", "anew"}


def test_what_is_no_backup_is_refused(empty_sqlite: Path, tmp_path: Path) -> None:
    target = tmp_path / "frontdesk.db"
    target.write_bytes(empty_sqlite.read_bytes())
    (tmp_path / "text").write_text("no database" * 1000)
    for name in ("text", "missing"):
        done = run(tmp_path / name, f"sqlite:///{target}")
        assert done.returncode == 1
        assert done.stderr.startswith("Nothing was restored: ")
    assert target.read_bytes() == empty_sqlite.read_bytes()


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "postgres://h/n"]])
def test_a_wrong_call_shows_how_to_call(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore.main(arguments) == 2
    assert "usage: python tools/restore.py" in capsys.readouterr().err


def test_a_file_of_settings_stands_behind_the_environment(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("A=from the file\nB=Mara <m@site.example>\nC=\nD=${A}\nHOME=x\n")
    show = "import os; print([os.environ.get(n) for n in 'ABCD'], os.environ['HOME'])"
    command = [sys.executable, "-c", show]
    env = {"A": "from the environment", "HOME": "/home"}
    for path, b, d in ((file, "Mara <m@site.example>", "${A}"), ("none", None, None)):
        tool = [sys.executable, ROOT / "tools" / "with_env.py", path, *command]
        done = subprocess.run(tool, env=env, capture_output=True, text=True)
        told = ["from the environment", b, None, d]
        assert done.stdout == f"{told} /home\n", done.stderr
