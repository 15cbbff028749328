"""What visitors and the owner read, in the site's language (GNU gettext catalogs)."""

from __future__ import annotations

import gettext
from functools import cached_property
from pathlib import Path

LOCALES = Path(__file__).with_name("locales")
DOMAIN = "frontdesk"


def marked(message: str) -> str:
    """Mark a sentence for the catalogs; it is translated where it is answered.

    Placeholders are %(name)s, in Python as in the templates.
    """
    return message


class Language:
    """One language's catalog, read when its first sentence is needed."""

    def __init__(self, code: str = "en") -> None:
        self.code = code

    @cached_property
    def catalog(self) -> gettext.NullTranslations:
        """The catalog; English, or a sentence that is missing, stays as it is."""
        names = [self.code.replace("-", "_"), self.code.partition("-")[0]]
        return gettext.translation(DOMAIN, LOCALES, names, fallback=True)

    def text(self, message: str, **values: object) -> str:
        """Return a sentence in this language, with its placeholders filled in."""
        translated = self.catalog.gettext(message)
        return translated % values if values else translated

    def count(self, one: str, many: str, n: int, **values: object) -> str:
        """Return the sentence for a number, which is the placeholder %(n)s in it."""
        return self.catalog.ngettext(one, many, n) % {"n": n, **values}
