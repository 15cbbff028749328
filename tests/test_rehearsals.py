"""The service under each platform's conditions, since no platform is here.

Each platform is its environment and what its router adds to a request; the walk is
the same everywhere: the smoke test, the client's address, the shutdown.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from frontdesk.counter import Page
from frontdesk.database import current, execute
from frontdesk.settings import sqlite_path
from frontdesk.tables import DAY, Setting, day_of
from tests.support.databases import Postgres, delete_limits
from tests.support.desk import TOKEN, Desk
from tests.support.mailjet import Answer, StandIn
from tests.support.server import ROOT, Server, mail_settings

VISITOR = "203.0.113.7"
OWNER = {"Authorization": f"Bearer {TOKEN}"}
SECRETS = {"SECRET_KEY": "0123456789abcdef" * 4, "ADMIN_TOKEN": TOKEN}
BROWSER = {"User-Agent": "Mozilla/5.0"}  # HTTP libraries are not counted
SITE = {"ALLOWED_ORIGINS": "https://site.example", "SITE_NAME": "site.example"}


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on a mount of its own, as a platform's disk is."""
    mount = Path("/dev/shm")
    if not mount.is_mount():
        pytest.skip("no mount to write to")
    folder = Path(tempfile.mkdtemp(prefix="frontdesk-disk-", dir=mount))
    yield folder
    shutil.rmtree(folder)
    delete_limits(folder / "frontdesk.db")


@pytest.fixture
def heroku(
    serve: Callable[..., Server], mailjet: StandIn, postgres: Postgres
) -> Callable[..., Server]:
    """A dyno: two workers, arguments for gunicorn, everybody trusted with headers."""
    environ = {
        "DYNO": "web.1",
        "HEROKU_APP_DEFAULT_DOMAIN_NAME": "desk.herokuapp.example",
        "FORWARDED_ALLOW_IPS": "*",
        "WEB_CONCURRENCY": "2",
        "GUNICORN_CMD_ARGS": "--access-logfile -",
        "DATABASE_URL": postgres.fresh_url(),
    }
    assert environ["DATABASE_URL"].startswith("postgres://")
    return _start(serve, mailjet, environ)


@pytest.fixture
def render(
    serve: Callable[..., Server], mailjet: StandIn, disk: Path
) -> Callable[..., Server]:
    """An instance with a disk, and with the arguments that Render gives gunicorn."""
    environ = {
        "RENDER": "true",
        "RENDER_EXTERNAL_URL": "https://desk.onrender.example",
        "WEB_CONCURRENCY": "1",
        "GUNICORN_CMD_ARGS": "--preload --access-logfile - --bind=127.0.0.1:9",
        "DATABASE_URL": f"sqlite:///{disk}/frontdesk.db",
    }
    return _start(serve, mailjet, environ)


def _start(
    serve: Callable[..., Server], mailjet: StandIn, environ: dict[str, str]
) -> Callable[..., Server]:
    def start(**more: str) -> Server:
        common = {**SECRETS, **SITE, **mail_settings(mailjet)}
        return serve(**{**common, **environ, **more})

    return start


# What each router makes of a visitor who lies about the address.
HEROKU_ROUTER = {
    "X-Forwarded-For": f"6.6.6.6, {VISITOR}",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "443",
    "X-Request-Start": "1800000000000",
    "Via": "1.1 heroku-router",
}
RENDER_ROUTER = {
    "CF-Connecting-IP": VISITOR,
    "True-Client-IP": VISITOR,
    "CF-Ray": "8d0000000000-FRA",
    "X-Forwarded-For": "6.6.6.6, 203.0.113.7, 10.0.0.2",
    "X-Forwarded-Proto": "https",
}


def path_in(mail: dict[str, Any], purpose: str, base: str) -> str:
    """Return the path of a mailed link; it must begin with the platform's address."""
    found = re.search(rf"{base}(/newsletter/{purpose}/\S+)", mail["TextPart"])
    assert found, mail["TextPart"]
    return found[1]


def smoke(server: Server, mailjet: StandIn, router: dict[str, str], base: str) -> None:
    """Walk through all that a visitor and the owner do."""
    with requests.Session() as visitor:
        visitor.headers.update(router)
        health = visitor.get(f"{server.url}/health").json()
        assert (health["status"], health["database"]) == ("ok", "ok")

        form = {"email": "ada@example.com", "message": "Hello from the platform"}
        answer = visitor.post(f"{server.url}/contact", data=form)
        assert answer.status_code == 200
        contact = mailjet.wait(1)[0].message
        assert contact["CustomID"] == answer.json()["id"]
        assert contact["ReplyTo"]["Email"] == "ada@example.com"

        form = {"email": "bob@example.com"}
        assert visitor.post(f"{server.url}/newsletter", json=form).status_code == 200
        confirm = path_in(mailjet.wait(2)[1].message, "confirm", base)
        assert "<button" in visitor.get(server.url + confirm).text
        assert visitor.post(server.url + confirm).status_code == 200

        for _ in range(2):
            hit = visitor.post(
                f"{server.url}/hits", json={"page": "/about"}, headers=BROWSER
            ).json()
        assert (hit["hits"], hit["visitors"]) == (2, 1)
        assert visitor.get(f"{server.url}/hits?page=/about").json()["hits"] == 2

        visitor.headers.update(OWNER)
        (message,) = visitor.get(f"{server.url}/export/messages.json").json()
        assert message["message"] == "Hello from the platform"
        (subscriber,) = visitor.get(f"{server.url}/export/subscribers.json").json()
        assert subscriber["status"] == "confirmed"


def doctor(server: Server, router: dict[str, str]) -> dict[str, Any]:
    answer = requests.get(f"{server.url}/doctor", headers={**OWNER, **router})
    assert answer.status_code == 200
    return answer.json()


def end_cleanly(server: Server) -> None:
    """Stop it as platforms do, with SIGTERM to every process; read the log."""
    assert server.stop() == 0
    with socket.socket() as gone:
        assert gone.connect_ex(("127.0.0.1", server.port)) != 0
    log = server.log
    assert "Traceback" not in log
    assert "SIGKILL" not in log
    for private in ("example.com", VISITOR, "6.6.6.6", TOKEN, "page=", "Hello from"):
        assert private not in log
    assert len(re.findall(r"(?m)^POST /contact 200 ", log)) == 1  # one line, ours


def test_rehearsal_on_heroku(heroku: Callable[..., Server], mailjet: StandIn) -> None:
    server = heroku()
    smoke(server, mailjet, HEROKU_ROUTER, "https://desk.herokuapp.example")

    found = doctor(server, HEROKU_ROUTER)
    rule = "X-Forwarded-For, TRUSTED_HOPS=1"
    assert found["client"] == {"address": VISITOR, "rule": rule}
    names = {check["name"]: check for check in found["checks"]}
    assert names["database"]["message"].startswith("Postgres")
    assert names["public_url"]["ok"]

    assert server.log.count("Booting worker") == 2
    end_cleanly(server)


def test_rehearsal_on_render(
    render: Callable[..., Server], mailjet: StandIn, disk: Path
) -> None:
    server = render()
    smoke(server, mailjet, RENDER_ROUTER, "https://desk.onrender.example")

    found = doctor(server, RENDER_ROUTER)
    assert found["client"] == {"address": VISITOR, "rule": "CF-Connecting-IP"}
    names = {check["name"]: check for check in found["checks"]}
    assert names["database"]["message"].startswith("SQLite on a disk that stays")
    assert names["disk"]["ok"]

    end_cleanly(server)
    assert (disk / "frontdesk.db").stat().st_size > 0


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "Script-Name"])
def test_a_client_cannot_rewrite_the_path(
    heroku: Callable[..., Server], name: str
) -> None:
    server = heroku()
    lines = [
        "GET /health HTTP/1.1",
        "Host: desk",
        f"{name}: /health",
        f"{name.replace('SCRIPT', 'PATH').replace('Script', 'Path')}: /doctor",
        "Connection: close",
    ]
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"status": "ok"' in answer


@pytest.mark.parametrize("platform", ["heroku", "render"])
def test_two_forwarded_lines_are_refused(
    request: pytest.FixtureRequest, platform: str
) -> None:
    server = request.getfixturevalue(platform)()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"GET /hits?page=/ HTTP/1.1\r\nHost: desk\r\nX-Forwarded-For: 6.6.6.6\r\n"
            b"X-Forwarded-For: 203.0.113.7\r\nConnection: close\r\n\r\n"
        )
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 400")


def test_limits_follow_the_visitor_not_what_the_visitor_claims(
    heroku: Callable[..., Server],
) -> None:
    server = heroku(CONTACT_LIMIT="2/hour")
    form = {"email": "ada@example.com", "message": "Hello there"}

    def post(claimed: str, visitor: str) -> int:
        forwarded = {"X-Forwarded-For": f"{claimed}, {visitor}"}
        return requests.post(
            f"{server.url}/contact", json=form, headers=forwarded
        ).status_code

    assert [post(f"6.6.6.{n}", VISITOR) for n in range(4)] == [200, 200, 429, 429]
    assert post("6.6.6.6", "198.51.100.9") == 200  # both workers share the count


def test_a_restart_during_a_hanging_mailjet_loses_nothing(
    heroku: Callable[..., Server], mailjet: StandIn
) -> None:
    """A sleeping or restarted instance wakes up and sends what it held."""
    woken = threading.Event()
    mailjet.answer = lambda _: Answer(hang=woken)
    first = heroku()
    form = {"email": "ada@example.com", "message": "Hello there"}
    sent = requests.post(f"{first.url}/contact", json=form).json()
    mailjet.wait(1)  # taken, and never answered
    assert first.stop() == 0

    done = len(mailjet.requests)
    mailjet.answer = lambda _: Answer(
        body={"Messages": [{"Status": "success", "To": [{}]}]}
    )
    second = heroku()
    mails = [request.message for request in mailjet.wait(done + 1)]
    woken.set()
    assert mails[-1]["CustomID"] == sent["id"]
    second.wait_for_log("GET /health 200")
    assert second.stop() == 0


@pytest.mark.parametrize(
    ("environ", "variables"),
    [
        pytest.param(
            {"DYNO": "web.1"}, ["SECRET_KEY", "DATABASE_URL"], id="heroku, bare"
        ),
        pytest.param(
            {"RENDER": "true", "DATABASE_URL": f"sqlite:///{ROOT}/frontdesk.db"},
            ["SECRET_KEY", "DATABASE_URL"],
            id="render, no disk",
        ),
        pytest.param(
            {"RENDER": "true", "GUNICORN_CMD_ARGS": "--preload", "PORT": "none"},
            ["PORT", "SECRET_KEY", "DATABASE_URL"],
            id="render, preload",
        ),
    ],
)
def test_a_platform_that_lacks_something_says_what_and_ends(
    serve: Callable[..., Server], environ: dict[str, str], variables: list[str]
) -> None:
    server = serve(wait=False, **environ)
    assert server.process.wait(30) != 0
    lines = server.log.splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == sorted(variables)


# --- staying up ------------------------------------------------------------------


def count(table: str) -> int:
    return int(execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def buckets(desk: Desk) -> int:
    """Count the rate limits' rows, which SQLite keeps in a file of their own."""
    return int(
        desk.app.service.limits.store.execute("SELECT count(*) FROM bucket").fetchone()[
            0
        ]
    )


def a_busy_minute(desk: Desk) -> None:
    for n in range(3):
        for path, form in (
            ("/hits", {"page": "/about"}),
            ("/contact", {"email": "ada@example.com", "message": f"Hello {n}"}),
        ):
            desk.client.simulate_post(path, json=form, remote_addr=f"203.0.113.{n}")
    desk.drain()


def test_the_daily_round_forgets_the_visitors_of_yesterday(desk: Desk) -> None:
    a_busy_minute(desk)
    assert (count("visitor"), count("receipt"), count("delivery")) == (3, 3, 0)
    assert buckets(desk) > 0
    yesterday = day_of(desk.clock.now)
    assert Setting.get_value(f"salt {yesterday}") is not None

    desk.clock.advance(DAY)
    desk.app.outbox.go_round()

    assert (count("visitor"), count("receipt"), buckets(desk)) == (0, 0, 0)
    assert Setting.get_value(f"salt {yesterday}") is None
    assert Page.totals("/about") == (3, 3)  # the numbers stay
    assert count("message") == 3


def test_messages_are_kept_for_as_long_as_the_owner_says(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(retention_days=30)
    a_busy_minute(desk)
    desk.clock.advance(29 * DAY)
    a_busy_minute(desk)
    desk.app.outbox.go_round()
    assert count("message") == 6
    desk.clock.advance(2 * DAY)
    desk.app.outbox.go_round()
    assert count("message") == 3


def test_whoever_never_confirms_is_forgotten_after_30_days(desk: Desk) -> None:
    desk.post("/newsletter", {"email": "ada@example.com"})
    desk.clock.advance(30 * DAY)
    desk.app.outbox.go_round()
    assert count("subscriber") == 1
    desk.clock.advance(DAY)
    desk.app.outbox.go_round()
    assert count("subscriber") == 0


def test_tallies_do_not_pile_up(desk: Desk) -> None:
    for n in range(40):
        desk.post("/newsletter", {"email": f"ada{n}@example.com"})
        desk.clock.advance(DAY)
        desk.app.outbox.go_round()
    oldest = execute("SELECT min(period) FROM tally WHERE period <> ''")
    assert oldest.fetchone()[0] >= day_of(desk.clock.now - 31 * DAY)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_clean_up_keeps_nobody_waiting_while_a_backup_is_read(desk: Desk) -> None:
    path = sqlite_path(desk.settings.database_url)
    assert path is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM message").fetchone()
        a_busy_minute(desk)

        def clean() -> None:
            desk.app.outbox.go_round()
            current().close()  # this thread's connections

        cleaning = threading.Thread(target=clean)
        cleaning.start()
        cleaning.join(8)  # less than the 10 s for which SQLite waits for readers
        assert not cleaning.is_alive()


# --- backups ---------------------------------------------------------------------

# The line of the README, in a crontab or a scheduled workflow.
FETCH = (
    'curl -fsS -H "Authorization: Bearer $ADMIN_TOKEN" '
    '"$DESK/export/backup.sqlite3" -o "frontdesk-$(date +%u).sqlite3"'
)


def fetch(server: Server, folder: Path) -> Path:
    """Run the README's line in a folder and return the file it made."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    environ = {**os.environ, "DESK": server.url, "ADMIN_TOKEN": TOKEN}
    folder.mkdir()
    subprocess.run(["sh", "-c", FETCH], cwd=folder, env=environ, check=True)
    (file,) = folder.iterdir()
    return file


def fill(server: Server, mailjet: StandIn) -> str:
    """Leave a message, a pending and a left subscription and hits; return a link."""
    form = {"email": "ada@example.com", "message": "Keep me"}
    requests.post(f"{server.url}/contact", json=form).raise_for_status()
    for n, email in enumerate(("bob@example.com", "eve@example.com"), start=2):
        form = {"email": email}
        requests.post(f"{server.url}/newsletter", json=form).raise_for_status()
        mail = mailjet.wait(n)[n - 1].message
    not_me = path_in(mail, "not-me", "https?://[^/]+")
    requests.post(server.url + not_me).raise_for_status()
    count_one(server, "/kept")
    return path_in(mailjet.requests[1].message, "confirm", "https?://[^/]+")


def count_one(server: Server, page: str) -> None:
    answer = requests.post(f"{server.url}/hits", json={"page": page}, headers=BROWSER)
    assert answer.json()["counted"]


def export(server: Server, name: str) -> Any:
    return requests.get(f"{server.url}/export/{name}.json", headers=OWNER).json()


def settled(server: Server) -> list[Any]:
    """Return what the owner can export once all mails are accounted for."""
    deadline = time.monotonic() + 20
    health = f"{server.url}/health"
    while requests.get(health, headers=OWNER).json()["outbox"]["waiting"]:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.02)
    messages, people, hits = map(
        partial(export, server), ("messages", "subscribers", "hits")
    )
    for each in people:
        if each["unsubscribe_url"]:  # signed at each export: without time and signature
            each["unsubscribe_url"] = each["unsubscribe_url"].rsplit(".", 2)[0]
    return [messages, people, hits]


def test_a_backup_is_restored_into_a_new_service(
    serve: Callable[..., Server], mailjet: StandIn, tmp_path: Path
) -> None:
    public = {"PUBLIC_URL": "https://desk.example"}  # whatever the port
    common = {"ADMIN_TOKEN": TOKEN, **public, **SITE, **mail_settings(mailjet)}
    old = serve(**common)
    confirm = fill(old, mailjet)
    before = settled(old)
    file = fetch(old, tmp_path / "backups")
    old.stop()

    # To a new place: the file takes the database's name.
    (tmp_path / "new").mkdir()
    shutil.copy(file, tmp_path / "new/frontdesk.db")
    new = serve(DATABASE_URL=f"sqlite:///{tmp_path}/new/frontdesk.db", **common)
    assert settled(new) == before
    assert len(before[0]) == 1

    # What was mailed before still works: the key that signs is in the database.
    requests.post(new.url + confirm).raise_for_status()
    status = {s["email"]: s["status"] for s in export(new, "subscribers")}
    assert status == {"bob@example.com": "confirmed", None: "left"}

    # Whoever left is remembered: no mail goes there again.
    known = len(mailjet.mails)
    requests.post(f"{new.url}/newsletter", json={"email": "eve@example.com"})
    requests.post(f"{new.url}/contact", json={"email": "a@b.example", "message": "x"})
    mailjet.wait(known + 1)
    assert [mail["To"][0]["Email"] for mail in mailjet.mails[known:]] == [
        "owner@site.example"
    ]

    # And back: a backup of the restored one, over a database that went on since.
    after = settled(new)
    file = fetch(new, tmp_path / "backups again")
    count_one(new, "/undone")
    new.stop()
    for leftover in (tmp_path / "new").glob("frontdesk.db-*"):
        leftover.unlink()
    shutil.copy(file, tmp_path / "new/frontdesk.db")
    again = serve(DATABASE_URL=f"sqlite:///{tmp_path}/new/frontdesk.db", **common)
    assert settled(again) == after
    assert again.stop() == 0
    delete_limits(tmp_path / "new/frontdesk.db")


def test_a_fetched_backup_is_a_whole_database(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(ADMIN_TOKEN=TOKEN)
    count_one(server, "/kept")
    with closing(sqlite3.connect(fetch(server, tmp_path / "backups"))) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        hits = copy.execute("SELECT hits FROM page WHERE page = '/kept'")
        assert hits.fetchone() == (1,)


def test_a_refused_backup_leaves_no_file_behind(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    server = serve(ADMIN_TOKEN="another owner's token")
    environ = {**os.environ, "DESK": server.url, "ADMIN_TOKEN": TOKEN}
    folder = tmp_path / "backups"
    folder.mkdir()
    run = subprocess.run(
        ["sh", "-c", FETCH], cwd=folder, env=environ, check=False, capture_output=True
    )
    assert run.returncode != 0
    assert list(folder.iterdir()) == []


def test_readme_shows_the_line_that_is_tested() -> None:
    readme = ROOT / "README.md"
    if not readme.exists() or "curl -fsS" not in readme.read_text():
        pytest.skip("the README does not speak of backups yet")
    assert FETCH in readme.read_text().replace("\\%", "%")


def test_on_postgres_there_is_no_file_to_fetch(heroku: Callable[..., Server]) -> None:
    server = heroku()
    answer = requests.get(f"{server.url}/export/backup.sqlite3", headers=OWNER)
    assert answer.status_code == 404
    assert answer.json()["errors"][0]["code"] == "NOT_FOUND"
