"""A hostile body in, a clean flat dict of str out; field aliases and validation."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from io import BytesIO
from typing import Any, TypedDict, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urljoin, urlsplit

import falcon
from falcon import Request
from falcon.media import MultipartFormHandler

T = TypeVar("T")

MAX_BODY = 64 * 1024
MAX_EXTRA_FIELDS = 40
JSON_TYPES = ("application/json", "text/plain")  # a page may send JSON as either
MAX_PAGE = 200

ADDRESS = ("email", "_replyto", "replyto", "Email")
TEXT = ("message", "msg", "body", "comments")
NAME = ("name", "full_name")
NAME_PAIRS = (("firstName", "lastName"), ("first_name", "last_name"))
SUBJECT = ("subject", "_subject", "Subject")
NEXT = ("_next", "_redirect", "redirect")
HONEYPOTS = ("_gotcha", "_honey", "botcheck", "bot-field")
FILE = object()  # in place of an uploaded file
PROOF = "_frontdesk"  # our own question's signature
FROM = "_frontdesk_page"  # where a form that our own page gave back came from
LEFTOVERS = frozenset(
    (
        *("access_key", "form-name", "_captcha", "_template", "_format", "_language"),
        *("_host_nonce", "g-recaptcha-response", "h-captcha-response"),
        *("cf-turnstile-response", "_cc", "ccemail", "_autoresponse", "_webhook"),
    )
)
SERVICE = LEFTOVERS.union(NEXT, HONEYPOTS, (PROOF, FROM))
KNOWN = SERVICE.union(ADDRESS, TEXT, NAME, SUBJECT, *NAME_PAIRS)

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Error(TypedDict, total=False):
    """One entry of an error answer's ``errors``."""

    code: str
    field: str
    message: str


class Rejected(falcon.HTTPError):
    """A request that the client has to change before sending it again."""

    def __init__(
        self,
        status: str,
        errors: list[Error],
        *,
        values: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            status, description=errors[0]["message"], headers=dict(headers or {})
        )
        self.errors = errors
        self.values = values  # what was typed, so that a page can give it back


# --- reading ---------------------------------------------------------------------


def media_type(req: Request) -> str:
    """Return the body's media type in lower case, without parameters."""
    return (req.content_type or "").partition(";")[0].strip().lower()


def read_bytes(req: Request, most: int = MAX_BODY) -> bytes:
    """Return the whole body, of at most so many bytes.

    Falcon has no limit and takes a body that ends early for a whole one; gunicorn
    reports broken chunks only while they are read. Raises Rejected (400, 413).
    """
    length = req.content_length
    if length is not None and length > most:
        raise _too_large()
    if (
        length is None
        and "chunked" not in req.get_header("Transfer-Encoding", default="").lower()
    ):
        return b""
    try:
        body = req.stream.read(most + 1 if length is None else length)
    except Exception as error:  # whatever the server raises for broken chunks
        raise _malformed() from error
    if len(body) > most:
        raise _too_large()
    if length is not None and len(body) < length:
        raise _malformed()
    return bytes(body)


def _parser(parse: Callable[[Request], T]) -> Callable[[Request], T]:
    """Parsers fail in many ways, the answer is one."""

    @wraps(parse)
    def parse_or_refuse(req: Request) -> T:
        try:
            return parse(req)
        except Rejected:
            raise
        except Exception as error:
            raise _malformed() from error

    return parse_or_refuse


@_parser
def read(req: Request) -> dict[str, str]:
    """Return a form as a flat dict of clean text, whatever type the body has.

    Raises Rejected: 400 MALFORMED, 413, 415, 422 for files and nested values.
    """
    return _flat(_pairs(media_type(req), read_bytes(req), req.content_type or ""))


@_parser
def read_page(req: Request) -> str | None:
    """Return the page that a hit names, as it was sent; a beacon may hold just that.

    Raises Rejected like read().
    """
    kind, body = media_type(req), read_bytes(req)
    if kind == "text/plain" and body.lstrip()[:1] == b'"':
        return str(json.loads(body))
    if kind == "text/plain" and body.lstrip()[:1] != b"{":
        return body.decode()
    value = dict(_pairs(kind, body, req.content_type or "")).get("page")
    if value is FILE:
        raise _no_files(None)
    return None if value is None else _text_of("page", value, str)


def _pairs(kind: str, body: bytes, content_type: str) -> Iterable[tuple[str, Any]]:
    if kind == "application/x-www-form-urlencoded":
        return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    if kind == "multipart/form-data":
        return list(_parts(body, content_type))
    if kind in JSON_TYPES:
        return _json_object(body)
    if not body and not kind:
        return ()
    message = "Send a form or JSON; this type of body is not understood."
    raise error(falcon.HTTP_415, "UNSUPPORTED_TYPE", message)


def _parts(body: bytes, content_type: str) -> Iterable[tuple[str, Any]]:
    handler = MultipartFormHandler()
    handler.parse_options.max_body_part_count = 0  # read() has bounded the whole
    for part in handler.deserialize(BytesIO(body), content_type, len(body)):
        data = part.get_data()
        if part.filename is None:
            yield part.name or "", data.decode()
        elif data:
            yield part.name or "", FILE


def _json_object(body: bytes) -> Iterable[tuple[str, Any]]:
    value = _JSON.decode(body.decode().removeprefix("\ufeff"))
    if not isinstance(value, dict):
        raise _malformed("The body must be a JSON object.")
    return value.items()


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def _flat(pairs: Iterable[tuple[str, Any]]) -> dict[str, str]:
    values: dict[str, str] = {}
    files = False
    for raw_name, value in pairs:
        if value is FILE:
            files = True
            continue
        name = " ".join(clean(raw_name).split())
        text = _text_of(name, value, clean)
        if name and value is not None:
            before = values.get(name)
            values[name] = f"{before}, {text}" if before and text else before or text
    if files:
        raise _no_files(values)
    return values


def _text_of(name: str, value: Any, text: Callable[[str], str]) -> str:
    """Return a field's value as text, a list's items joined."""
    if isinstance(value, str):
        return text(value)
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, (dict, list)) for item in items):
        problem = _error("TYPE_TEXT", "A field must be text.", name)
        raise Rejected(falcon.HTTP_422, [problem])
    return ", ".join(filter(None, (text(_plain(item)) for item in items)))


def _plain(value: str | float | bool | None) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def clean(text: str) -> str:
    """Return text as Unicode NFC, with no control characters but newline and tab."""
    if text.isascii() and text.isprintable():
        return text.strip()
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _SURROGATES.sub("\ufffd", _CONTROLS.sub("", text))
    return unicodedata.normalize("NFC", _stream_safe(text)).strip()


def _stream_safe(text: str) -> str:
    """Cut runs of combining marks at 30 (UAX #15, 13): more cost quadratic time."""
    kept, run = [], 0
    for char in text:
        run = run + 1 if unicodedata.combining(char) else 0
        if run <= 30:
            kept.append(char)
    return "".join(kept)


# --- what a form means -----------------------------------------------------------


@dataclass(slots=True)
class Contact:
    """A visitor's message, valid and complete."""

    email: str
    text: str
    name: str = ""
    subject: str = ""
    next: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    honeypot: bool = False


@dataclass(slots=True)
class Signup:
    """An address for the newsletter, valid."""

    email: str
    name: str = ""
    next: str = ""
    honeypot: bool = False


def contact(values: Mapping[str, str]) -> Contact:
    """Return what a contact form says.

    Raises Rejected (422) with all errors at once.
    """
    check = _Check(values)
    email = check.email()
    text_name = check.named(TEXT, "message")
    text = check.required(text_name, "Please write a message.", 10_000)
    name = check.name()
    subject = check.line(SUBJECT, 200)
    extra = check.others()
    check.done()
    return Contact(
        email, text, name, subject, first(values, NEXT), extra, check.honeypot()
    )


def signup(values: Mapping[str, str]) -> Signup:
    """Return what a newsletter form says; raises Rejected (422)."""
    check = _Check(values)
    email = check.email()
    name = check.name()
    check.done()
    return Signup(email, name, first(values, NEXT), check.honeypot())


def first(values: Mapping[str, str], aliases: Iterable[str]) -> str:
    """Return what the first filled-in alias holds, or ""."""
    return next((values[name] for name in aliases if values.get(name)), "")


class _Check:
    """Looks up fields by their many names and collects what is wrong."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values
        self.errors: list[Error] = []
        self.used: set[str] = set()
        if LEFTOVERS.issuperset(values):
            empty = _error("EMPTY", "The form is empty.")
            raise Rejected(falcon.HTTP_422, [empty], values=values)

    def named(self, aliases: tuple[str, ...], default: str) -> str:
        """Return the alias that was filled in, else one that was sent."""
        for alias in aliases:
            if self.values.get(alias):
                return alias
        return next((alias for alias in aliases if alias in self.values), default)

    def error(self, code: str, name: str, message: str) -> None:
        self.errors.append(_error(code, message, name))

    def required(self, name: str, message: str, limit: int) -> str:
        value = self.values.get(name, "")
        self.used.add(name)
        if not value:
            missing = "MISSING" if name not in self.values else "EMPTY"
            self.error(f"REQUIRED_FIELD_{missing}", name, message)
        self.limit(name, value, limit)
        return value

    def limit(self, name: str, value: str, limit: int) -> None:
        if len(value) > limit:
            self.error("TOO_LONG", name, f"At most {limit:,} characters, please.")

    def email(self) -> str:
        name = self.named(ADDRESS, "email")
        value = self.required(name, "Please give your e-mail address.", 254)
        if not value or len(value) > 254:
            return ""
        email = valid_email(value)
        if email is None:
            self.error("TYPE_EMAIL", name, "This is not a valid e-mail address.")
        return email or ""

    def line(self, aliases: tuple[str, ...], limit: int) -> str:
        name = self.named(aliases, aliases[0])
        self.used.add(name)
        value = " ".join(self.values.get(name, "").split())
        self.limit(name, value, limit)
        return value

    def name(self) -> str:
        value = self.line(NAME, 200)
        for pair in NAME_PAIRS if not value else ():
            parts = [self.values[part] for part in pair if self.values.get(part)]
            if parts:
                self.used.update(pair)
                value = " ".join(" ".join(parts).split())
                self.limit(pair[0], value, 200)
                break
        return value

    def others(self) -> dict[str, str]:
        """Return what was not used: a second address or text is not lost either."""
        kept = {}
        taken = {self.values.get(name) for name in self.used}
        for name, value in self.values.items():
            repeated = name in KNOWN and (not value or value in taken)
            if name in self.used or name in SERVICE or repeated:
                continue
            kept[name] = value
            if len(name) > 100 or len(value) > 2000:
                # The name is the visitor's input: it is not repeated.
                self.errors.append(_error("TOO_LONG", "A field is too long."))
        if len(kept) > MAX_EXTRA_FIELDS:
            self.errors.append(
                _error("TOO_MANY_FIELDS", "The form has too many fields.")
            )
        return kept

    def honeypot(self) -> bool:
        return any(self.values.get(n, "") not in ("", "false") for n in HONEYPOTS)

    def done(self) -> None:
        if self.errors:
            raise Rejected(falcon.HTTP_422, self.errors, values=self.values)


# Most addresses need no library: lower case, no label of more than 63 characters
# (there are none in so short a text), no top level that is reserved.
_EVERYDAY = re.compile(
    r"(?=.{6,63}\Z)[a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*@(?:[a-z0-9]+(?:-[a-z0-9]+)*\.)+"
    r"(?!arpa\Z|invalid\Z|local\Z|localhost\Z|onion\Z)[a-z]{2,}"
)


def valid_email(text: str) -> str | None:
    """Return an address in its normal form, None if it is not valid."""
    if _EVERYDAY.fullmatch(text):
        return text
    # 32 ms to import, 30 us a call.
    from email_validator import EmailNotValidError, validate_email

    if len(text) > 254 or "\n" in text or "\ufffd" in text:  # clean() put it there
        return None
    try:
        # test_environment admits the reserved .test; no DNS look-up in a request.
        valid = validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        return None
    return valid.ascii_email or valid.normalized


# --- where to go next ------------------------------------------------------------


def next_url(
    wanted: str, site: str | None, allows: Callable[[str], bool]
) -> str | None:
    """Return where a form asked to land, or None if that is not allowed.

    A relative path is resolved on the sending site (an URL of it, or None).
    """
    if not wanted or len(wanted) > 2000 or re.search(r"[\\\s\x00-\x20\x7f]", wanted):
        return None
    if wanted in ("true", "false"):  # what becomes of JSON's: "redirect: false"
        return None
    try:
        asked = urlsplit(wanted)
        if not asked.netloc and (asked.scheme or wanted.startswith("//")):
            return None  # https:evil.example, ///evil.example: neither path nor URL
        url = urljoin(site or "", wanted)
        if not allows(url):
            return None
        parts = urlsplit(url)
        host = parts.netloc.encode("idna").decode()
    except (ValueError, UnicodeError):
        return None
    return quote(parts._replace(netloc=host).geturl(), safe="%/:?#[]@!$&'()*+,;=~")


# --- pages that are counted ------------------------------------------------------


def page_of(text: str) -> str:
    """Return a page's path in its one normal form.

    A full URL is reduced to its path; query, fragment, duplicate and trailing
    slashes go. Percent-encoding is decoded where that is safe (unreserved and
    non-ASCII characters), and in upper case where it stays (RFC 3986, 6.2.2).
    Raises Rejected (422) for control characters and over 200 characters.
    """
    if len(text) > 4096:
        raise wrong("page", "TOO_LONG", f"A page has at most {MAX_PAGE} characters.")
    return _page_of(text)


@lru_cache(maxsize=1024)
def _page_of(text: str) -> str:
    path = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", "", text.strip(" "))
    path = re.split(r"[?#]", path, maxsplit=1)[0]
    path = _normal_escapes(path)
    if any(map(_is_control, text)) or _ESCAPED_CONTROL.search(path):
        raise wrong("page", "TYPE_TEXT", "A page has no control characters.")
    path = "/" + re.sub("/{2,}", "/", path).strip("/")
    if len(path) > MAX_PAGE:
        raise wrong("page", "TOO_LONG", f"A page has at most {MAX_PAGE} characters.")
    return path


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs")


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


# --- errors ----------------------------------------------------------------------


def error(
    status: str, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Rejected:
    """Return the exception of one error that concerns no field."""
    return Rejected(status, [_error(code, message)], headers=headers)


def _error(code: str, message: str, name: str | None = None) -> Error:
    if name is None or name not in KNOWN:
        return {"code": code, "message": message}
    return {"code": code, "field": name, "message": message}


def wrong(name: str, code: str, message: str) -> Rejected:
    """Return the exception of one field that is not as it must be."""
    problem: Error = {"code": code, "field": name, "message": message}
    return Rejected(falcon.HTTP_422, [problem])


def _no_files(values: Mapping[str, str] | None) -> Rejected:
    problem = _error("NO_FILE_UPLOADS", "Files are not accepted here.")
    return Rejected(falcon.HTTP_422, [problem], values=values)


def _malformed(message: str = "The body could not be read.") -> Rejected:
    return error(falcon.HTTP_400, "MALFORMED", message)


def _too_large() -> Rejected:
    message = f"The body is larger than {MAX_BODY // 1024} KiB."
    return error(falcon.HTTP_413, "TOO_LARGE", message)
