"""What a form's field means, told by its name, in the words of many languages.

The names are data: fields.txt. The lookup costs a dictionary's for a name seen before.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

WORDS = Path(__file__).with_name("fields.txt")
MAX_NAME = 100  # characters; a longer name has no meaning

SERVICE = frozenset(("next", "honeypot", "leftover"))  # for the service, not typed
# What only counts where it is the whole name: "your-to" or "user_next" is no command.
_WHOLE = SERVICE | {"recipient", "hidden", "hidden subject"}
_IN_PARTS = ("message", "details", "name", "subject")

# Letters that Unicode does not take apart, and the two ways to write an umlaut.
_LETTERS = str.maketrans({"ø": "o", "æ": "ae", "œ": "oe", "đ": "d", "ł": "l", "ı": "i"})
_SPELT_OUT = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"})
_MAILCHIMPS_TRAP = re.compile(r"b_[0-9a-f]+_[0-9a-f]+", re.IGNORECASE)
_ASIDE = re.compile(r"[(（【][^)）】]*[)）】]?|[*＊:：?？]+\s*$")
_INNER = re.compile(r"(?<=.)[.\[]([^.\[\]]+)\]?\Z")  # of data.botcheck, fields[_cc]
_SEPARATORS = re.compile(r"[/|(（【,]|\bor\b")


def meaning(name: str) -> str:
    """Return what a field's name means, one of the sections of fields.txt, or ""."""
    # Before the cache: it would keep whatever length a client sends.
    return "" if len(name) > MAX_NAME else _meaning(name)


@lru_cache(maxsize=4096)
def _meaning(name: str) -> str:
    found = _named(name)
    if name.startswith("_"):  # a form service's setting, unless it means something
        return {"": "hidden", "subject": "hidden subject"}.get(found, found)
    return found


def _named(name: str) -> str:
    if _MAILCHIMPS_TRAP.fullmatch(name):
        return "honeypot"
    words = _words()[0]
    # Of a nested name the last part may be the service's, and never all parts together:
    # form[name] is a name, and not the form-name of another service.
    inner = _INNER.search(name)
    if inner and (last := _named(inner[1])) in SERVICE:
        return last
    whole = key(name)
    if name.startswith("_") and (found := words.get(f"_{whole}")):
        return found
    if (found := words.get(whole, "")) and not (inner and found in SERVICE):
        return found
    for spelling in _without_frame(name):
        found = words.get(spelling, "")
        if found and found not in _WHOLE:
            return found
    # "Message / Problem". Not an address: "Email or phone" holds either.
    for part in _SEPARATORS.split(name):
        if (found := words.get(key(part), "")) in _IN_PARTS and part != name:
            return found
    return ""


def key(name: str) -> str:
    """Return a name without case, accents, spaces and signs."""
    if not name.isascii():
        letters = name.casefold().translate(_LETTERS)
        name = unicodedata.normalize("NFKD", letters)
    return "".join(filter(str.isalnum, name)).casefold()


def _without_frame(name: str) -> Iterator[str]:
    """Yield a name with less and less around it: your-email-2, fields[email]."""
    _, before, after = _words()
    start = key(_ASIDE.sub("", name))
    while True:
        yield start
        bare = start
        while found := after.search(bare):
            bare = bare[: found.start()]
            yield bare
        if not (found := before.match(start)):
            return
        start = start[found.end() :]


@lru_cache(maxsize=1)
def _words() -> tuple[dict[str, str], re.Pattern[str], re.Pattern[str]]:
    """Return meanings by names, and what may stand before and after a name."""
    words: dict[str, str] = {}
    section = ""
    around: dict[str, list[str]] = {"before": [], "after": []}
    for line in WORDS.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[] ")
        elif line and not line.startswith("#"):
            for name in line.partition(": ")[2].split(", "):
                for spelling in {name.lower(), name.lower().translate(_SPELT_OUT)}:
                    if section in around:
                        around[section].append(key(spelling))
                    else:
                        sign = "_" if name.startswith("_") else ""
                        words.setdefault(sign + key(spelling), section)
    before, after = ("|".join(sorted(a, key=len)[::-1]) for a in around.values())
    return (
        words,
        re.compile(rf"(?:{before}|(?:q|entry)?\d+)(?=.)"),
        re.compile(rf"(?<=.)(?:{after}|\d+)\Z"),
    )
