"""The owner's page in Chromium: its password, its buttons, its looks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests
from playwright.sync_api import expect

from tests.browser.conftest import Audit, Desk, Tab

TOKEN = "the owner's own token"
OWNER = {"username": "me", "password": TOKEN}
HELD = {"email": "bob@example.com", "message": "Buy now", "_gotcha": "x"}
OPEN = {
    "email": "ada@example.com",
    "name": "Ada",
    "message": "Hello there",
    "pet": "cat",
}


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    """A service that has something to show."""
    desk = open_desk(ADMIN_TOKEN=TOKEN)
    for form in (OPEN, HELD):
        assert requests.post(f"{desk.url}/contact", json=form).status_code == 200
    requests.post(f"{desk.url}/newsletter", json={"email": "cyd@example.com"})
    requests.post(f"{desk.url}/hits", json={"page": "/about"})
    return desk


def test_the_page_asks_for_the_token_as_a_password(
    desk: Desk, open_tab: Callable[..., Tab]
) -> None:
    stranger = open_tab(http_credentials={"username": "", "password": "guessed it?"})
    assert stranger.page.goto(f"{desk.url}/desk").status == 401
    owner = open_tab(http_credentials=OWNER)
    assert owner.page.goto(f"{desk.url}/desk").status == 200
    expect(owner.page.get_by_role("heading", name="Your desk")).to_be_visible()


def test_it_works_without_scripts_and_by_keyboard(
    desk: Desk, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(http_credentials=OWNER, java_script_enabled=False)
    tab.page.goto(f"{desk.url}/desk")
    deliver = tab.page.get_by_role("button", name="Deliver")
    expect(deliver).to_have_count(1)
    deliver.focus()
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url(f"{desk.url}/desk")
    expect(tab.page.get_by_role("button", name="Deliver")).to_have_count(0)
    mails = desk.mailjet.wait_for_mails(3)
    assert "Email: bob@example.com" in {m["TextPart"].split("\n")[0] for m in mails}


def test_it_is_readable_and_accessible_in_every_look(
    desk: Desk, open_tab: Callable[..., Tab], audit: Audit
) -> None:
    page = open_tab(http_credentials=OWNER).page
    for path in ("desk", "doctor"):
        page.goto(f"{desk.url}/{path}")
        audit(page, path)
    assert audit.findings == []
