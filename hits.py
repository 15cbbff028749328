"""The hit counter: what counts, and how the numbers are shown."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

import falcon
from falcon import Request, Response

from frontdesk import forms, paths, pictures
from frontdesk.answers import IMAGE_PROXIES, MEDIA_SVG, PIXEL
from frontdesk.counter import ALL_PAGES, OTHER_PAGES, DayHits, Hit, Page, Visitor
from frontdesk.languages import marked
from frontdesk.resources import Resource
from frontdesk.settings import Network, origin_of
from frontdesk.tables import day_of, to_json
from middleware import client_key

PREFETCH = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz")
KEPT = "public, max-age=60"  # Cache-Control of what only reads
LONGEST_AGENT = 512  # characters of a User-Agent that are looked at
# What the list of crawlers lacks: HTTP libraries, monitors and tools under the names
# that they give.
PROGRAMS = re.compile(
    r"(?:akkoma|apache-cxf|apachebench|aria2|bruno|bun|cursor|dart|datadog|deno|faraday"
    r"|fasthttp|freshping|googlehc|guzzlehttp|hackney|hey|hyper|insomnia|jakarta|java"
    r"|ktor-client|kube-probe|libcurl|lightpanda|locust|lua-resty-http|lychee|muffet|n8n"
    r"|needle|newrelicpinger|node|php|pleroma|postmanruntime|prometheus|pycurl"
    r"|python-urllib3|reqwest|rest-client|restsharp|ruby|sentry|superagent|undici"
    r"|symfony httpclient|unirest|ureq|vegeta|winhttp|wrk|xenu|elb-healthchecker)\b",
    re.IGNORECASE,
)
# What a robot adds to a browser's name: how to reach its owner, that it is "compatible"
# without the old browser or the system that would follow, or what it does. But there
# are phones named Cubot X18 and M Bot 51, and a tablet named Spider 8.
ROBOT = re.compile(
    r"https?:/|mailto:|\+[\w.-]+@|khtml, like gecko;"
    r"|compatible;(?![^)]*(?:msie|konqueror|windows|linux|\bu;))"
    r"|(?:bot|spider)(?![ \w)])|crawl|monitor|headless|cypress|powershell|cfnetwork"
    r"|jsdom",
    re.IGNORECASE,
)

# Where a page lies while its owner builds it: the start of a URL or an origin.
LOCAL = re.compile(
    r"file:|https?://(?:localhost|127\.0\.0\.1|\[::1\])(?![^/:?#])", re.IGNORECASE
)
# A page of a file sends "Origin: null", as one with "no-referrer" does; its path tells.
LOCAL_FILE = re.compile(r"/(?:[a-z]:|home|users|tmp|mnt|volumes)/.*\.html?", re.I)

# Most are asked for again before a number changes.
drawn_badge = lru_cache(maxsize=256)(pictures.badge)
drawn_chart = lru_cache(maxsize=32)(pictures.chart)
SHOWN = {"hits": pictures.HITS, "visitors": pictures.VISITORS}
LONGEST_TITLE = 200

UNNAMED = marked("Please name the page to count.")
WRONG_DAYS = marked("“days” must be a whole number from 1 to 365.")
UNKNOWN = marked("There is no such style or size.")
TOO_LONG = marked("At most %(most)s characters, please.")


class Counted(Resource):
    """What the hit counter's resources share: which page, and what counts."""

    with_credentials = True  # beacons always send them

    def page(self, req: Request, named: str | None = None) -> tuple[str, str]:
        """Return the page that body or query name, and how; else the Referer's path.

        "*" names all pages together.
        """
        named = named or req.get_param("page")
        if not named:
            named = req.get_header("Referer") or ""
            if origin_of(named) is None:
                raise forms.wrong("page", "REQUIRED_FIELD_MISSING", UNNAMED)
        return ALL_PAGES if named == ALL_PAGES else paths.page_of(named), named

    def count(self, req: Request, page: str, named: str) -> dict[str, Any]:
        """Count one hit unless there is a reason not to; say which, and the sums."""
        if page == ALL_PAGES:
            raise forms.wrong("page", "TYPE_TEXT", UNNAMED)
        client, agent = req.context.client, (req.user_agent or "")[:LONGEST_AGENT]
        reason = self._uncounted(req, client, agent, named)
        if reason:
            return {"page": page, **totals(page), "counted": False, "reason": reason}
        sums = self._count(page, client, agent)
        if sums is None:  # never seen before
            may_add = self._service.limits.spend("pages", client_key(client))
            if not may_add or not Page.add(page, self._settings.max_pages):
                page = OTHER_PAGES
            sums = self._count(page, client, agent) or Page.totals(page)
        hits, visitors = sums
        return {"page": page, "hits": hits, "visitors": visitors, "counted": True}

    def _count(self, page: str, client: str, agent: str) -> tuple[int, int] | None:
        day, visitor = day_of(self._clock()), None
        if kind_of(agent) != "proxy":  # which hides who looks
            visitor = Visitor.key(page, client, agent, day)
        return Hit.count(page, visitor, day)

    def _uncounted(
        self, req: Request, client: str, agent: str, named: str
    ) -> str | None:
        for header in PREFETCH:
            value = (req.get_header(header) or "").lower()
            if "prefetch" in value or "prerender" in value or "preview" in value:
                return "prefetch"
        if kind_of(agent) == "crawler":
            return "crawler"
        if self._is_local(req, named):
            return "localhost"
        ignored = self._settings.hits_ignore
        return "ignored" if ignored and _is_among(client, ignored) else None

    def _is_local(self, req: Request, named: str) -> bool:
        """Tell whether a page is one that its owner is still building.

        An origin that ALLOWED_ORIGINS lists counts wherever it is, and so does our own
        welcome page, for which the browser vouches.
        """
        if req.get_header("Sec-Fetch-Site") == "same-origin":
            return False
        origin, referer = req.get_header("Origin"), req.get_header("Referer")
        for url in (origin, referer, named):
            if url and LOCAL.match(url) and not self._settings.origins.lists(url):
                return True
        return origin == "null" and not referer and bool(LOCAL_FILE.fullmatch(named))

    def days(self, req: Request, page: str) -> tuple[DayHits, ...]:
        """Return a page's last days, as many as days= says, 1 to 365.

        Raises Rejected (422).
        """
        text = req.get_param("days", default="30")
        if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= 365:
            raise forms.wrong("days", "TYPE_TEXT", WRONG_DAYS)
        return Hit.days(page, int(text), day_of(self._clock()))


@lru_cache(maxsize=1024)  # most visitors share a few
def kind_of(agent: str) -> str:
    """Return whose User-Agent it is: a "crawler", an image "proxy" or a "person".

    Robots name a program, or say what they are; the others are in the list of
    github.com/monperrus/crawler-user-agents, where a look-up takes 270 us. A client
    without a User-Agent counts, and so does curl.
    """
    if IMAGE_PROXIES.search(agent.lower()):
        return "proxy"
    if agent.partition("/")[0] == "curl":
        return "person"
    if PROGRAMS.match(agent) or ROBOT.search(agent):
        return "crawler"
    import crawleruseragents  # 19 ms, and 60 for the first look-up

    return "crawler" if crawleruseragents.is_crawler(agent) else "person"


def load_crawlers() -> None:
    """Load the list of crawlers before the first visitor has to wait for it."""
    kind_of("Mozilla/5.0")


@lru_cache(maxsize=1024)
def _is_among(client: str, networks: tuple[Network, ...]) -> bool:
    address = ip_address(client)
    return any(address in network for network in networks)


def totals(page: str) -> dict[str, int]:
    """Return a page's sums of all days by name."""
    return dict(zip(SHOWN, Page.totals(page), strict=True))


def chosen(req: Request, name: str, choices: Collection[str]) -> str:
    """Return what a parameter says, its first choice unless given.

    Raises Rejected (422) for what is not among them.
    """
    value = req.get_param(name, default=next(iter(choices)))
    if value not in choices:
        raise forms.wrong(name, "TYPE_TEXT", UNKNOWN)
    return value


class Hits(Counted):
    """The counter."""

    limited = {"POST": "hits"}
    over_limit = {"counted": False, "reason": "rate_limited"}

    def on_get(self, req: Request, resp: Response) -> None:
        """Read a page's sums and days."""
        page, _ = self.page(req)
        resp.data = _numbers(page, Page.totals(page), self.days(req, page))
        resp.content_type = falcon.MEDIA_JSON
        resp.set_header("Cache-Control", KEPT)

    def on_post(self, req: Request, resp: Response) -> None:
        """Count one."""
        resp.media = self.count(req, *self.page(req, forms.read_page(req)))


@lru_cache(maxsize=32)
def _numbers(page: str, sums: tuple[int, int], days: tuple[DayHits, ...]) -> bytes:
    """Return what GET /hits answers; kept, since most numbers stay for a while."""
    listed = [{"date": d, "hits": h, "visitors": v} for d, h, v in days]
    hits, visitors = sums
    body = {"page": page, "hits": hits, "visitors": visitors, "days": listed}
    return to_json(body).encode()


class Pixel(Counted):
    """The counter as a pixel."""

    limited = {"GET": "hits"}
    picture = falcon.MEDIA_GIF

    def on_get(self, req: Request, resp: Response) -> None:
        """Count one and answer with a transparent pixel."""
        page, named = self.page(req)
        if req.method == "GET":
            self.count(req, page, named)
        resp.content_type, resp.data = falcon.MEDIA_GIF, PIXEL


class Badge(Counted):
    """The counter as a badge."""

    limited = {"GET": "hits"}
    picture = MEDIA_SVG

    def on_get(self, req: Request, resp: Response) -> None:
        """Count one and show the sum; count=false, and all pages, only show."""
        page, named = self.page(req)
        show = chosen(req, "show", SHOWN)
        style = chosen(req, "style", pictures.STYLES)
        only_shows = page == ALL_PAGES or req.get_param("count") == "false"
        if only_shows or req.method == "HEAD":
            sums = totals(page)
        else:
            sums = self.count(req, page, named)
        if only_shows:
            resp.set_header("Cache-Control", KEPT)
        resp.content_type = MEDIA_SVG
        language = self._site.pages.language
        resp.text = drawn_badge(
            req.get_param("label", default="") or language.text(SHOWN[show]),
            language.number(sums[show]),
            req.get_param("color", default=""),
            style,
        )


class Chart(Counted):
    """The counter as a picture."""

    limited = {"GET": "charts"}
    picture = MEDIA_SVG

    def on_get(self, req: Request, resp: Response) -> None:
        """Draw a bar for each day."""
        page, _ = self.page(req)
        title = req.get_param("title", default="")
        if len(title) > LONGEST_TITLE:
            raise forms.wrong("title", "TOO_LONG", TOO_LONG, most=LONGEST_TITLE)
        resp.content_type = MEDIA_SVG
        resp.text = drawn_chart(
            self._site.pages,
            page,
            self.days(req, page),
            title=title,
            color=req.get_param("color", default=""),
            size=chosen(req, "size", pictures.SIZES),
        )
        resp.set_header("Cache-Control", KEPT)


class Shield(Counted):
    """The counter for shields.io's endpoint badge."""

    def on_get(self, req: Request, resp: Response) -> None:
        """Answer in the schema of shields.io/badges/endpoint-badge."""
        show = chosen(req, "show", SHOWN)
        sums = totals(self.page(req)[0])
        language = self._site.pages.language
        resp.media = {
            "schemaVersion": 1,
            "label": req.get_param("label", default="") or language.text(SHOWN[show]),
            "message": language.number(sums[show]),
            "color": req.get_param("color", default="blue"),
        }
        resp.set_header("Cache-Control", KEPT)
