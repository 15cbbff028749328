"""Take the README's pictures from examples/portfolio, in Chromium: make pictures.

Visitors write to the example site, whose service runs for it alone and mails to a
stand-in; then its owner opens the desk. Only the counter's past is made up.
"""

from __future__ import annotations

import base64
import re
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests
from jinja2 import Environment, FileSystemLoader
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # run as a file

from tests.browser.conftest import Site
from tests.support.desk import TOKEN
from tests.support.mailjet import StandIn
from tests.support.server import mail_settings, serving

PICTURES = ROOT / "docs" / "pictures"
HOME, DESK = "http://maralind.example", "https://desk.maralind.example"
VISITOR = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/149.0.0.0 Safari/537.36"
)
ADDRESS = {"X-Visitor": "203.0.113.24"}  # in place of 127.0.0.1
LETTERS = [
    (
        "Grow Faster",
        "sales@growfaster.example",
        "Hi maralind.example Owner, we offer a guest post: more website traffic, first "
        "page of Google guaranteed. Reply STOP to opt out.",
    ),
    (
        "Ada Moreau",
        "ada@example.com",
        "Good morning, I saw the bowl Dune in the window of the bookshop. Could you "
        "make a set of six, a little smaller, before the end of May?",
    ),
]
SIGN_UPS = ("jonas@example.net", "ines@example.org", "ada@example.com")
PAGES = {"/": 9, "/works": 4, "/about": 2}  # hits on a usual day


def show(browser: Browser, template: str, width: int, **values: object) -> Page:
    """Open a template of this folder."""
    folder = Environment(loader=FileSystemLoader(ROOT / "tools"), autoescape=True)
    page = browser.new_page(
        viewport={"width": width, "height": 100}, device_scale_factor=2
    )
    page.set_content(folder.get_template(template).render(**values))
    return page


def side_by_side(
    browser: Browser, name: str, *columns: list[tuple[bytes, str]]
) -> None:
    """Keep screenshots with their captions as one picture."""
    encoded = [
        [(base64.b64encode(shot).decode(), caption) for shot, caption in column]
        for column in columns
    ]
    page = show(browser, "story.html", 1180, columns=encoded)
    page.screenshot(path=PICTURES / name, full_page=True, scale="css")


def remember(database: Path) -> None:
    """Give the counter a past of a month, with its weekends."""
    today = datetime.now(UTC).date()
    with closing(sqlite3.connect(database)) as connection, connection:
        for page, usual in PAGES.items():
            days = []
            for ago in range(30, 0, -1):
                day = today - timedelta(ago)
                hits = usual * (3 if day.weekday() > 4 else 2) + (ago * 7) % 5
                days.append((page, day.isoformat(), hits, hits * 2 // 3))
            connection.executemany(
                "INSERT INTO hit (page, day, hits, visitors) VALUES (?, ?, ?, ?)", days
            )
            sums = [sum(day[column] for day in days) for column in (2, 3)]
            connection.execute("INSERT INTO page VALUES (?, ?, ?)", (page, *sums))
        connection.execute(
            "INSERT INTO hit (page, day, hits, visitors) "
            "SELECT '*', day, sum(hits), sum(visitors) FROM hit GROUP BY day"
        )


def sign_up(url: str, mailjet: StandIn) -> None:
    """Put people on the list; the last one has yet to confirm."""
    headers = {
        **ADDRESS,
        "Origin": HOME,
        "User-Agent": VISITOR,
        "Accept-Language": "en",
    }
    for email in SIGN_UPS:
        before = len(mailjet.requests)
        requests.post(f"{url}/newsletter", {"email": email}, headers=headers)
        text = mailjet.wait(before + 1)[-1].message["TextPart"]
        link = re.search(rf"{DESK}(/newsletter/confirm/\S+)", text)
        if link and email != SIGN_UPS[-1]:
            requests.post(url + link[1], headers=headers)


def write(page: Page, name: str, email: str, text: str) -> None:
    """Fill in the contact form."""
    form = page.get_by_role("region", name="Write to me")
    form.get_by_label("Your email").fill(email)
    form.get_by_label("Your name").fill(name)
    form.get_by_label("Message").fill(text)


def story(page: Page, browser: Browser, mailjet: StandIn) -> None:
    """Follow a message from the form to the inbox."""
    page.set_viewport_size({"width": 800, "height": 1130})
    page.goto(HOME)
    write(page, *LETTERS[-1])
    page.evaluate("document.activeElement.blur()")
    form = page.screenshot()
    before = len(mailjet.requests)
    page.get_by_role("button", name="Send").click()
    page.get_by_role("heading", level=1, name="Thank you").wait_for()
    page.set_viewport_size({"width": 560, "height": 215})
    thanks = page.screenshot()
    mail = mailjet.wait(before + 1)[-1].message
    inbox = show(browser, "inbox.html", 560, mail=mail).screenshot(full_page=True)
    side_by_side(
        browser,
        "story.png",
        [(form, "Your visitor writes,")],
        [(thanks, "is thanked,"), (inbox, "and you have mail.")],
    )


def counter(page: Page) -> None:
    """Show badge and chart where they stand in a page."""
    page.set_viewport_size({"width": 860, "height": 900})
    page.goto(HOME, wait_until="networkidle")
    top = page.get_by_role("region", name="Visits").bounding_box()
    end = page.get_by_role("contentinfo").bounding_box()
    assert top
    assert end
    height = end["y"] + end["height"] - top["y"]
    page.screenshot(
        path=PICTURES / "counter.png",
        clip={"x": 0, "y": top["y"] + 1, "width": 860, "height": height + 20},
        full_page=True,
        scale="css",
    )


def desk(page: Page, browser: Browser, url: str) -> None:
    """Show what the owner sees."""
    page.set_viewport_size({"width": 760, "height": 1000})
    page.goto(f"{url}/desk", wait_until="networkidle")
    section = page.locator("section", has=page.locator("#subscribers")).bounding_box()
    main = page.get_by_role("main").bounding_box()
    assert section
    assert main
    middle, end = section["y"], main["y"] + main["height"] + 30
    parts = [
        page.screenshot(
            clip={"x": 0, "y": top, "width": 760, "height": bottom - top},
            full_page=True,
        )
        for top, bottom in ((0, middle), (middle, end))
    ]
    captions = (
        "What people wrote, and what was held as spam",
        "Who signed up, what is read",
    )
    columns = [[part] for part in zip(parts, captions, strict=True)]
    side_by_side(browser, "desk.png", *columns)


def visit(browser: Browser, **options: Any) -> Page:
    """Open an empty tab."""
    return browser.new_context(
        device_scale_factor=2, user_agent=VISITOR, locale="en", **options
    ).new_page()


def main() -> None:
    """Take all pictures."""
    PICTURES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with (
        tempfile.TemporaryDirectory() as folder,
        StandIn() as mailjet,
        Site() as site,
        serving(
            Path(folder),
            **mail_settings(mailjet)
            | {
                "MAIL_FROM": "Mara Lind <desk@maralind.example>",
                "ALLOWED_ORIGINS": HOME,
                "SITE_NAME": "Mara Lind",
                "ACCENT_COLOR": "#8a3b12",
                "ADMIN_TOKEN": TOKEN,
                "PUBLIC_URL": DESK,
                "CLIENT_IP_HEADER": "X-Visitor",
                "LETTER": "off",
            },
        ) as server,
        sync_playwright() as playwright,
    ):
        site.service = f"http://localhost:{server.port}"
        remember(Path(folder) / "frontdesk.db")
        sign_up(site.service, mailjet)
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                f"--host-resolver-rules=MAP maralind.example 127.0.0.1:{site.port}",
            ],
        )
        for letter in LETTERS[:-1]:
            page = visit(browser, extra_http_headers=ADDRESS)
            page.goto(HOME)
            write(page, *letter)
            page.locator("input[name=_gotcha]").first.evaluate("e => e.value = 'x'")
            page.get_by_role("button", name="Send").click()
            page.get_by_role("heading", level=1, name="Thank you").wait_for()
        page = visit(browser, extra_http_headers=ADDRESS)
        story(page, browser, mailjet)
        counter(page)
        owner = {"username": "", "password": TOKEN}
        desk(visit(browser, http_credentials=owner), browser, site.service)
        browser.close()
    for path in sorted(PICTURES.glob("*.png")):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
