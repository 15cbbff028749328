"""The hit counter: what is a page, what counts, and what is drawn."""

from __future__ import annotations

import runpy
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA
from hypothesis import given
from hypothesis import strategies as st

from frontdesk import forms, paths
from frontdesk.counter import Hit, Page, Visitor
from frontdesk.database import current, execute, insert
from frontdesk.settings import Settings, Window
from frontdesk.tables import DAY, Setting, Table, Tally, day_of
from hits import kind_of
from tests.support.desk import NOON, Clock, Desk
from tests.support.server import ROOT

CHROME = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/149.0.0.0 Safari/537.36"
)
GITHUB_PROXY = "github-camo (876de43e)"
IMAGES = ("/hits.gif", "/hits.svg", "/hits/chart.svg")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    """A service whose rate limit is out of the way."""
    return make_desk(hits_limit=(Window(10_000, 60),))


def hit(desk: Desk, page: str = "/", agent: str = CHROME, **kwargs: Any) -> Any:
    headers = {"User-Agent": agent, **kwargs.pop("headers", {})}
    return desk.client.simulate_post(
        "/hits", json={"page": page}, headers=headers, **kwargs
    )


def read(desk: Desk, page: str = "/", **params: Any) -> Any:
    return desk.client.simulate_get("/hits", params={"page": page, **params})


def sums(desk: Desk, page: str = "/") -> tuple[int, int]:
    answer = read(desk, page).json
    return answer["hits"], answer["visitors"]


def texts(svg: str) -> str:
    """Parse a picture and return all its texts."""
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return " ".join(root.itertext())


# --- pages -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "page"),
    [
        ("/", "/"),
        ("about", "/about"),
        ("/about/", "/about"),
        ("//about///me//", "/about/me"),
        ("/about?x=1&y=2", "/about"),
        ("/about#top", "/about"),
        ("/about/?x=1#top", "/about"),
        ("https://site.example", "/"),
        ("https://site.example/", "/"),
        ("https://site.example/about?x", "/about"),
        ("http://site.example:8080/a//b/", "/a/b"),
        ("https://site.example?x", "/"),
        ("https://ada:pw@site.example/a", "/a"),
        ("/About", "/About"),
        ("/caf%C3%A9", "/café"),
        ("/caf%c3%a9", "/café"),
        ("/café", "/café"),
        ("/cafe\u0301", "/café"),
        ("/%7Eada", "/~ada"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%3fb", "/a%3Fb"),
        ("/a b", "/a%20b"),
        ("/a%20b", "/a%20b"),
        ("/a%zz", "/a%25zz"),
        ("/%ff", "/%FF"),
        (" /about ", "/about"),
        ("/" + "a" * 199, "/" + "a" * 199),
        ("/(other)", "/(other)"),
        ("/index.html", "/"),
        ("/blog/index.html", "/blog"),
        ("/blog/index.htm?x#y", "/blog"),
        ("https://site.example/blog//index.html", "/blog"),
        ("/blog/index.html/index.htm", "/blog"),
        ("/blog/index.php", "/blog/index.php"),
        ("/blog/my-index.html", "/blog/my-index.html"),
        ("/index.html/more", "/index.html/more"),
    ],
)
def test_a_page_has_one_name(desk: Desk, named: str, page: str) -> None:
    answer = hit(desk, named)
    assert answer.status_code == 200
    assert answer.json["page"] == page
    assert read(desk, page).json["hits"] == 1


@pytest.mark.parametrize(
    ("named", "code"),
    [
        ("/a\u0000b", "TYPE_TEXT"),
        ("/a%00b", "TYPE_TEXT"),
        ("/a%0ab", "TYPE_TEXT"),
        ("/a\nb", "TYPE_TEXT"),
        ("/a\x7fb", "TYPE_TEXT"),
        ("/a%C2%85b", "TYPE_TEXT"),
        ("/" + "a" * 200, "TOO_LONG"),
        ("/" + "a" * 5000, "TOO_LONG"),
        ("", "REQUIRED_FIELD_MISSING"),
    ],
    ids=[
        *("nul", "encoded-nul", "encoded-newline", "newline", "delete", "c1"),
        *("201", "5001", "none"),
    ],
)
def test_a_bad_page_is_refused(desk: Desk, named: str, code: str) -> None:
    answer = hit(desk, named)
    assert answer.status_code == 422
    assert answer.json["errors"][0]["code"] == code
    assert Hit.select().count() == 0


def test_a_lone_surrogate_is_refused(desk: Desk) -> None:
    answer = desk.client.simulate_post(
        "/hits",
        body=b'{"page": "/\\ud800"}',
        headers={"Content-Type": "application/json", "User-Agent": CHROME},
    )
    assert answer.status_code in (400, 422)
    assert Hit.select().count() == 0


@given(st.text(max_size=60))
def test_the_name_of_a_page_is_stable(text: str) -> None:
    try:
        page = paths.page_of(text)
    except forms.Rejected:
        return
    assert page.startswith("/")
    assert len(page) <= 200
    assert not {"?", "#", "\0", "\n"} & set(page)
    assert "//" not in page
    assert paths.page_of(page) == page


@pytest.mark.parametrize(
    ("referer", "page"),
    [
        ("https://site.example/blog/?q#x", "/blog"),
        ("https://site.example/", "/"),
        ("https://site.example", "/"),
    ],
)
def test_an_unnamed_page_is_the_referers(desk: Desk, referer: str, page: str) -> None:
    headers = {"Referer": referer, "User-Agent": CHROME}
    answer = desk.client.simulate_post("/hits", headers=headers)
    assert answer.json["page"] == page
    desk.client.simulate_get("/hits.gif", headers=headers)
    desk.client.simulate_get("/hits.svg", headers=headers)
    assert sums(desk, page) == (3, 1)


@pytest.mark.parametrize("referer", ["", "about:blank", "/blog", "not a url"])
def test_without_page_and_referer_nothing_counts(desk: Desk, referer: str) -> None:
    answer = desk.client.simulate_get("/hits.gif", headers={"Referer": referer})
    assert answer.status_code == 422
    answer = desk.client.simulate_post("/hits")
    assert answer.json["errors"][0]["field"] == "page"
    assert Hit.select().count() == 0


# --- counting --------------------------------------------------------------------

FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b'{"page": "/about"}'),
        ("application/json; charset=utf-8", b'{"page": "/about", "more": [1]}'),
        (FORM, b"page=%2Fabout"),
        ("text/plain", b"/about"),
        ("text/plain;charset=UTF-8", b"https://site.example/about"),
        ("text/plain;charset=UTF-8", b' {"page": "/about"}'),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="page"\r\n\r\n/about\r\n'
            b"--x--\r\n",
        ),
    ],
    ids=["json", "json-more", "form", "path", "url", "beacon-json", "multipart"],
)
def test_a_hit_may_have_any_body(desk: Desk, kind: str, body: bytes) -> None:
    answer = desk.client.simulate_post(
        "/hits", body=body, headers={"Content-Type": kind, "User-Agent": CHROME}
    )
    assert answer.status_code == 200
    assert answer.json == {"page": "/about", "hits": 1, "visitors": 1, "counted": True}
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b"[]", 400),
        ("application/json", b'{"page": {"a": 1}}', 422),
        ("text/plain", b"\xff", 400),
        ("application/xml", b"<a/>", 415),
        ("text/plain", b"/" + b"a" * 70_000, 413),
    ],
    ids=["cut-json", "list", "nested", "no-utf8", "xml", "huge"],
)
def test_a_bad_body_counts_nothing(
    desk: Desk, kind: str, body: bytes, status: int
) -> None:
    answer = desk.client.simulate_post(
        "/hits", body=body, headers={"Content-Type": kind}
    )
    assert answer.status_code == status
    assert answer.json["ok"] is False
    assert Hit.select().count() == 0


@pytest.mark.parametrize("path", ["/hits.gif", "/hits.gif/"])
def test_the_pixel_counts_and_is_transparent(desk: Desk, path: str) -> None:
    answer = desk.client.simulate_get(
        path, params={"page": "/about"}, headers={"User-Agent": CHROME}
    )
    assert answer.headers["content-type"] == "image/gif"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.content[:6] == b"GIF89a"
    assert struct.unpack("<HH", answer.content[6:10]) == (1, 1)
    assert answer.content[-1:] == b";"
    assert sums(desk, "/about") == (1, 1)
    # The graphic control extension names colour 0 transparent, and it is used.
    extension = answer.content.index(b"\x21\xf9\x04")
    assert answer.content[extension + 3] & 1


def test_the_badge_counts_and_shows(desk: Desk) -> None:
    for n in (1, 2):
        answer = desk.client.simulate_get(
            "/hits.svg", params={"page": "/about"}, headers={"User-Agent": CHROME}
        )
        assert answer.headers["content-type"] == "image/svg+xml"
        assert answer.headers["cache-control"] == "no-store"
        assert f"hits: {n}" in texts(answer.text)
    assert sums(desk, "/about") == (2, 1)


def test_the_badge_may_only_show(desk: Desk) -> None:
    hit(desk, "/about")
    answer = desk.client.simulate_get("/hits.svg?page=/about&count=false")
    assert "hits: 1" in texts(answer.text)
    assert sums(desk, "/about") == (1, 1)


def test_the_badge_takes_label_colour_and_style(desk: Desk) -> None:
    params = {"page": "/", "label": "seen <b>", "color": "ff0000", "count": "false"}
    flat = desk.client.simulate_get("/hits.svg", params=params).text
    square = desk.client.simulate_get(
        "/hits.svg", params={**params, "style": "flat-square"}
    ).text
    for svg in (flat, square):
        assert "seen <b>: 0" in texts(svg)
        assert 'fill="#ff0000"' in svg
    assert "clipPath" in flat
    assert "clipPath" not in square


@pytest.mark.parametrize(
    "params",
    [
        {"label": "\x00\u202e" * 50 + "<script>"},
        {"color": '"/><script>'},
        {"color": "url(http://evil.example)"},
        {"label": ""},
        {"label": "x" * 5000},
    ],
    ids=["label", "colour", "colour-url", "no-label", "long-label"],
)
def test_a_strange_badge_is_still_a_badge(desk: Desk, params: dict[str, str]) -> None:
    answer = desk.client.simulate_get("/hits.svg", params={"page": "/", **params})
    assert answer.status_code == 200
    texts(answer.text)
    assert "<script" not in answer.text
    assert "evil" not in answer.text


def test_reading_never_counts(desk: Desk) -> None:
    hit(desk, "/about")
    for path in ("/hits", "/hits/shield", "/hits/chart.svg"):
        for method in ("GET", "HEAD"):
            answer = desk.client.simulate_request(
                method, path, params={"page": "/about"}, headers={"User-Agent": CHROME}
            )
            assert answer.status_code == 200
    assert sums(desk, "/about") == (1, 1)


@pytest.mark.parametrize("path", ["/hits.gif", "/hits.svg"])
def test_head_never_counts(desk: Desk, path: str) -> None:
    answer = desk.client.simulate_head(
        path, params={"page": "/about"}, headers={"User-Agent": CHROME}
    )
    assert answer.status_code == 200
    assert answer.content == b""
    assert sums(desk, "/about") == (0, 0)


# --- reading ---------------------------------------------------------------------


def test_the_json_has_the_days_with_gaps(desk: Desk, clock: Clock) -> None:
    hit(desk, "/about")
    clock.advance(2 * DAY)
    hit(desk, "/about")
    hit(desk, "/about")
    answer = read(desk, "/about", days=3).json
    today = day_of(clock())
    days = [day_of(clock() - n * DAY) for n in (2, 1, 0)]
    assert answer == {
        "page": "/about",
        "hits": 3,
        "visitors": 2,
        "days": [
            {"date": days[0], "hits": 1, "visitors": 1},
            {"date": days[1], "hits": 0, "visitors": 0},
            {"date": today, "hits": 2, "visitors": 1},
        ],
    }


@pytest.mark.parametrize(
    ("query", "count"), [("", 30), ("&days=1", 1), ("&days=365", 365)]
)
def test_the_number_of_days_is_chosen(desk: Desk, query: str, count: int) -> None:
    answer = desk.client.simulate_get(f"/hits?page=/x{query}")
    assert len(answer.json["days"]) == count


@pytest.mark.parametrize(
    "days", ["0", "366", "-1", "x", "1.5", "1e2", "\u0663", "999999"]
)
@pytest.mark.parametrize("path", ["/hits", "/hits/chart.svg"])
def test_a_strange_number_of_days_is_refused(desk: Desk, path: str, days: str) -> None:
    answer = desk.client.simulate_get(path, params={"page": "/", "days": days})
    assert answer.status_code == 422
    if path == "/hits":
        assert answer.json["errors"][0]["field"] == "days"


def test_an_unknown_page_has_no_hits(desk: Desk) -> None:
    assert sums(desk, "/nowhere") == (0, 0)


def test_the_shield_has_the_endpoint_schema(desk: Desk) -> None:
    hit(desk, "/about")
    answer = desk.client.simulate_get(
        "/hits/shield", params={"page": "/about", "label": "views", "color": "green"}
    )
    assert answer.json == {
        "schemaVersion": 1,
        "label": "views",
        "message": "1",
        "color": "green",
    }


def test_the_chart_draws_a_bar_for_each_day(desk: Desk, clock: Clock) -> None:
    hit(desk, "/a<b>")
    clock.advance(DAY)
    hit(desk, "/a<b>")
    answer = desk.client.simulate_get(
        "/hits/chart.svg", params={"page": "/a<b>", "days": "7"}
    )
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "2 hits, 2 visitors; from 10 January 2027 to 16 January" in texts(
        answer.text
    )
    bars = next(
        path
        for path in ElementTree.fromstring(answer.text).iter(f"{SVG}path")
        if path.get("class") == "hits"
    )
    assert bars.get("d", "").count("M") == 2


# --- who counts ------------------------------------------------------------------


@pytest.mark.parametrize(
    "agent",
    [
        "curl/8.5.0",
        "curl",
        "",
        CHROME,
        "Mozilla/5.0 (Linux; Android 9; CUBOT_X18_Plus) Chrome/100.0 Mobile Safari/537",
        "Mozilla/5.0 (Linux; Android 12; CUBOT P60) Chrome/100.0 Mobile Safari/537",
    ],
    ids=["curl", "old-curl", "none", "chrome", "cubot", "cubot2"],
)
def test_people_and_curl_count(desk: Desk, agent: str) -> None:
    assert hit(desk, agent=agent).json == {
        "page": "/",
        "hits": 1,
        "visitors": 1,
        "counted": True,
    }


@pytest.mark.parametrize(
    "agent",
    [
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
        "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
        "DuckDuckBot/1.1",
        "facebookexternalhit/1.1",
        "Twitterbot/1.0",
        "Slackbot-LinkExpanding 1.0",
        "Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)",
        "Pingdom.com_bot_version_1.4",
        "Mozilla/5.0 AppleWebKit (compatible; GPTBot/1.2; +https://openai.com/gptbot)",
        "ClaudeBot/1.0; +claudebot@anthropic.com",
        "CCBot/2.0",
        "Baiduspider+(+http://www.baidu.com/search/spider.htm)",
        "AhrefsBot/7.0",
        f"{CHROME} Chrome-Lighthouse",
        "Mediapartners-Google",
        "Scrapy/2.11",
        "python-requests/2.32.3",
        "Wget/1.24",
        "node",
        "undici",
        "Deno/2.1.4",
        "Java/21.0.2",
        "Dart/3.5 (dart:io)",
        "GuzzleHttp/7",
        "python-urllib3/2.2.3",
        "PostmanRuntime/7.43.0",
        "PHP-Curl-Class/4.13.0 PHP/7.4 curl/7.69.1",
        CHROME.replace("Chrome/", "HeadlessChrome/"),
        "Mozilla/5.0 (compatible; YandexMetrika/2.0; +http://yandex.com/bots)",
        "W3C-checklink/4.81 libwww-perl/6.08",
        "x" * 500 + "Googlebot/2.1",
    ],
)
def test_crawlers_and_monitors_do_not_count(desk: Desk, agent: str) -> None:
    hit(desk)
    for _ in range(2):
        assert hit(desk, agent=agent).json == {
            "page": "/",
            "hits": 1,
            "visitors": 1,
            "counted": False,
            "reason": "crawler",
        }
    for path in ("/hits.gif", "/hits.svg"):
        answer = desk.client.simulate_get(
            path, params={"page": "/"}, headers={"User-Agent": agent}
        )
        assert answer.status_code == 200
    assert sums(desk) == (1, 1)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Sec-Purpose", "prefetch"),
        ("Sec-Purpose", "prefetch;prerender"),
        ("Sec-Purpose", "Prefetch"),
        ("Purpose", "prefetch"),
        ("Purpose", "prerender"),
        ("X-Moz", "prefetch"),
    ],
)
def test_a_prefetch_does_not_count(desk: Desk, header: str, value: str) -> None:
    answer = hit(desk, headers={header: value})
    assert answer.json["counted"] is False
    assert answer.json["reason"] == "prefetch"
    assert sums(desk) == (0, 0)


def test_a_visitor_is_counted_once_a_page_and_day(desk: Desk, clock: Clock) -> None:
    def visit(page: str, address: str, agent: str = CHROME) -> int:
        return hit(desk, page, agent, remote_addr=address).json["visitors"]

    assert visit("/a", "203.0.113.1") == 1
    assert visit("/a", "203.0.113.1") == 1
    assert visit("/a", "203.0.113.2") == 2  # another address
    assert visit("/a", "203.0.113.1", "Firefox") == 3  # another browser
    assert visit("/b", "203.0.113.1") == 1  # another page
    clock.advance(DAY)
    assert visit("/a", "203.0.113.1") == 4  # another day
    assert sums(desk, "/a") == (5, 4)


def agents(corpus: str) -> list[str]:
    return (Path(__file__).parent / "corpus" / corpus).read_text().splitlines()


def test_no_real_browser_is_taken_for_a_crawler() -> None:
    # browsers.txt is a third of those in npm's user-agents 2.1.198, which are seen in
    # the wild; browsers-more.txt has what is rare there: apps, televisions, consoles,
    # readers, old phones, and names that look like a robot's.
    real = agents("browsers.txt") + agents("browsers-more.txt")
    assert len(real) > 430
    assert [agent for agent in real if kind_of(agent) != "person"] == []


def test_no_robot_is_taken_for_a_person() -> None:
    # Search engines, previews, monitors, HTTP libraries, tools: a third are not listed.
    robots = agents("robots.txt")
    assert len(robots) > 200
    assert [agent for agent in robots if kind_of(agent) != "crawler"] == []


@pytest.mark.parametrize(
    "agent",
    [
        "MyApp/1 CFNetwork/1490.0.4 Darwin/23.2.0",
        f"{CHROME} Example/1.0 (https://example.com)",  # says how to reach its owner
        f"{CHROME} (mailto:ada@example.com)",
        f"{CHROME} (+ada@example.com)",
        f"{CHROME} (compatible; Example/1.0)",  # compatible with what?
        "Mozilla/5.0 (compatible; Example/1.0)",
        CHROME.replace("like Gecko", "like Gecko; Example"),
        f"{CHROME} ExampleBot/1.0",  # says what it does
        f"{CHROME} example-bot",
        f"{CHROME} Examplespider/1.0",
        f"{CHROME} ExampleCrawler/1.0",
        f"{CHROME} Example Monitoring/1.0",
        f"{CHROME} HeadlessExample/1.0",
        f"{CHROME} Cypress/13.6.0",
        "Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1",
    ],
)
def test_a_robot_that_no_list_has_is_told_by_its_words(agent: str) -> None:
    assert kind_of(agent) == "crawler"


def test_every_known_crawler_is_told_but_curl_and_image_proxies() -> None:
    known = [a for e in CRAWLER_USER_AGENTS_DATA for a in e.get("instances", ())]
    assert len(known) > 2000
    missed = {agent for agent in known if kind_of(agent) == "person"}
    assert {agent for agent in missed if not agent.startswith("curl")} == set()
    proxies = {agent for agent in known if kind_of(agent) == "proxy"}
    assert all("proxy" in a.lower() or "camo" in a for a in proxies), proxies


def test_a_flood_of_user_agents_is_not_kept() -> None:
    for n in range(1500):
        kind_of(f"curl/{n}")
    assert kind_of.cache_info().currsize <= 1024


def test_a_day_ends_at_midnight_utc(desk: Desk, clock: Clock) -> None:
    hit(desk)
    clock.advance(DAY / 2 - 1)
    hit(desk)
    clock.advance(1)
    hit(desk)
    days = read(desk, days=2).json["days"]
    assert [(day["hits"], day["visitors"]) for day in days] == [(2, 1), (1, 1)]


@pytest.mark.parametrize(
    "agent",
    [GITHUB_PROXY, "Mozilla/5.0 (via ggpht.com GoogleImageProxy)", "YahooMailProxy"],
)
def test_an_image_proxy_adds_hits_but_no_visitor(desk: Desk, agent: str) -> None:
    hit(desk)
    desk.client.simulate_get("/hits.svg?page=/", headers={"User-Agent": agent})
    desk.client.simulate_get("/hits.gif?page=/", headers={"User-Agent": agent})
    assert sums(desk) == (3, 1)


# --- whose page it is ------------------------------------------------------------


@pytest.fixture
def any_desk(make_desk: Callable[..., Desk]) -> Desk:
    """A service for every origin, as it is before its owner lists one."""
    return make_desk(allowed_origins=("*",), public_url="http://localhost:8000")


@pytest.mark.parametrize(
    ("headers", "page"),
    [
        ({"Origin": "http://localhost:3000"}, "/"),
        ({"Origin": "https://localhost"}, "/"),
        ({"Origin": "http://127.0.0.1:5500"}, "/"),
        ({"Origin": "http://[::1]:4000"}, "/"),
        ({"Origin": "file://"}, "/"),
        ({"Referer": "http://localhost:8000/"}, "/about"),
        ({"Referer": "HTTP://LocalHost:8000/about"}, "/about"),
        ({}, "http://localhost:3000/about"),
        ({}, "http://[::1]/about"),
        ({"Origin": "null"}, "file:///home/ada/site/about.html"),
        ({"Origin": "null"}, "/home/ada/site/about.html"),
        ({"Origin": "null"}, "/C:/Users/Ada/site/index.html"),
        ({"Origin": "null"}, "/Users/ada/site/index.html"),
    ],
    ids=str,
)
def test_a_page_that_is_being_built_does_not_count(
    any_desk: Desk, headers: dict[str, str], page: str
) -> None:
    answer = hit(any_desk, page, headers=headers).json
    assert (answer["counted"], answer["reason"]) == (False, "localhost")
    assert sums(any_desk, "*") == (0, 0)


@pytest.mark.parametrize(
    ("headers", "page"),
    [
        ({"Origin": "http://localhost.example"}, "/"),
        ({"Origin": "https://127.0.0.1.example"}, "/"),
        ({"Origin": "null"}, "/"),  # a page with "no-referrer", or in a sandbox
        ({"Origin": "null"}, "/home/about"),
        ({"Referer": "https://site.example/?from=http://localhost/"}, "/"),
        ({"Origin": "https://site.example"}, "/home/ada/index.html"),
        ({}, "/home/ada/index.html"),
        ({}, "https://site.example/about"),
    ],
    ids=str,
)
def test_a_page_on_the_web_counts(
    any_desk: Desk, headers: dict[str, str], page: str
) -> None:
    assert hit(any_desk, page, headers=headers).json["counted"] is True


def test_a_local_page_counts_when_its_origin_is_listed(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(allowed_origins=("https://a.example", "http://localhost:3000"))
    assert hit(desk, headers={"Origin": "http://localhost:3000"}).json["counted"]
    desk.client.simulate_get(
        "/hits.gif?page=/", headers={"Referer": "http://localhost:4000/"}
    )
    assert sums(desk) == (1, 1)


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("203.0.113.7", False),
        ("203.0.113.8", True),
        ("198.51.100.200", False),
        ("2001:db8:1:2::5", False),
        ("2001:db8:1:3::5", True),
    ],
)
def test_the_owners_own_visits_are_not_counted(
    make_desk: Callable[..., Desk], address: str, counted: bool
) -> None:
    names = {"HITS_IGNORE": "203.0.113.7, 198.51.100.0/24,2001:db8:1:2::/64"}
    desk = make_desk(hits_ignore=Settings.from_environ(names).hits_ignore)
    answer = hit(desk, remote_addr=address).json
    assert answer["counted"] is counted
    assert answer.get("reason") == (None if counted else "ignored")


# --- the whole site --------------------------------------------------------------


def test_all_pages_are_read_together(desk: Desk, clock: Clock) -> None:
    hit(desk, "/a")
    hit(desk, "/b")
    clock.advance(DAY)
    hit(desk, "/a", remote_addr="203.0.113.9")
    hit(desk, "/a", GITHUB_PROXY)
    answer = read(desk, "*", days=2).json
    assert answer == {
        "page": "*",
        "hits": 4,
        "visitors": 3,
        "days": [
            {"date": day_of(clock() - DAY), "hits": 2, "visitors": 2},
            {"date": day_of(clock()), "hits": 2, "visitors": 1},
        ],
    }
    shield = desk.client.simulate_get("/hits/shield?page=*").json
    assert shield["message"] == "4"
    badge = desk.client.simulate_get(
        "/hits.svg?page=*&show=visitors", headers={"User-Agent": CHROME}
    )
    assert "visitors: 3" in texts(badge.text)
    chart = desk.client.simulate_get("/hits/chart.svg?page=*&days=7")
    assert "site.example" in texts(chart.text)
    assert "4 hits, 3 visitors" in texts(chart.text)
    exported = desk.owner("GET", "/export/hits.json").json
    assert {row["page"] for row in exported} == {"/a", "/b"}


def test_all_pages_together_never_count(desk: Desk) -> None:
    hit(desk)
    answer = hit(desk, "*")
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, "page")
    for path in ("/hits.gif", "/hits.svg"):
        answer = desk.client.simulate_get(
            path, params={"page": "*"}, headers={"User-Agent": CHROME}
        )
        assert is_image(answer)
    assert sums(desk, "*") == (1, 1)
    assert hit(desk, "/*").json["page"] == "/*"  # a page of that name is one


def test_before_any_hit_all_pages_have_none(desk: Desk) -> None:
    assert sums(desk, "*") == (0, 0)


def test_badge_and_shield_show_visitors(desk: Desk) -> None:
    hit(desk)
    hit(desk)
    badge = desk.client.simulate_get("/hits.svg?page=/&count=false&show=visitors")
    assert "visitors: 1" in texts(badge.text)
    shield = desk.client.simulate_get("/hits/shield?page=/&show=visitors").json
    assert (shield["label"], shield["message"]) == ("visitors", "1")


# --- what a picture is asked for -------------------------------------------------


@pytest.mark.parametrize("style", ["flat", "flat-square", "for-the-badge", "plain"])
def test_a_badge_has_four_styles(desk: Desk, style: str) -> None:
    answer = desk.client.simulate_get(f"/hits.svg?page=/&count=false&style={style}")
    assert answer.status_code == 200
    assert "hits: 0" in texts(answer.text).lower()


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/hits.svg", "style=../../etc/passwd"),
        ("/hits.svg", "style=FLAT"),
        ("/hits.svg", "show=everything"),
        ("/hits/shield", "show=everything"),
        ("/hits/chart.svg", "size=huge"),
        ("/hits/chart.svg", f"title={'x' * 201}"),
    ],
)
def test_an_unknown_choice_is_refused(desk: Desk, path: str, query: str) -> None:
    answer = desk.client.simulate_get(
        path, query_string=f"page=/&{query}", headers={"User-Agent": CHROME}
    )
    assert answer.status_code == 422
    assert sums(desk) == (0, 0)  # nothing counts
    if path == "/hits/shield":
        assert answer.json["errors"][0]["field"] == "show"
    else:
        assert is_image(answer)


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_a_chart_has_a_title_a_colour_and_a_size(desk: Desk, size: str) -> None:
    answer = desk.client.simulate_get(
        "/hits/chart.svg",
        params={"page": "/", "title": "My <site>", "color": "green", "size": size},
    )
    assert answer.status_code == 200
    assert "My <site>" in texts(answer.text)


@pytest.mark.parametrize("page", ["/", "*"])
def test_a_chart_is_never_called_by_a_slash_or_star(desk: Desk, page: str) -> None:
    answer = desk.client.simulate_get("/hits/chart.svg", params={"page": page})
    titles = [t.text for t in ElementTree.fromstring(answer.text).iter(f"{SVG}text")]
    assert page not in titles


def test_charts_have_a_wide_limit(desk: Desk) -> None:
    for expected in [200] * 300 + [429]:
        answer = desk.client.simulate_get("/hits/chart.svg?page=/&days=7")
        assert answer.status_code == expected
    assert is_image(answer)


# --- what may be kept ------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("/hits?page=/", "/hits?page=*", "/hits/shield?page=/"),
        *("/hits/chart.svg?page=/", "/hits.svg?page=/&count=false", "/hits.svg?page=*"),
    ],
)
def test_what_only_reads_may_be_kept_for_a_minute(desk: Desk, path: str) -> None:
    answer = desk.client.simulate_get(path, headers={"User-Agent": CHROME})
    assert answer.headers["cache-control"] == "public, max-age=60"
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/hits.svg?page=/"), ("GET", "/hits.gif?page=/")),
        *(("POST", "/hits?page=/"), ("HEAD", "/hits.svg?page=/")),
        *(("GET", "/hits"), ("GET", "/hits?page=/&days=0")),
        *(("GET", "/hits/chart.svg?page=/&size=x"), ("DELETE", "/hits?page=/")),
    ],
)
@pytest.mark.parametrize("agent", [CHROME, GITHUB_PROXY, "Googlebot/2.1"])
def test_what_counts_or_fails_is_never_kept(
    desk: Desk, method: str, path: str, agent: str
) -> None:
    address, _, query = path.partition("?")
    answer = desk.client.simulate_request(
        method, address, query_string=query, headers={"User-Agent": agent}
    )
    assert answer.headers["cache-control"] == "no-store"


def test_a_kept_picture_is_drawn_again_when_its_number_changes(desk: Desk) -> None:
    for n in (1, 2, 3):
        hit(desk)
        badge = desk.client.simulate_get("/hits.svg?page=/&count=false")
        assert f"hits: {n}" in texts(badge.text)
        chart = desk.client.simulate_get("/hits/chart.svg?page=/")
        assert f"{n} hit" in texts(chart.text)
        assert read(desk).json["hits"] == n


# --- the owner's days ------------------------------------------------------------


def at(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


@pytest.mark.parametrize(
    ("zone", "midnight"),
    [
        ("Pacific/Auckland", "2026-11-24T11:00:00Z"),
        ("America/Los_Angeles", "2026-11-25T08:00:00Z"),
        ("Asia/Kolkata", "2026-11-24T18:30:00Z"),
        ("Europe/Berlin", "2026-10-24T22:00:00Z"),  # a day of 25 hours begins
    ],
)
def test_days_and_salts_change_at_the_owners_midnight(
    make_desk: Callable[..., Desk], clock: Clock, zone: str, midnight: str
) -> None:
    desk = make_desk(time_zone=zone)
    clock.now = at(midnight) - 1
    hit(desk)
    before = salts()
    clock.advance(1)
    hit(desk)
    hit(desk)
    days = read(desk, days=2).json["days"]
    assert [(day["hits"], day["visitors"]) for day in days] == [(1, 1), (2, 1)]
    assert days[1]["date"] == desk.settings.calendar.local(clock()).date().isoformat()
    assert len(salts()) == 1
    assert salts() != before


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_a_change_of_the_time_zone_loses_no_count(
    make_desk: Callable[..., Desk], clock: Clock, zone: str
) -> None:
    desk = make_desk()
    hit(desk)
    clock.advance(DAY)
    hit(desk)
    for name in (zone, "UTC"):
        desk = make_desk(time_zone=name)
        hit(desk)
        clock.advance(DAY)
    hit(desk)
    days = read(desk, days=10).json["days"]
    assert sum(day["hits"] for day in days) == 5
    assert sums(desk)[0] == sums(desk, "*")[0] == 5


def test_the_daily_round_is_made_on_the_owners_day(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk(time_zone="Asia/Tokyo")
    clock.now = at("2026-11-24T14:59:00Z")
    hit(desk)
    before = salts()
    desk.app.outbox.go_round()
    assert salts() == before
    clock.advance(60)
    desk.app.outbox.go_round()
    assert salts() == ["salt 2026-11-25"]


# --- room for new pages ----------------------------------------------------------


def test_pages_seen_once_and_never_again_make_room(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk(max_pages=4)
    for page in ("/twice", "/twice", "/once", "/made-up", "/old"):
        hit(desk, page)
    assert hit(desk, "/new").json["page"] == "/(other)"
    clock.advance(DAY)
    desk.app.outbox.go_round()
    assert hit(desk, "/new").json["page"] == "/(other)"  # they may still come again
    hit(desk, "/once")
    clock.advance(DAY)
    desk.app.outbox.go_round()
    assert hit(desk, "/new").json == {
        "page": "/new",
        "hits": 1,
        "visitors": 1,
        "counted": True,
    }
    assert sums(desk, "/made-up") == (0, 0)
    assert sums(desk, "/once") == (2, 2)
    assert sums(desk, "/(other)") == (4, 4)  # nothing is lost
    assert sums(desk, "*") == (9, 8)
    exported = desk.owner("GET", "/export/hits.json").json
    assert sum(row["hits"] for row in exported) == 9
    assert hit(desk, "/new-too").json["page"] == "/new-too"
    assert hit(desk, "/new-three").json["page"] == "/(other)"


def test_where_there_is_room_a_page_seen_once_stays(
    make_desk: Callable[..., Desk], clock: Clock
) -> None:
    desk = make_desk(max_pages=4)
    hit(desk, "/once")
    clock.advance(30 * DAY)
    desk.app.outbox.go_round()
    assert sums(desk, "/once") == (1, 1)


# --- privacy ---------------------------------------------------------------------


def salts() -> list[str]:
    return sorted(row.name for row in Setting.select() if row.name.startswith("salt "))


def test_each_day_has_its_salt_and_deletes_the_last(desk: Desk, clock: Clock) -> None:
    hit(desk)
    yesterday = day_of(clock())
    salt = Setting.get_value(f"salt {yesterday}")
    assert salts() == [f"salt {yesterday}"]
    assert Visitor.select().count() == 1
    clock.advance(DAY)
    hit(desk, "/other")
    today = day_of(clock())
    assert salts() == [f"salt {today}"]
    assert Setting.get_value(f"salt {today}") != salt
    assert [row.day for row in Visitor.select()] == [today]
    assert sums(desk) == (1, 1)  # the sums stay


def test_the_daily_round_deletes_the_salt_without_any_hit(
    desk: Desk, clock: Clock
) -> None:
    hit(desk)
    yesterday = day_of(clock())
    clock.advance(DAY)
    desk.app.outbox.go_round()
    assert f"salt {yesterday}" not in salts()
    assert Visitor.select().count() == 0


def test_two_workers_share_the_salt(make_desk: Callable[..., Desk]) -> None:
    assert hit(make_desk()).json["visitors"] == 1
    assert hit(make_desk()).json["visitors"] == 1


def test_the_database_holds_no_address_and_no_user_agent(
    desk: Desk, database_url: str
) -> None:
    hit(desk, agent="Secret-Agent/7", remote_addr="198.51.100.23")
    desk.client.simulate_get(
        "/hits.gif?page=/", headers={"User-Agent": "Secret-Agent/7"}
    )
    everything = repr(
        [list(table.select().dicts()) for table in Table.__subclasses__()]
    )
    assert "Secret" not in everything
    assert "198.51.100" not in everything


def test_no_answer_sets_a_cookie(desk: Desk) -> None:
    for path in ("/hits.gif?page=/", "/hits.svg?page=/", "/hits?page=/"):
        assert "set-cookie" not in desk.client.simulate_get(path).headers
    assert "set-cookie" not in hit(desk).headers


# --- bounds ----------------------------------------------------------------------


def test_over_max_pages_new_pages_are_counted_together(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(max_pages=2)
    assert [hit(desk, page).json["page"] for page in "abcd"] == [
        *("/a", "/b"),
        *("/(other)", "/(other)"),
    ]
    assert hit(desk, "/a").json == {
        "page": "/a",
        "hits": 2,
        "visitors": 1,
        "counted": True,
    }
    assert sums(desk, "/(other)")[0] == 2
    assert sums(desk, "/c") == (0, 0)


def test_a_client_adds_thirty_pages_an_hour(desk: Desk, clock: Clock) -> None:
    pages = [hit(desk, f"/{n}").json["page"] for n in range(32)]
    assert pages == [*(f"/{n}" for n in range(30)), "/(other)", "/(other)"]
    assert hit(desk, "/0").json["page"] == "/0"  # known ones still count
    other = hit(desk, "/new", remote_addr="203.0.113.9")
    assert other.json["page"] == "/new"
    clock.advance(3600)
    assert hit(desk, "/31").json["page"] == "/31"


def test_crawlers_add_no_pages(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(max_pages=1)
    hit(desk, "/crawled", agent="Googlebot/2.1")
    assert hit(desk, "/mine").json["page"] == "/mine"


def test_over_the_limit_json_says_that_it_did_not_count(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(hits_limit=(Window(1, 60),))
    hit(desk)
    answer = hit(desk)
    assert answer.status_code == 429
    assert answer.json["counted"] is False
    assert answer.json["reason"] == "rate_limited"
    assert answer.json["errors"][0]["code"] == "RATE_LIMITED"
    assert int(answer.headers["retry-after"]) == 60
    assert sums(desk) == (1, 1)
    assert hit(desk, remote_addr="203.0.113.5").json["counted"] is True


# --- an image request always gets an image ---------------------------------------


def is_image(answer: Any) -> bool:
    kind = answer.headers["content-type"]
    if kind == "image/gif":
        return bool(answer.content.startswith(b"GIF89a"))
    return kind == "image/svg+xml" and bool(texts(answer.text))


@pytest.mark.parametrize("path", ["/hits.gif", "/hits.svg"])
@pytest.mark.parametrize(
    ("agent", "status"), [(CHROME, 429), (GITHUB_PROXY, 200)], ids=["browser", "proxy"]
)
def test_over_the_limit_there_is_still_an_image(
    make_desk: Callable[..., Desk], path: str, agent: str, status: int
) -> None:
    desk = make_desk(hits_limit=(Window(1, 60),))
    for expected in (200, status):
        answer = desk.client.simulate_get(
            path, params={"page": "/"}, headers={"User-Agent": agent}
        )
        assert answer.status_code == expected
        assert is_image(answer)
        assert answer.headers["cache-control"] == "no-store"
    assert sums(desk)[0] == 1


@pytest.mark.parametrize("path", IMAGES)
@pytest.mark.parametrize(
    ("query", "agent", "status"),
    [
        ("", CHROME, 422),
        ("page=%00", CHROME, 422),
        ("page=%ff", CHROME, 200),
        (f"page={'a' * 300}", CHROME, 422),
        ("page=%00", GITHUB_PROXY, 200),
    ],
    ids=["no-page", "nul", "no-utf8", "long", "proxy"],
)
@pytest.mark.parametrize("accept", ["image/*", "text/html", "application/json"])
def test_a_bad_request_gets_an_image_too(
    desk: Desk, path: str, query: str, agent: str, status: int, accept: str
) -> None:
    answer = desk.client.simulate_get(
        path, query_string=query, headers={"User-Agent": agent, "Accept": accept}
    )
    assert answer.status_code == status
    assert is_image(answer)


@pytest.mark.parametrize("path", IMAGES)
def test_without_a_database_there_is_still_an_image(desk: Desk, path: str) -> None:
    current().engine.drop_tables([Page, Hit])
    answer = desk.client.simulate_get(
        path, params={"page": "/"}, headers={"User-Agent": CHROME}
    )
    assert answer.status_code == 503
    assert is_image(answer)
    through_a_proxy = desk.client.simulate_get(
        path, params={"page": "/"}, headers={"User-Agent": GITHUB_PROXY}
    )
    assert through_a_proxy.status_code == 200
    assert is_image(through_a_proxy)


def test_a_beacon_may_carry_credentials_for_a_listed_origin(desk: Desk) -> None:
    answer = hit(desk, headers={"Origin": "https://site.example"})
    assert answer.headers["access-control-allow-origin"] == "https://site.example"
    assert answer.headers["access-control-allow-credentials"] == "true"
    refused = hit(desk, headers={"Origin": "https://evil.example"})
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    assert sums(desk) == (1, 1)


def test_large_counts_have_commas(desk: Desk) -> None:
    hit(desk, "/about")
    execute("UPDATE page SET hits = 1234567 WHERE page = ?", "/about")
    badge = desk.client.simulate_get("/hits.svg?page=/about&count=false")
    assert "hits: 1,234,567" in texts(badge.text)
    shield = desk.client.simulate_get("/hits/shield?page=/about")
    assert shield.json["message"] == "1,234,567"


def test_an_unknown_page_is_not_counted_and_nobody_was_there(desk: Desk) -> None:
    assert Hit.count("/never", "a-hash", day_of(NOON)) is None
    assert execute("SELECT count(*) FROM visitor").fetchone()[0] == 0
    assert Hit.select().count() == 0


# --- what was counted before -----------------------------------------------------


def test_older_hits_are_in_the_sums_and_index_html_joins_its_folder(desk: Desk) -> None:
    for page in ("/blog", "/blog/index.html", "/about/index.htm", "/index.htm-l"):
        insert("page", {"page": page, "hits": 3, "visitors": 2})
        for day, hits in (("2026-11-01", 1), ("2026-11-02", 2)):
            insert("hit", {"page": page, "day": day, "hits": hits, "visitors": 1})
    insert("tally", {"name": "pages", "period": "", "n": 4})
    path = ROOT / "frontdesk" / "migrations" / "0005_site_hits.py"
    with current().engine.atomic():
        runpy.run_path(str(path))["up"](None, current().engine)
    assert sums(desk, "/blog") == (6, 4)
    assert sums(desk, "/about") == (3, 2)
    assert sums(desk, "/index.htm-l") == (3, 2)
    assert sums(desk, "*") == (12, 8)
    rows = desk.owner("GET", "/export/hits.json").json
    assert {"page": "/blog", "date": "2026-11-02", "hits": 4, "visitors": 2} in rows
    assert len(rows) == 6
    assert Tally.count("pages", "", "") == 3
