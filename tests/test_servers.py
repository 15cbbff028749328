"""The application under servers that know nothing of it (PEP 3333)."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.desk import TOKEN, Desk
from tests.support.mailjet import Answer, StandIn, success
from tests.support.server import ROOT, Server, mail_settings, serving

GUNICORN = "gunicorn -b 127.0.0.1:{port} -c /dev/null api:create_app()"
UWSGI = (
    f"uwsgi --http-socket 127.0.0.1:{{port}} --home {sys.prefix} --need-app --master "
    "--die-on-term --chunked-input-limit 70000 --module api:create_app()"
)
MODULES = Path("/usr/lib/apache2/modules")  # Debian's
# Apache does not serve as root: as somebody else it may still open root's folders.
USER = (
    "setpriv --reuid=1000 --regid=1000 --clear-groups --inh-caps=+dac_override "
    "--ambient-caps=+dac_override "
) * (os.geteuid() == 0)
APACHE = (
    f"env LISTEN={{port}} {USER}"
    "/usr/sbin/apache2 -DFOREGROUND -f {folder}/apache.conf"
)
APACHE_CONF = f"""
ServerRoot {{folder}}
DefaultRuntimeDir {{folder}}
PidFile apache.pid
ServerName localhost
Listen 127.0.0.1:${{{{LISTEN}}}}
ErrorLog /dev/stderr
LoadModule mpm_event_module {MODULES}/mod_mpm_event.so
LoadModule authz_core_module {MODULES}/mod_authz_core.so
LoadModule wsgi_module {MODULES}/mod_wsgi.so
WSGIPassAuthorization On
<IfDefine !embedded>
  WSGISocketPrefix {{folder}}/wsgi
  WSGIDaemonProcess frontdesk processes=2 threads=4 \\
    python-home={sys.prefix} python-path={ROOT}
  WSGIScriptAlias / {{folder}}/frontdesk.wsgi \\
    process-group=frontdesk application-group=%{{{{GLOBAL}}}}
</IfDefine>
<IfDefine embedded>
  WSGIPythonHome {sys.prefix}
  WSGIPythonPath {ROOT}
  WSGIApplicationGroup %{{{{GLOBAL}}}}
  WSGIScriptAlias / {{folder}}/frontdesk.wsgi
</IfDefine>
"""
SERVERS = {
    "gunicorn gthread": f"{GUNICORN} -k gthread --threads 4",
    "gunicorn sync": f"{GUNICORN} -k sync -w 2",
    "gunicorn preload": f"{GUNICORN} -k gthread --threads 2 -w 2 --preload",
    "waitress": "waitress-serve --listen=127.0.0.1:{port} --call api:create_app",
    "uwsgi": f"{UWSGI} --enable-threads --threads 2 --processes 2",
    "uwsgi without threads": UWSGI,
    "mod_wsgi": APACHE,
    "mod_wsgi embedded": f"{APACHE} -Dembedded",
}
FORM = {"email": "ada@example.com", "name": "Ada", "message": "Grüße, ça va?"}
SECRET = {"SECRET_KEY": "k" * 32, "ADMIN_TOKEN": TOKEN}


@pytest.fixture(params=SERVERS)
def command(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each server's command line."""
    found: str = SERVERS[request.param]
    if "apache2" in found:
        return in_apache(found, tmp_path)
    program = found.split()[0]
    if not shutil.which(program, path=str(Path(sys.executable).parent)):
        pytest.skip(f"{program} is not installed: see requirements-dev.txt")
    return found


def in_apache(command: str, folder: Path) -> str:
    """Write Apache's files; its module is built for one version of Python only."""
    if not (module := MODULES / "mod_wsgi.so").exists():
        pytest.skip("apache2 or libapache2-mod-wsgi-py3 is not installed")
    version = "{}.{}".format(*sys.version_info)
    if (built_for := module.resolve().name.rpartition("-")[2]) != version:
        pytest.skip(f"mod_wsgi was built for Python {built_for}, this is {version}")
    lines = "from api import create_app\napplication = create_app()\n"
    (folder / "frontdesk.wsgi").write_text(lines)
    (folder / "apache.conf").write_text(APACHE_CONF.format(folder=folder))
    return command.replace("{folder}", str(folder))


def rows(folder: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(folder / "frontdesk.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def use(server: Server) -> None:
    """Do what visitors do: a message, a form, a page, the counter, too much."""
    url = server.url
    for _ in range(2):  # a double submission
        answer = requests.post(f"{url}/contact", json=FORM)
        assert (answer.status_code, answer.json()["ok"]) == (200, True)
    page = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}
    form = {**FORM, "message": "A plain form"}
    answer = requests.post(f"{url}/contact", form, headers=page, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"][-7:]) == (303, "/thanks")
    answer = requests.get(f"{url}/thanks", headers=page)
    assert (answer.status_code, "<html" in answer.text) == (200, True)
    browser = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0"}
    hit = requests.post(f"{url}/hits", json={"page": "/about"}, headers=browser).json()
    assert (hit.get("page"), hit.get("hits")) == ("/about", 1), server.log[-900:]
    picture = requests.get(f"{url}/hits.svg?page=/about&count=false")
    assert picture.headers["Content-Type"].startswith("image/svg+xml")
    answer = requests.post(f"{url}/contact", data=b"x" * 70_000)
    assert answer.status_code in (413, 415)
    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{url}/contact", data=b"x" * 70_000, headers=headers)
    assert (answer.status_code, answer.json()["ok"]) == (413, False)
    assert requests.head(f"{url}/health").status_code == 200
    answer = requests.get(f"{url}/export/messages.json", auth=("", TOKEN))
    assert [m["message"] for m in answer.json()] == [FORM["message"], "A plain form"]


def settled(folder: Path, seconds: float = 10) -> None:
    """Return once nothing waits to be delivered (the bound ends a failing test)."""
    deadline = time.monotonic() + seconds
    while rows(folder, "SELECT count(*) FROM delivery") != [(0,)]:
        assert time.monotonic() < deadline, rows(folder, "SELECT * FROM delivery")
        threading.Event().wait(0.05)


def test_all_of_it_works_from_an_empty_database_to_the_end(
    command: str, serve: Callable[..., Server], mailjet: StandIn, tmp_path: Path
) -> None:
    server = serve(command=command, **mail_settings(mailjet), **SECRET)
    use(server)
    mailjet.wait(2)
    settled(tmp_path)
    subjects = [mail["TextPart"] for mail in mailjet.mails]
    assert len(subjects) == 2, subjects
    assert rows(tmp_path, "SELECT count(*) FROM message") == [(2,)]
    for part in tmp_path.glob("frontdesk.db*"):
        assert not part.stat().st_mode & 0o077, part
    server.stop()
    assert "Traceback" not in server.log
    assert not requests_open(server)


def requests_open(server: Server) -> bool:
    try:
        requests.get(f"{server.url}/health", timeout=1)
    except requests.RequestException:
        return False
    return True


def test_a_delivery_under_way_is_handed_back_at_the_end(
    command: str, serve: Callable[..., Server], mailjet: StandIn, tmp_path: Path
) -> None:
    hang = threading.Event()
    mailjet.answer = lambda request: Answer(hang=hang)
    server = serve(command=command, **mail_settings(mailjet), **SECRET)
    requests.post(f"{server.url}/contact", json=FORM)
    mailjet.wait(1)
    server.process.terminate()
    server.process.wait(20)
    hang.set()
    (lease, due_at), *_ = rows(tmp_path, "SELECT lease, due_at FROM delivery")
    if command != SERVERS["uwsgi without threads"]:  # it ends within its request:
        assert lease is None
    assert due_at < time.time() + 60  # the lease does, too


def wait_until_it_gives_up(server: Server, command: str) -> None:
    """Wait for the process's end, in which nothing of ours shows a traceback.

    Apache goes on, answers 500 itself and shows how create_app() ended.
    """
    if "apache2" not in command:
        assert server.process.wait(20) != 0
        # gunicorn may show one of its own, and its files may lie within our folder.
        for path in re.findall('File "([^"]+)"', server.log):
            ours = path.startswith(str(ROOT)) and not path.startswith(sys.prefix)
            assert not ours, server.log
        return
    deadline = time.monotonic() + 20
    while not requests_open(server):
        assert time.monotonic() < deadline, server.log
        threading.Event().wait(0.05)
    assert requests.get(f"{server.url}/health").status_code == 500


def test_a_bad_environment_ends_the_process_with_a_line_for_each_problem(
    command: str, tmp_path: Path
) -> None:
    with serving(
        tmp_path, wait=False, command=command, PORT="no", MAIL_FROM="nobody"
    ) as server:
        wait_until_it_gives_up(server, command)
    assert "PORT: must be a whole number" in server.log
    assert "MAIL_FROM: must be a mail address" in server.log


def test_an_unusable_database_ends_the_process_with_one_line(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "frontdesk.db").write_bytes(b"this is no database " * 100)
    with serving(tmp_path, wait=False, command=command) as server:
        wait_until_it_gives_up(server, command)
    assert "DATABASE_URL: cannot use" in server.log


def test_gunicorns_config_says_the_same_as_create_app(tmp_path: Path) -> None:
    said = []
    for command in ("", SERVERS["waitress"]):
        with serving(tmp_path, wait=False, command=command, PORT="no") as server:
            assert server.process.wait(20) != 0
        said.append(server.log)
    assert said[0] == said[1] == "PORT: must be a whole number from 1 to 65535\n"


def run(code: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PUBLIC_URL": "https://desk.example",
            **environ,
        },
        capture_output=True,
        text=True,
        timeout=30,
    )


LEFT_OPEN = """
import os, sys, threading, api
app = api.create_app()
print([os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
       if os.path.exists(f"/proc/self/fd/{fd}")])
print(threading.active_count(), "psycopg" in sys.modules, oct(os.umask(0)))
"""


def test_an_application_that_is_made_holds_no_file_no_thread_and_no_driver(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/frontdesk.db"
    done = run(LEFT_OPEN, tmp_path, DATABASE_URL=url)
    assert done.stderr == ""
    files, rest = done.stdout.splitlines()
    assert "frontdesk" not in files.replace(str(ROOT), "")
    assert rest == "1 False 0o77"


BOTH = """
import os, sys, api
one = api.create_app()
os.environ["DATABASE_URL"] = os.environ["OTHER_URL"]
two = api.create_app()
import falcon.testing
for app in (one, two):
    answer = falcon.testing.TestClient(app).simulate_get("/health")
    print(answer.json["status"], app.service.database.is_sqlite)
"""


def test_an_application_on_sqlite_leaves_the_driver_to_one_on_postgres(
    tmp_path: Path, postgres: Any
) -> None:
    url = f"sqlite:///{tmp_path}/frontdesk.db"
    done = run(BOTH, tmp_path, DATABASE_URL=url, OTHER_URL=postgres.blank_url())
    assert done.stderr == ""
    assert "ok True\n" in done.stdout
    assert "ok False\n" in done.stdout


# --- OUTBOX=request ---------------------------------------------------------------


@pytest.fixture
def asked(make_desk: Callable[..., Desk]) -> Desk:
    """A service that delivers within requests."""
    return make_desk(outbox="request")


def test_what_is_due_is_delivered_when_the_answer_has_been_given(asked: Desk) -> None:
    answer = asked.post("/contact", FORM)
    assert answer.status_code == 200
    assert len(asked.mailbox.mails) == 1
    assert threading.active_count() == len(
        [thread for thread in threading.enumerate() if thread.name != "outbox"]
    )


def test_nothing_is_delivered_before_close(asked: Desk) -> None:
    from falcon.testing import StartResponseMock, create_environ

    body = json.dumps(FORM).encode()
    headers = {"Content-Type": "application/json"}
    environ = create_environ("/contact", method="POST", body=body, headers=headers)
    parts = asked.app(environ, StartResponseMock())
    assert b'"ok": true' in b"".join(parts)
    assert asked.mailbox.mails == []
    parts.close()  # type: ignore[attr-defined]
    assert len(asked.mailbox.mails) == 1


def test_five_are_delivered_with_one_request_and_the_rest_with_the_next(
    asked: Desk,
) -> None:
    from models import Delivery

    for _ in range(8):
        Delivery.add("test", "", asked.clock())
    asked.client.simulate_get("/thanks")
    assert len(asked.mailbox.mails) == 5
    asked.client.simulate_get("/thanks")
    assert len(asked.mailbox.mails) == 8


def test_a_failed_delivery_is_tried_again_by_whoever_comes_later(asked: Desk) -> None:
    from frontdesk.outbox import TryLater

    asked.mailbox.fail = lambda message: TryLater("busy")
    asked.post("/contact", FORM)
    asked.mailbox.fail = lambda message: None
    asked.client.simulate_get("/thanks")
    assert asked.mailbox.mails == []
    asked.clock.advance(6)
    asked.client.simulate_get("/thanks")
    assert len(asked.mailbox.mails) == 1


def test_the_daily_round_is_made_within_requests(asked: Desk) -> None:
    asked.post("/contact", {**FORM, "_gotcha": "x"})
    asked.clock.advance(86400)
    asked.client.simulate_get("/thanks")
    asked.client.simulate_get("/thanks")
    (mail,) = asked.mailbox.mails
    assert "held" in mail["Subject"] or "held" in mail["TextPart"]


def test_exports_stream_where_deliveries_are_made_within_requests(asked: Desk) -> None:
    for n in range(3):
        asked.post("/contact", {**FORM, "message": f"Hello {n}"})
    assert len(asked.messages()) == 3


def test_the_doctor_starts_no_thread_where_none_may_run(asked: Desk) -> None:
    before = threading.active_count()
    answer = asked.owner("GET", "/doctor")
    assert answer.status_code == 200
    assert any(check["name"] == "mailjet" for check in answer.json["checks"])
    assert threading.active_count() == before


@pytest.mark.parametrize("worker", ["", SERVERS["gunicorn gthread"]])
def test_a_hanging_mailjet_delays_no_answer(
    worker: str, serve: Callable[..., Server], mailjet: StandIn
) -> None:
    hang = threading.Event()
    mailjet.answer = lambda request: Answer(hang=hang)
    server = serve(command=worker, OUTBOX="request", **mail_settings(mailjet), **SECRET)
    for n in range(3):
        started = time.monotonic()
        form = {**FORM, "message": f"Hello {n}"}
        assert requests.post(f"{server.url}/contact", json=form).status_code == 200
        assert time.monotonic() - started < 2
    mailjet.wait(1)
    mailjet.answer = success
    hang.set()


# --- AWS Lambda -------------------------------------------------------------------


def test_an_event_of_aws_lambda_is_answered(asked: Desk) -> None:
    apig_wsgi = pytest.importorskip("apig_wsgi")
    event = json.loads((ROOT / "tests/corpus/lambda-event.json").read_text())
    handler = apig_wsgi.make_lambda_handler(asked.app)
    answer = handler(event, None)
    assert answer["statusCode"] == 200
    assert json.loads(answer["body"])["ok"] is True
    (mail,) = asked.mailbox.mails  # before the machine is frozen
    assert mail["ReplyTo"]["Email"] == "ada@example.com"
    (message,) = asked.messages()
    assert message["message"] == "Hello from a Lambda"
