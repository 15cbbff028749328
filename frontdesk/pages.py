"""Pages and the words of mails: templates in one site's language and look."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime, tzinfo
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from frontdesk.colours import look
from frontdesk.languages import Language

if TYPE_CHECKING:
    from jinja2 import Environment

log = logging.getLogger("frontdesk")

TEMPLATES = Path(__file__).with_name("templates")
ORIGIN = re.compile(r"https?://[^\s;,'\"/?#]+")
STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
BELL = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" fill="{}">'
    '<path d="M15 8V6h-3V3h8v3h-3v2a12 12 0 0 1 12 12v2H3v-2A12 12 0 0 1 15 8z"/>'
    '<rect x="1" y="24" width="30" height="5" rx="2"/></svg>'
)


def environment(folders: Sequence[Path]) -> Environment:
    """Make Jinja's environment; the first folder that has a template wins.

    Jinja takes 39 ms to import, so that it is loaded with the first page or mail.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    made = Environment(
        loader=FileSystemLoader(folders),
        autoescape=select_autoescape(("html", "svg"), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        extensions=["jinja2.ext.i18n"],
    )
    made.filters["oneline"] = lambda text: " ".join(str(text).split())
    made.filters |= {"number": str, "moment": str}  # Pages' own take their place
    return made


def check_templates(folder: Path) -> None:
    """Compile each file of the owner's folder that could be a template of ours.

    Raises ValueError, which names the file and line.
    """
    from jinja2 import TemplateSyntaxError

    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"cannot read the folder {folder}: {error.strerror}") from None
    compiler = environment([folder])
    for path in paths:
        if path.suffix not in (".html", ".svg", ".txt"):
            continue
        try:
            compiler.compile(path.read_text("utf-8"), path.name)
        except TemplateSyntaxError as error:
            what = " ".join((error.message or "").split())
            where = f"{path.name}, line {error.lineno}"
            raise ValueError(f"{where}: {what}") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path.name} cannot be read: {error}") from None


@dataclass(eq=False)
class Pages:
    """Renders templates; nothing is loaded before the first one."""

    code: str = "en"
    _: KW_ONLY
    site_name: str
    root: str = ""
    folder: Path | None = None
    accent_color: str | None = None
    logo_url: str | None = None
    zone: tzinfo = UTC

    @cached_property
    def language(self) -> Language:
        """The language of all pages and mails."""
        return Language(self.code)

    @cached_property
    def _ours(self) -> Environment:
        return self._environment([TEMPLATES])

    @cached_property
    def _owners(self) -> Environment:
        if self.folder is None:
            return self._ours
        return self._environment([self.folder, TEMPLATES])

    def _environment(self, folders: Sequence[Path]) -> Environment:
        made = environment(folders)
        made.install_gettext_translations(  # type: ignore[attr-defined]
            self.language.catalog, newstyle=True
        )
        made.filters |= {"number": self.language.number, "moment": self.moment}
        shades = look(self.accent_color)
        made.globals |= {
            "lang": self.language.code,
            "site_name": self.site_name,
            "root": self.root,
            "look": shades,
            "logo_url": self.logo_url,
            "favicon": f"data:image/svg+xml,{quote(BELL.format(shades.light.accent))}",
        }
        return made

    def render(self, template: str, **values: object) -> str:
        """Fill in a template; raise UndefinedError if a value it needs is missing.

        A template of the owner's that fails is logged, and ours takes its place: it
        must not cost a visitor the page, or a subscriber the mail.
        """
        try:
            return self._owners.get_template(template).render(values)
        except Exception as error:
            if self.folder is None:
                raise
            log.error("TEMPLATE_DIR: %s: %s", template, type(error).__name__)
            return self._ours.get_template(template).render(values)

    def moment(self, time: float) -> str:
        """Write a time, in seconds since the epoch, in the site's zone."""
        return self.language.time(datetime.fromtimestamp(time, self.zone))

    def policy(self, page: str, *form_targets: str) -> str:
        """Return the Content-Security-Policy of a page.

        Its own style and the logo's origin are allowed, and where its form may lead.
        """
        styles = " ".join(map(_source, STYLE.findall(page))) or "'none'"
        images = ["'self'", "data:"]
        if self.logo_url:
            images.append(f"https://{urlsplit(self.logo_url).netloc}")
        # Browsers hold redirects after a submit to form-action too. A target that could
        # end the directive (or is no origin at all) is left out.
        targets = " ".join(["'self'", *filter(ORIGIN.fullmatch, form_targets)])
        return (
            f"default-src 'none'; style-src {styles}; img-src {' '.join(images)}; "
            f"form-action {targets}; base-uri 'none'; frame-ancestors 'none'"
        )


@lru_cache(16)
def _source(style: str) -> str:
    """Hash an inline style as CSP wants it named."""
    digest = hashlib.sha256(style.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
