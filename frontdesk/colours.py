"""The owner's colour, made readable on our pages in light and dark."""

from __future__ import annotations

import colorsys
import json
import re
from pathlib import Path
from typing import NamedTuple

NAMES = Path(__file__).with_name("colours.json")  # CSS Color Module Level 4, 6.1
CONTRAST = 4.5  # of text on its ground: WCAG 2.2, criterion 1.4.3
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
NUMBER = r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(%|deg)?"
FUNCTION = re.compile(
    rf"(rgb|hsl)a?\(\s*{NUMBER}(?:\s*,\s*|\s+){NUMBER}(?:\s*,\s*|\s+){NUMBER}\s*\)"
)

Rgb = tuple[int, int, int]


class Shades(NamedTuple):
    """Colours for one scheme, each as #rrggbb."""

    accent: str  # of links and edges: can be read on the page
    fill: str  # of buttons
    ink: str  # of the text on them


class Look(NamedTuple):
    """The accent colour of pages and HTML mails in both schemes."""

    light: Shades
    dark: Shades


# The grounds of base.html on which an accent is hardest to read.
LIGHT_GROUND: Rgb = (0xF5, 0xF4, 0xF0)
DARK_GROUND: Rgb = (0x1D, 0x23, 0x29)
OURS = Look(
    Shades("#0b5c8f", "#0b5c8f", "#ffffff"), Shades("#82c4f2", "#82c4f2", "#0c1a24")
)


def look(color: str | None) -> Look:
    """Return the shades of an ACCENT_COLOR, or ours."""
    if color is None:
        return OURS
    rgb = parse(color)
    fill = as_hex(rgb)
    ink = "#ffffff" if contrast(rgb, WHITE) >= CONTRAST else "#000000"
    return Look(
        Shades(as_hex(readable(rgb, LIGHT_GROUND, BLACK)), fill, ink),
        Shades(as_hex(readable(rgb, DARK_GROUND, WHITE)), fill, ink),
    )


def readable(rgb: Rgb, ground: Rgb, towards: Rgb, least: float = CONTRAST) -> Rgb:
    """Mix a colour with black or white until it has a contrast on the ground."""
    for percent in range(0, 101, 2):
        mixed = mix(rgb, towards, percent / 100)
        if contrast(mixed, ground) >= least:
            return mixed
    return towards


def mix(rgb: Rgb, other: Rgb, part: float) -> Rgb:
    """Return a colour with a part, 0 to 1, of another one in it."""
    red, green, blue = (
        round(a + (b - a) * part) for a, b in zip(rgb, other, strict=True)
    )
    return red, green, blue


def contrast(one: Rgb, other: Rgb) -> float:
    """Return the contrast of two colours, 1 to 21, as WCAG defines it."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(rgb: Rgb) -> float:
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (value / 255 for value in rgb)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def parse(text: str) -> Rgb:
    """Read an opaque CSS colour: a name, #rgb, #rrggbb, rgb() or hsl().

    Raises ValueError.
    """
    text = text.strip().lower()
    if re.fullmatch("[a-z]+", text):
        text = json.loads(NAMES.read_text("utf-8")).get(text, text)
    if match := re.fullmatch("#([0-9a-f]{3}|[0-9a-f]{6})", text):
        digits = match[1] if len(match[1]) == 6 else "".join(d * 2 for d in match[1])
        red, green, blue = bytes.fromhex(digits)
        return red, green, blue
    if match := FUNCTION.fullmatch(text):
        first, second, third = zip(
            match.groups()[1::2], match.groups()[2::2], strict=True
        )
        if match[1] == "rgb":
            return _byte(*first), _byte(*second), _byte(*third)
        parts = colorsys.hls_to_rgb(
            float(first[0]) / 360 % 1, _share(third[0]), _share(second[0])
        )
        red, green, blue = (round(part * 255) for part in parts)
        return red, green, blue
    raise ValueError("must be a CSS colour: a name, #b5532a, rgb() or hsl()")


def _byte(number: str, unit: str | None) -> int:
    value = float(number) * 255 / 100 if unit == "%" else float(number)
    return round(min(max(value, 0), 255))


def _share(number: str) -> float:
    return min(max(float(number) / 100, 0), 1)


def as_hex(rgb: Rgb) -> str:
    """Write a colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)
