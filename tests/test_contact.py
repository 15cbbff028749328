"""The contact form: what is understood, stored, mailed and answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from frontdesk.settings import Address
from tests.support.desk import Desk

FORM = {"email": "ada@example.com", "message": "Hello"}
SITE = "https://site.example"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Origin": SITE}
FORM_TYPE = "application/x-www-form-urlencoded"


def send(
    desk: Desk, kind: str, body: bytes, path: str = "/contact", **more: Any
) -> Any:
    headers = {"Content-Type": kind, **more.pop("headers", {})}
    return desk.client.simulate_post(path, body=body, headers=headers, **more)


def submit(desk: Desk, form: dict[str, str], **headers: str) -> Any:
    """Send a plain form as a browser does."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = urlencode(form).encode()
    return send(desk, FORM_TYPE, body, headers=BROWSER | named)


def multipart(*parts: tuple[str, str, str | None]) -> bytes:
    """Return a body of (name, text, file name or None)."""
    lines = []
    for name, text, filename in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        disposition = f'Content-Disposition: form-data; name="{name}"{file}'
        lines += ["--b", disposition, "", text]
    return "\r\n".join([*lines, "--b--", ""]).encode()


def only(desk: Desk) -> dict[str, Any]:
    (message,) = desk.messages()
    return message


def test_a_message_is_stored_and_mailed_once(desk: Desk) -> None:
    first = desk.post("/contact", FORM)
    again = desk.post("/contact", FORM)
    assert first.status_code == again.status_code == 200
    assert first.json["id"] == again.json["id"]
    assert [m["id"] for m in desk.messages()] == [first.json["id"]]
    assert len(desk.drain()) == 1


# --- bodies ----------------------------------------------------------------------

PARTS = multipart(
    ("email", "ada@example.com", None),
    ("message", "Hello\r\nthere", None),
    ("colour", "rød", None),
    ("cv", "", ""),
)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (
            "application/json",
            '{"email":"ada@example.com","message":"Hello\\r\\nthere","colour":"rød"}',
        ),
        (
            "application/json; charset=utf-8",
            '{"email":"ada@example.com","message":"Hello\\nthere","colour":"r\\u00f8d"}',
        ),
        (
            "text/plain;charset=UTF-8",
            '{"email":"ada@example.com","message":"Hello\\nthere","colour":"rød"}',
        ),
        (FORM_TYPE, "email=ada%40example.com&message=Hello%0D%0Athere&colour=r%C3%B8d"),
        (
            "Application/X-WWW-Form-URLencoded; charset=UTF-8",
            "email=ada@example.com&message=Hello%0Athere&colour=rød",
        ),
        ("multipart/form-data; boundary=b", PARTS.decode()),
        ('Multipart/Form-Data; boundary="b"', PARTS.decode()),
    ],
    ids=["json", "json charset", "text", "form", "form charset", "multipart", "quoted"],
)
@pytest.mark.parametrize("path", ["/contact", "/f/contact", "/p/12/f/contact"])
def test_every_kind_of_body_says_the_same(
    desk: Desk, path: str, kind: str, body: str
) -> None:
    answer = send(desk, kind, body.encode(), path)
    assert answer.status_code == 200, answer.text
    message = only(desk)
    assert message["id"] == answer.json["id"]
    assert message["email"] == "ada@example.com"
    assert message["message"] == "Hello\nthere"
    assert message["fields"] == {"colour": "rød"}
    assert len(desk.drain()) == 1


@pytest.mark.parametrize(
    "path",
    [
        *("/f/xyzabcde", "/f/owner@site.example", "/p/12/f/contact", "/s/Ab12-x"),
        *("/submit", "/submit/", "/ajax/owner@site.example", "/owner@site.example"),
        "/e09f62f1cc217cffef3964a06408c0e9",  # what FormSubmit gives for an address
        "/eve%40evil.example",
    ],
)
def test_every_form_services_path_leads_here(desk: Desk, path: str) -> None:
    answer = desk.post(path, FORM)
    assert answer.status_code == 200
    assert answer.json["success"] == ("true" if "ajax" in path else True)
    (mail,) = desk.drain()
    assert mail["To"] == [{"Email": "owner@site.example"}]
    assert "evil.example" not in json.dumps([mail, desk.messages()])


def test_a_path_that_is_no_address_is_not_found(desk: Desk) -> None:
    for path in ("/owner", "/a@b@c", "/a@b/c", "/submit/x"):
        assert desk.post(path, FORM).status_code == 404


def test_a_file_is_refused_and_an_empty_one_ignored(desk: Desk) -> None:
    fields = [("email", "ada@example.com", None), ("message", "Hello", None)]
    kind = "multipart/form-data; boundary=b"
    answer = send(desk, kind, multipart(*fields, ("cv", "x", "cv.pdf")))
    assert answer.status_code == 422
    assert [e["code"] for e in answer.json["errors"]] == ["NO_FILE_UPLOADS"]
    assert desk.messages() == []
    answer = send(desk, kind, multipart(*fields, ("cv", "", "")))
    assert answer.status_code == 200
    assert only(desk)["fields"] == {}


# --- names -----------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["email", "_replyto", "replyto", "Email"])
def test_the_address_has_many_names(desk: Desk, alias: str) -> None:
    desk.post("/contact", {alias: "ada@example.com", "message": "Hello"})
    assert only(desk)["email"] == "ada@example.com"
    assert only(desk)["fields"] == {}


@pytest.mark.parametrize("alias", ["message", "msg", "body", "comments"])
def test_the_text_has_many_names(desk: Desk, alias: str) -> None:
    desk.post("/contact", {"email": "ada@example.com", alias: "Hello"})
    assert only(desk)["message"] == "Hello"
    assert only(desk)["fields"] == {}


@pytest.mark.parametrize(
    "form",
    [
        {"name": "Ada Lovelace"},
        {"full_name": "Ada Lovelace"},
        {"firstName": "Ada", "lastName": "Lovelace"},
        {"first_name": "Ada", "last_name": "Lovelace"},
        {"lastName": "Ada Lovelace"},
        {"name": "", "full_name": " Ada\n Lovelace "},
    ],
    ids=str,
)
def test_the_name_has_many_names(desk: Desk, form: dict[str, str]) -> None:
    desk.post("/contact", FORM | form)
    assert only(desk)["name"] == "Ada Lovelace"
    assert only(desk)["fields"] == {}


@pytest.mark.parametrize("alias", ["subject", "_subject", "Subject"])
def test_the_subject_has_many_names_and_no_control_characters(
    desk: Desk, alias: str
) -> None:
    desk.post("/contact", FORM | {alias: "About\r\nBcc: x\x00\x1b[1m\tyou"})
    assert only(desk)["subject"] == "About Bcc: x[1m you"
    assert only(desk)["fields"] == {}


# --- limits and cleaning ---------------------------------------------------------

TEXT = "wörd and "  # no random letters: those would look like spam


@pytest.mark.parametrize(
    ("name", "limit"),
    [("message", 10_000), ("name", 200), ("subject", 200), ("colour", 10_000)],
)
def test_text_may_be_just_as_long_as_allowed(desk: Desk, name: str, limit: int) -> None:
    text = (TEXT * limit)[: limit - 1] + "!"
    too_long = desk.post("/contact", FORM | {name: text + "!"})
    assert [e["code"] for e in too_long.json["errors"]] == ["TOO_LONG"]
    assert desk.messages() == []
    assert desk.post("/contact", FORM | {name: f" {text}\r\n"}).status_code == 200
    message = only(desk)
    assert message["fields"].get(name, message.get(name)) == text


def test_40_other_fields_are_kept_in_order(desk: Desk) -> None:
    extra = {f"field {(n * 7) % 40}": str(n) for n in range(40)}
    assert desk.post("/contact", FORM | extra).status_code == 200
    assert list(only(desk)["fields"].items()) == list(extra.items())
    mail = desk.drain()[0]["TextPart"]
    places = [mail.index(f"{name}: {value}\n") for name, value in extra.items()]
    assert places == sorted(places)


def test_a_repeated_name_is_joined(desk: Desk) -> None:
    body = b"email=ada%40example.com&message=Hello&pet=cat&x=1&pet=dog"
    assert send(desk, FORM_TYPE, body).status_code == 200
    assert only(desk)["fields"] == {"pet": "cat, dog", "x": "1"}


def test_values_of_json_become_text(desk: Desk) -> None:
    extra = {
        "n": 1,
        "f": 1.5,
        "yes": True,
        "no": False,
        "pets": ["cat", "dog"],
        "x": None,
    }
    assert desk.post("/contact", FORM | extra).status_code == 200
    assert only(desk)["fields"] == {
        **{"n": "1", "f": "1.5", "yes": "true", "no": "false", "pets": "cat, dog"}
    }


@pytest.mark.parametrize("number", ["19.90", "1e400", "12345678901234567890"])
def test_numbers_of_json_stay_as_they_were_written(desk: Desk, number: str) -> None:
    form = json.dumps(FORM).replace("}", f', "budget": {number}}}')
    assert send(desk, "application/json", form.encode()).status_code == 200
    assert only(desk)["fields"] == {"budget": number}


def test_leftovers_of_other_services_are_dropped(desk: Desk) -> None:
    names = [
        *("access_key", "form-name", "_captcha", "_template", "_format", "_language"),
        *("_host_nonce", "g-recaptcha-response", "h-captcha-response", "_webhook"),
        *("cf-turnstile-response", "_cc", "ccemail", "_autoresponse"),
    ]
    leftovers = dict.fromkeys(names, "eve@evil.example")
    assert desk.post("/contact", FORM | leftovers).status_code == 200
    assert only(desk)["fields"] == {}
    (mail,) = desk.drain()
    assert "evil.example" not in json.dumps(mail)


def test_text_is_stored_composed_and_without_controls(desk: Desk) -> None:
    dirty = "e\u0301\x00\x07 a\tb\r\nc\x9b\ud800"
    form = FORM | {"message": dirty, "re\u0301\x00sume\u0301": dirty}
    send(
        desk, "application/json", json.dumps(form).encode()
    )  # escapes what is not ASCII
    assert only(desk)["message"] == "é a\tb\nc\ufffd"
    assert only(desk)["fields"] == {"résumé": "é a\tb\nc\ufffd"}


# --- what is stored --------------------------------------------------------------


def test_a_message_is_stored_with_time_page_and_reasons(desk: Desk) -> None:
    answer = desk.post(
        "/contact",
        FORM | {"name": "Ada", "subject": "Hi"},
        Referer=f"{SITE}/about?token=x#y",
    )
    assert only(desk) == {
        "id": answer.json["id"],
        "received_at": "2027-01-15T12:00:00Z",
        "name": "Ada",
        "email": "ada@example.com",
        "subject": "Hi",
        "message": "Hello",
        "fields": {},
        "page": f"{SITE}/about",
        "spam_score": 0,
        "spam_reasons": [],
        "held": False,
        "mailed_at": None,
        "delivery": None,
        "delivery_reason": None,
    }
    desk.clock.advance(60)
    desk.drain()
    assert only(desk)["mailed_at"] == "2027-01-15T12:01:00Z"


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("203.0.113.77", "203.0.113.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("::ffff:203.0.113.77", "203.0.113.0"),
    ],
)
def test_the_clients_address_is_stored_truncated(
    desk: Desk, address: str, kept: str
) -> None:
    desk.client.simulate_post("/contact", json=FORM, remote_addr=address)
    (mail,) = desk.drain()
    assert f"Network: {kept}\n" in mail["TextPart"]
    assert address not in json.dumps([mail, desk.messages()])


# --- double submission -----------------------------------------------------------


def ids(desk: Desk) -> list[str]:
    return [message["id"] for message in desk.messages()]


def test_the_same_body_is_new_after_ten_minutes(desk: Desk) -> None:
    first = desk.post("/contact", FORM).json["id"]
    desk.clock.advance(599)
    assert desk.post("/contact", FORM).json["id"] == first
    desk.clock.advance(1)
    second = desk.post("/contact", FORM).json["id"]
    assert ids(desk) == [first, second]
    assert [mail["CustomID"] for mail in desk.drain()] == [first, second]


@pytest.mark.parametrize(
    "change",
    [
        {"message": "Hello!"},
        {"email": "eve@example.com"},
        {"name": "Ada"},
        {"subject": "Hi"},
        {"colour": "red"},
    ],
    ids=str,
)
def test_another_body_is_another_message(desk: Desk, change: dict[str, str]) -> None:
    first = desk.post("/contact", FORM).json["id"]
    second = desk.post("/contact", FORM | change).json["id"]
    assert sorted(ids(desk)) == sorted([first, second])


def test_the_same_body_from_another_address_is_another_message(desk: Desk) -> None:
    for peer in ("192.0.2.1", "192.0.2.2"):
        desk.client.simulate_post("/contact", json=FORM, remote_addr=peer)
    assert len(ids(desk)) == len(desk.drain()) == 2


def test_the_same_body_of_another_type_is_the_same_message(desk: Desk) -> None:
    first = desk.post("/contact", FORM).json["id"]
    again = send(desk, FORM_TYPE, urlencode(FORM).encode()).json["id"]
    assert again == first and ids(desk) == [first]


def test_an_idempotency_key_holds_for_a_day(desk: Desk) -> None:
    first = desk.post("/contact", FORM, Idempotency_Key="k1").json["id"]
    desk.clock.advance(86_399)
    again = desk.post("/contact", FORM, Idempotency_Key="k1")
    assert again.json["id"] == first and ids(desk) == [first]
    desk.clock.advance(601)  # the body itself is known for ten minutes
    second = desk.post("/contact", FORM, Idempotency_Key="k1").json["id"]
    assert ids(desk) == [first, second]
    assert len(desk.drain()) == 2


def test_the_same_key_with_another_text_is_a_message_of_its_own(desk: Desk) -> None:
    first = desk.post("/contact", FORM, Idempotency_Key="k1").json["id"]
    other = FORM | {"message": "Another text"}
    desk.clock.advance(1)
    second = desk.post("/contact", other, Idempotency_Key="k1").json["id"]
    assert ids(desk) == [first, second]
    assert len(desk.drain()) == 2


def test_a_key_holds_when_the_sender_changes_networks(desk: Desk) -> None:
    def post(address: str, **more: str) -> str:
        answer = desk.client.simulate_post(
            "/contact",
            json=FORM | more,
            headers={"Idempotency-Key": "1"},
            remote_addr=address,
        )
        return str(answer.json["id"])

    first = post("203.0.113.1")
    assert post("198.51.100.1") == first
    assert post("203.0.113.1", email="bob@example.com") != first


def test_a_new_key_does_not_make_the_same_body_new(desk: Desk) -> None:
    first = desk.post("/contact", FORM, Idempotency_Key="k1").json["id"]
    assert desk.post("/contact", FORM, Idempotency_Key="k2").json["id"] == first
    desk.clock.advance(3600)
    assert desk.post("/contact", FORM, Idempotency_Key="k2").json["id"] == first
    assert ids(desk) == [first]


# --- held ------------------------------------------------------------------------


@pytest.mark.parametrize("trap", ["_gotcha", "_honey", "botcheck", "bot-field"])
def test_a_filled_trap_is_held_and_answered_like_a_success(
    desk: Desk, trap: str
) -> None:
    honest = desk.post("/contact", FORM)
    spam = desk.post("/contact", FORM | {"message": "Buy", trap: "x"})
    assert spam.status_code == honest.status_code == 200
    assert spam.json | {"id": ""} == honest.json | {"id": ""}
    held = [message for message in desk.messages() if message["held"]]
    assert [(m["id"], m["message"]) for m in held] == [(spam.json["id"], "Buy")]
    assert held[0]["spam_reasons"] and held[0]["fields"] == {}
    assert [mail["CustomID"] for mail in desk.drain()] == [honest.json["id"]]


@pytest.mark.parametrize("value", ["", False, None])
def test_an_empty_trap_catches_nobody(desk: Desk, value: object) -> None:
    desk.post("/contact", FORM | {"botcheck": value})
    assert only(desk)["held"] is False
    assert len(desk.drain()) == 1


@pytest.mark.parametrize(
    "form",
    [{"_subject": "From site.example"}, {"subject": "site.example", "apiKey": "x"}],
)
def test_a_sites_name_in_its_own_subject_says_nothing(
    desk: Desk, form: dict[str, str]
) -> None:
    answer = submit(desk, FORM | {"message": "Are you free in March?"} | form)
    assert answer.status_code == 303  # not asked whether it is spam


def test_a_held_plain_form_lands_like_any_other(desk: Desk) -> None:
    answer = submit(desk, FORM | {"_gotcha": "x", "_next": "/ok"})
    assert answer.status_code == 303
    assert answer.headers["Location"] == f"{SITE}/ok"
    assert (only(desk)["held"], desk.drain()) == (True, [])


# --- where to go next ------------------------------------------------------------


@pytest.mark.parametrize("alias", ["_next", "_redirect", "redirect"])
@pytest.mark.parametrize(
    ("wanted", "headers", "landed"),
    [
        ("/ok?a=1", {}, f"{SITE}/ok?a=1"),
        ("ok", {"Referer": f"{SITE}/blog/post"}, f"{SITE}/blog/ok"),
        ("https://www.site.example/ok", {}, "https://www.site.example/ok"),
        ("https://evil.example", {}, "https://desk.example/thanks"),
        ("//evil.example", {}, "https://desk.example/thanks"),
        ("javascript:alert(1)", {}, "https://desk.example/thanks"),
        ("", {}, "https://desk.example/thanks"),
    ],
)
def test_a_plain_form_lands_where_it_may(
    desk: Desk, alias: str, wanted: str, headers: dict[str, str], landed: str
) -> None:
    answer = submit(desk, FORM | {alias: wanted}, **headers)
    assert answer.status_code == 303
    assert answer.headers["Location"] == landed
    assert answer.content == b""
    assert only(desk)["fields"] == {}
    # A script is told the same.
    assert (
        desk.post("/contact", FORM | {alias: wanted}, **headers).json["next"] == landed
    )


@pytest.mark.parametrize("path", ["/contact", "/newsletter"])
def test_a_guessed_address_is_not_put_into_a_redirect(
    make_desk: Callable[..., Desk], path: str
) -> None:
    desk = make_desk(public_url="http://localhost:8000", port=8000)
    for wanted, landed in (("", "/thanks"), (f"{SITE}/ok", f"{SITE}/ok")):
        body = urlencode(FORM | {"_next": wanted})
        headers = BROWSER | {"Content-Type": FORM_TYPE}
        answer = desk.client.simulate_post(path, body=body, headers=headers)
        assert answer.status_code == 303
        assert answer.headers["Location"].partition("?")[0] == landed


def test_thanks_url_is_where_the_others_land(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(thanks_url="https://elsewhere.example/thanks")
    for wanted in ("", "https://evil.example"):
        answer = submit(desk, FORM | {"_next": wanted})
        assert answer.headers["Location"] == "https://elsewhere.example/thanks"


def test_a_relative_wish_needs_a_known_site(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(allowed_origins=("*",))
    wish = FORM | {"_next": "/ok"}
    answer = submit(desk, wish, Origin="null")
    assert answer.headers["Location"] == "https://desk.example/thanks"
    answer = submit(desk, wish, Origin="https://any.example")
    assert answer.headers["Location"] == "https://any.example/ok"


def test_the_thanks_page_leads_back(desk: Desk) -> None:
    headers = {"Accept": "text/html", "Referer": f"{SITE}/contact"}
    page = desk.client.simulate_get("/thanks", headers=headers)
    assert page.status_code == 200
    assert f'href="{SITE}/contact"' in page.text


# --- the owner's mail ------------------------------------------------------------


def test_the_mail_is_the_contracts(desk: Desk) -> None:
    form = FORM | {"name": "Ada Lovelace", "subject": "Engines", "colour": "red"}
    answer = desk.post("/contact", form, Referer=f"{SITE}/about?x=1")
    (mail,) = desk.drain()
    text = mail.pop("TextPart")
    assert mail == {
        "From": {"Email": "site@site.example", "Name": "Site"},
        "To": [{"Email": "owner@site.example"}],
        "ReplyTo": {"Email": "ada@example.com", "Name": "Ada Lovelace"},
        "Subject": "[site.example] Engines",
        "TrackOpens": "disabled",
        "TrackClicks": "disabled",
        "CustomID": answer.json["id"],
    }
    for part in ("Hello", "colour: red", f"Page: {SITE}/about\n", "Ada Lovelace"):
        assert part in text


@pytest.mark.parametrize(
    ("form", "subject"),
    [
        ({"name": "Ada"}, "[site.example] Message from Ada"),
        ({}, "[site.example] Message from ada@example.com"),
        (
            {"subject": "Hi\r\nBcc: eve@evil.example"},
            "[site.example] Hi Bcc: eve@evil.example",
        ),
        ({"subject": "  "}, "[site.example] Message from ada@example.com"),
        ({"subject": "<b>{{ 7*7 }}</b> & %s"}, "[site.example] <b>{{ 7*7 }}</b> & %s"),
    ],
    ids=str,
)
def test_the_subject_says_what_it_is_about(
    desk: Desk, form: dict[str, str], subject: str
) -> None:
    desk.post("/contact", FORM | form)
    assert desk.drain()[0]["Subject"] == subject


def test_nobody_a_visitor_names_is_mailed_to(desk: Desk) -> None:
    eve = "eve@evil.example"
    names = ("To", "to", "cc", "bcc", "From", "_to", "_cc", "recipient", "Reply-To")
    desk.post("/contact", FORM | dict.fromkeys(names, eve))
    (mail,) = desk.drain()
    assert mail["To"] == [{"Email": "owner@site.example"}]
    assert mail["From"]["Email"] == "site@site.example"
    assert not {"Cc", "Bcc", "Headers", "HTMLPart", "Sender"} & set(mail)


def test_the_mail_is_plain_text_as_typed(desk: Desk) -> None:
    text = "<b>Hi</b> & {{ 7*7 }} {% x %}\n\n.\nSubject: no"
    desk.post("/contact", FORM | {"message": text})
    (mail,) = desk.drain()
    assert text in mail["TextPart"] and "HTMLPart" not in mail


def test_without_settings_for_mail_a_message_is_kept_all_the_same(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(mail_from=None, mail_to=None)
    desk.post("/contact", FORM)
    assert len(desk.messages()) == len(desk.drain()) == 1


def test_the_senders_name_reaches_the_mail(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(mail_to=Address("Owner", "owner@site.example"))
    desk.post("/contact", FORM)
    assert desk.drain()[0]["To"] == [{"Email": "owner@site.example", "Name": "Owner"}]
