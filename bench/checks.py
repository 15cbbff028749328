"""Does a contender do the work? Each kind is tried once, and its rows are counted."""

import json
import sqlite3
import subprocess
from functools import partial

from bench.service import ORIGIN, Unfit


def check(service):
    """Try each kind of work; raise Unfit unless the rows are there."""
    ours, isso = (_contact, _signup, _hits, _preflight), (_isso,)
    failures = (AssertionError, KeyError, ValueError, sqlite3.Error)
    try:
        for one in isso if service.contender.name == "isso" else ours:
            one(service)
    except (*failures, subprocess.CalledProcessError) as error:
        raise Unfit(f"{type(error).__name__}: {error}, see {service.log}") from error


def expect(ok, what, *seen):
    if not ok:
        raise AssertionError(f"{what} {seen}")


def _adds(service, tables, rows, act):
    """Return what act() answers; each of the tables must grow by so many rows."""
    before = service.rows(tables)
    result = act()
    added = [b - a for a, b in zip(before, service.rows(tables), strict=True)]
    expect(added == [rows] * len(tables), f"{tables} grow by {added}", result)
    return result


def _contact(service):
    form = {"name": "A", "email": "a@example.com", "message": f"Hi {service.port}"}
    post = partial(service.request, "/contact")
    adds = partial(_adds, service, service.contender.writes["contact"])
    status, headers, body = adds(1, lambda: post(form))
    expect(status == 200, "contact", status, body)
    expect(headers["access-control-allow-origin"] == ORIGIN, "CORS", headers)
    expect("origin" in headers["vary"].lower(), "Vary", headers)
    again = adds(0, lambda: post(form))[2]
    expect(json.loads(again)["id"] == json.loads(body)["id"], "same id")
    empty = dict.fromkeys(form, "")
    for wrong in ({"email": "nobody"}, empty, {"message": "x" * 10_001}):
        status = adds(0, partial(post, form | wrong))[0]
        expect(status == 422, "invalid", status)


def _signup(service):
    post = partial(service.request, "/newsletter")
    act = partial(post, {"email": "reader@example.com"})
    tables = service.contender.writes["signup"]
    status, _, body = _adds(service, tables, 1, act)
    expect(status == 200, "signup", status, body)
    # Frontdesk queues what is not sent then, to take the same time.
    _adds(service, tables[:1] if service.contender.ours else tables, 0, act)
    expect(post({"email": "nobody"})[0] == 422, "invalid signup")


def _hits(service):
    post = partial(service.request, "/hits", {"page": "/about"})
    adds = partial(_adds, service, service.contender.writes["hit"])
    for hits in (1, 2):
        status, _, body = adds(1, post)
        sums = {"page": "/about", "hits": hits, "visitors": 1, "counted": True}
        expect(status == 200 and json.loads(body) == sums, "hit", status, body)
    crawler = adds(0, lambda: post(**{"User-Agent": "Googlebot/2.1"}))
    expect(json.loads(crawler[2])["counted"] is False, "crawler", crawler)
    read = json.loads(service.request("/hits?page=/about")[2])
    expect(read["hits"] == 2 and len(read["days"]) == 30, "read", read)
    expect(read["days"][-1]["hits"] == 2, "read", read)
    status, headers, svg = service.request("/hits.svg?count=false&page=/about")
    expect(status == 200 and "svg" in headers["content-type"], "badge", headers)
    expect(b">2</text>" in svg, "badge", svg)


def _preflight(service):
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    status, headers, _ = service.request("/contact", method="OPTIONS", **asks)
    expect(status in (200, 204), "preflight", status)
    expect("POST" in headers["access-control-allow-methods"], "preflight", headers)


def _isso(service):
    form = {"title": "A page", "author": "A", "text": "Hello there"}
    post = partial(service.request, "/new?uri=/about", form)
    status, _, body = _adds(service, ("comments",), 1, post)
    expect(status == 201, "comment", status, body)
    count = service.request("/count", ["/about"])[2]
    expect(json.loads(count) == [1], "count", count)
