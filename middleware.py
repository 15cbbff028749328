"""What every request passes: log, CORS, client address, origins, rate limits."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import falcon
from falcon import Request, Response

from frontdesk.answers import blocked
from frontdesk.database import Database
from frontdesk.forms import MAX_BODY, Rejected, error
from frontdesk.languages import marked
from frontdesk.limits import Limits
from frontdesk.resources import Resource
from frontdesk.settings import BROKEN, TWO_LINES, Origins, Settings, origin_of

log = logging.getLogger("frontdesk")

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EXPOSED = "Retry-After, RateLimit, RateLimit-Policy, X-Request-ID"


class Headers(Request):
    """A request that knows how WSGI spells a header's name: it is asked 15 times."""

    def get_header(  # type: ignore[override]
        self, name: str, required: bool = False, default: str | None = None
    ) -> str | None:
        """Return a header's value, or the default."""
        value: str | None = self.env.get(_wsgi_name(name), default)
        return value


@lru_cache(maxsize=256)  # names in our code and settings
def _wsgi_name(name: str) -> str:
    name = name.upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"


class RequestLog:
    """One line a request, without addresses, tokens or text; and the request id."""

    def process_request(self, req: Request, resp: Response) -> None:
        """Keep a sane id of the client or router, else make one."""
        req.context.started = time.perf_counter()
        req.context.resource = None
        given = req.get_header("X-Request-ID") or ""
        sane = _SANE_ID.fullmatch(given)
        req.context.id = given if sane else secrets.token_hex(8)

    def process_resource(
        self, req: Request, resp: Response, resource: Resource, params: Any
    ) -> None:
        """Keep the resource for whoever answers an error; raises 405.

        Falcon answers a method that it never heard of with 400.
        """
        req.context.resource = resource
        if req.method not in (*falcon.COMBINED_METHODS, BROKEN):
            known = (
                m for m in falcon.HTTP_METHODS if f"on_{m.lower()}" in dir(resource)
            )
            raise falcon.HTTPMethodNotAllowed([*known, "OPTIONS"])

    def process_response(
        self, req: Request, resp: Response, resource: Any, ok: bool
    ) -> None:
        """Set what every answer carries, and log it."""
        resp.set_header("X-Request-ID", req.context.id)
        resp.set_header("X-Content-Type-Options", "nosniff")
        if not ok or resp.get_header("Cache-Control") is None:
            resp.set_header("Cache-Control", "no-store")
        method = req.method if req.method in falcon.HTTP_METHODS else "?"
        milliseconds = (time.perf_counter() - req.context.started) * 1000
        # Not through logging: it would be a twentieth of a request's work.
        with suppress(OSError, ValueError):  # nobody reads it any more
            print(
                f"{method} {req.uri_template or '-'} {resp.status_code} "
                f"{milliseconds:.1f}ms {req.context.id}\n",
                end="",
                flush=True,
            )


class Cors:
    """CORS headers on every answer, and 403 for a POST from a forbidden origin."""

    def __init__(self, origins: Origins) -> None:
        self._origins = origins

    def process_resource(
        self, req: Request, resp: Response, resource: Resource, params: Any
    ) -> None:
        """Refuse a page of somebody else's.

        A mailed link is its own authority, and a browser vouches for our own pages
        by Sec-Fetch-Site, whatever name they were reached under.
        """
        if req.method not in ("POST", "DELETE", "OPTIONS") or resource.by_token:
            return
        source = req.get_header("Origin") or req.get_header("Referer") or "null"
        if source == "null" or self._origins.any or self._origins.allows(source):
            return
        if req.get_header("Sec-Fetch-Site") == "same-origin":
            return
        # A script is told nothing but "Failed to fetch", often for its preflight.
        origin = origin_of(source) or "An origin that cannot be read"
        log.warning("%s is refused: ALLOWED_ORIGINS does not list it", origin)
        if req.method != "OPTIONS":
            raise blocked(source)

    def process_response(
        self, req: Request, resp: Response, resource: Resource | None, ok: bool
    ) -> None:
        """Answer preflights and say who may read the answer."""
        resp.append_header("Vary", "Origin")
        origin = req.get_header("Origin")
        if self._origins.any:
            resp.set_header("Access-Control-Allow-Origin", "*")
        elif origin and self._origins.allows(origin):
            resp.set_header("Access-Control-Allow-Origin", origin)
            if resource and resource.with_credentials:
                resp.set_header("Access-Control-Allow-Credentials", "true")
        else:
            return
        resp.set_header("Access-Control-Expose-Headers", _EXPOSED)
        if req.method == "OPTIONS" and req.get_header("Access-Control-Request-Method"):
            self._preflight(req, resp)

    @staticmethod
    def _preflight(req: Request, resp: Response) -> None:
        allow = resp.get_header("Allow")
        if allow is None:
            return
        resp.set_header("Access-Control-Allow-Methods", allow)
        wanted = req.get_header("Access-Control-Request-Headers") or ""
        if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1000}", wanted):
            resp.set_header("Access-Control-Allow-Headers", wanted)
        resp.set_header("Access-Control-Max-Age", "86400")


class ClientAddress:
    """Finds the client's address: the platform's header, trusted hops or the peer."""

    def __init__(self, settings: Settings) -> None:
        self._header = settings.client_ip_header
        self._hops = settings.trusted_hops

    def process_resource(
        self, req: Request, resp: Response, resource: Resource, params: Any
    ) -> None:
        """Set req.context.client.

        Raises Rejected (400) for two X-Forwarded-For lines: a forgery attempt that
        the server has marked (apply_policy() in frontdesk/server.py).
        """
        if req.get_header("X-Forwarded-For") == TWO_LINES:
            message = marked("X-Forwarded-For was sent twice.")
            raise error(falcon.HTTP_400, "MALFORMED", message)
        req.context.client, req.context.client_rule = self.find(req)

    def find(self, req: Request) -> tuple[str, str]:
        """Return the address, and the rule that it was found by."""
        if self._header:
            address = ip_address(req.get_header(self._header) or "")
            if address:
                return address, self._header
        if self._hops:
            entries = (req.get_header("X-Forwarded-For") or "").split(",")
            if len(entries) >= self._hops:
                address = ip_address(entries[-self._hops])
                if address:
                    return address, f"X-Forwarded-For, TRUSTED_HOPS={self._hops}"
        return ip_address(req.env.get("REMOTE_ADDR", "")) or "0.0.0.0", "socket"  # noqa: S104 # the unspecified address, for a Unix socket's peer


@lru_cache(maxsize=1024)
def ip_address(text: str) -> str:
    """Return an IP address in its normal form, "" if it is none.

    Some proxies append the port that the client came from: 192.0.2.1:5678, [::1]:5678.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def client_key(address: str) -> str:
    """Return what a client is limited by: its address, or its IPv6 /64."""
    return _network(address, 32, 64)


def truncated(address: str) -> str:
    """Return what is stored of an address: its /24, or IPv6 /48."""
    return _network(address, 24, 48)


@lru_cache(maxsize=1024)
def _network(address: str, bits4: int, bits6: int) -> str:
    bits = bits6 if ":" in address else bits4
    network = ipaddress.ip_network(f"{address}/{bits}", strict=False)
    return str(network.network_address)


class RateLimit:
    """Spends a request of the policy that a resource names, before the body is read.

    Where the answer is an error such as 403, 404 or 405, nobody reads the body. A large
    one costs as much as a form, so the policy "unread" limits such answers, unless
    another policy was spent for the request. address: finds the client of a path that
    leads nowhere, for which process_resource() is not called.

    came: called for each limited request, since what is limited is what visitors do.
    """

    def __init__(
        self, address: ClientAddress, limits: Limits, came: Callable[[], None]
    ) -> None:
        self._address = address
        self._limits = limits
        self._came = came

    def process_resource(
        self, req: Request, resp: Response, resource: Resource, params: Any
    ) -> None:
        """Spend one request; raises Rejected (429)."""
        policy = resource.limited.get(req.method)
        if policy is not None:
            self._came()
            self._spend(req, resp, policy, req.context.client)

    def process_response(
        self, req: Request, resp: Response, resource: Any, ok: bool
    ) -> None:
        """Let an error for a large body cost something; raises Rejected (429)."""
        if ok or "policy" in req.context:
            return
        if (req.content_length or 0) > MAX_BODY or req.get_header("Transfer-Encoding"):
            self._spend(req, resp, "unread", self._address.find(req)[0])

    def _spend(self, req: Request, resp: Response, policy: str, client: str) -> None:
        req.context.policy = policy
        allowance = self._limits.take(policy, client_key(client))
        if allowance is None:
            return
        resp.set_headers(self._limits.headers(policy, allowance))
        if not allowance.allowed:
            raise too_many(allowance.retry_after)


def too_many(retry_after: int) -> Rejected:
    """Return the error of a client over its limit."""
    return error(
        falcon.HTTP_429,
        "RATE_LIMITED",
        # TRANSLATORS: any number; an abbreviation of seconds suits them all.
        marked("Too many requests, please try again in %(seconds)s seconds."),
        {"Retry-After": str(retry_after)},
        seconds=retry_after,
    )


class DatabaseUse:
    """Bounds what Postgres may take of a request, and gives its connection back."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def process_resource(
        self, req: Request, resp: Response, resource: Resource, params: Any
    ) -> None:
        """Set the deadline for all statements together, those of limits included."""
        self._database.enter(resource.database_seconds)

    def process_response(
        self, req: Request, resp: Response, resource: Any, ok: bool
    ) -> None:
        """Release this thread's connection to the pool."""
        self._database.release()


class Owner:
    """Opens what is for_owner to the admin token, and to the owner's own pages only.

    Sets req.context.is_owner, for what only tells the owner more.
    """

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self._token = settings.admin_token
        self._own_origin = origin_of(settings.public_url)
        self._limits = limits

    def process_resource(
        self, req: Request, resp: Response, resource: Resource, params: Any
    ) -> None:
        """Check the token; without one configured there is nothing here.

        Raises Rejected: 401, 403, 404, 429.
        """
        req.context.is_owner = False
        if req.method == "OPTIONS":
            return
        if resource.more_for_owner and self._token and req.get_header("Authorization"):
            with suppress(Rejected):
                self._check(req, resp, self._token)
        if not resource.for_owner:
            return
        if self._token is None:
            message = marked("The owner can open this page by setting ADMIN_TOKEN.")
            raise error(falcon.HTTP_404, "NOT_FOUND", message)
        if not self._comes_from_here(req):
            message = marked("A page of another site cannot open this.")
            raise error(falcon.HTTP_403, "BLOCKED", message)
        self._check(req, resp, self._token)

    def _check(self, req: Request, resp: Response, token: str) -> None:
        """Compare the token; raises Rejected (401, 429).

        Each request spends the client's limit, and only the right token gets it back:
        of many at once no more are compared than are allowed. Over the limit nothing
        is compared: 429 for a wrong token and 200 for the right one would tell. Who
        shows none has guessed none, as browsers do first, and spends a limit apart.
        """
        given = _given_token(req)
        client = client_key(req.context.client) + ("" if given else " without")
        allowance = self._limits.take("admin", client)
        if allowance is not None and not allowance.allowed:
            resp.set_headers(self._limits.headers("admin", allowance))
            raise too_many(allowance.retry_after)
        if hmac.compare_digest(given.encode(), token.encode()):
            req.context.is_owner = True
            self._limits.give_back("admin", client)
            return
        raise error(
            falcon.HTTP_401,
            "UNAUTHORIZED",
            marked("The admin token is missing or wrong."),
            {"WWW-Authenticate": 'Basic realm="Frontdesk", charset="UTF-8"'},
        )

    def _comes_from_here(self, req: Request) -> bool:
        """Tell whether no other site's page causes the request.

        A browser that was once given the token as a password adds it to whatever any
        page makes it ask for.
        """
        only_reads = req.method in ("GET", "HEAD")
        site = req.get_header("Sec-Fetch-Site")
        if site is not None:
            # A link in a mail that is read on the web: the new page is nobody else's.
            followed = only_reads and req.get_header("Sec-Fetch-Dest") == "document"
            return followed or site in ("same-origin", "none")
        source = req.get_header("Origin") or req.get_header("Referer")
        if source is None or only_reads:
            return True
        return origin_of(source) == self._own_origin


def _given_token(req: Request) -> str:
    scheme, _, value = (req.get_header("Authorization") or "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip()).decode().partition(":")[2]
    except ValueError:
        return ""
