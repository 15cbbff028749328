"""Where mails and list changes go: Mailjet through its own client, or the log."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from frontdesk.outbox import KeysRefused, NoAnswer, Refused, TryLater
from frontdesk.settings import Settings

TIMEOUT = (3, 10)  # seconds to connect, and between bytes

# "addnoforce" respects that somebody left the list at Mailjet before; who left here and
# came back was put off it by our own "unsub", and has agreed anew.
# https://dev.mailjet.com/reference/email/contacts/bulk-contact-management/
LIST_ACTIONS = {
    "confirmed": "addnoforce",
    "returned": "addforce",
    "left": "unsub",
    "erased": "remove",
}


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

    def check(self, settings: Settings) -> Iterator[tuple[str, bool, str]]:
        """Yield (name, ok, message) for the doctor."""


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

    def check(self, settings: Settings) -> Iterator[tuple[str, bool, str]]:
        """Yield what is missing."""
        yield (
            "mail",
            False,
            "Mails are written to the log: set MJ_APIKEY_PUBLIC, MJ_APIKEY_PRIVATE, "
            "MAIL_FROM and MAIL_TO.",
        )


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
            from mailjet_rest.utils.guardrails import SecureHTTPAdapter

            client = Client(
                auth=self._key, version=version, api_url=self._api_url, timeout=TIMEOUT
            )
            client.session.mount("https://", SecureHTTPAdapter(max_retries=0))
            self._clients[version] = client
        return self._clients[version]

    def send(self, message: dict[str, Any]) -> None:
        """Send one mail; raises Refused, KeysRefused or TryLater."""
        answer = self.call(
            lambda: self.client("v3.1").send.create(
                data={"Messages": [message]}, allow_redirects=False
            )
        )
        try:
            result = answer.json()["Messages"][0]
            status = result["Status"]
        except (ValueError, LookupError, TypeError) as error:
            raise TryLater("an answer that is not Mailjet's") from error
        if status != "success":
            raise _failure_within(result)

    def sync(self, list_id: str, email: str, standing: str) -> None:
        """Put an address on the contact list or off it."""
        action = LIST_ACTIONS[standing]
        self.call(
            lambda: self.client("v3").contactslist_managecontact.create(
                id=list_id,
                data={"Email": email, "Action": action},
                allow_redirects=False,
            )
        )

    def check(self, settings: Settings) -> Iterator[tuple[str, bool, str]]:
        """Ask Mailjet about the keys, the sender and the list."""
        sender = (settings.mail_from.email if settings.mail_from else "").lower()
        try:
            rows = self._ask("sender")
        except KeysRefused:
            yield "mailjet", False, "Mailjet refuses the keys: check MJ_APIKEY_*."
            return
        except (TryLater, Refused) as error:
            yield "mailjet", False, f"Mailjet could not be asked: {error}."
            return
        yield "mailjet", True, "Mailjet accepts the keys."
        domain = sender.rpartition("@")[2]
        good = any(
            row.get("Status") == "Active"
            and str(row.get("Email", "")).lower() in (sender, f"*@{domain}")
            for row in rows
        )
        yield (
            "sender",
            good,
            "MAIL_FROM is validated at Mailjet."
            if good
            else "MAIL_FROM is not an active sender at Mailjet: validate it there.",
        )
        if settings.mailjet_list_id:
            try:
                self._ask("contactslist", id=settings.mailjet_list_id)
                yield "list", True, "The contact list is there."
            except (KeysRefused, TryLater, Refused) as error:
                yield "list", False, f"MAILJET_LIST_ID cannot be reached: {error}."

    def _ask(self, resource: str, id: str | None = None) -> list[dict[str, Any]]:
        endpoint = getattr(self.client("v3"), resource)
        answer = self.call(
            lambda: endpoint.get(
                id=id, filters={"Limit": "1000"}, allow_redirects=False
            )
        )
        try:
            return [dict(row) for row in answer.json()["Data"]]
        except (ValueError, LookupError, TypeError) as error:
            raise TryLater("an answer that is not Mailjet's") from error

    @staticmethod
    def call(request: Callable[[], Any]) -> Any:
        """Make one request and return its answer.

        Raises KeysRefused for 401 and 403, TryLater for what may pass (no answer,
        408, 429, 5xx, redirects), Refused for every other 4xx.
        """
        from mailjet_rest.errors import ApiError
        from requests import RequestException

        try:
            answer = request()
        except (ApiError, RequestException) as error:
            cause = error.__cause__ if isinstance(error, ApiError) else error
            response = getattr(cause, "response", None)
            if response is None:
                raise NoAnswer(type(error).__name__) from None
            raise _failure_of(response) from None
        if answer.status_code >= 300:
            raise _failure_of(answer)
        return answer


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
