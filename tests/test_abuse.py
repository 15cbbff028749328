"""Spam is held, not lost; floods bother nobody; no answer tells what is known.

FRONTDESK_FULL=1 runs the floods at full size: 100,000 requests each, some minutes.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import multiprocessing
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import falcon.testing
import pytest

import models
from api import create_app
from frontdesk.counter import OTHER_PAGES
from frontdesk.database import current, execute
from frontdesk.limits import LimitsFile
from frontdesk.links import Links
from frontdesk.settings import Settings, Window, sqlite_path
from frontdesk.spam import Verdict
from models import DIGEST_ITEMS
from tests.support.desk import FULL, Clock, Desk, Mailbox

FLOOD = 100_000 if FULL else 1_000
MEGABYTE = 2**20
DAY = 86400

SITE = "https://site.example"
BROWSER = {
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "de,en;q=0.7",
    "Origin": SITE,
    "Referer": f"{SITE}/contact.html?from=menu",
    "Sec-Fetch-Mode": "navigate",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Firefox/145.0",
}
OUR_PAGE = {
    **BROWSER,
    "Origin": "https://desk.example",
    "Referer": "https://desk.example/contact",
    "Sec-Fetch-Site": "same-origin",
}
SCRIPT = {"Origin": SITE, "User-Agent": "Mozilla/5.0", "Accept-Language": "de"}

HONEST = {"email": "ada@example.com", "name": "Ada", "message": "Hello, a question."}
DOUBTFUL = {
    "email": "sam@example.com",
    "name": "Sam",
    "subject": "Our offer",
    "message": "We would like to publish an article on your site, see "
    "https://blog.example/x for the prices.",
}
BLATANT = {
    "email": "bot@example.com",
    "name": "Bot",
    "message": "Cheap pills\nfor everyone, second line.",
    "colour": "red",
    "_gotcha": "filled",
}


def typed(desk: Desk, form: dict[str, Any], **changes: Any) -> Any:
    """Submit a plain form as a browser does."""
    return desk.client.simulate_post(
        "/contact", **urlencoded(form.items()), headers={**BROWSER, **changes}
    )


def urlencoded(pairs: Any) -> dict[str, Any]:
    """Encode as WHATWG's form submission does: line ends become CRLF."""
    crlf = [tuple(re.sub("\r\n|\r|\n", "\r\n", t) for t in p) for p in pairs]
    return {
        "body": urllib.parse.urlencode(crlf),
        "content_type": "application/x-www-form-urlencoded",
    }


def multipart(pairs: Any) -> dict[str, Any]:
    """Encode as browsers do for enctype="multipart/form-data"."""
    parts = []
    for name, value in pairs:
        text = re.sub("\r\n|\r|\n", "\r\n", value)
        quoted = name.replace('"', "%22")
        head = f'--wall\r\nContent-Disposition: form-data; name="{quoted}"\r\n\r\n'
        parts.append(f"{head}{text}\r\n")
    return {
        "body": "".join([*parts, "--wall--\r\n"]).encode(),
        "content_type": "multipart/form-data; boundary=wall",
    }


class Form(HTMLParser):
    """The one form of a page: where it leads and what pressing its button sends."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.form: dict[str, str] = {}
        self.inputs: list[tuple[str, str]] = []
        self.tags: Counter[str] = Counter()
        self.feed(html.replace("\r\n", "\n"))  # as HTML's input stream is read

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.form = values
        elif tag == "input" and "name" in values:
            self.inputs.append((values["name"], values.get("value", "")))

    def press(self, desk: Desk, **changes: str) -> Any:
        """Press the button, with some fields changed first."""
        assert self.form["method"] == "post"
        encode = multipart if "enctype" in self.form else urlencoded
        pairs = [(name, changes.get(name, value)) for name, value in self.inputs]
        return desk.client.simulate_post(
            self.form["action"], **encode(pairs), headers=OUR_PAGE
        )


def asked(answer: Any) -> Form:
    """Return the form of the page that asks."""
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("text/html")
    return Form(answer.text)


# --- doubtful plain forms are asked once -----------------------------------------


def test_a_doubtful_form_is_shown_again_and_nothing_is_stored(desk: Desk) -> None:
    answer = typed(desk, DOUBTFUL)
    page = asked(answer)
    for text in DOUBTFUL.values():
        assert text in answer.text
    assert (page.tags["form"], page.tags["button"], page.tags["script"]) == (1, 1, 0)
    assert "no-store" in answer.headers["cache-control"]
    assert "form-action 'self'" in answer.headers["content-security-policy"]
    assert desk.messages() == []
    assert desk.drain() == []


def test_pressing_send_delivers_without_a_mark(desk: Desk) -> None:
    page = asked(typed(desk, DOUBTFUL))
    desk.clock.advance(2)
    pressed = page.press(desk)
    assert pressed.status_code == 303
    [stored] = desk.messages()
    assert {key: stored[key] for key in DOUBTFUL} == DOUBTFUL
    assert stored["held"] is False and stored["fields"] == {}
    [mail] = desk.drain()
    assert mail["Subject"] == "[site.example] Our offer"
    assert "may be spam" not in mail["TextPart"]
    assert mail["ReplyTo"] == {"Email": "sam@example.com", "Name": "Sam"}


@pytest.mark.parametrize(
    "field, value",
    [
        ("message", "one\r\ntwo\r\n\r\n\r\nfour"),
        ("message", "one\rtwo\nthree"),
        ("message", "\n\n  indented\n\ttabbed  \n trailing \n"),
        ("message", "</textarea></form><script>alert(1)</script>"),
        ("message", "\"'><&amp;&lt;&#10;&quot;"),
        ("message", "a\x00b\x0bc\x85d\u2028e\u2029f"),
        ("message", "e\u0301 \u1100\u1161 \U0001f469\u200d\U0001f52c \u202eabc"),
        ("message", "{{ 7 * 7 }} {% raw %} %s {0}"),
        ("name", '  Ann   "Quote"  '),
        ("subject", "a\r\nBcc: x@example.com"),
        ("favourite colour[]", "red, blue"),
        ('x" onload="y', "1"),
        ("empty", ""),
        ("more_text", "first\r\nsecond + & = % ;"),
        ("_replyto", "other@example.com"),
        ("g-recaptcha-response", "03AGdBq2" * 50),
        ("_frontdesk", "a stale token"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_the_asking_page_carries_what_was_typed_exactly(
    desk: Desk, field: str, value: str
) -> None:
    spam = f" {DOUBTFUL['message']}"
    form = {**DOUBTFUL, field: value + spam if field == "message" else value}
    marked = desk.post("/contact", form, **SCRIPT)  # what arrives without a question
    assert marked.status_code == 200
    desk.clock.advance(700)  # no double submission
    page = asked(typed(desk, form))
    desk.clock.advance(5)
    assert page.press(desk).status_code == 303
    direct, pressed = desk.messages()
    for key in ("email", "name", "subject", "message", "fields"):
        assert pressed[key] == direct[key], key


def test_repeated_fields_survive_the_question(desk: Desk) -> None:
    body = urlencoded([*DOUBTFUL.items(), ("day", "Mon"), ("day", "Tue")])
    page = asked(desk.client.simulate_post("/contact", **body, headers=BROWSER))
    desk.clock.advance(2)
    page.press(desk)
    assert desk.messages()[0]["fields"] == {"day": "Mon, Tue"}


def test_a_long_multipart_text_still_fits_when_it_is_sent_again(desk: Desk) -> None:
    text = f"{DOUBTFUL['message']} {'你好世界。' * 1980}"
    body = multipart({**DOUBTFUL, "message": text}.items())
    page = asked(desk.client.simulate_post("/contact", **body, headers=BROWSER))
    desk.clock.advance(2)
    assert page.press(desk).status_code == 303
    assert desk.messages()[0]["message"] == text


@pytest.mark.parametrize("seconds", [0, 1, 86401, 10 * 86400])
def test_a_press_too_soon_or_too_late_is_asked_again(desk: Desk, seconds: int) -> None:
    page = asked(typed(desk, DOUBTFUL))
    desk.clock.advance(seconds)
    answer = page.press(desk)
    assert ("Just a moment" in answer.text) is (seconds < 2)
    again = asked(answer)
    assert desk.messages() == []
    desk.clock.advance(2)
    assert again.press(desk).status_code == 303
    assert len(desk.messages()) == 1


def test_a_press_counts_for_a_day(desk: Desk) -> None:
    page = asked(typed(desk, DOUBTFUL))
    desk.clock.advance(86400)
    assert page.press(desk).status_code == 303
    assert len(desk.messages()) == 1


@pytest.mark.parametrize(
    "field, value",
    [
        ("email", "else@example.com"),
        ("name", "Else"),
        ("subject", "Another offer"),
        ("message", DOUBTFUL["message"] + "!"),
        ("colour", "blue"),
    ],
)
def test_changed_content_is_asked_again(desk: Desk, field: str, value: str) -> None:
    page = asked(typed(desk, {**DOUBTFUL, "colour": "red"}))
    desk.clock.advance(2)
    again = asked(page.press(desk, **{field: value}))
    assert desk.messages() == []
    desk.clock.advance(2)
    again.press(desk)
    [stored] = desk.messages()
    assert {**stored, **stored["fields"]}[field] == value


def test_only_our_own_question_can_be_answered(desk: Desk) -> None:
    page = asked(typed(desk, DOUBTFUL))
    token = dict(page.inputs)["_frontdesk"]
    desk.clock.advance(2)
    keys = desk.settings.secret_keys
    content = Links(keys, "", desk.clock).read("ask", token)[0]
    for forged in (
        "",
        "x",
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        Links(keys, "", desk.clock).token("release", content),
        Links(("f" * 32,), "", desk.clock).token("ask", content),
    ):
        desk.clock.advance(60)  # the client's limit
        asked(page.press(desk, _frontdesk=forged))
    assert desk.messages() == []


def test_an_honest_form_is_never_asked(desk: Desk) -> None:
    answer = typed(desk, HONEST)
    assert answer.status_code == 303
    assert len(desk.drain()) == 1


@pytest.mark.parametrize(
    "origins, wanted, lands_on",
    [
        ((SITE,), "/danke.html", f"{SITE}/danke.html"),
        ((SITE,), "danke.html", f"{SITE}/danke.html"),
        ((SITE,), f"{SITE}/a?b=c&d=e", f"{SITE}/a?b=c&d=e"),
        ((SITE,), "https://evil.example/", "https://desk.example/thanks"),
        ((SITE,), "", "https://desk.example/thanks"),
        (("https://first.example", SITE), "/danke.html", f"{SITE}/danke.html"),
        (("*",), "/danke.html", f"{SITE}/danke.html"),
    ],
)
def test_the_form_lands_where_it_wished_after_the_question(
    make_desk: Callable[..., Desk], origins: tuple[str, ...], wanted: str, lands_on: str
) -> None:
    desk = make_desk(allowed_origins=origins)
    straight = typed(desk, {**HONEST, "_next": wanted})
    answer = typed(desk, {**DOUBTFUL, "_next": wanted})
    page = asked(answer)
    desk.clock.advance(2)
    pressed = page.press(desk)
    assert pressed.status_code == 303
    assert straight.headers["location"] == pressed.headers["location"] == lands_on
    origin = "/".join(lands_on.split("/")[:3])
    policy = answer.headers["content-security-policy"]
    assert origin == "https://desk.example" or origin in policy.split("form-action")[1]


def test_the_page_of_the_form_is_kept_through_the_question(desk: Desk) -> None:
    page = asked(typed(desk, DOUBTFUL))
    desk.clock.advance(1)
    page = asked(page.press(desk))  # too soon, asked again
    desk.clock.advance(2)
    page.press(desk)
    assert desk.messages()[0]["page"] == f"{SITE}/contact.html"


def test_doubtful_json_is_delivered_and_marked(desk: Desk) -> None:
    answer = desk.post("/contact", DOUBTFUL, **SCRIPT)
    assert answer.status_code == 200 and answer.json["ok"] is True
    [stored] = desk.messages()
    assert stored["held"] is False and stored["spam_score"] >= 5
    [mail] = desk.drain()
    assert mail["Subject"] == "[site.example] [maybe spam] Our offer"
    for reason in stored["spam_reasons"]:
        assert reason in mail["TextPart"]


def test_a_blatant_plain_form_is_not_asked_but_held(desk: Desk) -> None:
    answer = typed(desk, BLATANT)
    assert answer.status_code == 303
    [stored] = desk.messages()
    assert stored["held"] is True
    assert desk.drain() == []


# --- the digest ------------------------------------------------------------------


def next_day(desk: Desk) -> list[dict[str, Any]]:
    """Let a day pass and return the mails that its first round adds."""
    before = len(desk.mailbox.mails)
    desk.clock.advance(DAY)
    desk.app.outbox.go_round()
    return desk.drain()[before:]


def address(i: int) -> str:
    """Return the i-th client's address, each in a network of its own."""
    return f"{1 + i % 200}.{i // 200 % 250}.{i // 50_000}.9"


def hold(desk: Desk, count: int = 1, **fields: str) -> None:
    """Send spam from as many networks."""
    for i in range(count):
        form = {**BLATANT, "message": f"Cheap pills {i}\nsecond line", **fields}
        post_from(desk.app, address(i), form)


def post_from(
    app: Any, address: str, form: dict[str, Any], path: str = "/contact"
) -> tuple[str, dict[str, str], bytes]:
    """Post JSON from an address, with little between the test and the service."""
    headers: list[Any] = []
    environ = falcon.testing.create_environ(
        path,
        method="POST",
        body=json.dumps(form, ensure_ascii=False),
        headers={**SCRIPT, "Content-Type": "application/json"},
        remote_addr=address,
    )
    body = b"".join(app(environ, lambda status, head: headers.extend((status, head))))
    return headers[0], dict(headers[1]), body


def release_paths(mail: dict[str, Any]) -> list[str]:
    """Return the paths of a digest's links."""
    return re.findall(r"https://desk\.example(/release/\S+)", mail["TextPart"])


def test_the_digest_says_who_what_why_and_how_to_release(desk: Desk) -> None:
    post_from(desk.app, "10.0.0.1", BLATANT)
    [mail] = next_day(desk)
    assert mail["Subject"] == "[site.example] 1 message held as spam"
    assert mail["To"] == [{"Email": "owner@site.example"}]
    assert "ReplyTo" not in mail and "HTMLPart" not in mail
    text = mail["TextPart"]
    assert "Bot <bot@example.com>" in text
    assert "Cheap pills" in text and "second line" not in text
    assert "the hidden field was filled in" in text
    assert len(release_paths(mail)) == 1
    assert "15 January 2027" in text  # the day when it was held


def test_nothing_held_means_no_digest(desk: Desk) -> None:
    post_from(desk.app, "10.0.0.1", HONEST)
    assert len(desk.drain()) == 1
    assert next_day(desk) == []


def test_a_digest_waits_for_the_end_of_the_day_and_comes_once(desk: Desk) -> None:
    hold(desk, 2)
    desk.app.outbox.go_round()
    assert desk.drain() == []
    assert len(next_day(desk)) == 1
    for _ in range(3):
        desk.clock.advance(3600)
        desk.app.outbox.go_round()
    assert len(desk.drain()) == 1
    assert next_day(desk) == []
    hold(desk, 1, name="Newcomer")
    [second] = next_day(desk)
    assert "1 message held" in second["Subject"] and "Newcomer" in second["TextPart"]


def test_a_digest_lists_fifty_and_counts_the_rest(desk: Desk) -> None:
    hold(desk, 53)
    [mail] = next_day(desk)
    assert mail["Subject"] == "[site.example] 53 messages held as spam"
    paths = release_paths(mail)
    assert len(set(paths)) == len(paths) == DIGEST_ITEMS == 50
    assert "3 more messages are not listed" in mail["TextPart"]
    assert "https://desk.example/desk" in mail["TextPart"]
    [second] = next_day(desk)  # lists those
    assert second["Subject"] == "[site.example] 3 messages held as spam"
    assert len(set(release_paths(second)) - set(paths)) == 3
    assert next_day(desk) == []


def test_the_digest_owns_up_to_what_was_not_kept(desk: Desk) -> None:
    hold(desk, models.HELD_PER_HOUR + 7)
    assert len(desk.messages()) == models.HELD_PER_HOUR
    [mail] = next_day(desk)
    assert mail["Subject"] == "[site.example] 107 messages held as spam"
    assert (
        "50 more messages are not listed" in mail["TextPart"]
    )  # these are on the desk
    assert re.search(r"\b7\b[^.]*not kept", mail["TextPart"])  # and these are nowhere
    [second] = next_day(desk)  # and tells of nothing twice
    assert second["Subject"] == "[site.example] 50 messages held as spam"
    assert "not kept" not in second["TextPart"]


def test_the_next_hour_has_room_again(desk: Desk) -> None:
    hold(desk, models.HELD_PER_HOUR + 1)
    desk.clock.advance(3600)
    hold(desk, 1, name="Next Hour")
    assert desk.messages()[-1]["name"] == "Next Hour"


def test_a_digest_after_a_long_sleep_misses_nothing(desk: Desk) -> None:
    hold(desk, models.HELD_PER_HOUR + 7)
    desk.clock.advance(DAY)  # a free dyno slept through the next day
    [mail] = next_day(desk)
    assert "107 messages" in mail["Subject"]
    assert "on 2027-01-16" not in mail["TextPart"]


def test_a_released_message_is_not_in_the_digest(desk: Desk) -> None:
    hold(desk, 2)
    first = desk.messages()[0]
    models.Message.deliver(first["id"], desk.clock())
    assert len(desk.drain()) == 1
    [mail] = next_day(desk)
    assert "1 message held" in mail["Subject"]


def test_a_digest_with_nothing_left_to_say_is_not_sent(desk: Desk) -> None:
    hold(desk, 1)
    desk.clock.advance(DAY)
    desk.app.outbox.go_round()
    assert desk.owner("DELETE", "/people/bot@example.com").status_code == 200
    assert desk.drain() == []
    assert desk.health()["outbox"]["waiting"] == 0


def test_get_of_a_release_link_shows_all_and_changes_nothing(desk: Desk) -> None:
    post_from(desk.app, "10.0.0.1", BLATANT)
    [path] = release_paths(next_day(desk)[0])
    before = desk.messages()
    for method in ("GET", "HEAD", "GET"):
        answer = desk.client.simulate_request(method, path, headers=BROWSER)
        assert answer.status_code == 200
    for text in ("second line", "bot@example.com", "colour", "red", "hidden field"):
        assert text in answer.text
    page = Form(answer.text)
    assert page.form == {"method": "post", "action": path}
    assert page.tags["button"] == 1 and page.tags["script"] == 0
    assert desk.messages() == before and before[0]["held"] is True
    assert len(desk.drain()) == 1  # the digest


def test_releasing_delivers_once_with_a_reply_address(desk: Desk) -> None:
    post_from(desk.app, "10.0.0.1", BLATANT)
    [path] = release_paths(next_day(desk)[0])
    for headers in (OUR_PAGE, BROWSER, {}, {"Origin": "https://mail.example"}):
        answer = desk.client.simulate_post(path, headers=headers)
        assert answer.status_code == 200
    mails = desk.drain()[1:]
    assert [mail["ReplyTo"] for mail in mails] == [
        {"Email": "bot@example.com", "Name": "Bot"}
    ]
    assert "second line" in mails[0]["TextPart"]
    assert mails[0]["Subject"] == "[site.example] Message from Bot"
    [stored] = desk.messages()
    assert stored["held"] is False and stored["mailed_at"] is not None
    assert "sent to your inbox" in desk.client.simulate_get(path, headers=BROWSER).text
    desk.client.simulate_post(path)
    assert len(desk.drain()) == 2 and next_day(desk) == []


def test_many_presses_at_once_deliver_one_mail(desk: Desk) -> None:
    post_from(desk.app, "10.0.0.1", BLATANT)
    [path] = release_paths(next_day(desk)[0])
    at_once(8, lambda: desk.client.simulate_post(path))
    assert len(desk.drain()) == 2


def test_a_forged_or_erased_release_link_delivers_nothing(desk: Desk) -> None:
    post_from(desk.app, "10.0.0.1", BLATANT)
    [path] = release_paths(next_day(desk)[0])
    links = Links(("f" * 32,), "https://desk.example", desk.clock)
    forged = links.url("release", desk.messages()[0]["id"])
    for bad in (path[:-2], path + "x", forged.removeprefix("https://desk.example")):
        assert desk.client.simulate_post(bad).status_code == 404
    assert desk.messages()[0]["held"] is True
    desk.owner("DELETE", "/people/bot@example.com")
    for method in ("GET", "POST"):
        assert desk.client.simulate_request(method, path).status_code == 404


def at_once(count: int, act: Callable[[], Any]) -> list[Any]:
    """Run the same in several threads that start together."""
    start = threading.Barrier(count)
    database = current()

    def run() -> Any:
        database.enter()
        start.wait(20)
        try:
            return act()
        finally:  # each thread has connections of its own
            current().hang_up()

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(run) for _ in range(count)]]


def test_one_digest_a_day_of_many_threads(make_desk: Callable[..., Desk]) -> None:
    desks = [make_desk() for _ in range(4)]
    hold(desks[0], 3)
    desks[0].clock.advance(DAY)
    turns = iter(desks)

    def round_and_drain() -> None:
        desk = next(turns)
        desk.app.outbox.go_round()
        desk.drain()

    at_once(len(desks), round_and_drain)
    assert sum(len(desk.mailbox.mails) for desk in desks) == 1


_start: Any = None


def keep_barrier(barrier: Any) -> None:
    global _start
    _start = barrier


def rounds_of_one_worker(settings: Settings, now: float) -> list[str]:
    """Be a worker process: several days' rounds; return the subjects it mailed."""
    clock, mailbox = Clock(now), Mailbox()
    outbox = create_app(settings, clock=clock, transport=mailbox).outbox
    for _ in range(2):
        _start.wait(60)
        outbox.go_round()
        outbox.drain()
        clock.advance(DAY)
    current().close()
    return [mail["Subject"] for mail in mailbox.mails]


def test_one_digest_a_day_of_many_processes(desk: Desk) -> None:
    hold(desk, 3)
    spawn = multiprocessing.get_context("spawn")
    workers = 4
    barrier = spawn.Barrier(workers)
    with ProcessPoolExecutor(workers, spawn, keep_barrier, (barrier,)) as pool:
        work = [
            pool.submit(rounds_of_one_worker, desk.settings, desk.clock() + DAY)
            for _ in range(workers)
        ]
        subjects = [subject for future in work for subject in future.result()]
    assert subjects == ["[site.example] 3 messages held as spam"]


# --- ceilings --------------------------------------------------------------------


def size_on_disk(desk: Desk) -> int:
    """Return the bytes that the database takes, with its log and the rate limits."""
    path = sqlite_path(desk.settings.database_url)
    if path is None:
        sql = "SELECT pg_database_size(current_database())"
        return int(execute(sql).fetchone()[0])
    limits = LimitsFile(path).path
    files = [*path.parent.glob(path.name + "*"), *limits.parent.glob(limits.name + "*")]
    return sum(file.stat().st_size for file in files)


def rows() -> dict[str, int]:
    """Return how many rows the tables hold that grow with what strangers send."""
    tables = ("message", "receipt", "delivery", "subscriber", "page", "hit", "visitor")
    return {
        table: execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in tables
    }


def report(desk: Desk, what: str, started: float) -> None:
    seconds = time.perf_counter() - started
    size = size_on_disk(desk) / MEGABYTE
    database = "SQLite" if sqlite_path(desk.settings.database_url) else "Postgres"
    print(f"\n{what} on {database}: {seconds:.0f} s, {size:.1f} MB, {rows()}")


def hostile(i: int) -> dict[str, str]:
    """Return one of many kinds of spam, no two alike."""
    kind = i % 4
    if kind == 0:
        return {**BLATANT, "message": f"Pills number {i}"}
    if kind == 1:
        return {**BLATANT, "message": f"{i} " + "Cheap pills. " * 700}
    if kind == 2:
        return {**BLATANT, "email": f"bot{i}@example.com", "notes": "x" * 2000}
    links = " ".join(f"https://x{i}.top/{n}" for n in range(20))
    return {**BLATANT, "message": f"Casino and loan, buy now {links}"}


def test_a_flood_of_spam_leaves_a_small_database_and_one_digest(desk: Desk) -> None:
    started = time.perf_counter()
    first = post_from(desk.app, address(0), hostile(0))
    for i in range(1, FLOOD // 2):
        post_from(desk.app, address(i), hostile(i))
    half = rows()
    for i in range(FLOOD // 2, FLOOD):
        last = post_from(desk.app, address(i), hostile(i))
    assert (first[0], last[0]) == ("200 OK", "503 Service Unavailable")
    # Beyond the ceiling nothing grows but what finds repeats, for ten minutes.
    assert {**rows(), "receipt": 0} == {**half, "receipt": 0}
    assert 0 < half["message"] <= models.HELD_PER_HOUR  # long ones count more
    report(desk, f"{FLOOD:,} held", started)
    assert size_on_disk(desk) < 64 * MEGABYTE
    assert desk.drain() == []
    mails = next_day(desk)
    assert [mail["Subject"] for mail in mails] == [
        f"[site.example] {FLOOD:,} messages held as spam"
    ]
    if half["message"] > DIGEST_ITEMS:
        next_day(desk)
    assert next_day(desk) == []


def test_a_flood_of_one_text_is_not_counted_to_its_end(desk: Desk) -> None:
    text = dict.fromkeys(("name", "email", "subject", "message", "page"), "same")
    for i in range(230):
        models.Message.receive(
            {**text, "echo": "abc", "fields": {}, "layout": [], "client": address(i)},
            Verdict(0, []),
            keys={str(i): 600},
            now=desk.clock(),
        )
    known = models.Message.known({"": 600}, "abc", "192.0.2.0", "", desk.clock())
    assert known.echoes == 20


def test_a_flood_of_doubtful_json_is_held_beyond_its_ceiling(desk: Desk) -> None:
    count = models.DOUBTFUL_PER_HOUR + 20
    text = "I saw your pictures of the old harbour, where exactly were they taken?"
    for i in range(count + 3):  # the first three are no flood yet
        post_from(desk.app, address(i), {**HONEST, "message": f"{text} {i}"})
    assert len(desk.messages()) == count + 3
    assert sum(m["held"] for m in desk.messages()) == 20
    marked = [m for m in desk.drain() if "[maybe spam]" in m["Subject"]]
    assert len(marked) == models.DOUBTFUL_PER_HOUR


def test_a_message_arrives_in_the_middle_of_a_flood(desk: Desk) -> None:
    hold(desk, models.HELD_PER_HOUR + 10)
    post_from(desk.app, "192.0.2.1", HONEST)
    assert [mail["ReplyTo"]["Name"] for mail in desk.drain()] == ["Ada"]


def test_spam_spends_the_clients_limit_like_anything_else(desk: Desk) -> None:
    answers = [
        post_from(desk.app, "192.0.2.1", {**BLATANT, "message": f"Pills {i}"})
        for i in range(7)
    ]
    statuses = [status[:3] for status, _, _ in answers]
    assert statuses == ["200"] * 5 + ["429"] * 2
    assert int(answers[-1][1]["retry-after"]) > 0
    assert len(desk.messages()) == 5


def test_a_signup_flood_mails_no_more_than_the_day_allows(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(confirm_mails_per_day=20)
    for i in range(60):
        form = {"email": f"p{i}@{i}.example"}
        post_from(desk.app, address(i), form, "/newsletter")
    assert len(desk.drain()) == 20
    post_from(desk.app, "192.0.2.1", HONEST)
    assert desk.drain()[-1]["ReplyTo"]["Email"] == "ada@example.com"


def test_a_honeypot_signup_is_neither_stored_nor_mailed(desk: Desk) -> None:
    form = {"email": "p@example.com", "_gotcha": "x"}
    assert post_from(desk.app, "10.0.0.1", form, "/newsletter")[0] == "200 OK"
    assert desk.drain() == [] and desk.subscribers() == []


# --- no oracle -------------------------------------------------------------------


@pytest.fixture
def work(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> Callable[[Callable[[], Any]], Counter[str]]:
    """Count the statements that something runs on the main database, by verb."""
    on_sqlite = sqlite_path(desk.settings.database_url) is not None
    caplog.set_level(logging.DEBUG, "peewee")
    traced: list[str] = []
    if on_sqlite:
        database = current()

        def trace() -> None:
            database.engine.connection().set_trace_callback(traced.append)

        trace()
        database.write(trace)

    def measure(act: Callable[[], Any]) -> Counter[str]:
        caplog.clear()
        traced.clear()
        act()
        logged = [str((r.args or r.msg)[0]) for r in caplog.records]
        return Counter(sql.split()[0] for sql in (traced if on_sqlite else logged))

    return measure


def comparable(answer: tuple[str, dict[str, str], bytes]) -> tuple[str, Any, str]:
    """Return an answer without what is random in it."""
    status, headers, body = answer
    random = {"x-request-id"}
    headers = {name: value for name, value in headers.items() if name not in random}
    return status, headers, re.sub(r'"id": "[0-9a-f]{28}"', '"id": ""', body.decode())


@pytest.mark.parametrize("kind", ["script", "browser"])
def test_held_and_accepted_messages_get_the_same_answer(desk: Desk, kind: str) -> None:
    answers = []
    for i, form in enumerate((HONEST, BLATANT)):
        if kind == "script":
            answers.append(comparable(post_from(desk.app, f"10.0.0.{i}", form)))
        else:
            a = desk.client.simulate_post(
                "/contact",
                **urlencoded(form.items()),
                headers=BROWSER,
                remote_addr=f"10.0.0.{i}",
            )
            headers = {**a.headers, "x-request-id": ""}
            answers.append((a.status, headers, a.text))
    assert answers[0] == answers[1]
    held = {message["name"]: message["held"] for message in desk.messages()}
    assert held == {"Ada": False, "Bot": True}


def test_held_and_accepted_messages_cost_the_same_work(
    desk: Desk, work: Callable[[Callable[[], Any]], Counter[str]]
) -> None:
    post_from(desk.app, "10.0.0.9", HONEST)  # what only the first request does
    post_from(desk.app, "10.0.0.8", BLATANT)
    honest = {**HONEST, "message": "Another question"}
    blatant = {**BLATANT, "message": "Other pills"}
    accepted = work(lambda: post_from(desk.app, "10.0.0.1", honest))
    held = work(lambda: post_from(desk.app, "10.0.0.2", blatant))
    held["INSERT"] -= 2  # counted twice: of all, and of this network
    accepted["INSERT"] -= 1  # its mail
    assert accepted == held
    assert accepted["INSERT"] >= 2
    if sqlite_path(desk.settings.database_url):
        assert accepted["COMMIT"] == 1


def signup_states(desk: Desk) -> dict[str, str]:
    """Bring addresses into every state; return the address of each."""
    states = {s: f"{s}@example.com" for s in ("new", "pending", "confirmed", "left")}
    for state, email in states.items():
        if state != "new":
            post_from(desk.app, f"10.1.0.{len(state)}", {"email": email}, "/newsletter")
    for mail in desk.drain():
        text, to = mail["TextPart"], mail["To"][0]["Email"]
        if to.startswith(("confirmed", "left")):
            path = re.search(r"https://desk\.example(/newsletter/confirm/\S+)", text)
            assert desk.client.simulate_post(path[1]).status_code == 200
        if to.startswith("left"):
            path = re.search(r"https://desk\.example(/newsletter/unsub\S+)", text)
            assert desk.client.simulate_post(path[1]).status_code == 200
    statuses = sorted(row["status"] for row in desk.subscribers())
    assert statuses == ["confirmed", "left", "pending"]
    return states


def test_a_signup_gets_the_same_answer_whatever_is_known(desk: Desk) -> None:
    answers = {
        state: comparable(
            post_from(desk.app, f"10.2.0.{i}", {"email": email}, "/newsletter")
        )
        for i, (state, email) in enumerate(signup_states(desk).items())
    }
    assert len({json.dumps(answer) for answer in answers.values()}) == 1, answers


@pytest.mark.parametrize("full_days", [0, 3])
def test_a_signup_costs_the_same_work_whatever_is_known(
    desk: Desk, work: Callable[[Callable[[], Any]], Counter[str]], full_days: int
) -> None:
    states = signup_states(desk)
    for n in range(10 * full_days):  # of the network that asks
        form = {"email": f"somebody{n}@gmail.com"}
        post_from(desk.app, f"10.2.0.{100 + n}", form, "/newsletter")

    def ask(i: int, email: str) -> Counter[str]:
        form = {"email": email}
        return work(lambda: post_from(desk.app, f"10.2.0.{i}", form, "/newsletter"))

    first = {state: ask(i, email) for i, (state, email) in enumerate(states.items())}
    again = {state: ask(i, email) for i, (state, email) in enumerate(states.items())}
    assert len({str(sorted(verbs.items())) for verbs in again.values()}) == 1, again
    assert len({str(sorted(verbs.items())) for verbs in first.values()}) == 1, first
    if sqlite_path(desk.settings.database_url):
        assert first["new"]["COMMIT"] == again["confirmed"]["COMMIT"] == 1


# --- the counter under attack ----------------------------------------------------


def count(
    desk: Desk, client: str, page: str, agent: str = "Mozilla/5.0"
) -> tuple[int, Any]:
    status: list[str] = []
    environ = falcon.testing.create_environ(
        "/hits",
        method="POST",
        body=json.dumps({"page": page}),
        headers={"Content-Type": "application/json", "User-Agent": agent},
        remote_addr=client,
    )
    body = b"".join(desk.app(environ, lambda line, _: status.append(line)))
    return int(status[0][:3]), json.loads(body)


def test_a_flood_of_pages_is_counted_together(make_desk: Callable[..., Desk]) -> None:
    most = FLOOD // 10
    desk = make_desk(max_pages=most, hits_limit=(Window(10**6, 60),))
    started = time.perf_counter()
    for i in range(FLOOD):
        if i % 100 == 0:
            # Time for every client to bring as many new pages as an hour allows.
            desk.clock.advance(120)
        status, _ = count(desk, address(i % 100), f"/{i}/" + "x" * 180)
        assert status == 200
    report(desk, f"{FLOOD:,} pages", started)
    exported = desk.owner("GET", "/export/hits.json").json
    pages = {row["page"] for row in exported}
    assert len(pages) == most + 1
    assert OTHER_PAGES in pages
    assert sum(row["hits"] for row in exported) == FLOOD
    assert size_on_disk(desk) < 64 * MEGABYTE


def test_one_client_brings_thirty_new_pages_an_hour(desk: Desk) -> None:
    for i in range(40):
        count(desk, "10.0.0.1", f"/new/{i}")
    pages = [row["page"] for row in desk.owner("GET", "/export/hits.json").json]
    assert len(pages) == 31
    answer = desk.client.simulate_get("/hits", params={"page": OTHER_PAGES})
    assert answer.json["hits"] == 10
    status, known = count(desk, "10.0.0.1", "/new/7")
    assert (status, known["page"], known["hits"]) == (200, "/new/7", 2)
    assert count(desk, "10.0.0.2", "/new/from/another")[1]["page"] != "/(other)"


HOSTILE_TEXTS = [
    '"><script>alert(1)</script>',
    "]]></title></svg><svg onload=alert(1)>",
    "&lt;&#x3c;&amp;&bogus;&",
    "<!--",
    "<![CDATA[",
    "<?xml?>",
    "<!DOCTYPE svg [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>&x;",
    "{label} {0} {name.__class__} {{ 7*7 }}",
    "\x00\x01\x0b\x1b\x7f\x85",
    "\ufffe\uffff\ufdd0\U0001ffff",
    "\u202egnp.exe\u2066",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    "ﷺ" * 300,
    "𝕏" * 300,
    "' onload='alert(1)",
    "",
    " ",
]


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=lambda value: repr(value)[:24])
def test_no_text_breaks_out_of_a_picture(desk: Desk, text: str) -> None:
    for place in ("label", "color", "style", "page"):
        check_image(desk, "/hits.svg", {"page": "/a", "count": "false", place: text})
    check_image(desk, "/hits/chart.svg", {"page": f"/{text}", "days": "7"})


def check_image(desk: Desk, path: str, query: dict[str, str]) -> None:
    answer = desk.client.simulate_get(
        path, query_string=urllib.parse.urlencode(query, errors="surrogatepass")
    )
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert answer.status_code in (200, 422)
    svg = ElementTree.fromstring(answer.content)
    for element in svg.iter():
        assert element.tag.rpartition("}")[2] not in ("script", "foreignObject", "a")
        assert not any(name.lower().startswith("on") for name in element.attrib)


def test_raw_bytes_that_are_no_text_do_not_break_a_badge(desk: Desk) -> None:
    query = "page=%ff%fe&label=%ed%a0%80%c0%af%00&color=%f8&count=false"
    answer = desk.client.simulate_get("/hits.svg", query_string=query)
    ElementTree.fromstring(answer.content)


# --- the owner's own view --------------------------------------------------------


def test_the_export_tells_score_reasons_and_what_is_held(desk: Desk) -> None:
    for form in (HONEST, DOUBTFUL, BLATANT):
        post_from(desk.app, "10.0.0.1", form)
        desk.clock.advance(1)
    honest, doubtful, blatant = desk.messages()
    assert (honest["spam_score"], honest["spam_reasons"]) == (0, [])
    assert [m["held"] for m in (honest, doubtful, blatant)] == [False, False, True]
    assert 0 < doubtful["spam_score"] < blatant["spam_score"] + 1
    assert blatant["spam_score"] >= 10
    assert "the hidden field was filled in" in blatant["spam_reasons"]
    exported = desk.owner("GET", "/export/messages.csv").text
    head = next(csv.reader(io.StringIO(exported)))
    assert {"spam_score", "spam_reasons", "held"} <= set(head)


def test_health_counts_what_was_held_in_the_last_day(desk: Desk) -> None:
    def held() -> int:
        return int(desk.health()["held_last_day"])

    assert held() == 0
    post_from(desk.app, "10.0.0.1", HONEST)
    hold(desk, 3)
    assert held() == 3
    desk.clock.advance(DAY - 1)
    assert held() == 3
    desk.clock.advance(2)
    assert held() == 0
