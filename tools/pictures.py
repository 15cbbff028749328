"""Take the README's pictures from examples/portfolio, in Chromium: make pictures.

A visitor writes to the example site, whose service runs for it alone and mails to a
stand-in; then its owner opens the desk. Only the counter's past and two other senders
are made up.
"""

from __future__ import annotations

import base64
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # run as a file

from tests.browser.conftest import Site
from tests.support.desk import TOKEN
from tests.support.server import mail_settings, serving
from tests.support.mailjet import StandIn

PICTURES = ROOT / "docs" / "pictures"
NARROW = {"width": 430, "height": 560}
WIDE = {"width": 900, "height": 1000}
VISITOR = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/149.0.0.0 Safari/537.36"
)
LETTERS = [
    ("Jonas Weber", "jonas@example.net", "Do you still have one of the Moss cups?"),
    (
        "Ada Moreau",
        "ada@example.com",
        "Good morning, I saw the bowl Dune in the window of the bookshop. Could you "
        "make a set of six, a little smaller, before the end of May?",
    ),
]
PAGES = {"/": 9, "/works": 4, "/about": 2}  # hits on a usual day


def show(
    browser: Browser, template: str, size: dict[str, int], **values: object
) -> Page:
    """Open a template of this folder."""
    pages = Environment(loader=FileSystemLoader(ROOT / "tools"), autoescape=True)
    page = browser.new_page(viewport=size, device_scale_factor=2)  # type: ignore[arg-type]
    page.set_content(pages.get_template(template).render(**values))
    return page


def write(page: Page, name: str, email: str, text: str) -> None:
    """Fill in the contact form."""
    form = page.get_by_role("region", name="Write to me")
    form.get_by_label("Your email").fill(email)
    form.get_by_label("Your name").fill(name)
    form.get_by_label("Message").fill(text)


def remember(database: Path) -> None:
    """Give the counter a past of a month, with its weekends."""
    today = datetime.now(UTC).date()
    with closing(sqlite3.connect(database)) as connection, connection:
        for page, usual in PAGES.items():
            total = seen = 0
            for ago in range(30, 0, -1):
                day = today - timedelta(ago)
                hits = usual * (3 if day.weekday() > 4 else 2) + (ago * 7) % 5
                visitors = hits * 2 // 3
                connection.execute(
                    "INSERT INTO hit (page, day, hits, visitors) VALUES (?, ?, ?, ?)",
                    (page, day.isoformat(), hits, visitors),
                )
                total, seen = total + hits, seen + visitors
            connection.execute("INSERT INTO page VALUES (?, ?, ?)", (page, total, seen))


def story(browser: Browser, site: Site, mailjet: StandIn) -> None:
    """Follow a message from the form to the inbox."""
    page = browser.new_page(
        viewport=NARROW,  # type: ignore[arg-type]
        device_scale_factor=2,
        user_agent=VISITOR,
        locale="en",
    )
    shots = []
    for n, letter in enumerate(LETTERS, 1):
        page.goto(site.url)
        write(page, *letter)
        page.locator("#contact").evaluate("e => e.scrollIntoView()")
        shots = [page.screenshot()]
        page.get_by_role("button", name="Send").click()
        page.get_by_role("heading", level=1, name="Thank you").wait_for()
        mailjet.wait(n)
    shots.append(page.screenshot())
    shots.append(
        show(browser, "inbox.html", NARROW, mail=mailjet.mails[-1]).screenshot()
    )
    captions = "Your visitor writes,", "is thanked,", "and you have mail."
    pictures = [
        (base64.b64encode(shot).decode(), caption)
        for shot, caption in zip(shots, captions, strict=True)
    ]
    whole = show(
        browser, "story.html", {"width": 1180, "height": 100}, pictures=pictures
    )
    save(whole, "story.png", scale="css")
    page.close()


def counter(browser: Browser, site: Site) -> None:
    """Show badge and chart where they stand in a page."""
    page = browser.new_page(
        viewport={"width": 860, "height": 900},
        user_agent=VISITOR,
        device_scale_factor=2,
    )
    page.goto(site.url, wait_until="networkidle")
    top = page.get_by_role("region", name="Visits").bounding_box()
    end = page.get_by_role("contentinfo").bounding_box()
    assert top
    assert end
    height = end["y"] + end["height"] - top["y"]
    clip = {"x": 0, "y": top["y"], "width": 860, "height": height + 20}
    page.screenshot(path=PICTURES / "counter.png", clip=clip, full_page=True)  # type: ignore[arg-type]
    page.close()


def desk(browser: Browser, url: str) -> None:
    """Show what the owner sees."""
    context = browser.new_context(
        viewport=WIDE,  # type: ignore[arg-type]
        http_credentials={"username": "", "password": TOKEN},
    )
    page = context.new_page()
    page.goto(f"{url}/desk", wait_until="networkidle")
    save(page, "desk.png", full_page=False)
    context.close()


def save(
    page: Page, name: str, *, full_page: bool = True, scale: str = "device"
) -> None:
    """Keep a screenshot."""
    page.screenshot(path=PICTURES / name, full_page=full_page, scale=scale)  # type: ignore[arg-type]


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
            ALLOWED_ORIGINS=site.url,
            SITE_NAME="Mara Lind",
            ACCENT_COLOR="#8a3b12",
            ADMIN_TOKEN=TOKEN,
            PUBLIC_URL="https://desk.example",
            LETTER="off",
            **mail_settings(mailjet)
            | {"MAIL_FROM": "Mara Lind <desk@maralind.example>"},
        ) as server,
        sync_playwright() as playwright,
    ):
        site.service = f"http://localhost:{server.port}"
        remember(Path(folder) / "frontdesk.db")
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        story(browser, site, mailjet)
        counter(browser, site)
        desk(browser, site.service)
        browser.close()
    for path in sorted(PICTURES.glob("*.png")):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
