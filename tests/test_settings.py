"""The environment: what each variable does, and every problem told at once."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from frontdesk.settings import (
    Address,
    Origins,
    Settings,
    SettingsError,
    Window,
    origin_of,
)
from tests.support.server import serving

KEY = "k" * 32
SECRET = "a-secret-that-nobody-may-read-in-a-log"
HEROKU = {"DYNO": "web.1", "SECRET_KEY": KEY}
RENDER = {"RENDER": "true", "SECRET_KEY": KEY}
POSTGRES = "postgres://user:password@host/name"


def problems(**environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ(environ)
    return caught.value.problems


def test_nothing_needs_to_be_set() -> None:
    assert Settings.from_environ({}) == Settings()


def test_the_defaults_are_the_contracts() -> None:
    settings = Settings.from_environ({})
    assert settings.secret_keys == ()
    assert settings.database_url == "sqlite:///frontdesk.db"
    assert settings.public_url == "http://localhost:8000"
    assert settings.allowed_origins == ("*",)
    assert settings.site_name == "localhost"
    assert settings.thanks_url is None
    assert settings.mail_from is settings.mail_to is settings.mailjet_key is None
    assert settings.mailjet_api_url == "https://api.mailjet.com/"
    assert settings.mailjet_list_id is settings.admin_token is None
    assert settings.confirm_mails_per_day == 100
    assert settings.trusted_hops == 0
    assert settings.client_ip_header is None
    assert settings.contact_limit == (
        Window(5, 60),
        Window(30, 3600),
        Window(100, 86400),
    )
    assert settings.newsletter_limit == (Window(5, 60), Window(20, 3600))
    assert settings.hits_limit == (Window(120, 60),)
    assert settings.max_pages == 10_000
    assert settings.time_zone == "UTC"
    assert settings.hits_ignore == ()
    assert settings.retention_days == 0
    assert settings.ephemeral is False
    assert (settings.port, settings.workers) == (8000, 1)


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("SECRET_KEY", f"{KEY}, {'o' * 40}", "secret_keys", (KEY, "o" * 40)),
        ("DATABASE_URL", "sqlite:////var/x.db", "database_url", "sqlite:////var/x.db"),
        ("DATABASE_URL", POSTGRES, "database_url", POSTGRES),
        ("DATABASE_URL", "postgresql://h/n", "database_url", "postgresql://h/n"),
        ("PUBLIC_URL", "https://desk.example/", "public_url", "https://desk.example"),
        (
            "ALLOWED_ORIGINS",
            "https://A.example, http://b.example:8080/,https://c.example:443",
            "allowed_origins",
            ("https://a.example", "http://b.example:8080", "https://c.example"),
        ),
        ("ALLOWED_ORIGINS", "https://a.example,*", "allowed_origins", ("*",)),
        ("SITE_NAME", "Ada's site", "site_name", "Ada's site"),
        ("THANKS_URL", "https://a.example/ok", "thanks_url", "https://a.example/ok"),
        ("MAIL_FROM", "Ada <a@b.example>", "mail_from", Address("Ada", "a@b.example")),
        ("MAIL_TO", "a@b.example", "mail_to", Address("", "a@b.example")),
        (
            "MAILJET_API_URL",
            "https://api.us.mailjet.com/",
            "mailjet_api_url",
            "https://api.us.mailjet.com/",
        ),
        ("MAILJET_LIST_ID", "123", "mailjet_list_id", "123"),
        ("CONFIRM_MAILS_PER_DAY", "0", "confirm_mails_per_day", 0),
        ("ADMIN_TOKEN", "please let me in", "admin_token", "please let me in"),
        ("TRUSTED_HOPS", "2", "trusted_hops", 2),
        ("CLIENT_IP_HEADER", "Fly-Client-IP", "client_ip_header", "Fly-Client-IP"),
        ("CONTACT_LIMIT", "1/second", "contact_limit", (Window(1, 1),)),
        ("CONTACT_LIMIT", "9/day;2/day", "contact_limit", (Window(2, 86400),)),
        (
            "NEWSLETTER_LIMIT",
            "2/minute; 9/day",
            "newsletter_limit",
            (Window(2, 60), Window(9, 86400)),
        ),
        ("HITS_LIMIT", "3 / hours", "hits_limit", (Window(3, 3600),)),
        ("MAX_PAGES", "5", "max_pages", 5),
        ("TIME_ZONE", "Europe/Berlin", "time_zone", "Europe/Berlin"),
        ("HITS_IGNORE", "192.0.2.1,", "hits_ignore", (ip_network("192.0.2.1"),)),
        ("HITS_IGNORE", "fe80::1/10", "hits_ignore", (ip_network("fe80::/10"),)),
        ("RETENTION_DAYS", "90", "retention_days", 90),
        ("SITE_LANGUAGE", "pt_br", "site_language", "pt-BR"),
        ("ACCENT_COLOR", "hsl(18 62% 44%)", "accent_color", "hsl(18 62% 44%)"),
        ("LOGO_URL", "https://a.example/x.png", "logo_url", "https://a.example/x.png"),
        ("TEMPLATE_DIR", "/", "template_dir", Path("/")),
        ("PORT", "5000", "public_url", "http://localhost:5000"),
        ("PORT", "5000", "port", 5000),
        ("WEB_CONCURRENCY", "2", "workers", 2),
        ("WEB_THREADS", "4", "threads", 4),
        ("ALLOW_EPHEMERAL", "1", "ephemeral", True),
        ("ALLOW_EPHEMERAL", "0", "ephemeral", False),
    ],
)
def test_a_variable_is_understood(
    variable: str, text: str, name: str, value: object
) -> None:
    assert getattr(Settings.from_environ({variable: text}), name) == value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SECRET_KEY", "short"),
        ("SECRET_KEY", f"{KEY},"),
        ("SECRET_KEY", f"{KEY},short"),
        ("DATABASE_URL", "mysql://host/name"),
        ("DATABASE_URL", "sqlite:///"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("DATABASE_URL", "frontdesk.db"),
        ("PUBLIC_URL", "desk.example"),
        ("PUBLIC_URL", "javascript:alert(1)"),
        ("PUBLIC_URL", "https://desk.example/?a=1"),
        ("PUBLIC_URL", "https://desk.example/#top"),
        ("ADMIN_TOKEN", "schlüssel"),
        ("RENDER_EXTERNAL_URL", "desk.example"),
        ("ALLOWED_ORIGINS", "site.example"),
        ("ALLOWED_ORIGINS", "https://site.example/blog"),
        ("ALLOWED_ORIGINS", ","),
        ("ALLOWED_ORIGINS", "null"),
        ("SITE_NAME", "two\nlines"),
        ("SITE_NAME", "x" * 101),
        ("THANKS_URL", "/thanks"),
        ("MAIL_FROM", "nobody"),
        ("MAIL_TO", "a@b.example, c@d.example"),
        ("MAILJET_API_URL", "https://mailjet.com.evil.example/"),
        ("MAILJET_API_URL", "https://evilmailjet.com/"),
        ("MAILJET_LIST_ID", "news"),
        ("CONFIRM_MAILS_PER_DAY", "-1"),
        ("TRUSTED_HOPS", "many"),
        ("TRUSTED_HOPS", "11"),
        ("CLIENT_IP_HEADER", "X Real IP"),
        ("CONTACT_LIMIT", "5"),
        ("CONTACT_LIMIT", "0/minute"),
        ("NEWSLETTER_LIMIT", "5/fortnight"),
        ("HITS_LIMIT", "5/minute;"),
        ("TIME_ZONE", "Berlin"),
        ("TIME_ZONE", "../../etc/passwd"),
        ("HITS_IGNORE", "192.0.2.0/33"),
        ("HITS_IGNORE", "my-router"),
        ("MAX_PAGES", "0"),
        ("MAX_PAGES", "٣"),
        ("RETENTION_DAYS", "1.5"),
        ("SITE_LANGUAGE", "klingon"),
        ("SITE_LANGUAGE", "de;q=1"),
        ("ACCENT_COLOR", "terracotta"),
        ("ACCENT_COLOR", "red;}"),
        ("LOGO_URL", "http://site.example/logo.png"),
        ("LOGO_URL", "/logo.png"),
        ("TEMPLATE_DIR", "/no/such/folder"),
        ("TEMPLATE_DIR", __file__),
        ("PORT", "65536"),
        ("WEB_CONCURRENCY", "0"),
        ("WEB_THREADS", "0"),
    ],
)
def test_a_bad_value_is_a_problem_that_names_its_variable(
    variable: str, text: str
) -> None:
    (problem,) = problems(**{variable: text})
    assert problem.startswith(f"{variable}: ")
    assert "\n" not in problem


def test_all_problems_are_told_at_once() -> None:
    told = problems(
        SECRET_KEY="x", PORT="x", ALLOWED_ORIGINS="x", MAIL_TO="x", CONTACT_LIMIT="x"
    )
    assert sorted(line.partition(":")[0] for line in told) == [
        *("ALLOWED_ORIGINS", "CONTACT_LIMIT", "MAIL_TO", "PORT", "SECRET_KEY")
    ]


@pytest.mark.parametrize(
    "variable", ["SECRET_KEY", "DATABASE_URL", "MJ_APIKEY_PRIVATE", "MJ_APIKEY_PUBLIC"]
)
def test_no_problem_repeats_a_secret(variable: str) -> None:
    told = problems(**{variable: SECRET[:20], "PORT": "x"})
    assert len(told) == 2
    assert SECRET[:20] not in "\n".join(told)


def test_blank_values_count_as_unset() -> None:
    names = [
        *("SECRET_KEY", "DATABASE_URL", "PUBLIC_URL", "ALLOWED_ORIGINS", "SITE_NAME"),
        *("THANKS_URL", "MAIL_FROM", "MAIL_TO", "MJ_APIKEY_PUBLIC", "MAILJET_LIST_ID"),
        *("MJ_APIKEY_PRIVATE", "ADMIN_TOKEN", "TRUSTED_HOPS", "CLIENT_IP_HEADER"),
        *("CONTACT_LIMIT", "MAX_PAGES", "RETENTION_DAYS", "PORT", "WEB_CONCURRENCY"),
        *("SITE_LANGUAGE", "TEMPLATE_DIR", "ACCENT_COLOR", "LOGO_URL"),
        *("DYNO", "RENDER", "RENDER_EXTERNAL_URL", "HEROKU_APP_DEFAULT_DOMAIN_NAME"),
    ]
    assert Settings.from_environ(dict.fromkeys(names, " ")) == Settings()


def test_an_empty_token_opens_nothing() -> None:
    assert Settings.from_environ({"ADMIN_TOKEN": ""}).admin_token is None


# --- looks -----------------------------------------------------------------------


def test_an_unknown_language_is_answered_with_those_there_are() -> None:
    (problem,) = problems(SITE_LANGUAGE="tlh")
    assert problem == (
        "SITE_LANGUAGE: must be one of en es pt fr de it nl pl cs ro ru uk da sv id vi "
        "ja ko, such as pt or pt-BR"
    )


def test_a_logo_may_lie_on_any_origin() -> None:
    url = "https://cdn.example/logo.png"
    origins = "https://site.example"
    settings = Settings.from_environ({"LOGO_URL": url, "ALLOWED_ORIGINS": origins})
    assert settings.logo_url == url


def test_a_template_that_does_not_compile_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "thanks.html").write_text("{% block")
    (problem,) = problems(TEMPLATE_DIR=str(tmp_path))
    assert problem.startswith("TEMPLATE_DIR: thanks.html, line 1: ")


# --- mail ------------------------------------------------------------------------


def test_mailjet_needs_both_keys() -> None:
    (problem,) = problems(MJ_APIKEY_PUBLIC="public")
    assert problem.startswith("MJ_APIKEY_PRIVATE: ")
    (problem,) = problems(MJ_APIKEY_PRIVATE="private")
    assert problem.startswith("MJ_APIKEY_PUBLIC: ")


def test_with_mailjets_keys_sender_and_inbox_are_needed() -> None:
    told = problems(MJ_APIKEY_PUBLIC="public", MJ_APIKEY_PRIVATE="private")
    assert [line.partition(":")[0] for line in told] == ["MAIL_FROM", "MAIL_TO"]


# --- where it runs ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"RENDER_EXTERNAL_URL": "https://x.onrender.com"}, "https://x.onrender.com"),
        (
            {"HEROKU_APP_DEFAULT_DOMAIN_NAME": "x-1.herokuapp.com"},
            "https://x-1.herokuapp.com",
        ),
        (
            {
                "PUBLIC_URL": "https://desk.example",
                "RENDER_EXTERNAL_URL": "https://x.onrender.com",
            },
            "https://desk.example",
        ),
    ],
    ids=["render", "heroku", "own"],
)
def test_the_public_url_comes_from_the_owner_or_the_platform(
    environ: dict[str, str], url: str
) -> None:
    assert Settings.from_environ(environ).public_url == url


@pytest.mark.parametrize(
    ("origins", "name"),
    [("https://b.example,https://c.example", "b.example"), ("*", "desk.example")],
)
def test_the_site_is_named_after_its_first_origin(origins: str, name: str) -> None:
    settings = Settings.from_environ(
        {"ALLOWED_ORIGINS": origins, "PUBLIC_URL": "https://desk.example"}
    )
    assert settings.site_name == name


def test_heroku_has_one_hop_and_render_a_header() -> None:
    heroku = Settings.from_environ(HEROKU | {"DATABASE_URL": POSTGRES})
    render = Settings.from_environ(RENDER | {"DATABASE_URL": POSTGRES})
    assert (heroku.trusted_hops, heroku.client_ip_header) == (1, None)
    assert (render.trusted_hops, render.client_ip_header) == (0, "CF-Connecting-IP")


@pytest.mark.parametrize("platform", ["DYNO", "RENDER"])
def test_a_platform_needs_a_secret_key(platform: str) -> None:
    (problem,) = problems(**{platform: "1", "DATABASE_URL": POSTGRES})
    assert problem.startswith("SECRET_KEY: ")


@pytest.mark.parametrize("platform", [HEROKU, RENDER], ids=["heroku", "render"])
@pytest.mark.parametrize("url", ["", "sqlite:///x.db", "sqlite:////opt/render/x.db"])
def test_sqlite_is_refused_on_a_disk_that_is_wiped(
    platform: dict[str, str], url: str
) -> None:
    (problem,) = problems(**platform, DATABASE_URL=url)
    assert problem.startswith("DATABASE_URL: ")
    assert "Postgres" in problem and "ALLOW_EPHEMERAL=1" in problem
    assert ("disk and point" in problem) == (platform is RENDER)


@pytest.mark.parametrize("platform", [HEROKU, RENDER], ids=["heroku", "render"])
def test_the_owner_may_want_sqlite_there_all_the_same(platform: dict[str, str]) -> None:
    assert Settings.from_environ(platform | {"ALLOW_EPHEMERAL": "1"}).ephemeral


@pytest.fixture
def mounted() -> Path:
    """A folder on a file system that is not the root's."""
    path = Path("/dev/shm")
    if not path.is_mount():
        pytest.skip("nothing is mounted there")
    return path


def test_sqlite_may_lie_on_renders_mounted_disk(mounted: Path) -> None:
    url = f"sqlite:///{mounted}/frontdesk.db"
    assert Settings.from_environ(RENDER | {"DATABASE_URL": url}).database_url == url


def test_a_mounted_disk_does_not_help_on_heroku(mounted: Path) -> None:
    (problem,) = problems(**HEROKU, DATABASE_URL=f"sqlite:///{mounted}/frontdesk.db")
    assert problem.startswith("DATABASE_URL: ")


# --- origins ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://site.example", "https://site.example"),
        ("HTTPS://Site.Example:443/a?b#c", "https://site.example"),
        ("http://site.example:80", "http://site.example"),
        ("http://site.example:8080/", "http://site.example:8080"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
        ("", None),
        ("null", None),
        ("ftp://site.example", None),
        ("https://", None),
        ("https://user@site.example", None),
        ("https://site.example\\@evil.example", None),
        ("https://site.example:port", None),
        ("https://site.example:99999", None),
        ("https://[::1", None),
        ("https://si te.example", None),
        ("javascript:alert(1)//https://site.example", None),
        (f"https://{'a' * 64}.example", None),
        ("https://\ud800.example", None),
    ],
)
def test_an_origin_is_read_as_browsers_write_it(url: str, origin: str | None) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    ("listed", "url", "allowed"),
    [
        ("https://site.example", "https://www.site.example/a", True),
        ("https://www.site.example", "https://site.example", True),
        ("https://site.example", "http://site.example", False),
        ("https://site.example", "https://site.example:8443", False),
        ("https://site.example", "https://blog.site.example", False),
        ("https://site.example", "https://site.example.evil.example", False),
        ("https://site.example", "https://evilsite.example", False),
        ("https://site.example", "https://www.www.site.example", False),
        ("https://site.example", "null", False),
        ("*", "https://anything.example", True),
        ("*", "null", False),
    ],
)
def test_www_and_apex_are_the_only_twins(listed: str, url: str, allowed: bool) -> None:
    assert Origins((listed,)).allows(url) is allowed


# --- as a process ----------------------------------------------------------------


def test_a_badly_set_server_ends_with_one_line_for_each_problem(tmp_path: Path) -> None:
    bad = {"SECRET_KEY": "too-short-to-sign", "MAX_PAGES": "many", "DYNO": "web.1"}
    with serving(tmp_path, wait=False, **bad) as server:
        status = server.process.wait(20)
    lines = server.log.splitlines()
    assert status != 0
    assert sorted(line.partition(":")[0] for line in lines) == [
        *("DATABASE_URL", "MAX_PAGES", "SECRET_KEY")
    ]
    assert "too-short-to-sign" not in server.log


@pytest.mark.parametrize("folder", ["missing/x.db", ""], ids=["no folder", "a folder"])
def test_a_database_that_cannot_be_opened_ends_the_server(
    tmp_path: Path, folder: str
) -> None:
    url = f"sqlite:///{tmp_path}/{folder}"
    with serving(tmp_path, wait=False, DATABASE_URL=url) as server:
        status = server.process.wait(20)
    assert status != 0
    assert "DATABASE_URL: " in server.log
    assert "Traceback" not in server.log


def test_a_missing_folder_is_told_with_all_the_rest(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/missing/x.db"
    assert [
        line.partition(":")[0] for line in problems(DATABASE_URL=url, PORT="0")
    ] == [*("PORT", "DATABASE_URL")]


def test_an_unreachable_postgres_ends_the_server_without_its_password(
    tmp_path: Path,
) -> None:
    url = "postgres://desk:pass-word@127.0.0.1:1/desk"
    with serving(tmp_path, wait=False, DATABASE_URL=url) as server:
        status = server.process.wait(20)
    assert status != 0
    assert "DATABASE_URL: " in server.log
    assert "Traceback" not in server.log and "pass-word" not in server.log


# --- what only looks odd ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ALLOWED_ORIGIN", "ALLOWED_ORIGINS"),
        ("allowed_origins", "ALLOWED_ORIGINS"),
        ("MAILTO", "MAIL_TO"),
        ("MAIL_FORM", "MAIL_FROM"),
        ("PUBLIC_URI", "PUBLIC_URL"),
        ("TIMEZONE", "TIME_ZONE"),
        ("MJ_API_KEY_PUBLIC", "MJ_APIKEY_PUBLIC"),
    ],
)
def test_a_misspelt_variable_is_told_with_the_right_name(name: str, meant: str) -> None:
    hint = f"{name}: no such setting, did you mean {meant}?"
    assert hint in Settings.from_environ({name: "x"}).hints
    assert hint in problems(**{name: "x", "PORT": "no"})


@pytest.mark.parametrize(
    "name",
    ["MAIL", "LANGUAGE", "REDIS_URL", "SECRET_KEY_BASE", "PORTS_OPEN", "LOGNAME"],
)
def test_other_peoples_variables_are_passed_over(name: str) -> None:
    url = {"PUBLIC_URL": "https://desk.example"}
    assert Settings.from_environ({name: "x", **url}).hints == ()


@pytest.mark.parametrize(
    "environ",
    [
        {"PUBLIC_URL": "https://desk.example"},
        {"RENDER_EXTERNAL_URL": "https://desk.onrender.com"},
        {"HEROKU_APP_DEFAULT_DOMAIN_NAME": "desk.herokuapp.com"},
    ],
)
def test_a_service_that_knows_its_address_says_nothing(environ: dict[str, str]) -> None:
    assert Settings.from_environ(environ).hints == ()


def test_a_service_that_guesses_its_address_says_where_links_lead() -> None:
    (hint,) = Settings.from_environ({"PORT": "5000"}).hints
    assert hint.startswith("PUBLIC_URL: not set")
    assert "http://localhost:5000" in hint


@pytest.mark.parametrize("text", ["Ada <a@b.example", "<a@b.example"])
def test_a_sender_without_its_closing_bracket_is_refused(text: str) -> None:
    (problem,) = problems(MAIL_FROM=text)
    assert problem.startswith("MAIL_FROM: must end with the >")


def test_the_address_to_open_is_the_last_line_of_the_start(tmp_path: Path) -> None:
    with serving(tmp_path, ALLOWED_ORIGIN="https://site.example") as server:
        start = server.log.partition("GET /health")[0].splitlines()
    assert start[-1].endswith(f" is ready: http://localhost:{server.port}")
    assert "ALLOWED_ORIGIN: no such setting, did you mean ALLOWED_ORIGINS?" in start


@pytest.mark.slow
def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        port = str(first.port)
        with serving(tmp_path, wait=False, PORT=port) as second:
            assert second.process.wait(20) != 0
            lines = [line for line in second.log.splitlines() if line[0] != "["]
    other = first.port + 1
    assert lines == [f"PORT: {port} is in use, try another: PORT={other} make run"]
