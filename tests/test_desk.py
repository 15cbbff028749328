"""The owner's page, what its buttons teach, and the letter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from desk import DeskPage
from frontdesk.mailjet import LogTransport
from frontdesk.outbox import Refused
from frontdesk.settings import Window
from frontdesk.tables import DAY
from models import Lesson, Message, Subscriber
from tests.support.desk import TOKEN, Clock, Desk

SPAM = (
    "Dear owner, I looked at your pages and would love to send our team of writers "
    "over to make them read better for each of your many visitors. Shall we talk this "
    "week?"
)
TWIN = "Hello Mara,\n" + SPAM.removeprefix("Dear owner, ") + "\nhttps://x.example/a"


def write(desk: Desk, text: str = "Hello there", **more: str) -> str:
    """Send a message as a browser's script does, and return its id."""
    form = {"email": "ada@example.com", "name": "Ada", "message": text, **more}
    headers = {"Origin": "https://site.example", "User-Agent": "Mozilla/5.0"}
    answer = desk.client.simulate_post("/contact", json=form, headers=headers)
    assert answer.status_code == 200
    return str(answer.json["id"])


def page(desk: Desk, query: str = "", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    given = {"Authorization": f"Bearer {TOKEN}", "Accept": "text/html", **named}
    return desk.client.simulate_get("/desk", query_string=query, headers=given)


def press(desk: Desk, message_id: str, action: str, **headers: str) -> Any:
    """Press a button of the page."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return desk.client.simulate_post(
        f"/desk/messages/{message_id}",
        body=f"action={action}",
        headers={
            "Authorization": f"Bearer {TOKEN}",
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "text/html",
            **named,
        },
    )


# --- the page --------------------------------------------------------------------


def test_the_page_shows_messages_subscribers_and_hits(desk: Desk) -> None:
    write(desk, "One of them", colour="red")
    desk.drain()
    desk.post("/newsletter", {"email": "ben@example.com"})
    desk.post("/hits", {"page": "/about"})
    answer = page(desk)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for part in ("One of them", "red", "ada@example.com", "mailed"):
        assert part in answer.text
    assert "0 confirmed, 1 pending, 0 left" in answer.text
    assert "ben@example.com" in answer.text and "/about" in answer.text
    assert "/export/messages.csv" in answer.text


def test_what_was_typed_is_text_on_the_page(desk: Desk) -> None:
    write(desk, "<script>alert(1)</script>", name="<b>Ada</b>", x='"><img src=x>')
    text = page(desk).text
    assert "<script" not in text and "<b>" not in text and "<img src=x" not in text
    assert "&lt;script&gt;" in text


def test_a_page_has_25_messages_the_newest_first(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(contact_limit=(Window(1000, 60),))
    for n in range(30):
        desk.clock.advance(1)
        write(desk, f"Letter number {n:02}")
    first = page(desk).text
    assert [n for n in range(30) if f"number {n:02}" in first] == list(range(5, 30))
    assert first.index("number 29") < first.index("number 05")
    before = first.partition("/desk?before=")[2].partition("#")[0]
    older = page(desk, f"before={before}").text
    assert [n for n in range(30) if f"number {n:02}" in older] == list(range(5))
    assert "/desk?before=" not in older


@pytest.mark.parametrize("odd", ["%00", "x%00y", "%ED%A0%80", "x"])
def test_an_id_that_no_message_can_have_changes_nothing(desk: Desk, odd: str) -> None:
    write(desk)
    assert desk.owner("GET", f"/desk?before={odd}").status_code == 200
    for action in ("deliver", "spam", "delete"):
        assert press(desk, odd, action).status_code == 303
    assert len(desk.messages()) == 1


def test_what_did_not_arrive_is_told_first(desk: Desk) -> None:
    message_id = write(desk)
    desk.drain()
    Message.was_undelivered(message_id, "user unknown", desk.clock())
    text = page(desk).text
    assert "did not arrive" in text and "user unknown" in text
    assert text.index("1 mail did not arrive") < text.index("Hello there")


def test_what_the_doctor_complains_of_is_told(desk: Desk) -> None:
    service = replace(desk.app.service, transport=LogTransport())
    desk.app.add_route("/shown", DeskPage(service))
    assert "Needs your attention" not in page(desk).text
    assert "set MJ_APIKEY_PUBLIC" in desk.owner("GET", "/shown").text


def test_mailjet_is_asked_once_a_minute(desk: Desk) -> None:
    for seconds in (0, 59, 1):
        desk.clock.advance(seconds)
        assert page(desk).status_code == 200
    assert desk.mailbox.checked == 2


@pytest.mark.parametrize("path", ["/desk", "/doctor", "/export/messages.json"])
def test_without_a_token_the_answer_names_the_setting(
    make_desk: Callable[..., Desk], path: str
) -> None:
    desk = make_desk(admin_token=None)
    answer = desk.client.simulate_get(path)
    assert answer.status_code == 404
    assert "ADMIN_TOKEN" in answer.json["error"]


def test_a_browser_is_asked_for_the_password(desk: Desk) -> None:
    answer = desk.client.simulate_get("/desk", headers={"Accept": "text/html"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")


# --- its buttons -----------------------------------------------------------------


def test_deliver_mails_a_held_message_and_returns(desk: Desk) -> None:
    message_id = write(desk, _gotcha="x")
    assert desk.drain() == []
    for _ in range(2):
        answer = press(desk, message_id, "deliver")
        assert (answer.status_code, answer.headers["location"]) == (303, "/desk")
    assert [mail["CustomID"] for mail in desk.drain()] == [message_id]
    assert desk.messages()[0]["held"] is False


def test_a_message_that_mailjet_refused_can_be_sent_again(desk: Desk) -> None:
    write(desk)
    desk.mailbox.fail = lambda mail: Refused("Mailjet answered 400")
    desk.drain()
    page = desk.owner("GET", "/desk").text
    assert "did not arrive</strong>: Mailjet answered 400" in page
    assert ">Deliver</button>" in page
    desk.mailbox.fail = lambda mail: None
    desk.drain()
    assert ">Deliver</button>" in desk.owner("GET", "/desk").text  # not by itself


def test_delete_erases_the_message_and_its_mail(desk: Desk) -> None:
    message_id = write(desk)
    assert press(desk, message_id, "delete").status_code == 303
    assert desk.drain() == [] and desk.messages() == []
    assert press(desk, message_id, "delete").status_code == 303


def test_an_unknown_action_changes_nothing(desk: Desk) -> None:
    message_id = write(desk)
    assert press(desk, message_id, "explode").status_code == 422
    assert press(desk, "no-such-id", "deliver").status_code == 303
    assert len(desk.messages()) == 1


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://site.example"}, {"Origin": "null"}]
    + [{"Sec_Fetch_Site": site} for site in ("cross-site", "same-site")],
)
def test_another_sites_page_presses_no_button(
    desk: Desk, headers: dict[str, str]
) -> None:
    message_id = write(desk)
    assert press(desk, message_id, "delete", **headers).status_code == 403
    assert len(desk.messages()) == 1


# --- what they teach -------------------------------------------------------------


def test_twins_of_what_was_called_spam_are_held(desk: Desk) -> None:
    first = write(desk, SPAM)
    assert len(desk.drain()) == 1
    press(desk, first, "spam")
    second = write(desk, TWIN, email="someone@else.example", name="Else")
    held = {message["id"]: message for message in desk.messages()}
    assert held[first]["held"] and held[second]["held"]
    assert any("called nearly the same" in r for r in held[second]["spam_reasons"])
    write(desk, "Something else altogether: are you free on Saturday, the 4th of May?")
    assert len(desk.drain()) == 2


def test_twins_of_what_was_delivered_pass(desk: Desk) -> None:
    first = write(desk, SPAM, _gotcha="x")
    press(desk, first, "deliver")
    second = write(desk, TWIN, _gotcha="x", email="someone@else.example")
    assert [mail["CustomID"] for mail in desk.drain()] == [first, second]


def test_the_owner_may_change_their_mind(desk: Desk) -> None:
    first = write(desk, SPAM)
    press(desk, first, "spam")
    press(desk, first, "deliver")
    write(desk, TWIN, email="someone@else.example")
    assert not any(message["held"] for message in desk.messages())
    assert {row.is_spam for row in Lesson.select()} == {False}


def test_a_lesson_is_erased_with_the_person(desk: Desk) -> None:
    press(desk, write(desk, SPAM), "spam")
    assert Lesson.select().count() == 16
    desk.owner("DELETE", "/people/ada@example.com")
    assert Lesson.select().count() == 0


def test_lessons_are_capped(desk: Desk) -> None:
    for n in range(520):
        words = [f"{n:03}{each:08x}" for each in range(2)]
        Lesson.teach(f"{n:012x}", words, is_spam=True)
    assert Lesson.select().count() == 2 * 500
    assert Lesson.recall(["51900000000", "51900000001"]) is True
    assert Lesson.recall(["00000000000", "00000000001"]) is None


def test_what_was_called_spam_is_in_no_digest(desk: Desk, clock: Clock) -> None:
    press(desk, write(desk, SPAM), "spam")
    desk.drain()
    clock.advance(DAY)
    desk.app.outbox.go_round()
    assert [m["Subject"] for m in desk.drain() if "held" in m["Subject"]] == []


# --- the letter ------------------------------------------------------------------


def at(*when: int) -> float:
    return datetime(*when, tzinfo=UTC).timestamp()  # type: ignore[misc]


def letters(desk: Desk) -> list[dict[str, Any]]:
    """Do a round, deliver, and return all letters so far."""
    desk.app.outbox.go_round()
    return [m for m in desk.drain() if "front desk" in m["Subject"]]


def test_a_new_service_has_nothing_to_tell(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk(letter="weekly")
    assert letters(desk) == []
    clock.advance(7 * DAY)
    assert len(letters(desk)) == 1


@pytest.mark.parametrize(
    ("letter", "days"),
    [
        ("weekly", [at(2027, 2, 1), at(2027, 2, 8), at(2027, 2, 15)]),
        ("monthly", [at(2027, 2, 1), at(2027, 3, 1)]),
        ("off", []),
    ],
)
def test_a_letter_comes_with_each_week_or_month(
    make_desk: Callable[..., Desk], clock: Clock, letter: str, days: list[float]
) -> None:
    clock.now = at(2027, 1, 27, 9)  # a Wednesday
    desk = make_desk(letter=letter)
    seen: list[float] = []
    while clock.now < at(2027, 3, 1, 12):
        if len(letters(desk)) > len(seen):
            seen.append(clock.now - 9 * 3600)
        clock.advance(DAY)
    assert [day for day in seen if day <= days[-1]] == days if days else seen == []


def test_there_is_one_letter_however_many_workers(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    workers = [make_desk(letter="weekly") for _ in range(3)]
    for desk in workers:
        letters(desk)
    clock.advance(30 * DAY)  # nobody came for weeks
    assert sum(len(letters(desk)) for desk in workers) == 1
    assert sum(len(letters(desk)) for desk in workers) == 1


def test_the_letters_week_is_that_of_the_time_zone(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    clock.now = at(2027, 1, 27, 9)
    desk = make_desk(letter="weekly", time_zone="Asia/Tokyo")
    letters(desk)
    clock.now = at(2027, 1, 31, 14, 59)  # 23:59 on Sunday there
    assert letters(desk) == []
    clock.now = at(2027, 1, 31, 15)
    [letter] = letters(desk)
    assert "25 January 2027 to 31 January 2027" in letter["TextPart"]


def test_the_letter_tells_what_was(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    clock.now = at(2027, 1, 18, 9)
    desk = make_desk(letter="weekly")
    letters(desk)
    desk.post("/hits", {"page": "/before"})
    clock.now = at(2027, 1, 26, 9)
    for n in range(3):
        desk.post("/hits", {"page": "/about"})
        write(desk, f"Letter {n}")
    desk.post("/hits", {"page": "/home"})
    write(desk, "Buy now", _gotcha="x")
    desk.post("/newsletter", {"email": "ben@example.com"})
    row = Subscriber.get()
    Subscriber.confirm(row.id, row.cycle, clock(), sync=False)
    clock.now = at(2027, 2, 1, 9)
    letter = letters(desk)[-1]
    assert letter["To"] == [{"Email": "owner@site.example"}]
    assert letter["Subject"] == "[site.example] Your week at the front desk"
    for line in (
        "From 25 January 2027 to 31 January 2027",
        "Hits: 4 (before: 1)",
        "Visitors: 2 (before: 1)",
        "  /about: 3",
        "  /home: 1",
        "Messages received: 4 (before: 0)",
        "Held as spam: 1",
        "New subscribers: 1 (before: 0)",
        "All subscribers: 1",
        "https://desk.example/desk",
    ):
        assert f"{line}\n" in letter["TextPart"], letter["TextPart"]
    assert "/before" not in letter["TextPart"]
