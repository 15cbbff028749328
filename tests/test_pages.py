"""Hold pages, mails, badges and charts to what people and their browsers rely on."""

import base64
import hashlib
import re
import subprocess
import sys
from datetime import date, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from jinja2 import UndefinedError

from frontdesk import pages

SVG = "{http://www.w3.org/2000/svg}"
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
MESSAGE = {
    "name": "Ann Example",
    "email": "ann@example.org",
    "subject": "Opening hours",
    "message": "Hello,\n\nare you open on Saturdays?",
    "fields": {"Company": "ACME & Sons", "Topic": "Visit"},
    "page": "https://site.example/contact",
    "received_at": "22 November 2025, 14:20 UTC",
    "spam_reasons": ["3 links"],
    "released": False,
    "client": "203.0.113.0/24",
}
FORM = {
    "action": "/contact",
    "multipart": False,
    "fields": [
        {"name": "email", "value": "ann@", "label": "Your email", "kind": "email"},
        {"name": "name", "value": 'A "Q"', "label": "Your name", "kind": "text"},
        {"name": "message", "value": "\nHi", "label": "Message", "kind": "textarea"},
        {"name": "_next", "value": "/x", "label": "", "kind": "hidden"},
    ],
}
ERRORS = [
    {"field": "email", "message": "This is not an email address."},
    {"message": "Something else."},
]
HELD = {
    "who": "Ann <ann@example.org>",
    "subject": "Hi",
    "first_line": "Buy now",
    "reasons": ["3 links"],
    "received_at": "22 November 2025",
    "release_url": "https://desk.example/release/1",
}
DONE = {"site_name": "Site", "back_url": "https://site.example/"}
ACTION = {"site_name": "Site", "root": "", "action": "/newsletter/x"}
CONFIRM = {
    "site_name": "Site",
    "confirm_url": "https://desk.example/newsletter/confirm/abc",
    "unsubscribe_url": "https://desk.example/newsletter/unsubscribe/abc",
    "not_me_url": "https://desk.example/newsletter/not-me/abc",
    "days": 7,
}
PAGES = {
    "welcome.html": {
        "site_name": "Site",
        "root": "",
        "public_url": "https://desk.example",
        "version": "1.0.0",
        "mail_is_on": False,
    },
    "thanks.html": DONE,
    "signup-thanks.html": DONE,
    "confirmed.html": DONE,
    "left.html": DONE,
    "not-me-done.html": DONE,
    "renewed.html": DONE,
    "released.html": DONE,
    "confirm.html": ACTION,
    "unsubscribe.html": ACTION,
    "not-me.html": ACTION,
    "expired.html": ACTION,
    "release.html": {**ACTION, "message": MESSAGE},
    "ask.html": {
        **ACTION,
        "fields": [("token", "x")],
        "shown": [("Message", "Hi")],
        "multipart": False,
    },
    "error.html": {
        **DONE,
        "root": "",
        "title": "Please check",
        "errors": ERRORS,
        "form": FORM,
    },
}
MAILS = {
    "mail-contact.txt": {
        "site_name": "Site",
        "message": MESSAGE,
        "reply_to_dropped": False,
        "maybe_spam": True,
    },
    "mail-confirm.txt": CONFIRM,
    "mail-digest.txt": {
        "site_name": "Site",
        "items": [HELD, {**HELD, "subject": ""}],
        "more": 1,
        "dropped": 0,
        "day": "22 November 2025",
    },
    "mail-test.txt": {"site_name": "Site", "public_url": "https://desk.example"},
}
EVERY = {**PAGES, **MAILS, "mail-confirm.html": CONFIRM}
NOT_RENDERED_ALONE = {
    *("base.html", "action.html", "done.html", "chart.svg"),
    *("badge-flat.svg", "badge-flat-square.svg"),
}


class Tags(HTMLParser):
    """Collect the tags of a page, and the text outside of them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        self.text += data

    def all(self, *names: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.found if tag in names]


def svg(text: str) -> ElementTree.Element:
    text.encode("utf-8")  # what goes over the wire
    return ElementTree.fromstring(text)


def tags(root: ElementTree.Element) -> list[str]:
    return [element.tag for element in root.iter()]


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_importing_loads_no_jinja():
    code = "import sys, pages; pages.badge('a', 'b'); print('jinja2' in sys.modules)"
    root = Path(pages.__file__).parent
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True)
    assert run.stdout.strip() == b"False", run.stderr


@pytest.mark.parametrize(
    "n, text", [(0, "0"), (999, "999"), (12345, "12,345"), (10**6, "1,000,000")]
)
def test_thousands_are_separated(n, text):
    assert pages.thousands(n) == text


# Badges


@pytest.mark.parametrize("style", ["flat", "flat-square"])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_badge_is_well_formed_and_keeps_its_shape_whatever_it_says(hostile, style):
    plain = svg(pages.badge("label", "value", "blue", style))
    for arguments in [(hostile, "1"), ("hits", hostile), ("hits", "1", hostile)]:
        root = svg(pages.badge(*arguments, style=style))
        assert tags(root) == tags(plain)
        assert [set(e.attrib) for e in root.iter()] == [
            set(e.attrib) for e in plain.iter()
        ]
        assert not re.search(r"[\u202a-\u202e\u2066-\u2069]", "".join(root.itertext()))


def test_badge_shows_what_it_was_given():
    root = svg(pages.badge("a <b> & \"c\" 'd' ]]> {label}", "12,345"))
    assert texts(root)[-1] == "12,345"
    assert texts(root)[0] == "a <b> & \"c\" 'd' ]]> {label}"


def test_badge_tells_screen_readers_what_it_shows():
    root = svg(pages.badge("hits", "12"))
    assert (root.get("role"), root.get("aria-label")) == ("img", "hits: 12")
    assert root.findtext(f"{SVG}title") == "hits: 12"
    assert svg(pages.badge("", "12")).get("aria-label") == "12"


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
    root = svg(pages.badge("x", text))
    assert [*root.iter(f"{SVG}text")][-1].get("textLength") == str(tenths)


@pytest.mark.parametrize(
    "label, value", [("hits", "1"), ("W" * 60, "i"), ("i", "訪" * 60)]
)
def test_badge_texts_stay_inside_their_halves(label, value):
    root = svg(pages.badge(label, value, style="flat-square"))
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
    assert texts(svg(pages.badge("x" * length, "1")))[0] == shown


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
    root = svg(pages.badge("hits", "1", color, "flat-square"))
    assert [*root.iter(f"{SVG}rect")][-1].get("fill") == fill


@pytest.mark.parametrize(
    "color, ink",
    [("fff", "#333"), ("ffff00", "#333"), ("000", "#fff"), ("blue", "#fff")],
)
def test_badge_text_is_dark_on_light_colours(color, ink):
    root = svg(pages.badge("hits", "1", color))
    assert [*root.iter(f"{SVG}text")][-1].get("fill") == ink


def test_badge_of_unknown_style_is_flat():
    assert pages.badge("a", "b", style="../base.html") == pages.badge("a", "b")
    assert pages.badge("a", "b", style="flat-square") != pages.badge("a", "b")


def test_badges_inlined_on_one_page_do_not_clip_each_other():
    wide, narrow = pages.badge("a" * 60, "1"), pages.badge("a", "1")
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


def group(root, name):
    return next(e for e in root.iter(f"{SVG}g") if e.get("id") == name)


def boxes(root, name):
    """Give the outer left and right of each bar of one of the two paths."""
    path = next(e for e in root.iter(f"{SVG}path") if e.get("class") == name)
    bars = re.findall(r"M([\d.]+) 204v-([\d.]+)h([\d.]+)V204z", path.get("d"))
    assert "".join(f"M{x} 204v-{y}h{w}V204z" for x, y, w in bars) == path.get("d")
    return [tuple(map(float, bar)) for bar in bars]


@pytest.mark.parametrize("hits", [0, 1, 3, 999, 10**12])
@pytest.mark.parametrize("count", [1, 2, 6, 7, 13, 30, 31, 92, 93, 180, 364, 365])
def test_chart_dates_never_overlap(count, hits):
    root = svg(pages.chart("/", days(count, hits)))
    labels = [(float(t.get("x")), t.text) for t in group(root, "dates")]
    assert 1 <= len(labels) <= 6
    # At 11 px, 7 px is more than the mean width of any of these labels' characters.
    spans = [(x - len(text) * 3.5, x + len(text) * 3.5) for x, text in labels]
    assert all(left[1] + 4 <= right[0] for left, right in pairwise(spans))
    assert spans[0][0] >= 0 and spans[-1][1] <= 720
    assert labels[-1][1].startswith("22 Nov")


@pytest.mark.parametrize("count", [1, 2, 7, 30, 31, 92, 365])
def test_chart_has_a_bar_per_day_inside_its_frame(count):
    root = svg(pages.chart("/", days(count, lambda i: i * 7 + 1, visitors=1)))
    for name in ("hits", "visitors"):
        bars = boxes(root, name)
        assert len(bars) == count
        assert all(x >= 56 and x + wide <= 696.05 for x, _, wide in bars)
        assert all(0 < high <= 140 for _, high, _ in bars)
        assert all(a[0] + a[2] <= b[0] + 0.02 for a, b in pairwise(bars))


def test_chart_bars_are_to_scale_and_visitors_are_part_of_hits():
    root = svg(pages.chart("/", [("2025-01-01", 400, 100), ("2025-01-02", 200, 999)]))
    assert [high for _, high, _ in boxes(root, "hits")] == [140, 70]
    assert [high for _, high, _ in boxes(root, "visitors")] == [35, 70]


def test_one_hit_among_many_can_be_seen():
    root = svg(pages.chart("/", [("2025-01-01", 1, 0), ("2025-01-02", 10**9, 0)]))
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
    root = svg(pages.chart("/", days(30, peak)))
    assert texts(group(root, "scale")) == scale


@pytest.mark.parametrize("peak", [*range(1, 130), 10**6 + 1, 10**12 - 1, 7 * 10**14])
def test_chart_scale_reaches_the_peak_with_few_lines(peak):
    root = svg(pages.chart("/", days(2, peak)))
    lines = [e.get("d") for e in group(root, "scale") if e.tag == f"{SVG}path"]
    ys = [float(re.search(r"M56 ([\d.]+)H696", line)[1]) for line in lines]
    assert 2 <= len(ys) <= 5
    assert ys[0] == 204 and ys[-1] == 64
    steps = {round(a - b, 6) for a, b in pairwise(ys)}
    assert max(steps) - min(steps) < 1e-5


def test_chart_without_visits_says_so():
    root = svg(pages.chart("/", days(30, 0)))
    assert any("No visits" in text for text in texts(root))
    assert boxes(root, "hits") == []
    assert texts(group(root, "totals")) == ["0 hits", "0 visitors"]
    assert not any("No visits" in t for t in texts(svg(pages.chart("/", days(1, 1)))))


@pytest.mark.parametrize("title", [*HOSTILE, "/ok", "W" * 300, "i" * 300])
@pytest.mark.parametrize("hits", [0, 10**12])
def test_chart_title_is_harmless_and_never_meets_the_totals(title, hits):
    root = svg(pages.chart(title, days(365, hits)))
    assert tags(root) == tags(svg(pages.chart("/plain", days(365, hits))))
    heading = next(e for e in root.iter(f"{SVG}text") if e.get("id") == "heading")
    end = 16 + pages._width(heading.text or "") / 10 * 15 / 11
    assert end + 8 < float(group(root, "totals")[0].get("x"))
    if title in ("/ok", "]]>"):
        assert heading.text == title
    if len(title) >= 300:
        assert heading.text.endswith("…")


@pytest.mark.parametrize("count, tooltips", [(1, 1), (92, 92), (93, 0), (365, 0)])
def test_chart_has_a_tooltip_per_day_while_days_are_few(count, tooltips):
    titles = [*svg(pages.chart("/", days(count, 1200))).iter(f"{SVG}title")][1:]
    assert len(titles) == tooltips
    if titles:
        assert titles[-1].text == "2025-11-22: 1,200 hits, 600 visitors"


def test_chart_tells_its_totals_to_everyone():
    root = svg(pages.chart("/a", [("2025-01-01", 1, 1), ("2025-01-02", 1234, 56)]))
    assert texts(group(root, "totals")) == ["1,235 hits", "57 visitors"]
    assert root.findtext(f"{SVG}title") == "Visits to /a"
    assert root.findtext(f"{SVG}desc") == (
        "1,235 hits by 57 visitors from 2025-01-01 to 2025-01-02, one bar per day; "
        "the most on 2025-01-02: 1,234 hits."
    )
    # Without a size of its own a browser shows a picture 300 px wide.
    assert root.get("viewBox") == "0 0 720 240"
    assert (root.get("width"), root.get("height")) == ("720", "240")


def test_chart_names_the_year_only_when_there_are_two():
    one = svg(pages.chart("/", days(30, 1)))
    two = svg(pages.chart("/", days(30, 1, last=date(2025, 1, 3))))
    assert texts(group(one, "dates"))[-1] == "22 Nov"
    assert texts(group(two, "dates"))[-1] == "3 Jan 2025"


# Pages and mails


def test_every_template_is_under_test():
    files = {path.name for path in pages.TEMPLATES.iterdir()}
    assert files == {*EVERY, *NOT_RENDERED_ALONE}


@pytest.mark.parametrize(
    "template, name",
    [(template, name) for template in EVERY for name in EVERY[template]],
)
def test_a_forgotten_value_is_an_error(template, name):
    values = {key: value for key, value in EVERY[template].items() if key != name}
    pages.render(template, **EVERY[template])
    with pytest.raises(UndefinedError):
        pages.render(template, **values)


@pytest.mark.parametrize("template", PAGES)
def test_policy_allows_the_one_style_of_each_page(template):
    html = pages.render(template, **PAGES[template])
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(styles) == html.count("<style") == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in pages.page_policy()


@pytest.mark.parametrize("template", PAGES)
def test_pages_need_nothing_that_the_policy_forbids(template):
    page = Tags(pages.render(template, **PAGES[template]))
    assert not page.all("script", "link", "iframe", "object", "base", "font")
    for tag, attributes in page.found:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert not re.match(r"(?i)https?:|//|data:", attributes.get("src", "")), tag
        assert "srcset" not in attributes
    assert "url(" not in pages.render(template, **PAGES[template])


@pytest.mark.parametrize(
    "targets, form_action",
    [
        ((), "form-action 'self';"),
        (("https://a.example",), "form-action 'self' https://a.example;"),
        (
            ("https://a.example", "http://b.example:8080"),
            "form-action 'self' https://a.example http://b.example:8080;",
        ),
        (("https://a.example; script-src *",), "form-action 'self';"),
        (("https://a.example *",), "form-action 'self';"),
        (("*", "", "javascript:x", "https:", "https://a/path"), "form-action 'self';"),
    ],
)
def test_policy_names_where_forms_may_lead_and_nothing_else(targets, form_action):
    policy = pages.page_policy(*targets)
    assert form_action in policy
    names = [part.split()[0] for part in policy.split("; ")]
    assert names == [
        *("default-src", "style-src", "img-src"),
        *("form-action", "base-uri", "frame-ancestors"),
    ]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("template", PAGES)
def test_pages_are_in_order_for_screen_readers_and_robots(template):
    page = Tags(pages.render(template, **PAGES[template]))
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "robots", "content": "noindex"} in page.all("meta")
    assert len(page.all("main")) == len(page.all("h1")) == len(page.all("title")) == 1
    assert all(image.get("alt") for image in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.found:
        for name in {"for", "aria-describedby"} & attributes.keys():
            assert attributes[name] in ids
    named = {label.get("for") for label in page.all("label")}
    for field in page.all("input", "textarea"):
        if field.get("type") != "hidden" and field["name"] != "_gotcha":
            assert field["id"] in named


@pytest.mark.parametrize(
    "template",
    [
        *("confirm.html", "unsubscribe.html", "not-me.html", "expired.html"),
        *("release.html", "ask.html"),
    ],
)
def test_pages_that_act_have_one_form_and_one_button(template):
    page = Tags(pages.render(template, **PAGES[template]))
    assert page.all("form") == [{"method": "post", "action": "/newsletter/x"}]
    assert len(page.all("button")) == 1


def test_expired_page_asks_again():
    page = Tags(pages.render("expired.html", **ACTION))
    assert page.all("input") == [{"type": "hidden", "name": "again", "value": "1"}]


def test_delivered_message_offers_no_button():
    message = {**MESSAGE, "released": True}
    page = Tags(pages.render("release.html", **ACTION, message=message))
    assert not page.all("form", "button")
    assert "Delivered already" in page.text


@pytest.mark.parametrize("template", [name for name in PAGES if PAGES[name] is DONE])
def test_result_pages_link_back_if_there_is_somewhere(template):
    page = Tags(pages.render(template, **DONE))
    assert [link["href"] for link in page.all("a")] == ["https://site.example/"]
    page = Tags(pages.render(template, site_name="Site", back_url=None))
    assert not page.all("a")


def typed_pages(text):
    """Render each page that shows what a visitor typed, all of it being the text."""
    names = ("name", "email", "subject", "message", "page")
    message = {**MESSAGE, **dict.fromkeys(names, text), "fields": {text: text}}
    form = {**FORM, "fields": [{**field, "value": text} for field in FORM["fields"]]}
    pair = [(text, text)]
    return {
        "ask.html": {**PAGES["ask.html"], "fields": pair, "shown": pair},
        "release.html": {**ACTION, "message": message},
        "error.html": {**PAGES["error.html"], "form": form},
    }


@pytest.mark.parametrize("hostile", HOSTILE[2:8])
@pytest.mark.parametrize("template", typed_pages("x"))
def test_what_a_visitor_typed_is_text_on_every_page(template, hostile):
    page = Tags(pages.render(template, **typed_pages(hostile)[template]))
    plain = Tags(pages.render(template, **typed_pages("x")[template]))
    shape = [(tag, list(attributes)) for tag, attributes in page.found]
    assert shape == [(tag, list(attributes)) for tag, attributes in plain.found]
    values = [field["value"] for field in page.all("input") if "value" in field]
    assert hostile in page.text
    assert template == "release.html" or hostile in values


def test_error_page_gives_the_typed_text_back_beside_what_is_wrong():
    html = pages.render("error.html", **PAGES["error.html"])
    page = Tags(html)
    by_name = {field["name"]: field for field in page.all("input", "textarea")}
    assert by_name["email"]["value"] == "ann@"
    assert by_name["name"]["value"] == 'A "Q"'
    assert by_name["_next"] == {"type": "hidden", "name": "_next", "value": "/x"}
    assert ">\n\nHi</textarea>" in html  # browsers drop the first newline
    assert by_name["email"]["aria-invalid"] == "true"
    assert "autofocus" in by_name["email"]
    wrong = by_name["email"]["aria-describedby"]
    assert f'id="{wrong}">This is not an email address.</p>' in html
    assert "aria-invalid" not in by_name["name"]
    assert html.count("This is not an email address.") == 1
    assert "<p>Something else.</p>" in html
    assert "trap" in [div.get("class") for div in page.all("div")]
    trap = {"name": "_gotcha", "tabindex": "-1", "autocomplete": "off"}
    assert by_name["_gotcha"] == trap
    assert len(page.all("form")) == len(page.all("button")) == 1


def test_error_page_with_only_hidden_fields_is_one_button():
    form = {**FORM, "fields": FORM["fields"][3:]}
    errors = [{"message": "Please wait.", "field": "email"}]
    values = {**PAGES["error.html"], "form": form, "errors": errors}
    page = Tags(pages.render("error.html", **values))
    assert [field["name"] for field in page.all("input", "textarea")] == ["_next"]
    assert len(page.all("button")) == 1
    assert "Please wait." in page.text


def test_error_page_without_a_form_shows_every_error():
    values = {**PAGES["error.html"], "form": None, "back_url": None}
    page = Tags(pages.render("error.html", **values))
    assert not page.all("form", "a", "button")
    assert all(error["message"] in page.text for error in ERRORS)


@pytest.mark.parametrize("mail_is_on", [True, False])
def test_welcome_shows_snippets_to_paste(mail_is_on):
    values = {**PAGES["welcome.html"], "mail_is_on": mail_is_on}
    page = Tags(pages.render("welcome.html", **values))
    live = [form["action"] for form in page.all("form")]
    assert live == ["/contact", "/newsletter"]
    assert ("Mail is off" in page.text) is not mail_is_on
    pasted = Tags(page.text)
    assert [form["action"] for form in pasted.all("form")] == [
        "https://desk.example/contact",
        "https://desk.example/newsletter",
    ]
    names = [field["name"] for field in pasted.all("input", "textarea")]
    assert names == [
        *("email", "name", "message", "_gotcha", "_next"),
        *("email", "_gotcha"),
    ]
    image = pasted.all("img")[0]
    assert image["referrerpolicy"] == "no-referrer-when-downgrade"
    assert image["src"] == "https://desk.example/hits.svg?page=/about"


@pytest.mark.parametrize("template", MAILS)
def test_mail_texts_begin_with_one_subject_line(template):
    head, blank, body = pages.render(template, **MAILS[template]).split("\n", 2)
    assert re.fullmatch(r"Subject: \S.*\S", head)
    assert blank == "" and body.strip()
    assert "\n\n\n" not in body
    assert "&amp;" not in body and "&#" not in body


@pytest.mark.parametrize(
    "changes, maybe_spam, subject",
    [
        ({}, False, "[Site] Opening hours"),
        ({}, True, "[Site] [maybe spam] Opening hours"),
        ({"subject": ""}, False, "[Site] Message from Ann Example"),
        ({"subject": None, "name": None}, False, "[Site] Message from ann@example.org"),
        ({"subject": "a\nBcc: b\r\nc"}, False, "[Site] a Bcc: b c"),
        (
            {"subject": "", "name": "a\nBcc: b"},
            True,
            "[Site] [maybe spam] Message from a Bcc: b",
        ),
        ({"subject": "<b> & {{ x }}"}, False, "[Site] <b> & {{ x }}"),
    ],
)
def test_contact_mail_has_the_subject_of_the_contract(changes, maybe_spam, subject):
    values = {**MAILS["mail-contact.txt"], "message": {**MESSAGE, **changes}}
    text = pages.render("mail-contact.txt", **{**values, "maybe_spam": maybe_spam})
    assert text.split("\n\n")[0] == f"Subject: {subject}"


def test_contact_mail_says_everything():
    text = pages.render("mail-contact.txt", **MAILS["mail-contact.txt"])
    body = text.partition("\n\n")[2]
    parts = [
        *("Ann Example <ann@example.org>", MESSAGE["message"]),
        *("Company: ACME & Sons", "Topic: Visit", MESSAGE["page"]),
        *(MESSAGE["received_at"], MESSAGE["client"], "3 links"),
    ]
    places = [body.index(part) for part in parts]
    assert places == sorted(places)


def test_contact_mail_names_the_address_that_was_refused_as_reply_to():
    values = {**MAILS["mail-contact.txt"], "reply_to_dropped": True}
    text = pages.render("mail-contact.txt", **values)
    assert "refused ann@example.org" in text
    assert "Replying to this mail" not in text


@pytest.mark.parametrize("template", ["mail-confirm.txt", "mail-confirm.html"])
def test_confirmation_mail_has_every_link_and_loads_nothing(template):
    text = pages.render(template, **CONFIRM)
    for name in ("confirm_url", "unsubscribe_url", "not_me_url"):
        assert CONFIRM[name] in text
    assert "7 days" in text
    page = Tags(text)
    assert not page.all("img", "script", "table", "form", "link")
    if template.endswith(".html"):
        assert CONFIRM["confirm_url"] in page.text  # also to be read and copied
        assert all(link["href"].startswith("https://desk.") for link in page.all("a"))


@pytest.mark.parametrize(
    "items, more, subject",
    [
        ([HELD], 0, "[Site] 1 message held as spam"),
        ([HELD, HELD], 0, "[Site] 2 messages held as spam"),
        ([HELD], 4, "[Site] 5 messages held as spam"),
    ],
)
def test_digest_counts_what_was_held_and_links_each(items, more, subject):
    values = {**MAILS["mail-digest.txt"], "items": items, "more": more}
    text = pages.render("mail-digest.txt", **values)
    assert text.startswith(f"Subject: {subject}\n\n")
    assert text.count(HELD["release_url"]) == text.count("3 links") == len(items)
    assert ("more, not listed" in text) is bool(more)
