"""The HTTP side: the wiring on one screen, and one resource per noun."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import falcon
from falcon import Request, Response
from falcon.media import JSONHandler

import models
import owner
from frontdesk import forms, pages
from frontdesk.answers import (
    IMAGE_PROXIES,
    MEDIA_SVG,
    PIXEL,
    Errors,
    Site,
    is_multipart,
    kind,
    label,
    succeed,
    wants_page,
)
from frontdesk.forms import Contact as ContactForm
from frontdesk.forms import Rejected
from frontdesk.settings import VERSION, Settings, Window, origin_of, sqlite_path
from mail import (
    CONFIRM_SECONDS,
    BadLinkError,
    Composer,
    Links,
    Outbox,
    Transport,
    transport_for,
)
from middleware import (
    ClientAddress,
    Cors,
    Headers,
    Owner,
    RateLimit,
    Release,
    RequestLog,
    client_key,
    truncated,
)
from models import Hit, Judgement, Message, Page, Subscriber, Visitor

DUPLICATE_BODY_SECONDS = 600
IDEMPOTENCY_SECONDS = 86400
ASKED_SECONDS = (2, 86400)  # how old an answer to our own question may be


class Frontdesk(falcon.App):  # type: ignore[type-arg]
    """The WSGI application, with the outbox that its server starts and stops."""

    outbox: Outbox


def create_app(
    settings: Settings | None = None,
    *,
    clock: Callable[[], float] = time.time,
    transport: Transport | None = None,
) -> Frontdesk:
    """Wire the service to a migrated database.

    clock returns seconds since the epoch; transport is where mails go.
    """
    if settings is None:
        settings = Settings.from_environ(os.environ)
    path = sqlite_path(settings.database_url)
    models.open_database(settings.database_url, path, settings.threads)
    keys = settings.secret_keys or (models.local_secret(),)
    models.release()
    links = Links(keys, settings.public_url, clock)
    transport = transport or transport_for(settings)
    outbox = Outbox(settings, Composer(settings, links), transport, clock)
    limits = RateLimit(
        {
            "contact": settings.contact_limit,
            "newsletter": settings.newsletter_limit,
            "hits": settings.hits_limit,
            "pages": (Window(30, 3600),),
            "admin": (Window(10, 60),),
        },
        clock,
    )
    app = Frontdesk(
        request_type=Headers,
        middleware=[
            RequestLog(),
            Cors(settings.origins),
            ClientAddress(settings),
            Owner(settings.admin_token, limits),
            limits,
            Release(),
        ],
    )
    app.outbox = outbox
    app.req_options.strip_url_path_trailing_slash = True
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = JSONHandler(models.to_json)
    errors = Errors(settings)
    app.set_error_serializer(errors.serialize)
    app.add_error_handler(Exception, errors.unexpected)
    app.add_error_handler(models.StorageError, errors.not_stored)

    mailed = (settings, links, outbox, clock)
    contact = Contact(*mailed)
    newsletter = Newsletter(*mailed)
    counting = (settings, limits, clock)
    routes: tuple[tuple[str, Any], ...] = (
        ("/", Home(settings)),
        ("/thanks", Thanks(settings)),
        ("/openapi.json", OpenApi(settings)),
        ("/contact", contact),
        ("/f/contact", contact),
        ("/p/{project}/f/contact", contact),
        ("/newsletter", newsletter),
        ("/f/newsletter", newsletter),
        ("/f/{form}", UnknownForm()),
        ("/p/{project}/f/{form}", UnknownForm()),
        ("/newsletter/confirm/{token}", Confirm(*mailed)),
        ("/newsletter/unsubscribe/{token}", Unsubscribe(*mailed)),
        ("/newsletter/not-me/{token}", NotMe(*mailed)),
        ("/release/{token}", ReleaseHeld(*mailed)),
        ("/hits", Hits(*counting)),
        ("/hits.gif", HitsGif(*counting)),
        ("/hits.svg", HitsBadge(*counting)),
        ("/hits/chart.svg", HitsChart(*counting)),
        ("/hits/shield", HitsShield(*counting)),
        ("/health", owner.Health(outbox, clock)),
        ("/doctor", owner.Doctor(settings, outbox, transport, clock)),
        ("/export/backup.sqlite3", owner.Backup()),
        ("/export/{name}", owner.Export()),
        ("/people/{email:path}", owner.People(settings, outbox, clock)),
    )
    for path_template, resource in routes:
        if hasattr(resource, "on_get"):  # counting responders look at the method
            resource.on_head = resource.on_get
        app.add_route(path_template, resource)
    return app


# --- pages that only show --------------------------------------------------------


class Home:
    """What this is."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._site = Site(settings)

    def on_get(self, req: Request, resp: Response) -> None:
        """Show the snippets to paste, or the addresses as JSON."""
        url = self._settings.public_url
        if wants_page(req):
            self._site.show(
                resp,
                "welcome.html",
                public_url=url,
                version=VERSION,
                mail_is_on=self._settings.mailjet_key is not None,
            )
            return
        resp.media = {
            "name": "Frontdesk",
            "version": VERSION,
            "docs": f"{url}/openapi.json",
            "health": f"{url}/health",
            "contact": f"{url}/contact",
            "newsletter": f"{url}/newsletter",
            "hits": f"{url}/hits",
        }


class Thanks:
    """Where a plain form lands when it names no page of its own."""

    def __init__(self, settings: Settings) -> None:
        self._site = Site(settings)

    def on_get(self, req: Request, resp: Response) -> None:
        """Say thank you, and lead back."""
        signup = req.query_string == "newsletter"
        self._site.show(
            resp,
            "signup-thanks.html" if signup else "thanks.html",
            back_url=self._site.sender(req, {}) or f"{self._site.settings.root}/",
        )


class OpenApi:
    """The description of all of this for machines."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._json = b""

    def on_get(self, req: Request, resp: Response) -> None:
        """Answer with openapi.yaml as JSON, naming this server."""
        self._json = self._json or self._document()
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._json

    def _document(self) -> bytes:
        import yaml  # loaded when first asked for

        text = Path(pages.__file__).with_name("openapi.yaml").read_text("utf-8")
        document = yaml.safe_load(text)
        document["info"]["version"] = VERSION
        document["servers"] = [{"url": self._settings.public_url}]
        return json.dumps(document, ensure_ascii=False).encode()


# --- contact ---------------------------------------------------------------------


class Mailing:
    """What the resources share whose requests cause mails."""

    def __init__(
        self,
        settings: Settings,
        links: Links,
        outbox: Outbox,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._site = Site(settings)
        self._links = links
        self._outbox = outbox
        self._clock = clock


class Contact(Mailing):
    """The contact form."""

    limited = {"POST": "contact"}

    def on_post(self, req: Request, resp: Response, project: str = "") -> None:
        """Store a message; its mail follows."""
        now = self._clock()
        values = forms.read(req)
        contact = forms.contact(values)
        page = wants_page(req)
        next_url = self._site.next_url(req, values, contact.next, "/thanks")
        echo, judge = self._judge(req, values, contact, page, now)
        message_id = Message.receive(
            {
                "name": contact.name,
                "email": contact.email,
                "subject": contact.subject,
                "message": contact.text,
                "fields": contact.extra,
                "page": self._site.page(req, values),
                "client": truncated(req.context.client),
                "echo": echo,
            },
            judge,
            keys=self._keys(req, contact),
            now=now,
        )
        if message_id is None:
            self._ask(req, resp, values, contact, next_url)
            return
        self._outbox.nudge()
        if page:
            raise falcon.HTTPSeeOther(next_url)
        succeed(resp, next_url, "Thank you, your message is on its way.", id=message_id)

    def _judge(
        self,
        req: Request,
        values: Mapping[str, str],
        contact: ContactForm,
        page: bool,
        now: float,
    ) -> tuple[str, Callable[[int], Judgement | None]]:
        """Return a text's fingerprint, and what judges it by its echoes.

        A plain form's doubtful sender can be asked: then there is no judgement yet.
        """
        from frontdesk import (
            spam,  # its patterns take 10 ms: with the first message, not at start
        )

        seconds, webdriver = _session_data(req, now)
        reading = spam.read(
            contact.text, contact.name, contact.subject, contact.extra.values()
        )
        signs: dict[str, Any] = {
            "honeypot": contact.honeypot,
            "seconds_on_page": seconds,
            "webdriver": webdriver,
            "origin": req.get_header("Origin") is not None,
            "referer": req.get_header("Referer") is not None,
            "accept_language": req.get_header("Accept-Language") is not None,
            "user_agent": bool(req.user_agent),
        }

        def judge(echoes: int) -> Judgement | None:
            score = spam.score(reading, echoes=echoes, **signs)
            if score.doubtful and page and not self._pressed_send(values, contact):
                return None
            doubtful = score.doubtful and not page
            return Judgement(score.points, score.reasons, doubtful, score.held)

        return reading.fingerprint, judge

    @staticmethod
    def _keys(req: Request, contact: ContactForm) -> dict[str, int]:
        """Return what tells that a submission is a repeat, and for how many seconds."""
        client = client_key(req.context.client)
        keys: dict[str, int] = {}
        if key := req.get_header("Idempotency-Key"):
            # Of one sender only: somebody else's key may be the same by chance. Either
            # will do, since a phone changes networks between two tries.
            for sender in (contact.email, client):
                keys[models.keyed_hash("key", sender, key)] = IDEMPOTENCY_SECONDS
        body = models.keyed_hash("body", client, *_content(contact))
        return {**keys, body: DUPLICATE_BODY_SECONDS}

    def _ask(
        self,
        req: Request,
        resp: Response,
        values: Mapping[str, str],
        contact: ContactForm,
        next_url: str,
    ) -> None:
        """Ask a doubtful sender once, with 422: nothing is stored yet."""
        content = models.keyed_hash("ask", *_content(contact))
        ours = {
            forms.PROOF: self._links.token("ask", content),
            forms.FROM: self._site.page(req, values),
        }
        self._site.show(
            resp,
            "ask.html",
            *self._site.landings(next_url),
            action="/contact",
            multipart=is_multipart(req),
            fields=[*{**values, **ours}.items()],
            shown=[
                (label(name), value)
                for name, value in values.items()
                if value and kind(name, value) != "hidden"
            ],
        )
        resp.status = falcon.HTTP_422

    def _pressed_send(self, values: Mapping[str, str], contact: ContactForm) -> bool:
        try:
            content, age = self._links.read("ask", values.get(forms.PROOF, ""))
        except BadLinkError:
            return False
        same = content == models.keyed_hash("ask", *_content(contact))
        return same and ASKED_SECONDS[0] <= age <= ASKED_SECONDS[1]


def _content(contact: ContactForm) -> tuple[str, ...]:
    """Return all that a visitor typed, to hash.

    The honeypot too: who clears what a browser filled in there sends anew.
    """
    said = (contact.email, contact.name, contact.subject, contact.text)
    return *said, *chain(*contact.extra.items()), str(contact.honeypot)


def _session_data(req: Request, now: float) -> tuple[float | None, bool]:
    """Return what Formspree's clients tell: seconds on the page, automated or not."""
    header = req.get_header("Formspree-Session-Data")
    if not header:
        return None, False
    try:
        data = json.loads(base64.b64decode(header))
        loaded_at = data.get("loadedAt")
        seconds = now - float(loaded_at) / 1000 if loaded_at is not None else None
        return seconds, data.get("webdriver") is True
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return None, False


class UnknownForm:
    """A form service's endpoint that is no form of ours."""

    def on_post(self, req: Request, resp: Response, **params: str) -> None:
        """Say which forms there are."""
        raise forms.error(
            falcon.HTTP_404,
            "FORM_NOT_FOUND",
            "There is no such form: it is /f/contact or /f/newsletter.",
        )


# --- newsletter ------------------------------------------------------------------


class Newsletter(Mailing):
    """The sign-up form; its answer is the same whatever is known of the address."""

    limited = {"POST": "newsletter"}

    def on_post(self, req: Request, resp: Response) -> None:
        """Sign an address up, pending its owner's confirmation."""
        values = forms.read(req)
        signup, now = forms.signup(values), self._clock()
        if signup.honeypot:
            models.count_trapped(now)
        else:
            Subscriber.ask(
                signup.email,
                signup.name,
                page=self._site.page(req, values),
                client=truncated(req.context.client),
                now=now,
                mails_per_day=self._settings.confirm_mails_per_day,
            )
        self._outbox.nudge()
        default = "/thanks?newsletter"
        next_url = self._site.next_url(req, values, signup.next, default)
        if wants_page(req):
            raise falcon.HTTPSeeOther(next_url)
        succeed(
            resp, next_url, "Almost done: please press the button in the mail we send."
        )


class MailedLink(Mailing):
    """A page that a mail leads to: GET shows a button, POST acts.

    Mail scanners follow links and even run scripts, so that GET changes nothing; the
    token is the authority, so that POST needs no origin, cookie or body (RFC 8058).
    """

    by_token = True
    purpose = ""

    def on_get(self, req: Request, resp: Response, token: str) -> None:
        """Show the button."""
        self.read(token)
        action = f"/newsletter/{self.purpose}/{token}"
        self._site.show(resp, f"{self.purpose}.html", action=action)

    def read(self, token: str) -> tuple[Any, float]:
        """Return a token's payload and age; raises Rejected (404)."""
        try:
            return self._links.read(self.purpose, token)
        except BadLinkError:
            raise self.unknown() from None

    @staticmethod
    def unknown() -> Rejected:
        """Return the error for a link that is not ours, or not any more."""
        return forms.error(
            falcon.HTTP_404, "NOT_FOUND", "This link does not work, or not any more."
        )

    def done(self, req: Request, resp: Response, template: str, message: str) -> None:
        """Say that it is done, without a redirect."""
        self._outbox.nudge()
        if wants_page(req):
            self._site.show(resp, template, back_url=self._site.home)
        else:
            succeed(resp, self._site.home or "", message)


class Confirm(MailedLink):
    """Confirms a subscription."""

    purpose = "confirm"

    def on_get(self, req: Request, resp: Response, token: str) -> None:
        """Show the button; for an old link, the button that sends a new one."""
        _, age = self.read(token)
        if age > CONFIRM_SECONDS:
            self._expired(req, resp, token)
        else:
            super().on_get(req, resp, token)

    def on_post(self, req: Request, resp: Response, token: str) -> None:
        """Confirm; with again=1 send a new link in place of an expired one."""
        (subscriber_id, cycle), age = self.read(token)
        now = self._clock()
        if age <= CONFIRM_SECONDS:
            if not Subscriber.confirm(
                subscriber_id, cycle, now, self._settings.syncs_list
            ):
                raise self.unknown()
            self.done(req, resp, "confirmed.html", "Your subscription is confirmed.")
        elif _wants_again(req):
            mails_per_day = self._settings.confirm_mails_per_day
            Subscriber.ask_again(subscriber_id, now, mails_per_day)
            self.done(req, resp, "renewed.html", "A new mail is on its way.")
        else:
            self._expired(req, resp, token)

    def _expired(self, req: Request, resp: Response, token: str) -> None:
        if not wants_page(req) and req.method == "POST":
            message = "This link has expired; sign up again for a new one."
            raise forms.error(falcon.HTTP_410, "NOT_FOUND", message)
        self._site.show(resp, "expired.html", action=f"/newsletter/confirm/{token}")
        resp.status = falcon.HTTP_410


def _wants_again(req: Request) -> bool:
    try:
        return forms.read(req).get("again") == "1"
    except Rejected:  # a link needs no body, so that a strange one is no error
        return False


class Unsubscribe(MailedLink):
    """Ends a subscription, for ever by one POST (RFC 8058)."""

    purpose = "unsubscribe"

    def on_post(self, req: Request, resp: Response, token: str) -> None:
        """Unsubscribe; again is harmless, and so is an erased subscription."""
        subscriber_id, _ = self.read(token)
        Subscriber.leave(subscriber_id, self._clock(), self._settings.syncs_list)
        self.done(req, resp, "left.html", "You are unsubscribed.")


class NotMe(MailedLink):
    """Keeps an address from ever being asked again."""

    purpose = "not-me"

    def on_post(self, req: Request, resp: Response, token: str) -> None:
        """Forget the address, but for the hash that keeps mails away from it."""
        subscriber_id, _ = self.read(token)
        Subscriber.leave(
            subscriber_id, self._clock(), self._settings.syncs_list, refuse=True
        )
        self.done(
            req, resp, "not-me-done.html", "This address gets no more of these mails."
        )


class ReleaseHeld(MailedLink):
    """Delivers a message that was held as spam; the owner's digest leads here."""

    purpose = "release"

    def on_get(self, req: Request, resp: Response, token: str) -> None:
        """Show the whole message, and the button."""
        message = self._message(token)
        self._site.show(
            resp,
            "release.html",
            action=f"/release/{token}",
            message=message.as_dict() | {"released": message.released_at is not None},
        )

    def on_post(self, req: Request, resp: Response, token: str) -> None:
        """Mail the message to the owner; again is harmless."""
        Message.release(self._message(token).id, self._clock())
        self.done(req, resp, "released.html", "The message is on its way to you.")

    def _message(self, token: str) -> Message:
        message_id, _ = self.read(token)
        message = Message.get_or_none(Message.id == message_id)
        if message is None:  # erased meanwhile
            raise self.unknown()
        return message


# --- hits ------------------------------------------------------------------------

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


class Counted:
    """What the hit counter's resources share: which page, and what counts."""

    with_credentials = True  # beacons always send them

    def __init__(
        self, settings: Settings, limits: RateLimit, clock: Callable[[], float]
    ) -> None:
        self._max_pages = settings.max_pages
        self._limits = limits
        self._clock = clock

    def page(self, req: Request, named: str | None = None) -> str:
        """Return the page that body or query name; unnamed, the Referer's path."""
        named = named or req.get_param("page")
        if not named:
            named = req.get_header("Referer") or ""
            if origin_of(named) is None:
                raise forms.wrong(
                    "page", "REQUIRED_FIELD_MISSING", "Please name the page to count."
                )
        return forms.page_of(named)

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
                page, lambda: self._limits.allows("pages", client), self._max_pages
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
        raise forms.wrong("days", "TYPE_TEXT", "days is a whole number from 1 to 365.")
    return int(text)


class Hits(Counted):
    """The counter."""

    limited = {"POST": "hits"}

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


class HitsGif(Counted):
    """The counter as a pixel."""

    limited = {"GET": "hits"}

    def on_get(self, req: Request, resp: Response) -> None:
        """Count one and answer with a transparent pixel."""
        page = self.page(req)
        if req.method == "GET":
            self.count(req, page)
        resp.content_type, resp.data = falcon.MEDIA_GIF, PIXEL


class HitsBadge(Counted):
    """The counter as a badge."""

    limited = {"GET": "hits"}

    def on_get(self, req: Request, resp: Response) -> None:
        """Count one and show the sum; count=false only shows."""
        page = self.page(req)
        if req.method == "GET" and req.get_param("count") != "false":
            hits = self.count(req, page)["hits"]
        else:
            hits = Page.totals(page)[0]
        resp.content_type = MEDIA_SVG
        resp.text = pages.badge(
            req.get_param("label", default="hits"),
            pages.thousands(hits),
            req.get_param("color", default="blue"),
            req.get_param("style", default="flat"),
        )


class HitsChart(Counted):
    """The counter as a picture."""

    def on_get(self, req: Request, resp: Response) -> None:
        """Draw a bar for each day."""
        page = self.page(req)
        days = Hit.days(page, _days(req), self._clock())
        resp.content_type = MEDIA_SVG
        resp.text = pages.chart(page, days)


class HitsShield(Counted):
    """The counter for shields.io's endpoint badge."""

    def on_get(self, req: Request, resp: Response) -> None:
        """Answer in the schema of shields.io/badges/endpoint-badge."""
        hits, _ = Page.totals(self.page(req))
        resp.media = {
            "schemaVersion": 1,
            "label": req.get_param("label", default="hits"),
            "message": pages.thousands(hits),
            "color": req.get_param("color", default="blue"),
        }
