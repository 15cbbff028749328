"""Settings, app and client; a real server; a private Postgres; no monkeypatching."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import falcon.testing
import pytest

from api import create_app
from frontdesk.settings import Address, Settings
from tests.support.databases import (
    MEMORY,
    Postgres,
    delete_limits,
    migrate,
    running_postgres,
)
from tests.support.desk import TOKEN, Clock, Desk, Mailbox
from tests.support.mailjet import StandIn
from tests.support.server import Server, serving

SERVERS = {"serve", "postgres", "open_desk", "chromium", "run"}  # fixtures
ELSEWHERE = {"faults", "browser"}  # folders


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts servers, browsers or Postgres: make quick leaves it out."""
    for item in items:
        call = getattr(item, "callspec", None)
        if (
            SERVERS & set(getattr(item, "fixturenames", ()))
            or ELSEWHERE & set(item.path.parts)
            or (call and "postgres" in call.params.values())
        ):
            item.add_marker(pytest.mark.slow)


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="frontdesk-postgres-"))
    with running_postgres(folder) as cluster:
        yield cluster


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test; settings as keyword arguments."""
    with ExitStack() as stack:
        yield lambda **how: stack.enter_context(serving(tmp_path, **how))


@pytest.fixture
def mailjet() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in
