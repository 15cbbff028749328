"""The service as the Procfile starts it, on a port of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from tests.support.databases import delete_limits
from tests.support.mailjet import StandIn
from tests.support.ports import free_port

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Server:
    """gunicorn as the Procfile starts it."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_for_log(self, text: str, seconds: float = 20) -> None:
        """Return once the log holds a text (the bound only ends a failing test)."""
        deadline = time.monotonic() + seconds
        while text not in self.log:
            assert time.monotonic() < deadline, f"no {text!r} in: {self.log[-2000:]}"
            time.sleep(0.02)

    def stop(self, seconds: float = 20) -> int:
        """Send SIGTERM to every process of the group; return the exit status."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def serving(
    folder: Path, wait: bool = True, command: str = "", **environ: str
) -> Iterator[Server]:
    """Run a server on a free port with this environment only.

    command: the Procfile's unless given; {port} stands for the port.
    """
    command = command or (ROOT / "Procfile").read_text().removeprefix("web:")
    port = free_port()
    log_path = folder / f"server-{port}.log"
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PORT": str(port),
        "DATABASE_URL": f"sqlite:///{folder}/frontdesk.db",
        **environ,
    }
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command.format(port=port).split(),
            cwd=ROOT,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", port, process, log_path)
    try:
        if wait:
            _wait_until_healthy(server)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        delete_limits(folder / "frontdesk.db")


def _wait_until_healthy(server: Server, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urlopen(f"{server.url}/health", timeout=seconds):
                return
        except OSError:
            assert server.process.poll() is None, server.log
            assert time.monotonic() < deadline, server.log
            threading.Event().wait(0.05)


def mail_settings(mailjet: StandIn) -> dict[str, str]:
    """The environment of a service that mails through a stand-in."""
    return {
        "MJ_APIKEY_PUBLIC": "public",
        "MJ_APIKEY_PRIVATE": "private",
        "MAILJET_API_URL": mailjet.url,
        "MAIL_FROM": "Site <site@site.example>",
        "MAIL_TO": "owner@site.example",
    }
