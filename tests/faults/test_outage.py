"""Mailjet is away for days: everything is delivered afterwards, once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from frontdesk.outbox import KeysRefused, TryLater
from models import Delivery
from tests.faults.conftest import contact, eventually, is_drained, size
from tests.support.desk import TOKEN, Desk
from tests.support.mailjet import StandIn
from tests.support.server import Server, mail_settings

HOUR = 3600


@pytest.mark.parametrize(
    "trouble",
    [
        lambda message: TryLater("ConnectionError"),
        lambda message: TryLater("Mailjet answered 429", retry_after=6 * HOUR),
        lambda message: KeysRefused("Mailjet answered 401"),
    ],
    ids=["no answer", "a long Retry-After", "keys refused"],
)
def test_messages_of_an_outage_are_all_delivered_afterwards_once(
    make_desk: Callable[..., Desk], trouble: Callable[[dict[str, Any]], Exception]
) -> None:
    desk = make_desk(contact_limit=())
    desk.mailbox.fail = trouble
    ids = []
    for _ in range(size(30, 1000)):
        ids.append(desk.post(*contact()).json["id"])
        desk.clock.advance(60)
    for _ in range(2 * 24 - len(ids) // 60):
        assert desk.drain() == []
        desk.clock.advance(HOUR)
    summary = Delivery.summary(desk.clock.now)
    assert (summary["waiting"], summary["dead"]) == (len(ids), 0)

    desk.mailbox.fail = lambda message: None
    for _ in range(24):
        desk.drain()
        desk.clock.advance(HOUR)
    times = Counter(mail["CustomID"] for mail in desk.mailbox.mails)
    assert times == Counter(ids)
    assert Delivery.summary(desk.clock.now)["waiting"] == 0
    assert all(message["mailed_at"] for message in desk.messages())


def test_four_processes_send_no_mail_twice(
    make_desk: Callable[..., Desk],
    database_url: str,
    serve: Callable[..., Server],
    mailjet: StandIn,
) -> None:
    desk = make_desk(contact_limit=())
    desk.clock.now = time.time()
    ids = [desk.post(*contact()).json["id"] for _ in range(size(200, 2000))]
    server = serve(
        DATABASE_URL=database_url,
        WEB_CONCURRENCY="4",
        ADMIN_TOKEN=TOKEN,
        **mail_settings(mailjet),
    )
    mailjet.wait(len(ids), seconds=600)
    eventually(lambda: is_drained(server))
    assert Counter(mail["CustomID"] for mail in mailjet.mails) == Counter(ids)
