"""The server's own part: what leaves on the wire, and who serves whom."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from gunicorn.config import Config
from gunicorn.http.errors import InvalidResponseHeader

from frontdesk.server import Answer
from tests.conftest import Server, serving
from tests.faults.conftest import NO_LIMITS, eventually, raw, read_all, workers

LENGTH = ("Content-Length", "5")


class Sock:
    """A socket that remembers what each send was given."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        self.sent.append(data)


def sent(
    *parts: bytes,
    status: str = "200 OK",
    headers: tuple[tuple[str, str], ...] = (),
    method: str = "GET",
    version: tuple[int, int] = (1, 1),
) -> list[bytes]:
    """Return what an application's answer puts on the wire, send by send."""
    sock = Sock()
    req = SimpleNamespace(method=method, version=version, should_close=lambda: False)
    answer: Any = Answer(req, sock, Config())
    answer.start_response(status, list(headers))
    for part in parts:
        answer.write(part)
    answer.close()
    return sock.sent


# --- answers ---------------------------------------------------------------------


def test_head_and_body_leave_together() -> None:
    [data] = sent(b"Hello", headers=(LENGTH, ("X-Request-ID", "abc")))
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert {b"Content-Length: 5", b"X-Request-ID: abc", b"Connection: keep-alive"} <= {
        *lines
    }
    assert sum(line.startswith(b"Date: ") for line in lines) == 1
    assert body == b"Hello"


@pytest.mark.parametrize(
    "header",
    [
        ("X-Name", "a\r\nSet-Cookie: b"),
        ("X-Name", "a\nb"),
        ("X-Name", "a\rb"),
        ("X-Name\r\nSet-Cookie", "b"),
    ],
)
def test_a_header_cannot_become_two(header: tuple[str, str]) -> None:
    with pytest.raises(InvalidResponseHeader):
        sent(b"Hello", headers=(LENGTH, header))


def test_an_answer_of_unknown_length_comes_in_chunks() -> None:
    head, *rest = sent(b"Hello ", b"", b"you")
    assert b"Transfer-Encoding: chunked" in head
    assert head.endswith(b"\r\n\r\n6\r\nHello \r\n")
    assert rest == [b"3\r\nyou\r\n", b"0\r\n\r\n"]


def test_an_old_client_gets_no_chunks_but_the_end() -> None:
    data = b"".join(sent(b"Hello ", b"you", version=(1, 0)))
    assert b"Connection: close" in data
    assert data.endswith(b"\r\n\r\nHello you")


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "304 Not Modified")]
)
def test_some_answers_have_no_body(method: str, status: str) -> None:
    [data] = sent(b"Hello", status=status, headers=(LENGTH,), method=method)
    assert b"Content-Length: 5" in data
    assert data.endswith(b"\r\n\r\n")


def test_no_content_has_no_length() -> None:
    [data] = sent(status="204 No Content", headers=(("Content-Length", "0"),))
    assert b"Content-Length" not in data
    assert b"Connection: keep-alive" in data


# --- connections -----------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("worker")
    with serving(folder, WEB_THREADS="4", **NO_LIMITS) as server:
        yield server


def test_what_is_not_http_is_answered_like_any_other_error(server: Server) -> None:
    with raw(server, b"NOT HTTP\r\n\r\n") as sock:
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    for line in (b"Cache-Control: no-store", b"X-Content-Type-Options: nosniff"):
        assert line in head
    assert [error["code"] for error in json.loads(body)["errors"]] == ["MALFORMED"]
    request_id = head.partition(b"X-Request-ID: ")[2][:16].decode()
    server.wait_for_log(request_id)


def test_requests_sent_at_once_are_answered_in_order(server: Server) -> None:
    ids = [f"number-{n}" for n in range(50)]
    asked = b"".join(
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-ID: %s\r\n\r\n" % number.encode()
        for number in ids[:-1]
    )
    last = b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-ID: %s\r\nConnection: close\r\n\r\n"
    with raw(server, asked + last % ids[-1].encode()) as sock:
        answers = read_all(sock).decode()
    told = [
        line.partition(": ")[2]
        for line in answers.splitlines()
        if line.lower().startswith("x-request-id: ")
    ]
    assert told == ids


def test_many_clients_that_send_all_at_once_are_answered(server: Server) -> None:
    asked = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with ExitStack() as stack:
        socks = [stack.enter_context(raw(server, asked + last)) for _ in range(20)]
        for sock in socks:
            assert read_all(sock).count(b"HTTP/1.1 200 OK") == 21


def test_a_client_that_asks_first_whether_to_go_on_is_told_so(server: Server) -> None:
    body = b'{"page": "/a"}'
    head = (
        b"POST /hits HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    with raw(server, head % len(body)) as sock:
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK")


def test_what_was_not_read_of_a_body_is_no_request(server: Server) -> None:
    inner = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"PUT /contact HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with raw(server, head % len(inner) + inner + last) as sock:
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 ") == 2
    assert answers.startswith(b"HTTP/1.1 405 ")
    assert b"HTTP/1.1 200 OK" in answers


def threads(server: Server) -> int:
    [worker] = workers(server)
    return len(list(Path(f"/proc/{worker}/task").iterdir()))


def test_a_quiet_service_has_one_thread_to_serve(serve: Callable[..., Server]) -> None:
    server = serve(**NO_LIMITS)
    with requests.Session() as session:
        session.get(f"{server.url}/hits?page=/a")
        after_one = threads(server)
        for _ in range(20):
            session.get(f"{server.url}/hits?page=/a")
    assert threads(server) == after_one


def test_there_are_no_more_threads_than_set(server: Server) -> None:
    half = b"POST /hits HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    before = threads(server)
    with ExitStack() as stack:
        for sock in [stack.enter_context(raw(server, half)) for _ in range(20)]:
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100).startswith(b"HTTP/1.1 400")
    assert before <= threads(server) <= before + 4


def test_a_stopping_server_answers_who_was_connected(
    serve: Callable[..., Server],
) -> None:
    server = serve(**NO_LIMITS)
    ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        socks = [stack.enter_context(raw(server)) for _ in range(6)]
        for sock in socks:
            sock.sendall(ask)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
        server.process.terminate()
        eventually(lambda: is_refused(server))
        *silent, last = socks
        for sock in silent:
            sock.sendall(ask[:10])
        last.sendall(ask)
        answer = read_all(last)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close" in answer
        for sock in silent:
            sock.settimeout(0)
            with pytest.raises(BlockingIOError):  # it still holds its thread
                sock.recv(1)
    assert server.process.wait(20) == 0


def is_refused(server: Server) -> bool:
    try:
        with raw(server):
            return False
    except ConnectionRefusedError:
        return True
