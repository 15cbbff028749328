"""What every answer is made of: JSON or a page, the way back, errors in one shape."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import falcon
from falcon import Request, Response, mediatypes

from frontdesk import forms, pages
from frontdesk.places import place_of
from frontdesk.settings import Settings, origin_of

log = logging.getLogger("frontdesk")

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
    """Answer with the JSON that Formspree's and Web3Forms' clients read."""
    resp.media = {
        "ok": True,
        "success": True,
        "next": next_url,
        "message": message,
        **more,
    }


class Site:
    """Where the visitors come from and go back to."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._allows = settings.origins.allows
        self.home = None if settings.origins.any else settings.allowed_origins[0]

    @staticmethod
    def referrer(req: Request, values: Mapping[str, str]) -> str:
        """Return the URL of the page that sent a form, without its query, or ""."""
        # A form that our own page gave back tells where it came from at first.
        url = values.get(forms.FROM) or req.get_header("Referer") or ""
        url = url.partition("?")[0].partition("#")[0]
        return forms.clean(url)[:500] if origin_of(url) else ""

    def sender(self, req: Request, values: Mapping[str, str]) -> str | None:
        """Return the page to go back to, as far as it can be known."""
        origin = req.get_header("Origin") or ""
        own = origin_of(self.settings.public_url)
        for url in (self.referrer(req, values), origin):
            if origin_of(url) not in (None, own) and self._allows(url):
                return url
        return self.home

    def next_url(
        self, req: Request, values: Mapping[str, str], wanted: str, default: str
    ) -> str:
        """Return where a form lands: its own wish, THANKS_URL, or our thanks page."""
        asked = forms.next_url(wanted, self.sender(req, values), self._allows)
        return asked or self.settings.thanks_url or self.settings.public_url + default

    def show(
        self, resp: Response, template: str, *targets: str, **values: object
    ) -> None:
        """Answer with a page; targets: origins that its form may lead to."""
        resp.content_type = falcon.MEDIA_HTML
        common = {"site_name": self.settings.site_name, "root": self.settings.root}
        resp.text = pages.render(template, **common, **values)
        resp.set_header("Content-Security-Policy", pages.page_policy(*targets))
        resp.set_header("Referrer-Policy", "same-origin")

    def landings(self, next_url: str) -> tuple[str, ...]:
        """Return the origins that a form may lead to: www and apex redirect often."""
        origin = origin_of(next_url)
        if origin is None:
            return ()
        scheme, _, host = origin.partition("://")
        twin = host.removeprefix("www.") if host.startswith("www.") else f"www.{host}"
        return origin, f"{scheme}://{twin}"


# --- errors ----------------------------------------------------------------------

# What Falcon raises by itself; its own sentences may repeat what the client sent.
PLAIN_ERRORS = {
    400: ("MALFORMED", "This request could not be read."),
    404: ("NOT_FOUND", "There is nothing here."),
    405: ("METHOD_NOT_ALLOWED", "This method does not work here."),
    413: ("TOO_LARGE", "The body is too large."),
    415: ("UNSUPPORTED_TYPE", "This type of body is not understood."),
    500: ("INTERNAL", "Something went wrong here; it has been logged."),
}


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

    def serialize(self, req: Request, resp: Response, error: falcon.HTTPError) -> None:
        """Answer with JSON, with a page, or with a picture where one was asked for."""
        errors = getattr(error, "errors", None)
        if errors is None:
            errors = plain_error(error.status_code)
        resource = req.context.resource
        if resource and resource.picture and req.method in ("GET", "HEAD"):
            self._picture(req, resp, resource.picture)
        elif wants_html(req):
            self._page(req, resp, error, errors)
        else:
            resp.media = self._json(req, errors)

    @staticmethod
    def _json(req: Request, errors: list[Any]) -> dict[str, Any]:
        resource = req.context.resource
        limited = resource and errors[0]["code"] == "RATE_LIMITED"
        return error_body(errors) | (resource.over_limit if limited else {})

    def _page(
        self, req: Request, resp: Response, error: falcon.HTTPError, errors: list[Any]
    ) -> None:
        form: dict[str, Any] | None = None
        targets: tuple[str, ...] = ()
        typed = getattr(error, "values", None)
        values = {**(typed or {}), forms.FROM: self._site.referrer(req, typed or {})}
        if typed is not None:
            form = _form_again(req, values, errors)
            wanted = forms.first(values, forms.NEXT)
            next_url = self._site.next_url(req, values, wanted, "/thanks")
            targets = self._site.landings(next_url)
        self._site.show(
            resp,
            "error.html",
            *targets,
            title="Almost there" if form else "Sorry, that did not work",
            errors=errors,
            back_url=self._site.sender(req, values),
            form=form,
        )

    @staticmethod
    def _picture(req: Request, resp: Response, media: str) -> None:
        """Show a picture without numbers: the counter never breaks a page.

        Image proxies show nothing at all for an error status, so they get 200.
        """
        resp.content_type = media
        if media == falcon.MEDIA_GIF:
            resp.data = PIXEL
        else:
            resp.text = pages.badge("hits", "–", "lightgrey")
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
            "This could not be stored, please try again in a moment.",
            {"Retry-After": "5"},
        )

    def unexpected(
        self, req: Request, resp: Response, error: Exception, params: Any
    ) -> None:
        """Log where it happened, not what was sent."""
        log.error("%s, request %s", place_of(error), req.context.id)
        raise falcon.HTTPInternalServerError


def _form_again(
    req: Request, values: Mapping[str, str], errors: list[Any]
) -> dict[str, Any]:
    """Return a form that gives the typed text back and posts again."""
    # The path by name: a request to //f/contact must not become a host's name.
    action = req.context.resource.form
    signup = action == "/newsletter"
    missing = {e["field"]: "" for e in errors if e["code"] == "REQUIRED_FIELD_MISSING"}
    if not any(name != forms.FROM for name in values):
        missing = dict.fromkeys(["email"] if signup else ["email", "message"], "")
    fields = [
        {"name": name, "value": text, "label": label(name), "kind": kind(name, text)}
        for name, text in {**values, **missing}.items()
        if name not in forms.HONEYPOTS
    ]
    return {"action": action, "multipart": is_multipart(req), "fields": fields}


def is_multipart(req: Request) -> bool:
    """Tell in which type a form is to be sent again: as it came.

    Urlencoded, a text that is not Latin takes three times the bytes, and what was just
    read would be too large.
    """
    return forms.media_type(req) == falcon.MEDIA_MULTIPART


def kind(name: str, value: str) -> str:
    """Return what a field is shown as."""
    if name in forms.ADDRESS:
        return "email"
    if name in forms.TEXT:
        return "textarea"
    if name in (forms.PROOF, forms.FROM, *forms.NEXT, *forms.LEFTOVERS):
        return "hidden"
    return "textarea" if "\n" in value or len(value) > 200 else "text"


def label(name: str) -> str:
    """Return what a field is called on our pages."""
    if name in forms.ADDRESS:
        return "Your email"
    if name in forms.TEXT:
        return "Message"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").strip()
    return words[:1].upper() + words[1:]
