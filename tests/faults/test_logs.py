"""What visitors send stays out of the logs, whatever goes wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.faults.conftest import NO_LIMITS, call, eventually, raw, read_all, rows
from tests.support.desk import TOKEN
from tests.support.mailjet import Answer, Request, StandIn, success
from tests.support.server import Server, mail_settings

CLIENT = "203.0.113.77"


def answering_with_what_came(answers: list[int]) -> Callable[[Request], Answer]:
    """Fail once for each status, each time repeating what was sent; then succeed."""

    def answer(request: Request) -> Answer:
        if not answers:
            return success(request)
        text = json.dumps(request.body)
        body = {"Messages": [{"Status": "error", "Errors": [{"ErrorMessage": text}]}]}
        return Answer(answers.pop(0), {"ErrorMessage": text, **body})

    return answer


def test_no_log_holds_what_a_visitor_sent(
    serve: Callable[..., Server], mailjet: StandIn, tmp_path: Path
) -> None:
    # Letters only: some with digits among them look like a robot's, who gets no mail.
    canary = "canary" + "".join(random.choices("abcdef", k=8))
    mailjet.answer = answering_with_what_came([400, 413, 422, 200, 500])
    server = serve(
        GUNICORN_CMD_ARGS="--access-logfile -",
        ADMIN_TOKEN=TOKEN,
        TRUSTED_HOPS="1",
        MAILJET_LIST_ID="7",
        **NO_LIMITS,
        **mail_settings(mailjet),
    )
    path = f"/?{canary}"
    headers = {
        "X_Forwarded_For": CLIENT,
        "User_Agent": canary,
        "Referer": f"https://site.example/{canary}?{canary}",
        "Idempotency_Key": canary,
        "Formspree_Session_Data": canary,
        "Cookie": canary,
        "Accept_Language": canary,
    }
    email = f"{canary}@example.com"
    letter = {"email": email, "name": canary, "message": canary, "subject": canary}

    def post(path: str, form: object, **more: str) -> int:
        return call(server, "POST", path, form, **{**headers, **more})[0]

    for n in range(6):
        assert post("/contact", {**letter, canary: n}, Idempotency_Key=f"{n}") == 200
    assert post("/contact", {**letter, "_gotcha": canary}) == 200
    assert post("/contact", {**letter, "email": canary}) == 422
    assert post("/contact", [canary]) == 400
    assert post("/contact", letter, Content_Type=canary) == 415
    assert (
        post("/contact", letter, Content_Type=f"multipart/form-data; {canary}") == 400
    )
    assert post("/contact", letter, Origin=f"https://{canary}.example{path}") in (
        200,
        403,
    )
    assert post("/newsletter", {"email": email, "name": canary}) == 200
    assert post("/hits", {"page": f"/{canary}"}) == 200
    for method, target, status in (
        ("GET", f"/hits.svg?page=/{canary}&label={canary}", 200),
        ("GET", f"/{canary}", 404),
        ("GET", f"/f/{canary}?{canary}", 405),
        ("POST", f"/f/{canary}", 400),
        ("BREW", f"/contact?{canary}", 405),
        ("GET", f"/newsletter/confirm/{canary}", 404),
        ("GET", f"/export/messages.json?token={canary}", 401),
        ("DELETE", f"/people/{email}", 403),  # asked by another site's page
    ):
        more = {**headers, "Authorization": f"Bearer {canary}"}
        assert call(server, method, target, **more)[0] == status, target
    own = f"http://localhost:{server.port}"
    wrong = {**more, "Origin": own}
    assert call(server, "DELETE", f"/people/{email}", **wrong)[0] == 401
    for data in (
        f"GET /{canary} HTTP/9\r\n\r\n",
        f"{canary}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\n{canary}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {CLIENT}\r\n"
        f"X-Forwarded-For: {canary}\r\n\r\n",
        f"POST /contact HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{canary}",
        "GET /" + canary * 2000 + " HTTP/1.1\r\n\r\n",
    ):
        with raw(server, data.encode()) as sock:
            sock.settimeout(0.5)
            with suppress(TimeoutError):  # its body is still awaited
                read_all(sock)
    confirm = "/newsletter/confirm/"
    mail = eventually(lambda: [m for m in mailjet.mails if confirm in m["TextPart"]])
    urls = [w for w in mail[0]["TextPart"].split() if "/newsletter/" in w]
    links = [url[url.index("/newsletter/") :] for url in urls]
    for link in sorted(links):  # confirm, not-me, unsubscribe
        assert call(server, "GET", link, **headers)[0] == 200
        assert post(link, {"again": canary}) == 200
    admin = {**headers, "Origin": own, "Authorization": f"Bearer {TOKEN}"}
    for name in ("messages.json", "subscribers.csv", "hits.csv", "backup.sqlite3"):
        assert call(server, "GET", f"/export/{name}", **admin)[0] == 200
    assert call(server, "DELETE", f"/people/{email}", **admin)[0] == 200
    seen = eventually(lambda: {r.path for r in mailjet.requests if "7" in r.path})
    assert seen
    assert server.stop() == 0
    assert rows(tmp_path, "SELECT count(*) FROM message") == [(0,)]
    log = server.log
    tokens = [link.rpartition("/")[2] for link in links]
    for secret in (canary, CLIENT, "example.com", TOKEN, "private", *tokens):
        assert secret not in log
    assert "POST /contact 200" in log
    assert "POST /newsletter/confirm/{token} 200" in log
    assert "Traceback" not in log
