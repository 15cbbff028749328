"""What visitors and the owner read, in the site's language.

Sentences are GNU gettext catalogs in locales/, read by the standard library. How a
language writes numbers and dates is beside them in formats.json, which
tools/formats.py takes from Unicode's CLDR.
"""

from __future__ import annotations

import gettext
import json
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).with_name("locales")
DOMAIN = "frontdesk"
CODES = (
    *("en", "es", "pt", "fr", "de", "it", "nl", "pl", "cs"),
    *("ro", "ru", "uk", "da", "sv", "id", "vi", "ja", "ko"),
)


def marked(message: str) -> str:
    """Mark a sentence for the catalogs; it is translated where it is answered.

    Placeholders are %(name)s, in Python as in the templates.
    """
    return message


def language_code(text: str) -> str:
    """Return a language tag as HTML writes it: pt-BR for pt_br.

    Raises ValueError, which lists the languages, if there is no catalog for it.
    """
    language, _, rest = text.replace("_", "-").partition("-")
    if language.lower() not in CODES or not re.fullmatch(r"[A-Za-z0-9-]{0,30}", rest):
        raise ValueError(f"must be one of {' '.join(CODES)}, such as pt or pt-BR")
    parts = [p.upper() if len(p) == 2 else p.title() for p in rest.split("-") if p]
    return "-".join([language.lower(), *parts])


class Language:
    """One language's catalog, read when its first sentence is needed."""

    def __init__(self, code: str = "en", folder: Path = LOCALES) -> None:
        self.code = code
        self._folder = folder

    @cached_property
    def catalog(self) -> gettext.NullTranslations:
        """The catalog; English, or a sentence that is missing, stays as it is."""
        names = [self.code.replace("-", "_"), self.code.partition("-")[0]]
        return gettext.translation(DOMAIN, self._folder, names, fallback=True)

    @cached_property
    def _formats(self) -> dict[str, Any]:
        path = self._folder / self.code.partition("-")[0] / "formats.json"
        formats: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return formats

    def text(self, message: str, **values: object) -> str:
        """Return a sentence in this language, with its placeholders filled in."""
        translated = self.catalog.gettext(message) if message else ""
        return translated % self._shown(values) if values else translated

    def plural(self, one: str, many: str, n: int, **values: object) -> str:
        """Return the sentence for a number, which is the placeholder %(n)s in it."""
        translated = self.catalog.ngettext(one, many, n)
        return translated % self._shown({"n": n, **values})

    def _shown(self, values: Mapping[str, object]) -> dict[str, object]:
        return {
            name: self.number(value) if isinstance(value, int) else value
            for name, value in values.items()
        }

    def sentences(self, kept: Iterable[Any]) -> list[str]:
        """Return sentences that were kept as [message, values]; plain ones stay."""
        return [
            each if isinstance(each, str) else self.text(each[0], **each[1])
            for each in kept
        ]

    def number(self, n: int) -> str:
        """Write a whole number with this language's mark at the thousands."""
        if abs(n) < self._formats["grouped_from"]:
            return str(n)
        return f"{n:,}".replace(",", self._formats["thousands"])

    def short_number(self, n: int) -> str:
        """Abbreviate a number on an axis: 12k, 3.4M."""
        for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (1000, "k")):
            if n >= size:
                text = f"{n / size:.1f}".removesuffix(".0")
                return text.replace(".", self._formats["decimal"]) + unit
        return str(n)

    def full_date(self, day: date) -> str:
        """Write a date in full: 3 January 2026."""
        return self._written("date", day)

    def short_date(self, day: date, year: bool = False) -> str:
        """Write a date for the axis of a chart: 3 Jan, or 3 Jan 2026."""
        return self._written("short_year" if year else "short", day)

    def time(self, moment: datetime) -> str:
        """Write a moment, which must know its time zone: 3 January 2026, 14:20 UTC."""
        zone = moment.tzname()
        return f"{self._written('time', moment)} {zone}"

    def _written(self, pattern: str, day: date) -> str:
        formats = self._formats
        text: str = formats[pattern].format(
            t=day,
            month=formats["months"][day.month - 1],
            short_month=formats["short_months"][day.month - 1],
        )
        return text
