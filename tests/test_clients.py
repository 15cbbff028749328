"""The scripts of form services, as they send a form and as they read the answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.desk import Desk

SITE = "https://site.example"
FORM = {"name": "Ada Lovelace", "email": "ada@example.com", "message": "Hello there"}
URLENCODED = {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}
FETCH = {"Accept": "*/*", "Sec-Fetch-Mode": "cors", "Origin": SITE}


def formspree_core(answer: Any) -> bool:
    """@formspree/core 4 submitForm(), which @formspree/react is made of."""
    body = answer.json
    if "errors" in body:
        assert all(isinstance(error["message"], str) for error in body["errors"])
        return False
    assert "error" not in body and isinstance(body["next"], str)
    return True


def web3forms(answer: Any) -> bool:
    assert isinstance(answer.json["message"], str)
    return answer.status_code == 200 and answer.json["success"] is True


def formsubmit(answer: Any) -> bool:
    return answer.json["success"] == "true"


def formcarry(answer: Any) -> bool:
    body = answer.json
    assert (body.get("code") == 200) is (body.get("status") == "success")
    return body.get("code") == 200


def jquery(answer: Any) -> bool:
    """$.ajax({dataType: "json"}): a 2xx that is no JSON is an error as well."""
    if 200 <= answer.status_code < 300:
        json.loads(answer.text)
        return True
    return False


def only_the_status(answer: Any) -> bool:
    return answer.status_code == 200


SESSION = base64.b64encode(b'{"loadedAt": 1699999000000, "webdriver": false}').decode()
FORMSPREE = {
    "Accept": "application/json",
    "Formspree-Client": "@formspree/react@3.0.0 @formspree/core@4.0.0",
    "Formspree-Session-Data": SESSION,
    "Sec-Fetch-Mode": "cors",
    "Origin": SITE,
}
JSON_TYPE = {"Content-Type": "application/json"}
JQUERY = {"Accept": "application/json, text/javascript, */*; q=0.01"}

Client = tuple[str, dict[str, str], dict[str, Any], Callable[[Any], bool]]
CLIENTS: dict[str, Client] = {
    "@formspree/react": ("/f/xyzabcde", FORMSPREE | JSON_TYPE, {}, formspree_core),
    "@formspree/react, project": ("/p/123/f/contact", FORMSPREE, {}, formspree_core),
    "formspree's snippet": (
        "/f/xyz",
        FETCH | {"Accept": "application/json"},
        {},
        only_the_status,
    ),
    "web3forms": (
        "/submit",
        FETCH | JSON_TYPE,
        {"access_key": "k", "from_name": "Site", "botcheck": False, "subject": "New"},
        web3forms,
    ),
    "formsubmit, ajax": (
        "/ajax/owner@site.example",
        FETCH | JSON_TYPE | {"Accept": "application/json"},
        {"_captcha": "false", "_template": "table", "_subject": "New", "_honey": ""},
        formsubmit,
    ),
    "formcarry": (
        "/s/Ab12",
        FETCH | JSON_TYPE | {"Accept": "application/json"},
        {},
        formcarry,
    ),
    "jquery": ("/f/xyz", FETCH | JQUERY, {"_gotcha": ""}, jquery),
}


def post(desk: Desk, path: str, headers: dict[str, str], form: dict[str, Any]) -> Any:
    as_json = headers.get("Content-Type") == "application/json"
    body = json.dumps(form) if as_json else urlencode(form)
    return desk.client.simulate_post(path, body=body, headers=URLENCODED | headers)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_takes_a_success_for_one_and_an_error_for_one(
    desk: Desk, client: str
) -> None:
    path, headers, more, succeeded = CLIENTS[client]
    assert succeeded(post(desk, path, headers, FORM | more))
    (message,) = desk.messages()
    assert message["email"] == FORM["email"] and not message["held"]
    assert message["fields"] == {}
    assert not succeeded(post(desk, path, headers, FORM | {"email": "ada@"} | more))
    (mail,) = desk.drain()
    assert "[maybe spam]" not in mail["Subject"]


def test_a_hidden_iframe_is_sent_on_like_any_page(desk: Desk) -> None:
    headers = {
        "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "iframe",
        "Origin": SITE,
    }
    answer = post(desk, "/owner@site.example", headers, FORM | {"_next": "/thanks"})
    assert answer.status_code == 303
    assert answer.headers["Location"] == f"{SITE}/thanks"
