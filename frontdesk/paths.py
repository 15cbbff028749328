"""Pages that are counted: whatever names one in, its path in one normal form out."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from urllib.parse import unquote

from frontdesk.forms import wrong
from frontdesk.languages import marked

MAX_PAGE = 200  # characters
TOO_LONG = marked("A page has at most 200 characters.")
CONTROLS = marked("A page has no control characters.")


def page_of(text: str) -> str:
    """Return a page's path in its one normal form.

    A full URL is reduced to its path; query, fragment, duplicate and trailing
    slashes go, and so does a trailing index.html or index.htm. Percent-encoding is
    decoded where that is safe (unreserved and non-ASCII characters), and in upper
    case where it stays (RFC 3986, 6.2.2).
    Raises Rejected (422) for control characters and over 200 characters.
    """
    if len(text) > 4096:
        raise wrong("page", "TOO_LONG", TOO_LONG)
    return _page_of(text)


@lru_cache(maxsize=1024)
def _page_of(text: str) -> str:
    path = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", "", text.strip(" "))
    path = re.split(r"[?#]", path, maxsplit=1)[0]
    path = _normal_escapes(path)
    is_control = any(unicodedata.category(char) in ("Cc", "Cs") for char in text)
    if is_control or _ESCAPED_CONTROL.search(path):
        raise wrong("page", "TYPE_TEXT", CONTROLS)
    path = "/" + re.sub("/{2,}", "/", path).strip("/")
    path = re.sub(r"(?:/index\.html?)+$", "", path) or "/"
    if len(path) > MAX_PAGE:
        raise wrong("page", "TOO_LONG", TOO_LONG)
    return path


_ESCAPES = re.compile("(?:%[0-9A-Fa-f]{2})+|%")
_ESCAPE = re.compile("(%[0-9A-F]{2})")
_ESCAPED_CONTROL = re.compile("%(?:[01][0-9A-F]|7F|C2%[89]|ED%[AB])")  # and surrogates
_KEPT = frozenset("-._~!$&'()*+,;=:@/")


def _normal_escapes(path: str) -> str:
    parts = _ESCAPE.split(_ESCAPES.sub(_decoded, path))  # text, escape, text, ...
    # An escape's last letter must not take up an accent that follows it.
    parts[::2] = [_encoded(unicodedata.normalize("NFC", part)) for part in parts[::2]]
    return "".join(parts)


def _decoded(match: re.Match[str]) -> str:
    run = match[0]
    if run == "%":
        return "%25"
    try:
        text = unquote(run, errors="strict")
    except UnicodeDecodeError:
        return run.upper()
    return "".join(c if _is_plain(c) else _escaped(c) for c in text)


def _encoded(text: str) -> str:
    return "".join(c if _is_plain(c) or c in _KEPT else _escaped(c) for c in text)


def _is_plain(char: str) -> bool:
    return char.isalnum() or char in "-._~" or (char > "\x7f" and char.isprintable())


def _escaped(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode(errors="surrogatepass"))
