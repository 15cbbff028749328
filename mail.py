"""What each mail says, and the outbox that delivers it through Mailjet."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from traceback import extract_tb
from typing import Any, Protocol

from itsdangerous import BadData, TimestampSigner, URLSafeTimedSerializer
from itsdangerous.encoding import base64_decode, base64_encode

from frontdesk import pages
from frontdesk.settings import Address, Settings
from models import (
    DAY,
    Delivery,
    Message,
    StorageError,
    Subscriber,
    Tally,
    clean_up,
    day_of,
    hang_up,
    iso,
    release,
)

log = logging.getLogger("frontdesk")

CONFIRM_SECONDS = 7 * DAY
DIGEST_ITEMS = 50

# First try at once, then after these seconds, three days in all, then never again.
BACKOFF = (5, 15, 60, 300, 900, 1800, 3600, 7200, *[14400] * 6, *[28800] * 6)
TIMEOUT = (3, 10)  # seconds to connect, and between bytes
LEASE = 60  # seconds, longer than the worst attempt: two requests
REST = 9  # times the work of a delivery: a tenth of a core is its share
MAX_REST = 0.1  # seconds, for who waits for the end
PAUSE = 20  # seconds between tries while Mailjet refuses our keys
IDLE = 30  # seconds between looks for what another worker left due
MAX_RETRY_AFTER = 3600

# "addnoforce" respects that somebody left the list at Mailjet before; who left here and
# came back was put off it by our own "unsub", and has agreed anew.
# https://dev.mailjet.com/reference/email/contacts/bulk-contact-management/
LIST_ACTIONS = {
    "confirmed": "addnoforce",
    "returned": "addforce",
    "left": "unsub",
    "erased": "remove",
}


# --- signed links ----------------------------------------------------------------


class BadLinkError(Exception):
    """A link that we did not sign, or not for this purpose."""


class Links:
    """Links that act for whoever got the mail: signed, without any address in them.

    Each purpose has its own salt, so that no token opens another door. The first key
    signs, all verify (itsdangerous wants the newest last).
    """

    def __init__(
        self, keys: tuple[str, ...], public_url: str, clock: Callable[[], float]
    ) -> None:
        self.public_url = public_url
        self._clock = clock

        class Signer(TimestampSigner):
            def get_timestamp(self) -> int:
                return int(clock())

        self._serializers = {
            purpose: URLSafeTimedSerializer(
                list(reversed(keys)), salt=f"frontdesk {purpose}", signer=Signer
            )
            for purpose in ("confirm", "unsubscribe", "not-me", "release", "ask")
        }

    def token(self, purpose: str, payload: object) -> str:
        """Return a signed token."""
        return str(self._serializers[purpose].dumps(payload))

    def url(self, purpose: str, payload: object) -> str:
        """Return the URL that a mail shows."""
        path = "release" if purpose == "release" else f"newsletter/{purpose}"
        return f"{self.public_url}/{path}/{self.token(purpose, payload)}"

    def read(self, purpose: str, token: str) -> tuple[Any, float]:
        """Return a token's payload and its age in seconds.

        The age is negative when the signer's clock is ahead of ours: that is skew
        between machines, not a forgery. Raises BadLinkError.
        """
        try:
            payload, signed_at = self._serializers[purpose].loads(
                token, return_timestamp=True
            )
            parts = [base64_encode(base64_decode(p)) for p in token.split(".")]
        except (BadData, UnicodeError) as error:
            raise BadLinkError from error
        if b".".join(parts) != token.encode():  # base64 overlooks odd characters
            raise BadLinkError
        return payload, self._clock() - signed_at.timestamp()


# --- the texts -------------------------------------------------------------------


class Composer:
    """Turns a delivery into a Mailjet message (Send API v3.1)."""

    def __init__(self, settings: Settings, links: Links) -> None:
        self._settings = settings
        self._links = links
        sender = settings.mail_from or Address("", "frontdesk@localhost")
        self._from = Address(sender.name or settings.site_name, sender.email)
        self._to = settings.mail_to or Address("", "owner@localhost")

    def compose(self, delivery: Delivery) -> dict[str, Any] | None:
        """Return the message, None when there is nothing left to say."""
        compose = {
            "contact": self.contact,
            "confirm": self.confirm,
            "digest": self.digest,
            "test": self.test,
        }[delivery.kind]
        return compose(delivery.ref)

    def contact(self, ref: str, reply_to: bool = True) -> dict[str, Any] | None:
        """Return a visitor's message for the owner."""
        message = Message.get_or_none(Message.id == ref)
        if message is None:  # erased meanwhile
            return None
        mail = self._mail(
            self._to,
            "mail-contact.txt",
            message=message.as_dict() | {"client": message.client},
            reply_to_dropped=not reply_to,
            maybe_spam=message.doubtful,
        )
        if reply_to:
            mail["ReplyTo"] = _mailjet_address(Address(message.name, message.email))
        return mail | {"CustomID": message.id}

    def confirm(self, ref: str) -> dict[str, Any] | None:
        """Return the confirmation mail; nothing in it was typed by a visitor."""
        subscriber = Subscriber.get_or_none(Subscriber.id == ref)
        if subscriber is None or subscriber.status != "pending":
            return None
        cycle = [subscriber.id, subscriber.cycle]
        unsubscribe_url = self._links.url("unsubscribe", subscriber.id)
        values = {
            "confirm_url": self._links.url("confirm", cycle),
            "unsubscribe_url": unsubscribe_url,
            "not_me_url": self._links.url("not-me", subscriber.id),
            "days": CONFIRM_SECONDS // DAY,
        }
        to = Address("", str(subscriber.email))
        mail = self._mail(to, "mail-confirm.txt", **values)
        site = self._settings.site_name
        mail["HTMLPart"] = pages.render("mail-confirm.html", site_name=site, **values)
        mail["Headers"] = {  # RFC 2369 and RFC 8058
            "List-Unsubscribe": f"<{unsubscribe_url}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        }
        return mail

    def digest(self, ref: str) -> dict[str, Any] | None:
        """Return the owner's list of what was held."""
        digested_at = float(ref)
        messages, more = Message.digested(digested_at, DIGEST_ITEMS)
        if not messages:  # erased meanwhile
            return None
        items = [
            {
                "who": f"{m.name} <{m.email}>" if m.name else m.email,
                "subject": m.subject,
                "first_line": m.message.splitlines()[0][:200],
                "reasons": json.loads(m.spam_reasons),
                "received_at": iso(m.received_at),
                "release_url": self._links.url("release", m.id),
            }
            for m in messages
        ]
        # More than one day when the service slept (free dynos do).
        first, last = day_of(messages[0].received_at), day_of(digested_at - DAY)
        return self._mail(
            self._to,
            "mail-digest.txt",
            items=items,
            more=more,
            dropped=Tally.count("held, not stored", first, last),
            day=first if first == last else f"{first} or later",
        )

    def test(self, ref: str) -> dict[str, Any]:
        """Return the mail that /doctor sends."""
        return self._mail(
            self._to, "mail-test.txt", public_url=self._settings.public_url
        )

    def _mail(self, to: Address, template: str, **values: object) -> dict[str, Any]:
        text = pages.render(template, site_name=self._settings.site_name, **values)
        head, _, body = text.partition("\n")
        subject = " ".join(head.removeprefix("Subject:").split())
        return {
            "From": _mailjet_address(self._from),
            "To": [_mailjet_address(to)],
            "Subject": subject[:255],  # as Mailjet allows
            "TextPart": body.strip() + "\n",
            "TrackOpens": "disabled",
            "TrackClicks": "disabled",
        }


def _mailjet_address(address: Address) -> dict[str, str]:
    name = {"Name": address.name} if address.name else {}
    return {"Email": address.email, **name}


# --- delivering ------------------------------------------------------------------


class Refused(Exception):
    """Mailjet will never take this one."""


class RefusedReplyTo(Refused):
    """Mailjet does not take the Reply-To address."""


class KeysRefused(Exception):
    """Mailjet does not take our keys: the owner's trouble, nothing is lost."""


class TryLater(Exception):
    """The network or Mailjet is in trouble."""

    def __init__(self, reason: str, retry_after: float = 0) -> None:
        super().__init__(reason)
        self.retry_after = min(retry_after, MAX_RETRY_AFTER)


class NoAnswer(TryLater):
    """Nobody is there, for this delivery as for the next one."""


class Transport(Protocol):
    """Where mails and list changes go."""

    def send(self, message: dict[str, Any]) -> None:
        """Hand over one mail; raises Refused, KeysRefused or TryLater."""

    def sync(self, list_id: str, email: str, standing: str) -> None:
        """Tell the contact list of an address's standing; raises the same.

        See Subscriber.standing().
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


class Outbox:
    """Delivers what the database holds, in a thread of each worker.

    Workers and machines share the rows by leases (see Delivery.claim).
    """

    def __init__(
        self,
        settings: Settings,
        composer: Composer,
        transport: Transport,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._composer = composer
        self._transport = transport
        self._clock = clock
        self._wake = threading.Event()
        self._stopping = False
        self._give_up_at = 0.0  # of time.monotonic()
        self._thread: threading.Thread | None = None
        self._holding: Delivery | None = None
        self._cleaned_day = ""
        self.paused_until = 0.0

    def nudge(self) -> None:
        """Say that something may be due."""
        if self._clock() >= self.paused_until:
            self._wake.set()

    def start(self) -> None:
        """Start delivering in the background."""
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Finish the delivery under way, or hand it back when that takes too long.

        A second call waits for no more than what the first one has left.
        """
        if not self._stopping:
            self._give_up_at = time.monotonic() + seconds
            self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(max(0.0, self._give_up_at - time.monotonic()))
            held = self._holding
            if self._thread.is_alive() and held is not None:
                held.put_back(self._clock(), "handed back", held.attempts - 1)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                self.drain()
                # After: a clean-up that fails must keep no mail waiting.
                self.daily_round()
                wait = self._seconds_to_next()
            except StorageError as error:
                log.error("outbox: database trouble (%s)", type(error).__name__)
                wait = 5.0
            except Exception as error:
                log.error("outbox: %s", _place(error))
                wait = IDLE
            finally:
                release()
            self._wake.wait(wait)
        hang_up()

    def _seconds_to_next(self) -> float:
        now = self._clock()
        due = max(Delivery.next_due() or now + IDLE, self.paused_until)
        return min(max(due - now, 0.0), IDLE)

    def daily_round(self) -> None:
        """Once a day: the digest of what was held, and the clean-up."""
        now = self._clock()
        if self._cleaned_day == day_of(now):
            return
        Message.start_digest(now)
        clean_up(now, self._settings.retention_days)
        self._cleaned_day = day_of(now)

    def drain(self) -> None:
        """Deliver everything that is due."""
        while not self._stopping:
            now, due_at = self._clock(), Delivery.next_due()
            if now < self.paused_until or due_at is None or now < due_at:
                return
            delivery = Delivery.claim(now, LEASE)
            if delivery is not None:
                self._holding = delivery
                started = time.thread_time()
                self._deliver(delivery)
                self._holding = None
                # Visitors go first, and who clears a backlog is in no hurry.
                time.sleep(min(REST * (time.thread_time() - started), MAX_REST))

    def _deliver(self, delivery: Delivery) -> None:
        try:
            self._hand_over(delivery)
        except KeysRefused as error:
            now = self._clock()
            self.paused_until = now + PAUSE
            log.error("outbox: paused, %s: check the Mailjet keys", error)
            # Due at once: this thread waits, and a restart with better keys does not.
            delivery.put_back(now, str(error), delivery.attempts - 1)
        except TryLater as error:
            if isinstance(error, NoAnswer):
                self.paused_until = self._clock() + BACKOFF[0]
            self._later(delivery, str(error), error.retry_after)
        except Refused as error:
            self._bury(delivery, str(error))
        except StorageError:
            raise
        except Exception as error:
            log.error("outbox: %s %s, %s", delivery.kind, delivery.id, _place(error))
            self._later(delivery, type(error).__name__, 0)
        else:
            delivery.done(self._clock())

    def _hand_over(self, delivery: Delivery) -> None:
        if delivery.kind == "list":
            list_id, email = self._settings.mailjet_list_id, delivery.ref
            if list_id:  # the address's state now, whatever it was when queued
                self._transport.sync(list_id, email, Subscriber.standing(email))
            return
        message = self._composer.compose(delivery)
        if message is None:
            return
        try:
            self._transport.send(message)
        except RefusedReplyTo:
            message = self._composer.contact(delivery.ref, reply_to=False)
            if delivery.kind != "contact" or message is None:
                raise
            self._transport.send(message)

    def _later(self, delivery: Delivery, reason: str, retry_after: float) -> None:
        if delivery.attempts > len(BACKOFF):
            self._bury(delivery, f"{reason}, for three days")
            return
        wait = max(BACKOFF[delivery.attempts - 1], retry_after)
        log.warning("outbox: %s %s later, %s", delivery.kind, delivery.id, reason)
        delivery.put_back(self._clock() + wait, reason, delivery.attempts)

    def _bury(self, delivery: Delivery, reason: str) -> None:
        log.error("outbox: %s %s is dead, %s", delivery.kind, delivery.id, reason)
        delivery.put_back(None, reason, delivery.attempts)


def _place(error: Exception) -> str:
    """Return what happened where: an exception's text may hold what was typed."""
    last = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {last.name}:{last.lineno}"


def transport_for(settings: Settings) -> Transport:
    """Return Mailjet, or the log when there are no keys."""
    if settings.mailjet_key is None:
        return LogTransport()
    return Mailjet(settings.mailjet_key, settings.mailjet_api_url)
