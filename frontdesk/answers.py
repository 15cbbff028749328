"""What every answer is made of: JSON or a page, the way back, errors in one shape."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Container, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import Any

import falcon
from falcon import Request, Response, mediatypes

from frontdesk import fields, forms, pictures
from frontdesk.languages import marked
from frontdesk.pages import Pages
from frontdesk.places import place_of
from frontdesk.settings import Settings, origin_of

log = logging.getLogger("frontdesk")

# The addresses of the services that people come from lead to the same two forms; the
# key or recipient in such an address means nothing here.
CONTACT_PATHS = (
    *("/contact", "/f/{any}", "/p/{project}/f/{any}", "/s/{any}", "/submit"),
    *("/ajax/{any}", "/{address:address}"),
)
NEWSLETTER_PATHS = (
    *("/newsletter", "/f/newsletter", "/p/{project}/f/newsletter", "/s/newsletter"),
    "/subscribe/post",  # Mailchimp's
)
MEDIA_SVG = "image/svg+xml"
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
IMAGE_PROXIES = re.compile(r"camo|imageproxy|yahoomailproxy|ggpht")


def wants_html(req: Request) -> bool:
    """Tell whether a browser submits a plain form; scripts and curl want JSON."""
    if (req.get_header("X-Requested-With") or "").lower() == "xmlhttprequest":
        return False
    if req.get_header("Sec-Fetch-Mode") not in (None, "navigate"):
        return False
    wanted = _wants_html(req.get_header("Accept") or "*/*")
    return forms.media_type(req) not in forms.JSON_TYPES if wanted is None else wanted


@lru_cache(maxsize=64)  # most browsers and libraries share a few
def _wants_html(accept: str) -> bool | None:
    if "," not in accept and accept.partition(";")[0].strip() == "*/*":
        return False
    try:
        html = mediatypes.quality("text/html", accept)
        as_json = mediatypes.quality("application/json", accept)
    except falcon.InvalidMediaRange:
        return False
    if html != as_json:
        return bool(html > as_json)
    named = "application/json" in accept and "text/html" not in accept  # axios
    return False if named else None


def succeed(resp: Response, next_url: str, message: str, **more: object) -> None:
    """Answer with the JSON that the clients of all form services read."""
    resp.media = {
        "ok": True,
        "success": True,
        "status": "success",  # Formcarry's clients read this or code
        "code": 200,
        "next": next_url,
        "message": message,
        **more,
    }


class Site:
    """Where the visitors come from and go back to."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pages = Pages(
            settings.site_language,
            site_name=settings.site_name,
            root=settings.root,
            folder=settings.template_dir,
            accent_color=settings.accent_color,
            logo_url=settings.logo_url,
            zone=settings.calendar.zone,
        )
        self._allows = settings.origins.allows
        addresses = (settings.mail_to, settings.mail_from)
        self.own = frozenset(a.email.lower() for a in addresses if a)
        self.home = None if settings.origins.any else settings.allowed_origins[0]

    @staticmethod
    def referrer(req: Request, values: Mapping[str, str]) -> str:
        """Return the URL of the page that sent a form, without its query, or ""."""
        # A form that our own page gave back tells where it came from at first.
        url = values.get(forms.FROM) or req.get_header("Referer") or ""
        url = url.partition("?")[0].partition("#")[0]
        return forms.clean(url)[:500] if origin_of(url) else ""

    def came_from(self, req: Request, values: Mapping[str, str]) -> str:
        """Return the page, or at least its origin, that a form was sent from at first.

        "" if that was a page of ours, under whatever name it was reached, or unknown.
        """
        own = req.get_header("Sec-Fetch-Site") == "same-origin"
        if own and not values.get(forms.FROM):
            return ""
        origin = req.get_header("Origin") or ""
        return self.referrer(req, values) or (origin if origin_of(origin) else "")

    def refuse_foreign(self, values: Mapping[str, str]) -> None:
        """Hold a form that our own page gave back to the page that it came from.

        A browser vouches for our own pages, but one that was refused for its origin
        is not let in by being sent again from ours. Raises Rejected (403).
        """
        url = values.get(forms.FROM, "")
        if url and origin_of(url) and not self._allows(url):
            raise blocked(url)

    def sender(self, req: Request, values: Mapping[str, str]) -> str | None:
        """Return the page to go back to, as far as it can be known."""
        origin = req.get_header("Origin") or ""
        own = origin_of(self.settings.public_url)
        for url in (self.referrer(req, values), origin):
            if origin_of(url) not in (None, own) and self._allows(url):
                return url
        return self.home

    def next_url(
        self, req: Request, values: Mapping[str, str], default: str = "/thanks"
    ) -> str:
        """Return where a form lands: its own wish, THANKS_URL, or our thanks page."""
        wanted = forms.wanted_next(values)
        asked = wanted and forms.next_url(
            wanted, self.sender(req, values), self._allows
        )
        return asked or self.settings.thanks_url or self.settings.public_url + default

    def see_other(self, url: str) -> falcon.HTTPSeeOther:
        """Return the redirect to a page.

        To one of ours without a host, where ours is only a guess: the browser knows
        under which one it has come (RFC 9110, 10.2.2).
        """
        own = self.settings.public_url
        if not self.settings.knows_its_address and url.startswith(f"{own}/"):
            url = url.removeprefix(own)
        return falcon.HTTPSeeOther(url)

    def show(
        self, resp: Response, template: str, *targets: str, **values: object
    ) -> None:
        """Answer with a page; targets: origins that its form may lead to."""
        resp.content_type = falcon.MEDIA_HTML
        page = self.pages.render(template, **{"back_url": self.home, **values})
        resp.text = page
        resp.set_header("Content-Language", self.pages.language.code)
        resp.set_header("Content-Security-Policy", self.pages.policy(page, *targets))
        resp.set_header("Referrer-Policy", "same-origin")

    def succeed(
        self, resp: Response, next_url: str, message: str, **more: object
    ) -> None:
        """Answer a script with success; message is one of the catalogs' sentences."""
        resp.set_header("Content-Language", self.pages.language.code)
        succeed(resp, next_url, self.pages.language.text(message), **more)

    def elsewhere(self, req: Request) -> bool:
        """Tell whether a browser came by another name than PUBLIC_URL's.

        Only the welcome page says so: nothing is ever made of what a client calls us.
        """
        named = req.get_header("X-Forwarded-Host") or req.get_header("Host") or ""
        scheme = self.settings.public_url.partition("://")[0]
        return origin_of(f"{scheme}://{named}") != origin_of(self.settings.public_url)

    def landings(self, next_url: str) -> tuple[str, ...]:
        """Return the origins that a form may lead to: www and apex redirect often."""
        origin = origin_of(next_url)
        if origin is None:
            return ()
        scheme, _, host = origin.partition("://")
        twin = host.removeprefix("www.") if host.startswith("www.") else f"www.{host}"
        return origin, f"{scheme}://{twin}"


def blocked(url: str) -> forms.Rejected:
    """Return the error of a page that may not send forms here."""
    host = (origin_of(url) or "").partition("://")[2] or "?"
    return forms.error(
        falcon.HTTP_403,
        "BLOCKED",
        marked(
            "%(host)s is not allowed here: the owner can add it to ALLOWED_ORIGINS."
        ),
        host=host,
    )


class AddressConverter(falcon.routing.BaseConverter):
    """FormSubmit's path is a mail address (one @), or what it gives in its place."""

    def convert(self, value: str) -> str | None:
        """Return what is in the path, or None where it is neither: not found."""
        alias = len(value) == 32 and not value.strip("0123456789abcdef")
        return value if alias or value.count("@") == 1 else None


# --- errors ----------------------------------------------------------------------

# What Falcon raises by itself; its own sentences may repeat what the client sent.
PLAIN_ERRORS = {
    400: ("MALFORMED", marked("This request could not be read.")),
    404: ("NOT_FOUND", marked("There is nothing here.")),
    405: ("METHOD_NOT_ALLOWED", marked("This method does not work here.")),
    413: ("TOO_LARGE", marked("The body is too large.")),
    415: ("UNSUPPORTED_TYPE", marked("This type of body is not understood.")),
    500: ("INTERNAL", marked("Something went wrong here; it has been logged.")),
}
ALMOST, SORRY = marked("Almost there"), marked("Sorry, that did not work")


def plain_error(status: int) -> list[Any]:
    """Return the errors of a status that tells all there is to say."""
    code, message = PLAIN_ERRORS.get(status, PLAIN_ERRORS[400])
    return [{"code": code, "message": message}]


def error_body(errors: list[Any]) -> dict[str, Any]:
    """Return the JSON of an error, whose first sentence says it all."""
    sentence = errors[0]["message"]
    return {
        "ok": False,
        "success": False,
        "error": sentence,
        "message": sentence,
        "errors": errors,
    }


class Errors:
    """Every error in one shape, from one place."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._language = site.pages.language

    def serialize(self, req: Request, resp: Response, error: falcon.HTTPError) -> None:
        """Answer with JSON, with a page, or with a picture where one was asked for."""
        errors = getattr(error, "errors", None) or plain_error(error.status_code)
        resource = req.context.resource
        if resource and resource.picture and req.method in ("GET", "HEAD"):
            self._picture(req, resp, resource.picture)
        elif wants_html(req):
            self._page(req, resp, error, errors)
        else:
            resp.media = error_body([self._told(each) for each in errors])
            if resource and errors[0]["code"] == "RATE_LIMITED":
                resp.media |= resource.over_limit
            resp.set_header("Content-Language", self._language.code)

    def _told(self, error: Any) -> dict[str, str]:
        sentence = self._language.text(error["message"], **error.get("values", {}))
        field = {"field": error["field"]} if "field" in error else {}
        return {"code": error["code"], **field, "message": sentence}

    def _page(
        self, req: Request, resp: Response, error: falcon.HTTPError, errors: list[Any]
    ) -> None:
        """Show what is wrong, and give back what was typed to a form of ours."""
        values = _sent(req, error.status_code)
        form: dict[str, Any] | None = None
        targets: tuple[str, ...] = ()
        if values is not None:
            form = self._form_again(req, values, errors)
            targets = self._site.landings(self._site.next_url(req, values))
        # The template looks a field's error up by its name.
        told = [
            self._told(error) | {"field": error.get("name", error.get("field"))}
            for error in errors
        ]
        self._site.show(
            resp,
            _template(req, error),
            *targets,
            title=self._language.text(ALMOST if form else SORRY),
            errors=told,
            advice=self._language.text(ADVICE.get(error.status_code, ADVICE[422])),
            back_url=self._site.sender(req, values or {}),
            form=form,
        )

    def _form_again(
        self, req: Request, values: Mapping[str, str], errors: list[Any]
    ) -> dict[str, Any]:
        """Return a form that gives the typed text back and posts again."""
        # The path by name: a request to //f/contact must not become a host's name.
        action = req.context.resource.form
        wrong = {error.get("name") for error in errors}
        own = self._site.own
        shown = [
            self._field(name, text, None if name in wrong else own)
            for name, text in values.items()
            if fields.meaning(name) != "honeypot" and name != forms.FROM
        ]
        missing = [name for name in wrong if name and name not in values]
        if all(item["kind"] == "hidden" for item in shown):
            missing = ["email"] if action == "/newsletter" else ["email", "message"]
        shown += [self._field(name, "", None) for name in missing]
        if came_from := self._site.came_from(req, values):
            shown.append(self._field(forms.FROM, came_from, ()))
        return {"action": action, "multipart": is_multipart(req), "fields": shown}

    def _field(
        self, name: str, text: str, own: Container[str] | None
    ) -> dict[str, str]:
        shape = kind(name, text, own)
        shown_as = self._language.text(label(name))
        return {"name": name, "value": text, "label": shown_as, "kind": shape}

    def _picture(self, req: Request, resp: Response, media: str) -> None:
        """Show a picture without numbers: the counter never breaks a page.

        Image proxies show nothing at all for an error status, so they get 200.
        """
        resp.content_type = media
        if media == falcon.MEDIA_GIF:
            resp.data = PIXEL
        else:
            label = self._language.text(pictures.HITS)
            resp.text = pictures.badge(label, "–", "lightgrey")
        if IMAGE_PROXIES.search((req.user_agent or "").lower()):
            resp.status = falcon.HTTP_200

    def not_stored(
        self, req: Request, resp: Response, error: Exception, params: Any
    ) -> None:
        """Say that the database did not take it: the client may come again."""
        log.error("database: %s, request %s", place_of(error), req.context.id)
        raise forms.error(
            falcon.HTTP_503,
            "NOT_STORED",
            marked("This could not be stored, please try again in a moment."),
            {"Retry-After": "5"},
        )

    def unexpected(
        self, req: Request, resp: Response, error: Exception, params: Any
    ) -> None:
        """Log where it happened, not what was sent."""
        log.error("%s, request %s", place_of(error), req.context.id)
        raise falcon.HTTPInternalServerError


# Under the error's own sentence, where a page gives back what was typed.
ADVICE = {
    422: marked(
        "Nothing is lost: what you typed is below. Please correct it and send it again."
    ),
    429: marked(
        "Nothing is lost: what you typed is below. Wait a little, then send it again."
    ),
    403: marked(
        "What you typed is below, so that you can copy it. It can be sent once the "
        "site's owner has allowed this page."
    ),
    503: marked("Nothing is lost: what you typed is below. Please send it again soon."),
}


def _sent(req: Request, status: int) -> Mapping[str, str] | None:
    """Return what a form of ours was sent, None where there is nothing to give back.

    At 403 and 429 its body has not been read yet. It is now, by a browser's plain form
    only and at most 64 KiB of it: what was typed must not be lost to a full limit.
    """
    resource = req.context.resource
    if status not in ADVICE or req.method != "POST" or not (resource and resource.form):
        return None
    if "form" not in req.context:
        with suppress(falcon.HTTPError):
            forms.read(req)  # which leaves it there
    values: Mapping[str, str] | None = getattr(req.context, "form", None)
    if values and len(values) > forms.MAX_NAMES:
        # Each becomes a field of the page, also for who is over the limit.
        filled = ((name, text) for name, text in values.items() if text)
        return dict(islice(filled, forms.MAX_NAMES))
    return values


def _template(req: Request, error: falcon.HTTPError) -> str:
    """Return the page of an error: warm words for what has no sentence of its own."""
    resource = req.context.resource
    if error.status_code == 404 and resource and resource.by_token:
        return "dead-link.html"
    nothing = error.status_code == 404 and not hasattr(error, "errors")
    return "not-found.html" if nothing else "error.html"


def is_multipart(req: Request) -> bool:
    """Tell in which type a form is to be sent again: as it came.

    Urlencoded, a text that is not Latin takes three times the bytes, and what was just
    read would be too large.
    """
    return forms.media_type(req) == falcon.MEDIA_MULTIPART


KINDS = {
    **dict.fromkeys(("email", "replyto"), "email"),
    **dict.fromkeys(("message", "details"), "textarea"),
    **dict.fromkeys((*fields.SERVICE, "recipient", "hidden"), "hidden"),
    **{"hidden subject": "hidden", "phone": "tel"},
}


def kind(name: str, value: str, own: Container[str] | None = ()) -> str:
    """Return what a field is shown as, which can only be guessed from what it holds.

    own: the owner's addresses, which a site put into a field and nobody typed. None for
    a field that has to be changed: then it is shown in any case.
    """
    means = fields.meaning(name)
    shape = "hidden" if name in forms.OURS else KINDS.get(means, "text")
    if means == "replyto" and (
        value.lower() in (own or ()) or forms.is_template(value)
    ):
        shape = "hidden"
    if own is None and shape == "hidden":
        shape = "text"
    if shape == "text" and value == "on":  # what a browser sends for a ticked box
        return "checkbox"
    long = "\n" in value or len(value) > 200
    return "textarea" if long and shape != "hidden" else shape


def label(name: str) -> str:
    """Return what a field is called on our pages: as its site calls it, in words."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = " ".join(re.sub(r"[_.\[\]-]+", " ", words).split())
    known = fields.meaning(name) if name.startswith("_") or words.isupper() else ""
    words = SERVICE_LABELS.get(known, words)
    return words[:1].upper() + words[1:]


# For what form services call _replyto or EMAIL.
SERVICE_LABELS = {
    **dict.fromkeys(("email", "replyto"), marked("Your email")),
    **dict.fromkeys(("message", "details"), marked("Message")),
    **{"name": marked("Name"), "first": marked("First name")},
    **{"last": marked("Last name"), "subject": marked("Subject")},
    **{"hidden subject": marked("Subject")},
}
