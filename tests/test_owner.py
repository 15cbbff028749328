"""Health, doctor, exports, backup and erasure: for the owner's eyes only."""

from __future__ import annotations

import base64
import csv
import io
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import models
from frontdesk.counter import Hit
from frontdesk.database import current, execute
from frontdesk.settings import VERSION, Window
from frontdesk.tables import DAY, Setting, Table, day_of, iso
from models import Delivery, Message, Receipt, Subscriber
from owner import _as_csv
from tests.support.databases import limit_pages, migrate
from tests.support.desk import NOON, TOKEN, Clock, Desk

EMAIL = "ada@example.com"
FOR_OWNER = [
    ("GET", "/export/messages.json"),
    ("GET", "/export/backup.sqlite3"),
    ("GET", "/export/nothing.at.all"),
    ("DELETE", f"/people/{EMAIL}"),
    ("GET", "/doctor"),
    ("POST", "/doctor"),
    ("GET", "/desk"),
]


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    """A service whose rate limits are out of the way."""
    wide = (Window(10_000, 60),)
    return make_desk(contact_limit=wide, newsletter_limit=wide, hits_limit=wide)


def write(desk: Desk, text: str = "Hello", **form: str) -> str:
    """Send a message and return its id."""
    answer = desk.post("/contact", {"email": EMAIL, "message": text, **form})
    assert answer.status_code == 200
    return str(answer.json["id"])


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# --- who may look ----------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), FOR_OWNER)
@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        TOKEN,
        f"Digest {TOKEN}",
        basic(TOKEN, ""),
        basic("admin", "wrong"),
        "Basic %%%",
        "Basic /////w==",
    ],
)
def test_without_the_token_nothing_is_shown_or_done(
    make_desk: Callable[..., Desk], method: str, path: str, given: str | None
) -> None:
    desk = make_desk()
    write(desk)
    headers = {} if given is None else {"Authorization": given}
    answer = desk.client.simulate_request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.json["errors"][0]["code"] == "UNAUTHORIZED"
    assert answer.headers["www-authenticate"].startswith("Basic ")
    assert answer.headers["cache-control"] == "no-store"
    assert EMAIL not in answer.text
    assert Message.select().count() == 1
    assert Delivery.select().where(Delivery.kind == "test").count() == 0


@pytest.mark.parametrize(
    "given",
    [f"Bearer {TOKEN}", f"bearer {TOKEN}", basic("", TOKEN), basic("owner", TOKEN)],
    ids=["bearer", "lower-case", "basic", "basic-with-a-name"],
)
def test_the_token_opens_as_bearer_or_as_password(desk: Desk, given: str) -> None:
    headers = {"Authorization": given}
    answer = desk.client.simulate_get("/export/messages.json", headers=headers)
    assert answer.status_code == 200
    assert answer.json == []


@pytest.mark.parametrize(("method", "path"), FOR_OWNER)
@pytest.mark.parametrize("given", [None, "Bearer ", "Bearer None", basic("", "")])
def test_without_a_token_configured_there_is_nothing(
    make_desk: Callable[..., Desk], method: str, path: str, given: str | None
) -> None:
    desk = make_desk(admin_token=None)
    headers = {} if given is None else {"Authorization": given}
    answer = desk.client.simulate_request(method, path, headers=headers)
    assert answer.status_code == 404
    assert "www-authenticate" not in answer.headers


@pytest.mark.parametrize(("method", "path"), FOR_OWNER)
@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
    ids=lambda headers: "-".join(*headers.items()),
)
def test_another_sites_page_cannot_use_a_saved_password(
    desk: Desk, method: str, path: str, headers: dict[str, str]
) -> None:
    given = {"Authorization": f"Bearer {TOKEN}", **headers}
    answer = desk.client.simulate_request(method, path, headers=given)
    assert answer.status_code == 403


@pytest.mark.parametrize(("method", "path"), FOR_OWNER)
@pytest.mark.parametrize(
    "source",
    [
        ("Origin", "https://site.example"),
        ("Origin", "null"),
        ("Referer", "https://site.example/page"),
    ],
)
def test_without_sec_fetch_site_a_foreign_origin_changes_nothing(
    desk: Desk, method: str, path: str, source: tuple[str, str]
) -> None:
    given = {"Authorization": f"Bearer {TOKEN}", **dict([source])}
    answer = desk.client.simulate_request(method, path, headers=given)
    assert (answer.status_code == 403) is (method not in ("GET", "HEAD"))


@pytest.mark.parametrize(("method", "path"), FOR_OWNER)
def test_a_link_in_a_mail_opens_what_only_shows(
    desk: Desk, method: str, path: str
) -> None:
    given = {
        "Authorization": f"Bearer {TOKEN}",
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    answer = desk.client.simulate_request(method, path, headers=given)
    assert (answer.status_code == 403) is (method not in ("GET", "HEAD"))


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_our_own_pages_and_typed_addresses_open(desk: Desk, site: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": site}
    answer = desk.client.simulate_get("/export/messages.json", headers=headers)
    assert answer.status_code == 200


def test_after_ten_failures_even_the_right_token_has_to_wait(
    desk: Desk, clock: Clock
) -> None:
    path = "/export/messages.json"
    wrong = {"Authorization": "Bearer wrong"}
    for _ in range(10):
        assert desk.client.simulate_get(path, headers=wrong).status_code == 401
    refused = desk.owner("GET", path)
    assert refused.status_code == 429
    assert refused.headers["ratelimit-policy"] == '"admin";q=10;w=60'
    assert refused.headers["ratelimit"].startswith('"admin";r=0;t=')
    seconds = int(refused.headers["retry-after"])
    assert 1 <= seconds <= 60
    # Another client is not locked out by that.
    right = {"Authorization": f"Bearer {TOKEN}"}
    elsewhere = desk.client.simulate_get(path, headers=right, remote_addr="203.0.113.1")
    assert elsewhere.status_code == 200
    clock.advance(seconds)
    assert desk.owner("GET", path).status_code == 200


def test_requests_without_a_token_keep_the_right_one_from_nothing(desk: Desk) -> None:
    path = "/export/messages.json"
    codes = [desk.client.simulate_get(path).status_code for _ in range(11)]
    assert codes == [401] * 10 + [429]
    assert desk.owner("GET", path).status_code == 200


def test_the_right_token_is_never_limited(desk: Desk) -> None:
    codes = {desk.owner("GET", "/export/hits.json").status_code for _ in range(40)}
    assert codes == {200}


# --- health ----------------------------------------------------------------------


def test_health_tells_how_it_goes(desk: Desk, clock: Clock) -> None:
    write(desk)
    clock.advance(90)
    answer = desk.client.simulate_get("/health")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json["status"] == "ok"
    assert answer.json["version"] == VERSION
    assert answer.json["database"] == "ok"
    outbox = desk.health()["outbox"]
    assert (outbox["waiting"], outbox["oldest_seconds"], outbox["dead"]) == (1, 90, 0)
    desk.drain()
    outbox = desk.health()["outbox"]
    assert (outbox["waiting"], outbox["oldest_seconds"], outbox["dead"]) == (0, 0, 0)


def test_health_is_never_limited_and_works_for_head(desk: Desk) -> None:
    codes = {desk.client.simulate_get("/health").status_code for _ in range(200)}
    assert codes == {200}
    head = desk.client.simulate_head("/health")
    assert (head.status_code, head.content) == (200, b"")


def test_health_tells_no_secrets(desk: Desk) -> None:
    text = desk.client.simulate_get("/health").text
    for secret in (*desk.settings.secret_keys, TOKEN, "owner@", "postgres://", "/tmp"):
        assert secret not in text


@pytest.mark.parametrize("table", ["delivery", "setting"])
def test_health_is_503_when_the_database_fails(desk: Desk, table: str) -> None:
    execute(f"ALTER TABLE {table} RENAME TO gone")
    answer = desk.client.simulate_get("/health")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json["status"] == answer.json["database"] == "error"
    assert answer.json["outbox"] in ("ok", "late")
    assert set(desk.health()["outbox"]) >= {"waiting", "oldest_seconds", "dead"}


@contextmanager
def full_disk() -> Iterator[None]:
    """Let the SQLite file grow no further, and have no page to spare."""
    execute("VACUUM")
    (pages,) = execute("PRAGMA page_count").fetchone()
    limit_pages(pages)
    try:
        yield
    finally:
        limit_pages(1_000_000)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_health_notices_a_full_disk(desk: Desk) -> None:
    with full_disk():
        assert desk.client.simulate_get("/health").status_code == 503
    assert desk.client.simulate_get("/health").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_cannot_be_stored_is_503_and_comes_again(desk: Desk) -> None:
    form = {"email": EMAIL, "message": "x" * 9000}
    with full_disk():
        answer = desk.post("/contact", form)
        assert answer.status_code == 503
        assert answer.json["errors"][0]["code"] == "NOT_STORED"
        assert int(answer.headers["retry-after"]) > 0
        assert Message.select().count() == Delivery.select().count() == 0
    assert desk.post("/contact", form).status_code == 200
    assert len(desk.drain()) == 1


# --- exports ---------------------------------------------------------------------


def test_messages_are_exported_whole(desk: Desk, clock: Clock) -> None:
    message_id = write(
        desk, "Grüße 👋\nzweite Zeile", name="Ada", subject="Hallo", colour="blue"
    )
    clock.advance(1)
    held = desk.post("/contact", {"email": EMAIL, "message": "x", "_gotcha": "y"})
    desk.drain()
    first, second = desk.messages()
    assert isinstance(first.pop("spam_score"), int)
    assert isinstance(first.pop("spam_reasons"), list)
    assert first == {
        "id": message_id,
        "received_at": iso(NOON),
        "name": "Ada",
        "email": EMAIL,
        "subject": "Hallo",
        "message": "Grüße 👋\nzweite Zeile",
        "fields": {"colour": "blue"},
        "page": "",
        "held": False,
        "mailed_at": iso(NOON + 1),
        "delivery": None,
        "delivery_reason": None,
    }
    assert second["id"] == held.json["id"]
    assert (second["held"], second["mailed_at"]) == (True, None)
    assert second["spam_reasons"]


@pytest.mark.parametrize("name", ["messages", "subscribers", "hits"])
def test_an_empty_export_is_valid(desk: Desk, name: str) -> None:
    answer = desk.owner("GET", f"/export/{name}.json")
    assert answer.json == []
    assert answer.headers["content-type"].startswith("application/json")
    answer = desk.owner("GET", f"/export/{name}.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    [header] = csv.reader(io.StringIO(answer.text))
    assert {"messages": "email", "subscribers": "email", "hits": "page"}[name] in header


def test_exports_are_downloads_and_private(desk: Desk) -> None:
    answer = desk.owner("GET", "/export/messages.csv")
    assert "frontdesk-messages.csv" in answer.headers["content-disposition"]
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["cache-control"] == "no-store"
    head = desk.owner("HEAD", "/export/messages.csv")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    "name",
    ["messages", "messages.xml", "settings.json", "deliveries.json", ".json", "hits."],
)
def test_there_are_no_other_exports(desk: Desk, name: str) -> None:
    assert desk.owner("GET", f"/export/{name}").status_code == 404


def fill(table: type[Table], rows: list[dict[str, Any]]) -> None:
    for start in range(0, len(rows), 100):
        table.insert_many(rows[start : start + 100]).execute()


def message_row(n: int, **values: Any) -> dict[str, Any]:
    return {
        "id": f"{n:028x}",
        "received_at": NOON,
        "name": "",
        "email": f"a{n}@example.com",
        "subject": "",
        "message": "Hello",
        "fields": "{}",
        "page": "",
        "client": "203.0.113.0",
        "spam_score": 0,
        "spam_reasons": "[]",
        "echo": "",
        "doubtful": False,
        **values,
    }


@pytest.mark.parametrize("count", [499, 500, 501, 1203])
def test_an_export_of_several_chunks_has_each_row_once(desk: Desk, count: int) -> None:
    fill(Message, [message_row(n) for n in range(count)])
    hits = [
        {"page": f"/{n % 7}", "day": f"2026-01-{n // 7:03}", "hits": n, "visitors": 0}
        for n in range(count)
    ]
    fill(Hit, hits)
    exported = desk.owner("GET", "/export/messages.json").json
    assert [row["email"] for row in exported] == [
        f"a{n}@example.com" for n in range(count)
    ]
    rows = list(csv.DictReader(io.StringIO(desk.owner("GET", "/export/hits.csv").text)))
    assert sorted(int(row["hits"]) for row in rows) == list(range(count))
    assert list(rows[0]) == ["page", "date", "hits", "visitors"]


def test_an_export_is_streamed(desk: Desk) -> None:
    fill(Message, [message_row(n, message="x" * 9000) for n in range(600)])
    rows = models.export("messages")
    assert next(rows)["email"] == "a0@example.com"
    # The rest was not read yet: what is deleted now is not seen.
    Message.delete().where(Message.id >= f"{500:028x}").execute()
    assert sum(1 for _ in rows) == 499


@pytest.mark.parametrize(
    "text",
    [
        '=HYPERLINK("http://evil.example")',
        "+1+1",
        "-1+1",
        "@SUM(A1)",
        "  =1+1",
        "＝1+1",
        "=cmd|' /C calc'!A0",
    ],
)
def test_no_cell_of_a_csv_is_a_formula(desk: Desk, text: str) -> None:
    write(desk, text, name=text, subject=text)
    answer = desk.owner("GET", "/export/messages.csv")
    [row] = csv.DictReader(io.StringIO(answer.text))
    for column in ("message", "name", "subject"):
        assert row[column].startswith("'")
        assert row[column][1:] == text.strip()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    "text",
    ["x;=1+1", "x\n=1+1", "x\t@SUM(A1)", "x, -1+1", "a;\n+1", 'x;"=1+1', 'x; " "@A1'],
)
def test_no_cell_is_a_formula_with_another_separator_either(
    desk: Desk, separator: str, text: str
) -> None:
    write(desk, text, name="Ada;=1+1")
    answer = desk.owner("GET", "/export/messages.csv")
    for line in answer.text.splitlines():
        for cell in line.split(separator):
            assert cell.strip(' "')[:1] not in tuple("=+-@"), cell


def test_defusing_a_cell_costs_no_more_than_its_length() -> None:
    def seconds(length: int) -> float:
        started = time.process_time()
        list(_as_csv([{"message": "a" + "\n" * length + "b"}], ["message"]))
        return time.process_time() - started

    assert min(seconds(10_000) for _ in range(3)) < 100 * seconds(500)


def test_a_formula_in_a_visitors_page_is_defused_too(desk: Desk) -> None:
    fill(Hit, [{"page": "=1+1", "day": "2026-01-01", "hits": 3, "visitors": 2}])
    [row] = csv.DictReader(io.StringIO(desk.owner("GET", "/export/hits.csv").text))
    assert row == {"page": "'=1+1", "date": "2026-01-01", "hits": "3", "visitors": "2"}


def test_unicode_quotes_and_newlines_survive_a_csv(desk: Desk) -> None:
    text = 'Ünïcode "quoted", comma;\nnew line 👋 日本'
    write(desk, text, name="Zoë")
    answer = desk.owner("GET", "/export/messages.csv")
    [row] = csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig")))
    assert (row["message"], row["name"]) == (text, "Zoë")


def test_subscribers_and_hits_are_exported(desk: Desk) -> None:
    desk.post("/newsletter", {"email": EMAIL, "name": "Ada"})
    desk.post("/hits", {"page": "/about"})
    assert desk.subscribers() == [
        {
            "email": EMAIL,
            "name": "Ada",
            "status": "pending",
            "asked_at": iso(NOON),
            "confirmed_at": None,
            "left_at": None,
            "page": "",
            "unsubscribe_url": None,
        }
    ]
    assert desk.owner("GET", "/export/hits.json").json == [
        {"page": "/about", "date": day_of(NOON), "hits": 1, "visitors": 1}
    ]


# --- backup ----------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_backup_is_the_whole_database(desk: Desk, tmp_path: Path) -> None:
    message_id = write(desk)
    answer = desk.owner("GET", "/export/backup.sqlite3")
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert "attachment" in answer.headers["content-disposition"]
    copy = tmp_path / "copy.db"
    copy.write_bytes(answer.content)
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = connection.execute("SELECT id FROM message").fetchall()
    assert found == [(message_id,)]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_service_runs_on_its_backup(
    make_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = make_desk()
    write(desk)
    copy = tmp_path / "restored.db"
    copy.write_bytes(desk.owner("GET", "/export/backup.sqlite3").content)
    migrate(f"sqlite:///{copy}")
    restored = make_desk(database_url=f"sqlite:///{copy}")
    assert [row["email"] for row in restored.messages()] == [EMAIL]
    assert len(restored.drain()) == 1  # the outbox came with it


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_head_of_a_backup_has_no_body(desk: Desk) -> None:
    answer = desk.owner("HEAD", "/export/backup.sqlite3")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_there_is_no_backup_of_postgres(desk: Desk) -> None:
    answer = desk.owner("GET", "/export/backup.sqlite3")
    assert answer.status_code == 404
    assert answer.json["errors"][0]["code"] == "NOT_FOUND"


# --- erasure ---------------------------------------------------------------------


def test_erasing_a_person_leaves_nothing_of_them(desk: Desk) -> None:
    write(desk, "one")
    write(desk, "two", email="ADA@Example.com")
    write(desk, "from bob", email="bob@example.com")
    desk.post("/newsletter", {"email": EMAIL})
    answer = desk.owner("DELETE", "/people/Ada@example.com")
    assert answer.status_code == 200
    assert (answer.json["messages"], answer.json["subscribers"]) == (2, 1)
    assert [row["email"] for row in desk.messages()] == ["bob@example.com"]
    assert Subscriber.select().count() == 0
    # Their mails that still waited are not sent either.
    assert [mail["ReplyTo"]["Email"] for mail in desk.drain()] == ["bob@example.com"]
    again = desk.owner("DELETE", f"/people/{EMAIL}")
    assert (again.json["messages"], again.json["subscribers"]) == (0, 0)
    everything = [
        str(list(table.select().dicts()))
        for table in (Message, Subscriber, Delivery, Receipt, Setting)
    ]
    assert "ada@" not in " ".join(everything).lower()  # "ada" alone can be in a hash


def test_erasing_covers_more_messages_than_a_statement_takes(desk: Desk) -> None:
    fill(Message, [message_row(n, email=EMAIL) for n in range(1201)])
    answer = desk.owner("DELETE", f"/people/{EMAIL}")
    assert answer.json["messages"] == 1201
    assert Message.select().count() == 0


def test_an_address_beyond_ascii_is_erased(desk: Desk) -> None:
    write(desk, email="Élodie@example.com")
    answer = desk.owner("DELETE", "/people/%C3%89lodie@example.com")
    assert answer.json["messages"] == 1
    assert desk.messages() == []


def test_who_was_erased_can_write_again(desk: Desk) -> None:
    first = write(desk)
    desk.owner("DELETE", f"/people/{EMAIL}")
    assert write(desk) != first
    assert len(desk.messages()) == 1


def test_erasing_takes_a_subscriber_off_the_list(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(mailjet_list_id="77")
    desk.post("/newsletter", {"email": EMAIL})
    desk.drain()
    Subscriber.update(confirmed_at=NOON).execute()
    desk.owner("DELETE", f"/people/{EMAIL}")
    desk.drain()
    assert desk.mailbox.synced == [("77", EMAIL, "erased")]
    assert Delivery.select().count() == 0


def test_erasing_forgets_a_list_change_that_mailjet_never_took(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(mailjet_list_id="77")
    desk.post("/newsletter", {"email": EMAIL})
    Subscriber.update(confirmed_at=NOON).execute()
    Delivery.delete().execute()
    Delivery.add("list", EMAIL, NOON)
    Delivery.update(due_at=None, error="Mailjet answered 400").execute()
    desk.owner("DELETE", f"/people/{EMAIL}")
    desk.drain()
    assert Delivery.select().count() == 0


@pytest.mark.parametrize("email", ["nobody", "%00@example.com", "a b@example.com"])
def test_no_address_erases_nobody(desk: Desk, email: str) -> None:
    write(desk)
    answer = desk.owner("DELETE", f"/people/{email}")
    assert answer.status_code == 422
    assert answer.json["errors"][0]["code"] == "TYPE_EMAIL"
    assert len(desk.messages()) == 1


def test_people_can_only_be_deleted(desk: Desk) -> None:
    answer = desk.owner("GET", f"/people/{EMAIL}")
    assert answer.status_code == 405
    assert "DELETE" in answer.headers["allow"]


# --- doctor ----------------------------------------------------------------------


def checks(answer: Any) -> dict[str, bool]:
    assert answer.status_code == 200
    assert all(check["message"] for check in answer.json["checks"])
    return {check["name"]: check["ok"] for check in answer.json["checks"]}


def test_the_doctor_says_what_is_well(desk: Desk) -> None:
    answer = desk.client.simulate_get(
        "/doctor",
        headers={"Authorization": f"Bearer {TOKEN}"},
        remote_addr="203.0.113.7",
    )
    found = checks(answer)
    assert found["database"] is found["schema"] is found["outbox"] is True
    assert found["public_url"] is found["allowed_origins"] is True
    assert answer.json["ok"] is all(found.values())
    assert answer.json["client"]["address"] == "203.0.113.7"


def test_the_doctor_says_what_to_mend(
    make_desk: Callable[..., Desk], database_url: str, clock: Clock
) -> None:
    desk = make_desk(
        allowed_origins=("*",), public_url="http://localhost:8000", ephemeral=True
    )
    write(desk)
    clock.advance(DAY)
    answer = desk.owner("GET", "/doctor")
    found = checks(answer)
    assert answer.json["ok"] is False
    assert found["allowed_origins"] is found["public_url"] is False
    assert found["outbox"] is False
    sqlite = current().is_sqlite
    assert found["database"] is not sqlite


def test_the_doctor_sends_a_test_mail(desk: Desk) -> None:
    assert desk.owner("GET", "/doctor").status_code == 200
    assert desk.drain() == []
    answer = desk.owner("POST", "/doctor")
    assert answer.status_code == 200
    assert answer.json["ok"] is True
    [mail] = desk.drain()
    assert mail["To"] == [{"Email": "owner@site.example"}]
    assert mail["Subject"] == "[site.example] Email works"
    assert "https://desk.example" in mail["TextPart"]


def test_the_doctor_tells_no_secrets(desk: Desk) -> None:
    text = desk.owner("GET", "/doctor").text
    for secret in (*desk.settings.secret_keys, TOKEN, "postgres://"):
        assert secret not in text
