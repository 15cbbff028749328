"""The hit counter: what counts, and how the numbers are shown."""

from __future__ import annotations

import re
from collections.abc import Container
from functools import lru_cache
from typing import Any

import falcon
from falcon import Request, Response

from frontdesk import forms, paths, pictures
from frontdesk.answers import IMAGE_PROXIES, MEDIA_SVG, PIXEL
from frontdesk.counter import Hit, Page, Visitor
from frontdesk.languages import marked
from frontdesk.resources import Resource
from frontdesk.settings import origin_of
from middleware import client_key

# curl and scripts of the owner count; what fetches pages on its own does not.
CRAWLERS = re.compile(
    r"(?<!cu)bot(?![a-z])|bots?/|crawl|spider|slurp|mediapartners|bingpreview|"
    r"facebookexternalhit|whatsapp|embedly|feedfetcher|feedburner|archive\.org|"
    r"uptime|pingdom|statuscake|monitor|site24x7|lighthouse|pagespeed|gtmetrix|"
    r"w3c_validator|w3c-checklink|ahrefs|semrush|gptbot|claude-web|anthropic-ai|"
    r"chatgpt|perplexity|google-inspectiontool|apis-google|googleother|heritrix|"
    r"scrapy|nutch|httrack|masscan|zgrab|nmap|nikto|ia_archiver|meta-external|"
    r"facebookcatalog|cohere-ai|yandeximages|uripreview|iframely|google-read|"
    r"google-site|updown\.io|checkly|datadog|newrelic|nagios|zabbix|blackbox|"
    r"kube-probe|health-?check|googlehc"
)
PREFETCH = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz")


class Counted(Resource):
    """What the hit counter's resources share: which page, and what counts."""

    with_credentials = True  # beacons always send them

    def page(self, req: Request, named: str | None = None) -> str:
        """Return the page that body or query name; unnamed, the Referer's path."""
        named = named or req.get_param("page")
        if not named:
            named = req.get_header("Referer") or ""
            if origin_of(named) is None:
                raise forms.wrong(
                    "page",
                    "REQUIRED_FIELD_MISSING",
                    marked("Please name the page to count."),
                )
        return paths.page_of(named)

    def count(self, req: Request, page: str) -> dict[str, Any]:
        """Count one hit unless something automatic made it; say which, and the sums."""
        # In lower case: a pattern that ignores case takes five times as long.
        agent = (req.user_agent or "").lower()
        reason = _uncounted(req, agent)
        if reason:
            hits, visitors = Page.totals(page)
            not_counted = {"counted": False, "reason": reason}
            return {"page": page, "hits": hits, "visitors": visitors, **not_counted}
        client = req.context.client
        sums = self._count(page, client, agent)
        if sums is None:  # never seen before
            page = Page.admit(
                page,
                lambda: self._service.limits.spend("pages", client_key(client)),
                self._settings.max_pages,
            )
            sums = self._count(page, client, agent) or Page.totals(page)
        hits, visitors = sums
        return {"page": page, "hits": hits, "visitors": visitors, "counted": True}

    def _count(self, page: str, client: str, agent: str) -> tuple[int, int] | None:
        now, visitor = self._clock(), None  # an image proxy hides who looks
        if not IMAGE_PROXIES.search(agent):
            visitor = Visitor.key(page, client, agent, now)
        return Hit.count(page, visitor, now)


def _uncounted(req: Request, agent: str) -> str | None:
    for header in PREFETCH:
        value = (req.get_header(header) or "").lower()
        if "prefetch" in value or "prerender" in value or "preview" in value:
            return "prefetch"
    return "crawler" if _is_crawler(agent) else None


@lru_cache(maxsize=256)  # most visitors share a few
def _is_crawler(agent: str) -> bool:
    return CRAWLERS.search(agent) is not None


def _days(req: Request) -> int:
    """Return days= from 1 to 365; raises Rejected (422)."""
    text = req.get_param("days", default="30")
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= 365:
        message = marked("“days” must be a whole number from 1 to 365.")
        raise forms.wrong("days", "TYPE_TEXT", message)
    return int(text)


def _choice(req: Request, name: str, known: Container[str], default: str) -> str:
    """Return a parameter that is one of a few words; raises Rejected (422)."""
    value = req.get_param(name, default=default)
    if value not in known:
        raise forms.wrong(name, "TYPE_TEXT", marked("There is no such style or size."))
    return value


class Hits(Counted):
    """The counter."""

    limited = {"POST": "hits"}
    over_limit = {"counted": False, "reason": "rate_limited"}

    def on_get(self, req: Request, resp: Response) -> None:
        """Read a page's sums and days."""
        page = self.page(req)
        hits, visitors = Page.totals(page)
        days = Hit.days(page, _days(req), self._clock())
        resp.media = {
            "page": page,
            "hits": hits,
            "visitors": visitors,
            "days": [{"date": d, "hits": h, "visitors": v} for d, h, v in days],
        }

    def on_post(self, req: Request, resp: Response) -> None:
        """Count one."""
        page = self.page(req, forms.read_page(req))
        resp.media = self.count(req, page)


class Pixel(Counted):
    """The counter as a pixel."""

    limited = {"GET": "hits"}
    picture = falcon.MEDIA_GIF

    def on_get(self, req: Request, resp: Response) -> None:
        """Count one and answer with a transparent pixel."""
        page = self.page(req)
        if req.method == "GET":
            self.count(req, page)
        resp.content_type, resp.data = falcon.MEDIA_GIF, PIXEL


class Badge(Counted):
    """The counter as a badge."""

    limited = {"GET": "hits"}
    picture = MEDIA_SVG

    def on_get(self, req: Request, resp: Response) -> None:
        """Count one and show the sum; count=false only shows."""
        page, style = self.page(req), _choice(req, "style", pictures.STYLES, "flat")
        if req.method == "GET" and req.get_param("count") != "false":
            hits = self.count(req, page)["hits"]
        else:
            hits = Page.totals(page)[0]
        resp.content_type = MEDIA_SVG
        language = self._site.pages.language
        resp.text = pictures.badge(
            req.get_param("label", default=language.text(pictures.HITS)),
            language.number(hits),
            req.get_param("color", default=""),
            style,
        )


class Chart(Counted):
    """The counter as a picture."""

    picture = MEDIA_SVG

    def on_get(self, req: Request, resp: Response) -> None:
        """Draw a bar for each day."""
        page = self.page(req)
        days = Hit.days(page, _days(req), self._clock())
        resp.content_type = MEDIA_SVG
        resp.text = pictures.chart(
            self._site.pages,
            page,
            days,
            title=req.get_param("title", default=""),
            color=req.get_param("color", default=""),
            size=_choice(req, "size", pictures.SIZES, "wide"),
        )


class Shield(Counted):
    """The counter for shields.io's endpoint badge."""

    def on_get(self, req: Request, resp: Response) -> None:
        """Answer in the schema of shields.io/badges/endpoint-badge."""
        hits, _ = Page.totals(self.page(req))
        language = self._site.pages.language
        resp.media = {
            "schemaVersion": 1,
            "label": req.get_param("label", default=language.text(pictures.HITS)),
            "message": language.number(hits),
            "color": req.get_param("color", default="blue"),
        }
