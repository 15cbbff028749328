"""One service in this process: its clock, its mailbox, its client."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import falcon.testing

from api import Frontdesk
from frontdesk.links import Links
from frontdesk.mailjet import Check
from frontdesk.settings import Settings

NOON = 1_800_000_000.0 - 1_800_000_000.0 % 86400 + 43200  # of some day, UTC


TOKEN = "the-owner's-admin-token"


FULL = os.environ.get("FRONTDESK_FULL") == "1"  # make faults: all at full size


class Clock:
    """A clock that only a test moves."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Mailbox:
    """A transport that keeps what it is given; fail makes it raise instead."""

    mails: list[dict[str, Any]] = field(default_factory=list)
    synced: list[tuple[str, str, str]] = field(default_factory=list)
    checked: int = 0  # times
    fail: Callable[[dict[str, Any]], Exception | None] = lambda message: None

    def send(self, message: dict[str, Any]) -> None:
        if error := self.fail(message):
            raise error
        self.mails.append(message)

    def sync(self, list_id: str, email: str, standing: str) -> None:
        self.synced.append((list_id, email, standing))

    def check(self, settings: Settings, links: Links) -> Iterator[Check]:
        self.checked += 1
        yield Check("mailjet", True, "A test's mailbox.")

    def register(self, links: Links) -> Iterator[Check]:
        yield Check("events", True, "A test's mailbox tells nothing.")


@dataclass
class Desk:
    """One service in this process: its client, clock and mailbox."""

    app: Frontdesk
    client: falcon.testing.TestClient
    clock: Clock
    mailbox: Mailbox
    settings: Settings

    def drain(self) -> list[dict[str, Any]]:
        """Deliver what is due and return all mails so far."""
        self.app.outbox.drain()
        return self.mailbox.mails

    def post(self, path: str, form: dict[str, Any], **headers: str) -> Any:
        """Post JSON as a script does, keyword arguments as headers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.simulate_post(path, json=form, headers=named)

    def owner(self, method: str, path: str) -> Any:
        """Make a request with the admin token."""
        return self.client.simulate_request(
            method, path, headers={"Authorization": f"Bearer {TOKEN}"}
        )

    def close(self) -> None:
        """Close this thread's connections, and what all threads share."""
        self.app.service.limits.store.close()
        self.app.service.database.close()

    def health(self) -> Any:
        """Return what /health tells the owner."""
        return self.owner("GET", "/health").json

    def messages(self) -> list[dict[str, Any]]:
        return self.owner("GET", "/export/messages.json").json

    def subscribers(self) -> list[dict[str, Any]]:
        return self.owner("GET", "/export/subscribers.json").json
