"""Does a contender do the work? Each kind is tried once, and its rows are counted."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

from service import ORIGIN, WRITES, Service, Unfit


def check(service: Service) -> None:
    """Try each kind of work; raise Unfit unless the rows are there."""
    ours, isso = (_contact, _signup, _hits, _preflight), (_isso,)
    try:
        for one in isso if service.contender.name == "isso" else ours:
            one(service)
    except (
        *(AssertionError, KeyError, ValueError, sqlite3.Error),
        subprocess.CalledProcessError,
    ) as error:
        raise Unfit(f"{type(error).__name__}: {error}, see {service.log}") from error


def expect(ok: bool, what: str, *seen: object) -> None:
    if not ok:
        raise AssertionError(f"{what} {seen}")


def _adds(
    service: Service, item: str, rows: int, act: Callable[[], Any], what: str
) -> Any:
    """Return what act() does; each of the item's tables must grow by so many rows."""
    tables = WRITES[item]
    if what == "second signup" and service.contender.name == "frontdesk":
        tables = ("subscriber",)  # it queues what is not sent, to take the same time
    before = service.rows(*tables)
    result = act()
    after = service.rows(*tables)
    added = {table: after[table] - before[table] for table in tables}
    expect(added == dict.fromkeys(tables, rows), what, added, result)
    return result


def _contact(service: Service) -> None:
    form = {"name": "A", "email": "a@example.com", "message": f"Hi {service.port}"}
    post = partial(service.request, "POST", "/contact")
    status, headers, body = _adds(service, "contact", 1, lambda: post(form), "contact")
    expect(status == 200, "contact", status, body)
    expect(headers["access-control-allow-origin"] == ORIGIN, "CORS", headers)
    expect("origin" in headers["vary"].lower(), "Vary", headers)
    again = _adds(service, "contact", 0, lambda: post(form), "second time")[2]
    expect(json.loads(again)["id"] == json.loads(body)["id"], "same id")
    empty = dict.fromkeys(form, "")
    for wrong in ({"email": "nobody"}, empty, {"message": "x" * 10_001}):
        act = partial(post, form | wrong)
        status = _adds(service, "contact", 0, act, "invalid")[0]
        expect(status == 422, "invalid", status)


def _signup(service: Service) -> None:
    post = partial(service.request, "POST", "/newsletter")
    act = partial(post, {"email": "reader@example.com"})
    status, _, body = _adds(service, "signup", 1, act, "signup")
    expect(status == 200, "signup", status, body)
    _adds(service, "signup", 0, act, "second signup")
    expect(post({"email": "nobody"})[0] == 422, "invalid signup")


def _hits(service: Service) -> None:
    post = partial(service.request, "POST", "/hits", {"page": "/about"})
    for hits in (1, 2):
        status, _, body = _adds(service, "hit", 1, post, "hit")
        sums = {"page": "/about", "hits": hits, "visitors": 1, "counted": True}
        expect(status == 200 and json.loads(body) == sums, "hit", status, body)
    crawler = _adds(
        service, "hit", 0, lambda: post(**{"User-Agent": "Googlebot/2.1"}), "crawler"
    )
    expect(json.loads(crawler[2])["counted"] is False, "crawler", crawler)
    read = json.loads(service.request("GET", "/hits?page=/about")[2])
    expect(read["hits"] == 2 and len(read["days"]) == 30, "read", read)
    expect(read["days"][-1]["hits"] == 2, "read", read)
    path = "/hits.svg?count=false&page=/about"
    status, headers, svg = service.request("GET", path)
    expect(status == 200 and "svg" in headers["content-type"], "badge", headers)
    expect(b">2</text>" in svg, "badge", svg)


def _preflight(service: Service) -> None:
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    status, headers, _ = service.request("OPTIONS", "/contact", **asks)
    expect(status in (200, 204), "preflight", status)
    expect("POST" in headers["access-control-allow-methods"], "preflight", headers)


def _isso(service: Service) -> None:
    form = {"title": "A page", "author": "A", "text": "Hello there"}
    post = partial(service.request, "POST", "/new?uri=/about", form)
    status, _, body = _adds(service, "isso-post", 1, post, "comment")
    expect(status == 201, "comment", status, body)
    count = service.request("POST", "/count", ["/about"])[2]
    expect(json.loads(count) == [1], "count", count)
