"""Badges and charts: SVG pictures of what was counted."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from datetime import date, timedelta
from functools import cache, lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from frontdesk import colours
from frontdesk.colours import BLACK, WHITE, mix, readable
from frontdesk.languages import marked
from frontdesk.pages import Pages

BADGES = Path(__file__).with_name("badges")
HITS, VISITORS = marked("hits"), marked("visitors")  # the default labels of a badge
HOME = marked("Home page")
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


class Style(NamedTuple):
    """The shape of a badge."""

    padding: int = 10  # px in each half
    spacing: int = 0  # between letters, in 0.1 px
    capitals: bool = False
    color: str = "blue"


STYLES = {
    "flat": Style(),
    "flat-square": Style(),
    "for-the-badge": Style(24, 12, capitals=True),
    "plain": Style(6, color="767676"),  # 4.5 to 1 on white and on black alike
}
# What XML forbids, and what turns the reading direction of the text around it.
UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"
    r"\ud800-\udfff\ufeff\ufffe\uffff]"
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
def _cell(text: str, style: str) -> tuple[str, int, int]:
    """Give a half of a badge: escaped text, its width in 0.1 px, the half's in px."""
    text = _clean(text)
    if len(text) > LONGEST_LABEL:
        text = text[: LONGEST_LABEL - 1] + "…"
    shape = STYLES[style]
    text = text.upper() if shape.capitals else text
    width = _width(text) + len(text) * shape.spacing
    half = shape.padding + (math.ceil(width / 10) | 1) if text else 0
    return escape(text), width, half


@lru_cache(512)
def _paint(color: str) -> tuple[str, str, str]:
    """Choose the fill, and text and shadow that can be read on it."""
    name = color.strip().lower()
    match = HEX_COLOUR.fullmatch(name)
    fill = f"#{match[1]}" if match else COLOURS.get(name, COLOURS["blue"])
    red, green, blue = colours.parse(fill[:7])  # without transparency
    light = 299 * red + 587 * green + 114 * blue > 0.69 * 255_000
    return (fill, "#333", "#ccc") if light else (fill, "#fff", "#010101")


@cache
def _drawing(style: str) -> str:
    return (BADGES / f"{style}.svg").read_text("utf-8").strip()


def badge(label: str, value: str, color: str = "", style: str = "flat") -> str:
    """Draw a README badge; whatever the texts hold, it is well-formed XML.

    Raises KeyError for a style that is not in STYLES.
    """
    label, label_width, left = _cell(label, style)
    value, value_width, right = _cell(value, style)
    fill, ink, shadow = _paint(color or STYLES[style].color)
    return _drawing(style).format(
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
    text = text[: max(int(room), 0)]
    while text and _px(text + "…", size) > room:
        text = text[:-1]
    return text + "…"


# --- the chart -------------------------------------------------------------------


class Frame(NamedTuple):
    """Where the bars of a chart stand, in px; the picture is 240 px high."""

    width: int
    left: int
    right: int
    top: int
    narrow: bool = False  # for a telephone: the sums are below the heading

    @property
    def legend(self) -> int:
        """The size of the sums' letters."""
        return 11 if self.narrow else 12


SIZES = {"wide": Frame(720, 56, 696, 64), "narrow": Frame(360, 48, 344, 84, True)}
BASE = 204  # px from the top, where the bars stand
MOST_DAILY_BARS = 120  # beyond that a bar is a week
MOST_TOOLTIPS = 92
PALETTE = {  # hits and visitors, the part of them in front
    "light": ("#63a1d8", "#1a4f86"),
    "dark": ("#7db8ee", "#2c6cae"),
}


class Bar(NamedTuple):
    """A day of the chart, or several that begin with it."""

    day: date
    days: int
    hits: int
    visitors: int


def chart(
    pages: Pages,
    page: str,
    days: Sequence[tuple[str, int, int]],
    *,
    title: str = "",
    color: str = "",
    size: str = "wide",
) -> str:
    """Draw (ISO date, hits, visitors) per day, oldest first, as bars in an SVG.

    The page "*" is the whole site. Raises KeyError for a size that is not in SIZES.
    """
    frame, written = SIZES[size], pages.language.full_date
    bars = _bars(days, 7 if len(days) > MOST_DAILY_BARS else 1)
    heading = _clean(title) or _heading(pages, page)
    legend = _legend(pages, frame, bars)
    room = frame.width - 32 if frame.narrow else legend[0][1] - 46
    return pages.render(
        "chart.svg",
        frame=frame,
        heading=heading,
        fitted=_fit(heading, room, 15),
        legend=legend,
        palette=_palette(color),
        weekly=len(days) > MOST_DAILY_BARS,
        first=written(bars[0].day),
        last=written(date.fromisoformat(days[-1][0])),
        dates=_date_labels(pages, frame, [bar.day for bar in bars]),
        **_drawn(pages, frame, bars),
    )


def _heading(pages: Pages, page: str) -> str:
    if page == "/":
        return pages.language.text(HOME)
    return pages.site_name if page == "*" else _clean(unquote(page))


def _drawn(pages: Pages, frame: Frame, bars: list[Bar]) -> dict[str, Any]:
    """Return the scale, the bars and what is said of each when it is pointed at."""
    most = max(bars, key=lambda bar: bar.hits)
    step, high = _step(most.hits), BASE - frame.top
    ticks = range(0, most.hits + step, step) if most.hits else range(1)
    top = ticks[-1] or 1
    scale = [
        (BASE - high * tick / top, pages.language.short_number(tick)) for tick in ticks
    ]
    band = (frame.right - frame.left) / len(bars)
    columns = [
        (round(frame.left + i * band, 2), round(band, 2), _span(pages, bar), bar)
        for i, bar in enumerate(bars)
    ]
    return {
        "most": most,
        "most_day": _span(pages, most),
        "ticks": scale,
        "hits_path": _path(frame, [bar.hits for bar in bars], top),
        "visitors_path": _path(frame, [bar.visitors for bar in bars], top),
        "columns": columns if len(bars) <= MOST_TOOLTIPS else [],
    }


def _bars(days: Sequence[tuple[str, int, int]], length: int) -> list[Bar]:
    """Add up days to bars of a length; the newest bar is always a whole one."""
    bars = []
    for end in range(len(days), 0, -length):
        part = days[max(end - length, 0) : end]
        hits = sum(count for _, count, _ in part)
        visitors = sum(min(seen, count) for _, count, seen in part)
        bars.append(Bar(date.fromisoformat(part[0][0]), len(part), hits, visitors))
    return bars[::-1]


def _span(pages: Pages, bar: Bar) -> str:
    """Name the day of a bar, or its first and last."""
    ends = {bar.day, bar.day + timedelta(bar.days - 1)}
    return " – ".join(pages.language.short_date(day, True) for day in sorted(ends))


def _legend(
    pages: Pages, frame: Frame, bars: list[Bar]
) -> list[tuple[str, float, str, float]]:
    """Place the sums: (class, x, text, width); right-aligned, or below the heading."""
    plural = pages.language.plural
    hits, visitors = sum(bar.hits for bar in bars), sum(bar.visitors for bar in bars)
    texts = {
        "hits": plural("%(n)s hit", "%(n)s hits", hits),
        "visitors": plural("%(n)s visitor", "%(n)s visitors", visitors),
    }
    widths = {name: _px(text, frame.legend) for name, text in texts.items()}
    gap = 22 if frame.narrow else 36
    x = 28.0 if frame.narrow else 704 - gap - sum(widths.values())
    placed = []
    for name, text in texts.items():
        placed.append((name, round(x, 1), text, widths[name]))
        x += widths[name] + gap
    return placed


def _palette(color: str) -> dict[str, tuple[str, str]]:
    """Return the colours of hits and visitors in light and dark."""
    if not color:
        return PALETTE
    front = readable(colours.parse(_paint(color)[0][:7]), WHITE, BLACK)
    pair = colours.as_hex(mix(front, WHITE, 0.5)), colours.as_hex(front)
    return {"light": pair, "dark": pair}


def _step(highest: int) -> int:
    """Choose 1, 2 or 5 times a power of ten so that four steps reach the highest."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power * 4 >= highest:
                return digit * power
        power *= 10


def _path(frame: Frame, values: list[int], top: int) -> str:
    """Draw a bar per value as one SVG path: small, and seamless when bars touch."""
    band = (frame.right - frame.left) / len(values)
    wide = min(band * 0.8, 56) if band > 4 else band
    path = []
    for i, value in enumerate(values):
        if value > 0:
            x = frame.left + (i + 0.5) * band - wide / 2
            high = max(value / top * (BASE - frame.top), 1)  # one hit can be seen
            path.append(f"M{x:.2f} {BASE}v-{high:.2f}h{wide:.2f}V{BASE}z")
    return "".join(path)


def _date_labels(
    pages: Pages, frame: Frame, dates: list[date]
) -> list[tuple[float, str]]:
    """Name at most six days at equal distances, the newest always among them."""
    two_years = dates[0].year != dates[-1].year
    texts = [pages.language.short_date(day, two_years) for day in dates]
    span = frame.right - frame.left
    most = min(int(span / (max(map(_px, texts)) * 1.5 + 4)), 6)
    labels = []
    for i in range(len(dates) - 1, -1, -math.ceil(len(dates) / most)):
        x, half = frame.left + (i + 0.5) * span / len(dates), _px(texts[i]) / 2
        x = max(min(x, frame.width - 12 - half), 4 + half)
        labels.append((round(x, 1), texts[i]))
    return labels[::-1]
