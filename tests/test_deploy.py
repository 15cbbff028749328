"""What platforms read is held to what the code reads."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from configparser import ConfigParser
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml

from frontdesk.settings import VERSION, Settings, SettingsError
from tests.support.server import ROOT

# Where a variable comes from. A new setting belongs into one of these.
ASKED = {"ALLOWED_ORIGINS", "MAIL_FROM", "MAIL_TO"} | {
    "MJ_APIKEY_PUBLIC",
    "MJ_APIKEY_PRIVATE",
}
GENERATED = {"SECRET_KEY", "ADMIN_TOKEN"}
DEFAULTED = {
    *("PUBLIC_URL", "SITE_NAME", "THANKS_URL", "MAILJET_API_URL", "MAILJET_LIST_ID"),
    *("CONFIRM_MAILS_PER_DAY", "TRUSTED_HOPS", "CLIENT_IP_HEADER", "CONTACT_LIMIT"),
    *("NEWSLETTER_LIMIT", "HITS_LIMIT", "MAX_PAGES", "ALLOW_EPHEMERAL"),
    *("RETENTION_DAYS", "WEB_CONCURRENCY", "WEB_THREADS", "PORT", "OUTBOX"),
    *("SITE_LANGUAGE", "TEMPLATE_DIR", "ACCENT_COLOR", "LOGO_URL"),
    *("TIME_ZONE", "HITS_IGNORE", "LETTER"),
}
PLATFORMS_OWN = {
    "DYNO",
    "RENDER",
    "RENDER_EXTERNAL_URL",
    "HEROKU_APP_DEFAULT_DOMAIN_NAME",
}
SETTABLE = ASKED | GENERATED | DEFAULTED | {"DATABASE_URL"}
BLUEPRINTS = ["with a disk", "without costs"]


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def variables_read() -> set[str]:
    """Return the names in settings.py that look like variables, docstrings aside."""
    return {
        node.value
        for node in ast.walk(ast.parse(text_of("frontdesk/settings.py")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[A-Z]{4,}|[A-Z]+(_[A-Z]+)+", node.value)
    }


def env_example() -> tuple[dict[str, str], dict[str, str]]:
    """Return what .env.example leaves to fill in, and the defaults that it names."""
    lines = re.findall(r"(?m)^(#?)([A-Z_]+)=(.*)$", text_of(".env.example"))
    blank = {name: value for mark, name, value in lines if not mark}
    defaults = {name: value for mark, name, value in lines if mark}
    return blank, defaults


def blueprint(name: str) -> dict[str, Any]:
    """Return the service of render.yaml, or the one that its last comment holds."""
    text, _, rest = text_of("render.yaml").partition("# --- Without costs")
    if name == "without costs":
        text = "\n".join(re.findall(r"(?m)^# (?!---)(.*)$", rest))
    (service,) = yaml.safe_load(text)["services"]
    return service


def blueprint_env(name: str) -> dict[str, dict[str, Any]]:
    return {entry.pop("key"): entry for entry in blueprint(name)["envVars"]}


# --- every variable has its place ------------------------------------------------


def test_every_variable_that_is_read_has_its_place_and_no_other_has() -> None:
    assert variables_read() == SETTABLE | PLATFORMS_OWN


def test_the_environment_is_read_in_one_place() -> None:
    readers = {
        path.name
        for path in (*ROOT.glob("*.py"), *ROOT.glob("frontdesk/*.py"))
        if re.search(r"environ\[|environ\.get|getenv", path.read_text())
    }
    assert readers <= {"settings.py"}


def test_env_example_names_every_variable_once() -> None:
    names = re.findall(r"(?m)^#?([A-Z_]+)=", text_of(".env.example"))
    assert sorted(names) == sorted(SETTABLE)


def explained(name: str) -> dict[str, str]:
    """Return the variables that a page's tables of settings have, with defaults."""
    rows = re.findall(
        r"(?m)^\| *(`[A-Z].*?) *\| *(.*?) *\| *.+? *\|$",
        text_of(name).partition("## Settings")[2] or text_of(name),
    )
    return {
        variable: default
        for variables, defaults in rows
        for variable, default in zip_longest(
            re.findall(r"`([A-Z][A-Z_]+)`", variables), defaults.split(", ")
        )
        if variable
    }


def test_the_docs_explain_every_variable_and_the_readme_five_rows() -> None:
    assert explained("docs/settings.md").keys() == SETTABLE
    few = explained("README.md")
    assert few.keys() < SETTABLE
    settings = text_of("README.md").partition("## Settings")[2].partition("\n## ")[0]
    assert len(re.findall(r"(?m)^\| `", settings)) == 5


def test_the_defaults_in_the_docs_are_the_defaults() -> None:
    told = {
        name: default.strip("`")
        for name, default in explained("docs/settings.md").items()
        if re.fullmatch(r"`[^`$]+`", default or "")
    }
    assert len(told) >= 12
    assert Settings.from_environ(told) == Settings.from_environ({})


def test_env_example_fills_nothing_in() -> None:
    blank, _ = env_example()
    assert set(blank.values()) == {""}
    assert Settings.from_environ(blank) == Settings.from_environ({})


def test_the_defaults_in_env_example_are_the_defaults() -> None:
    _, defaults = env_example()
    assert all(defaults.values())
    assert Settings.from_environ(defaults) == Settings.from_environ({})


# --- Heroku ----------------------------------------------------------------------


def test_heroku_asks_for_five_values_and_makes_the_secrets() -> None:
    env = json.loads(text_of("app.json"))["env"]
    assert set(env) == ASKED | GENERATED | {"WEB_CONCURRENCY", "PUBLIC_URL"}
    # One can try without Mailjet, and knows the address only afterwards.
    optional = {name for name in env if env[name].get("required") is False}
    assert optional == ASKED - {"ALLOWED_ORIGINS"} | {"PUBLIC_URL"}
    assert env["WEB_CONCURRENCY"]["value"] == "1"  # the buildpack would say 2
    assert {n for n in env if env[n].get("generator") == "secret"} == GENERATED
    assert all(env[name]["description"] for name in env)


def test_heroku_gets_postgres_one_basic_dyno_and_a_stack() -> None:
    app = json.loads(text_of("app.json"))
    assert [addon["plan"].partition(":")[0] for addon in app["addons"]] == [
        "heroku-postgresql"
    ]
    assert app["formation"] == {"web": {"quantity": 1, "size": "basic"}}
    assert re.fullmatch(r"heroku-\d\d", app["stack"])
    assert app["buildpacks"] == [{"url": "heroku/python"}]


def test_the_procfile_has_one_process_that_makes_the_schema_itself() -> None:
    (line,) = text_of("Procfile").splitlines()
    assert line.startswith("web: ")


def test_the_python_version_is_one_that_is_tested() -> None:
    workflow = yaml.safe_load(text_of(".github/workflows/ci.yml"))
    tested = workflow["jobs"]["run"]["strategy"]["matrix"]["python"]
    assert text_of(".python-version").strip() in tested
    assert re.search(r"(?m)^FROM python:(.*)-slim$", text_of("Dockerfile"))[1] in tested
    assert tested == ["3.11", "3.12", "3.13", "3.14"]


# --- Render ----------------------------------------------------------------------


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_render_asks_for_five_values_and_makes_the_secrets(name: str) -> None:
    env = blueprint_env(name)
    asked = {key for key in env if env[key] == {"sync": False}}
    assert asked - {"DATABASE_URL"} == ASKED
    assert {key for key in env if env[key] == {"generateValue": True}} == GENERATED
    assert set(env) == ASKED | GENERATED | {"DATABASE_URL"}


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_render_starts_what_the_procfile_starts(name: str) -> None:
    service = blueprint(name)
    assert service["type"] == "web"
    assert service["runtime"] == "python"
    assert service["healthCheckPath"] == "/health"
    assert f"web: {service['startCommand']}" == text_of("Procfile").strip()
    assert service["buildCommand"] == "pip install -r requirements.txt"


def test_on_render_the_database_lies_on_the_disk() -> None:
    service = blueprint("with a disk")
    url = blueprint_env("with a disk")["DATABASE_URL"]["value"]
    assert service["disk"]["sizeGB"] == 1
    assert url.startswith(f"sqlite:///{service['disk']['mountPath']}/")


def test_the_free_variant_has_no_disk_and_asks_for_postgres() -> None:
    service = blueprint("without costs")
    assert (service["plan"], "disk" in service) == ("free", False)
    assert blueprint_env("without costs")["DATABASE_URL"] == {"sync": False}


@pytest.mark.parametrize("platform", ["DYNO", "RENDER"])
def test_what_the_platforms_make_and_ask_for_is_enough(platform: str) -> None:
    settings = Settings.from_environ(
        {
            platform: "web.1",
            "SECRET_KEY": "0123456789abcdef" * 4,
            "ADMIN_TOKEN": "0123456789abcdef" * 4,
            "DATABASE_URL": "postgres://user:password@host/name",
            "ALLOWED_ORIGINS": "https://example.com",
            "MAIL_FROM": "site@example.com",
            "MAIL_TO": "me@example.com",
            "MJ_APIKEY_PUBLIC": "public",
            "MJ_APIKEY_PRIVATE": "private",
        }
    )
    assert settings.mailjet_key == ("public", "private")


@pytest.mark.parametrize("platform", ["DYNO", "RENDER"])
def test_a_platform_form_left_empty_names_what_is_missing(platform: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ(
            {platform: "web.1", **dict.fromkeys(ASKED | GENERATED, "")}
        )
    assert {problem.partition(":")[0] for problem in caught.value.problems} == {
        "SECRET_KEY",
        "DATABASE_URL",
    }


# --- any machine -----------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", text_of("Dockerfile"))
    lines = [line for line in joined.splitlines() if line and line[0] != "#"]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_dockerfile_is_short_slim_and_not_root() -> None:
    steps = dockerfile()
    names = [name for name, _ in steps]
    assert len(text_of("Dockerfile").splitlines()) <= 15
    assert dict(steps)["FROM"].endswith("-slim")
    assert dict(steps)["USER"] not in ("root", "0")
    assert names.index("USER") > names.index("RUN")
    assert "/health" in dict(steps)["HEALTHCHECK"]
    assert not re.search(r"apt|gcc|build-essential", text_of("Dockerfile"))


def test_the_dockerfile_starts_what_the_procfile_starts() -> None:
    command = json.loads(dict(dockerfile())["CMD"])
    assert f"web: {shlex.join(command)}" == text_of("Procfile").strip()


def test_the_dockerfile_sets_only_what_is_read() -> None:
    names = {pair.partition("=")[0] for pair in dict(dockerfile())["ENV"].split()}
    assert names - {"PYTHONUNBUFFERED"} <= SETTABLE


def test_the_image_holds_all_that_the_service_needs_and_nothing_else() -> None:
    lines = text_of(".dockerignore").splitlines()
    let_in = [line[1:] for line in lines if line.startswith("!")]
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {path for path in tracked.stdout.splitlines() if "/" not in path}
    inside = {path for path in top if any(Path(path).match(p) for p in let_in)}
    assert lines[0] == "*"
    assert {path for path in top if path.endswith(".py")} <= inside
    assert "requirements.txt" in inside
    assert "frontdesk" in let_in
    assert not {"tests", "bench", "examples", ".git", ".venv"} & set(let_in)


def unit() -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(text_of("examples/frontdesk.service"))
    return parser


def test_the_unit_starts_what_the_procfile_starts_for_the_proxy_only() -> None:
    service = unit()["Service"]
    command = text_of("Procfile").strip().removeprefix("web: ")
    assert service["ExecStart"].partition(" --bind ")[0].endswith(f"/bin/{command}")
    (upstream,) = re.findall(r"reverse_proxy (\S+)", text_of("examples/Caddyfile"))
    assert service["ExecStart"].partition(" --bind ")[2] == upstream
    assert upstream.startswith("127.0.0.1:")


def test_the_unit_sets_only_what_is_read_and_keeps_the_data() -> None:
    pairs = re.findall(
        r"(?m)^Environment=(\w+)=(.*)$", text_of("examples/frontdesk.service")
    )
    assert dict(pairs) == {
        "DATABASE_URL": f"sqlite:////var/lib/{unit()['Service']['StateDirectory']}"
        "/frontdesk.db",
        "TRUSTED_HOPS": "1",
    }
    assert set(dict(pairs)) <= SETTABLE


def test_the_unit_leaves_little_open() -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    # The threshold is in tenths; the command fails above it.
    command = (analyze, "security", "--offline=true", "--threshold=19", "--no-pager")
    unit_path = ROOT / "examples" / "frontdesk.service"
    done = subprocess.run([*command, unit_path], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()


# --- the repository --------------------------------------------------------------


def test_the_workflow_may_only_read_and_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load(text_of(".github/workflows/ci.yml"))
    (job,) = workflow["jobs"].values()
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in job
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert job["steps"][0]["with"]["persist-credentials"] is False
    assert job["container"] == "python:${{ matrix.python }}-bookworm"


def test_actions_are_pinned_to_a_commit_and_say_which_version() -> None:
    lines = [
        line
        for path in (ROOT / ".github/workflows").glob("*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert lines
    for line in lines:
        assert re.search(r"uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_dependabot_watches_packages_actions_and_the_image() -> None:
    updates = yaml.safe_load(text_of(".github/dependabot.yml"))["updates"]
    assert {u["package-ecosystem"] for u in updates} == {
        "pip",
        "github-actions",
        "docker",
    }


def test_the_version_is_in_one_place_and_the_changelog_knows_it() -> None:
    newest = re.search(r"(?m)^## (\S+)", text_of("CHANGELOG.md"))
    assert newest
    assert newest[1] == VERSION
    assert "project" not in tomllib.loads(text_of("pyproject.toml"))  # nothing builds


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_package_is_pinned(name: str) -> None:
    for line in text_of(name).splitlines():
        assert line.startswith("-r ") or re.fullmatch(r"[\w\[\]-]+==[\w.]+", line), line
