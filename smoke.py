"""Walk a running Frontdesk: a tick for each thing that works, status 1 if one fails."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote

PAGE = "/smoke-test"  # the page that is counted
SECONDS = 60  # a free service may have to wake up first


def call(
    url: str, method: str = "GET", body: Any = None, **headers: str
) -> tuple[int, Any, Any]:
    """Make a request; return status, headers and the JSON answer, if it is one."""
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if data:
        named["Content-Type"] = "application/json"
    # S310: the URL is the one that the owner typed.
    request = urllib.request.Request(url, data, named, method=method)  # noqa: S310
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        text = answer.read()
        try:
            return answer.status, answer.headers, json.loads(text)
        except ValueError:
            return answer.status, answer.headers, None


def health(url: str) -> bool:
    """It is well, and so is its database."""
    status, _, answer = call(f"{url}/health")
    return status == 200 and answer["status"] == "ok"


def preflight(url: str) -> bool:
    """Its own pages may post; a browser asks in this way for those of the owner."""
    status, headers, _ = call(
        f"{url}/contact",
        "OPTIONS",
        Origin=url,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="content-type",
    )
    allowed = headers.get("Access-Control-Allow-Origin") in ("*", url)
    methods = headers.get("Access-Control-Allow-Methods", "")
    return status < 300 and allowed and "POST" in methods


def contact(url: str) -> bool:
    """It takes a message; the filled honeypot keeps it from being mailed."""
    form = {"email": "smoke@example.com", "message": "Smoke test", "_gotcha": "x"}
    status, _, answer = call(f"{url}/contact", "POST", form)
    return status == 200 and answer["ok"] is True and bool(answer["id"])


def hit(url: str) -> bool:
    """It counts."""
    status, _, answer = call(f"{url}/hits", "POST", {"page": PAGE})
    return status == 200 and answer["counted"] is True


def read(url: str) -> bool:
    """It knows what it has counted."""
    status, _, answer = call(f"{url}/hits?page={quote(PAGE)}")
    return status == 200 and answer["hits"] > 0


def main(url: str) -> int:
    """Check everything; return the exit status."""
    failed = 0
    for check in (health, preflight, contact, hit, read):
        try:
            good, why = check(url.rstrip("/")), ""
        except (OSError, LookupError, TypeError) as error:
            good, why = False, f" ({error})"
        print("✓" if good else "✗", check.__name__ + why, flush=True)
        failed += not good
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["http://localhost:8000"])))
