"""Hold every catalog to its sentences, and numbers and dates to their language."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from datetime import UTC, date, datetime
from functools import cache
from html import unescape
from pathlib import Path

import pytest
from babel import Locale
from babel.dates import format_date, format_time
from babel.messages.catalog import Catalog, Message
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from frontdesk.languages import CODES, DOMAIN, LOCALES, Language, language_code
from frontdesk.pages import Pages
from tests.support.samples import EVERY, HELD, MESSAGE
from tests.support.server import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import formats

TRANSLATED = [code for code in CODES if code != "en"]
# To do: catalogs that nobody has translated yet. A language leaves this list for good.
TO_DO: list[str] = []
DONE = [code for code in TRANSLATED if code not in TO_DO]

# How long a sentence may be in its place, which its context names: at 360 px a button
# has one or two lines, a heading three. A word of Chinese characters is half as long.
PLACES = {"button": 36, "heading": 45, "label": 28, "subject": 75}
SHORT = {"hits": 16, "visitors": 16, "%(n)s hit": 24, "%(n)s visitor": 24}
# What is the same in many languages, or means nothing.
SAME = {
    "Newsletter",
    "README",
    "OpenAPI",
    "Network",
    "Text",
    "Page",
    "Visits: %(page)s",
}
# Words that only English has, so that a sentence with one of them was forgotten.
ENGLISH = re.compile(
    r"\b(the|your?|and|this|that|with|please|from|not|here|there)\b", re.I
)


@cache
def catalog(code: str) -> Catalog:
    path = LOCALES / code / "LC_MESSAGES" / f"{DOMAIN}.po"
    with path.open("rb") as file:
        return read_po(file, locale=code)


@cache
def template() -> Catalog:
    with (LOCALES / f"{DOMAIN}.pot").open("rb") as file:
        return read_po(file)


def sentences(messages: Catalog) -> list[Message]:
    return [message for message in messages if message.id]


def texts(message: Message) -> list[str]:
    string = message.string
    return list(string) if isinstance(string, (tuple, list)) else [str(string)]


def ids(message: Message) -> list[str]:
    return list(message.id) if isinstance(message.id, (tuple, list)) else [message.id]


def key(message: Message) -> tuple[str | None, str]:
    return message.context, ids(message)[0]


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"%\(\w+\)s|%.", text))


# --- the catalogs ----------------------------------------------------------------


def test_the_template_holds_every_sentence_of_the_code(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    command = makefile.partition("extract ")[2].partition("*.py frontdesk\n")[0]
    arguments = shlex.split(command.replace("\\\n", " "))
    arguments += [*(path.name for path in ROOT.glob("*.py")), "frontdesk"]
    found = tmp_path / "found.pot"
    arguments[arguments.index("--output") + 1] = str(found)
    run = [sys.executable, "-m", "babel.messages.frontend", "--quiet", "extract"]
    subprocess.run([*run, *arguments], cwd=ROOT, check=True)
    with found.open("rb") as file:
        now = {key(message) for message in sentences(read_po(file))}
    assert now == {key(message) for message in sentences(template())}, "make messages"


@pytest.mark.parametrize("code", TRANSLATED)
def test_each_catalog_has_the_templates_sentences_and_no_others(code: str) -> None:
    known = {key(message) for message in sentences(template())}
    assert {key(message) for message in sentences(catalog(code))} == known
    assert not catalog(code).obsolete


@pytest.mark.parametrize("code", TRANSLATED)
def test_each_catalog_is_compiled(code: str) -> None:
    compiled = io.BytesIO()
    write_mo(compiled, catalog(code))
    path = LOCALES / code / "LC_MESSAGES" / f"{DOMAIN}.mo"
    assert path.read_bytes() == compiled.getvalue(), "make messages"


def test_there_is_a_catalog_for_each_language_and_for_no_other() -> None:
    assert {path.name for path in LOCALES.iterdir() if path.is_dir()} == {*CODES}


@pytest.mark.parametrize("code", DONE)
def test_no_sentence_is_missing_or_doubtful(code: str) -> None:
    for message in sentences(catalog(code)):
        assert not message.fuzzy, message.id
        assert all(text.strip() for text in texts(message)), message.id
        forms = catalog(code).num_plurals if message.pluralizable else 1
        assert len(texts(message)) == forms, message.id


@pytest.mark.parametrize("code", DONE)
def test_no_placeholder_is_lost_or_made_up(code: str) -> None:
    for message in sentences(catalog(code)):
        wanted = set().union(*map(placeholders, ids(message)))
        for text in texts(message):
            assert placeholders(text) == wanted, (message.id, text)


@pytest.mark.parametrize("code", DONE)
def test_no_english_is_left_over(code: str) -> None:
    for message in sentences(catalog(code)):
        english = ids(message)
        for text in texts(message):
            bare = re.sub(r"%\(\w+\)s|[A-Z_]{4,}|/\w+", "", text)
            assert not ENGLISH.search(bare), text
            if " " in english[0] and english[0] not in SAME:
                assert text not in english, text


@pytest.mark.parametrize("code", DONE)
def test_what_a_link_or_number_follows_ends_with_a_colon(code: str) -> None:
    for message in sentences(catalog(code)):
        for text in texts(message):
            assert text == text.strip(), text
            assert ids(message)[0].endswith(":") == text.endswith((":", "：")), text


@pytest.mark.parametrize("code", DONE)
def test_sentences_fit_into_their_places(code: str) -> None:
    for message in sentences(catalog(code)):
        english = ids(message)[0]
        room = PLACES.get(message.context or "") or SHORT.get(english)
        room = room or 40 + 2 * len(english)
        for text in texts(message):
            bare = re.sub(r"%\(\w+\)s", "", text)
            wide = sum(2 if ord(char) > 0x2E80 else 1 for char in bare)
            assert wide <= room, (wide, room, text)


@pytest.mark.parametrize("code", DONE)
def test_no_page_or_mail_shows_a_word_of_english(code: str) -> None:
    """Render all there is, with values that have no words in them."""
    site = Pages(code, site_name="·")
    for name, values in EVERY.items():
        silent = {**values}
        if "message" in values:
            bare = {**MESSAGE, "name": "·", "shown": [("·", "·")], "reasons": ["·"]}
            silent["message"] = bare | {"subject": "", "received": "·"}
        if "messages" in values:
            bare = {"name": "·", "shown": [("·", "·")], "reasons": ["·"], "why": "·"}
            silent["messages"] = [
                {**message, **bare, "subject": "", "received": "·"}
                for message in values["messages"]
            ]
        if "items" in values:
            silent["items"] = [{**HELD, "first_line": "·", "reasons": ["·"]}]
        page = site.render(name, **silent).partition("<body")
        shown = re.sub(r"<pre.*?</pre>|<[^>]*>", " ", page[2] or page[0], flags=re.S)
        shown = re.sub(r"https?://\S+|\w+@\S+|/\w+|PUBLIC_URL|README", "", shown)
        assert not ENGLISH.search(unescape(shown)), name


def test_english_alone_shows_up_where_a_catalog_lacks_it() -> None:
    words = [text for message in sentences(template()) for text in ids(message)]
    long = [text for text in words if len(text) > 40]
    caught = [text for text in long if ENGLISH.search(text)]
    assert len(caught) > 0.9 * len(long)


# --- numbers and dates -----------------------------------------------------------


@pytest.mark.parametrize("code", CODES)
def test_formats_are_those_of_cldr(code: str) -> None:
    text = (LOCALES / code / "formats.json").read_text("utf-8")
    assert json.loads(text) == formats.formats(code), "make messages"


@pytest.mark.parametrize("code", CODES)
def test_dates_are_written_as_babel_writes_them(code: str) -> None:
    locale = Locale.parse("en_GB" if code == "en" else code)
    language, skeletons = Language(code), locale.datetime_skeletons
    for month in range(1, 13):
        moment = datetime(2026, month, 3, 9, 5, tzinfo=UTC)
        long = format_date(moment.date(), "long", locale)
        assert language.full_date(moment.date()) == long
        short = format_date(moment.date(), skeletons["MMMd"].pattern, locale)
        assert language.short_date(moment.date()) == short
        clock = format_time(moment, skeletons["Hm"].pattern, locale=locale)
        assert long in language.time(moment) and clock in language.time(moment)
        assert language.time(moment).endswith(" UTC")


@pytest.mark.parametrize(
    "code, small, thousand, large",
    [
        ("en", "999", "1,234", "1,234,567"),
        ("de", "999", "1.234", "1.234.567"),
        ("es", "999", "1234", "1.234.567"),
        ("fr", "999", "1\u202f234", "1\u202f234\u202f567"),
        ("ru", "999", "1\xa0234", "1\xa0234\xa0567"),
        ("ja", "999", "1,234", "1,234,567"),
    ],
)
def test_numbers_have_the_languages_mark(
    code: str, small: str, thousand: str, large: str
) -> None:
    number = Language(code).number
    assert [*map(number, (999, 1234, 1234567))] == [small, thousand, large]


def test_numbers_on_an_axis_are_short() -> None:
    short = Language("de").short_number
    assert [*map(short, (0, 999, 1000, 1500, 3_400_000))] == [
        *("0", "999", "1k", "1,5k", "3,4M")
    ]


# --- choosing a language ---------------------------------------------------------


@pytest.mark.parametrize(
    "text, code",
    [
        *(("de", "de"), ("pt-BR", "pt-BR"), ("pt_br", "pt-BR"), ("EN-gb", "en-GB")),
        *(("de-AT-1996", "de-AT-1996"), ("ru-cyrl-ru", "ru-Cyrl-RU")),
    ],
)
def test_a_language_may_name_a_region(text: str, code: str) -> None:
    assert language_code(text) == code
    assert Language(code).full_date(date(2026, 1, 3))


@pytest.mark.parametrize("text", ["xx", "german", "e", "", "de/../en", "de-Ä", "zh"])
def test_an_unknown_language_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(
        ValueError, match="en es pt fr de it nl pl cs ro ru uk da sv id"
    ):
        language_code(text)


def write_catalog(folder: Path, code: str, **strings: str) -> None:
    made = Catalog(locale=code)
    for message, translated in strings.items():
        made.add(message, translated)
    path = folder / code / "LC_MESSAGES" / f"{DOMAIN}.mo"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        write_mo(file, made)


def test_a_regions_catalog_comes_before_its_languages(tmp_path: Path) -> None:
    write_catalog(tmp_path, "pt", yes="sim", mail="correio")
    write_catalog(tmp_path, "pt_BR", mail="e-mail")
    language = Language("pt-BR", tmp_path)
    assert language.text("mail") == "e-mail"
    assert language.text("yes") == "sim"
    assert language.text("unheard of") == "unheard of"
    assert language.text("") == ""  # a catalog's empty sentence is its header


@pytest.mark.parametrize("n, text", [(1, "1 hit"), (0, "0 hits"), (2000, "2,000 hits")])
def test_plurals_follow_the_number(n: int, text: str) -> None:
    assert Language("en").plural("%(n)s hit", "%(n)s hits", n) == text


def test_one_catalog_is_read_and_only_when_a_sentence_is_needed() -> None:
    code = (
        "import builtins, io, sys; opened = []; real = io.open\n"
        "sys.addaudithook(lambda event, args: event == 'open' and "
        "'locales' in str(args[0]) and opened.append(str(args[0])))\n"
        "from frontdesk.pages import Pages\n"
        "site = Pages('de', site_name='x'); assert not opened, opened\n"
        "site.language.text('hits'); site.language.number(12345)\n"
        "print(len(opened), all('/de/' in path for path in opened))"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "True"], done.stderr


def test_two_languages_live_in_one_process() -> None:
    german, english = (Pages(code, site_name="x") for code in ("de", "en"))
    assert german.language.number(1234) == "1.234"
    assert english.language.number(1234) == "1,234"
    assert 'lang="de"' in german.render("thanks.html", back_url=None)
    assert 'lang="en"' in english.render("thanks.html", back_url=None)
