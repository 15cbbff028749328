"""Write how each language writes numbers and dates: CLDR's facts, by Babel.

make messages runs this; at run time frontdesk/languages.py reads one small file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from babel import Locale

sys.path.insert(0, str(Path(__file__).parent.parent))
from frontdesk.languages import CODES, LOCALES

# English without a country: day before month, 24 hours, as half the world reads it.
CLDR_NAMES = {"en": "en_GB"}
# CLDR's minimumGroupingDigits, which Babel leaves out: 1234, but 12.345.
FOUR_DIGITS_TOGETHER = ("es", "pl")
FIELDS = {
    "y": "{t.year}",
    "MMMM": "{month}",
    "MMM": "{short_month}",
    "LLL": "{short_month}",
    "M": "{t.month}",
    "MM": "{t.month:02}",
    "d": "{t.day}",
    "dd": "{t.day:02}",
    "H": "{t.hour}",
    "HH": "{t.hour:02}",
    "mm": "{t.minute:02}",
}


def formats(code: str) -> dict[str, Any]:
    """Return a language's patterns, for str.format with t, month and short_month."""
    locale = Locale.parse(CLDR_NAMES.get(code, code))
    day, clock = locale.date_formats["long"], locale.datetime_skeletons["Hm"]
    moment = str(locale.datetime_formats["medium"])
    at_once = moment.replace("{1}", day.pattern).replace("{0}", clock.pattern)
    names = locale.months["format"]
    return {
        "thousands": locale.number_symbols["latn"]["group"],
        "decimal": locale.number_symbols["latn"]["decimal"],
        "grouped_from": 10000 if code in FOUR_DIGITS_TOGETHER else 1000,
        "date": _braces(day.pattern),
        "short": _braces(locale.datetime_skeletons["MMMd"].pattern),
        "short_year": _braces(locale.datetime_skeletons["yMMMd"].pattern),
        "time": _braces(at_once),
        "months": [names["wide"][i] for i in range(1, 13)],
        "short_months": [names["abbreviated"][i] for i in range(1, 13)],
    }


def _braces(pattern: str) -> str:
    """Turn a pattern of CLDR (d 'de' MMMM) into one of str.format."""
    from babel.dates import tokenize_pattern

    parts: list[tuple[str, Any]] = tokenize_pattern(pattern)
    return "".join(
        value if kind == "chars" else FIELDS[value[0] * value[1]]
        for kind, value in parts
    )


if __name__ == "__main__":
    for code in CODES:
        file = LOCALES / code / "formats.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(formats(code), ensure_ascii=False, indent=1)
        file.write_text(text + "\n", "utf-8")
