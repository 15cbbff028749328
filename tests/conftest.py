"""Settings, app and client; a real server; a private Postgres; no monkeypatching."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import falcon.testing
import pytest

import models
from api import Frontdesk, create_app
from frontdesk.database import current, execute, open_database
from frontdesk.limits import LimitsFile
from frontdesk.links import Links
from frontdesk.mailjet import Check
from frontdesk.settings import Address, Settings
from tests.standin import StandIn

ROOT = Path(__file__).parent.parent
NOON = 1_800_000_000.0 - 1_800_000_000.0 % 86400 + 43200  # of some day, UTC
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
TOKEN = "the-owner's-admin-token"
FULL = os.environ.get("FRONTDESK_FULL") == "1"  # make faults: all at full size


class Clock:
    """A clock that only a test moves."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Mailbox:
    """A transport that keeps what it is given; fail makes it raise instead."""

    mails: list[dict[str, Any]] = field(default_factory=list)
    synced: list[tuple[str, str, str]] = field(default_factory=list)
    fail: Callable[[dict[str, Any]], Exception | None] = lambda message: None

    def send(self, message: dict[str, Any]) -> None:
        if error := self.fail(message):
            raise error
        self.mails.append(message)

    def sync(self, list_id: str, email: str, standing: str) -> None:
        self.synced.append((list_id, email, standing))

    def check(self, settings: Settings, links: Links) -> Iterator[Check]:
        yield Check("mailjet", True, "A test's mailbox.")

    def register(self, links: Links) -> Iterator[Check]:
        yield Check("events", True, "A test's mailbox tells nothing.")


@dataclass
class Desk:
    """One service in this process: its client, clock and mailbox."""

    app: Frontdesk
    client: falcon.testing.TestClient
    clock: Clock
    mailbox: Mailbox
    settings: Settings

    def drain(self) -> list[dict[str, Any]]:
        """Deliver what is due and return all mails so far."""
        self.app.outbox.drain()
        return self.mailbox.mails

    def post(self, path: str, form: dict[str, Any], **headers: str) -> Any:
        """Post JSON as a script does, keyword arguments as headers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.simulate_post(path, json=form, headers=named)

    def owner(self, method: str, path: str) -> Any:
        """Make a request with the admin token."""
        return self.client.simulate_request(
            method, path, headers={"Authorization": f"Bearer {TOKEN}"}
        )

    def close(self) -> None:
        """Close this thread's connections, and what all threads share."""
        self.app.service.limits.store.close()
        self.app.service.database.close()

    def health(self) -> Any:
        """Return what /health tells the owner."""
        return self.owner("GET", "/health").json

    def messages(self) -> list[dict[str, Any]]:
        return self.owner("GET", "/export/messages.json").json

    def subscribers(self) -> list[dict[str, Any]]:
        return self.owner("GET", "/export/subscribers.json").json


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database with the schema: a SQLite file, then Postgres."""
    if request.param == "postgres":
        yield request.getfixturevalue("postgres").emptied_url()
        return
    # In memory where that can be: these tests are not about the disk.
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder) / "frontdesk.db"
        shutil.copy(request.getfixturevalue("empty_sqlite"), path)
        delete_limits(path)
        yield f"sqlite:///{path}"
        delete_limits(path)


def migrate(url: str) -> None:
    """Make an empty database with the schema."""
    database = open_database(url)
    database.migrate()
    database.close()


def limit_pages(most: int) -> None:
    """Let the SQLite file grow to so many pages, a limit of its writer."""
    pragma = f"PRAGMA max_page_count = {most}"
    current().write(lambda: execute(pragma).fetchone())


def delete_limits(path: Path) -> None:
    """Delete the rate limits of a SQLite file: they lie elsewhere and outlive it."""
    limits = LimitsFile(path).path
    for part in limits.parent.glob(f"{limits.name}*"):
        part.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "frontdesk.db"
    migrate(f"sqlite:///{path}")
    delete_limits(path)
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_desk(database_url: str, clock: Clock) -> Iterator[Callable[..., Desk]]:
    """Make services on this test's database, with any settings changed."""
    made: list[Desk] = []

    def make(**changes: Any) -> Desk:
        for desk in made:
            desk.close()
        settings = replace(
            Settings(
                database_url=database_url,
                secret_keys=("k" * 32,),
                public_url="https://desk.example",
                allowed_origins=("https://site.example",),
                site_name="site.example",
                mail_from=Address("Site", "site@site.example"),
                mail_to=Address("", "owner@site.example"),
                admin_token=TOKEN,
            ),
            **changes,
        )
        mailbox = Mailbox()
        app = create_app(settings, clock=clock, transport=mailbox)
        client = falcon.testing.TestClient(app)
        made.append(Desk(app, client, clock, mailbox, settings))
        return made[-1]

    yield make
    for desk in made:
        desk.close()


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()


# --- a private Postgres ----------------------------------------------------------


class Postgres:
    """A cluster of this run's own, on a Unix socket and a local port."""

    def __init__(self, folder: Path) -> None:
        debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        found = shutil.which("initdb")
        if not debian and not found:
            pytest.skip("Postgres is not installed")
        self.bin = debian[-1] if debian else Path(found or "").parent
        self.folder = folder
        self.port = free_port()
        self.made = 0
        self.has_template = False
        self.shared = ""

    def run(self, *command: str) -> None:
        # Postgres refuses to run as root.
        user = {"user": "postgres"} if os.getuid() == 0 else {}
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, **user)

    def start(self) -> None:
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")
        data = str(self.folder / "data")
        self.run(
            *(f"{self.bin}/initdb", "-D", data, "-U", "desk", "-A", "trust"),
            *("--no-sync", "-E", "UTF8", "--locale", "C"),
        )
        options = (
            f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 "
            "-c fsync=off -c max_connections=200"
        )
        log = str(self.folder / "log")
        self.run(
            f"{self.bin}/pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start"
        )

    def stop(self) -> None:
        data = str(self.folder / "data")
        self.run(f"{self.bin}/pg_ctl", "-D", data, "-m", "immediate", "stop")

    def url(self, name: str) -> str:
        return f"postgres://desk@127.0.0.1:{self.port}/{name}"

    def blank_url(self) -> str:
        """Return the URL of a new database without a schema."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            self.made += 1
            connection.execute(f"CREATE DATABASE blank{self.made}")
        return self.url(f"blank{self.made}")

    def fresh_url(self) -> str:
        """Return the URL of a new database with an empty schema."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if not self.has_template:
                connection.execute("CREATE DATABASE empty")
                migrate(self.url("empty"))
                self.has_template = True
            self.made += 1
            connection.execute(f"CREATE DATABASE desk{self.made} TEMPLATE empty")
        return self.url(f"desk{self.made}")

    def emptied_url(self) -> str:
        """Return the URL of one shared database, emptied: faster than a new one."""
        import psycopg

        tables = {t._meta.table_name for t in models.TABLES}
        tables.add("bucket")  # see limits.RateLimits
        if not self.shared:
            self.shared = self.fresh_url()
        with psycopg.connect(self.shared, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' "
                "AND tablename <> 'schema_migration'"
            ).fetchall()
            if {name for (name,) in rows} == tables:
                for table in tables:
                    connection.execute(f"DELETE FROM {table}")
                connection.execute("ALTER SEQUENCE delivery_id_seq RESTART")
                connection.execute("INSERT INTO page VALUES ('/(other)', 0, 0)")
                return self.shared
        self.shared = ""  # a test took a table away
        return self.emptied_url()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="frontdesk-postgres-"))
    cluster = Postgres(folder)
    cluster.start()
    yield cluster
    cluster.stop()
    shutil.rmtree(folder)


# --- a real server ---------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


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
            with urlopen(f"{server.url}/health"):
                return
        except OSError:
            assert server.process.poll() is None, server.log
            assert time.monotonic() < deadline, server.log
            threading.Event().wait(0.05)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test; settings as keyword arguments."""
    with ExitStack() as stack:
        yield lambda **how: stack.enter_context(serving(tmp_path, **how))


@pytest.fixture
def mailjet() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


def mail_settings(mailjet: StandIn) -> dict[str, str]:
    """The environment of a service that mails through a stand-in."""
    return {
        "MJ_APIKEY_PUBLIC": "public",
        "MJ_APIKEY_PRIVATE": "private",
        "MAILJET_API_URL": mailjet.url,
        "MAIL_FROM": "Site <site@site.example>",
        "MAIL_TO": "owner@site.example",
    }
