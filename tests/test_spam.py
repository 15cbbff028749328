"""What looks like spam, what does not, and how well both are told apart."""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from frontdesk import spam
from frontdesk.languages import Language
from frontdesk.spam import ASK, HOLD, Request

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests/corpus"
REAL = Path(os.environ.get("FRONTDESK_REAL", ROOT.parent / "shared/real"))
MESSAGES = REAL / "messages.json"
HOSTS = ("site.example",)
BARE = {"origin": False, "referer": False, "accept_language": False}
HONEST = "Hello, are you free to photograph our wedding on 12 June near Leeds?"
PREFILLED = (  # as a site may write it into every visitor's form
    "Hello, I am interested in the flat at 22 Oak Street and would like to arrange a "
    "viewing. Please contact me."
)
needs_real = pytest.mark.skipif(
    not MESSAGES.exists(), reason=f"no {MESSAGES}: real messages are not published"
)


def judge(message: str = HONEST, **known: Any) -> spam.Verdict:
    """Judge a message; `known` is what else there is to know of it."""
    words = {key: known.pop(key) for key in ("name", "subject") if key in known}
    extra = [str(value) for value in known.pop("extra", {}).values()]
    said = {"name": "Anna", **words, "extra": extra}
    return spam.judge(spam.read(message, **said, hosts=HOSTS), Request(**known))


def reasons(message: str = HONEST, **known: Any) -> str:
    return "\n".join(Language().sentences(judge(message, **known).reasons))


def points(message: str = HONEST, **known: Any) -> int:
    return judge(message, **known).points


def corpus(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        (CORPUS / f"{name}.json").read_text("utf-8")
    )
    return rows


def judge_row(row: dict[str, Any]) -> spam.Verdict:
    apart = ("lang", "kind", "held_out", "email", "id", "label", "year", "features")
    told = {key: value for key, value in row.items() if key not in apart}
    return judge(**{k: "" if v is None else v for k, v in told.items()})


# -- the corpora -----------------------------------------------------------------------


def figures(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Return how many were held, and how many asked."""
    verdicts = [judge_row(row) for row in rows]
    return sum(v.held for v in verdicts), sum(v.doubtful for v in verdicts)


def test_the_corpus_is_as_varied_as_the_figures_claim() -> None:
    honest = corpus("honest") + corpus("honest-more")
    junk = corpus("spam") + corpus("spam-more")
    assert len(honest) >= 300
    assert len(junk) >= 150
    assert len({row["lang"] for row in honest}) >= 50
    assert len({row["lang"] for row in junk}) >= 10
    assert not any(row.get("honeypot") for row in honest)


def test_nobody_honest_is_held_and_at_most_two_are_asked() -> None:
    held, asked = figures(corpus("honest") + corpus("honest-more"))
    assert held == 0
    assert asked <= 2


def test_nine_of_ten_spam_are_held_or_asked() -> None:
    junk = corpus("spam") + corpus("spam-more")
    assert sum(figures(junk)) >= 0.9 * len(junk)


@needs_real
def test_what_real_forms_received_is_told_apart() -> None:
    # Learned from these; figures on unseen messages are in docs/spam.md.
    rows = json.loads(MESSAGES.read_text("utf-8"))
    honest = [row for row in rows if row["label"] in ("ham", "test")]
    junk = [row for row in rows if row["label"] == "spam"]
    held, asked = figures(honest)
    assert held == 0
    assert asked <= len(honest) / 100
    assert sum(figures(junk)) >= 0.92 * len(junk)


SHORT = [
    *[
        "Ist morgen noch ein Tisch frei?",
        "Wann haben Sie geöffnet?",
        "¿A qué hora abren?",
    ],
    *[
        "Est-ce que vous livrez à Lyon ?",
        "Quando siete aperti?",
        "Pode ligar-me amanhã?",
    ],
    *["Hoe laat sluiten jullie?", "O której zamykacie?", "Когда вы открываетесь?"],
    *["О котрій ви зачиняєтесь?", "V kolik hodin zavíráte?", "Mikor nyitnak ki?"],
    *[
        "La ce oră închideți?",
        "Hvornår åbner I?",
        "När öppnar ni?",
        "Når stenger dere?",
    ],
    *[
        "Milloin avaatte?",
        "Mis kell te avate?",
        "Cikos jūs atverat?",
        "Kada atidarote?",
    ],
    *["Πότε ανοίγετε;", "Saat kaçta açılıyorsunuz?", "متى تفتحون؟", "מתי אתם פותחים?"],
    *["آیا شنبه باز هستید؟", "क्या आप रविवार को खुले हैं?", "আপনারা কখন খোলেন?"],
    *[
        "เปิดกี่โมงคะ",
        "Mấy giờ mở cửa?",
        "Jam berapa buka?",
        "几点开门?",
        "何時に開きますか",
    ],
    *[
        "몇 시에 여나요?",
        "Noiz irekitzen duzue?",
        "Cando abren?",
        "A quina hora obriu?",
    ],
    *["Pryd ydych chi'n agor?", "Cén t-am a osclaíonn sibh?", "Hvenær opnið þið?"],
    *[
        "Можно ли вернуть товар?",
        "call me",
        "Test",
        "asdf",
        "price for a new door?",
        "👍",
    ],
]


@pytest.mark.parametrize("message", SHORT)
def test_a_short_honest_message_in_any_language_is_clean(message: str) -> None:
    assert points(message) < ASK
    assert points(message, **BARE) < HOLD


@pytest.mark.parametrize(
    "known",
    [
        {"message": "https://example.com/ada"},
        {"message": "www.example.com", "subject": "My portfolio"},
        {"message": "Something short", "extra": {"site": "https://example.com/ada"}},
        {"message": "Something short", "extra": {"a": "example.com", "b": "ada.top"}},
        {"message": "Hello", "subject": "https://example.com/"},
        {"message": "Call me, please.", "extra": {"budget": "$5,000 - $10,000"}},
        {"message": "I would like to know more about your services."},
    ],
    ids=str,
)
def test_a_link_or_a_budget_that_a_form_asked_for_is_clean(
    known: dict[str, Any],
) -> None:
    assert points(**known) < ASK


def test_a_long_further_field_is_read_like_the_message() -> None:
    pitch = "Rank first on Google for $99: https://rank.top/ To unsubscribe reply."
    assert points("Hello", extra={"details": pitch}) >= ASK
    assert points("https://bit.ly/x") >= ASK


# -- the weights -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def train() -> Any:
    pytest.importorskip("sklearn", reason="scikit-learn is for the workshop only")
    sys.path.insert(0, str(ROOT / "tools"))
    import train_spam

    return train_spam


def test_weights_are_those_of_the_script_and_the_code(train: Any) -> None:
    head = spam.WEIGHTS.read_text("utf-8").split("\n=", 1)[0]
    assert f"features {train.source_digest()};" in head  # else: train anew
    assert f"seed {train.SEED};" in head
    scored = re.findall(r"^# scores ([-\d.]+): (.*)$", head, re.M)
    assert [sentence for _, sentence in scored] == list(train.SENTENCES)
    for points_then, sentence in scored:
        found = spam.read(sentence, hosts=HOSTS)
        assert spam.score(found) == pytest.approx(float(points_then), abs=0.001)


@needs_real
def test_weights_are_learned_from_the_material_at_hand(train: Any) -> None:
    assert f"material {train.material_digest(MESSAGES)}" in spam.WEIGHTS.read_text(
        "utf-8"
    )


def test_the_weights_are_small_and_hold_no_long_text() -> None:
    assert spam.WEIGHTS.stat().st_size <= 300_000
    assert all(len(each.split()) <= 2 for each in spam._weights() if each[0] != "=")


# -- what the verdict says -------------------------------------------------------------


def test_only_the_honeypot_or_the_owner_holds_by_itself() -> None:
    signs: list[dict[str, Any]] = [{"honeypot": True}, {"seconds_on_page": 0}, BARE]
    signs += [
        {"webdriver": True},
        {"user_agent": False},
        {"echoes": 3},
        {"taught": True},
    ]
    holding = [sign for sign in signs if points(**sign) >= HOLD]
    assert holding == [{"honeypot": True}, {"taught": True}]
    assert all(points(**sign) > 0 for sign in signs)


def test_what_the_owner_called_honest_passes() -> None:
    pitch = "Buy backlinks for site.example, only $50 https://bit.ly/x"
    assert points(pitch) >= HOLD
    assert judge(pitch, taught=False, **BARE) == (0, [])


def test_blatant_spam_is_held_with_its_strongest_reasons() -> None:
    verdict = judge(
        "Hi site.example owner, rank on the first page of Google for $99: "
        "https://rank.top/ To unsubscribe reply."
    )
    assert verdict.held
    assert 1 <= len(verdict.reasons) <= 3


def test_reasons_survive_json_and_old_sentences_stay() -> None:
    kept = json.loads(json.dumps(judge("casino", echoes=3).reasons))
    assert "came from 3 other clients" in Language().sentences(kept)[0]
    assert Language().sentences(["3 links"]) == ["3 links"]


def test_every_reason_is_a_plain_sentence_even_with_hostile_values() -> None:
    hostile = "{e.email} {0} %s %(x)s http://a.top [url=x] wаllеt casino seo " * 3
    sent = {"seconds_on_page": 0.5, "webdriver": True, "honeypot": True, **BARE}
    told = reasons(hostile, name="{x}", subject="%(y)s", user_agent=False, **sent)
    assert "sent 0.5 s after the page was opened" in told
    assert "{" not in told


def test_an_honest_message_from_a_browser_has_no_points() -> None:
    assert judge() == (0, [])


# -- how it was sent -------------------------------------------------------------------


def test_a_filled_honeypot_holds_by_itself() -> None:
    assert points(honeypot=True) == HOLD
    assert reasons(honeypot=True) == "the hidden field was filled in"


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


@pytest.mark.parametrize(
    "message",
    [
        *("test", "Hallo", "Just checking", "Ist das Formular an?", "テスト", HONEST),
        "I have a question about your services.",
    ],
)
def test_a_curl_smoke_test_is_not_doubtful(message: str) -> None:
    assert "without Origin" in reasons(message, **BARE)
    assert points(message, **BARE) < ASK


def test_honest_words_without_any_header_are_not_doubtful() -> None:
    assert "without User-Agent" in reasons(user_agent=False)
    assert points(HONEST, user_agent=False, **BARE) < ASK


@pytest.mark.parametrize("kept", list(BARE))
def test_one_of_the_three_headers_is_enough(kept: str) -> None:
    assert points(HONEST, **{**BARE, kept: True}) == 0


@pytest.mark.parametrize(
    ("message", "patience"), [("Hello", 2), (PREFILLED, 10)], ids=["neutral", "site"]
)
def test_the_more_clients_send_one_text_the_more_it_counts(
    message: str, patience: int
) -> None:
    assert points(message, echoes=0) == 0
    assert 0 < points(message, echoes=1) == points(message, echoes=patience) < ASK
    many = points(message, echoes=patience + 1)
    assert ASK <= many == points(message, echoes=500) < HOLD
    assert "came from 500 other clients" in reasons(message, echoes=500)


# -- what was typed -------------------------------------------------------------------


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
    assert "look-alike" not in reasons(message)
    assert points(message) < ASK


def test_a_disguise_does_not_hide_a_word() -> None:
    plain = spam.read("best casino here").words
    for disguised in (
        "best саsinо",
        "best ｃａｓｉｎｏ",
        "best 𝐜𝐚𝐬𝐢𝐧𝐨",
        "best ca\u200bsino",
    ):
        assert spam.read(f"{disguised} here").words == plain


def test_random_letters_are_doubtful_in_one_field_and_held_in_two() -> None:
    assert "random letters" in reasons("hVnRcTgYbJkLpQz")
    assert ASK <= points(HONEST, name="tKxQbRmWzLpVd") < HOLD
    assert points("hVnRcTgYbJkLpQz", name="tKxQbRmWzLpVd") >= HOLD


@pytest.mark.parametrize(
    "message",
    [
        *["Hello", "useLayoutEffect", "Donaudampfschifffahrt", "OK", "ありがとう"],
        *["JavaScript", "iPadOS or LinkedIn?", "DHL 12345678", "AB123456CD", "asdfgh"],
    ],
)
def test_one_honest_word_is_not_random(message: str) -> None:
    assert not spam.is_random(message)
    assert points(name="Mary-Jane McDonald DeVito") == 0


@pytest.mark.parametrize("name", ["JuanCarlos", "AnnaLena", "MarySmith", "PaulMcGee"])
def test_a_name_without_a_space_is_doubtful_only_with_a_suspicious_text(
    name: str,
) -> None:
    assert points(HONEST, name=name) < ASK
    assert points("Could you call me tomorrow about the invoice?", name=name) < ASK
    assert points("Hello, I wanted to know your price.", name=name) >= ASK


@pytest.mark.parametrize("name", ["MacDonald", "VanDyke", "McGee", "Lee", "O'Neill"])
def test_an_honest_name_is_not_put_together(name: str) -> None:
    assert "glued name" not in spam.read(HONEST, name).signs


# -- the site's own name ---------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *["Hi site.example Owner", "your Site Example website", "www.site.example"],
        *["https://site.example/ is slow", "to site.example.", "http://site.example?"],
    ],
)
def test_the_sites_own_host_is_a_sign(text: str) -> None:
    assert "own name" in spam.read(text, hosts=HOSTS).signs
    assert "own name" not in spam.read(text, hosts=("other.example",)).signs


@pytest.mark.parametrize(
    "text",
    [
        *["write to info@site.example", "https://site.example/prices has a typo"],
        *["mysite.example", "site.example.org", "on this site, for example"],
    ],
)
def test_an_address_or_a_page_of_the_site_is_none(text: str) -> None:
    assert "own name" not in spam.read(text, hosts=HOSTS).signs


# -- sign-ups --------------------------------------------------------------------------


def test_a_sign_up_by_a_person_is_not_suspicious() -> None:
    for name in ("", "Ada Lovelace", "李雷", "McDonald", "Anna-Lena v. Berg"):
        assert not spam.suspicious_signup(name, Request())
    # A site's own program, which may name no User-Agent: its visitors wait for a mail.
    assert not spam.suspicious_signup("", Request(**BARE, user_agent=False))


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("", Request(honeypot=True)),
        ("eDkYpukMFNWoYHHsNg", Request()),
        ("Win now https://a.example/x", Request()),
    ],
)
def test_a_sign_up_by_a_robot_is_suspicious(name: str, request_: Request) -> None:
    assert spam.suspicious_signup(name, request_)


# -- fingerprints ----------------------------------------------------------------------

LETTER = (
    "Dear Anna,\nI visited your website and found 12 errors that keep you from "
    "the top. Our team has helped 300 firms in your town and we would like to help "
    "you as well. See https://a.example/x?id=1 and reply to this message today."
)


def is_near(one: list[str], other: list[str]) -> bool:
    """Tell whether two texts share half of their hashes, as lessons.py asks."""
    return 2 * len({*one} & {*other}) >= max(len(one), len(other)) > 0


@pytest.mark.parametrize(
    "variant",
    [
        LETTER.upper(),
        LETTER.replace("12", "47").replace("300", "9"),
        LETTER.replace("https://a.example/x?id=1", "http://other.example/?ref=99#z"),
        LETTER.replace("Dear Anna,", "Hello dear Bob Miller!"),
        LETTER.replace(" found", "\n\t found").replace("today.", "today !!!"),
        LETTER.replace("website", "wеbsitе").replace("errors", "er\u200brors"),
    ],
    ids=["case", "digits", "link", "greeting", "spaces", "disguise"],
)
def test_near_identical_texts_are_recognised(variant: str) -> None:
    assert variant != LETTER
    assert is_near(spam.fingerprint(variant), spam.fingerprint(LETTER))


def test_different_messages_are_not_near_identical() -> None:
    prints = [spam.fingerprint(r["message"]) for r in corpus("honest") + corpus("spam")]
    known = [each for each in prints if each]
    assert len(known) > len(prints) / 2
    assert not any(is_near(a, b) for n, a in enumerate(known) for b in known[:n])


@pytest.mark.parametrize(
    "message",
    [
        *["", "hello", "Thank you so much!", "🙏🙏🙏", "Hola, quería saber tu precio"],
        *["谢谢您!", "https://a.example/" + "x" * 500, "1 2 3 " * 100],
    ],
)
def test_a_short_text_has_no_fingerprint(message: str) -> None:
    assert spam.fingerprint(message) == []


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
        spam.judge(spam.read(text, text[:200], text[:200], [text], HOSTS))
        best = min(best, time.perf_counter() - start)
    return best


@pytest.mark.parametrize("unit", HOSTILE, ids=ascii)
def test_cost_grows_no_faster_than_the_text(unit: str) -> None:
    # Eight times the text: 8 when linear, 64 when quadratic. Tried again if unlucky.
    ratios = (seconds(unit, 10_000) / seconds(unit, 1_250) for _ in range(4))
    assert any(ratio < 24 for ratio in ratios)


def test_any_text_can_be_scored() -> None:
    for text in ["", " ", "\x00", "\ud800", "\u202e", "{}", "%", "\U0010ffff" * 9]:
        judge(text, name=text, subject=text, extra={text: text})
        spam.fingerprint(text * 20)
