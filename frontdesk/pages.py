"""Render what people see: pages, the words of mails, badges and charts."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import unicodedata
from datetime import date
from functools import cache, lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
LONGEST_LABEL = 60  # characters of either half of a badge

# Widths of the printable ASCII characters in Verdana at 11 px, in tenths of a pixel:
# the font that readers of badges expect, and never installed where this runs.
ASCII_WIDTHS = [
    *(39, 43, 50, 90, 70, 118, 80, 30, 50, 50, 70, 90, 40, 50, 40, 50),  # space to /
    *(70, 70, 70, 70, 70, 70, 70, 70, 70, 70, 50, 50, 90, 90, 90, 60),  # 0 to ?
    *(110, 75, 75, 77, 85, 70, 63, 85, 83, 46, 50, 76, 61, 93, 82, 87),  # @ to O
    *(66, 87, 76, 75, 68, 81, 75, 109, 75, 68, 75, 50, 50, 50, 90, 70),  # P to _
    *(70, 66, 69, 57, 69, 66, 39, 69, 70, 30, 38, 65, 30, 107, 70, 67),  # ` to o
    *(69, 69, 47, 57, 43, 70, 65, 90, 65, 65, 58, 70, 50, 70, 90),  # p to ~
]
COLOURS = {
    **dict.fromkeys(("brightgreen", "success"), "#4c1"),
    "green": "#97ca00",
    "yellowgreen": "#a4a61d",
    "yellow": "#dfb317",
    **dict.fromkeys(("orange", "important"), "#fe7d37"),
    **dict.fromkeys(("red", "critical"), "#e05d44"),
    **dict.fromkeys(("blue", "informational"), "#007ec6"),
    **dict.fromkeys(("grey", "gray"), "#555"),
    **dict.fromkeys(("lightgrey", "lightgray", "inactive"), "#9f9f9f"),
}
HEX_COLOUR = re.compile(r"#?((?:[0-9a-f]{3}){1,2}|[0-9a-f]{8})")
# What XML forbids, and what turns the reading direction of the text around it.
UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"
    r"\ud800-\udfff\ufeff\ufffe\uffff]"
)
ORIGIN = re.compile(r"https?://[^\s;,'\"/?#]+")

# The chart's picture is 720 x 240 px; its bars stand in this part of it.
LEFT, RIGHT, TOP, BASE = 56, 696, 64, 204
DAYS_WITH_TOOLTIPS = 92


@cache
def _environment() -> Environment:
    """Load Jinja2 (39 ms) when the first page or mail is rendered, not before."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(("html", "svg"), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["thousands"] = thousands
    environment.filters["oneline"] = lambda text: " ".join(str(text).split())
    environment.filters["px"] = _px
    environment.filters["fit"] = _fit
    return environment


def render(template: str, **values: object) -> str:
    """Fill in a template; raise UndefinedError if a value it needs is missing."""
    return _environment().get_template(template).render(values)


def thousands(n: int) -> str:
    """Write a number with a comma at each thousand."""
    return f"{n:,}"


@cache
def _style_source() -> str:
    """Hash the one inline style of all pages as CSP wants it named."""
    base = (TEMPLATES / "base.html").read_text("utf-8")
    style = base.partition("<style>")[2].partition("</style>")[0]
    digest = hashlib.sha256(style.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def page_policy(*form_targets: str) -> str:
    """Make the Content-Security-Policy of a page whose form may lead to the origins."""
    # Browsers hold redirects after a submit to form-action too. A target that could
    # end the directive (or is no origin at all) is left out.
    targets = " ".join(["'self'", *filter(ORIGIN.fullmatch, form_targets)])
    return (
        f"default-src 'none'; style-src {_style_source()}; img-src 'self'; "
        f"form-action {targets}; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


def _clean(text: str) -> str:
    """Put a text on one line, without what XML forbids or what reorders letters."""
    return " ".join(UNSAFE.sub("", " ".join(text.split())).split())


def _advance(char: str) -> int:
    """Measure a character in tenths of a pixel, in Verdana at 11 px."""
    code = ord(char)
    if 32 <= code < 127:
        return ASCII_WIDTHS[code - 32]
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    if 0x1F000 <= code < 0x20000:
        return 140  # emoji
    if unicodedata.east_asian_width(char) in "WF":
        return 110
    base = unicodedata.normalize("NFD", char)[0]  # é is as wide as e
    if base != char and base.isascii():
        return _advance(base)
    return 90 if char in "…—" else 80 if char.isupper() else 70


def _width(text: str) -> int:
    return sum(map(_advance, text))


@lru_cache(512)
def _cell(text: str) -> tuple[str, int, int]:
    """Give a half of a badge: escaped text, its width in 0.1 px, the half's in px."""
    text = _clean(text)
    if len(text) > LONGEST_LABEL:
        text = text[: LONGEST_LABEL - 1] + "…"
    width = _width(text)
    return escape(text), width, 10 + (math.ceil(width / 10) | 1) if text else 0


@lru_cache(512)
def _paint(color: str) -> tuple[str, str, str]:
    """Choose the fill, and text and shadow that can be read on it."""
    name = color.strip().lower()
    match = HEX_COLOUR.fullmatch(name)
    fill = f"#{match[1]}" if match else COLOURS.get(name, COLOURS["blue"])
    digits = fill[1:] if len(fill) > 4 else "".join(digit * 2 for digit in fill[1:])
    red, green, blue = (int(digits[i : i + 2], 16) for i in (0, 2, 4))
    light = 299 * red + 587 * green + 114 * blue > 0.69 * 255_000
    return (fill, "#333", "#ccc") if light else (fill, "#fff", "#010101")


@cache
def _badge_template(style: str) -> str:
    return (TEMPLATES / f"badge-{style}.svg").read_text("utf-8").strip()


def badge(label: str, value: str, color: str = "blue", style: str = "flat") -> str:
    """Draw a README badge; whatever the texts hold, it is well-formed XML."""
    label, label_width, left = _cell(label)
    value, value_width, right = _cell(value)
    fill, ink, shadow = _paint(color)
    # Only two styles exist: anything else a stranger names shares one cached file.
    template = _badge_template("flat-square" if style == "flat-square" else "flat")
    return template.format(
        name=f"{label}: {value}" if label and value else label or value,
        label=label,
        label_width=label_width,
        label_x=left * 5 + 5,
        value=value,
        value_width=value_width,
        value_x=left * 10 + right * 5 - (5 if left else 0),
        left=left,
        right=right,
        width=left + right,
        fill=fill,
        ink=ink,
        shadow=shadow,
    )


def _px(text: str, size: int = 11) -> float:
    """Measure a text in Verdana of a size, both in px."""
    return round(_width(text) * size / 110, 1)


def _fit(text: str, room: float, size: int = 11) -> str:
    """Cut a text with "…" so that it takes at most the room, in px."""
    if _px(text, size) <= room:
        return text
    text = text[: int(room)]
    while text and _px(text + "…", size) > room:
        text = text[:-1]
    return text + "…"


def _step(highest: int) -> int:
    """Choose 1, 2 or 5 times a power of ten so that four steps reach the highest."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power * 4 >= highest:
                return digit * power
        power *= 10


def _short(n: int) -> str:
    """Abbreviate a number on the axis: 12k, 3.4M."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (1000, "k")):
        if n >= size:
            return f"{n / size:,.1f}".removesuffix(".0") + unit
    return str(n)


def _bars(values: list[int], top: int) -> str:
    """Draw a bar per value as one SVG path: small, and seamless when bars touch."""
    band = (RIGHT - LEFT) / len(values)
    wide = min(band * 0.8, 56) if band > 4 else band
    path = []
    for i, value in enumerate(values):
        if value > 0:
            x = LEFT + (i + 0.5) * band - wide / 2
            high = max(value / top * (BASE - TOP), 1)  # one hit can be seen
            path.append(f"M{x:.2f} {BASE}v-{high:.2f}h{wide:.2f}V{BASE}z")
    return "".join(path)


def _date_labels(dates: list[date]) -> list[tuple[float, str]]:
    """Name at most six days at equal distances, the newest always among them."""
    band = (RIGHT - LEFT) / len(dates)
    form = "{0.day} {0:%b}" if dates[0].year == dates[-1].year else "{0.day} {0:%b %Y}"
    labels = []
    stride = math.ceil(len(dates) / 6)
    for i in range(len(dates) - 1, -1, -stride):
        text = form.format(dates[i])
        x = min(LEFT + (i + 0.5) * band, 708 - _px(text) / 2)
        labels.append((round(x, 1), text))
    return labels[::-1]


def chart(title: str, days: list[tuple[str, int, int]]) -> str:
    """Draw (ISO date, hits, visitors) per day, oldest first, as bars in an SVG."""
    dates = [date.fromisoformat(day) for day, _, _ in days]
    hits = [count for _, count, _ in days]
    visitors = [min(seen, count) for _, count, seen in days]
    peak, step, band = max(hits), _step(max(hits)), (RIGHT - LEFT) / len(days)
    ticks = range(0, peak + step, step) if peak else range(1)
    top = ticks[-1] or 1
    return render(
        "chart.svg",
        title=_clean(title),
        hits=sum(hits),
        visitors=sum(visitors),
        first=dates[0],
        last=dates[-1],
        peak=peak,
        peak_day=dates[hits.index(peak)],
        ticks=[(BASE - (BASE - TOP) * tick / top, _short(tick)) for tick in ticks],
        hits_path=_bars(hits, top),
        visitors_path=_bars(visitors, top),
        dates=_date_labels(dates),
        columns=[
            (round(LEFT + i * band, 2), round(band, 2), day, count, seen)
            for i, (day, count, seen) in enumerate(
                zip(dates, hits, visitors, strict=True)
            )
            if len(days) <= DAYS_WITH_TOOLTIPS
        ],
    )
