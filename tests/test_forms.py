"""Clean text, fields by their many names, landing pages and counted pages."""

from __future__ import annotations

import string
import unicodedata
from typing import Any
from urllib.parse import quote

import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import given, settings
from hypothesis import strategies as st

from frontdesk import forms
from frontdesk.forms import Rejected, clean, next_url, page_of, valid_email
from frontdesk.links import BadLinkError, Links
from frontdesk.settings import Origins

properties = settings(max_examples=100, deadline=None)
ANY_TEXT = st.text(st.characters())  # lone surrogates too


# --- text ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain", "plain"),
        ("  around \n", "around"),
        ("two\r\nlines\rthree\n", "two\nlines\nthree"),
        ("tab\tstays", "tab\tstays"),
        ("a\x00b\x07c\x1bd\x7fe\x9bf", "abcdef"),
        ("e\u0301", "é"),
        ("\u212b", "Å"),
        ("a\ud800b", "a\ufffdb"),
        ("👩‍👩‍👧 שלום", "👩‍👩‍👧 שלום"),
        ("\x00", ""),
    ],
)
def test_text_is_cleaned(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@properties
@given(ANY_TEXT)
def test_clean_text_is_nfc_without_controls_and_stays_so(text: str) -> None:
    cleaned = clean(text)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert {c for c in cleaned if unicodedata.category(c) in ("Cc", "Cs")} <= {*"\n\t"}
    assert clean(cleaned) == cleaned == cleaned.strip()
    cleaned.encode()


# --- addresses -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ada@example.com", "ada@example.com"),
        ("Ada.L+tag@EXAMPLE.com", "Ada.L+tag@example.com"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("ada@site.test", "ada@site.test"),
        ("", None),
        ("ada", None),
        ("ada@localhost", None),
        ("ada@@example.com", None),
        ("ada@example.com, eve@example.com", None),
        ("Ada <ada@example.com>", None),
        ("ada@example.com\nBcc: eve@example.com", None),
        ("ada@example.com\n", None),
        ('"quoted words"@example.com', None),
        ("ada@[192.0.2.1]", None),
        (".ada@example.com", None),
        ("\ufffd@example.com", None),
        ("a" * 250 + "@example.com", None),
        *((f"ada@desk.{name}", None) for name in ("local", "arpa", "onion", "invalid")),
        ("ada@xn--a.example", None),
        ("ada@a--b.example", "ada@a--b.example"),
    ],
)
def test_an_address_is_one_mailbox_or_none(text: str, address: str | None) -> None:
    assert valid_email(text) == address


TOP_LEVELS = ("com", "co.uk", "test", "local", "arpa", "x", "c0m")


@properties
@given(
    st.from_regex("[a-z0-9_+.-]{1,9}@[a-z0-9.-]{1,9}", fullmatch=True),
    st.sampled_from(TOP_LEVELS),
)
def test_known_by_sight_or_not_an_address_is_what_the_library_takes(
    start: str, top_level: str
) -> None:
    text = f"{start}.{top_level}"
    try:
        known = validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        assert valid_email(text) is None
    else:
        assert valid_email(text) == known.ascii_email


@properties
@given(st.text(max_size=40), st.sampled_from(["", "@example.com", "@", "@xn--"]))
def test_no_address_ever_breaks_a_mails_head(text: str, end: str) -> None:
    address = valid_email(clean(text + end))
    if address is not None:
        assert address.count("@") == 1
        assert not set(address) & {*string.whitespace, *'<>,;:\\"'}


# --- fields ----------------------------------------------------------------------

GOOD = {"email": "ada@example.com", "message": "Hello"}


@given(
    st.dictionaries(
        st.sampled_from(sorted(forms.KNOWN)) | st.text(max_size=20),
        st.text(max_size=300),
        max_size=50,
    )
)
@properties
def test_any_form_is_understood_or_rejected_with_reasons(
    values: dict[str, str],
) -> None:
    cleaned = {clean(k): clean(v) for k, v in values.items() if clean(k)}
    try:
        message = forms.contact(cleaned)
    except Rejected as rejected:
        assert rejected.errors
        for error in rejected.errors:
            assert error["code"] and error["message"]
            assert error.get("field", "email") in forms.KNOWN
        return
    assert valid_email(message.email) == message.email and message.text
    assert not set(message.extra) & forms.LEFTOVERS
    assert not set(message.extra) & {*forms.NEXT, *forms.HONEYPOTS}
    assert "\n" not in message.name + message.subject


@pytest.mark.parametrize(
    ("form", "extra"),
    [
        ({"z": "1", "a": "2", "m": "3"}, {"z": "1", "a": "2", "m": "3"}),
        ({"body": "A second text"}, {"body": "A second text"}),
        ({"_replyto": "eve@example.com"}, {"_replyto": "eve@example.com"}),
        ({"body": "Hello", "_replyto": "ada@example.com"}, {}),
        ({"empty": ""}, {"empty": ""}),
        (dict.fromkeys(sorted(forms.LEFTOVERS), "x"), {}),
        (dict.fromkeys((*forms.NEXT, *forms.HONEYPOTS), ""), {}),
    ],
    ids=str,
)
def test_other_fields_are_kept_in_order(
    form: dict[str, str], extra: dict[str, str]
) -> None:
    message = forms.contact(GOOD | form)
    assert list(message.extra.items()) == list(extra.items())


# --- where to land ---------------------------------------------------------------

SITE = "https://site.example/contact/"
LANDINGS: list[tuple[str, str | None]] = [
    ("/thanks", "https://site.example/thanks"),
    ("thanks", "https://site.example/contact/thanks"),
    ("../thanks?a=1#b", "https://site.example/thanks?a=1#b"),
    ("?sent", "https://site.example/contact/?sent"),
    ("https://site.example/ok", "https://site.example/ok"),
    ("https://www.site.example/ok", "https://www.site.example/ok"),
    ("HTTPS://SITE.example/ok", "https://SITE.example/ok"),
    ("//site.example/ok", "https://site.example/ok"),
    ("/dänke", "https://site.example/d%C3%A4nke"),
    ("/a%20b", "https://site.example/a%20b"),
    ("", None),
    ("https://evil.example", None),
    ("//evil.example", None),
    ("///evil.example", None),
    ("////evil.example", None),
    ("/\\evil.example", None),
    ("\\\\evil.example", None),
    ("/\t/evil.example", None),
    ("/\n/evil.example", None),
    (" https://evil.example", None),
    ("\x00https://site.example", None),
    ("http://site.example/ok", None),
    ("https://site.example:8443/ok", None),
    ("https://site.example.evil.example", None),
    ("https://site.example@evil.example", None),
    ("https://evil.example@site.example", None),
    ("https://site.example:pass@evil.example", None),
    ("https://evil.example?https://site.example", None),
    ("https://evil.example#@site.example", None),
    ("https://site.example\\.evil.example", None),
    ("https://site.example%2eevil.example", None),
    ("https://site.example%00.evil.example", None),
    ("https://[site.example]", None),
    ("https://", None),
    ("javascript:alert(1)", None),
    ("JaVaScRiPt://site.example/%0aalert(1)", None),
    ("data:text/html,x", None),
    ("mailto:x@site.example", None),
    ("blob:https://site.example/x", None),
    ("https:evil.example", None),
    ("https:/evil.example", None),
    ("https:///evil.example", None),
    ("http:evil.example", None),
    ("false", None),
    ("/" + "x" * 2000, None),
]


@pytest.mark.parametrize(("wanted", "url"), LANDINGS, ids=lambda v: str(v)[:50])
def test_a_form_lands_only_on_an_allowed_origin(wanted: str, url: str | None) -> None:
    found = next_url(wanted, SITE, Origins(("https://site.example",)).allows)
    assert found == url


def test_a_relative_wish_of_an_unknown_site_is_ignored() -> None:
    assert next_url("/thanks", None, Origins(("*",)).allows) is None


def browsers_host(url: str) -> str:
    """Return the host that a browser would go to (WHATWG URL standard)."""
    kept = "".join(c for c in url.strip(" ") if c not in "\t\r\n").replace("\\", "/")
    scheme, _, rest = kept.partition(":")
    assert scheme.lower() in ("http", "https")
    authority = rest.lstrip("/").replace("?", "/").replace("#", "/").partition("/")[0]
    return authority.rpartition("@")[2].lower()


TRICKS = st.sampled_from(
    [
        *("https:", "http:", "//", "/", "\\", "@", ":", "?", "#", ".", "..", "%2f"),
        *("site.example", "evil.example", "www.", "\t", "\n", "\r", " ", "\x00"),
        *("[", "]", "％", "／", "。", "javascript:", "ⓔ", "443", "%00", ";", "&"),
    ]
)


@properties
@given(st.lists(TRICKS | st.text(max_size=3), max_size=8).map("".join))
def test_no_wish_ever_leaves_the_allowed_origins(wanted: str) -> None:
    url = next_url(clean(wanted), SITE, Origins(("https://site.example",)).allows)
    if url is not None:
        assert url.isascii() and url.isprintable() and " " not in url
        assert url.startswith("https://")
        host = browsers_host(url).removesuffix(":443").removesuffix(":")
        assert host in ("site.example", "www.site.example")


# --- pages -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "page"),
    [
        ("/about", "/about"),
        ("about", "/about"),
        ("/about/", "/about"),
        ("//about///us//", "/about/us"),
        ("/", "/"),
        ("https://site.example", "/"),
        ("https://site.example/about?x=1#y", "/about"),
        ("HTTP://site.example:80/About", "/About"),
        ("//evil.example/x", "/evil.example/x"),
        ("/a?page=/b", "/a"),
        ("/a#b?c", "/a"),
        ("/%61%62", "/ab"),
        ("/%7euser", "/~user"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%2Fb", "/a%2Fb"),
        ("/100%", "/100%25"),
        ("/100%25", "/100%25"),
        ("/%2541", "/%2541"),
        ("/%%34%31", "/%2541"),
        ("/a b", "/a%20b"),
        ("/a%20b", "/a%20b"),
        ("/%3Cb%3e", "/%3Cb%3E"),
        ("/<b>", "/%3Cb%3E"),
        ("/caf%C3%A9", "/café"),
        ("/caf%c3%a9", "/café"),
        ("/cafe\u0301", "/café"),
        ("/cafe%CC%81", "/café"),
        ("/%ff%FE", "/%FF%FE"),
        ("/\u200b", "/%E2%80%8B"),
        ("/%e2%80%8b", "/%E2%80%8B"),
        ("/%3C\u0327", "/%3C\u0327"),
        ("/\u1fef", "/%60"),
        ("/日本語", "/日本語"),
    ],
)
def test_a_page_has_one_normal_form(text: str, page: str) -> None:
    assert page_of(text) == page


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("/a\x00", "TYPE_TEXT"),
        ("/a\nb", "TYPE_TEXT"),
        ("/%00", "TYPE_TEXT"),
        ("/%0d%0aSet-Cookie", "TYPE_TEXT"),
        ("/%7f", "TYPE_TEXT"),
        ("/%c2%80", "TYPE_TEXT"),
        ("/\x85", "TYPE_TEXT"),
        ("/\ud800", "TYPE_TEXT"),
        ("/" + "x" * 200, "TOO_LONG"),
        ("/" + "x" * 5000, "TOO_LONG"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_page_that_is_none_is_refused(text: str, code: str) -> None:
    with pytest.raises(Rejected) as caught:
        page_of(text)
    assert [(e["code"], e["field"]) for e in caught.value.errors] == [(code, "page")]


def test_a_page_of_200_characters_is_counted() -> None:
    assert len(page_of("/" + "x" * 199)) == 200


PATHS = st.lists(
    st.text(st.characters(), max_size=4)
    | st.sampled_from(
        ["/", "%", "?", "#", "%2", "%3C", "\u0327", "\u1fef", "://", "%CC"]
    )
    | st.binary(max_size=3).map(quote),
    max_size=8,
).map("".join)


@properties
@given(PATHS)
def test_a_normal_page_is_safe_and_stays_as_it_is(text: str) -> None:
    try:
        page = page_of(text)
    except Rejected as rejected:
        assert rejected.errors[0]["code"] in ("TYPE_TEXT", "TOO_LONG")
        return
    assert page_of(page) == page
    assert page.startswith("/") and "//" not in page and len(page) <= 200
    assert page == "/" or not page.endswith("/")
    assert page.isprintable()
    assert not set(page) & {*' "<>\\^`{|}?#'}
    assert page_of(f"https://site.example{page}?x=1#y") == page


@properties
@given(st.text(string.ascii_letters + "/ äöü%é日-._~", max_size=50))
def test_a_path_and_its_escaped_spelling_are_one_page(path: str) -> None:
    once = unicodedata.normalize("NFC", path).strip(" ")
    if "%" not in path:
        assert page_of("/" + once) == page_of("/" + quote(once))


# --- signed links ----------------------------------------------------------------

LINKS = Links(("k" * 32,), "https://desk.example", lambda: 1_800_000_000.0)
PURPOSES = ("confirm", "unsubscribe", "not-me", "release", "ask")
TOKEN = LINKS.token("confirm", ["abc", "def"])


@properties
@given(
    st.integers(0, len(TOKEN)),
    st.integers(0, 3),
    st.text(string.ascii_letters + string.digits + "-_.=+/", max_size=3),
)
def test_a_tampered_token_never_says_anything_else(at: int, cut: int, put: str) -> None:
    tampered = TOKEN[:at] + put + TOKEN[at + cut :]
    try:
        payload, age = LINKS.read("confirm", tampered)
    except BadLinkError:
        return
    # Base64 has several spellings: what counts is what was signed.
    assert (payload, age) == (["abc", "def"], 0)
    assert tampered.rpartition(".")[0] == TOKEN.rpartition(".")[0]


@properties
@given(ANY_TEXT)
def test_no_text_is_a_token(text: str) -> None:
    for purpose in PURPOSES:
        with pytest.raises(BadLinkError):
            LINKS.read(purpose, text)


@pytest.mark.parametrize("signed", PURPOSES)
@pytest.mark.parametrize("read", PURPOSES)
def test_a_token_opens_no_other_door(signed: str, read: str) -> None:
    token: str = LINKS.token(signed, "abc")
    payload: Any = None
    if signed == read:
        payload, _ = LINKS.read(read, token)
        assert payload == "abc"
    else:
        with pytest.raises(BadLinkError):
            LINKS.read(read, token)
