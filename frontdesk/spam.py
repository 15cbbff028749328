"""How much a message looks like spam, and why, in words that the owner reads.

The weights are learned from messages that real forms received (tools/train_spam.py
writes spam-weights.txt); what is known of the request has weights set by hand.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from heapq import nlargest
from itertools import pairwise, repeat
from operator import xor
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize
from zlib import crc32

from frontdesk.languages import marked

ASK = 5  # doubtful from here on: a plain form is asked once, JSON is marked
HOLD = 10  # held from here on
HUNCH = 4  # of the words: fewer points say nothing
SHORT = 30  # features: in fewer than these, each weighs no more
READ = 10_000  # characters looked at: this bounds the time that a message takes

WEIGHTS = Path(__file__).with_name("spam-weights.txt")

# --- what a text gives away ----------------------------------------------------------

SHORTENERS = """bit.ly clck.ru cutt.ly goo.su is.gd ow.ly rb.gy rebrand.ly s.id
short.gy shorturl.at t.co t.ly telegra.ph tiny.cc tinyurl.com u.to v.gd vk.cc"""
THROWAWAY = """bet bond buzz casino cf cfd click cyou date ga gq icu ink loan lol ml
monster online pro quest rest sbs site space store tk top website win xyz"""
_THROWAWAY = tuple(f".{host}" for host in f"{SHORTENERS} {THROWAWAY}".split())
OPT_OUT = """unsubscribe optout abmelden désabonner désinscrire désinscription
отписаться отписки"""
MESSENGERS = "whatsapp telegram skype viber wechat واتساب"
MONEY = "$ € £ usd eur euro euros dollar dollars руб рублей"
_BY_WORD = {
    "opt out": frozenset(OPT_OUT.split()),
    "messenger": frozenset(MESSENGERS.split()),
    "money": frozenset(MONEY.split()),
}

# Every repeat is bounded or can match in one way only: cost grows with length, no more.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"  # Thai, Japanese, Chinese
_WORD = re.compile(rf"[^\W\d_{_UNSPACED}]+|[{_UNSPACED}]")
_MARKS = re.compile("[\x80-\xbf×÷\u2000-\u2bff]")  # as far as _BEYOND_LATIN lets them
_LETTERS_ONLY = bytes(n if n > 127 or chr(n).isalpha() else 32 for n in range(256))
_OWN = "(ownsite)"  # stands for the site's name in a folded text
_LINKISH = re.compile(r"\.[a-z]{2}")
# A path is ASCII without quotes and brackets. Not as an exclusion of all the rest of
# Unicode: the first message of a process would wait 4 ms for Python to compile that.
_LINK = re.compile(
    r"https?://([^\s/<>\"'()\[\]?#:]{1,253})([!#-&*-;=?-Z\\^-~]*)"
    r"|(?<![\w@./-])((?:[\w-]{1,63}\.){1,4}(?:[a-z]{2,12}(?=/\w)|(?:biz|com|info|net|org"
    r"|ru|site|shop|top|xyz)(?![\w@-]|\.\w)))(/[^\s<>\"'()\[\]]*)?"
)
_ADDRESS = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w.-]{1,253}")
_MARKUP = re.compile(r"<a\s[^<>]{0,99}href|\[(?:url|link|img)[=\]]")
_NAME_LINK = re.compile(r"https?://|\bwww\.|\w\.[a-z]{2,12}/", re.I)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_STYLED = re.compile("[\u2460-\u24ff\uff01-\uff5e\U0001d400-\U0001d7ff]+")
_TWINS = str.maketrans(  # Cyrillic and Greek letters that look like Latin ones
    "аеорсухіјѕԁһԛԝАВЕКМНОРСТХУІЈЅοανρυικτΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeopcyxijsdhqwABEKMHOPCTXYIJSoavpuiktABEZHIKMNOPTYX",
)
_TWIN = "".join(map(chr, _TWINS))
_MIXED = re.compile(f"[a-zA-Z][{_TWIN}]|[{_TWIN}][a-zA-Z]")
# Anything but Latin letters and typography: a text without it holds no disguise.
_BEYOND_LATIN = re.compile(
    "[^\0-\u00ac\u00ae-\u036f\u2000-\u200a\u2010-\u205f\u2065-\u245f]"
)
_LETTERS = re.compile(r"[^\W\d_]{5,}")
_LATIN = re.compile(r"[a-zA-Z]+")
_HUMP = re.compile(r"[a-z][A-Z]")
_CODE = re.compile(r"[A-Za-z]{3,20}\d{4,12}[A-Za-z]{3,20}")
_GLUED = re.compile("(?!Mac|Van|Von)[A-Z][a-z]{2,20}[A-Z]{1,2}[a-z]{0,20}")  # TomQip


SIGNS = {
    "own name": marked("names your site"),
    "link": marked("has a link"),
    "bare link": marked("hardly more than a link"),
    "short with link": marked("few words around a link"),
    "links": marked("several links"),
    "stuffed": marked("more links than text for them"),
    "throwaway": marked("a shortened link or a throw-away domain"),
    "tracked": marked("a link made for your site"),
    "opt out": marked("offers to unsubscribe"),
    "money": marked("names amounts of money"),
    "messenger": marked("leads to a messenger"),
    "markup": marked("link markup"),
    "glued name": marked("random letters"),
}


Reason = tuple[str, dict[str, str | int]]  # a marked sentence, and its values
Hit = tuple[int, Reason]  # points, and what for


class Reading(NamedTuple):
    """What a message says; tools/train_spam.py learns from words and signs."""

    words: set[str]  # words, pairs of words, and how long words begin ("begin*")
    signs: list[str]  # what words do not say, each a key of SIGNS
    typed: list[Hit]  # what nobody types, with weights set by hand
    echo: str  # the first hash of fingerprint(), "" for a short text


def read(
    text: str,
    name: str = "",
    subject: str = "",
    extra: Iterable[str] = (),
    hosts: Sequence[str] = (),
) -> Reading:
    """Read a message to a site with these hosts (of SITE_NAME, ALLOWED_ORIGINS).

    A further field of fewer than five words answers what a form asked for (a link, a
    budget, a choice) and is passed over, and so is a subject that is only a link.
    """
    signs: list[str] = []
    others = [each for each in extra if len(each.split(None, 4)) > 4]
    rest = _fold("\n".join(("" if _is_link(subject) else subject, *others)))
    folded = _fold(text)
    said = everything = f"{rest}\n{folded}"
    if hosts:
        names, pages, own = _own_name(tuple(hosts))
        if any(each in said for each in names):
            said, times = own.subn(f" {_OWN} ", pages.sub(" ", said))
            signs += ["own name"] * bool(times)
        elif own.search(name.casefold()):
            signs.append("own name")
    if _GLUED.fullmatch(name):
        signs.append("glued name")
    if "@" in said:
        said = _ADDRESS.sub(" ", said)
    if "://" in said or _LINKISH.search(said):
        said = _links(said, signs, alone=_is_link(folded))
    if ("<" in said or "[" in said) and _MARKUP.search(said):
        signs.append("markup")
    # Nothing was taken out of most messages: the words of their text serve twice.
    of_text = _words_of_text(folded)
    words = _words(rest) + of_text if said == everything else _words(said)
    known = {*words, *(symbol for symbol in "$€£" if symbol in said)}
    signs += [sign for sign, of in _BY_WORD.items() if not of.isdisjoint(known)]
    known.update([f"{word[:n]}*" for n in (4, 6) for word in known if len(word) > n])
    known.update(map(" ".join, pairwise(words)))
    runs = _runs(of_text)
    echo = f"{min(runs):08x}" if runs else ""
    return Reading(known, signs, [*_typed(text, name, subject)], echo)


def _fold(text: str) -> str:
    """Return the beginning of a text in lower case, without disguises."""
    text = text[:READ]
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # no lone surrogates
        if _BEYOND_LATIN.search(text):
            text = _undisguise(text)
    return text.casefold()


def _words(folded: str) -> list[str]:
    if not folded.isascii():
        if _BEYOND_LATIN.search(folded):
            return _WORD.findall(folded)
        folded = _MARKS.sub(" ", folded)
    # What _WORD finds in Latin letters, in a fifth of the time.
    return folded.encode().translate(_LETTERS_ONLY).decode().split()


@lru_cache(maxsize=8)
def _own_name(
    hosts: tuple[str, ...],
) -> tuple[list[str], re.Pattern[str], re.Pattern[str]]:
    """Match links to pages of a site, and its host as spam names it.

    That is "example.com" or "Example Com". A mail address and a page are what people
    write too.
    """
    bare = sorted({host.casefold().removeprefix("www.") for host in hosts})
    names = bare + [re.sub(r"[.-]", " ", host) for host in bare]
    any_name = "|".join(map(re.escape, names))
    start = rf"(?<![\w@.-])(?:https?://)?(?:www\.)?(?:{any_name})"
    return names, re.compile(rf"{start}/\w\S*"), re.compile(rf"{start}(?!\w|\.\w)")


def _is_link(text: str) -> bool:
    """Whether a text is one link and nothing else."""
    text = text.strip().casefold()
    found = _LINK.match(text)
    return found is not None and found.end() == len(text)


def _links(said: str, signs: list[str], alone: bool) -> str:
    """Return a text without its links, and add what they are to the signs.

    alone: the message field holds one link and nothing else. People send these too, a
    portfolio for example, so that only where it leads counts.
    """
    links = _LINK.findall(said)
    if not links:
        return said
    prose = _LINK.sub(" ", said)
    words = len(_words(prose))
    hosts = [(a or b).removeprefix("www.") for a, _, b, _ in links]
    found = {
        "link": not alone,
        "bare link": words < 8 and not alone,
        "short with link": 8 <= words < 25 and not alone,
        "links": len(links) > 2,
        "stuffed": len(links) > 1 and words < 10 * len(links),
        "throwaway": any(f".{host}".endswith(_THROWAWAY) for host in hosts),
        "tracked": f"= {_OWN}" in said,
    }
    signs += [sign for sign, is_there in found.items() if is_there]
    return prose


def _is_disguised(word: str) -> bool:
    """Whether a Latin word holds look-alikes; a slip in a Cyrillic word is none."""
    latin = len(word.encode("ascii", "ignore"))
    return len(word) / 2 <= latin < len(word) and word.translate(_TWINS).isascii()


def _undisguise(text: str) -> str:
    # Not the whole text: sorting combining marks takes time by their number squared.
    text = _STYLED.sub(lambda m: normalize("NFKC", m[0]), _INVISIBLE.sub("", text))
    if _MIXED.search(text):
        text = _LETTERS.sub(
            lambda m: m[0].translate(_TWINS) if _is_disguised(m[0]) else m[0], text
        )
    return text


def is_random(text: str) -> bool:
    """Whether a short text is letters drawn by lot, as probes of robots are."""
    if len(text) > 120 or not text.isascii():
        return False
    words = text.split()
    if len(words) == 1:
        word = words[0]
        humps = len(_HUMP.findall(word))
        vowels = sum(map("aeiouyAEIOUY".__contains__, word))
        return bool(_CODE.fullmatch(word)) or (
            (word.isalpha() and len(word) > 8)
            and (humps > 3 or (humps > 1 and vowels < len(word) / 3))
        )
    odd = [w for w in _LATIN.findall(text) if not (w.islower() or w.isupper())]
    odd = [w for w in odd if not w.istitle()]
    return len(odd) > 2 and len(odd) > 0.6 * len(words)


# --- the verdict ---------------------------------------------------------------------


class Request(NamedTuple):
    """What is known of how a message was sent."""

    honeypot: bool = False
    seconds_on_page: float | None = None  # from Formspree's session data, if sent
    webdriver: bool = False  # likewise
    origin: bool = True  # was the header there?
    referer: bool = True
    accept_language: bool = True
    user_agent: bool = True
    echoes: int = 0  # other clients that sent a near-identical text within a day
    taught: bool | None = None  # the owner called a near-identical message spam, or not


BROWSER = Request()


class Verdict(NamedTuple):
    """How much a message looks like spam, and why; reasons can be kept as JSON."""

    points: int
    reasons: list[Reason]

    @property
    def doubtful(self) -> bool:
        """Tell whether a plain form's sender is asked, and other mail is marked."""
        return ASK <= self.points < HOLD

    @property
    def held(self) -> bool:
        """Tell whether the message is kept back."""
        return self.points >= HOLD


def judge(said: Reading, request: Request = BROWSER) -> Verdict:
    """Judge a message by what it says and how it was sent."""
    if request.taught is False:
        return Verdict(0, [])
    learned = score(said)
    # A site may put the same text into each visitor's form: "I want to view the flat".
    hits = [*_request_hits(request, usual_echoes=10 if learned < 0 else 2), *said.typed]
    points, reasons = sum(n for n, _ in hits), [reason for _, reason in hits]
    if learned >= HUNCH:
        points += int(learned)
        reasons += _why(said)
    return Verdict(points, reasons)


def score(found: Reading) -> float:
    """Return what the model says of a message, in points; honest ones are below 0."""
    weight = _weights().get
    signs = sum(map(weight, (f"={sign}" for sign in found.signs), repeat(0.0)))
    words = sum(map(weight, found.words, repeat(0.0)))
    return weight("=", 0.0) + signs + words / math.sqrt(max(len(found.words), SHORT))


def _why(found: Reading) -> list[Reason]:
    """Return the three signs and phrases that weighed most."""
    weight, size = _weights().get, math.sqrt(max(len(found.words), SHORT))
    weighed = [(weight(f"={sign}", 0.0), SIGNS[sign], "") for sign in found.signs]
    phrase = marked("put like spam: “%(phrase)s”")
    # Beginnings of words and short words tell a reader nothing.
    telling = (word for word in found.words if len(word) > 3 and word[-1] != "*")
    weighed += [(weight(word, 0.0) / size, phrase, word) for word in telling]
    best = [each for each in nlargest(3, weighed) if each[0] > 0.2]
    return [(sentence, {"phrase": word} if word else {}) for _, sentence, word in best]


def _request_hits(request: Request, usual_echoes: int) -> Iterable[Hit]:
    """Yield what the request gives away; more echoes than usual are a campaign."""
    if request.taught:
        yield HOLD, (marked("you called nearly the same message spam"), {})
    if request.honeypot:
        yield HOLD, (marked("the hidden field was filled in"), {})
    seconds = request.seconds_on_page
    # A negative time is a wrong clock, and says nothing.
    if seconds is not None and 0 <= seconds < 3:
        sentence = marked("sent %(seconds)s s after the page was opened")
        yield 4, (sentence, {"seconds": f"{seconds:.1f}"})
    if request.webdriver:
        yield 4, (marked("sent by an automated browser"), {})
    if not (request.origin or request.referer or request.accept_language):
        yield 3, (marked("came without Origin, Referer and Accept-Language"), {})
    if not request.user_agent:
        yield 1, (marked("came without User-Agent"), {})
    if request.echoes > 0:
        sentence = marked("nearly the same text came from %(clients)s other clients")
        points = 6 if request.echoes > usual_echoes else 3
        yield points, (sentence, {"clients": request.echoes})


def _typed(text: str, name: str, subject: str) -> Iterable[Hit]:
    if ("." in name or "/" in name) and _NAME_LINK.search(name):
        yield 5, (marked("a link in the name"), {})
    if random := sum(map(is_random, (text, name, subject))):
        yield 5 * random, (marked("random letters"), {})
    said = f"{subject}\n{text}\n{name}"[:READ]
    if _BEYOND_LATIN.search(said) and _MIXED.search(said):
        disguised = filter(_is_disguised, _LETTERS.findall(said))
        if word := next(disguised, "")[:40]:
            yield 5, (marked("look-alike letters in “%(word)s”"), {"word": word})


def suspicious_signup(name: str, request: Request) -> bool:
    """Whether a robot signed an address up; a person's browser shows none of this."""
    return request.honeypot or is_random(name) or bool(_NAME_LINK.search(name))


@cache
def _weights() -> Mapping[str, float]:
    """Read the weights with the first message, not at start."""
    table: dict[str, float] = {}
    for line in WEIGHTS.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            weight, *of = line.split("\t")
            table.update(dict.fromkeys(of, float(weight)))
    return table


# --- near-identical texts ------------------------------------------------------------

SKETCH = 16  # hashes kept of a text: the smallest ones


def fingerprint(text: str) -> list[str]:
    """Return the 16 smallest hashes of a text's runs of three words, smallest first.

    Two texts share as many of the smallest hashes as they share runs ("minhash");
    another name, link or greeting changes few. A text of fewer than ten words has
    none: honest people write the same few words too.
    """
    runs = _runs(_words_of_text(_fold(text)))
    return [f"{each:08x}" for each in sorted(runs)[:SKETCH]]


def _words_of_text(folded: str) -> list[str]:
    if "://" in folded or _LINKISH.search(folded):
        folded = _LINK.sub(" ", folded)
    return _words(folded)


def _runs(words: list[str]) -> set[int]:
    if len(words) < 10:
        return set()
    # Each word is hashed once, whatever the number of runs that it is in.
    hashes = [*map(crc32, map(str.encode, words))]
    return {*map(xor, map(xor, hashes, hashes[1:]), hashes[2:])}
