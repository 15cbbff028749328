"""People without scripts: every way through the forms, in Chromium, and each page."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from frontdesk.links import Links
from frontdesk.pages import Pages
from tests.browser.conftest import EXAMPLE, SECRET, Audit, Desk, Site, Tab
from tests.support.samples import PAGES

OpenDesk = Callable[..., Desk]
OpenTab = Callable[..., Tab]

NEXT = '<input type="hidden" name="_next" value="/thanks.html">'
DOUBTFUL = "We offer a guest post: more website traffic, more visitors to your site."
ASKED_TOO_SOON = {**PAGES["ask.html"], "too_soon": True}
EIGHT_DAYS = 8 * 86400


def without_next(site: Site) -> None:
    """Serve the example as someone writes it who has no page of thanks."""
    page = (EXAMPLE / "index.html").read_text("utf-8")
    assert NEXT in page
    site.files["/"] = page.replace(NEXT, "")


def write(page: Page, email: str = "ada@example.com", message: str = "Hello") -> None:
    form = page.get_by_role("region", name="Write to me")
    form.get_by_label("Your email").fill(email)
    form.get_by_label("Your name").fill("Ada")
    form.get_by_label("Message").fill(message)
    form.get_by_role("button", name="Send").click()


def sign_up(page: Page, email: str = "ada@example.com") -> None:
    form = page.get_by_role("region", name="Studio news")
    form.get_by_label("Your email").fill(email)
    form.get_by_role("button", name="Sign up").click()


def heading(page: Page, text: str) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text(text)


def alert(page: Page, text: str) -> None:
    expect(page.get_by_role("alert")).to_contain_text(text)


def links_of(mail: dict[str, Any]) -> dict[str, str]:
    """Return the links of a confirmation mail by purpose."""
    urls = re.findall(r"http\S+/newsletter/(\S+)/\S+", mail["TextPart"])
    texts = re.findall(r"http\S+", mail["TextPart"])
    return dict(zip(urls, texts, strict=True))


@pytest.fixture
def tab(open_tab: OpenTab) -> Tab:
    return open_tab(java_script_enabled=False)


def test_a_plain_form_lands_where_it_asks(
    site: Site, open_desk: OpenDesk, tab: Tab
) -> None:
    desk = open_desk()
    tab.page.goto(site.url)
    write(tab.page)
    expect(tab.page).to_have_url(f"{site.url}/thanks.html")
    assert "Hello" in desk.mailjet.wait(1)[0].message["TextPart"]


def test_an_error_page_keeps_the_text_and_leads_on(
    site: Site, open_desk: OpenDesk, tab: Tab
) -> None:
    desk = open_desk()
    without_next(site)
    tab.page.goto(site.url)
    text = 'First line\nsecond "line" <b>& more</b>  '
    write(tab.page, email="ada@example", message=text)
    heading(tab.page, "Almost there")
    email = tab.page.get_by_label("Email")
    expect(email).to_be_focused()
    expect(email).to_have_value("ada@example")
    expect(email).to_have_attribute("aria-invalid", "true")
    expect(tab.page.get_by_label("Name")).to_have_value("Ada")
    expect(tab.page.get_by_label("Message")).to_have_value(text.strip())
    assert desk.mailjet.requests == []

    email.fill("ada@example.com")
    tab.page.get_by_role("button", name="Send").click()
    heading(tab.page, "Thank you")
    mail = desk.mailjet.wait(1)[0].message
    assert text.strip() in mail["TextPart"]
    assert f"Page: {site.url}/" in mail["TextPart"]

    tab.page.get_by_role("link", name="Back to Mara Lind").click()
    expect(tab.page).to_have_url(f"{site.url}/")
    assert tab.complaints == []


@pytest.mark.parametrize("origins", ["{site}", "https://first.example,{site}", "*"])
def test_a_corrected_form_lands_where_it_asked_at_first(
    origins: str, site: Site, open_desk: OpenDesk, tab: Tab
) -> None:
    open_desk(ALLOWED_ORIGINS=origins.format(site=site.url))
    tab.page.goto(site.url)
    write(tab.page, email="ada@example")
    for wrong in ("ada@example", "ada@@example.com"):
        # Chromium's own check would hold this one back.
        tab.page.locator("form").evaluate("form => form.noValidate = true")
        tab.page.get_by_label("Email").fill(wrong)
        tab.page.get_by_role("button", name="Send").click()
        heading(tab.page, "Almost there")
    tab.page.get_by_label("Email").fill("ada@example.com")
    tab.page.get_by_role("button", name="Send").click()
    expect(tab.page).to_have_url(f"{site.url}/thanks.html")
    assert tab.complaints == []


def test_a_doubtful_form_is_asked_once_and_lands_where_it_asked(
    site: Site, open_desk: OpenDesk, tab: Tab
) -> None:
    desk = open_desk()
    tab.page.goto(site.url)
    write(tab.page, message=DOUBTFUL)
    heading(tab.page, "Are you a person?")
    expect(tab.page.get_by_text(DOUBTFUL)).to_be_visible()
    tab.page.wait_for_timeout(2100)  # the server's clock: a person takes that long
    assert desk.mailjet.requests == []
    tab.page.get_by_role("button", name="Yes, send it").click()
    expect(tab.page).to_have_url(f"{site.url}/thanks.html")
    mail = desk.mailjet.wait(1)[0].message
    assert DOUBTFUL in mail["TextPart"]
    assert "[maybe spam]" not in mail["Subject"]
    assert tab.complaints == []


def test_a_form_of_somebody_else_is_refused_with_a_page(
    site: Site, open_desk: OpenDesk, tab: Tab
) -> None:
    desk = open_desk(ALLOWED_ORIGINS="https://owner.example")
    tab.page.goto(site.url)
    write(tab.page)
    host = site.url.removeprefix("http://")
    alert(
        tab.page,
        f"{host} is not allowed here: the owner can add it to ALLOWED_ORIGINS.",
    )
    assert desk.mailjet.requests == []


def test_a_form_over_the_limit_gets_a_page(
    site: Site, open_desk: OpenDesk, tab: Tab
) -> None:
    open_desk(CONTACT_LIMIT="1/hour")
    for _ in range(2):
        tab.page.goto(site.url)
        write(tab.page)
    alert(tab.page, "Too many requests, please try again in 3,")
    tab.page.get_by_role("link", name="Back to Mara Lind").click()
    expect(tab.page).to_have_url(f"{site.url}/")


def test_newsletter_from_the_form_to_leaving(
    site: Site, open_desk: OpenDesk, tab: Tab
) -> None:
    desk = open_desk()
    tab.page.goto(site.url)
    sign_up(tab.page)
    heading(tab.page, "One more step")
    links = links_of(desk.mailjet.wait(1)[0].message)

    tab.page.goto(links["confirm"])
    heading(tab.page, "One more press")
    tab.page.get_by_role("button", name="Yes, sign me up").click()
    heading(tab.page, "You are signed up")
    tab.page.goto(links["confirm"])
    heading(tab.page, "You are signed up already")
    tab.page.get_by_role("link", name="Back to Mara Lind").click()
    expect(tab.page).to_have_url(f"{site.url}/")

    tab.page.goto(links["unsubscribe"])
    heading(tab.page, "Leave the newsletter?")
    tab.page.get_by_role("button", name="Unsubscribe").click()
    heading(tab.page, "You have left the newsletter")
    tab.page.goto(links["confirm"])
    tab.page.get_by_role("button").click()
    heading(tab.page, "This link does not work")
    assert tab.complaints == []


def test_every_page_is_accessible_in_every_look(
    site: Site, open_desk: OpenDesk, open_tab: OpenTab, audit: Audit
) -> None:
    # axe needs scripts; what is clicked is the same.
    desk = open_desk(ADMIN_TOKEN="the owner's own token")
    page = open_tab().page
    held = f"{DOUBTFUL} Cheap viagra, casino bonus! http://x.top http://y.top"

    def post(url: str, **form: str) -> str:
        answer = page.request.post(url, form=form, headers={"Accept": "text/html"})
        return answer.text()

    page.goto(f"{site.url}/index-formspree.html")
    audit(page, "example formspree")
    page.goto(f"{site.url}/thanks.html")
    audit(page, "example thanks")
    page.goto(site.url)
    audit(page, "example")
    write(page, email="ada@example", message="Hello\n" + "long" * 100)
    audit(page, "error with form")
    page.goto(site.url)
    write(page, message=DOUBTFUL)
    audit(page, "ask")
    page.set_content(Pages(site_name="Mara Lind").render("ask.html", **ASKED_TOO_SOON))
    audit(page, "ask, too soon")
    page.goto(site.url)
    sign_up(page)
    audit(page, "signup thanks")
    links = links_of(desk.mailjet.wait(1)[0].message)
    for path, name in (("/", "welcome"), ("/thanks", "thanks"), ("/no", "nothing")):
        page.goto(desk.url + path)
        audit(page, name)
    page.goto(links["not-me"])
    audit(page, "not me")
    page.goto(f"{links['not-me']}x")
    audit(page, "dead link")
    page.goto(links["confirm"])
    audit(page, "confirm")
    page.get_by_role("button").click()
    audit(page, "confirmed")
    page.goto(links["confirm"])
    audit(page, "confirmed already")
    page.goto(links["unsubscribe"])
    audit(page, "unsubscribe")
    page.get_by_role("button").click()
    audit(page, "left")
    page.goto(links["not-me"])
    page.get_by_role("button").click()
    audit(page, "not me done")
    now = Links((SECRET,), desk.url, time.time)
    payload, _ = now.read("confirm", links["confirm"].rpartition("/")[2])
    past = Links((SECRET,), desk.url, lambda: time.time() - EIGHT_DAYS)
    page.goto(past.url("confirm", payload))
    audit(page, "expired")
    page.get_by_role("button").click()
    audit(page, "renewed")
    post(f"{desk.url}/contact", email="a@example.com", message=held, _gotcha="x")
    token = {"Authorization": "Bearer the owner's own token"}
    export = page.request.get(f"{desk.url}/export/messages.json", headers=token)
    (message,) = [m for m in export.json() if m["held"]]
    page.goto(now.url("release", message["id"]))
    audit(page, "held")
    page.get_by_role("button").click()
    audit(page, "delivered")
    assert audit.findings == []


def test_the_confirmation_mail_is_accessible_in_every_look(
    site: Site, open_desk: OpenDesk, open_tab: OpenTab, audit: Audit
) -> None:
    desk, page = open_desk(), open_tab().page
    page.request.post(f"{desk.url}/newsletter", data={"email": "ada@example.com"})
    mail = desk.mailjet.wait(1)[0].message
    assert "Mara Lind" in mail["Subject"]
    html = mail["HTMLPart"]
    assert "<table" not in html
    assert "<img" not in html
    page.set_content(html)
    audit(page, "mail")
    page.set_viewport_size({"width": 1280, "height": 800})
    assert page.locator("main").bounding_box()["width"] <= 600
    assert audit.findings == []


def test_a_corrected_form_lands_on_thanks_url(
    site: Site, open_desk: OpenDesk, tab: Tab
) -> None:
    # Chromium holds redirects after a submit to form-action, too.
    open_desk(THANKS_URL=f"{site.url}/thanks.html")
    without_next(site)
    tab.page.goto(site.url)
    write(tab.page, email="ada@example")
    tab.page.get_by_label("Email").fill("ada@example.com")
    tab.page.get_by_role("button", name="Send").click()
    expect(tab.page).to_have_url(f"{site.url}/thanks.html")
    assert tab.complaints == []
