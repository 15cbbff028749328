"""A hostile body in, a clean flat dict of str out; field aliases and validation."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from io import BytesIO
from itertools import chain
from typing import Any, TypedDict, TypeVar
from urllib.parse import parse_qsl, quote, urljoin, urlsplit

import falcon
from falcon import Request
from falcon.media import MultipartFormHandler

from frontdesk import fields
from frontdesk.fields import meaning
from frontdesk.languages import marked
from frontdesk.settings import origin_of

T = TypeVar("T")

MAX_BODY = 64 * 1024
MAX_EXTRA_FIELDS = 40
JSON_TYPES = ("application/json", "text/plain")  # a page may send JSON as either

MAX_VALUE = 10_000
MAX_LINE = 200  # of a name or subject
MAX_ADDRESS = 254  # RFC 5321, 4.5.3.1.3, without its brackets
MAX_NAMES = 200  # filled in or not: more are not looked at one by one

NAMELESS = "(no name)"  # what stands for a name where a field has none
FILE = object()  # in place of an uploaded file
PROOF = "_frontdesk"  # our own question's signature
FROM = "_frontdesk_page"  # where a form that our own page gave back came from
OURS = (PROOF, FROM)

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Error(TypedDict, total=False):
    """What is wrong: where it is answered, an entry of ``errors`` is made of it."""

    code: str
    field: str  # as the site calls it, where that is safe to repeat
    message: str  # a sentence for the catalogs
    values: dict[str, object]  # for the sentence's placeholders
    name: str  # the field whatever it is called, for the page that gives it back


class Rejected(falcon.HTTPError):
    """A request that the client has to change before sending it again."""

    def __init__(
        self,
        status: str,
        errors: list[Error],
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            status, description=errors[0]["message"], headers=dict(headers or {})
        )
        self.errors = errors


class Form(dict[str, str]):
    """What was sent: clean text by the fields' names, in the form's order.

    What came under one name several times is joined here and apart in repeated.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__()
        self.repeated: dict[str, dict[str, None]] = {}  # names to sets in order
        for name, text in pairs:
            before = self.get(name)
            if not before:
                self[name] = text
            elif text and text != before:
                values = self.repeated.setdefault(name, {before: None})
                values[text] = None
        for name, values in self.repeated.items():
            self[name] = ", ".join(values)


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
        raise _too_large(most)
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
        raise _too_large(most)
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
def read(req: Request) -> Form:
    """Return a form as flat clean text, whatever type the body has.

    It stays at req.context.form, for the page that gives it back when something is
    wrong. Raises Rejected: 400 MALFORMED, 413, 415, 422 for files.
    """
    pairs = _pairs(media_type(req), read_bytes(req), req.content_type or "")
    leaves: list[tuple[str, Any]] = []
    for name, value in pairs:
        _flatten(name, value, leaves)
    # Each name once: in a list it may stand for thousands of values.
    given = {name for name, _ in leaves}
    names = {name: " ".join(clean(name).split()) or NAMELESS for name in given}
    form = Form(
        (names[name], clean(_plain(value)))
        for name, value in leaves
        if value is not FILE
    )
    req.context.form = form
    if any(value is FILE for _, value in leaves):
        raise _no_files()
    return form


def _flatten(name: str, value: Any, leaves: list[tuple[str, Any]]) -> None:
    """Add what is not null in a JSON value: objects become a.b, lists repeat a name.

    An object in a list stays one value, so that one sees what belongs together.
    """
    if isinstance(value, dict):
        for inner, item in value.items():
            # A name that is too long already is refused, so that it need not grow.
            path = name if len(name) > fields.MAX_NAME else f"{name}.{inner}"
            _flatten(path, item, leaves)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                inside: list[tuple[str, Any]] = []
                _flatten("", item, inside)
                item = "; ".join(f"{path[1:]}: {_plain(leaf)}" for path, leaf in inside)
            _flatten(name, item, leaves)
    elif value is not None:
        leaves.append((name, value))


@_parser
def read_page(req: Request) -> str | None:
    """Return the page that a hit names, as it was sent; a beacon may hold just that.

    Raises Rejected like read().
    """
    kind, body = media_type(req), read_bytes(req)
    if kind == "text/plain" and body.lstrip()[:1] == b'"':
        return str(json.loads(body))
    if kind == "text/plain" and body.lstrip()[:1] != b"{":
        return body.decode().strip()
    value = dict(_pairs(kind, body, req.content_type or "")).get("page")
    if value is FILE:
        raise _no_files()
    if isinstance(value, (dict, list)):
        raise wrong("page", "TYPE_TEXT", marked("A page must be text."))
    return None if value is None else _plain(value)


def _pairs(kind: str, body: bytes, content_type: str) -> Iterable[tuple[str, Any]]:
    if kind == "application/x-www-form-urlencoded":
        if body[:1] == b"{":  # jQuery's type for JSON where nobody names another
            return _json_object(body)
        return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    if kind == "multipart/form-data":
        return list(_parts(body, content_type))
    if kind in JSON_TYPES:
        return _json_object(body)
    if not body and not kind:
        return ()
    message = marked("Send a form or JSON; this type of body is not understood.")
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
        raise _malformed(marked("The body must be a JSON object."))
    return value.items()


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):  # a name that comes twice has all its values
        values: dict[str, list[Any]] = {}
        for name, value in pairs:
            values.setdefault(name, []).append(value)
        made = {name: v if len(v) > 1 else v[0] for name, v in values.items()}
    return made


# A fraction stays as it was written: 19.90.
_JSON = json.JSONDecoder(
    parse_float=str, parse_constant=_refuse_constant, object_pairs_hook=_object
)


def _plain(value: str | int) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
    """What a visitor sent, as far as it is understood; any of it may be empty."""

    email: str
    text: str
    name: str = ""
    subject: str = ""
    extra: dict[str, str] = field(default_factory=dict)  # what has no such meaning
    layout: list[list[str]] = field(default_factory=list)  # see typed()
    honeypot: bool = False
    by_site: frozenset[str] = frozenset()  # what the site wrote itself

    def columns(self) -> dict[str, Any]:
        """Return what is stored of it, by the names of the table's columns."""
        return {
            "name": self.name,
            "email": self.email,
            "subject": self.subject,
            "message": self.text,
            "fields": self.extra,
            "layout": self.layout,
        }

    def said(self) -> tuple[str, str, str, list[str]]:
        """Return text, name, subject and further fields, to be judged.

        A site's own words, its name among them, tell nothing of who sent the form.
        """
        others = [text for text in self.extra.values() if text not in self.by_site]
        subject = "" if self.subject in self.by_site else self.subject
        return self.text, self.name, subject, others


@dataclass(slots=True)
class Signup:
    """An address for the newsletter, valid."""

    email: str
    name: str = ""
    honeypot: bool = False


def contact(values: Mapping[str, str], own: Container[str] = ()) -> Contact:
    """Return what a form says, whatever its fields are called.

    own: the owner's addresses in lower case, that some forms carry in a hidden field.
    Raises Rejected (422) with all errors at once.
    """
    reading = _Reading(values, own)
    reading.refuse_empty()
    email = reading.address()
    name = reading.name()
    text_field = reading.text_field()
    subject = reading.subject(text_field)
    text = reading.text(text_field)
    extra = reading.others()
    columns = {"email": email, "name": name, "subject": subject, "message": text}
    layout = reading.layout(columns, extra)
    reading.done()
    return Contact(
        *(email, text, name, subject, extra, layout),
        honeypot=reading.honeypot,
        by_site=reading.by_site(),
    )


def signup(values: Mapping[str, str], own: Container[str] = ()) -> Signup:
    """Return what a newsletter form says; raises Rejected (422) without an address."""
    reading = _Reading(values, own)
    email = reading.address()
    if not email and not reading.errors:
        reading.refuse_missing_address()
    name = reading.name()
    reading.done()
    return Signup(email, name, reading.honeypot)


def typed(
    layout: list[list[str]], columns: Mapping[str, str], extra: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return all that was typed, (name, text), in the form's order.

    layout says for each field where its text is: [name] in extra, [name, column] in
    one of the columns, [name, "", text] here, since a column holds only part of it.
    """
    shown = []
    for name, *where in layout:
        text = extra[name] if not where else where[-1]
        shown.append((name, columns[text] if len(where) == 1 else text))
    return shown


def is_template(value: str) -> bool:
    """Tell whether a site should have put an address in a value's place."""
    short = len(value) <= fields.MAX_NAME
    return short and bool(_TEMPLATE.fullmatch(value) or meaning(value) in _ADDRESS)


def wanted_next(values: Mapping[str, str]) -> str:
    """Return where a form asks to go after its success, or ""."""
    for name, value in values.items():
        if value and meaning(name) == "next":
            return value
    return ""


class _Reading:
    """Finds what a form's fields mean and collects what is wrong with them."""

    def __init__(self, values: Mapping[str, str], own: Container[str]) -> None:
        if len(values) > MAX_NAMES:
            raise Rejected(falcon.HTTP_422, [_too_many()])
        self.values = values
        self.own = own
        self.repeated = getattr(values, "repeated", {})
        self.errors: list[Error] = []
        self.wrong: set[str] = set()
        self.filled: dict[str, str] = {}  # what was typed
        self.names: dict[str, list[str]] = {}  # of filled fields, by their meaning
        self.column: dict[str, str] = {}  # of a field, where it has one
        self.honeypot = False
        for name, value in values.items():
            if not value or name in OURS:
                continue
            means = meaning(name)
            if means == "honeypot":
                self.honeypot |= value.lower() not in ("false", "off")
            elif means not in fields.SERVICE:
                self.filled[name] = value
                self.names.setdefault(means, []).append(name)

    def refuse_empty(self) -> None:
        """Refuse a form without a word of the visitor's."""
        replyto = self.names.get("replyto", ())
        unseen = ("hidden", "hidden subject")
        silent = sum(len(self.names.get(means, ())) for means in unseen)
        if len(self.filled) > silent + len(replyto):
            return
        silent += sum(self.is_placeholder(self.filled[name]) for name in replyto)
        if len(self.filled) == silent:
            raise error(falcon.HTTP_422, "EMPTY", marked("Nothing was filled in."))

    def refuse_missing_address(self) -> None:
        name = next((n for n in self.values if meaning(n) in _ADDRESS), "")
        if not name:
            self.refuse_empty()
        name = name or "email"
        if self.values.get(name):
            self.error("TYPE_EMAIL", name, _NO_ADDRESS)
        else:
            missing = "EMPTY" if name in self.values else "MISSING"
            ask = marked("Please give your email address.")
            self.error(f"REQUIRED_FIELD_{missing}", name, ask)

    def error(self, code: str, name: str, message: str, **values: object) -> None:
        self.wrong.add(name)
        self.errors.append(_error(code, message, name, **values))

    def limit(self, name: str, most: int) -> bool:
        """Tell whether a field is short enough."""
        if len(self.filled[name]) <= most:
            return True
        self.error("TOO_LONG", name, _TOO_LONG, most=most)
        return False

    def first(self, *meanings: str) -> str:
        """Return the first field of a meaning, the first meaning's before others'."""
        for means in meanings:
            for name in self.names.get(means, ()):
                if name not in self.column:
                    return name
        return ""

    def address(self) -> str:
        """Return the visitor's address, the owner's own only if there is no other."""
        known = [name for means in _ADDRESS for name in self.names.get(means, ())]
        found: list[tuple[str, str, str]] = []
        for name, whole in chain(((n, self.filled[n]) for n in known), self._others()):
            email = _one_address(whole)
            if not email and name in known:
                email = _decorated_address(whole)
            if email:
                if email.lower() not in self.own:
                    found.insert(0, (name, whole, email))
                    break
                found.append((name, whole, email))
        if known and not any(name in known for name, _, _ in found):
            self._refuse_address(known)
        if not found:
            return ""
        name, whole, email = found[0]
        if whole != self.filled[name]:  # one of several values: the others stay
            rest = [value for value in self.repeated[name] if value != whole]
            self.filled[name] = ", ".join(rest)
        elif meaning(name) not in _TEXT and whole.casefold() == email.casefold():
            self.column[name] = "email"  # else it was typed in letters beyond ASCII
        return email

    def _others(self) -> Iterator[tuple[str, str]]:
        for name, value in self.filled.items():
            if meaning(name) not in (*_ADDRESS, "recipient", "hidden"):
                for one in self.repeated.get(name, (value,)):
                    yield name, one

    def _refuse_address(self, names: list[str]) -> None:
        typed = [n for n in names if not self.is_placeholder(self.filled[n])]
        if typed and self.limit(typed[0], MAX_ADDRESS):
            self.error("TYPE_EMAIL", typed[0], _NO_ADDRESS)

    def is_placeholder(self, value: str) -> bool:
        """Tell whether a site meant something to be put in a value's place."""
        if value == "on" or is_template(value):  # a ticked box: "by email, please"
            return True
        short = len(value) <= fields.MAX_NAME
        return short and fields.key(value) in map(fields.key, self.values)

    def name(self) -> str:
        """Return the name, of one field or two."""
        whole, first, last = map(self.first, ("name", "first", "last"))
        parts = [*filter(None, (first, whole, last))] or [self.first("nickname")]
        if len(parts) == 3:
            parts = [whole]
        if not parts[0] or not all(self.limit(part, MAX_LINE) for part in parts):
            return ""
        if len(parts) == 2 and self.filled[parts[0]] == self.filled[parts[1]]:
            del parts[1]
        words = _line(" ".join(self.filled[part] for part in parts))
        if len(words) > MAX_LINE:  # both together
            del parts[1:]
            words = _line(self.filled[parts[0]])
        self.column.update(dict.fromkeys(parts, "name"))
        return words

    def text_field(self) -> str:
        """Return the field that holds the text, or "": then several words may do."""
        name = self.first("message")
        if not name:  # the longest: "request" or "question" may be a choice
            details = self.names.get("details", ())
            name = max(details, key=lambda n: len(self.filled[n]), default="")
        if name:
            self.column[name] = "message"
        return name

    def subject(self, text_field: str) -> str:
        """Return the subject; a long one is the text of a form that has none."""
        name = self.first("subject", "hidden subject")
        value = _line(self.filled.get(name, ""))
        if len(value) > MAX_LINE and not text_field and _has_words(value):
            self.names.setdefault("", []).append(name)
            return ""
        if len(value) > MAX_LINE:
            self.error("TOO_LONG", name, _TOO_LONG, most=MAX_LINE)
        if name:
            self.column[name] = "subject"
        return value

    def by_site(self) -> frozenset[str]:
        """Return what nobody typed, so that it tells nothing of who sent the form.

        That is any field with a leading "_" and no meaning (a table that a script
        made), and a silent subject that is short and has no link, as sites write it.
        With a key of Web3Forms or StaticForms, each subject is a setting.
        """
        keys = (
            n for n in self.values if meaning(n) == "leftover" and "key" in n.lower()
        )
        silent = ("hidden subject", *(["subject"] if any(keys) else ()))
        names = chain.from_iterable(self.names.get(means, ()) for means in silent)
        texts = (_line(self.filled[name]) for name in names)
        short = (t for t in texts if len(t) <= MAX_LINE and "://" not in t)
        hidden = (self.filled[name] for name in self.names.get("hidden", ()))
        return frozenset((*short, *hidden))

    def text(self, name: str) -> str:
        """Return the text: without a field for it, the longest of several words."""
        if not name:
            unclaimed = (n for n in self.names.get("", ()) if n not in self.column)
            worded = [n for n in unclaimed if _has_words(self.filled[n])]
            if not worded:
                return ""
            name = max(worded, key=lambda n: len(self.filled[n]))
            self.column[name] = "message"
        return self.filled[name]

    def others(self) -> dict[str, str]:
        """Return what has no column, in order."""
        for name, value in self.filled.items():
            too_long = len(name) > fields.MAX_NAME or len(value) > MAX_VALUE
            if too_long and name not in self.wrong:
                most = MAX_VALUE if len(value) > MAX_VALUE else fields.MAX_NAME
                self.error("TOO_LONG", name, _TOO_LONG, most=most)
        said = {self.filled[name] for name in self.column}
        kept = {
            name: value
            for name, value in self.filled.items()
            if name not in self.column
            and not (value in said and meaning(name) in _COLUMNS)  # said twice
        }
        if len(kept) > MAX_EXTRA_FIELDS:
            self.errors.append(_too_many())
        return kept

    def layout(
        self, columns: Mapping[str, str], extra: Mapping[str, str]
    ) -> list[list[str]]:
        """Return where the text of each field is; see typed()."""
        laid = []
        for name in self.filled:
            value = self.values[name]
            column = self.column.get(name, "")
            if column and columns[column] == value:
                laid.append([name, column])
            elif not column and extra.get(name) == value:
                laid.append([name])
            else:
                laid.append([name, "", value])
        return laid

    def done(self) -> None:
        if self.errors:
            raise Rejected(falcon.HTTP_422, self.errors)


_ADDRESS = ("email", "replyto")
_TEXT = ("message", "details")
_COLUMNS = frozenset(
    (*_ADDRESS, *_TEXT, "name", "first", "last", "nickname", "subject")
)
_NO_ADDRESS = marked("This is not a valid email address.")
_TOO_LONG = marked("At most %(most)s characters, please.")
# @, %email%, {{email}}, ${email}, [email], <email>, *|EMAIL|*
_TEMPLATE = re.compile(r"@|%.*%|[$#]?\{.*\}|\[.*\]|<.*>|\*\|.*\|\*", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}")
# Thai to Lao, Burmese, Khmer, Japanese and Chinese are written without spaces.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u4e00-\u9fff]{8}"
)


def _line(text: str) -> str:
    return " ".join(text.split())


def _has_words(text: str) -> bool:
    """Tell whether a text may be a sentence: a key, an address or a slug is none."""
    words = filter(_WORD.search, text.split())
    return bool((next(words, "") and next(words, "")) or _UNSPACED.search(text))


def _one_address(text: str) -> str | None:
    """Return an address if the whole text is one, without asking for every text."""
    return valid_email(text) if text.count("@") == 1 and " " not in text else None


def _decorated_address(text: str) -> str | None:
    """Return the address in what a person typed into a field for one.

    Ada <ada@example.com>; ada@example.com. with a full stop; full-width letters, as
    Japanese keyboards write them. Of "bob,smith@example.com" it would be a stranger's.
    """
    if len(text) > MAX_ADDRESS or "\n" in text:
        return None
    text = unicodedata.normalize("NFKC", text).removeprefix("mailto:").rstrip(".")
    framed = _FRAMED.fullmatch(text)
    return _one_address(framed[1].strip() if framed else text)


_FRAMED = re.compile(r"[^<>@]*<([^<>]+)>")

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

    if (
        len(text) > MAX_ADDRESS or "\n" in text or "\ufffd" in text
    ):  # clean() put it there
        return None
    try:
        # test_environment admits the reserved .test; no DNS look-up in a request.
        valid = validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        return None
    return valid.ascii_email or valid.normalized


# --- where to go next ------------------------------------------------------------

# Browsers make slashes of backslashes and drop line breaks; a space they encode.
_UNFIT = re.compile(r"[\\\x00-\x1f\x7f]|[^\S ]")


def next_url(
    wanted: str, site: str | None, allows: Callable[[str], bool]
) -> str | None:
    """Return where a form asked to land, or None if that is not allowed.

    A relative path is resolved on the sending site (an URL of it, or None).
    """
    if not wanted or len(wanted) > 2000 or _UNFIT.search(wanted):
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
        # Python's own IDNA is that of 2003: strasse.example for straße.example.
        ascii_host = (origin_of(url) or "").partition("://")[2]
        host = parts.netloc if parts.netloc.isascii() else ascii_host
    except (ValueError, UnicodeError):
        return None
    return quote(parts._replace(netloc=host).geturl(), safe="%/:?#[]@!$&'()*+,;=~")


# --- errors ----------------------------------------------------------------------


def error(
    status: str,
    code: str,
    message: str,
    headers: Mapping[str, str] | None = None,
    **values: object,
) -> Rejected:
    """Return the exception of one error that concerns no field."""
    return Rejected(status, [_error(code, message, None, **values)], headers=headers)


def wrong(name: str, code: str, message: str, **values: object) -> Rejected:
    """Return the exception of one parameter of ours that is not as it must be."""
    problem: Error = {"code": code, "field": name, "message": message}
    return Rejected(falcon.HTTP_422, [{**problem, "values": values}])


def _error(code: str, message: str, name: str | None = None, **values: object) -> Error:
    problem: Error = {"code": code, "message": message, "values": values}
    if name is not None:
        problem["name"] = name
        # Anybody can call a field anything, and some pages show an answer as HTML.
        if meaning(name) and _SAFE_NAME.fullmatch(name):
            problem["field"] = name
    return problem


_SAFE_NAME = re.compile(r"[\w .\[\]-]+")


def _too_many() -> Error:
    return _error("TOO_MANY_FIELDS", marked("The form has too many fields."))


def _no_files() -> Rejected:
    message = marked("Files are not accepted here: please send the form without them.")
    return error(falcon.HTTP_422, "NO_FILE_UPLOADS", message)


def _malformed(message: str = marked("The body could not be read.")) -> Rejected:
    return error(falcon.HTTP_400, "MALFORMED", message)


def _too_large(most: int) -> Rejected:
    message = marked("The form is larger than %(most)s KiB.")
    return error(falcon.HTTP_413, "TOO_LARGE", message, most=most // 1024)
