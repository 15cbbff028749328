"""Where mails and list changes go: Mailjet through its own client, or the log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from frontdesk.languages import marked
from frontdesk.links import Links
from frontdesk.outbox import KeysRefused, NoAnswer, Refused, TryLater, patience
from frontdesk.settings import Settings

TIMEOUT = (3, 10)  # seconds to connect, and between bytes


def _timeout() -> tuple[float, float]:
    """Return TIMEOUT, or less where a request waits for the end of the delivery."""
    left = patience.left()
    return min(TIMEOUT[0], max(0.1, left / 4)), min(TIMEOUT[1], max(0.1, left * 3 / 4))


# "addnoforce" respects that somebody left the list at Mailjet before; who left here and
# came back was put off it by our own "unsub", and has agreed anew.
# https://dev.mailjet.com/reference/email/contacts/bulk-contact-management/
LIST_ACTIONS = {
    "confirmed": "addnoforce",
    "returned": "addforce",
    "left": "unsub",
    "erased": "remove",
}


# What is worth an event: https://dev.mailjet.com/email/guides/webhooks/
EVENT_TYPES = ("sent", "bounce", "blocked", "spam", "unsub")
FAILURES = (KeysRefused, TryLater, Refused)
EVENTS = "events"  # what the token in the address of the events says


class Check(NamedTuple):
    """One line of the doctor's: is it well, and what is or what to do.

    message is one of the catalogs' sentences, values are its placeholders'.
    """

    name: str
    ok: bool
    message: str
    values: Mapping[str, object] = {}

    @classmethod
    def of(
        cls,
        name: str,
        ok: bool,
        well: str,
        mend: str,
        values: Mapping[str, object] = {},
    ) -> Check:
        """Return the line that says well where it is ok, else what to mend."""
        return cls(name, ok, well if ok else mend, values)


class RefusedReplyTo(Refused):
    """Mailjet does not take the Reply-To address."""


class Transport(Protocol):
    """Where mails and list changes go."""

    def send(self, message: dict[str, Any]) -> None:
        """Hand over one mail; raises Refused, KeysRefused or TryLater."""

    def sync(self, list_id: str, email: str, standing: str) -> None:
        """Tell the contact list of an address's standing; raises the same.

        standing: a key of LIST_ACTIONS.
        """

    def check(self, settings: Settings, links: Links) -> Iterator[Check]:
        """Yield what the doctor is to tell."""

    def register(self, links: Links) -> Iterator[Check]:
        """Ask for events about mails, and yield what came of it."""


class LogTransport:
    """Writes mails to standard output: for running on one's own machine."""

    def send(self, message: dict[str, Any]) -> None:
        """Print one mail."""
        head = [f"To: {message['To'][0]['Email']}", f"Subject: {message['Subject']}"]
        if "ReplyTo" in message:
            head.insert(1, f"Reply-To: {message['ReplyTo']['Email']}")
        text = "\n".join([*head, "", message["TextPart"].rstrip()])
        print(
            "\n  | ".join(["mail not sent, no Mailjet keys:", *text.split("\n")]),
            flush=True,
        )

    def sync(self, list_id: str, email: str, standing: str) -> None:
        """Do nothing: there is no list without Mailjet."""

    def check(self, settings: Settings, links: Links) -> Iterator[Check]:
        """Yield what is missing."""
        message = marked(
            "Emails are written to the log: set MJ_APIKEY_PUBLIC, MJ_APIKEY_PRIVATE, "
            "MAIL_FROM and MAIL_TO."
        )
        yield Check("mail", False, message)

    def register(self, links: Links) -> Iterator[Check]:
        """Do nothing: there are no events without Mailjet."""
        yield from ()


class Mailjet:
    """Mailjet through its own client, one POST for each call.

    The client would retry by itself, after read timeouts too (a mail might go twice),
    and obey a Retry-After of hours: the outbox does the retrying instead.
    """

    def __init__(self, key: tuple[str, str], api_url: str) -> None:
        self._key = key
        self._api_url = api_url
        self._clients: dict[str, Any] = {}

    def client(self, version: str) -> Any:
        """Return the client of an API version, made at first use (108 ms to import)."""
        if version not in self._clients:
            from mailjet_rest import Client
            from urllib3 import Retry

            client = Client(auth=self._key, version=version, api_url=self._api_url)
            # Not another adapter: each reads the system's certificates, for 30 ms.
            adapter: Any = client.session.get_adapter("https://")
            adapter.max_retries = Retry(0, read=False)  # as HTTPAdapter(max_retries=0)
            self._clients[version] = client
        return self._clients[version]

    def _call(self, what: str, action: str, version: str = "v3", **more: Any) -> Any:
        """Make one request and return its answer.

        Raises KeysRefused for 401 and 403, TryLater for what may pass (no answer,
        408, 429, 5xx, redirects), Refused for every other 4xx.
        """
        request = getattr(getattr(self.client(version), what), action)
        from mailjet_rest.errors import ApiError

        try:
            answer = request(**more, timeout=_timeout(), allow_redirects=False)
        except ApiError as error:  # of whatever requests raised, which has the answer
            response = getattr(error.__cause__, "response", None)
            if response is None:
                raise NoAnswer(type(error).__name__) from None
            raise _failure_of(response) from None
        # 304 answers a PUT that changes nothing.
        if answer.status_code >= 300 and answer.status_code != 304:
            raise _failure_of(answer)
        return answer

    def send(self, message: dict[str, Any]) -> None:
        """Send one mail; raises Refused, KeysRefused or TryLater."""
        data = {"Messages": [message]}
        answer = self._call("send", "create", "v3.1", data=data)
        with _understood():
            result = answer.json()["Messages"][0]
            status = result["Status"]
        if status != "success":
            raise _failure_within(result)

    def sync(self, list_id: str, email: str, standing: str) -> None:
        """Put an address on the contact list or off it."""
        data = {"Email": email, "Action": LIST_ACTIONS[standing]}
        self._call("contactslist_managecontact", "create", id=list_id, data=data)

    def check(self, settings: Settings, links: Links) -> Iterator[Check]:
        """Ask Mailjet about the keys, the sender, the list and the events."""
        try:
            rows = self._ask("sender")
        except KeysRefused:
            message = marked("Mailjet refuses the keys: check MJ_APIKEY_*.")
            yield Check("mailjet", False, message)
            return
        except FAILURES as error:
            yield not_asked("mailjet", error)
            return
        yield Check("mailjet", True, marked("Mailjet accepts the keys."))
        yield _sender(settings, rows)
        if settings.mailjet_list_id:
            yield self._list(settings.mailjet_list_id)
        try:
            yield _registered(self._ask("eventcallbackurl"), links)
        except FAILURES as error:
            yield not_asked("events", error)

    def _list(self, list_id: str) -> Check:
        try:
            self._ask("contactslist", id=list_id)
            return Check("list", True, marked("The contact list is there."))
        except FAILURES as error:
            message = marked("MAILJET_LIST_ID cannot be reached: %(error)s.")
            return Check("list", False, message, {"error": error})

    def register(self, links: Links) -> Iterator[Check]:
        """Have events sent to an address of ours: a row at Mailjet for each type.

        A new address takes the place of an older one of ours: SECRET_KEY or PUBLIC_URL
        may have changed. Somebody else's is left alone.
        """
        url = links.url("mailjet", EVENTS)
        # A row that Mailjet has given up is dead, and has to be told to live again.
        address = {"Url": url, "Version": 2, "Status": "alive"}
        try:
            rows = _callbacks(self._ask("eventcallbackurl"))
            for kind in EVENT_TYPES:
                row = rows.get(kind)
                if row is None:
                    data = {"EventType": kind, **address}
                    self._call("eventcallbackurl", "create", data=data)
                elif _is_ours(row, links):
                    self._call("eventcallbackurl", "update", id=row["ID"], data=address)
            yield _registered(self._ask("eventcallbackurl"), links)
        except FAILURES as error:
            yield not_asked("events", error)

    def _ask(self, what: str, id: str | None = None) -> list[dict[str, Any]]:
        # Without a limit it is 10 rows.
        answer = self._call(what, "get", id=id, filters={"Limit": "1000"})
        with _understood():
            return [dict(row) for row in answer.json()["Data"]]


@contextmanager
def _understood() -> Iterator[None]:
    """Raise TryLater for what comes from something else on the way."""
    try:
        yield
    except (ValueError, LookupError, TypeError) as error:
        raise TryLater("an answer that is not Mailjet's") from error


# --- what the doctor is told -----------------------------------------------------


def not_asked(name: str, error: Exception | str) -> Check:
    """Return the line that says why nothing is known."""
    message = marked("Mailjet could not be asked: %(error)s.")
    return Check(name, False, message, {"error": error})


def _sender(settings: Settings, rows: list[dict[str, Any]]) -> Check:
    sender = (settings.mail_from.email if settings.mail_from else "").lower()
    domain = sender.rpartition("@")[2]
    good = any(
        row.get("Status") == "Active"
        and str(row.get("Email", "")).lower() in (sender, f"*@{domain}")
        for row in rows
    )
    well = marked("MAIL_FROM is validated at Mailjet.")
    mend = marked("MAIL_FROM is not an active sender at Mailjet: validate it there.")
    return Check.of("sender", good, well, mend)


def _callbacks(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the row of each event type; backup addresses are rows of their own."""
    return {str(row.get("EventType")): row for row in rows if not row.get("IsBackup")}


def _is_ours(row: Mapping[str, Any], links: Links) -> bool:
    """Tell whether an address is this service's, under whatever host and key."""
    url = str(row.get("Url"))
    return url.startswith(links.prefix("mailjet")) or links.signed("mailjet", url)


def _registered(rows: list[dict[str, Any]], links: Links) -> Check:
    """Return whether Mailjet sends us all events that we want."""
    callbacks = _callbacks(rows)
    missing, others = [], []
    for kind in EVENT_TYPES:
        row = callbacks.get(kind, {})
        url = str(row.get("Url"))
        here = url.startswith(links.prefix("mailjet")) and links.signed("mailjet", url)
        if row and not _is_ours(row, links):
            others.append(kind)
        elif not here or row.get("Status") == "dead":
            missing.append(kind)
    if others:
        message = marked(
            "For these events another address is registered at Mailjet, and it was "
            "left alone: %(types)s. Delete it there, then POST /doctor."
        )
        return Check("events", False, message, {"types": ", ".join(others)})
    if missing:
        message = marked(
            "Mailjet does not tell us of these events: %(types)s. POST /doctor."
        )
        return Check("events", False, message, {"types": ", ".join(missing)})
    return Check("events", True, marked("Mailjet tells us what becomes of emails."))


# --- what went wrong -------------------------------------------------------------


def _failure_of(response: Any) -> Exception:
    wait = response.headers.get("Retry-After", "")
    seconds = int(wait) if wait.isdecimal() else 0
    return _failure(response.status_code, response.text, seconds)


def _failure_within(result: dict[str, Any]) -> Exception:
    """Return what a 200 reports for its one message, with a status of its own."""
    errors = result.get("Errors") or [{}]
    status = errors[0].get("StatusCode")
    return _failure(status if isinstance(status, int) else 400, json.dumps(errors))


# What "mj-0013" (a bad address) is about, when it is our own and not the visitor's.
_OWN_ADDRESS = re.compile(r'"ErrorRelatedTo":\s*\[\s*"(?:To|From)\b')


def _failure(status: int, body: str, retry_after: float = 0) -> Exception:
    # The body may repeat an address: only the status is kept.
    reason = f"Mailjet answered {status}"
    if status in (401, 403):
        return KeysRefused(reason)
    if status in (408, 429) or not 400 <= status < 500:
        return TryLater(reason, retry_after)
    bad_address = "ReplyTo" in body or "mj-0013" in body
    if status == 400 and bad_address and not _OWN_ADDRESS.search(body):
        return RefusedReplyTo(reason)
    return Refused(reason)


def transport_for(settings: Settings) -> Transport:
    """Return Mailjet, or the log when there are no keys."""
    if settings.mailjet_key is None:
        return LogTransport()
    return Mailjet(settings.mailjet_key, settings.mailjet_api_url)
