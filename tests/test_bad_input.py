"""Whatever a client sends to the real server: a 4xx in one shape, and no row."""

from __future__ import annotations

import base64
import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.support.desk import TOKEN
from tests.support.server import Server, serving

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=b"
GOOD = b'{"email": "ada@example.com", "message": "Hello"}'
NO_LIMIT = "100000/second"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        tmp_path_factory.mktemp("bad"),
        ADMIN_TOKEN=TOKEN,
        CONTACT_LIMIT=NO_LIMIT,
        NEWSLETTER_LIMIT=NO_LIMIT,
        HITS_LIMIT=NO_LIMIT,
    ) as running:
        yield running
        assert "Traceback" not in running.log
        assert " 500 " not in running.log


def rows(server: Server) -> list[int]:
    """Count what is stored of each kind."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return [
        len(requests.get(f"{server.url}/export/{name}.json", headers=headers).json())
        for name in ("messages", "subscribers", "hits")
    ]


def exchange(server: Server, data: bytes, end: bool = True) -> tuple[int, str, Any]:
    """Send bytes and return (status, head, JSON body) of the answer."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as sock:
        sock.sendall(data)
        if end:
            sock.shutdown(socket.SHUT_WR)
        received = b""
        while part := sock.recv(65536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head else 0
    return status, head.decode(), json.loads(body) if body else None


def head(kind: str | None, *headers: str, path: str = "/contact") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: desk.example", "Connection: close"]
    lines += [f"Content-Type: {kind}"] if kind is not None else []
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1")


def post(kind: str | None, body: bytes, path: str = "/contact") -> bytes:
    return head(kind, f"Content-Length: {len(body)}", path=path) + body


def chunked(*chunks: bytes) -> bytes:
    return head(JSON, "Transfer-Encoding: chunked") + b"".join(chunks)


def part(head: bytes, body: bytes = b"x") -> bytes:
    return b"--b\r\n" + head + b"\r\n\r\n" + body + b"\r\n"


def assert_refused(answer: tuple[int, str, Any], *statuses: int) -> None:
    status, _, body = answer
    assert status in (statuses or range(400, 500)), answer
    assert body["ok"] is body["success"] is False
    assert body["error"] == body["message"] and body["errors"]
    assert all(error["code"] and error["message"] for error in body["errors"])


BODIES = {
    # JSON that is none, or not an object
    "nothing": (JSON, b"", 400),
    "half an object": (JSON, GOOD[:-1], 400),
    "two objects": (JSON, GOOD + GOOD, 400),
    "an array": (JSON, b"[" + GOOD + b"]", 400),
    "a string": (JSON, b'"hello"', 400),
    "null": (JSON, b"null", 400),
    "a number": (JSON, b"1", 400),
    "NaN": (JSON, b'{"email": "a@b.example", "message": NaN}', 400),
    "Infinity": (JSON, b'{"email": "a@b.example", "message": -Infinity}', 400),
    "a huge integer": (JSON, b'{"message": 1' + b"0" * 5000 + b"}", 400),
    "deep arrays": (JSON, b"[" * 30_000 + b"]" * 30_000, 400),
    "deep objects": (JSON, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
    "a deep value": (JSON, b'{"message":' + b"[" * 9000 + b"]" * 9000 + b"}", None),
    "not UTF-8": (JSON, b'{"email": "a@b.example", "message": "\xff"}', 400),
    "a raw control character": (JSON, b'{"email": "a@b.example", "message":"\0"}', 400),
    "single quotes": (JSON, b"{'email': 'a@b.example'}", 400),
    "text with a form in it": ("text/plain", b"email=a%40b.example&message=x", 400),
    # JSON whose values are no text, or nothing
    "a surrogate as address": (JSON, b'{"email": "\\ud800@b.c", "message": "x"}', 422),
    "nulls": (JSON, b'{"email": null, "message": [], "x": {}}', 422),
    "NULs": (JSON, b'{"email": "\\u0000", "message": "\\u0000"}', 422),
    "addresses in an array": (JSON, b'{"email": ["a@b.c", "d@e.f"], "msg": "x"}', 422),
    "a number as address": (JSON, b'{"email": 1e999, "message": 1}', 422),
    "many fields": (
        JSON,
        json.dumps(
            {"email": "a@b.example", "msg": "x", **{f"f{n}": 1 for n in range(999)}}
        ).encode(),
        422,
    ),
    # forms
    "escapes that are not UTF-8": (FORM, b"email=a%40b.example&message=%ff", 400),
    "a form that is not UTF-8": (FORM, b"email=a%40b.example&message=\xff", 400),
    "only separators": (FORM, b"&&&&====&&&", 422),
    "a form of NULs": (FORM, b"\0" * 100, 422),
    "a repeated address": (FORM, b"email=a@b.example&email=c@d.example&msg=x", 422),
    "a name 20,000 times": (FORM, b"a=&" * 20_000, 422),
    "20,000 names": (FORM, b"&".join(b"%x=" % n for n in range(10_000)), 422),
    # multipart
    "a multipart form called JSON": (JSON, part(b"x: y") + b"--b--\r\n", 400),
    "JSON called multipart": (MULTIPART, GOOD, 400),
    "no boundary": ("multipart/form-data", part(b"x: y") + b"--b--\r\n", 400),
    "an empty boundary": ("multipart/form-data; boundary=", b"--\r\n", 400),
    "a long boundary": (f"multipart/form-data; boundary={'b' * 200}", b"x", 400),
    "an odd boundary": ('multipart/form-data; boundary="\xff\\""', b"x", 400),
    "another boundary": ("multipart/form-data; boundary=c", part(b"x: y"), 400),
    "no parts": (MULTIPART, b"--b--\r\n", 422),
    "no last boundary": (
        MULTIPART,
        part(b'Content-Disposition: form-data; name="email"', b"a@b.example")
        + part(b'Content-Disposition: form-data; name="message"'),
        400,
    ),
    "a part cut short": (
        MULTIPART,
        b'--b\r\nContent-Disposition: form-data; name="a',
        400,
    ),
    "a part without a body": (
        MULTIPART,
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n--b--\r\n',
        400,
    ),
    "a disposition not UTF-8": (
        MULTIPART,
        part(b'Content-Disposition: form-data; name="\xff\xfe"') + b"--b--\r\n",
        400,
    ),
    "a part's text not UTF-8": (
        MULTIPART,
        part(b'Content-Disposition: form-data; name="message"', b"\xff") + b"--b--\r\n",
        400,
    ),
    "parts without names": (MULTIPART, part(b"A: b") + b"--b--\r\n", 422),
    "a part's long head": (MULTIPART, part(b"A: " + b"b" * 9000) + b"--b--\r\n", 400),
    "a file": (
        MULTIPART,
        part(b'Content-Disposition: form-data; name="email"', b"a@b.example")
        + part(b'Content-Disposition: form-data; name="message"')
        + part(b'Content-Disposition: form-data; name="cv"; filename="cv.pdf"')
        + b"--b--\r\n",
        422,
    ),
    "a file with an odd name": (
        MULTIPART,
        part(b"Content-Disposition: form-data; name=\"cv\"; filename*=utf-9''%ff")
        + b"--b--\r\n",
        None,
    ),
    # other types
    "no type": (None, GOOD, 415),
    "an empty type": ("", GOOD, 415),
    "XML": ("application/xml", b"<email>a@b.example</email>", 415),
    "a picture": ("image/png", b"\x89PNG", 415),
    "half a type": ("application/", GOOD, 415),
    "a type that is not ASCII": ("\xff/\xff", GOOD, 415),
    "two types": (f"{JSON}, {FORM}", GOOD, 415),
    # size
    "a byte too many": (JSON, GOOD.ljust(64 * 1024 + 1), 413),
    "a megabyte": (FORM, b"a" * 2**20, 413),
}


# A sign-up needs nothing but the address, so that some of these are good ones.
BAD_SIGNUPS = [case for case, (_, body, _) in BODIES.items() if b"a@b." not in body]


@pytest.mark.parametrize(
    ("path", "case"),
    [("/contact", case) for case in BODIES]
    + [("/newsletter", case) for case in BAD_SIGNUPS],
)
def test_a_hostile_body_is_refused_and_leaves_no_row(
    server: Server, path: str, case: str
) -> None:
    kind, body, status = BODIES[case]
    before = rows(server)
    answer = exchange(server, post(kind, body, path), end=False)
    assert_refused(answer, *[status] if status else [])
    assert rows(server) == before


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON, b'{"page": {}}'),
        (JSON, b'{"page": "\\u0000"}'),
        (JSON, b'{"page": "/\\ud800"}'),
        (JSON, b'{"page": "/%00"}'),
        (JSON, b'{"page": "/%c2%80"}'),
        (JSON, b'{"page": "' + b"/a" * 101 + b'"}'),
        (JSON, b"[]"),
        (JSON, b""),
        ("text/plain", b"\xff"),
        ("text/plain", b"/a\nb"),
        ("text/plain", b"{"),
        ("text/plain", b""),
        (FORM, b"page=%00"),
        (FORM, b"page=%ff"),
        (MULTIPART, b"--b"),
        ("image/gif", b"/"),
        (None, b"/"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_hostile_page_is_refused_and_not_counted(
    server: Server, kind: str | None, body: bytes
) -> None:
    before = rows(server)
    assert_refused(exchange(server, post(kind, body, "/hits"), end=False))
    assert rows(server) == before


def length(value: str | int, body: bytes = GOOD) -> bytes:
    return head(JSON, f"Content-Length: {value}") + body


FRAMINGS = {
    "a body cut short": length(len(GOOD) + 1),
    "a body that never comes": length(1000, b""),
    "a negative length": length(-1),
    "a length that is no number": length("x"),
    "a length in other digits": length("\xb2"),
    "two lengths": head(JSON, "Content-Length: 48", "Content-Length: 1") + GOOD,
    "a huge length": length(10**12),
    "a length beyond all numbers": length("9" * 5000),
    "length and chunks": head(JSON, "Content-Length: 48", "Transfer-Encoding: chunked")
    + b"0\r\n\r\n",
    "an unknown coding": head(JSON, "Transfer-Encoding: rot13") + GOOD,
    "chunks that end early": chunked(b"30\r\n", GOOD, b"\r\n"),
    "a chunk that ends early": chunked(b"31\r\n", GOOD),
    "a chunk size that is none": chunked(b"x\r\n", GOOD, b"\r\n0\r\n\r\n"),
    "a negative chunk size": chunked(b"-1\r\n", GOOD, b"\r\n0\r\n\r\n"),
    "a chunk longer than it says": chunked(b"1\r\n", GOOD, b"\r\n0\r\n\r\n"),
    "no chunk at all": chunked(),
    "only the last chunk": chunked(b"0\r\n\r\n"),
    "a bad trailer": chunked(b"30\r\n", GOOD, b"\r\n0\r\n\0: x\r\n\r\n"),
    "a bad chunk extension": chunked(b"30;\r\n", GOOD, b"\r\n0\r\n\r\n"),
    "chunks over the limit": chunked(*[b"1000\r\n" + b" " * 4096 + b"\r\n"] * 17),
    "a chunk over the limit": chunked(b"ffffffff\r\n", b" " * 70_000),
    "no HTTP": b"hello\r\n\r\n",
    "only line ends": b"\r\n\r\n\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500,
    "bare line feeds": head(JSON).replace(b"\r\n", b"\n") + GOOD,
    "a header without a colon": head(JSON, "nonsense") + GOOD,
    "a header with a space": head(JSON, "Content-Length : 48") + GOOD,
    "a header with NUL": head(JSON, "X: \0") + GOOD,
    "a folded header": head(JSON, "X: a\r\n b") + GOOD,
    "200 headers": head(JSON, *[f"X-{n}: x" for n in range(200)]) + GOOD,
    "a huge header": head(JSON, "X: " + "x" * 100_000) + GOOD,
    "a huge path": head(JSON, path="/" + "x" * 10_000) + GOOD,
    "a version to come": head(JSON).replace(b"HTTP/1.1", b"HTTP/3.0") + GOOD,
    "a path that is not ASCII": head(JSON, path="/\xff\xfe"),
    "a full URL as path": head(JSON, path="http://x/nothing") + GOOD,
    "a host as path": head(JSON, path="evil.example:443") + GOOD,
    "a strange method": head(JSON).replace(b"POST", b"BREW") + GOOD,
    "a lower-case method": head(JSON).replace(b"POST", b"post") + GOOD,
    "a WebDAV method": head(JSON).replace(b"POST", b"PROPFIND") + GOOD,
    "a tunnel": head(JSON).replace(b"POST /contact", b"CONNECT evil.example:443"),
}


@pytest.mark.parametrize("case", FRAMINGS)
def test_a_hostile_framing_is_refused_and_leaves_no_row(
    server: Server, case: str
) -> None:
    before = rows(server)
    status, _, body = answer = exchange(server, FRAMINGS[case])
    if status:  # the server may also just hang up on what is no HTTP
        assert 400 <= status < 500, answer
        assert_refused(answer) if body else None
    assert rows(server) == before


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "CHUNKED"])
def test_chunks_are_read_like_any_body(server: Server, coding: str) -> None:
    text = f"In {coding} letters"
    body = json.dumps({"email": "ada@example.com", "message": text}).encode()
    data = head(JSON, f"Transfer-Encoding: {coding}")
    for n in range(0, len(body), 7):
        piece = body[n : n + 7]
        data += b"%x\r\n%s\r\n" % (len(piece), piece)
    status, _, answer = exchange(server, data + b"0\r\n\r\n", end=False)
    assert (status, answer["ok"]) == (200, True)


PATHS = [
    *("/%00", "/%ff", "/..%2f..%2fetc/passwd", "/f/%00", "/f/%ff", "/p/%ff/f/%00"),
    *("/newsletter/confirm/%00", "/newsletter/unsubscribe/%ff", "/release/%ed%a0%80"),
    *("/newsletter/confirm/.", "/newsletter/not-me/x.y.z", "/release/" + "x" * 4000),
    *("/export/%00.json", "/export/messages", "/export/messages.xml", "/people/x"),
    *("/hits", "/hits?page=%00", "/hits?page=/&days=0", "/hits?page=/&days=x"),
    *("/hits?page=/&days=366", "/hits?page=/&days=-1", "/hits?page=/&days=%d9%a3"),
    *("/hits/shield", "/hits/shield?page=" + "x" * 4000, "/hits?page=/%c2%85"),
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:40])
def test_a_hostile_path_is_refused(server: Server, path: str) -> None:
    data = head(None, path=path).replace(b"POST", b"GET")
    assert_refused(exchange(server, data))


IMAGES = [
    *("/hits.gif", "/hits.gif?page=%00", "/hits.svg", "/hits.svg?page=%ff%00"),
    *("/hits.svg?page=%00&label=%00%ff&color=%00&style=%00", "/hits/chart.svg"),
    *("/hits/chart.svg?page=/&days=x", "/hits.gif?page=" + "x" * 4000),
]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path[:40])
def test_an_image_request_always_gets_an_image(server: Server, path: str) -> None:
    before = rows(server)
    answer = requests.get(server.url + path)
    assert answer.status_code < 500
    assert answer.headers["Content-Type"].startswith("image/")
    assert answer.content
    assert rows(server) == before


HEADERS = {
    "Host": ["a:b:c", "evil.example:99999", "[::1", "\xff", "a b", "?"],
    "Origin": ["\xff", "http://[", "https://\xff", "a" * 5000, "https://a:b"],
    "Referer": ["\xff", "http://[", "https://site.example/\xff\xfe?%00", "//x"],
    "Accept": ["\xff", ";;;", "text/html;q=x", "multipart/form-data", "a/b;q=9"],
    "Content-Type": [],
    "X-Request-ID": ["\xff", "a" * 5000],
    "Idempotency-Key": ["\xff", "a" * 5000, ";"],
    "User-Agent": ["\xff", "a" * 5000],
    "X-Forwarded-For": ["\xff", ",,,,", "a" * 5000, "two lines"],
    "CF-Connecting-IP": ["\xff"],
    "Authorization": [
        "\xff",
        "Basic",
        "Basic \xff",
        "Bearer",
        "Bearer \xff",
        "Basic eA==",
    ],
    "Sec-Fetch-Mode": ["\xff"],
    "Range": ["bytes=0-1", "\xff"],
    "If-None-Match": ["\xff"],
    "Expect": ["\xff", "100-continue"],
    "Cookie": ["\xff", "a=b;" * 1000],
    "Upgrade": ["h2c", "websocket"],
    "Formspree-Session-Data": [
        "\xff",
        "e30",
        *(
            base64.b64encode(text).decode()
            for text in (
                *(b"{}", b"[]", b"null", b'"x"', b"\xff", b"[" * 3000),
                *(
                    b'{"loadedAt": %s}' % value
                    for value in (
                        *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"true", b'"x"'),
                        *(
                            b"[]",
                            b"{}",
                            b"1" + b"0" * 400,
                            b"-1e300",
                            b'"1e400"',
                            b'"nan"',
                        ),
                    )
                ),
            )
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in HEADERS.items() for value in values],
    ids=lambda value: ascii(value)[:40],
)
@pytest.mark.parametrize("path", ["/contact", "/hits", "/newsletter/unsubscribe/x"])
def test_a_hostile_header_breaks_nothing(
    server: Server, path: str, name: str, value: str
) -> None:
    body = json.dumps(
        {"email": "ada@example.com", "message": f"{name}: {value}", "page": "/a"}
    ).encode()
    data = head(JSON, f"{name}: {value}", f"Content-Length: {len(body)}", path=path)
    if name == "Host":
        data = data.replace(b"Host: desk.example\r\n", b"")
    with socket.create_connection(("127.0.0.1", server.port), 20) as sock:
        sock.sendall(data + body)
        received = b""
        while more := sock.recv(65536):
            received += more
    status = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").split(b" ", 2)[1]
    assert 200 <= int(status) < 500, received


def test_mutated_bodies_never_break_the_server(server: Server) -> None:
    chance = random.Random(2)  # the same mutations in every run
    seeds = [
        (JSON, GOOD),
        (FORM, b"email=ada%40example.com&message=Hello&a=b&a=c"),
        (
            MULTIPART,
            part(b'Content-Disposition: form-data; name="email"', b"ada@example.com")
            + part(b'Content-Disposition: form-data; name="cv"; filename=""', b"")
            + part(b"Content-Disposition: form-data; name*=utf-8''message", b"Hello")
            + b"--b--\r\n",
        ),
    ]
    session = requests.Session()
    for n in range(600):
        kind, seed = seeds[n % 3]
        body = bytearray(seed)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(body))
            body[at : at + chance.randint(0, 3)] = chance.randbytes(
                chance.randint(0, 3)
            )
        answer = session.post(
            f"{server.url}/contact", data=bytes(body), headers={"Content-Type": kind}
        )
        assert answer.status_code < 500, body
        assert answer.json()["ok"] is (answer.status_code == 200)
