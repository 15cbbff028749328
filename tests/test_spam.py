"""What looks like spam, what does not, and how well both are told apart."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from frontdesk import spam
from frontdesk.spam import ASK, HOLD

CORPUS = Path(__file__).parent / "corpus"
BARE = {"origin": False, "referer": False, "accept_language": False}
HONEST = "Hello, are you free to photograph our wedding on 12 June near Leeds?"


def judge(message: str = HONEST, **known: Any) -> tuple[int, list[str]]:
    """Score a message; `known` is what else there is to know of it."""
    words = {key: known.pop(key) for key in ("name", "subject") if key in known}
    words["extra"] = known.pop("extra", {}).values()
    return spam.score(spam.read(message, **{"name": "Anna", **words}), **known)


def reasons(message: str = HONEST, **known: Any) -> str:
    return "\n".join(judge(message, **known)[1])


def points(message: str = HONEST, **known: Any) -> int:
    return judge(message, **known)[0]


def fingerprint(message: str) -> str:
    return spam.read(message).fingerprint


def corpus(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        (CORPUS / f"{name}.json").read_text("utf-8")
    )
    return rows


def judge_row(row: dict[str, Any]) -> tuple[int, list[str]]:
    apart = ("lang", "kind", "held_out", "email")
    return judge(**{k: v for k, v in row.items() if k not in apart})


# -- the corpus ------------------------------------------------------------------------


def figures(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Return how many were held, and how many asked."""
    totals = [judge_row(row)[0] for row in rows]
    return sum(n >= HOLD for n in totals), sum(ASK <= n < HOLD for n in totals)


def test_the_corpus_is_as_varied_as_the_figures_claim() -> None:
    honest, junk = corpus("honest"), corpus("spam")
    assert len(honest) >= 60
    assert len(junk) >= 60
    assert len({row["lang"] for row in honest}) >= 10
    assert len({row["lang"] for row in junk}) >= 10
    assert sum(bool(row.get("honeypot")) for row in junk) <= len(junk) / 6
    assert sum(bool(row.get("held_out")) for row in junk) >= len(junk) / 6
    assert not any(row.get("honeypot") for row in honest)


def test_no_honest_message_is_held_and_nine_of_ten_spam_are_held_or_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    honest, junk = corpus("honest"), corpus("spam")
    with capsys.disabled():
        print()
        for name, rows in (("honest", honest), ("spam", junk)):
            fresh = [row for row in rows if row.get("held_out")]
            for part, chosen in (("all", rows), ("held-out part", fresh)):
                held, asked = figures(chosen)
                passed = len(chosen) - held - asked
                print(
                    f"  spam corpus, {name:6} {part:13} {len(chosen):3} messages: "
                    f"{held:2} held, {asked:2} asked, {passed:3} passed"
                )
    held, asked = figures(honest)
    assert held == 0
    assert asked <= len(honest) / 30
    assert sum(figures(junk)) >= 0.9 * len(junk)
    # Written after the table was fixed, and the table was not changed for it.
    fresh = [row for row in junk if row.get("held_out")]
    assert sum(figures(fresh)) >= 0.6 * len(fresh)


# -- the table -------------------------------------------------------------------------


def test_no_single_signal_but_the_honeypot_holds() -> None:
    signs: list[dict[str, Any]] = [{"honeypot": True}, {"seconds_on_page": 0}, BARE]
    signs += [{"webdriver": True}, {"user_agent": False}, {"echoes": 3}]
    assert [sign for sign in signs if points(**sign) >= HOLD] == [{"honeypot": True}]
    assert all(points(**sign) > 0 for sign in signs)

    links = "HTTP://BIT.LY/X HTTP://B.EXAMPLE [URL= CASINO SEO UNSUBSCRIBE"
    extra = ["wаllеt", "viagra", "bitcoin"]
    hits = spam.read(links, name="http://a", extra=extra).hits
    hits += spam.read("hVnRcTgYbJkLpQz").hits
    assert len({reason for _, reason in hits}) == 11
    assert all(0 < points < HOLD for points, _ in hits)


def test_all_that_the_words_alone_can_say_does_not_hold() -> None:
    every_phrase = spam.PHRASES.read_text("utf-8")
    assert ASK <= points(every_phrase) < HOLD


def test_every_reason_is_a_plain_sentence_even_with_hostile_values() -> None:
    hostile = "{e.email} {0} %s http://a.top [url=x] wаllеt {r.topics[9]} casino " * 3
    total, why = judge(
        hostile,
        name="{x}",
        subject="{",
        extra={"{": "}"},
        seconds_on_page=0.5,
        webdriver=True,
        honeypot=True,
        user_agent=False,
        echoes=9,
        **BARE,
    )
    assert total > HOLD
    assert all("{" not in reason for reason in why)
    assert "sent 0.5 s after the page was opened" in why


def test_an_honest_message_from_a_browser_has_no_points() -> None:
    assert judge() == (0, [])


# -- how it was sent -------------------------------------------------------------------


def test_a_filled_honeypot_holds_by_itself() -> None:
    assert judge(honeypot=True) == (HOLD, ["the hidden field was filled in"])


@pytest.mark.parametrize("seconds", [0, 0.2, 2.9])
def test_too_quick_a_submission_counts_and_does_not_even_ask(seconds: float) -> None:
    assert "after the page was opened" in reasons(seconds_on_page=seconds)
    assert points(seconds_on_page=seconds) < ASK


@pytest.mark.parametrize(
    "seconds", [None, 3, 45.5, -0.1, -7200, 1e12, float("inf"), float("nan")]
)
def test_an_unhurried_or_impossible_time_says_nothing(seconds: float | None) -> None:
    assert points(seconds_on_page=seconds) == 0


def test_an_automated_browser_counts_and_does_not_even_ask() -> None:
    assert reasons(webdriver=True) == "sent by an automated browser"
    assert points(webdriver=True) < ASK


def test_a_hurried_automated_browser_is_doubtful() -> None:
    assert ASK <= points(webdriver=True, seconds_on_page=0.1) < HOLD


@pytest.mark.parametrize("message", ["test", "Ist das Formular an?", "テスト", HONEST])
def test_a_curl_smoke_test_is_not_doubtful(message: str) -> None:
    assert "without Origin" in reasons(message, **BARE)
    assert points(message, **BARE) < ASK


def test_honest_words_without_any_header_are_not_doubtful() -> None:
    assert "without User-Agent" in reasons(user_agent=False)
    assert points(HONEST, user_agent=False, **BARE) < ASK


@pytest.mark.parametrize("kept", list(BARE))
def test_one_of_the_three_headers_is_enough(kept: str) -> None:
    assert points(HONEST, **{**BARE, kept: True}) == 0


def test_the_more_clients_send_one_text_the_more_it_counts() -> None:
    assert points(echoes=0) == 0
    assert 0 < points(echoes=1) == points(echoes=2) < ASK
    assert ASK <= points(echoes=3) == points(echoes=500) < HOLD
    assert "from 500 other clients" in reasons(echoes=500)


# -- links -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "https://dates.example/?u=3 Anna is waiting",
        "WWW.spielen.example",
        "Казино spin.ru/bonus",
        "赢钱 http://a.example",
    ],
)
def test_a_link_in_the_name_is_doubtful(name: str) -> None:
    assert "a link in the name" in reasons(name=name)
    assert points("Hi", name=name) >= ASK


@pytest.mark.parametrize(
    "name", ["Dr. J. R. Ewing", "Priya (Booking.com)", "Ana M.ª", "李雷/HR", "v/d Berg"]
)
def test_an_honest_name_is_no_link(name: str) -> None:
    assert points(name=name) == 0


@pytest.mark.parametrize(
    "message",
    [
        "https://a.example",
        "Look: http://a.example/x",
        "看这里 https://a.example",
        "a.ru",
    ],
)
def test_hardly_more_than_a_link_counts(message: str) -> None:
    assert "hardly more than 1 link" in reasons(message)
    assert 0 < points(message) < ASK


@pytest.mark.parametrize(
    "message",
    [
        "There is a typo in line three of https://a.example/posts",
        "您好,这个页面打不开了,请看一下: https://a.example/x",
        "Η σελίδα https://a.example δεν ανοίγει στο κινητό μου",
        "My address is anna.com@mail.example.com",
        "at java.net.Socket.connect and com.example.Main.run, el.click()",
    ],
)
def test_a_sentence_with_a_link_is_more_than_a_link(message: str) -> None:
    assert points(message) == 0


@pytest.mark.parametrize(
    "message",
    [
        "Best prices: https://a.example https://b.example https://c.example",
        "Лучшие сайты www.a.ru и www.b.ru заходи",
        "https://a.example https://b.example 快来看看这个网站",
    ],
)
def test_a_text_stuffed_with_links_counts(message: str) -> None:
    assert "links in" in reasons(message)
    assert points(message) < HOLD


@pytest.mark.parametrize(
    "message",
    [
        "Buy cheap viagra and casino loans now! " + "https://a.example/x " * 50,
        " ".join(f"https://{n}.example" for n in range(20)),
        "[url=https://a.example]cheap pills[/url] " * 10,
    ],
)
def test_nothing_but_many_links_is_held(message: str) -> None:
    assert "as many as" in reasons(message)
    assert points(message) >= HOLD


def test_many_links_in_a_long_text_are_not_even_doubtful() -> None:
    words = "our visitors tell us that this one of the pages does not open any more "
    message = "".join(f"https://museum.example/{n} {words}" for n in range(12))
    assert 0 < points(message) < ASK


def test_a_client_who_links_work_between_sentences_has_no_points() -> None:
    message = (
        "We would like a new site for our museum, the current one is at "
        "https://museum.example and last year's drafts are in "
        "https://github.com/museum/site for you to look at. Sites that we like are "
        "https://tate.example and, for the calendar only, https://moma.example which "
        "our director keeps praising in every single meeting we have about this."
    )
    assert points(message) == 0


def test_links_in_other_fields_are_not_counted() -> None:
    fields = {"portfolio": "https://a.example", "repo": "https://b.example"}
    assert points(extra=fields) == 0


@pytest.mark.parametrize(
    "link", ["https://bit.ly/3x", "http://CUTT.ly/a", "https://win-now.top/a"]
)
def test_a_shortened_link_or_throw_away_domain_counts_a_little(link: str) -> None:
    message = f"Could you have a look at this page, {link} please?"
    assert "shortened link" in reasons(message)
    assert points(message) < ASK


def test_an_ordinary_domain_that_holds_a_shortener_s_name_does_not_count() -> None:
    assert points("The colours on https://rabbit.ly/top.html are lovely, thanks") == 0


@pytest.mark.parametrize(
    "message",
    [
        "[url=https://a.example]лучшие часы для вас и всей вашей семьи[/url]",
        'Die <a href="https://a.example">besten Uhren</a> gibt es hier bei uns',
        "[link=https://a.example]relojes muy baratos para toda la familia[/link]",
    ],
)
def test_link_markup_counts_and_does_not_even_ask(message: str) -> None:
    assert "link markup" in reasons(message)
    assert points(message) < ASK


def test_code_without_a_link_is_no_markup() -> None:
    assert points('my footer: <div class="page"> a[href] { color: red } urls[0]') == 0


# -- disguises -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        "Your wаllеt is open",
        "Сonfirm the pаyment",
        "Fгее сasіno: Bitсоin",
        "Cοnfirm nοw",
    ],
)
def test_look_alike_letters_in_latin_words_are_doubtful(message: str) -> None:
    assert "look-alike letters" in reasons(message)
    assert ASK <= points(message) < HOLD


@pytest.mark.parametrize(
    "message",
    [
        "Привет, видел твой доклад про TypeScript и React на YouTube, спасибо!",
        "Привіт, IT-спеціаліст шукає Senior-розробника, iPhone'ом не користуюсь",
        "Γεια σας, το WordPress και το Google Maps δεν δουλεύουν στο site μου",
        "cпасибо за статью",  # the first letter typed on the Latin layout
        "Δθ against θ, in μm, with λ=0.3, ωt and cosα; see μTorrent",
        "naïve café, Łódź, Straße, Đà Nẵng, İstanbul",
    ],
)
def test_honest_texts_in_several_scripts_hold_no_look_alikes(message: str) -> None:
    assert points(message) == 0


@pytest.mark.parametrize(
    "message",
    [
        "best саsinо here",
        "best ｃａｓｉｎｏ here",
        "best 𝐜𝐚𝐬𝐢𝐧𝐨 here",
        "best ca\u200bsino here",
    ],
)
def test_a_disguise_does_not_hide_a_word(message: str) -> None:
    assert "“casino”" in reasons(message)


def test_random_letters_are_doubtful_in_text_or_name() -> None:
    assert reasons("hVnRcTgYbJkLpQz") == "random letters"
    assert reasons(name="tKxQbRmWzLpVd") == "random letters"
    assert ASK <= points("hVnRcTgYbJkLpQz", name="tKxQbRmWzLpVd") < HOLD


@pytest.mark.parametrize(
    "message", ["Hello", "useLayoutEffect", "Donaudampfschifffahrt", "OK", "ありがとう"]
)
def test_one_honest_word_is_not_random(message: str) -> None:
    assert points(message, name="Mary-Jane McDonald DeVito") == 0


def test_shouting_counts_a_little() -> None:
    assert reasons("I CANNOT READ THE MENU ON MY TABLET!") == "all in capitals"
    assert reasons("МЕНЮ НА ТЕЛЕФОНЕ НЕ ОТКРЫВАЕТСЯ") == "all in capitals"
    assert points("I CANNOT READ THE MENU ON MY TABLET!") < ASK


def test_short_capitals_and_scripts_without_capitals_are_not_shouting() -> None:
    assert points("HTML OK? THX") == 0
    assert (
        points("HTMLとCSSの書き方を教えてください。どうぞよろしくお願いいたします。")
        == 0
    )


# -- words -----------------------------------------------------------------------------

PITCHES = [
    ("We offer guest posts with do-follow links, see our price list", "en"),
    ("Wir bieten Suchmaschinenoptimierung, jetzt kostenlos testen", "de"),
    ("Offre de prêt entre particuliers, nous proposons 2 %", "fr"),
    ("Ofrecemos posicionamiento en Google sin compromiso", "es"),
    ("Cadastre-se no melhor cassino e ganhe", "pt"),
    ("Offriamo prestiti tra privati, scrivetemi", "it"),
    ("Oferujemy pozycjonowanie stron", "pl"),
    ("Предлагаем продвижение сайтов в топ-10", "ru"),
    ("Deneme bonusu veren bahis siteleri, hemen üye ol", "tr"),
    ("我们提供谷歌SEO服务,加微信", "zh"),
    ("無料で稼げる副業をご紹介します", "ja"),
    ("카지노 무료 체험", "ko"),
    ("نقدم قروض شخصية", "ar"),
    ("मुफ्त लोन पाएं", "hi"),
]


@pytest.mark.parametrize(("message", "lang"), PITCHES)
def test_an_unasked_for_offer_is_doubtful(message: str, lang: str) -> None:
    assert "typical of spam" in reasons(message)
    assert "put like an advertisement" in reasons(message)
    assert ASK <= points(message) < HOLD


@pytest.mark.parametrize(
    "message",
    [
        "Since we moved we are not on Google any more, is that an SEO thing?",
        "I'm a reporter, writing about online casino sponsors in football",
        "My blog gets comments about viagra and casinos, how did you stop yours?",
        "Could you show how a bitcoin address is derived?",
        "Wir brauchen einen Kreditrechner in TypeScript für unsere Filialen",
        "Pouvez-vous aussi vous occuper du référencement de notre site ?",
        "Может ли сайт сам считать кредит по месяцам?",
        "請問您也做 SEO 嗎?",
    ],
)
def test_an_honest_message_on_such_a_subject_is_not_doubtful(message: str) -> None:
    assert points(message) < ASK


@pytest.mark.parametrize(
    "message",
    [
        "We specialise in socialism; a specialist said so",  # cialis
        "Download it and upload it; the Kreditanstalten",  # loan
        "Use prototype inheritance, not dependency inversion; tech debt",
        "This leads to an error in the traffic light component",
        "Your contact form works well",
    ],
)
def test_a_phrase_within_another_word_does_not_count(message: str) -> None:
    assert points(message) < 4
    assert "cialis" not in reasons(message)
    assert "“loan”" not in reasons(message)


def test_every_field_is_read_for_phrases() -> None:
    assert "“casino”" in reasons(subject="Casino")
    assert "“casino”" in reasons(name="Best Casinos")
    assert "“casino”" in reasons(extra={"company": "Casino"})


# -- fingerprints ----------------------------------------------------------------------

LETTER = (
    "Dear Anna,\nI visited your website and found 12 errors that keep you from "
    "the top. Our team has helped 300 firms. See https://a.example/x?id=1 and reply."
)


@pytest.mark.parametrize(
    "variant",
    [
        LETTER.upper(),
        LETTER.replace("12", "47").replace("300", "9"),
        LETTER.replace("https://a.example/x?id=1", "http://other.example/?ref=99#z"),
        LETTER.replace("Dear Anna,", "Hello dear Bob Miller!"),
        LETTER.replace(" found", "\n\t found").replace("reply.", "reply !!!"),
        LETTER.replace("website", "wеbsitе").replace("errors", "er\u200brors"),
    ],
    ids=["case", "digits", "link", "greeting", "spaces", "disguise"],
)
def test_near_identical_texts_share_a_fingerprint(variant: str) -> None:
    assert variant != LETTER
    assert fingerprint(variant) == fingerprint(LETTER) != ""


def test_near_identical_texts_share_a_fingerprint_in_other_scripts() -> None:
    russian = (
        "Здравствуйте, {}! Предлагаем вам продвижение сайта в топ-{} за один месяц, "
    )
    russian += "без предоплаты и с полной гарантией результата для вашей компании"
    chinese = "您好,我们提供网站优化与推广服务,价格从{}元起,欢迎随时与我们联系咨询"
    assert fingerprint(russian.format("Анна", 10)) == fingerprint(
        russian.format("Олег", 3)
    )
    assert fingerprint(chinese.format(800)) == fingerprint(chinese.format(95)) != ""


def test_different_messages_have_different_fingerprints() -> None:
    prints = [fingerprint(row["message"]) for row in corpus("honest") + corpus("spam")]
    known = [each for each in prints if each]
    assert len(known) > len(prints) / 2
    assert len(set(known)) == len(known)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "hello",
        "Thank you so much!",
        "🙏🙏🙏",
        "Hola, quería saber tu precio",
        "谢谢您!",
        "https://a.example/" + "x" * 500,
        "1 2 3 " * 100,
    ],
)
def test_a_short_text_has_no_fingerprint(message: str) -> None:
    assert fingerprint(message) == ""


# -- hostile input ---------------------------------------------------------------------

HOSTILE = [
    *["a", "a.", "a-", "-", "a ", "http://", "http://a ", "www.", "<a ", "<a href"],
    *[
        "[url=",
        "аa",
        "сaxаp ",
        "bіtcoin ",
        "\u0301\u0316",
        "ﷺ",
        "ΐ",
        "𝐁",
        "微",
        "微信 ",
    ],
    *["casino seo ", "\u200b", "{e.text}", "hi ", " ", "\n", ".com", "a.com ", "aB"],
    *["a@b.com ", "q" * 63 + ".", "ß", "İ", "\ud800", "\x00", "i", "क़", "dear x"],
]


def seconds(unit: str, size: int) -> float:
    text = (unit * size)[:size]
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        spam.score(spam.read(text, text[:200], text[:200], [text]))
        best = min(best, time.perf_counter() - start)
    return best


@pytest.mark.parametrize("unit", HOSTILE, ids=ascii)
def test_cost_grows_no_faster_than_the_text(unit: str) -> None:
    # Eight times the text: 8 when linear, 64 when quadratic. Tried again if unlucky.
    ratios = (seconds(unit, 10_000) / seconds(unit, 1_250) for _ in range(4))
    assert any(ratio < 24 for ratio in ratios)


def test_a_form_filled_to_its_limits_is_read_in_bounds() -> None:
    reading = spam.read("x " * 5_000, extra=["casino " * 285] * 40)
    assert reading.hits == [(3, "typical of spam: “casino”")]
    assert len("".join(*spam._fold(["\ufdfa" * 50_000]))) < 60_000


def test_any_text_can_be_scored() -> None:
    for text in ["", " ", "\x00", "\ud800", "\u202e", "{}", "%", "\U0010ffff" * 9]:
        assert points(text, name=text, subject=text, extra={text: text}) < ASK
