"""Chromium, the owner's site on another origin, and what npm has for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.support.mailjet import LocalServer, StandIn
from tests.support.server import ROOT, Server, mail_settings

HERE = Path(__file__).parent
EXAMPLE = ROOT / "examples" / "portfolio"
SECRET = "a-secret-of-the-browser-tests-only"
VISITOR = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/149.0.0.0 Safari/537.36"
)
LOOKS = [
    (width, scheme) for width in (360, 1280) for scheme in ("light", "dark")
]  # of every page, in px and prefers-color-scheme


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """A headless Chromium that talks to nobody but us."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            ignore_default_args=["--disable-back-forward-cache"],
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                # A visitor's browser does not say that it is headless or automated.
                f"--user-agent={VISITOR}",
                "--disable-blink-features=AutomationControlled",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def modules() -> Path:
    """The folder with the npm packages of package.json, installed at first use."""
    folder = HERE / "node_modules"
    if not (folder / "axe-core").is_dir():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed")
        command = [npm, "install", "--no-package-lock", "--ignore-scripts", "--silent"]
        if subprocess.run(command, cwd=HERE, timeout=120).returncode:
            pytest.skip("npm cannot reach its registry")
    return folder


class Site(LocalServer):
    """The owner's static site: files by path, the example's where none is given."""

    def __init__(self) -> None:
        self.files: dict[str, str | bytes] = {"/favicon.ico": b""}
        self.service = ""  # the address that stands for the example's localhost:8000
        self.seen: list[str] = []  # the paths that were asked for
        self._came = threading.Condition()
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                with site._came:
                    site.seen.append(path)
                    site._came.notify_all()
                content = site.files.get(path)
                if content is None:
                    name = path.strip("/") or "index.html"
                    file = EXAMPLE / name
                    if not file.is_file():
                        self.send_error(404)
                        return
                    content = file.read_text("utf-8")
                if isinstance(content, str):
                    content = content.replace("http://localhost:8000", site.service)
                    content = content.encode()
                self.send_response(200)
                kind = self.guess_type(path) if Path(path).suffix else "text/html"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(Handler)
        # Another host than the service's "localhost": cross-site, as in real life.
        self.url = f"http://127.0.0.1:{self.port}"

    def wait_for(self, path: str, seconds: float = 20) -> None:
        """Return once a path was asked for (the bound only ends a failing test)."""
        with self._came:
            assert self._came.wait_for(lambda: path in self.seen, seconds), self.seen


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@dataclass
class Desk:
    """The running service, as the visitors' browsers see it."""

    server: Server
    url: str
    mailjet: StandIn


@pytest.fixture
def open_desk(
    serve: Callable[..., Server], mailjet: StandIn, site: Site
) -> Callable[..., Desk]:
    """Start the service for the site; settings as keyword arguments."""

    def open_desk(**environ: str) -> Desk:
        defaults = {
            "ALLOWED_ORIGINS": site.url,
            "SITE_NAME": "Mara Lind",
            "SECRET_KEY": SECRET,
            "CONTACT_LIMIT": "1000/minute",
            "NEWSLETTER_LIMIT": "1000/minute",
            "HITS_LIMIT": "1000/minute",
        }
        server = serve(**{**defaults, **mail_settings(mailjet), **environ})
        site.service = f"http://localhost:{server.port}"
        return Desk(server, site.service, mailjet)

    return open_desk


@dataclass
class Tab:
    """A browser's tab, and what its console said."""

    page: Page
    console: list[str] = field(default_factory=list)

    @property
    def complaints(self) -> list[str]:
        """The console, without Chromium's note of each 4xx that a script got."""
        note = "Failed to load resource: the server responded with a status of 4"
        return [text for text in self.console if not text.startswith(note)]


@pytest.fixture
def open_tab(chromium: Browser) -> Iterator[Callable[..., Tab]]:
    """Open tabs with an empty profile each; Playwright's context options."""
    contexts: list[BrowserContext] = []

    def open_tab(**options: Any) -> Tab:
        context = chromium.new_context(**options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        tab = Tab(context.new_page())
        tab.page.on(
            "console",
            lambda message: (
                tab.console.append(message.text)
                if message.type in ("error", "warning")
                else None
            ),
        )
        tab.page.on("pageerror", lambda error: tab.console.append(str(error)))
        return tab

    yield open_tab
    for context in contexts:
        context.close()


class Audit:
    """Looks at a page in every look, with axe and for what sticks out."""

    def __init__(self, axe: str) -> None:
        self._axe = axe
        self._folder = os.environ.get("FRONTDESK_SHOTS")  # to look at by eye
        self.findings: list[str] = []

    def __call__(self, page: Page, name: str) -> None:
        """Note what is wrong with the page that is open."""
        for width, scheme in LOOKS:
            look = f"{name} at {width} px, {scheme}"
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            page.evaluate(self._axe)
            result = page.evaluate("axe.run()")
            self.findings += [
                f"{look}: {violation['id']} {node['html']}"
                for violation in result["violations"]
                for node in violation["nodes"]
            ]
            root = "document.documentElement"
            if page.evaluate(f"{root}.scrollWidth > {root}.clientWidth"):
                self.findings.append(f"{look}: wider than the window")
            if self._folder:
                file = f"{name.replace(' ', '-')}-{width}-{scheme}.png"
                page.screenshot(path=Path(self._folder) / file, full_page=True)


@pytest.fixture
def audit(modules: Path) -> Audit:
    return Audit((modules / "axe-core" / "axe.min.js").read_text("utf-8"))
