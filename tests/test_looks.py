"""The site's language and look, all the way through the service."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import falcon.testing
import pytest

from api import create_app
from frontdesk.database import current, execute
from tests.support.desk import Clock, Desk

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def visit(desk: Desk, path: str, **headers: str) -> falcon.testing.Result:
    """Open a page as a browser does."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return desk.client.simulate_get(path, headers={**BROWSER, **named})


def heading(answer: falcon.testing.Result) -> str:
    found = re.search(r"<h1>(.*?)</h1>", answer.text)
    return found[1] if found else ""


def confirm_path(desk: Desk) -> str:
    """Sign an address up and return the path that its mail leads to."""
    desk.post("/newsletter", {"email": "ada@example.com"})
    text = desk.drain()[-1]["TextPart"]
    return re.findall(r"https://desk\.example(/newsletter/confirm/\S+)", text)[0]


# --- language --------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/thanks", "/nothing", "/newsletter/confirm/x"])
def test_pages_say_which_language_they_are_in(
    make_desk: Callable[..., Desk], path: str
) -> None:
    page = visit(make_desk(site_language="pt-BR"), path)
    assert page.headers["content-language"] == "pt-BR"
    assert '<html lang="pt-BR">' in page.text


@pytest.mark.parametrize("form", [{"message": "Olá", "email": "a@example.com"}, {}])
def test_answers_to_scripts_say_it_too(
    make_desk: Callable[..., Desk], form: dict[str, str]
) -> None:
    answer = make_desk(site_language="pt-BR").post("/contact", form)
    assert answer.headers["content-language"] == "pt-BR"
    assert answer.json["message"]


def test_badges_shields_and_charts_write_numbers_as_the_language_does(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(site_language="de")
    for _ in range(3):
        desk.client.simulate_get("/hits.gif?page=/a")
    for table in ("page", "hit"):
        update = f"UPDATE {table} SET hits = 1234"
        current().write(lambda update=update: execute(update))
    badge = desk.client.simulate_get("/hits.svg?page=/a&count=false&label=x")
    assert 'aria-label="x: 1.234"' in badge.text
    assert desk.client.simulate_get("/hits/shield?page=/a").json["message"] == "1.234"
    assert "1.234" in desk.client.simulate_get("/hits/chart.svg?page=/a").text


def test_two_applications_in_one_process_speak_two_languages(
    make_desk: Callable[..., Desk], clock: Clock, tmp_path: Path
) -> None:
    german = make_desk(site_language="de", accent_color="gold")
    settings = german.settings
    url = f"sqlite:///{tmp_path}/second.db"
    english = create_app(type(settings)(database_url=url), clock=clock)
    other = falcon.testing.TestClient(english).simulate_get("/thanks", headers=BROWSER)
    page = visit(german, "/thanks")
    assert '<html lang="en">' in other.text and "#ffd700" not in other.text
    assert '<html lang="de">' in page.text and "#ffd700" in page.text
    english.service.limits.store.close()
    english.service.database.close()


# --- look ------------------------------------------------------------------------


def test_the_logos_origin_is_the_only_one_that_pages_may_load_from(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(logo_url="https://cdn.example/logo.png")
    policy = visit(desk, "/thanks").headers["content-security-policy"]
    assert "img-src 'self' data: https://cdn.example;" in policy
    assert policy.count("https:") == 1


def test_a_template_of_the_owners_is_shown(
    make_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    own = '{% extends "done.html" %}{% set title = "Ahoy" %}'
    (tmp_path / "thanks.html").write_text(own)
    desk = make_desk(template_dir=tmp_path)
    assert heading(visit(desk, "/thanks")) == "Ahoy"
    assert heading(visit(desk, "/thanks?newsletter")) == "One more step"


# --- words -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers, elsewhere",
    [
        ({"Host": "desk.example"}, False),
        ({"Host": "DESK.example:443"}, False),
        ({"Host": "evil.example"}, True),
        ({"Host": "desk.example:8000"}, True),
        ({"Host": "inside:8000", "X_Forwarded_Host": "desk.example"}, False),
        ({"Host": "desk.example", "X_Forwarded_Host": "evil.example"}, True),
        ({"Host": "desk.example:x<b>"}, True),
    ],
)
def test_the_welcome_page_says_so_where_it_was_reached_under_another_name(
    make_desk: Callable[..., Desk], headers: dict[str, str], elsewhere: bool
) -> None:
    page = visit(make_desk(), "/", **headers)
    assert page.status_code == 200
    assert ("under another address" in page.text) is elsewhere
    assert ("emails will lead to https://desk.example." in page.text) is elsewhere
    assert "evil" not in page.text and "x<b>" not in page.text


def test_who_has_confirmed_already_is_told_so(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk()
    path = confirm_path(desk)
    assert heading(visit(desk, path)) == "One more press"
    desk.client.simulate_post(path)
    assert heading(visit(desk, path)) == "You are signed up already"
    clock.advance(8 * 86400)
    assert heading(visit(desk, path)) == "You are signed up already"


def test_a_broken_link_and_a_wrong_address_get_warm_words(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk()
    for path in ("/newsletter/confirm/x", "/newsletter/unsubscribe/x", "/release/x"):
        answer = visit(desk, path)
        assert answer.status_code == 404
        assert heading(answer) == "This link does not work"
    answer = visit(desk, "/no/such/page")
    assert (answer.status_code, heading(answer)) == (404, "There is nothing here")


def test_every_page_has_a_way_back_where_there_is_one(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk()
    path = confirm_path(desk)
    for page in (path, path.replace("confirm", "not-me"), "/thanks", "/no/such/page"):
        assert 'href="https://site.example"' in visit(desk, page).text


# --- pictures --------------------------------------------------------------------


@pytest.mark.parametrize("style", ["flat", "flat-square", "for-the-badge", "plain"])
def test_badges_come_in_four_styles(make_desk: Callable[..., Desk], style: str) -> None:
    answer = make_desk().client.simulate_get(f"/hits.svg?page=/a&style={style}")
    assert answer.status_code == 200
    height = "28" if style == "for-the-badge" else "20"
    assert ElementTree.fromstring(answer.text).get("height") == height


@pytest.mark.parametrize(
    "path", ["/hits.svg?page=/a&style=../x", "/hits/chart.svg?page=/a&size=huge"]
)
def test_an_unknown_style_or_size_is_refused_with_a_picture_and_counts_nothing(
    make_desk: Callable[..., Desk], path: str
) -> None:
    desk = make_desk()
    answer = desk.client.simulate_get(path)
    assert answer.status_code == 422
    ElementTree.fromstring(answer.text)
    assert desk.client.simulate_get("/hits?page=/a").json["hits"] == 0


def test_a_chart_takes_title_colour_and_size(make_desk: Callable[..., Desk]) -> None:
    path = "/hits/chart.svg?page=/&size=narrow&title=Mara%27s%20visits&color=orange"
    root = ElementTree.fromstring(make_desk().client.simulate_get(path).text)
    assert root.get("width") == "360"
    assert "Mara's visits" in "".join(root.itertext())
