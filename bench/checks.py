"""Does a contender do the work? Each kind is tried, and its rows are counted."""

import json
from functools import partial

from bench.service import ORIGIN, Unfit

FORM = {"name": "A", "email": "a@example.com", "message": "Hi there"}
NO_MESSAGE = {"message": ""}
WRONG = {"email": "nobody"}, {"message": "x" * 10_001}, dict.fromkeys(FORM, "")
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type",
}


def check(service):
    """Try each kind of work; raise Unfit, or an AssertionError, unless it is done."""
    ask = partial(_ask, service)
    if service.contender.name == "isso":
        form = {"title": "A page", "author": "A", "text": "Hello there"}
        ask("contact", "/new?uri=/about", form, status=[201], adds=1)
        count = ask("read", "/count", ["/about"])
        assert json.loads(count["body"]) == [1], count
    else:
        _contact(ask, service.contender.ours)
        _signup(ask, service.contender.ours)
        _hits(ask)


def _ask(service, kind, path, form=None, status=(200,), adds=0, tables=None, **more):
    """Return the headers and the JSON of an answer with such a status, as one.

    Each of the tables that this kind of work writes must grow by so many rows.
    """
    tables = service.contender.writes.get(kind, ())[:tables]
    before = service.rows(tables)
    answered, found, body = service.request(path, form, **more)
    grown = [b - a for a, b in zip(before, service.rows(tables), strict=True)]
    if answered not in status or grown != [adds] * len(tables):
        seen = f"{answered}, {tables} grow by {grown}, {body[:200]!r}"
        raise Unfit(f"{path} {str(form)[:200]}: {seen}, see {service.log}")
    is_json = body and "json" in found["content-type"]
    said = json.loads(body) if is_json else {}
    return found | {"body": body} | (said if isinstance(said, dict) else {})


def _contact(ask, ours):
    post = partial(ask, "contact", "/contact")
    first, again = post(FORM, adds=1), post(FORM, adds=0)
    assert again["id"] == first["id"], (first, again)
    # Frontdesk takes a form that has other fields only.
    for wrong in WRONG if ours else (*WRONG, NO_MESSAGE):
        post(FORM | wrong, status=[422])
    assert first["access-control-allow-origin"] == ORIGIN, first
    assert "origin" in first["vary"].lower(), first
    allowed = ask("", "/contact", status=(200, 204), method="OPTIONS", **PREFLIGHT)
    assert "POST" in allowed["access-control-allow-methods"], allowed


def _signup(ask, ours):
    post = partial(ask, "signup", "/newsletter")
    post({"email": "reader@example.com"}, adds=1)
    # Frontdesk queues what is not sent then, to take the same time.
    post({"email": "reader@example.com"}, tables=1 if ours else None)
    post({"email": "nobody"}, status=[422])


def _hits(ask):
    post = partial(ask, "hit", "/hits", {"page": "/about"})
    for hits in (1, 2):
        said = post(adds=1)
        sums = {"page": "/about", "hits": hits, "visitors": 1, "counted": True}
        assert said | sums == said, said
    crawler = post(**{"User-Agent": "Googlebot/2.1"})
    assert crawler["counted"] is False, crawler
    read = ask("read", "/hits?page=/about")
    assert read["hits"] == read["days"][-1]["hits"] == 2, read
    assert len(read["days"]) == 30, read
    badge = ask("badge", "/hits.svg?count=false&page=/about")
    assert "svg" in badge["content-type"] and b">2</text>" in badge["body"], badge
