"""Databases for a test: SQLite files, and a private Postgres."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import models
from frontdesk.database import current, execute, open_database
from frontdesk.limits import LimitsFile
from tests.support.ports import free_port

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


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


@contextmanager
def running_postgres(folder: Path, fsync: str = "off") -> Iterator[Postgres]:
    """Run a cluster in an empty folder, and delete it."""
    cluster = Postgres(folder)
    cluster.start(fsync)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


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

    def start(self, fsync: str = "off") -> None:
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")
        data = str(self.folder / "data")
        self.run(
            *(f"{self.bin}/initdb", "-D", data, "-U", "desk", "-A", "trust"),
            *("--no-sync", "-E", "UTF8", "--locale", "C"),
        )
        options = (
            f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 "
            f"-c fsync={fsync} -c max_connections=200"
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
