"""Hold pages and mails to what people and their browsers rely on."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from jinja2 import UndefinedError

from frontdesk import colours, pages
from frontdesk.pages import Pages
from tests.support.samples import (
    CONFIRM,
    DONE,
    ERRORS,
    EVERY,
    FORM,
    HELD,
    MAILS,
    MESSAGE,
    PAGES,
    PARTS,
)
from tests.support.server import ROOT

HOSTILE = [
    "]]>",
    "\"'><script>alert(1)</script>",
    "<![CDATA[x]]>",
    "<!-- -- -->",
    "&amp; & &#0; &nbsp;",
    "{0} {label} {{x}} %s %(x)s",
]
SITE = Pages(site_name="Site")


def render(template: str, **changes: Any) -> str:
    """Render a template with its sample's values, some of them changed."""
    return SITE.render(template, **{**EVERY[template], **changes})


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


def test_importing_loads_no_jinja():
    code = (
        "import sys; from frontdesk import pages, pictures;"
        "site = pages.Pages('de', site_name='x'); pictures.badge('a', 'b');"
        "site.language.text('Thank you'); site.language.number(1234);"
        "print('jinja2' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert run.stdout.strip() == b"False", run.stderr


# Pages and mails


def test_every_template_is_under_test():
    files = {path.name for path in pages.TEMPLATES.iterdir()}
    assert files == {*EVERY, *PARTS}


@pytest.mark.parametrize(
    "template, name",
    [(template, name) for template in EVERY for name in EVERY[template]],
)
def test_a_forgotten_value_is_an_error(template, name):
    values = {key: value for key, value in EVERY[template].items() if key != name}
    SITE.render(template, **EVERY[template])
    with pytest.raises((UndefinedError, TypeError)):
        SITE.render(template, **values)


@pytest.mark.parametrize("template", PAGES)
def test_policy_allows_the_one_style_of_each_page(template):
    html = render(template)
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(styles) == html.count("<style") == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in SITE.policy(html)


@pytest.mark.parametrize("template", PAGES)
def test_pages_need_nothing_that_the_policy_forbids(template):
    page = Tags(render(template))
    assert not page.all("script", "iframe", "object", "base", "font")
    [icon] = page.all("link")
    assert icon["rel"] == "icon" and icon["href"].startswith("data:image/svg+xml,%3C")
    for tag, attributes in page.found:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert not re.match(r"(?i)https?:|//|data:", attributes.get("src", "")), tag
        assert attributes.get("srcset", "/").startswith("/")
    assert "url(" not in render(template)


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
    policy = SITE.policy("", *targets)
    assert form_action in policy
    names = [part.split()[0] for part in policy.split("; ")]
    assert names == [
        *("default-src", "style-src", "img-src"),
        *("form-action", "base-uri", "frame-ancestors"),
    ]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("template", PAGES)
def test_pages_are_in_order_for_screen_readers_and_robots(template):
    page = Tags(render(template))
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
        *("held.html", "ask.html"),
    ],
)
def test_pages_that_act_have_one_form_and_one_button(template):
    page = Tags(render(template))
    [form] = page.all("form")
    assert (form["method"], form["action"]) == ("post", EVERY[template]["action"])
    assert len(page.all("button")) == 1


def test_expired_page_asks_again():
    page = Tags(render("expired.html"))
    assert page.all("input") == [{"type": "hidden", "name": "again", "value": "1"}]


def test_delivered_message_offers_no_button():
    page = Tags(render("held.html", message={**MESSAGE, "delivered": True}))
    assert not page.all("form", "button", "a")
    assert "Delivered already" in page.text


@pytest.mark.parametrize("template", [name for name in PAGES if PAGES[name] is DONE])
def test_result_pages_link_back_if_there_is_somewhere(template):
    [link] = Tags(render(template)).all("a")
    assert link == {"class": "button", "href": "https://site.example/"}
    page = Tags(render(template, back_url=None))
    assert not page.all("a")


def typed_pages(text):
    """Render each page that shows what a visitor typed, all of it being the text."""
    names = ("name", "email", "subject", "referrer")
    message = {**MESSAGE, **dict.fromkeys(names, text), "shown": [(text, text)]}
    form = {**FORM, "fields": [{**field, "value": text} for field in FORM["fields"]]}
    pair = [(text, text)]
    return {
        "ask.html": {**PAGES["ask.html"], "fields": pair, "shown": pair},
        "held.html": {**PAGES["held.html"], "message": message},
        "error.html": {**PAGES["error.html"], "form": form},
    }


@pytest.mark.parametrize("hostile", HOSTILE[2:8])
@pytest.mark.parametrize("template", typed_pages("x"))
def test_what_a_visitor_typed_is_text_on_every_page(template, hostile):
    page = Tags(SITE.render(template, **typed_pages(hostile)[template]))
    plain = Tags(SITE.render(template, **typed_pages("x")[template]))
    shape = [(tag, list(attributes)) for tag, attributes in page.found]
    assert shape == [(tag, list(attributes)) for tag, attributes in plain.found]
    values = [field["value"] for field in page.all("input") if "value" in field]
    assert hostile in page.text
    assert template == "held.html" or hostile in values


def test_error_page_gives_the_typed_text_back_beside_what_is_wrong():
    html = render("error.html")
    page = Tags(html)
    by_name = {field["name"]: field for field in page.all("input", "textarea")}
    assert by_name["email"]["value"] == "ann@"
    assert by_name["name"]["value"] == 'A "Q"'
    assert by_name["_next"] == {"type": "hidden", "name": "_next", "value": "/x"}
    assert ">\n\nHi</textarea>" in html  # browsers drop the first newline
    assert by_name["email"]["aria-invalid"] == "true"
    assert "autofocus" in by_name["email"]
    wrong = by_name["email"]["aria-describedby"]
    assert f'id="{wrong}">3 x 3</p>' in html
    assert "aria-invalid" not in by_name["name"]
    assert html.count("3 x 3") == 1
    assert "<p>4 x 4</p>" in html
    assert "trap" in [div.get("class") for div in page.all("div")]
    trap = {"name": "_gotcha", "tabindex": "-1", "autocomplete": "off"}
    assert by_name["_gotcha"] == trap
    assert len(page.all("form")) == len(page.all("button")) == 1


def test_error_page_with_only_hidden_fields_is_one_button():
    form = {**FORM, "fields": FORM["fields"][3:]}
    errors = [{"message": "Please wait.", "field": "email"}]
    page = Tags(render("error.html", form=form, errors=errors))
    assert [field["name"] for field in page.all("input", "textarea")] == ["_next"]
    assert len(page.all("button")) == 1
    assert "Please wait." in page.text


def test_error_page_without_a_form_shows_every_error():
    page = Tags(render("error.html", form=None, back_url=None))
    assert not page.all("form", "a", "button")
    assert all(error["message"] in page.text for error in ERRORS)


@pytest.mark.parametrize("mail_is_on", [True, False])
def test_welcome_shows_snippets_to_paste(mail_is_on):
    page = Tags(render("welcome.html", mail_is_on=mail_is_on))
    live = [form["action"] for form in page.all("form")]
    assert live == ["/contact", "/newsletter"]
    assert ("Email is off" in page.text) is not mail_is_on
    pasted = Tags(page.text)
    assert [form["action"] for form in pasted.all("form")] == [
        "https://desk.example/contact",
        "https://desk.example/newsletter",
    ]
    names = [field["name"] for field in pasted.all("input", "textarea")]
    assert names == [*("email", "name", "message", "_gotcha"), *("email", "_gotcha")]
    image = pasted.all("img")[0]
    assert image["referrerpolicy"] == "no-referrer-when-downgrade"
    assert image["src"] == "https://desk.example/hits.svg"


@pytest.mark.parametrize("template", MAILS)
def test_mail_texts_begin_with_one_subject_line(template):
    head, blank, body = render(template).split("\n", 2)
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
        ({"subject": "", "name": ""}, False, "[Site] Message from ann@example.org"),
        (
            {"subject": "", "name": "", "email": ""},
            False,
            "[Site] Message from a visitor",
        ),
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
    message = {**MESSAGE, **changes}
    text = render("mail-contact.txt", message=message, maybe_spam=maybe_spam)
    assert text.split("\n\n")[0] == f"Subject: {subject}"


def test_contact_mail_shows_all_fields_in_the_forms_order():
    text = render("mail-contact.txt")
    assert text.partition("\n\n")[2] == (
        "Name: Ann Example\n\n"
        "Nachricht:\nHello,\n\nare you open on Saturdays?\n\n"
        "Company: ACME & Sons\n\n--\n"
        "Replying to this email answers Ann Example.\n"
        "This may be spam (3 links). Think twice before you open a link in it.\n"
        "Page: https://site.example/contact\n"
        "Received: 22 November 2025, 14:20 UTC\n"
        "Network: 203.0.113.0"
    )


def test_contact_mail_says_when_no_address_was_given():
    text = render("mail-contact.txt", message={**MESSAGE, "email": ""})
    assert "No email address was given" in text
    assert "Replying to this email" not in text


def test_contact_mail_names_the_address_that_was_refused_as_reply_to():
    text = render("mail-contact.txt", reply_to_dropped=True)
    assert "refused ann@example.org" in text
    assert "Replying to this email" not in text


@pytest.mark.parametrize("template", ["mail-confirm.txt", "mail-confirm.html"])
def test_confirmation_mail_has_every_link_and_loads_nothing(template):
    text = render(template)
    for name in ("confirm_url", "unsubscribe_url", "not_me_url"):
        assert CONFIRM[name] in text
    assert "7 days" in text
    page = Tags(text)
    assert not page.all("img", "script", "table", "form", "link")
    if template.endswith(".html"):
        assert CONFIRM["confirm_url"] in page.text  # also to be read and copied
        assert all(link["href"].startswith("https://desk.") for link in page.all("a"))
        assert len([a for a in page.all("a") if a.get("class") == "button"]) == 1
    assert "newsletter of Site" in page.text.split("?")[0]  # what it is about, at once
    assert "one more press" in page.text


@pytest.mark.parametrize(
    "items, more, subject",
    [
        ([HELD], 0, "[Site] 1 message held as spam"),
        ([HELD, HELD], 0, "[Site] 2 messages held as spam"),
        ([HELD], 4, "[Site] 5 messages held as spam"),
    ],
)
def test_digest_counts_what_was_held_and_links_each(items, more, subject):
    text = render("mail-digest.txt", items=items, more=more, dropped=0)
    assert text.startswith(f"Subject: {subject}\n\n")
    assert text.count(HELD["deliver_url"]) == text.count("3 links") == len(items)
    assert ("not listed here" in text) is bool(more)


# Language and look


@pytest.mark.parametrize("template", PAGES)
def test_pages_name_their_language_and_keep_to_the_sites_look(template):
    logo = "https://site.example/logo.png"
    site = Pages("pt-BR", site_name="S", accent_color="gold", logo_url=logo)
    html = site.render(template, **PAGES[template])
    page = Tags(html)
    assert page.all("html") == [{"lang": "pt-BR"}]
    assert page.all("img")[0] == {"src": logo, "alt": "S"}
    assert "--fill: #ffd700; --ink-on-fill: #000000" in html
    assert " img-src 'self' data: https://site.example;" in site.policy(html)


def test_the_confirmation_mail_has_the_sites_look():
    logo = "https://site.example/logo.png"
    site = Pages(site_name="S", accent_color="gold", logo_url=logo)
    html = site.render("mail-confirm.html", **CONFIRM)
    assert [image["src"] for image in Tags(html).all("img")] == [logo]
    assert "background:#ffd700;color:#000000" in html


@pytest.mark.parametrize("color", ["white", "black", "gold", "#767676", "#0b5c8f"])
def test_an_accent_colour_can_be_read_in_light_and_dark(color):
    light, dark = colours.look(color)
    for shades, ground in ((light, "#f5f4f0"), (light, "#fff"), (dark, "#1d2329")):
        accent, fill, ink, under = map(colours.parse, (*shades, ground))
        assert colours.contrast(accent, under) >= 4.5
        assert colours.contrast(ink, fill) >= 4.5


@pytest.mark.parametrize(
    "text, rgb",
    [
        ("RebeccaPurple", (0x66, 0x33, 0x99)),
        ("#B5532A", (0xB5, 0x53, 0x2A)),
        ("#b52", (0xBB, 0x55, 0x22)),
        ("rgb(181, 83, 42)", (181, 83, 42)),
        ("rgb(100% 0% 50%)", (255, 0, 128)),
        ("rgb(300 -5 0)", (255, 0, 0)),
        ("hsl(120, 100%, 25%)", (0, 128, 0)),
        ("hsl(-240deg 100% 25%)", (0, 128, 0)),
    ],
)
def test_an_accent_colour_is_any_opaque_css_colour(text, rgb):
    assert colours.parse(text) == rgb


@pytest.mark.parametrize(
    "text",
    [
        *("terracotta", "#12345", "#b5532a80", "b5532a", "rgb(1,2)", "rgb(1,2,3,.5)"),
        *("hsl(1 2 3);}body{", "url(x)", "inherit", "var(--x)", "", "rgb(٣,٣,٣)"),
    ],
)
def test_what_is_no_opaque_css_colour_is_refused(text):
    with pytest.raises(ValueError, match="CSS colour"):
        colours.parse(text)


# The owner's own templates


def test_the_owners_templates_stand_in_for_ours_one_by_one(tmp_path):
    own = '{% extends "done.html" %}{% set title = "Ahoy" %}'
    (tmp_path / "thanks.html").write_text(own)
    style = "<style>p { color: red }</style>"
    (tmp_path / "left.html").write_text(f"{style}<p>{{{{ site_name }}}} {{{{ lang }}}}")
    pages.check_templates(tmp_path)
    site = Pages("de", site_name="Site", folder=tmp_path)
    assert "<h1>Ahoy</h1>" in site.render("thanks.html", **DONE)
    left = site.render("left.html", **DONE)
    assert left == f"{style}<p>Site de"
    digest = base64.b64encode(hashlib.sha256(style[7:-8].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in site.policy(left)
    assert "<h1>" in site.render("confirmed.html", **PAGES["confirmed.html"])


def test_a_template_of_the_owners_that_fails_is_logged_and_ours_is_shown(
    tmp_path, caplog
):
    (tmp_path / "thanks.html").write_text("{{ no_such_value }}")
    site = Pages(site_name="Site", folder=tmp_path)
    assert site.render("thanks.html", **DONE) == SITE.render("thanks.html", **DONE)
    assert caplog.messages == ["TEMPLATE_DIR: thanks.html: UndefinedError"]


@pytest.mark.parametrize(
    "name, text, problem",
    [
        ("thanks.html", "{% if x %}", "thanks.html, line 1: "),
        (
            "mail-test.txt",
            "Subject: x\n{{ x|no_such_filter }}",
            "mail-test.txt, line 2",
        ),
        ("left.html", "caf\udce9", "left.html cannot be read"),
    ],
)
def test_a_template_that_does_not_compile_is_a_problem(tmp_path, name, text, problem):
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=problem):
        pages.check_templates(tmp_path)


def test_a_missing_folder_is_a_problem_and_other_files_are_none(tmp_path):
    (tmp_path / "logo.png").write_bytes(b"\xff")
    (tmp_path / "README.md").write_text("{% if")
    pages.check_templates(tmp_path)
    with pytest.raises(ValueError, match="cannot read the folder"):
        pages.check_templates(tmp_path / "x")


def test_the_documentation_lists_each_template_with_its_values():
    text = (ROOT / "docs" / "templates.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \|.*\| (.*) \|$", text, re.MULTILINE)
    rows = [(name, re.sub(r"\([^()]*\)", "", values)) for name, values in rows]
    listed = {name: set(re.findall(r"`(\w+)`", values)) for name, values in rows}
    assert listed == {name: set(values) for name, values in EVERY.items()}
