"""The whole service as the Procfile starts it."""

from __future__ import annotations

from collections.abc import Callable

import requests

from tests.support.mailjet import StandIn
from tests.support.server import Server, mail_settings


def test_a_message_travels_from_a_form_to_the_owner(
    serve: Callable[..., Server], mailjet: StandIn
) -> None:
    server = serve(**mail_settings(mailjet))
    form = {"email": "ada@example.com", "name": "Ada", "message": "Hello there"}
    answer = requests.post(f"{server.url}/contact", data=form)
    assert answer.status_code == 200
    mail = mailjet.wait(1)[0].message
    assert mail["CustomID"] == answer.json()["id"]
    assert mail["ReplyTo"] == {"Email": "ada@example.com", "Name": "Ada"}
    assert "Hello there" in mail["TextPart"]
