"""The HTTP side: the wiring on one screen, and one resource per noun."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import falcon
from falcon import Request, Response
from falcon.media import JSONHandler

import desk
import hits
import owner
from frontdesk import fields, forms
from frontdesk.answers import (
    CONTACT_PATHS,
    NEWSLETTER_PATHS,
    AddressConverter,
    Errors,
    Site,
    is_multipart,
    kind,
    label,
    wants_html,
)
from frontdesk.database import StorageError
from frontdesk.forms import Contact as ContactForm
from frontdesk.forms import Rejected
from frontdesk.languages import marked
from frontdesk.limits import Limits, RateLimits
from frontdesk.links import BadLinkError, Links
from frontdesk.mailjet import Transport, transport_for
from frontdesk.outbox import Delivering, Outbox
from frontdesk.resources import Parts, Resource, Service
from frontdesk.settings import VERSION, Settings, Window
from frontdesk.start import environment, or_end, ready_database, without_threads
from frontdesk.tables import keyed_hash, local_secret, to_json
from mail import CONFIRM_SECONDS, MODULES, Composer, Events, handlers, told
from middleware import (
    ClientAddress,
    Cors,
    DatabaseUse,
    Headers,
    Owner,
    RateLimit,
    RequestLog,
    client_key,
    truncated,
)
from models import Known, Message, Subscriber, count_trapped

if TYPE_CHECKING:
    from frontdesk import spam

DUPLICATE_BODY_SECONDS = 600
IDEMPOTENCY_SECONDS = 86400
ASKED_SECONDS = (2, 86400)  # that a person takes to answer our own question


class Frontdesk(falcon.App):  # type: ignore[type-arg]
    """The WSGI application, and the parts that a server or a test looks after."""

    service: Service
    # Else Falcon refuses the method WEBSOCKET before any middleware has run: 500.
    _META_METHODS = frozenset()
    serves = False  # start the outbox with the first request of each process?

    @property
    def outbox(self) -> Outbox:
        """The deliveries, which a server starts and stops."""
        return self.service.outbox

    def __call__(self, env: Any, start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        self.service.database.enter()
        if self.serves:
            self.outbox.start()
        parts = super().__call__(env, start_response)
        return Delivering(parts, self.outbox) if self.outbox.in_requests else parts


def create_app(
    settings: Settings | None = None,
    *,
    clock: Callable[[], float] = time.time,
    transport: Transport | None = None,
) -> Frontdesk:
    """Return the service as a WSGI application, wired to its database.

    settings: the environment's unless given. A server gives none: where it cannot
    start, the process ends and says why, and the outbox starts with the first request.
    Who gives some gets a SettingsError, and starts the outbox. clock returns seconds
    since the epoch; transport is where mails go.
    """
    serves = settings is None
    with or_end() if serves else nullcontext():
        settings = settings or environment()
        database = ready_database(settings)
    links = Links(settings.secret_keys or (local_secret(),), settings.public_url, clock)
    transport = transport or transport_for(settings)
    limits = Limits(RateLimits(database), policies(settings), clock)
    site = Site(settings)
    parts = Parts(settings, database, limits, links, transport, site, clock)
    composer = Composer(settings, links, site.pages)
    letter = desk.Letter(settings, composer, owner.Checkup(parts))
    outbox = Outbox(
        database,
        handlers(settings, composer, transport, letter=letter.compose),
        rounds=[letter.start, owner.Daily(settings, limits)],
        clock=clock,
        in_requests=without_threads(settings),
        loads=SOON,
        modules=MODULES,
    )
    middleware: list[Any] = [
        RequestLog(),
        Cors(settings.origins),
        ClientAddress(settings),
        DatabaseUse(database),
        Owner(settings, limits),
        RateLimit(ClientAddress(settings), limits, outbox.visitor_came),
    ]
    app = Frontdesk(request_type=Headers, middleware=middleware)
    app.serves = serves
    app.service = Service(**vars(parts), outbox=outbox)
    set_up(app)
    database.close()  # it is opened again by whoever serves, after a fork perhaps
    return app


def _load_spam() -> None:
    from frontdesk import spam

    spam.judge(spam.read(""))


# Jinja and Mailjet's client stay out: who gets no mails needs no such memory.
SOON = (partial(fields.meaning, "email"), _load_spam, hits.load_crawlers)


def policies(settings: Settings) -> dict[str, tuple[Window, ...]]:
    """Return the windows of every rate limit."""
    return {
        "contact": settings.contact_limit,
        "newsletter": settings.newsletter_limit,
        "hits": settings.hits_limit,
        "charts": (Window(300, 60),),
        "pages": (Window(30, 3600),),
        "admin": (Window(10, 60),),
        "unread": (Window(60, 60),),
    }


def set_up(app: Frontdesk) -> None:
    """Tell Falcon about paths, errors and JSON."""
    app.req_options.strip_url_path_trailing_slash = True
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = JSONHandler(to_json)
    app.router_options.converters["address"] = AddressConverter
    errors = Errors(app.service.site)
    app.set_error_serializer(errors.serialize)
    app.add_error_handler(Exception, errors.unexpected)
    app.add_error_handler(StorageError, errors.not_stored)
    for path_template, resource in routes(app.service):
        if responder := getattr(resource, "on_get", None):
            # Counting responders look at the method.
            setattr(resource, "on_head", responder)  # noqa: B010
        app.add_route(path_template, resource)


def routes(service: Service) -> tuple[tuple[str, Resource], ...]:
    """Return every path with its resource."""
    contact, newsletter = Contact(service), Newsletter(service)
    return (
        ("/", Home(service)),
        ("/thanks", Thanks(service)),
        ("/openapi.json", OpenApi(service)),
        *((path, contact) for path in CONTACT_PATHS),
        *((path, newsletter) for path in NEWSLETTER_PATHS),
        ("/newsletter/confirm/{token}", Confirm(service)),
        ("/newsletter/unsubscribe/{token}", Unsubscribe(service)),
        ("/newsletter/not-me/{token}", NotMe(service)),
        ("/release/{token}", DeliverHeld(service)),
        ("/mailjet/{token}", Events(service)),
        ("/hits", hits.Hits(service)),
        ("/hits.gif", hits.Pixel(service)),
        ("/hits.svg", hits.Badge(service)),
        ("/hits/chart.svg", hits.Chart(service)),
        ("/hits/shield", hits.Shield(service)),
        ("/health", owner.Health(service)),
        ("/doctor", owner.Doctor(service)),
        ("/desk", desk.DeskPage(service)),
        ("/desk/messages/{message_id}", desk.DeskMessage(service)),
        ("/export/backup.sqlite3", owner.Backup(service)),
        ("/export/{name}", owner.Export(service)),
        ("/people/{email:path}", owner.People(service)),
    )


# --- pages that only show --------------------------------------------------------


class Home(Resource):
    """What this is."""

    def on_get(self, req: Request, resp: Response) -> None:
        """Show the snippets to paste, or the addresses as JSON."""
        url = self._settings.public_url
        if wants_html(req):
            self._site.show(
                resp,
                "welcome.html",
                public_url=url,
                version=VERSION,
                mail_is_on=self._settings.mailjet_key is not None,
                elsewhere=self._site.elsewhere(req),
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


class Thanks(Resource):
    """Where a plain form lands when it names no page of its own."""

    def on_get(self, req: Request, resp: Response) -> None:
        """Say thank you, and lead back."""
        signup = req.query_string == "newsletter"
        self._site.show(
            resp,
            "signup-thanks.html" if signup else "thanks.html",
            back_url=self._site.sender(req, {}) or f"{self._site.settings.root}/",
        )


class OpenApi(Resource):
    """The description of all of this for machines."""

    def on_get(self, req: Request, resp: Response) -> None:
        """Answer with openapi.yaml as JSON, naming this server."""
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._json

    @cached_property
    def _json(self) -> bytes:
        import yaml  # loaded when first asked for

        text = Path(forms.__file__).with_name("openapi.yaml").read_text("utf-8")
        document = yaml.safe_load(text)
        document["info"]["version"] = VERSION
        document["servers"] = [{"url": self._settings.public_url}]
        return json.dumps(document, ensure_ascii=False).encode()


# --- contact ---------------------------------------------------------------------


class Contact(Resource):
    """The contact form."""

    limited = {"POST": "contact"}
    form = "/contact"

    def on_post(self, req: Request, resp: Response, **_key: str) -> None:
        """Store a message; its mail follows."""
        now = self._clock()
        values = forms.read(req)
        self._site.refuse_foreign(values)
        contact = forms.contact(values, self._site.own)
        next_url = self._site.next_url(req, values)
        said, keys = self._read(contact), self._keys(req, contact)
        client = truncated(req.context.client)
        known = Message.known(keys, said.echo, client, contact.text, now)
        message_id = known.message_id
        if message_id is None:
            verdict = self._verdict(req, contact, said, known)
            age = self._age_of_answer(values, contact)
            asked = age is not None and ASKED_SECONDS[0] <= age <= ASKED_SECONDS[1]
            if verdict.doubtful and wants_html(req) and not asked:
                self._ask(req, resp, values, contact, next_url, age)
                return
            page = self._site.referrer(req, values)
            sent = {"page": page, "client": client, "echo": said.echo}
            row = contact.columns() | sent
            message_id = Message.receive(row, verdict, keys=keys, now=now, asked=asked)
        if message_id is None:
            raise _no_room(now)
        self._outbox.nudge()
        if wants_html(req):
            raise self._site.see_other(next_url)
        thanks = marked("Thank you, your message is on its way.")
        self._site.succeed(resp, next_url, thanks, id=message_id)
        if req.uri_template == "/ajax/{any}":  # as FormSubmit's clients expect
            resp.media["success"] = "true"

    def _read(self, contact: ContactForm) -> spam.Reading:
        """Read the words of a submission, for its verdict and its echoes."""
        from frontdesk import spam  # with the first message, not at start

        return spam.read(*contact.said(), hosts=self._settings.hosts)

    @staticmethod
    def _verdict(
        req: Request, contact: ContactForm, said: spam.Reading, known: Known
    ) -> spam.Verdict:
        """Judge the words, the request (a browser's or a robot's) and what is known."""
        from frontdesk import spam

        seconds, webdriver = _session_data(req, known.at)
        request = spam.Request(
            honeypot=contact.honeypot,
            seconds_on_page=seconds,
            webdriver=webdriver,
            origin=req.get_header("Origin") is not None,
            referer=req.get_header("Referer") is not None,
            accept_language=req.get_header("Accept-Language") is not None,
            user_agent=bool(req.get_header("User-Agent")),
            echoes=known.echoes,
            taught=known.taught,
        )
        return spam.judge(said, request)

    @staticmethod
    def _keys(req: Request, contact: ContactForm) -> dict[str, int]:
        """Return what tells that a submission is a repeat, and for how many seconds.

        An Idempotency-Key counts with the same content only: a page may have put the
        same key into all that it sends, and nothing must be lost to that.
        """
        content = _content(contact)
        keys: dict[str, int] = {}
        if key := req.get_header("Idempotency-Key"):
            keys[keyed_hash("key", key, *content)] = IDEMPOTENCY_SECONDS
        client = client_key(req.context.client)
        keys[keyed_hash("body", client, *content)] = DUPLICATE_BODY_SECONDS
        return keys

    def _ask(
        self,
        req: Request,
        resp: Response,
        values: Mapping[str, str],
        contact: ContactForm,
        next_url: str,
        age: float | None,
    ) -> None:
        """Ask a doubtful sender once, with 422: nothing is stored yet.

        age: of an answer that came too soon or too late, None where there is none.
        """
        content = keyed_hash("ask", *_content(contact))
        ours = {
            forms.PROOF: self._links.token("ask", content),
            forms.FROM: self._site.came_from(req, values),
        }
        self._site.show(
            resp,
            "ask.html",
            *self._site.landings(next_url),
            action="/contact",
            multipart=is_multipart(req),
            too_soon=age is not None and age < ASKED_SECONDS[0],
            fields=[*{**values, **ours}.items()],
            shown=[
                (self._site.pages.language.text(label(name)), value)
                for name, value in values.items()
                if value and kind(name, value) != "hidden"
            ],
        )
        resp.status = falcon.HTTP_422

    def _age_of_answer(
        self, values: Mapping[str, str], contact: ContactForm
    ) -> float | None:
        """Return how many seconds ago we asked about just this text, else None."""
        if not (proof := values.get(forms.PROOF)):
            return None
        try:
            content, age = self._links.read("ask", proof)
        except BadLinkError:
            return None
        return age if content == keyed_hash("ask", *_content(contact)) else None


def _no_room(now: float) -> Rejected:
    """Return the error of a suspicious message in an hour that had too many."""
    message = marked(
        "Too many messages that look like spam came just now, so that this one could "
        "not be stored. Please try again in an hour."
    )
    wait = {"Retry-After": str(3600 - int(now) % 3600)}
    return forms.error(falcon.HTTP_503, "NOT_STORED", message, wait)


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


# --- newsletter ------------------------------------------------------------------


class Newsletter(Resource):
    """The sign-up form; its answer is the same whatever is known of the address."""

    limited = {"POST": "newsletter"}
    form = "/newsletter"

    def on_post(self, req: Request, resp: Response, **_key: str) -> None:
        """Sign an address up, pending its owner's confirmation."""
        values = forms.read(req)
        self._site.refuse_foreign(values)
        signup, now = forms.signup(values, self._site.own), self._clock()
        if self._is_suspicious(signup):
            count_trapped(now)
        else:
            Subscriber.ask(
                signup.email,
                signup.name,
                page=self._site.referrer(req, values),
                client=truncated(req.context.client),
                now=now,
                mails_per_day=self._settings.confirm_mails_per_day,
            )
        self._outbox.nudge()
        next_url = self._site.next_url(req, values, "/thanks?newsletter")
        if wants_html(req):
            raise self._site.see_other(next_url)
        almost = marked("Almost done: please press the button in the email we send.")
        self._site.succeed(resp, next_url, almost)

    @staticmethod
    def _is_suspicious(signup: forms.Signup) -> bool:
        from frontdesk import spam  # with the first sign-up, not at start

        request = spam.Request(honeypot=signup.honeypot)
        return spam.suspicious_signup(signup.name, request)


class MailedLink(Resource):
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
            falcon.HTTP_404,
            "NOT_FOUND",
            marked("This link does not work, or not any more."),
        )

    def done(self, req: Request, resp: Response, template: str, message: str) -> None:
        """Say that it is done, without a redirect."""
        self._outbox.nudge()
        if wants_html(req):
            self._site.show(resp, template, already=False)
        else:
            self._site.succeed(resp, self._site.home or "", message)


class Confirm(MailedLink):
    """Confirms a subscription."""

    purpose = "confirm"

    def on_get(self, req: Request, resp: Response, token: str) -> None:
        """Show the button; for an old link, the button that sends a new one."""
        (subscriber_id, cycle), age = self.read(token)
        subscriber = Subscriber.get_or_none(Subscriber.id == subscriber_id)
        if subscriber and (subscriber.status, subscriber.cycle) == ("confirmed", cycle):
            self._site.show(resp, "confirmed.html", already=True)
        elif age > CONFIRM_SECONDS:
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
            message = marked("Your subscription is confirmed.")
            self.done(req, resp, "confirmed.html", message)
        elif _wants_again(req):
            mails_per_day = self._settings.confirm_mails_per_day
            Subscriber.ask_again(subscriber_id, now, mails_per_day)
            self.done(req, resp, "renewed.html", marked("A new email is on its way."))
        else:
            self._expired(req, resp, token)

    def _expired(self, req: Request, resp: Response, token: str) -> None:
        if not wants_html(req) and req.method == "POST":
            message = marked("This link has expired; sign up again for a new one.")
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
    refuses = False  # all mails, from now on?
    left = ("left.html", marked("You are unsubscribed."))

    def on_post(self, req: Request, resp: Response, token: str) -> None:
        """Forget the address; again is harmless, and so is an erased subscription."""
        subscriber_id, _ = self.read(token)
        sync = self._settings.syncs_list
        Subscriber.leave(subscriber_id, self._clock(), sync, self.refuses)
        self.done(req, resp, *self.left)


class NotMe(Unsubscribe):
    """Keeps an address from ever being asked again, by the hash that remains of it."""

    purpose = "not-me"
    refuses = True
    left = ("not-me-done.html", marked("This address gets no more of these emails."))


class DeliverHeld(MailedLink):
    """Delivers a message that was held as spam; the owner's digest leads here."""

    purpose = "release"

    def on_get(self, req: Request, resp: Response, token: str) -> None:
        """Show the whole message, and the button."""
        message = self._message(token)
        self._site.show(
            resp,
            "held.html",
            action=f"/release/{token}",
            message=told(message, self._site.pages),
            leave_url=self._site.home,
        )

    def on_post(self, req: Request, resp: Response, token: str) -> None:
        """Mail the message to the owner; again is harmless."""
        Message.deliver(self._message(token).id, self._clock())
        message = marked("The message is on its way to you.")
        self.done(req, resp, "delivered.html", message)

    def _message(self, token: str) -> Message:
        message_id, _ = self.read(token)
        message = Message.get_or_none(Message.id == message_id)
        if message is None:  # erased meanwhile
            raise self.unknown()
        return message
