"""What every resource is made of: its collaborators, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from frontdesk.answers import Site
from frontdesk.database import Database
from frontdesk.limits import Limits
from frontdesk.links import Links
from frontdesk.mailjet import Transport
from frontdesk.outbox import Outbox
from frontdesk.settings import Settings


@dataclass(frozen=True)
class Parts:
    """What one application is made of; clock returns seconds since the epoch."""

    settings: Settings
    database: Database
    limits: Limits
    links: Links
    transport: Transport
    site: Site
    clock: Callable[[], float]


@dataclass(frozen=True)
class Service(Parts):
    """The same, and the outbox, whose letter is written by means of the others."""

    outbox: Outbox


class Resource:
    """A resource; middleware and error answers keep to what its class declares."""

    # The policy that a request of a method is limited by; see limits.Limits.
    limited: ClassVar[Mapping[str, str]] = {}
    for_owner = False  # opened by the admin token only
    more_for_owner = False  # open to all, but says more to the admin token
    by_token = False  # opened by a mailed link: pages of any origin may POST
    with_credentials = False  # browsers may send cookies with it, as beacons always do
    form = ""  # the path of the form whose text an error page gives back
    picture = ""  # the media type of the picture that stands in for an error
    over_limit: ClassVar[Mapping[str, Any]] = {}  # what a 429's JSON says besides
    database_seconds = 4.0  # that Postgres may take of a request, all statements

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings
        self._site = service.site
        self._links = service.links
        self._outbox = service.outbox
        self._clock = service.clock
