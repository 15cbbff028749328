"""How much a message looks like spam, and why, in words that the owner reads."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from string import punctuation
from typing import NamedTuple

ASK = 5  # doubtful from here on: a plain form is asked once, JSON is marked
HOLD = 10  # held from here on: no single signal but the honeypot gets there
READ = 20_000  # characters looked at: a whole message and the first further fields

PHRASES = Path(__file__).with_name("phrases.txt")

SHORTENERS = """bit.ly clck.ru cutt.ly goo.su is.gd ow.ly rb.gy rebrand.ly s.id
shorturl.at t.co t.ly telegra.ph tiny.cc tinyurl.com u.to v.gd vk.cc"""
THROWAWAY = """.bet .bond .buzz .casino .cf .cfd .click .cyou .date .ga .gq .icu .loan
.lol .ml .monster .quest .rest .sbs .tk .top .win"""

# Every repeat is bounded or can match in one way only: cost grows with length, no more.
_LINK = re.compile(
    r"(?i:https?)://([^\s/<>\"'()\[\]?#:]{1,253})[^\s<>\"()\[\]\u0080-\U0010ffff]*"
    r"|(?<![\w@./-])((?:[\w-]{1,63}\.){1,4}(?i:com|net|org|ru|biz)(?![\w@-]|\.\w))"
)
_BARE_LINK = re.compile(r"\.[cnorb]", re.I)  # in all that _LINK finds without "://"
_SHORTENERS = frozenset(SHORTENERS.split())
_THROWAWAY = tuple(THROWAWAY.split())
_NAME_LINK = re.compile(r"https?://|\bwww\.|\w\.[a-z]{2,12}/", re.I)
_MARKUP = re.compile(r"<a\s[^<>]{0,99}href|\[(?:url|link|img)[=\]]", re.I)
_CJK = "\u3040-\u30ff\u3400-\u9fff"  # written without spaces: two characters a word
_WORD = re.compile(rf"[^\W{_CJK}]+|[{_CJK}]{{1,2}}")
_DIGITS = re.compile(r"\d+")
# Every character is in it: for one that is missing, translate() catches a KeyError.
_ASCII = {n: " " if chr(n) in punctuation else chr(n).lower() for n in range(128)}
_FOLDED = re.compile(r"[^\W_]+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_STYLED = re.compile("[\u2460-\u24ff\uff01-\uff5e\U0001d400-\U0001d7ff]+")
_TWINS = str.maketrans(  # Cyrillic and Greek letters that look like Latin ones
    "аеорсухіјѕԁһԛԝАВЕКМНОРСТХУІЈЅοανρυικτΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeopcyxijsdhqwABEKMHOPCTXYIJSoavpuiktABEZHIKMNOPTYX",
)
_TWIN = "".join(map(chr, _TWINS))
_MIXED = re.compile(f"[a-zA-Z][{_TWIN}]|[{_TWIN}][a-zA-Z]")
# Anything but Latin letters and typography. A text without it holds none of the above,
# nor a phrase of another script. (As what it is not: that compiles much quicker.)
_BEYOND_LATIN = re.compile(
    "[^\0-\u00ac\u00ae-\u036f\u2000-\u200a\u2010-\u205f\u2065-\u245f]"
)
_LETTERS = re.compile(r"[^\W\d_]{5,}")
_RANDOM = re.compile(r"\s*[a-zA-Z]{10,60}\s*")
_HUMP = re.compile(r"[a-z][A-Z]")
_GREETING = re.compile(
    r"\A\W*(?:hi|hello|hey|dear|greetings|good (?:day|morning|afternoon|evening)|hallo"
    r"|guten tag|sehr geehrte[rn]?|bonjour|hola|buongiorno|ciao|olá|hoi|dzień dobry"
    r"|merhaba|здравствуйте|привет|добрый день)\b,?[^\n,.!:;]{0,40}[\n,.!:;]",
    re.I,
)


Hit = tuple[int, str]  # points, and the reason for them


class Reading(NamedTuple):
    """What the words of a message say."""

    hits: list[Hit]
    fingerprint: str  # near-identical texts share it; "" for a short text


def read(
    text: str, name: str = "", subject: str = "", extra: Iterable[str] = ()
) -> Reading:
    """Look for all that the words of a message give away."""
    said = f"{subject}\n{text}"
    everything = "\n".join((said, name, *extra))[:READ]
    beyond_latin = not everything.isascii() and bool(_BEYOND_LATIN.search(everything))
    hosts, prose = _split_links(said)
    # The text is folded apart from the rest, for the fingerprint.
    greeting = _GREETING.match(text)
    start = len(subject) + 1 + (greeting.end() if greeting else 0)
    body = everything[start : len(said)]
    parts = everything[:start], body, everything[len(said) :]
    before, words, after = _fold(parts, beyond_latin)
    topics, pitches = _phrases().found_in([*before, *words, *after], beyond_latin)

    hits: list[Hit] = []
    if ("." in name or "/" in name) and _NAME_LINK.search(name):
        hits.append((5, "a link in the name"))
    if hosts:
        hits += _link_hits(hosts, prose)
        (words,) = _fold([_LINK.sub(" ", body)], beyond_latin)
    if ("<" in text or "[" in text) and _MARKUP.search(text):
        hits.append((3, "link markup"))
    if beyond_latin and (disguised := _first_disguised(everything)):
        hits.append((5, f"look-alike letters in “{disguised}”"))
    if _is_random(text) or _is_random(name):
        hits.append((5, "random letters"))
    if prose.isupper() and sum(map(str.isupper, prose)) > 20:
        hits.append((2, "all in capitals"))
    if topics:
        hits.append((3, f"typical of spam: “{topics[0]}”"))
    if pitches:
        hits.append((2, f"put like an advertisement: “{pitches[0]}”"))
    if len(topics) > 3 or len(pitches) > 2:
        hits.append((3, "and more such phrases"))
    return Reading(hits, _fingerprint(words))


class Score(NamedTuple):
    """How much a message looks like spam, and why."""

    points: int
    reasons: list[str]

    @property
    def doubtful(self) -> bool:
        """Tell whether a plain form's sender is asked, and other mail is marked."""
        return ASK <= self.points < HOLD

    @property
    def held(self) -> bool:
        """Tell whether the message is kept back."""
        return self.points >= HOLD


def score(
    reading: Reading,
    *,
    honeypot: bool = False,
    seconds_on_page: float | None = None,  # from Formspree's session data, if sent
    webdriver: bool = False,  # likewise
    origin: bool = True,  # was the header there?
    referer: bool = True,
    accept_language: bool = True,
    user_agent: bool = True,
    echoes: int = 0,  # other clients that sent a near-identical text within a day
) -> Score:
    """Return the points of a message, and the reason for each in plain words."""
    hits: list[Hit] = []
    if honeypot:
        hits.append((10, "the hidden field was filled in"))
    # A negative time is a wrong clock, and says nothing.
    if seconds_on_page is not None and 0 <= seconds_on_page < 3:
        hits.append((4, f"sent {seconds_on_page:.1f} s after the page was opened"))
    if webdriver:
        hits.append((4, "sent by an automated browser"))
    if not (origin or referer or accept_language):
        hits.append((3, "came without Origin, Referer and Accept-Language"))
    if not user_agent:
        hits.append((1, "came without User-Agent"))
    if echoes > 0:
        hits.append((3, "nearly the same text came from elsewhere"))
    if echoes > 2:
        hits.append((3, f"from {echoes} other clients, in fact"))
    hits += reading.hits
    return Score(sum(points for points, _ in hits), [reason for _, reason in hits])


def _split_links(text: str) -> tuple[list[str], str]:
    """Return where the links of a text lead, and the text without them."""
    if "://" not in text and not _BARE_LINK.search(text):  # nearly always
        return [], text
    parts = _LINK.split(text)  # prose, host, bare host, prose, ...
    hosts = [(a or b).lower() for a, b in zip(parts[1::3], parts[2::3], strict=True)]
    return hosts, " ".join(parts[::3])


def _link_hits(hosts: list[str], prose: str) -> Iterator[Hit]:
    links = "1 link" if len(hosts) == 1 else f"{len(hosts)} links"
    words = len(_WORD.findall(prose))
    if words < 5:
        yield 4, f"hardly more than {links}"
    if len(hosts) > 1 and words < 10 * len(hosts):
        yield 3, f"{links} in {words} words"
    if len(hosts) >= 10:
        yield 4, f"as many as {links}"
    if any(host in _SHORTENERS or host.endswith(_THROWAWAY) for host in hosts):
        yield 2, "a shortened link or a throw-away domain"


def _fingerprint(words: list[str]) -> str:
    """Return a digest of folded words without their digits, or "" for few words."""
    if not "".join(words).isalpha():
        words = _DIGITS.sub("", " ".join(words)).split()
    if len(words) < 10 and len(_WORD.findall(" ".join(words))) < 10:
        return ""  # honest people write the same few words too
    return blake2b("".join(words).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _first_disguised(text: str) -> str:
    """Return the first Latin word with look-alike letters in it, if any."""
    words = _LETTERS.findall(text) if _MIXED.search(text) else ()
    return next(filter(_is_disguised, words), "")[:40]


def _is_disguised(word: str) -> bool:
    """Whether a Latin word holds look-alikes; a slip in a Cyrillic word is none."""
    latin = len(word.encode("ascii", "ignore"))
    return len(word) / 2 <= latin < len(word) and word.translate(_TWINS).isascii()


def _is_random(text: str) -> bool:
    return bool(_RANDOM.fullmatch(text)) and len(_HUMP.findall(text)) > 3


def _fold(parts: Sequence[str], beyond_latin: bool = True) -> list[list[str]]:
    """Reduce each text to lower-case words, without disguises and punctuation."""
    if all(map(str.isascii, parts)):
        return [part.translate(_ASCII).split() for part in parts]
    if beyond_latin:
        parts = [_undisguise(part) for part in parts]
    return [_FOLDED.findall(part.casefold()) for part in parts]


def _undisguise(text: str) -> str:
    text = _STYLED.sub(_plain, _INVISIBLE.sub("", text))
    if _MIXED.search(text):
        text = _LETTERS.sub(
            lambda m: m[0].translate(_TWINS) if _is_disguised(m[0]) else m[0], text
        )
    return text


def _plain(styled: re.Match[str]) -> str:
    """Turn full-width, circled and mathematical letters into the usual ones."""
    # Not the whole text: sorting combining marks takes time by their number squared.
    return unicodedata.normalize("NFKC", styled[0])


class _Phrase(NamedTuple):
    folded: str
    end: str  # how its last word starts: quicker to look up than the whole
    shown: str
    is_topic: bool  # or else a pitch


class _Phrases:
    """Phrases to look for in folded text, kept by how their first word starts."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._by_start: dict[str, list[_Phrase]] = {}
        self._anywhere: list[_Phrase] = []
        for line in lines:
            if line.startswith("["):
                is_topic = line == "[topics]"
            elif not line.startswith("#"):
                for phrase in filter(None, map(str.strip, line.split(";"))):
                    self._add(phrase, is_topic)

    def _add(self, phrase: str, is_topic: bool) -> None:
        (words,) = _fold([phrase])
        folded = " ".join(words)
        if max(folded) < "\u0530":  # Latin, Greek, Cyrillic
            start, end = words[0][:3], words[-1][:3]
            end = end if len(end) == 3 else start  # a shorter one may go on in the text
            near = self._by_start.setdefault(start, [])
            near.append(_Phrase(f" {folded}", end, phrase, is_topic))
        else:  # Chinese, Arabic and so on: a word need not start after a space
            self._anywhere.append(_Phrase(folded, "", phrase, is_topic))

    def found_in(
        self, words: list[str], beyond_latin: bool
    ) -> tuple[list[str], list[str]]:
        """Return the topics and the pitches in folded words."""
        text = f" {' '.join(words)}"
        starts = dict.fromkeys([word[:3] for word in words])  # each once, in order
        found = [
            (shown, is_topic)
            for start in filter(self._by_start.__contains__, starts)
            for folded, end, shown, is_topic in self._by_start[start]
            if end in starts and folded in text
        ]
        if beyond_latin:
            found += [(p.shown, p.is_topic) for p in self._anywhere if p.folded in text]
        topics = [phrase for phrase, is_topic in found if is_topic]
        pitches = [phrase for phrase, is_topic in found if not is_topic]
        return topics, pitches


@cache
def _phrases() -> _Phrases:
    """Prepare the phrases with the first message, not at start."""
    return _Phrases(PHRASES.read_text("utf-8").splitlines())
