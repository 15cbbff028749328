"""Hold badges and charts to what people, browsers and screen readers rely on."""

import re
from datetime import date, timedelta
from functools import cache
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from frontdesk import colours, pictures
from frontdesk.languages import CODES
from frontdesk.pages import Pages

SVG = "{http://www.w3.org/2000/svg}"
PAGES = Pages(site_name="Site")
HOSTILE = [
    "",
    " ",
    "]]>",
    "\"'><script>alert(1)</script>",
    "<![CDATA[x]]>",
    "<!-- -- -->",
    "&amp; & &#0; &nbsp;",
    "{0} {label} {{x}} %s",
    "nul\x00 bell\x07 del\x7f c1\x85\x9f",
    "lone \ud800 surrogate \udfff",
    "not characters \ufffe\uffff \U0001ffff",
    "\u202egnp.exe \u2066isolate\u2069 \u200f\u061c",
    "a\nb\tc\rd\u2028e",
    "\u0301\u0301\u0301",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "訪問者 مرحبا мир ชม",
    "x" * 5000,
]


def svg(text: str) -> ElementTree.Element:
    text.encode("utf-8")  # what goes over the wire
    return ElementTree.fromstring(text)


def tags(root: ElementTree.Element) -> list[str]:
    return [element.tag for element in root.iter()]


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


# Badges


@pytest.mark.parametrize("style", pictures.STYLES)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_badge_is_well_formed_and_keeps_its_shape_whatever_it_says(hostile, style):
    plain = svg(pictures.badge("label", "value", "blue", style))
    for arguments in [(hostile, "1"), ("hits", hostile), ("hits", "1", hostile)]:
        root = svg(pictures.badge(*arguments, style=style))
        assert tags(root) == tags(plain)
        assert [set(e.attrib) for e in root.iter()] == [
            set(e.attrib) for e in plain.iter()
        ]
        assert not re.search(r"[\u202a-\u202e\u2066-\u2069]", "".join(root.itertext()))


def test_badge_shows_what_it_was_given():
    root = svg(pictures.badge("a <b> & \"c\" 'd' ]]> {label}", "12,345"))
    assert texts(root)[-1] == "12,345"
    assert texts(root)[0] == "a <b> & \"c\" 'd' ]]> {label}"


def test_badge_tells_screen_readers_what_it_shows():
    root = svg(pictures.badge("hits", "12"))
    assert (root.get("role"), root.get("aria-label")) == ("img", "hits: 12")
    assert root.findtext(f"{SVG}title") == "hits: 12"
    assert svg(pictures.badge("", "12")).get("aria-label") == "12"


@pytest.mark.parametrize(
    "text, tenths",
    [
        ("build", 268),  # as Verdana's own metrics say
        ("WWWW", 436),
        ("iiii", 120),
        ("12,345", 390),
        ("é", 66),
        ("訪問", 220),
        ("e\u0301", 66),
        ("👍", 140),
    ],
)
def test_badge_measures_text_as_verdana(text, tenths):
    root = svg(pictures.badge("x", text))
    assert [*root.iter(f"{SVG}text")][-1].get("textLength") == str(tenths)


@pytest.mark.parametrize(
    "label, value", [("hits", "1"), ("W" * 60, "i"), ("i", "訪" * 60)]
)
def test_badge_texts_stay_inside_their_halves(label, value):
    root = svg(pictures.badge(label, value, style="flat-square"))
    left, right = [*root.iter(f"{SVG}rect")][-2:]
    ends = []
    for text in root.iter(f"{SVG}text"):
        middle, wide = (float(text.get(name)) / 10 for name in ("x", "textLength"))
        ends += [middle - wide / 2, middle + wide / 2]
    edge, width = float(left.get("width")), float(root.get("width"))
    assert float(right.get("x")) == edge
    assert edge + float(right.get("width")) == width
    assert 3 < ends[0] < ends[1] < edge - 3 < edge + 3 < ends[2] < ends[3] < width - 3


@pytest.mark.parametrize("length, shown", [(60, "x" * 60), (61, "x" * 59 + "…")])
def test_badge_cuts_long_text(length, shown):
    assert texts(svg(pictures.badge("x" * length, "1")))[0] == shown


@pytest.mark.parametrize(
    "color, fill",
    [
        ("brightgreen", "#4c1"),
        ("success", "#4c1"),
        ("green", "#97ca00"),
        ("yellowgreen", "#a4a61d"),
        ("yellow", "#dfb317"),
        ("orange", "#fe7d37"),
        ("important", "#fe7d37"),
        ("red", "#e05d44"),
        ("CRITICAL", "#e05d44"),
        ("blue", "#007ec6"),
        ("informational", "#007ec6"),
        ("grey", "#555"),
        ("lightgrey", "#9f9f9f"),
        ("inactive", "#9f9f9f"),
        ("#0a0", "#0a0"),
        ("FF8800", "#ff8800"),
        ("ff8800cc", "#ff8800cc"),
        ("ff88", "#007ec6"),
        ("#12345", "#007ec6"),
        ("url(#x)", "#007ec6"),
        ("red;}", "#007ec6"),
        ("", "#007ec6"),
        ("٣٣٣", "#007ec6"),
    ],
)
def test_badge_colours_are_those_of_shields_or_hex_or_blue(color, fill):
    root = svg(pictures.badge("hits", "1", color, "flat-square"))
    assert [*root.iter(f"{SVG}rect")][-1].get("fill") == fill


@pytest.mark.parametrize(
    "color, ink",
    [("fff", "#333"), ("ffff00", "#333"), ("000", "#fff"), ("blue", "#fff")],
)
def test_badge_text_is_dark_on_light_colours(color, ink):
    root = svg(pictures.badge("hits", "1", color))
    assert [*root.iter(f"{SVG}text")][-1].get("fill") == ink


def test_every_style_is_a_badge_of_its_own_and_there_are_no_others():
    assert {*pictures.STYLES} == {"flat", "flat-square", "for-the-badge", "plain"}
    drawn = {pictures.badge("a", "b", style=style) for style in pictures.STYLES}
    assert len(drawn) == 4
    with pytest.raises(KeyError):
        pictures.badge("a", "b", style="../templates/base.html")


def test_a_badge_for_the_badge_is_high_and_in_capitals():
    root = svg(pictures.badge("straße", "12", style="for-the-badge"))
    assert root.get("height") == "28"
    assert texts(root) == ["STRASSE", "12"]
    assert root.get("aria-label") == "STRASSE: 12"


def test_a_plain_badge_is_text_that_can_be_read_on_any_ground():
    root = svg(pictures.badge("hits", "12", style="plain"))
    assert not [*root.iter(f"{SVG}rect")]
    fill = colours.parse(next(root.iter(f"{SVG}g")).get("fill"))
    for ground in (colours.WHITE, colours.BLACK):
        assert colours.contrast(fill, ground) >= 4.5
    orange = svg(pictures.badge("hits", "12", "orange", "plain"))
    assert next(orange.iter(f"{SVG}g")).get("fill") == "#fe7d37"


def test_badges_inlined_on_one_page_do_not_clip_each_other():
    wide, narrow = pictures.badge("a" * 60, "1"), pictures.badge("a", "1")
    clips = re.findall(r'<clipPath id="(\w+)"', wide + narrow)
    assert len(set(clips)) == 2
    assert f"url(#{clips[0]})" in wide and f"url(#{clips[1]})" in narrow


# Charts


def days(count, hits, visitors=None, last=date(2025, 11, 22)):
    dates = [last - timedelta(count - 1 - i) for i in range(count)]
    value = hits if callable(hits) else lambda i: hits
    return [
        (f"{day}", value(i), value(i) // 2 if visitors is None else visitors)
        for i, day in enumerate(dates)
    ]


@cache
def in_language(code):
    return Pages(code, site_name="Site")


def group(root, name):
    return next(e for e in root.iter(f"{SVG}g") if e.get("id") == name)


def boxes(root, name):
    """Give the outer left and right of each bar of one of the two paths."""
    path = next(e for e in root.iter(f"{SVG}path") if e.get("class") == name)
    bars = re.findall(r"M([\d.]+) 204v-([\d.]+)h([\d.]+)V204z", path.get("d"))
    assert "".join(f"M{x} 204v-{y}h{w}V204z" for x, y, w in bars) == path.get("d")
    return [tuple(map(float, bar)) for bar in bars]


@pytest.mark.parametrize("language", CODES)
@pytest.mark.parametrize("size", pictures.SIZES)
@pytest.mark.parametrize("count", [1, 2, 7, 13, 30, 92, 120, 121, 180, 364, 365])
def test_chart_texts_never_overlap_nor_leave_the_picture(count, size, language):
    site = in_language(language)
    root = svg(pictures.chart(site, "/", days(count, 98765), size=size))
    width = pictures.SIZES[size].width
    labels = [(float(t.get("x")), t.text) for t in group(root, "dates")]
    assert 1 <= len(labels) <= 6
    halves = [(x, pictures._width(text) / 20) for x, text in labels]
    spans = [(x - half, x + half) for x, half in halves]
    assert all(left[1] + 4 <= right[0] for left, right in pairwise(spans))
    assert spans[0][0] >= 0 and spans[-1][1] <= width
    newest = date(2025, 11, 22) if count <= 120 else date(2025, 11, 16)
    first = date(2025, 11, 22) - timedelta(count - 1)
    two_years = first.year != newest.year
    assert labels[-1][1] == site.language.short_date(newest, two_years)
    totals = [t for t in group(root, "totals") if t.tag == f"{SVG}text"]
    ends = [float(t.get("x")) + float(t.get("textLength")) for t in totals]
    assert ends[0] + 16 <= float(totals[1].get("x")) and ends[1] <= width - 8


@pytest.mark.parametrize("count", [1, 2, 7, 30, 31, 92, 120])
def test_chart_has_a_bar_per_day_inside_its_frame(count):
    root = svg(pictures.chart(PAGES, "/", days(count, lambda i: i * 7 + 1, visitors=1)))
    for name in ("hits", "visitors"):
        bars = boxes(root, name)
        assert len(bars) == count
        assert all(x >= 56 and x + wide <= 696.05 for x, _, wide in bars)
        assert all(0 < high <= 140 for _, high, _ in bars)
        assert all(a[0] + a[2] <= b[0] + 0.02 for a, b in pairwise(bars))


def test_chart_bars_are_to_scale_and_visitors_are_part_of_hits():
    root = svg(
        pictures.chart(PAGES, "/", [("2025-01-01", 400, 100), ("2025-01-02", 200, 999)])
    )
    assert [high for _, high, _ in boxes(root, "hits")] == [140, 70]
    assert [high for _, high, _ in boxes(root, "visitors")] == [35, 70]


def test_one_hit_among_many_can_be_seen():
    root = svg(
        pictures.chart(PAGES, "/", [("2025-01-01", 1, 0), ("2025-01-02", 10**9, 0)])
    )
    assert boxes(root, "hits")[0][1] == 1


@pytest.mark.parametrize(
    "peak, scale",
    [
        (0, ["0"]),
        (1, ["0", "1"]),
        (3, ["0", "1", "2", "3"]),
        (4, ["0", "1", "2", "3", "4"]),
        (5, ["0", "2", "4", "6"]),
        (9, ["0", "5", "10"]),
        (100, ["0", "50", "100"]),
        (1353, ["0", "500", "1k", "1.5k"]),
        (48_000, ["0", "20k", "40k", "60k"]),
        (3_400_000, ["0", "1M", "2M", "3M", "4M"]),
        (10**12, ["0", "500B", "1T"]),
    ],
)
def test_chart_scale_is_nice(peak, scale):
    root = svg(pictures.chart(PAGES, "/", days(30, peak)))
    assert texts(group(root, "scale")) == scale


@pytest.mark.parametrize("peak", [*range(1, 130), 10**6 + 1, 10**12 - 1, 7 * 10**14])
def test_chart_scale_reaches_the_peak_with_few_lines(peak):
    root = svg(pictures.chart(PAGES, "/", days(2, peak)))
    lines = [e.get("d") for e in group(root, "scale") if e.tag == f"{SVG}path"]
    ys = [float(re.search(r"M56 ([\d.]+)H696", line)[1]) for line in lines]
    assert 2 <= len(ys) <= 5
    assert ys[0] == 204 and ys[-1] == 64
    steps = {round(a - b, 6) for a, b in pairwise(ys)}
    assert max(steps) - min(steps) < 1e-5


def test_chart_without_visits_says_so():
    root = svg(pictures.chart(PAGES, "/", days(30, 0)))
    assert any("No visits" in text for text in texts(root))
    assert boxes(root, "hits") == []
    assert texts(group(root, "totals")) == ["0 hits", "0 visitors"]
    assert not any(
        "No visits" in t for t in texts(svg(pictures.chart(PAGES, "/", days(1, 1))))
    )


@pytest.mark.parametrize("title", [*HOSTILE, "/ok", "W" * 300, "i" * 300])
@pytest.mark.parametrize("hits", [0, 10**12])
def test_chart_title_is_harmless_and_never_meets_the_totals(title, hits):
    root = svg(pictures.chart(PAGES, "/x", days(365, hits), title=title))
    assert tags(root) == tags(svg(pictures.chart(PAGES, "/plain", days(365, hits))))
    heading = next(e for e in root.iter(f"{SVG}text") if e.get("id") == "heading")
    end = 16 + pictures._width(heading.text or "") / 10 * 15 / 11
    assert end + 8 < float(group(root, "totals")[0].get("x"))
    if title in ("/ok", "]]>"):
        assert heading.text == title
    if len(title) >= 300:
        assert heading.text.endswith("…")


@pytest.mark.parametrize(
    "page, title, heading",
    [
        ("/", "", "Home page"),
        ("*", "", "Site"),
        ("/about", "", "/about"),
        ("/%C3%BCber", "", "/über"),
        ("/", "Mara's visits", "Mara's visits"),
        ("/", "\x00\u202e ", "Home page"),
    ],
)
def test_chart_is_called_what_a_person_would_call_it(page, title, heading):
    root = svg(pictures.chart(PAGES, page, days(2, 1), title=title))
    assert texts(root)[0] == heading
    assert root.findtext(f"{SVG}title") == f"Visits: {heading}"


@pytest.mark.parametrize("count, tooltips", [(1, 1), (92, 92), (93, 0), (365, 53)])
def test_chart_says_what_each_bar_is_while_bars_are_few(count, tooltips):
    chart = pictures.chart(PAGES, "/", days(count, 1200))
    titles = [*svg(chart).iter(f"{SVG}title")][1:]
    assert len(titles) == tooltips
    if count <= 92:
        assert titles[-1].text == "22 Nov 2025: 1,200 hits, 600 visitors"
    if count == 365:
        week = "16 Nov 2025 – 22 Nov 2025: 8,400 hits, 4,200 visitors"
        assert titles[-1].text == week
        assert titles[0].text == "23 Nov 2024: 1,200 hits, 600 visitors"


@pytest.mark.parametrize("count, bars", [(120, 120), (121, 18), (126, 18), (365, 53)])
def test_chart_has_a_bar_per_week_beyond_120_days(count, bars):
    root = svg(pictures.chart(PAGES, "/", days(count, lambda i: i + 1)))
    assert len(boxes(root, "hits")) == bars
    total = f"{count * (count + 1) // 2:,} hits"
    assert texts(group(root, "totals"))[0] == total
    assert ("each week" in root.findtext(f"{SVG}desc")) is (count > 120)


def test_narrow_chart_is_as_wide_as_a_telephone_with_letters_of_full_size():
    root = svg(pictures.chart(PAGES, "/", days(30, 1234), size="narrow"))
    assert (root.get("width"), root.get("viewBox")) == ("360", "0 0 360 240")
    sizes = {float(e.get("font-size", "11")) for e in root.iter()}
    assert min(sizes) == 11
    with pytest.raises(KeyError):
        pictures.chart(PAGES, "/", days(1, 1), size="huge")


@pytest.mark.parametrize("color", ["yellow", "b5532a", "#fff", "#0008", "url(#x)"])
def test_chart_takes_the_colours_of_badges_and_its_bars_stay_apart(color):
    chart = pictures.chart(PAGES, "/", days(30, 5), color=color)
    hits, visitors = re.search(
        r"\.hits{fill:(#\w+)}\.visitors{fill:(#\w+)}", chart
    ).groups()
    front = colours.parse(visitors)
    assert colours.contrast(front, colours.parse(hits)) >= 2
    assert colours.contrast(front, colours.WHITE) >= 4.5


def test_chart_tells_its_totals_to_everyone():
    counted = [("2025-01-01", 1, 1), ("2025-01-02", 1234, 56)]
    root = svg(pictures.chart(PAGES, "/a", counted))
    assert texts(group(root, "totals")) == ["1,235 hits", "57 visitors"]
    assert root.get("lang") == "en"
    assert root.findtext(f"{SVG}desc") == (
        "1,235 hits, 57 visitors; from 1 January 2025 to 2 January 2025, one bar for "
        "each day; the highest bar, 2 Jan 2025: 1,234 hits"
    )
    # Without a size of its own a browser shows a picture 300 px wide.
    assert root.get("viewBox") == "0 0 720 240"
    assert (root.get("width"), root.get("height")) == ("720", "240")


def test_chart_names_the_year_only_when_there_are_two():
    one = svg(pictures.chart(PAGES, "/", days(30, 1)))
    two = svg(pictures.chart(PAGES, "/", days(30, 1, last=date(2025, 1, 3))))
    assert texts(group(one, "dates"))[-1] == "22 Nov"
    assert texts(group(two, "dates"))[-1] == "3 Jan 2025"
