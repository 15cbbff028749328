"""What an attack from outside found: a silent database, traps, a wrong clock."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from falcon.testing import StartResponseMock, create_environ

import models
from frontdesk.database import SqliteFile, open_database
from frontdesk.limits import LimitsFile, RateLimits, private_folder
from frontdesk.settings import Settings, Window, origin_of
from frontdesk.tables import DAY
from models import Delivery, Message, Receipt
from tests.support.databases import Postgres
from tests.support.desk import TOKEN, Clock, Desk
from tests.support.mailjet import StandIn
from tests.support.server import Server, mail_settings

FORM = {"email": "ada@example.com", "message": "Hello there"}
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
YEAR = 365 * DAY
LOCK = "LOCK TABLE message, setting, bucket, delivery IN ACCESS EXCLUSIVE MODE"

# --- Postgres that is there but silent -------------------------------------------


@contextmanager
def stopped(postgres: Postgres) -> Iterator[None]:
    """Stop every process of the cluster: the system still takes connections."""
    pid = int((postgres.folder / "data" / "postmaster.pid").read_text().split()[0])
    listed = subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(pid)])
    everyone = [pid, *map(int, listed.split())]

    def send(number: int) -> None:
        for each in everyone:
            with suppress(ProcessLookupError):  # a backend that has just ended
                os.kill(each, number)

    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.monotonic()
    found = work()
    return time.monotonic() - started, found


def assert_health_tells_in_time(server: Server) -> None:
    """Both what a platform asks and what the owner does: 503 within 2 s."""
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}):
        ask = partial(requests.get, f"{server.url}/health", headers=headers)
        took, answer = seconds(ask)
        assert (answer.status_code, took < 2) == (503, True), (headers, took)


def test_a_postgres_that_keeps_silent_holds_nobody_up(
    postgres: Postgres, serve: Callable[..., Server], mailjet: StandIn
) -> None:
    settings = {"DATABASE_URL": postgres.fresh_url(), "ADMIN_TOKEN": TOKEN}
    server = serve(CONTACT_LIMIT="1000/minute", **settings, **mail_settings(mailjet))

    def post(n: int) -> tuple[float, int]:
        form = {**FORM, "message": f"Hello {n}"}
        took, answer = seconds(
            lambda: requests.post(f"{server.url}/contact", json=form)
        )
        return took, answer.status_code

    assert post(0)[1] == 200
    with stopped(postgres), ThreadPoolExecutor(16) as pool:
        assert_health_tells_in_time(server)
        posts = [pool.submit(post, n) for n in range(1, 17)]
        for _ in range(3):
            took, answer = seconds(lambda: requests.get(f"{server.url}/thanks"))
            assert answer.status_code == 200
            assert took < 1.5, took
        for done in posts:
            took, status = done.result()
            assert (status, took < 5) == (503, True), took
    deadline = time.monotonic() + 10
    while post(99)[1] != 200:
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)


def test_a_lock_in_postgres_ends_with_503(
    postgres: Postgres, serve: Callable[..., Server]
) -> None:
    import psycopg

    url = postgres.fresh_url()
    server = serve(DATABASE_URL=url, CONTACT_LIMIT="1000/minute", ADMIN_TOKEN=TOKEN)
    with psycopg.connect(url) as locker:
        locker.execute(LOCK)
        took, answer = seconds(
            lambda: requests.post(f"{server.url}/contact", json=FORM)
        )
        assert (answer.status_code, took < 5) == (503, True), took
        assert answer.headers["Retry-After"]
        assert_health_tells_in_time(server)
        with ThreadPoolExecutor(16) as pool:
            posts = [
                pool.submit(requests.post, f"{server.url}/contact", json=FORM)
                for _ in range(16)
            ]
            took, answer = seconds(lambda: requests.get(f"{server.url}/thanks"))
            assert (answer.status_code, took < 1.5) == (200, True), took
            assert {done.result().status_code for done in posts} == {503}
        locker.rollback()
    assert requests.post(f"{server.url}/contact", json=FORM).status_code == 200


def test_a_silent_postgres_ends_the_start(
    postgres: Postgres, serve: Callable[..., Server]
) -> None:
    url = postgres.fresh_url()
    with stopped(postgres):
        server = serve(wait=False, DATABASE_URL=url)
        assert server.process.wait(20) != 0
    assert "DATABASE_URL: cannot use the Postgres database: " in server.log
    assert "Traceback" not in server.log


# --- SQLite that is locked, or another file --------------------------------------


@pytest.mark.slow
@ON_SQLITE
def test_a_locked_file_ends_with_503_and_keeps_nobody_else_waiting(desk: Desk) -> None:
    path = desk.app.service.database.path
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")

    def post(n: int) -> tuple[float, int]:
        address = f"192.0.2.{n}"
        form = {**FORM, "message": f"Hello {n}"}
        took, answer = seconds(
            lambda: desk.client.simulate_post(
                "/contact", json=form, remote_addr=address
            )
        )
        desk.app.service.database.hang_up()
        return took, answer.status_code

    with ThreadPoolExecutor(8) as pool:  # as many as serve; three waves of them
        took, statuses = seconds(lambda: [*pool.map(post, range(1, 25))])
    assert {status for _, status in statuses} == {503}
    assert max(took for took, _ in statuses) < 6
    assert took < 9  # not three times as long: a page behind them would wait for it
    locker.execute("ROLLBACK")
    locker.close()
    assert post(30)[1] == 200


@ON_SQLITE
@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_was_deleted_or_replaced_takes_nothing(
    desk: Desk, replaced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = desk.app.service.database.path
    assert path is not None
    assert desk.post("/contact", FORM).status_code == 200
    content = path.read_bytes()
    path.unlink()
    if replaced:
        path.write_bytes(content)
    for n in range(2):
        answer = desk.post("/contact", {**FORM, "message": f"Hello {n}"})
        assert answer.status_code == 503
        assert desk.client.simulate_get("/health").status_code == 503
    lines = [r.getMessage() for r in caplog.records if "deleted or replaced" in r.msg]
    assert lines == [f"{path} was deleted or replaced: restart the service"]


@ON_SQLITE
def test_a_copy_is_made_beside_the_database_and_does_not_outlive_a_kill(
    desk: Desk, tmp_path: Path
) -> None:
    database = desk.app.service.database
    assert isinstance(database, SqliteFile)
    folder = database.path.parent
    with database.backup() as copy:
        assert copy.parent == folder
        assert not copy.stat().st_mode & 0o077
        database.migrate()  # another process starts meanwhile
        assert copy.exists()
    assert not copy.exists()
    copy.write_bytes(b"left over")
    database.migrate()
    assert not copy.exists()


# --- other users of the machine --------------------------------------------------


@ON_SQLITE
def test_what_the_service_makes_is_its_users_own(desk: Desk) -> None:
    desk.post("/contact", FORM)
    path = desk.app.service.database.path
    assert path is not None
    made = [*path.parent.glob("frontdesk.db*"), *_limits(path)]
    assert len(made) > 4
    for part in made:
        assert not part.stat().st_mode & 0o077, part


@ON_SQLITE
def test_an_old_file_that_others_may_read_is_closed_to_them(
    make_desk: Callable[..., Desk], database_url: str
) -> None:
    path = Path(database_url.removeprefix("sqlite:///"))
    path.chmod(0o644)
    make_desk()
    assert path.stat().st_mode & 0o777 == 0o600


def _limits(path: Path) -> list[Path]:
    limits = LimitsFile(path).path
    return [*limits.parent.glob(f"{limits.stem}*")]


def test_a_folder_of_somebody_elses_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").write_text("")
    assert private_folder(tmp_path / "new") == tmp_path / "new"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    for trap in ("link", "open", "file", "missing/deep"):
        assert private_folder(tmp_path / trap) is None, trap
    if os.getuid() == 0:
        os.chown(tmp_path / "new", 1, 1)
        assert private_folder(tmp_path / "new") is None


@ON_SQLITE
@pytest.mark.parametrize("suffix", ["", "-wal", ".lock"])
@pytest.mark.parametrize("trap", ["link", "open"])
def test_a_trap_in_place_of_the_limits_is_neither_followed_nor_filled(
    desk: Desk, tmp_path: Path, suffix: str, trap: str
) -> None:
    path = desk.app.service.database.path
    assert path is not None
    limits = LimitsFile(path).path
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o666)
    laid = (
        limits.with_suffix(".lock") if suffix == ".lock" else Path(f"{limits}{suffix}")
    )
    if trap == "link":
        laid.symlink_to(victim)
    else:
        laid.write_text("precious")
        laid.chmod(0o666)
        victim = laid
    answer = desk.post("/contact", FORM)
    assert answer.status_code == 200  # a limiter in trouble costs no message
    assert victim.read_text() == "precious"
    laid.unlink()


# --- a clock that was ahead ------------------------------------------------------


@pytest.fixture
def ahead(desk: Desk, clock: Clock) -> Iterator[Callable[[], None]]:
    """Put the clock right again."""
    clock.advance(YEAR)
    yield lambda: clock.advance(-YEAR)


@pytest.mark.parametrize("windows", [(Window(2, 60),), (Window(2, 60), Window(9, DAY))])
def test_a_limit_that_was_spent_in_the_future_counts_as_over(
    database_url: str, windows: tuple[Window, ...], clock: Clock
) -> None:
    database = open_database(database_url)
    limits = RateLimits(database)
    for _ in range(3):
        limits.take("k", windows, clock() + YEAR)
    took = [limits.take("k", windows, clock()) for _ in range(3)]
    assert [allowance.allowed for allowance in took] == [True, True, False]
    assert took[2].retry_after <= 30
    count = "SELECT count(*) FROM bucket"
    limits.take("other", windows, clock() + YEAR)
    assert limits.execute(count).fetchone()[0] == len(windows)
    limits.sweep(clock())
    assert limits.execute(count).fetchone()[0] == 0
    limits.close()
    database.close()


def test_a_delivery_put_off_or_leased_in_the_future_is_delivered(
    desk: Desk, clock: Clock, ahead: Callable[[], None]
) -> None:
    desk.post("/contact", FORM)
    assert Delivery.claim(clock()) is not None  # and who had it has died
    ahead()
    assert len(desk.drain()) == 1
    Delivery.add("test", "", clock())
    Delivery.update(due_at=clock() + YEAR).execute()
    assert len(desk.drain()) == 2


def test_a_lease_of_now_is_respected(desk: Desk, clock: Clock) -> None:
    desk.post("/contact", FORM)
    assert Delivery.claim(clock()) is not None
    assert desk.drain() == []


def test_an_outbox_that_was_paused_in_the_future_goes_on(
    desk: Desk, clock: Clock, ahead: Callable[[], None]
) -> None:
    desk.app.outbox.paused_until = clock() + 20
    ahead()
    desk.post("/contact", FORM)
    assert len(desk.drain()) == 1


def test_a_receipt_of_the_future_is_no_receipt(clock: Clock, desk: Desk) -> None:
    keys = {"k": DAY}
    then = clock() + YEAR

    def known(now: float) -> str | None:
        return Message.known(keys, "", "192.0.2.0", "", now).message_id

    assert Receipt.claim_all(keys, "first", then) == "first"
    assert known(then) == "first"
    assert known(clock()) is None
    assert Receipt.claim_all(keys, "second", clock()) == "second"
    assert known(clock()) == "second"


def test_a_clock_ahead_for_a_moment_deletes_no_message(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk(retention_days=30)
    desk.post("/contact", FORM)
    desk.drain()
    desk.app.outbox.go_round()
    clock.advance(YEAR)
    desk.app.outbox.go_round()
    models.clean_up(clock() + 5, 30)  # another worker's round
    clock.advance(-YEAR)
    desk.app.outbox.go_round()
    assert Message.select().count() == 1
    clock.advance(20 * DAY)
    desk.app.outbox.go_round()
    assert Message.select().count() == 1
    for _ in range(6):  # a quiet site's messages go, too
        clock.advance(3 * DAY)
        desk.app.outbox.go_round()
    assert Message.select().count() == 0


def test_a_signup_of_the_future_may_be_mailed_again(
    desk: Desk, clock: Clock, ahead: Callable[[], None]
) -> None:
    desk.post("/newsletter", {"email": "ada@example.com"})
    desk.drain()
    ahead()
    desk.post("/newsletter", {"email": "ada@example.com"})
    assert len(desk.drain()) == 2


# --- methods, origins, tokens ----------------------------------------------------


@ON_SQLITE
@pytest.mark.parametrize("method", ["WEBSOCKET", "BREW", "get", "CONNECT", "PROPFIND"])
@pytest.mark.parametrize("path", ["/contact", "/hits.svg", "/export/x.csv", "/nothing"])
def test_every_other_method_is_the_clients_error(
    desk: Desk, method: str, path: str
) -> None:
    environ = create_environ(path)
    environ["REQUEST_METHOD"] = method
    start = StartResponseMock()
    b"".join(desk.app(environ, start))
    assert start.status.startswith("4"), start.status


def test_an_odd_origin_costs_little() -> None:
    odd = "https://" + ".".join("ü" * 5 for _ in range(4000))
    long = f"https://{'ü' * 250}.example"
    took = min(seconds(lambda n=n: origin_of(f"{odd}{n}"))[0] for n in range(3))
    assert origin_of(odd) is None
    assert took < 0.01  # 46 ms when all of it was looked at
    assert origin_of(long) is None


def test_a_host_is_read_as_browsers_read_it() -> None:
    assert origin_of("https://straße.example") == "https://xn--strae-oqa.example"
    assert origin_of("https://BÜCHER.example") == "https://xn--bcher-kva.example"
    assert origin_of("https://my_site.example") == "https://my_site.example"
    settings = Settings.from_environ({"ALLOWED_ORIGINS": "https://straße.example"})
    origins = settings.origins
    assert origins.allows("https://xn--strae-oqa.example/a")
    assert not origins.allows("https://strasse.example")


def test_no_more_than_ten_wrong_tokens_are_compared_however_many_at_once(
    desk: Desk,
) -> None:
    def wrong(n: int) -> int:
        try:
            return desk.client.simulate_get(
                "/doctor", headers={"Authorization": f"Bearer wrong {n}"}
            ).status_code
        finally:
            desk.app.service.database.hang_up()

    with ThreadPoolExecutor(6) as pool:
        statuses = [*pool.map(wrong, range(40))]
    assert statuses.count(401) == 10
    assert statuses.count(429) == 30


def test_the_right_token_gets_its_request_back(desk: Desk) -> None:
    for _ in range(30):
        answer = desk.client.simulate_get(
            "/export/hits.json", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        assert answer.status_code == 200


# --- a body that nobody reads ----------------------------------------------------

UNREAD = [
    ("POST", "/nothing", {}, 404),
    ("PUT", "/contact", {}, 405),
    ("GET", "/nothing", {"Accept": "text/html"}, 404),
    ("POST", "/contact", {"Origin": "https://other.example"}, 403),
    ("POST", "/newsletter/unsubscribe/forged", {}, 404),
]
LARGE = [{"Content-Length": "65537"}, {"Transfer-Encoding": "chunked"}]


@ON_SQLITE
@pytest.mark.parametrize("large", LARGE)
@pytest.mark.parametrize(("method", "path", "more", "status"), UNREAD)
def test_a_large_body_that_nobody_reads_costs_its_client_a_request(
    desk: Desk,
    method: str,
    path: str,
    more: dict[str, str],
    status: int,
    large: dict[str, str],
) -> None:
    def ask(size: dict[str, str], address: str = "192.0.2.1") -> Any:
        headers = {"Accept": "application/json", **more, **size}
        return desk.client.simulate_request(
            method, path, headers=headers, remote_addr=address
        )

    first = ask(large)
    assert first.status_code == status
    assert first.headers["RateLimit-Policy"] == '"unread";q=60;w=60'
    assert {ask(large).status_code for _ in range(59)} == {status}
    over = ask(large)
    assert (over.status_code, over.headers["Retry-After"]) == (429, "1")
    if over.headers["Content-Type"] == "application/json":
        assert over.json["errors"][0]["code"] == "RATE_LIMITED"
    assert ask(large, "192.0.2.2").status_code == status
    for size in ({}, {"Content-Length": "0"}, {"Content-Length": "65536"}):
        assert ask(size).status_code == status
    desk.clock.advance(1)
    assert ask(large).status_code == status


@ON_SQLITE
def test_a_large_body_that_is_read_or_limited_already_costs_nothing_more(
    desk: Desk,
) -> None:
    token = desk.app.service.links.token("mailjet", "events")
    events = [{"event": "open", "MessageID": n} for n in range(3000)]
    for _ in range(70):
        answer = desk.client.simulate_post(f"/mailjet/{token}", json=events)
        assert (answer.status_code, "RateLimit" in answer.headers) == (200, False)
    headers = {"Content-Length": "65537", "Content-Type": "application/json"}
    answer = desk.client.simulate_post("/contact", headers=headers)
    assert answer.status_code == 413
    assert answer.headers["RateLimit-Policy"].startswith('"contact-60s"')
