"""The server's own part: what leaves on the wire, and who serves whom."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import falcon.testing
import pytest
import requests
from gunicorn.config import Config
from gunicorn.http.errors import InvalidResponseHeader

from frontdesk.server import ALL_BYTES, READ_BYTES, Answer, Threads, client_key
from tests.faults.conftest import NO_LIMITS, eventually, raw, read_all, workers
from tests.support.desk import Desk
from tests.support.server import Server, serving

LENGTH = ("Content-Length", "5")


def sent(
    *parts: bytes,
    status: str = "200 OK",
    headers: tuple[tuple[str, str], ...] = (),
    method: str = "GET",
    version: tuple[int, int] = (1, 1),
) -> bytes:
    """Return what an application's answer puts on the wire."""
    sock = SimpleNamespace(out=bytearray())
    sock.sendall = sock.out.extend
    req = SimpleNamespace(method=method, version=version, should_close=lambda: False)
    answer: Any = Answer(req, sock, Config())
    answer.start_response(status, list(headers))
    for part in parts:
        answer.write(part)
    answer.close()
    return bytes(sock.out)


# --- answers ---------------------------------------------------------------------


def test_an_answer_has_the_servers_headers_and_the_applications() -> None:
    data = sent(b"Hello", headers=(LENGTH, ("X-Request-ID", "abc")))
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
    data = sent(b"Hello ", b"", b"you")
    assert b"Transfer-Encoding: chunked" in data
    assert data.endswith(b"\r\n\r\n6\r\nHello \r\n3\r\nyou\r\n0\r\n\r\n")


def test_an_old_client_gets_no_chunks_but_the_end() -> None:
    data = sent(b"Hello ", b"you", version=(1, 0))
    assert b"Connection: close" in data
    assert data.endswith(b"\r\n\r\nHello you")


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "304 Not Modified")]
)
def test_some_answers_have_no_body(method: str, status: str) -> None:
    data = sent(b"Hello", status=status, headers=(LENGTH,), method=method)
    assert b"Content-Length: 5" in data
    assert data.endswith(b"\r\n\r\n")


def test_no_content_has_no_length() -> None:
    data = sent(status="204 No Content", headers=(("Content-Length", "0"),))
    assert b"Content-Length" not in data
    assert b"Connection: keep-alive" in data


# --- the worker around an application of a test's own ---------------------------

START = [("Content-Type", "text/plain")]


class Application:
    """A WSGI application: answers with what it was sent, or as a test says."""

    def __init__(self) -> None:
        self.outbox = SimpleNamespace(stop=lambda seconds: None)
        self.bodies: list[bytes] = []
        self.answer: Callable[[], Any] = lambda: [b"It came."]

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.bodies.append(environ["wsgi.input"].read())
        parts = self.answer()
        length = [("Content-Length", str(len(parts[0])))] * (len(parts) == 1)
        start_response("200 OK", [*START, *length])
        return parts


class Parts(list[bytes]):
    """An answer in parts that is told when it was sent."""

    def __init__(self, *parts: bytes, close: Callable[[], None]) -> None:
        super().__init__(parts)
        self.close = close


@dataclass
class Running:
    """A worker in a thread of this process."""

    worker: Threads
    app: Application
    port: int

    @contextmanager
    def raw(self, data: bytes = b"", receives: int = 0) -> Iterator[socket.socket]:
        with socket.socket() as sock:
            if receives:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
            sock.settimeout(20)
            sock.connect(("127.0.0.1", self.port))
            sock.sendall(data)
            yield sock


class Counting(Threads):
    """A worker to which this machine is a client like any other."""

    key_of = staticmethod(lambda peer: str(peer[0]))


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Start workers that end with the test; gunicorn's settings as keywords."""
    with ExitStack() as stack:

        def start(kind: type[Threads] = Threads, **settings: Any) -> Running:
            cfg = Config()
            for name, value in {"threads": 2, "keepalive": 100, **settings}.items():
                cfg.set(name, value)
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            log = logging.getLogger("worker")
            worker: Any = kind(1, os.getppid(), [listener], None, 30, cfg, log)
            worker.wsgi, worker.PIPE = Application(), os.pipe()
            worker.set_up()
            thread = threading.Thread(target=worker.run)
            port = listener.getsockname()[1]
            thread.start()

            def stop() -> None:
                worker.alive = False
                os.write(worker.PIPE[1], b".")
                thread.join()
                for end in worker.PIPE:
                    os.close(end)
                worker.tmp.close()

            stack.callback(stop)
            return Running(worker, worker.wsgi, port)

        yield start


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


def is_answered(running: Running) -> bool:
    with running.raw(LAST) as sock:
        return read_all(sock).endswith(b"It came.")


def test_head_and_body_leave_together(run: Callable[..., Running]) -> None:
    running = run()
    with running.raw(GET) as sock:
        assert sock.recv(65536).endswith(b"\r\n\r\nIt came.")


@pytest.mark.parametrize("size", [0, 1, 9000, 65536, 2**20])
def test_a_body_comes_whole(run: Callable[..., Running], size: int) -> None:
    running = run()
    body = os.urandom(size)
    length = b"Content-Length: %d\r\n\r\n" % size
    chunks = b"".join(
        b"%x;a=b\r\n%b\r\n" % (len(part), part)
        for at in range(0, size, 7000)
        if (part := body[at : at + 7000])
    )
    chunked = b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nA: b\r\n\r\n"
    asked = POST + length + body + POST + chunked
    with running.raw(asked) as sock:
        sock.sendall(LAST)
        answers = read_all(sock)
    assert running.app.bodies[:2] == [body, body[: len(running.app.bodies[1])]]
    assert answers.count(b"HTTP/1.1 200 OK") == (3 if size <= 65536 - 100 else 2)


def test_a_body_in_many_small_pieces_comes_whole(run: Callable[..., Running]) -> None:
    running = run()
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n"
    with running.raw() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in chunked + b"0\r\n\r\n" + LAST:
            sock.send(bytes([byte]))
        assert read_all(sock).count(b"HTTP/1.1 200 OK") == 2
    assert running.app.bodies == [b"abcde", b""]


def test_half_a_request_has_no_thread(run: Callable[..., Running]) -> None:
    running = run(threads=1)
    with ExitStack() as stack:
        for start in (POST[:20], POST + b"Content-Length: 9\r\n\r\n123"):
            for _ in range(5):
                stack.enter_context(running.raw(start))
        assert is_answered(running)
        assert running.app.bodies == [b""]


def test_a_client_that_does_not_read_has_no_thread(run: Callable[..., Running]) -> None:
    running = run(threads=1)
    running.app.answer = lambda: [b"x" * 3_000_000]
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(running.raw(GET, receives=4096))
        eventually(lambda: len(running.app.bodies) == 5)
        running.app.answer = lambda: [b"It came."]
        assert is_answered(running)


def test_a_slow_client_gets_its_whole_answer(run: Callable[..., Running]) -> None:
    running = run(threads=1)
    running.app.answer = lambda: [b"x" * 800_000]
    with running.raw(GET + LAST, receives=16384) as sock:
        eventually(lambda: running.app.bodies)
        assert read_all(sock).count(b"x" * 1000) == 1600


def test_little_is_answered_ahead_of_a_client_that_does_not_read(
    run: Callable[..., Running],
) -> None:
    running = run()
    running.app.answer = lambda: [b"x" * 3_000_000]  # more than the system keeps
    with running.raw(GET * 400, receives=4096):
        eventually(lambda: running.app.bodies)
        running.app.answer = lambda: [b"It came."]
        assert all(is_answered(running) for _ in range(20))
        ahead = len(running.app.bodies) - 20
    assert ahead == 1


def test_an_answer_in_parts_goes_on_while_its_client_reads(
    run: Callable[..., Running],
) -> None:
    running = run()
    running.app.answer = lambda: [b"x" * 100_000] * 30
    with running.raw(LAST, receives=4096) as sock:
        answer = read_all(sock)
    assert answer.count(b"x" * 1000) == 3000
    assert answer.endswith(b"\r\n0\r\n\r\n")


def test_an_application_is_told_the_end_when_its_client_has_the_answer(
    run: Callable[..., Running],
) -> None:
    running = run()
    has_it, closed = threading.Event(), threading.Event()

    def close() -> None:
        assert has_it.wait(20)
        closed.set()

    running.app.answer = lambda: Parts(b"It came.", close=close)
    with running.raw(GET) as sock:
        assert sock.recv(65536).endswith(b"It came.")
        has_it.set()
        assert closed.wait(20)


def test_an_application_that_fails_before_its_answer_gives_500(
    run: Callable[..., Running],
) -> None:
    running = run()

    def fail() -> Iterator[bytes]:
        yield b"x" * 1000
        raise ValueError

    running.app.answer = lambda: IterParts(fail())
    with running.raw(GET) as sock:
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert answer.count(b"HTTP/1.1") == 1


class IterParts(list[bytes]):
    """Parts that are made while they are sent."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        super().__init__([b"", b""])
        self.parts = parts

    def __iter__(self) -> Iterator[bytes]:
        return self.parts


def test_idle_clients_give_way_at_once_when_there_are_too_many(
    run: Callable[..., Running],
) -> None:
    running = run(worker_connections=20)
    with ExitStack() as stack:
        idle = [stack.enter_context(running.raw()) for _ in range(60)]
        assert is_answered(running)
        assert len(running.worker.connections) <= 20
        assert read_all(idle[0]) == b""


def test_who_has_just_come_does_not_give_way_to_those_that_hesitate(
    run: Callable[..., Running],
) -> None:
    running = run(worker_connections=20)
    with ExitStack() as stack:
        for _ in range(15):
            stack.enter_context(running.raw(POST))
        eventually(lambda: len(running.worker.connections) == 15)
        new = stack.enter_context(running.raw())
        for _ in range(10):
            stack.enter_context(running.raw(POST))
        assert is_answered(running)  # connections are accepted in their order
        new.sendall(LAST)
        assert read_all(new).endswith(b"It came.")


def test_a_client_has_a_tenth_of_the_connections(run: Callable[..., Running]) -> None:
    running = run(Counting, worker_connections=50)
    with ExitStack() as stack:
        socks = [stack.enter_context(running.raw()) for _ in range(12)]
        for sock in socks[:7]:
            assert read_all(sock) == b""
        for sock in socks[7:]:
            sock.sendall(LAST)
            assert read_all(sock).endswith(b"It came.")
    eventually(lambda: not running.worker.connections)


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        (("8.8.8.8", 1), "8.8.8.8/32"),
        (("::ffff:8.8.8.8", 1, 0, 0), "8.8.8.8/32"),
        (("2606:4700:1:2:3:4:5:6", 1, 0, 0), "2606:4700:1:2::/64"),
        (("127.0.0.1", 1), None),  # a proxy on this machine
        (("::1", 1, 0, 0), None),
        (("172.17.0.1", 1), None),  # Docker's gateway
        (("10.0.0.7", 1), None),
        (("100.64.0.3", 1), None),  # a platform's router
        (("fe80::1%eth0", 1, 0, 2), None),
        ("", None),  # a Unix socket
    ],
)
def test_only_addresses_of_the_internet_are_counted(peer: Any, key: Any) -> None:
    assert client_key(peer) == key


def test_all_requests_that_come_in_have_a_ceiling(run: Callable[..., Running]) -> None:
    running = run()
    start = POST + b"Content-Length: 1048576\r\n\r\n" + b"x" * 900_000
    with ExitStack() as stack:
        socks = [stack.enter_context(running.raw(start)) for _ in range(50)]
        eventually(lambda: len(running.app.bodies) >= 10)
        held = sum(len(conn.received) for conn in list(running.worker.connections))
        assert held <= ALL_BYTES + READ_BYTES
        assert is_answered(running)
    eventually(lambda: not running.worker.connections)
    assert len(socks) == 50


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
    for line in (b"cache-control: no-store", b"x-content-type-options: nosniff"):
        assert line in head.lower()
    assert b"\r\nConnection: close" in head
    assert b"access-control" not in head.lower()
    assert [error["code"] for error in json.loads(body)["errors"]] == ["MALFORMED"]
    request_id = head.partition(b"x-request-id: ")[2][:16].decode()
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


JSON = b"Host: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"POST /contact HTTP/1.1\r\n", b"413"),
        (b"POST /nothing HTTP/1.1\r\n", b"404"),
        (b"PUT /contact HTTP/1.1\r\n", b"405"),
    ],
)
@pytest.mark.parametrize(
    "length", [b"Content-Length: 2000000", b"Transfer-Encoding: chunked"]
)
def test_an_answer_says_so_if_the_rest_of_a_body_is_not_read(
    server: Server, start: bytes, status: bytes, length: bytes
) -> None:
    with raw(server, start + JSON + length + b"\r\n\r\n") as sock:
        if b"chunked" in length:
            sock.sendall(b"1e8480\r\n" + b" " * 1_200_000)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize("size", [65_537, 2**20])
def test_a_body_that_is_too_large_leaves_the_connection_to_the_next(
    server: Server, size: int
) -> None:
    head = b"POST /contact HTTP/1.1\r\n" + JSON + b"Content-Length: %d\r\n\r\n" % size
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with raw(server, head + b" " * size + last) as sock:
        first, second = read_all(sock).split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"413 ")
    assert b"Connection: keep-alive" in first
    assert second.startswith(b"200 ")


@pytest.mark.parametrize(
    "lines",
    [
        b"Connection: close, x\r\n",
        b"Connection: x,CLOSE\r\n",
        b"Connection: keep-alive\r\nConnection: close\r\n",
        b"Connection: x\r\nConnection: y , close\r\n",
    ],
)
def test_a_client_that_wants_no_more_is_told_so(server: Server, lines: bytes) -> None:
    ask = b"GET / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n"
    with raw(server, ask * 2) as sock:
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 200 OK") == 1
    assert b"\r\nConnection: close\r\n" in answers


@pytest.mark.parametrize("version", ["1.2", "1.9", "2.0", "0.9", "1.10", "1", "1.1x"])
def test_other_versions_than_1_0_and_1_1_are_refused(
    server: Server, version: str
) -> None:
    with raw(server, f"GET / HTTP/{version}\r\nHost: x\r\n\r\n".encode()) as sock:
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert [error["code"] for error in json.loads(body)["errors"]] == ["MALFORMED"]


METHODS = ("WEBSOCKET", "CONNECT", "TRACE", "QUERY", "PROPFIND", "FOO", "PUT")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ["/contact", "/hits", "/", "/nothing"])
def test_no_method_is_a_fault_of_ours(server: Server, method: str, path: str) -> None:
    with raw(server, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) as sock:
        sock.shutdown(socket.SHUT_WR)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"x-request-id: " in answer


@pytest.mark.parametrize("method", METHODS)
def test_no_method_is_a_fault_under_any_server(desk: Desk, method: str) -> None:
    environ = falcon.testing.create_environ("/contact")
    environ["REQUEST_METHOD"] = method
    told: list[Any] = []
    body = b"".join(desk.app(environ, lambda *args: told.extend(args)))
    assert told[0].startswith("405")
    assert ("allow", "POST, OPTIONS") in told[1]
    assert json.loads(body)["errors"][0]["code"] == "METHOD_NOT_ALLOWED"


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
