"""The environment, read once and checked whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from email.utils import getaddresses
from functools import cached_property, lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from frontdesk import colours
from frontdesk.languages import language_code
from frontdesk.times import Calendar

VERSION = "2.0.0"

# What the server puts in place of an X-Forwarded-For that was sent twice, and of the
# method where the bytes that came are no request: both are refused with 400.
TWO_LINES = "two lines"
BROKEN = "BROKEN-HTTP"
MAX_URL = 8190  # characters, as gunicorn takes of a header
MAX_HOST = 253  # characters, of which 63 in a row; RFC 1035
MAILJET_API_URL = "https://api.mailjet.com/"
ALIKE = 0.85  # of two names, from 0 to 1: ALLOWED_ORIGIN and ALLOWED_ORIGINS are
MAILJET_KEYS = ("MJ_APIKEY_PUBLIC", "MJ_APIKEY_PRIVATE")
EVERY_ORIGIN: tuple[str, ...] = ("*",)
SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}

T = TypeVar("T")
Network = IPv4Network | IPv6Network


class SettingsError(Exception):
    """Everything that is wrong with the environment, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Window:
    """So many requests in so many seconds."""

    quota: int
    seconds: int

    @cached_property
    def step(self) -> int:
        """Return how often one may come in the long run: microseconds."""
        return self.seconds * 1_000_000 // self.quota

    @cached_property
    def tolerance(self) -> int:
        """Return how far ahead of that one may be, so that a burst passes."""
        return self.step * (self.quota - 1)


Windows = tuple[Window, ...]


class Address(NamedTuple):
    """A mailbox as in ``Name <a@b>``; the name may be empty."""

    name: str
    email: str


def origin_of(url: str) -> str | None:
    """Return the origin of an http(s) URL as browsers write it, else None."""
    # Before the cache: it would keep whatever length a client sends.
    return None if len(url) > MAX_URL else _origin_of(url)


@lru_cache(maxsize=256)
def _origin_of(url: str) -> str | None:
    if not url or "\\" in url or "@" in url.partition("://")[2].partition("/")[0]:
        return None
    try:
        parts = urlsplit(url)
        port, host = parts.port, _ascii_host(parts.hostname or "")
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[\w.:-]+", host):
        return None
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (
        f":{port}" if port not in (None, default) else ""
    )


def _ascii_host(host: str) -> str:
    """Return a host as browsers send it; raises ValueError.

    IDNA 2008 as browsers apply it (UTS 46): straße.example stays apart from
    strasse.example. Its cost grows with the square of the length: RFC 1035's comes
    first.
    """
    if len(host) > MAX_HOST or re.search(r"[^.]{64}", host):
        raise ValueError("too long")
    if host.isascii():
        return host
    import idna  # 10 ms, for few sites

    return idna.encode(host, uts46=True).decode()


class Origins:
    """The origins of the owner's pages; ``*`` stands for every one."""

    def __init__(self, listed: tuple[str, ...], own: str | None = None) -> None:
        self.any = listed == EVERY_ORIGIN
        self._listed = {self._site(origin) for origin in listed}
        self._sites = self._listed | {self._site(own)} if own else self._listed

    @staticmethod
    def _site(origin: str) -> str:
        return origin.replace("://www.", "://", 1)

    def allows(self, url: str) -> bool:
        """Tell whether a URL lies on an allowed origin."""
        origin = origin_of(url)
        return origin is not None and (self.any or self._site(origin) in self._sites)

    def lists(self, url: str) -> bool:
        """Tell whether the owner named a URL's origin; ``*`` names none."""
        origin = origin_of(url)
        return origin is not None and self._site(origin) in self._listed


# --- what each variable may hold -------------------------------------------------


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def _switch(text: str) -> bool:
    return _whole(0, 1)(text) == 1


def _secret_keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(","))
    if any(len(key) < 32 for key in keys):
        raise ValueError("each key must have at least 32 characters")
    return keys


def _database(text: str) -> str:
    if text.startswith("sqlite:///") and text not in ("sqlite:///", "sqlite:////"):
        if ":memory:" in text:
            raise ValueError("must name a file, several threads share it")
        return text
    if text.startswith(("postgres://", "postgresql://")):
        return text
    # The value may hold a password: it is not repeated.
    raise ValueError(
        "must look like sqlite:///file.db, sqlite:////var/file.db or "
        "postgres://user:password@host/name"
    )


def _url(text: str) -> str:
    # A header holds ASCII only.
    if origin_of(text) is None or re.search(r"[^\x21-\x7e]", text):
        raise ValueError("must be a URL such as https://example.com, in ASCII")
    return text


def _base_url(text: str) -> str:
    if "?" in text or "#" in text:
        raise ValueError("must end with a host or a path, links are made of it")
    return _url(text).rstrip("/")


def _mailjet_url(text: str) -> str:
    host = urlsplit(_url(text)).hostname or ""
    # mailjet_rest itself refuses every other host.
    if host not in ("localhost", "127.0.0.1", "::1", "mailjet.com") and (
        not host.endswith(".mailjet.com")
    ):
        raise ValueError("must lie on mailjet.com or on this machine")
    return text


def _templates(text: str) -> Path:
    from frontdesk.pages import check_templates  # loads Jinja: only where it is used

    check_templates(Path(text))
    return Path(text).absolute()


def _color(text: str) -> str:
    colours.parse(text)
    return text


def _https_url(text: str) -> str:
    if not _url(text).startswith("https://"):
        raise ValueError("must be an https URL")
    return text


def _origins(text: str) -> tuple[str, ...]:
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if "*" in entries:
        return EVERY_ORIGIN
    origins = []
    for entry in entries:
        origin = origin_of(entry)
        if origin is None or urlsplit(entry).path not in ("", "/"):
            raise ValueError(f"'{entry}' is not an origin such as https://example.com")
        origins.append(origin)
    if not origins:
        raise ValueError("must name at least one origin such as https://example.com")
    return tuple(origins)


def _networks(text: str) -> tuple[Network, ...]:
    try:
        entries = [entry.strip() for entry in text.split(",")]
        return tuple(ip_network(entry, strict=False) for entry in entries if entry)
    except ValueError:
        raise ValueError(
            "must be addresses or networks such as 203.0.113.7, 2001:db8:1:2::/64"
        ) from None


def _zone(text: str) -> str:
    Calendar(text)
    return text


def _line(text: str) -> str:
    if not text.isprintable() or len(text) > 100:
        raise ValueError("must be one line of at most 100 characters")
    return text


def _address(text: str) -> Address:
    if "<" in text and not text.endswith(">"):
        raise ValueError("must end with the > that its < opens: Name <me@example.com>")
    addresses = getaddresses([text])
    name, email = addresses[0]
    if len(addresses) > 1 or not re.fullmatch(r"[^@\s,;<>]+@[^@\s,;<>]+", email):
        raise ValueError("must be a mail address such as Name <me@example.com>")
    return Address(name, email)


def _token(text: str) -> str:
    if not (text.isascii() and text.isprintable()):  # a header could not hold it
        raise ValueError("must be ASCII")
    if len(text) < 16:
        raise ValueError("must have at least 16 characters (openssl rand -hex 32)")
    return text


def _digits(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise ValueError("must be the numeric ID of a Mailjet contact list")
    return text


def _header(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]+", text):
        raise ValueError("must be the name of a header")
    return text


_WINDOW = re.compile(r"\s*([0-9]{1,6})\s*/\s*(second|minute|hour|day)s?\s*")


def _limit(text: str) -> Windows:
    quotas: dict[int, int] = {}
    for part in text.split(";"):
        match = _WINDOW.fullmatch(part)
        if not match or int(match[1]) == 0:
            raise ValueError("must look like 5/minute or 5/minute;30/hour")
        quota, seconds = int(match[1]), SECONDS[match[2]]
        quotas[seconds] = min(quota, quotas.get(seconds, quota))
    return tuple(Window(quota, seconds) for seconds, quota in quotas.items())


# --- the settings ----------------------------------------------------------------

CONTACT_LIMIT = (Window(5, 60), Window(30, 3600), Window(100, 86400))
NEWSLETTER_LIMIT = (Window(5, 60), Window(20, 3600))


def _read(variable: str, parse: Callable[[str], T], default: T) -> T:
    """Return a field of Settings that is read from a variable."""
    metadata = {"variable": variable, "parse": parse}
    made: T = field(default=default, metadata=metadata)
    return made


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the owner chose, or the defaults."""

    # Newest first; none: the database keeps one.
    secret_keys: tuple[str, ...] = _read("SECRET_KEY", _secret_keys, ())
    database_url: str = _read("DATABASE_URL", _database, "sqlite:///frontdesk.db")
    public_url: str = _read("PUBLIC_URL", _base_url, "http://localhost:8000")
    allowed_origins: tuple[str, ...] = _read("ALLOWED_ORIGINS", _origins, EVERY_ORIGIN)
    site_name: str = _read("SITE_NAME", _line, "localhost")
    thanks_url: str | None = _read("THANKS_URL", _url, None)
    mail_from: Address | None = _read("MAIL_FROM", _address, None)
    mail_to: Address | None = _read("MAIL_TO", _address, None)
    mailjet_key: tuple[str, str] | None = None
    mailjet_api_url: str = _read("MAILJET_API_URL", _mailjet_url, MAILJET_API_URL)
    mailjet_list_id: str | None = _read("MAILJET_LIST_ID", _digits, None)
    confirm_mails_per_day: int = _read("CONFIRM_MAILS_PER_DAY", _whole(0, 10**6), 100)
    admin_token: str | None = _read("ADMIN_TOKEN", _token, None)
    trusted_hops: int = _read("TRUSTED_HOPS", _whole(0, 10), 0)
    client_ip_header: str | None = _read("CLIENT_IP_HEADER", _header, None)
    contact_limit: Windows = _read("CONTACT_LIMIT", _limit, CONTACT_LIMIT)
    newsletter_limit: Windows = _read("NEWSLETTER_LIMIT", _limit, NEWSLETTER_LIMIT)
    hits_limit: Windows = _read("HITS_LIMIT", _limit, (Window(120, 60),))
    hits_ignore: tuple[Network, ...] = _read("HITS_IGNORE", _networks, ())
    max_pages: int = _read("MAX_PAGES", _whole(1, 10**7), 10000)
    time_zone: str = _read("TIME_ZONE", _zone, "UTC")
    letter: str = _read("LETTER", _one_of("weekly", "monthly", "off"), "monthly")
    retention_days: int = _read("RETENTION_DAYS", _whole(0, 36500), 0)
    site_language: str = _read("SITE_LANGUAGE", language_code, "en")
    template_dir: Path | None = _read("TEMPLATE_DIR", _templates, None)
    accent_color: str | None = _read("ACCENT_COLOR", _color, None)
    logo_url: str | None = _read("LOGO_URL", _https_url, None)
    ephemeral: bool = _read("ALLOW_EPHEMERAL", _switch, False)
    port: int = _read("PORT", _whole(1, 65535), 8000)
    workers: int = _read("WEB_CONCURRENCY", _whole(1, 64), 1)
    threads: int = _read("WEB_THREADS", _whole(1, 64), 8)
    outbox: str = _read("OUTBOX", _one_of("thread", "request"), "thread")
    # Sentences for the log at start: what is not wrong, but perhaps not meant.
    hints: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def origins(self) -> Origins:
        """The allowed origins, our own pages' among them."""
        return Origins(self.allowed_origins, origin_of(self.public_url))

    @cached_property
    def calendar(self) -> Calendar:
        """The days of TIME_ZONE."""
        return Calendar(self.time_zone)

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of the owner's site, as spam names it."""
        listed = [urlsplit(origin).hostname or "" for origin in self.allowed_origins]
        return tuple({host for host in (self.site_name, *listed) if "." in host})

    @cached_property
    def root(self) -> str:
        """The path that a proxy in front takes off, if PUBLIC_URL has one."""
        return urlsplit(self.public_url).path

    @property
    def knows_its_address(self) -> bool:
        """Whether PUBLIC_URL or the platform told where visitors reach the service."""
        return self.public_url != f"http://localhost:{self.port}"

    @property
    def syncs_list(self) -> bool:
        """Whether changes of the sign-up list go to Mailjet's."""
        return self.mailjet_list_id is not None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read and check all settings.

        Raises SettingsError with every problem at once.
        """
        return _Reader(environ).checked()


class _Reader:
    """Reads one variable after the other and keeps what was wrong."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        # A platform's form leaves untouched fields as empty strings.
        self.environ = {k: v.strip() for k, v in environ.items() if v.strip()}
        self.problems: list[str] = []
        self.known = {*MAILJET_KEYS}  # grows with read()
        self.heroku = "DYNO" in self.environ
        self.render = "RENDER" in self.environ

    def checked(self) -> Settings:
        settings = self.settings()
        self.check_missing(settings)
        self.check_sqlite(settings)
        hints = self.misspelt()
        if self.problems:
            raise SettingsError([*self.problems, *hints])
        if not settings.knows_its_address:
            hints.append(
                "PUBLIC_URL: not set, so that links in mails lead to "
                f"{settings.public_url}. On a server, set it to the address that "
                "visitors reach."
            )
        return replace(settings, hints=tuple(hints))

    def settings(self) -> Settings:
        read = {f.name: self.read(**f.metadata) for f in fields(Settings) if f.metadata}
        chosen = {name: value for name, value in read.items() if value is not None}
        url = self.platform_url() or f"http://localhost:{chosen.get('port', 8000)}"
        origins = chosen.get("allowed_origins", EVERY_ORIGIN)
        home = chosen.get("public_url", url) if origins == EVERY_ORIGIN else origins[0]
        defaults = {
            "public_url": url,
            "site_name": urlsplit(home).hostname or "",
            "trusted_hops": int(self.heroku),
            "client_ip_header": "CF-Connecting-IP" if self.render else None,
        }
        return Settings(**{**defaults, **chosen}, mailjet_key=self.mailjet_key())

    def misspelt(self) -> list[str]:
        """Return a sentence for each variable that looks like one of ours."""
        unset = self.known - self.environ.keys()
        found = []
        for name in sorted(self.environ.keys() - self.known):
            # Comparing each with each would take 20 ms.
            begun = [known for known in unset if known[0] == name[0].upper()]
            if near := get_close_matches(name.upper(), begun, 1, ALIKE):
                found.append(f"{name}: no such setting, did you mean {near[0]}?")
        return found

    def read(self, variable: str, parse: Callable[[str], Any]) -> Any:
        """Return what a variable holds, None where it is not set or is wrong."""
        self.known.add(variable)
        try:
            text = self.environ.get(variable)
            return None if text is None else parse(text)
        except ValueError as error:
            self.problems.append(f"{variable}: {error}")
            return None

    def platform_url(self) -> str | None:
        """Return what the platform says that the service is reached by."""
        domain = self.environ.get("HEROKU_APP_DEFAULT_DOMAIN_NAME")
        url: str | None = self.read("RENDER_EXTERNAL_URL", _url)
        url = url or (f"https://{domain}" if domain else None)
        return url and url.rstrip("/")

    def mailjet_key(self) -> tuple[str, str] | None:
        public, private = map(self.environ.get, MAILJET_KEYS)
        return (public, private) if public and private else None

    def check_missing(self, settings: Settings) -> None:
        needed = {}
        if self.environ.keys() & MAILJET_KEYS:
            needed = dict.fromkeys(MAILJET_KEYS, "Mailjet needs both keys")
        if settings.mailjet_key:
            needed["MAIL_FROM"] = "set it to the sender address verified at Mailjet"
            needed["MAIL_TO"] = "set it to the address that messages are sent to"
        if self.heroku or self.render:
            random = "set it to 32 or more random characters (openssl rand -hex 32)"
            needed["SECRET_KEY"] = random
        for name, what in needed.items():
            if name not in self.environ:
                self.problems.append(f"{name}: missing, {what}")

    def check_sqlite(self, settings: Settings) -> None:
        path = sqlite_path(settings.database_url)
        wrong = any(problem.startswith("DATABASE_URL:") for problem in self.problems)
        if path is None or wrong:
            return
        wiped = self.heroku or (self.render and not _on_mounted_disk(path))
        if wiped and not settings.ephemeral:
            way = (
                "attach Postgres (heroku addons:create heroku-postgresql)"
                if self.heroku
                else "attach a disk and point DATABASE_URL to a file on it, or use "
                "Postgres"
            )
            self.problems.append(
                f"DATABASE_URL: {path} lies on a disk that this platform wipes at each "
                f"restart, and the sign-up list with it: {way}; ALLOW_EPHEMERAL=1 "
                "overrides this"
            )
        elif not path.parent.is_dir():
            self.problems.append(f"DATABASE_URL: cannot use {path}: no such folder")


def sqlite_path(database_url: str) -> Path | None:
    """Return the absolute path of a SQLite URL's file, None for Postgres."""
    if not database_url.startswith("sqlite:///"):
        return None
    return Path(unquote(database_url.removeprefix("sqlite:///"))).absolute()


def _on_mounted_disk(path: Path) -> bool:
    return any(parent.is_mount() for parent in path.parents if parent != Path("/"))
