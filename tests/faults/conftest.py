"""What the tests of faults share: sizes, load, raw sockets, a look at the files."""

from __future__ import annotations

import json
import random
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPMessage
from pathlib import Path
from typing import Any, TypeVar

from api import create_app
from frontdesk.deliveries import LEASE
from frontdesk.mailjet import Mailjet
from frontdesk.settings import Address, Settings
from models import Delivery
from tests.support.desk import FULL, TOKEN
from tests.support.mailjet import StandIn
from tests.support.server import Server

T = TypeVar("T")

NO_LIMITS = {
    "CONTACT_LIMIT": "999999/second",
    "NEWSLETTER_LIMIT": "999999/second",
    "HITS_LIMIT": "999999/second",
    "CONFIRM_MAILS_PER_DAY": "1000000",
}
# As a browser's fetch() sends: nothing here looks like spam.
BROWSER = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Language": "en",
    "User-Agent": "Mozilla/5.0",
    "Origin": "https://site.example",
    "Referer": "https://site.example/",
}


def size(small: T, large: T) -> T:
    """Return the large size for make faults, the small one for make test."""
    return large if FULL else small


def eventually(true: Callable[[], Any], seconds: float = 30) -> Any:
    """Return what a condition gives once it holds (the bound ends a failing test)."""
    deadline = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)
    return result


def call(
    server: Server, method: str, path: str, form: Any = None, **headers: str
) -> tuple[int, HTTPMessage, bytes]:
    """Make one request on a connection of its own: (status, headers, body)."""
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as client:
        body = None if form is None else json.dumps(form)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        client.request(method, path, body, {**BROWSER, **named})
        answer = client.getresponse()
        return answer.status, answer.headers, answer.read()


def contact(text: str = "") -> tuple[str, dict[str, str]]:
    """Return a request that stores a message of its own."""
    word = random.randbytes(6).hex()
    return "/contact", {
        "email": f"ada.{word}@example.com",
        "message": text or f"Dear desk, this is letter {word}",
    }


def signup() -> tuple[str, dict[str, str]]:
    """Return a request that signs a new address up."""
    return "/newsletter", {"email": f"bob{random.randbytes(6).hex()}@example.com"}


def hit() -> tuple[str, dict[str, str]]:
    """Return a request that counts a hit on one of ten pages."""
    return "/hits", {"page": f"/page-{random.randrange(10)}"}


@dataclass
class Load:
    """Clients that post until the context ends, and remember what they were told."""

    server: Server
    kinds: tuple[Callable[[], tuple[str, dict[str, str]]], ...] = (contact, hit)
    clients: int = 4
    pause: float = 0.01
    ids: list[str] = field(default_factory=list)  # of acknowledged messages
    tried: Counter[str] = field(default_factory=Counter)  # by path
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, daemon=True) for _ in range(self.clients)
        ]

    def __enter__(self) -> Load:
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        self.seconds = time.monotonic() - self._started

    def go_on(self, seconds: float) -> None:
        """Post for some time more."""
        self._over.wait(seconds)

    def acknowledged(self, path: str) -> int:
        return self.answers[path, 200]

    @property
    def failures(self) -> dict[tuple[str, int], int]:
        """The answers other than 200."""
        return {key: n for key, n in self.answers.items() if key[1] != 200}

    def _run(self) -> None:
        while not self._over.is_set():
            for kind in self.kinds:
                self._post(*kind())
                self._over.wait(self.pause)

    def _post(self, path: str, form: dict[str, str]) -> None:
        with self._lock:
            self.tried[path] += 1
        started = time.monotonic()
        try:
            status, _, body = call(self.server, "POST", path, form)
        except (OSError, HTTPException) as error:
            with self._lock:
                self.unanswered.append(type(error).__name__)
            return
        with self._lock:
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.answers[path, status] += 1
            if path == "/contact" and status == 200:
                self.ids.append(json.loads(body)["id"])


def workers(server: Server) -> list[int]:
    """Return the process ids of a server's workers."""
    pid = server.process.pid
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def is_drained(server: Server) -> bool:
    """Tell whether nothing waits to be delivered; the server has TOKEN."""
    health = call(server, "GET", "/health", Authorization=f"Bearer {TOKEN}")[2]
    return json.loads(health)["outbox"]["waiting"] == 0


def rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """Ask a service's SQLite file."""
    with closing(sqlite3.connect(folder / "frontdesk.db")) as connection:
        return connection.execute(sql).fetchall()


def deliver_rest(database_url: str, path: Path | None, mailjet: StandIn) -> None:
    """Deliver what a dead server left, as another one would when its leases are over.

    Only this process's clock is ahead.
    """
    settings = Settings(
        database_url=database_url,
        secret_keys=("k" * 32,),
        mail_from=Address("Site", "site@site.example"),
        mail_to=Address("", "owner@site.example"),
    )
    transport = Mailjet(("public", "private"), mailjet.url)
    later = LEASE + 60
    app = create_app(settings, clock=lambda: time.time() + later, transport=transport)
    try:
        app.outbox.drain()
        assert Delivery.summary(time.time())["waiting"] == 0
    finally:
        app.service.database.close()


@contextmanager
def raw(server: Server, data: bytes = b"") -> Iterator[socket.socket]:
    """Open a plain socket and send what no client library would."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        if data:
            sock.sendall(data)
        yield sock


def read_all(sock: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    received = b""
    try:
        while part := sock.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received
