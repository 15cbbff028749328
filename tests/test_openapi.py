"""openapi.yaml is the truth: fuzzed from it, the service keeps all that it says."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from wsgiref.simple_server import WSGIRequestHandler, make_server

import falcon.inspect
import hypothesis
import pytest
import requests
import schemathesis
import yaml

from api import Frontdesk, create_app
from frontdesk import forms, paths
from frontdesk.database import current
from frontdesk.links import Links
from frontdesk.settings import Settings, Window
from tests.support.desk import FULL, NOON, TOKEN, Mailbox
from tests.support.server import ROOT

EXAMPLES = 2000 if FULL else 200
PLENTY = (Window(10**6, 1),)
KEY = "k" * 32
OWNER = {"Authorization": f"Bearer {TOKEN}"}


def load() -> Any:
    return yaml.safe_load((ROOT / "frontdesk" / "openapi.yaml").read_text("utf-8"))


class Ticking:
    """A clock that is a minute later whenever it is read, so that no limit is met."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        self.now += 60
        return self.now


CONFIG = {
    "checks": {
        "negative_data_rejection": {"expected-statuses": ["4xx", "5xx"]},
        # What keeps to every single limit may be over that of the whole body.
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "3xx", "401", "404", "413"]
        },
    }
}
schema = schemathesis.openapi.from_dict(
    load(), config=schemathesis.Config.from_dict(CONFIG)
)


class Quiet(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture(scope="module")
def app(
    mailbox: Mailbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Frontdesk]:
    path = tmp_path_factory.mktemp("openapi") / "frontdesk.db"
    url = f"sqlite:///{path}"
    settings = Settings(
        database_url=url,
        secret_keys=(KEY,),
        contact_limit=PLENTY,
        newsletter_limit=PLENTY,
        hits_limit=PLENTY,
        admin_token=TOKEN,
    )
    app = create_app(settings, clock=Ticking(), transport=mailbox)
    yield app
    app.service.limits.store.close()
    app.service.database.close()


@pytest.fixture(scope="module")
def url(app: Frontdesk) -> Iterator[str]:
    """The app on a local port, for clients that speak HTTP."""

    def unchunked(environ: dict[str, Any], start_response: Any) -> Any:
        # The standard library's server does not know chunked bodies.
        if environ.get("HTTP_TRANSFER_ENCODING") == "chunked":
            stream, body, size = environ["wsgi.input"], b"", -1
            while size:
                size = int(stream.readline(), 16)
                body += stream.read(size)
                stream.readline()
            environ["wsgi.input"] = io.BytesIO(body)
        return app(environ, start_response)

    with make_server("127.0.0.1", 0, unchunked, handler_class=Quiet) as server:

        def serve() -> None:
            server.serve_forever()
            current().hang_up()  # this thread's own connection

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


# A schema cannot say what the fields of any form mean (tests/test_forms.py does), how
# long a page is once it is cleaned, that all of a multipart body is text, or that an
# address has no control characters.
DEBATABLE = schemathesis.checks.CHECKS.get_by_names(
    ["positive_data_acceptance", "negative_data_rejection"]
)


def debatable(case: schemathesis.Case) -> bool:
    """Tell whether the body or path holds what the schema cannot say."""
    fields = case.body if isinstance(case.body, dict) else {}
    address = str((case.path_parameters or {}).get("email", ""))
    return (
        bool(fields and not case.path.startswith("/hits"))
        or case.body in ({}, b"")
        or len(quote(str(fields.get("page", "")))) > paths.MAX_PAGE
        or len(forms.clean(str(fields.get("page", "x"))))
        != len(str(fields.get("page", "x")))
        or not address.isprintable()
    )


@pytest.mark.slow
@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, derandomize=not FULL, database=None
)
def test_the_service_keeps_to_its_document(url: str, case: schemathesis.Case) -> None:
    excluded = DEBATABLE if debatable(case) else []
    case.call_and_validate(base_url=url, headers=OWNER, excluded_checks=excluded)


def test_every_route_is_in_the_document_and_every_path_in_the_app(
    app: Frontdesk,
) -> None:
    routes = {
        (re.sub(":[a-z]+}", "}", route.path), method.method)
        for route in falcon.inspect.inspect_app(app).routes
        for method in route.methods
        if method.method not in ("HEAD", "OPTIONS") and not method.internal
    }
    verbs = ("get", "post", "put", "delete", "patch")
    paths = {
        (path, verb.upper())
        for path, item in load()["paths"].items()
        for verb in item
        if verb in verbs
    }
    assert routes == paths


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
@pytest.mark.parametrize("purpose", ["confirm", "unsubscribe", "not-me", "release"])
def test_mailed_links_that_work_keep_to_the_document(
    purpose: str, accept: str, app: Frontdesk, mailbox: Mailbox, url: str
) -> None:
    requests.post(f"{url}/newsletter", json={"email": f"{purpose}@{accept[:4]}.test"})
    held = {"email": "a@b.test", "message": f"{purpose} {accept}", "_gotcha": "x"}
    requests.post(f"{url}/contact", json=held)
    app.outbox.drain()
    if purpose == "release":
        rows = requests.get(f"{url}/export/messages.json", headers=OWNER).json()
        message = next(m for m in rows if m["message"] == held["message"])
        token = Links((KEY,), url, Ticking()).token("release", message["id"])
    else:
        token = re.findall(rf"/{purpose}/(\S+)", mailbox.mails[-1]["TextPart"])[0]
    prefix = "/release" if purpose == "release" else f"/newsletter/{purpose}"
    for method in ("GET", "POST"):
        operation = schema[f"{prefix}/{{token}}"][method]
        case = operation.Case(path_parameters={"token": token})
        answer = case.call(base_url=url, headers={"Accept": accept})
        assert answer.status_code == 200
        case.validate_response(answer)
