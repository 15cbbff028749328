"""Count visits from real pages: every way to do it, and what must not count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import VISITOR, Desk, Site, Tab

OpenDesk = Callable[..., Desk]
OpenTab = Callable[..., Tab]
HEADLESS = VISITOR.replace("Chrome/", "HeadlessChrome/")


def numbers(page: Page, desk: Desk, path: str) -> dict[str, Any]:
    """Read a page's numbers, which never counts."""
    answer = page.request.get(f"{desk.url}/hits", params={"page": path})
    return answer.json()


def counted(page: Page, desk: Desk, path: str) -> tuple[int, int]:
    found = numbers(page, desk, path)
    return found["hits"], found["visitors"]


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param('src="{desk}/hits.gif?page=/blog"', id="gif"),
        pytest.param('src="{desk}/hits.svg?page=/blog"', id="badge"),
        pytest.param(
            'src="{desk}/hits.gif" referrerpolicy="no-referrer-when-downgrade"',
            id="gif-by-referrer",
        ),
        pytest.param(
            'src="{desk}/hits.svg" referrerpolicy="no-referrer-when-downgrade"',
            id="badge-by-referrer",
        ),
    ],
)
def test_a_picture_counts_each_view_and_each_visitor_once(
    picture: str, site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab(java_script_enabled=False)
    site.files["/blog/"] = f"<title>Blog</title><img {picture}>".format(desk=desk.url)
    tab.page.goto(f"{site.url}/blog/?utm_source=mail")
    assert counted(tab.page, desk, "/blog") == (1, 1)
    tab.page.reload()
    assert counted(tab.page, desk, "/blog") == (2, 1)
    other = open_tab(user_agent="Mozilla/5.0 (another browser)")
    other.page.goto(f"{site.url}/blog/")
    assert counted(tab.page, desk, "/blog") == (3, 2)
    assert tab.console == []


def test_a_picture_from_the_cross_origin_default_counts_for_the_home_page(
    site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    # Browsers send only the origin to another one, unless the tag says more.
    desk, tab = open_desk(), open_tab()
    site.files["/blog/"] = f'<title>Blog</title><img src="{desk.url}/hits.gif">'
    tab.page.goto(f"{site.url}/blog/")
    assert counted(tab.page, desk, "/") == (1, 1)
    assert counted(tab.page, desk, "/blog") == (0, 0)


@pytest.mark.parametrize(
    "init",
    [
        pytest.param("{body: JSON.stringify({page: '/a'})}", id="text"),
        pytest.param("{body: new URLSearchParams({page: '/a'})}", id="form"),
        pytest.param(
            "{headers: {'Content-Type': 'application/json'},"
            " body: JSON.stringify({page: '/a'})}",
            id="json",
        ),
        pytest.param("{body: '/a', keepalive: true}", id="keepalive"),
    ],
)
def test_fetch_counts_and_reads_the_answer(
    init: str, site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    site.files["/a"] = "<title>A</title>"
    tab.page.goto(f"{site.url}/a")
    answer = tab.page.evaluate(
        f"fetch('{desk.url}/hits', {{method: 'POST', ...{init}}}).then(r => r.json())"
    )
    assert answer == {"page": "/a", "hits": 1, "visitors": 1, "counted": True}
    read = tab.page.evaluate(f"fetch('{desk.url}/hits?page=/a').then(r => r.json())")
    assert (read["hits"], len(read["days"])) == (1, 30)
    assert tab.console == []


@pytest.mark.parametrize(
    "data",
    [
        "'/a'",
        "JSON.stringify({page: location.pathname})",
        "new URLSearchParams({page: '/a'})",
        "new Blob([JSON.stringify({page: '/a'})], {type: 'application/json'})",
    ],
    ids=["path", "json", "form", "blob"],
)
def test_a_beacon_counts(
    data: str, site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    site.files["/a"] = "<title>A</title>"
    tab.page.goto(f"{site.url}/a")
    with tab.page.expect_request_finished(lambda r: r.method == "POST"):
        assert tab.page.evaluate(f"navigator.sendBeacon('{desk.url}/hits', {data})")
    assert counted(tab.page, desk, "/a") == (1, 1)
    assert tab.console == []


def test_a_beacon_counts_when_the_page_is_left(
    site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    site.files["/a"] = f"""<title>A</title><script>
        addEventListener('pagehide',
            () => navigator.sendBeacon('{desk.url}/hits', location.pathname));
        </script>"""
    site.files["/b"] = "<title>B</title>"
    tab.page.goto(f"{site.url}/a")
    assert counted(tab.page, desk, "/a") == (0, 0)
    tab.page.goto(f"{site.url}/b")
    desk.server.wait_for_log("POST /hits 200")
    assert counted(tab.page, desk, "/a") == (1, 1)


def test_a_prefetched_picture_counts_only_when_it_is_shown(
    site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    gif = f"{desk.url}/hits.gif?page=/next"
    site.files["/a"] = f'<title>A</title><link rel="prefetch" href="{gif}">'
    site.files["/next"] = f'<title>Next</title><img src="{gif}">'
    tab.page.goto(f"{site.url}/a")
    desk.server.wait_for_log("GET /hits.gif 200")
    assert counted(tab.page, desk, "/next") == (0, 0)
    tab.page.goto(f"{site.url}/next")
    assert counted(tab.page, desk, "/next") == (1, 1)


@pytest.mark.parametrize("kind", ["prefetch", "prerender"])
def test_a_page_loaded_by_speculation_rules_is_not_counted_before_it_is_seen(
    kind: str, site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    rules = f'{{"{kind}": [{{"urls": ["/next"], "eagerness": "immediate"}}]}}'
    site.files["/a"] = f"""<title>A</title><a href="/next">Next</a>
        <script type="speculationrules">{rules}</script>"""
    site.files["/next"] = f"""<title>Next</title>
        <img src="{desk.url}/hits.gif?page=/next">"""
    tab.page.goto(f"{site.url}/a")
    site.wait_for("/next")
    assert counted(tab.page, desk, "/next") == (0, 0)
    tab.page.get_by_role("link").click()
    expect(tab.page).to_have_title("Next")
    desk.server.wait_for_log("GET /hits.gif 200")
    assert counted(tab.page, desk, "/next") == (1, 1)


def test_going_back_to_a_page_that_was_kept_does_not_count_again(
    site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    site.files["/a"] = f"""<title>A</title><img src="{desk.url}/hits.gif?page=/a">
        <script>addEventListener('pageshow', e => window.kept = e.persisted)</script>"""
    site.files["/b"] = "<title>B</title>"
    tab.page.goto(f"{site.url}/a")
    tab.page.goto(f"{site.url}/b")
    tab.page.go_back(wait_until="commit")
    assert tab.page.evaluate("window.kept")
    assert counted(tab.page, desk, "/a") == (1, 1)


# As in the README: for sites that change pages without loading them.
SINGLE_PAGE_SITE = """
let seen; const count = () => seen != (seen = location.pathname) && navigator.sendBeacon('%s/hits', location.href)
const push = history.pushState; history.pushState = (...to) => { push.apply(history, to); count() }
addEventListener('popstate', count); count()
"""  # noqa: E501


def test_a_site_that_never_reloads_counts_each_page_it_shows(
    site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    script = SINGLE_PAGE_SITE % desk.url
    site.files["/app"] = f"""<title>App</title><a href="#part">Part</a>
        <p id="part">Part</p><script>{script}</script>"""

    def show(path: str, how: str) -> None:
        with tab.page.expect_request_finished(lambda r: r.method == "POST"):
            tab.page.evaluate(how)
        assert tab.page.evaluate("location.pathname") == path

    with tab.page.expect_request_finished(lambda r: r.method == "POST"):
        tab.page.goto(f"{site.url}/app")
    show("/about", "history.pushState({}, '', '/about?from=app#top')")
    show("/app", "history.back()")
    show("/about", "history.forward()")
    show("/blog/1", "history.pushState({}, '', '/blog/1')")
    # What shows the same page again is no view.
    tab.page.evaluate("history.pushState({}, '', '/blog/1?sort=date')")
    tab.page.evaluate("history.replaceState({}, '', '/blog/1#comments')")
    tab.page.evaluate("location.hash = 'part'")
    show("/about", "history.pushState({}, '', '/about')")
    assert counted(tab.page, desk, "/app") == (2, 1)
    assert counted(tab.page, desk, "/about") == (3, 1)
    assert counted(tab.page, desk, "/blog/1") == (1, 1)
    assert counted(tab.page, desk, "*") == (6, 3)
    assert tab.console == []


def test_a_headless_browser_does_not_count(
    site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab(user_agent=HEADLESS)
    site.files["/a"] = f'<title>A</title><img src="{desk.url}/hits.gif?page=/a">'
    tab.page.goto(f"{site.url}/a")
    assert "GET /hits.gif 200" in desk.server.log
    assert counted(tab.page, desk, "/a") == (0, 0)


def test_pages_on_the_owners_own_machine_do_not_count(
    site: Site, open_desk: OpenDesk, open_tab: OpenTab, tmp_path: FilePath
) -> None:
    desk, tab = open_desk(ALLOWED_ORIGINS="*"), open_tab()
    page = f"""<title>A</title><img src="{desk.url}/hits.gif?page=/a">
        <script>navigator.sendBeacon('{desk.url}/hits', location.href);
        navigator.sendBeacon('{desk.url}/hits', location.pathname)</script>"""
    site.files["/a"] = page
    tab.page.goto(f"{site.url}/a", wait_until="networkidle")
    # A picture on a page of a file tells nothing of where it is.
    file = tmp_path / "home" / "a.html"
    file.parent.mkdir()
    file.write_text("<title>A</title><script>" + page.partition("<script>")[2])
    tab.page.goto(file.as_uri(), wait_until="networkidle")
    assert desk.server.log.count("POST /hits 200") == 4
    assert counted(tab.page, desk, "*") == (0, 0)


def test_what_only_reads_is_kept_by_the_browser(
    site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    site.files["/a"] = f"""<title>A</title><img src="{desk.url}/hits.svg?page=*">
        <img src="{desk.url}/hits.svg?page=/a">"""
    for path in ("/a", "/a?again"):
        tab.page.goto(f"{site.url}{path}")
    assert desk.server.log.count("GET /hits.svg 200") == 3


def test_the_example_counts_and_shows_its_visits(
    site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    tab.page.goto(site.url)
    chart = tab.page.get_by_role("img", name="Bars for the last 30 days")
    badge = tab.page.get_by_role("img", name="Number of visits")
    assert chart.evaluate("image => image.naturalWidth") == 720
    assert badge.evaluate("image => image.naturalHeight") == 20
    assert counted(tab.page, desk, "/") == (1, 1)
    tab.page.goto(f"{site.url}/index.html")  # the same page
    assert counted(tab.page, desk, "/") == (2, 1)
    tab.page.goto(f"{site.url}/thanks.html")  # is not counted
    assert counted(tab.page, desk, "/thanks.html") == (0, 0)
    assert tab.console == []
