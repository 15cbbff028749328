"""Forms of public sites that post to form services, filled in as a person would."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from frontdesk import forms, spam
from tests.conftest import Desk

FORMS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "corpus" / "forms.json").read_text("utf-8")
)
SITE = "https://site.example"
VISITOR = "ada@example.com"
SENTENCES = {
    "en": "Hello, I saw your page. Could you call me back on Thursday?",
    "es": "Hola, he visto su página. ¿Podrían llamarme el jueves por la tarde?",
    "pt": "Olá, vi a vossa página. Podem ligar-me na quinta-feira à tarde?",
    "fr": "Bonjour, j'ai vu votre site. Pouvez-vous me rappeler jeudi ?",
    "de": "Guten Tag, ich habe Ihre Seite gesehen. Rufen Sie mich bitte zurück?",
    "it": "Buongiorno, ho visto il vostro sito. Potete richiamarmi giovedì?",
    "nl": "Goedendag, ik zag uw website. Kunt u mij donderdag terugbellen?",
    "pl": "Dzień dobry, widziałam stronę. Czy mogą Państwo oddzwonić w czwartek?",
    "tr": "Merhaba, sitenizi gördüm. Perşembe günü beni arayabilir misiniz?",
    "no": "Hei, jeg har sett siden deres. Kan dere ringe meg på torsdag?",
    "hr": "Dobar dan, vidjela sam vašu stranicu. Možete li me nazvati u četvrtak?",
    "zh": "您好，我看到了贵公司的网站。请问星期四可以给我回电话吗？",
    "cs": "Dobrý den, viděla jsem vaše stránky. Můžete mi ve čtvrtek zavolat?",
    "ro": "Bună ziua, am văzut pagina dumneavoastră. Mă puteți suna joi?",
    "ru": "Здравствуйте, я видела ваш сайт. Перезвоните мне, пожалуйста.",
    "uk": "Добрий день, я бачила ваш сайт. Чи можете передзвонити мені?",
    "da": "Hej, jeg har set jeres side. Kan I ringe til mig på torsdag?",
    "sv": "Hej, jag har sett er sida. Kan ni ringa mig på torsdag?",
    "id": "Halo, saya melihat situs Anda. Bisakah Anda menelepon saya Kamis?",
    "vi": "Xin chào, tôi đã xem trang của bạn. Bạn có thể gọi lại cho tôi không?",
    "ja": "こんにちは。ホームページを拝見しました。木曜日にお電話いただけますか。",
    "ko": "안녕하세요, 홈페이지를 보았습니다. 목요일에 전화해 주시겠어요?",
}
VALUES = {
    "email": VISITOR,
    "tel": "+44 20 7946 0958",
    "url": "https://example.com/ada",
    "date": "2027-02-01",
    "number": "3",
    "postcode": "EC1A 1BB",
    "name": "Ada Lovelace",
}
NAMED = {  # by parts of a field's name, where its type says nothing
    "mail|replyto|posta": VISITOR,
    "phone|tel[eé]?f|mobile|cell": VALUES["tel"],
    "user|n[ao]m[eb]|nom$|nume|apellido|name": "Ada Lovelace",
    "navn|ime$|^imie|nazwisko|soyad|isim|名|人$": "Ada Lovelace",
    "company|empresa|business|org|betrieb": "Analytical Engines",
    "subject|asunto|sujet|topic": "About your offer",
}
TRAPS = (
    *("_gotcha", "_honey", "honeypot", "_honeypot", "botcheck", "bot-field", "b_X_X"),
)
CAPTCHAS = ("g-recaptcha-response", "h-captcha-response")
Pairs = list[tuple[str, Any]]


def is_script(form: dict[str, Any]) -> bool:
    return form["transport"] in ("json", "formdata-fetch") or bool(form["headers"])


def is_visible(field: dict[str, Any]) -> bool:
    service = field["name"] in TRAPS + CAPTCHAS
    return not service and field["type"] not in ("hidden", "submit", "file")


def value_of(form: dict[str, Any], field: dict[str, Any]) -> Any:
    """Return what an honest person leaves in a field, None if nothing is sent."""
    name, kind, value = field["name"], field["type"], field.get("value")
    if name in TRAPS:
        if kind == "checkbox":
            return False if form["transport"] == "json" else None
        return ""
    if kind == "file":
        return b"" if form["transport"] != "json" else None
    if not is_visible(field):
        return value or ""
    if kind in ("select", "radio", "checkbox"):
        return value or "on"
    if kind == "textarea":
        return SENTENCES[form["lang"]]
    if kind in VALUES:
        return VALUES[kind]
    for part, text in NAMED.items():
        if re.search(part, name.lower().replace("_", "").replace("-", "")):
            return text
    if form["kind"] == "newsletter" and not any(
        f["type"] == "email" or "mail" in f["name"].lower() for f in form["fields"]
    ):
        return VISITOR
    return SHORT


def filled_in(form: dict[str, Any]) -> tuple[Pairs, list[str], str]:
    """Return what is sent, what of it was typed or chosen, and the typed address."""
    sent: Pairs = []
    typed, address = [], ""
    for field in form["fields"]:
        value = value_of(form, field)
        if value is None:
            continue
        sent.append((field["name"], value))
        if value and is_visible(field):
            typed.append(str(value))
        if value == VISITOR:
            address = VISITOR
    return sent, typed, address


def multipart(pairs: Pairs) -> bytes:
    lines: list[bytes] = []
    for name, value in pairs:
        file = '; filename=""' if isinstance(value, bytes) else ""
        disposition = f'Content-Disposition: form-data; name="{name}"{file}'
        text = value if isinstance(value, bytes) else str(value).encode()
        lines += [b"--b", disposition.encode(), b"", text]
    return b"\r\n".join([*lines, b"--b--", b""])


HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


def post(desk: Desk, form: dict[str, Any], pairs: Pairs, path: str = "") -> Any:
    """Send a form in its own transport, as a browser does."""
    script = is_script(form)
    body: bytes | str = multipart(pairs)
    kind = "multipart/form-data; boundary=b"
    if form["transport"] == "json":
        body, kind = json.dumps(dict(pairs)), "application/json"
    elif form["transport"] == "form-urlencoded":
        plain = [(name, "" if value == b"" else value) for name, value in pairs]
        body, kind = urlencode(plain), "application/x-www-form-urlencoded"
    headers = {
        "Accept": "*/*" if script else HTML,
        **form["headers"],
        "Accept-Language": f"{form['lang']},en;q=0.7",
        "Content-Type": kind,
        "Origin": SITE,
        "Referer": f"{SITE}/",
        "Sec-Fetch-Dest": "empty" if script else "document",
        "Sec-Fetch-Mode": "cors" if script else "navigate",
        "Sec-Fetch-Site": "cross-site",
        "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Firefox/144.0",
    }
    return desk.client.simulate_post(
        path or PATHS[form["kind"]], body=body, headers=headers
    )


SHORT = "Something short"  # in a field of which nothing is known
OTHERS = (
    *("Test", "Hello", "Lorem ipsum", "London", "3", "2027-02-01", "$5,000", "-"),
    *("https://example.com/ada", "www.example.com", "A question about your work"),
)
PATHS = {"contact": "/f/xyzabcde", "other": "/contact", "newsletter": "/f/newsletter"}


def real(*kinds: str) -> list[Any]:
    return [
        pytest.param(form, id=form["id"])
        for form in FORMS
        if form["kind"] in kinds and any(map(is_visible, form["fields"]))
    ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("form", real("contact", "other"))
def test_a_real_form_arrives_whole(desk: Desk, form: dict[str, Any]) -> None:
    sent, typed, address = filled_in(form)
    answer = post(desk, form, sent)
    assert answer.status_code == (200 if is_script(form) else 303), answer.text
    [row], [mail] = desk.messages(), desk.drain()
    assert not row["held"], row["spam_reasons"]
    columns = [row[name] for name in ("name", "email", "subject", "message")]
    stored = "\n".join([*columns, *row["fields"].values()])
    for value in typed:
        assert value in stored
        assert value in mail["TextPart"].replace("\n  ", "\n")
    if address:
        assert mail["ReplyTo"]["Email"] == address
    assert "[maybe spam]" not in mail["Subject"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("form", real("newsletter"))
def test_a_real_sign_up_form_signs_up(desk: Desk, form: dict[str, Any]) -> None:
    sent, _, address = filled_in(form)
    answer = post(desk, form, sent)
    assert answer.status_code in (200, 303), answer.text
    assert [(row["email"], row["status"]) for row in desk.subscribers()] == [
        (address, "pending")
    ]


@pytest.mark.parametrize("text", OTHERS)
def test_no_form_filled_in_by_a_person_looks_like_spam(text: str) -> None:
    for form in FORMS:
        sent, _, _ = filled_in(form)
        values = {name: text if value == SHORT else str(value) for name, value in sent}
        if form["kind"] == "newsletter" or not any(map(is_visible, form["fields"])):
            continue
        found = forms.contact(values)
        read = spam.read(*found.said())
        assert spam.judge(read).points < spam.ASK, (form["id"], read.signs)
