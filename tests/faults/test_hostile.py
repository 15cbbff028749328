"""One slow, rude or lying client cannot stop the others."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from frontdesk.database import execute
from frontdesk.server import READ_SECONDS
from tests.faults.conftest import (
    BROWSER,
    NO_LIMITS,
    Load,
    call,
    contact,
    eventually,
    raw,
    read_all,
    rows,
    size,
    workers,
)
from tests.support.desk import Desk
from tests.support.ports import free_port
from tests.support.server import Server, serving

THREADS = 8
PROMISED = 8  # seconds that an honest request waits at most
HEAD = b"POST /contact HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
FORM = b'{"email": "ada@example.com", "message": "Hello", "page": "/a"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """One worker for all of this file's clients."""
    with serving(folder, WEB_THREADS=str(THREADS), **NO_LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes 100 connections, half of the files that it may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        try:
            folder = tmp_path_factory.mktemp("crowded")
            settings = {"WEB_THREADS": str(THREADS), **NO_LIMITS}
            server = stack.enter_context(serving(folder, **settings))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        yield server


def seconds_for_a_healthy_request(server: Server) -> float:
    started = time.monotonic()
    assert call(server, "POST", *contact())[0] == 200
    return time.monotonic() - started


STARTS = {
    "no byte": b"",
    "one byte": b"P",
    "half a head": HEAD[:30],
    "half a body": HEAD + b"Content-Length: 62\r\n\r\n" + FORM[:20],
}


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(tuple(STARTS.values()), id="all of these"),
        *(pytest.param((STARTS[name],), id=name) for name in size((), STARTS)),
    ],
)
def test_silent_clients_do_not_stop_the_others(
    server: Server, sent: tuple[bytes, ...]
) -> None:
    with ExitStack() as stack:
        for data in sent:
            for _ in range(2 * THREADS):
                sock = stack.enter_context(raw(server, data))
        seconds = seconds_for_a_healthy_request(server)
        assert seconds < PROMISED
        if sent[-1] == STARTS["half a body"]:
            answer = read_all(sock)
            assert answer.startswith(b"HTTP/1.1 400")
            assert b"\r\nConnection: close\r\n" in answer
            assert b'"MALFORMED"' in answer
    print(f"{seconds:.1f} s")


def test_trickling_clients_do_not_stop_the_others(server: Server) -> None:
    with ExitStack() as stack:
        head = HEAD + b"Content-Length: 60000\r\n\r\n"
        slow = [stack.enter_context(raw(server, head)) for _ in range(2 * THREADS)]
        healthy = stack.enter_context(raw(server))
        length = b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(FORM)
        healthy.sendall(HEAD + length + FORM)
        healthy.settimeout(0.1)
        started = time.monotonic()
        answer = b""
        while not answer and time.monotonic() < started + 15:
            for sock in slow:
                with suppress(OSError):  # refused meanwhile
                    sock.sendall(b"x")
            with suppress(TimeoutError):
                answer = healthy.recv(65536)
        seconds = time.monotonic() - started
    assert answer.startswith(b"HTTP/1.1 200")
    assert seconds < PROMISED
    print(f"{seconds:.1f} s")


def test_the_rest_of_a_body_that_came_too_late_is_no_request(server: Server) -> None:
    """Around the deadline, every moment brings what would make a request."""
    inner = b"GET /thanks HTTP/1.1\r\nA: b\r\n\r\n"
    received = dict.fromkeys(range(THREADS), b"")
    with ExitStack() as stack:
        head = HEAD + b"Content-Length: 60000\r\n\r\n{"
        socks = [stack.enter_context(raw(server, head)) for _ in received]
        started = time.monotonic()
        time.sleep(READ_SECONDS - 0.5)
        for sock in socks:
            sock.settimeout(0)
        while time.monotonic() < started + READ_SECONDS + 2:
            for n, sock in enumerate(socks):
                with suppress(OSError):
                    received[n] += sock.recv(65536)
                with suppress(OSError):
                    sock.send(inner)
            time.sleep(0.001)
    for answers in received.values():
        assert answers.startswith(b"HTTP/1.1 400 ")
        assert answers.count(b"HTTP/1.1 ") == 1


def test_clients_that_never_close_hold_nobody_up(server: Server) -> None:
    request = HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}"
    worst = 0.0
    with ExitStack() as stack:
        for n in range(60):
            stack.enter_context(raw(server, request))
            if n % 20 == 19:
                worst = max(worst, seconds_for_a_healthy_request(server))
    assert worst < PROMISED
    print(f"worst {worst:.1f} s")


def test_clients_that_never_read_hold_nobody_up(server: Server) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(2 * THREADS):
            sock = stack.enter_context(raw(server))
            sock.setblocking(False)
            sock.send(request * 400)
        time.sleep(0.5)
        seconds = seconds_for_a_healthy_request(server)
    assert seconds < PROMISED
    print(f"{seconds:.1f} s")


PER_SECOND = 50
UNREAD = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100


@contextmanager
def swarm(server: Server, data: bytes) -> Iterator[None]:
    """Let 50 clients a second send the same, read nothing and never go."""
    over = threading.Event()

    def come() -> None:
        with ExitStack() as stack:
            while not over.wait(1 / PER_SECOND):
                sock = stack.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.settimeout(10)
                with suppress(OSError):
                    sock.connect(("127.0.0.1", server.port))
                    sock.setblocking(False)
                    sock.send(data)

    thread = threading.Thread(target=come)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "sent",
    [pytest.param(d, id=n) for n, d in (STARTS | {"no reading": UNREAD}).items()],
)
def test_fifty_rude_clients_a_second_hold_nobody_up(
    crowded: Server, sent: bytes
) -> None:
    with swarm(crowded, sent):
        eventually(lambda: connections(crowded) > 90)
        seconds = max(seconds_for_a_healthy_request(crowded) for _ in range(20))
    assert seconds < PROMISED
    print(f"worst {seconds:.1f} s")


def test_who_has_asked_gives_way_to_nobody(crowded: Server) -> None:
    """While the worker has no turn, an idle client asks and others connect."""
    [worker] = workers(crowded)
    with ExitStack() as stack:
        for _ in range(99):
            stack.enter_context(raw(crowded, STARTS["one byte"]))
        idle = stack.enter_context(raw(crowded))
        eventually(lambda: connections(crowded) > 100)
        time.sleep(0.2)  # it is accepted, and none of its bytes is there
        os.kill(worker, signal.SIGSTOP)
        try:
            for _ in range(3):
                stack.enter_context(raw(crowded))
            idle.sendall(b"GET /thanks HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(1.2)  # until it is no new connection any more
        finally:
            os.kill(worker, signal.SIGCONT)
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")


def connections(server: Server) -> int:
    """Return how many files a worker holds open that are sockets."""
    [worker] = workers(server)
    files = list(Path(f"/proc/{worker}/fd").iterdir())
    return sum(link(file).startswith("socket:") for file in files)


def link(file: Path) -> str:
    with suppress(OSError):
        return str(file.readlink())
    return ""


def test_more_idle_connections_than_the_server_takes_shut_nobody_out(
    server: Server,
) -> None:
    with ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(raw(server))
        seconds = seconds_for_a_healthy_request(server)
    assert seconds < PROMISED
    print(f"{seconds:.1f} s")


def test_idle_connections_never_take_the_last_file(crowded: Server) -> None:
    with ExitStack() as stack:
        for _ in range(220):
            stack.enter_context(raw(crowded))
        seconds = seconds_for_a_healthy_request(crowded)
    assert seconds < PROMISED
    print(f"{seconds:.1f} s")


# --- what is not HTTP ------------------------------------------------------------

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def _head(*lines: bytes) -> bytes:
    return b"POST /contact HTTP/1.1\r\nHost: x\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(data, id=name)
        for name, data in {
            "both lengths": _head(b"Content-Length: 4", b"Transfer-Encoding: chunked"),
            "two lengths": _head(b"Content-Length: 0", b"Content-Length: 40"),
            "a list of lengths": _head(b"Content-Length: 0, 40"),
            "a signed length": _head(b"Content-Length: +0"),
            "a negative length": _head(b"Content-Length: -1"),
            "a hexadecimal length": _head(b"Content-Length: 0x0"),
            "a length with underscore": _head(b"Content-Length: 0_0"),
            "a length in other digits": _head("Content-Length: ٠".encode()),
            "chunked twice": _head(
                b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"
            ),
            "chunked not last": _head(b"Transfer-Encoding: chunked, identity"),
            "unknown coding": _head(b"Transfer-Encoding: xchunked"),
            "quoted coding": _head(b'Transfer-Encoding: "chunked"'),
            "vertical tab in coding": _head(b"Transfer-Encoding: \x0bchunked"),
            "space before colon": _head(b"Transfer-Encoding : chunked"),
            "space before name": b"POST /contact HTTP/1.1\r\n Host: x\r\n\r\n",
            "folded header": _head(b"X-A: b", b" Transfer-Encoding: chunked"),
            "bare carriage return": _head(b"X-A: b\rTransfer-Encoding: chunked"),
            "bare line feeds": b"POST /contact HTTP/1.1\nHost: x\n\n",
            "NUL in a value": _head(b"X-A: \0"),
            "chunked in HTTP/1.0": b"POST /contact HTTP/1.0\r\nHost: x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "unknown version": b"POST /contact HTTP/3.7\r\nHost: x\r\n\r\n",
            "bad chunk size": _head(b"Transfer-Encoding: chunked") + b"+1\r\nx\r\n",
            "chunk without its end": _head(b"Transfer-Encoding: chunked")
            + b"1\r\nxGARBAGE",
        }.items()
    ],
)
def test_a_smuggling_shape_is_refused_and_the_connection_closed(
    server: Server, data: bytes
) -> None:
    with raw(server, data + SMUGGLED) as sock:
        answer = read_all(sock)
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    status, _, rest = answer.partition(b"\r\n")
    assert status.split()[1] in (b"400", b"501"), answer
    errors = json.loads(rest.partition(b"\r\n\r\n")[2])["errors"]
    assert errors[0]["code"] == "MALFORMED"


# --- bodies ----------------------------------------------------------------------

MULTIPART = (
    b'--b\r\nContent-Disposition: form-data; name="email"\r\n\r\nada@example.com\r\n'
    b'--b\r\nContent-Disposition: form-data; name="page"\r\n\r\n/a\r\n'
    b'--b\r\nContent-Disposition: form-data; name="message"\r\n'
    b"Content-Type: text/plain; charset=utf-8\r\n\r\nHello\r\n"
    b'--b\r\nContent-Disposition: form-data; name="f"; filename=""\r\n\r\n\r\n--b--\r\n'
)
BODIES = {
    "application/json": FORM,
    "text/plain": FORM,
    "application/x-www-form-urlencoded": b"page=/a&email=ada%40example.com&message=Hi",
    "multipart/form-data; boundary=b": MULTIPART,
}
SPLINTERS = [
    *(b"", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\r\n", b"\n", b"--b", b"--b--"),
    *(b'"', b"\\ud800", b"\\u0000", b"{", b"}", b"[", b"]", b"null", b"1e999", b"NaN"),
    *(b"[" * 30000, b"9" * 6000, b"%", b"%00", b"%ff", b"&", b"=", b";", b"x" * 11000),
    *(b"Content-Disposition: \xff\r\n", b"Content-Type: x\r\n", b"filename=x", b"'"),
    *(b"charset=utf-7", b"charset=\0", b"name*=utf-8''%ff", b"email", b"_next", b","),
]
TYPES = [
    *BODIES,
    *("multipart/form-data", "multipart/form-data; boundary=", "text/html", "", "\xff"),
    *("application/json; charset=utf-16", "application/json; charset=nonsense"),
    "application/x-www-form-urlencoded; charset=utf-7",
    "multipart/mixed; boundary=b",
]


def mutated(random: random.Random) -> tuple[str, bytes]:
    """Return a form that something has happened to."""
    kind = random.choice(list(BODIES))
    body = bytearray(BODIES[kind])
    for _ in range(random.randint(0, 4)):
        at = random.randint(0, len(body))
        until = min(len(body), at + random.choice([0, 1, 2, 10]))
        body[at:until] = random.choice(SPLINTERS)
        if random.random() < 0.2:
            until = random.randint(0, len(body))
            body = body[at:until] if random.random() < 0.5 else body + body[at:until]
    if random.random() < 0.2:
        kind = random.choice(TYPES)
    return kind, bytes(body)


@pytest.mark.parametrize("path", ["/contact", "/newsletter", "/hits"])
def test_a_mutated_body_is_stored_whole_or_refused_in_the_contracts_shape(
    make_desk: Callable[..., Desk], path: str
) -> None:
    desk = make_desk(**dict.fromkeys(("contact_limit", "newsletter_limit"), ()))
    tables = {"/contact": "message", "/newsletter": "subscriber", "/hits": "hit"}
    dice = random.Random(4)  # the same mutations in every run
    statuses: dict[int, int] = {}
    for _ in range(size(85, 3400)):
        kind, body = mutated(dice)
        desk.clock.advance(3600)
        before = count(tables[path])
        headers = {"Accept": "application/json", "Content-Type": kind}
        answer = desk.client.simulate_post(path, body=body, headers=headers)
        status = answer.status_code
        statuses[status] = statuses.get(status, 0) + 1
        assert status < 500, (kind, body, desk.clock.now)
        if status == 200:
            continue
        assert count(tables[path]) == before, (kind, body)
        assert_error_shape(answer.json)
    assert {200, 400, 415, 422} & set(statuses) >= {200, 400}
    print(statuses)


def count(table: str) -> int:
    sums = "sum(hits)" if table == "hit" else "count(*)"
    return execute(f"SELECT {sums} FROM {table}").fetchone()[0] or 0


def assert_error_shape(body: dict[str, object]) -> None:
    assert body["ok"] is body["success"] is False
    errors = body["errors"]
    assert isinstance(errors, list)
    assert errors
    assert body["error"] == body["message"] == errors[0]["message"]
    for error in errors:
        assert {"code", "message"} <= set(error) <= {"code", "field", "message"}


def test_big_posts_do_not_stay_in_memory(server: Server, folder: Path) -> None:
    before = rows(folder, "SELECT count(*) FROM message")
    post_big(server, 8, chunked=False)  # what is loaded once is not growth
    post_big(server, 8, chunked=True)
    resident = memory(server)
    for n in range(size(40, 200)):
        post_big(server, 1, chunked=n % 2 == 1)
    growth = memory(server) - resident
    assert growth < 10 * 2**20
    assert rows(folder, "SELECT count(*) FROM message") == before
    print(f"{growth / 2**20:.1f} MiB")


def post_big(server: Server, times: int, chunked: bool) -> None:
    mebibyte = b" " * 2**20
    for _ in range(times):
        length = (
            b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 4194304"
        )
        with raw(server, HEAD + length + b"\r\n\r\n") as sock:
            with suppress(OSError):  # refused before its end
                for _ in range(4):
                    sock.sendall(
                        b"100000\r\n%b\r\n" % mebibyte if chunked else mebibyte
                    )
            assert read_all(sock).startswith(b"HTTP/1.1 413")


# --- behind a proxy that shares its connections to us among all visitors ---------


@pytest.fixture
def proxied(server: Server, tmp_path: Path) -> Iterator[Server]:
    """The server, behind Caddy."""
    caddy = shutil.which("caddy")
    if caddy is None:
        pytest.skip("caddy is not installed")
    port = free_port()
    (tmp_path / "Caddyfile").write_text(
        "{\nadmin off\nauto_https off\n}\n"
        f":{port} {{\nreverse_proxy 127.0.0.1:{server.port}\n}}\n"
    )
    process = subprocess.Popen(
        [caddy, "run", "--config", "Caddyfile", "--adapter", "caddyfile"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": ""},
        stderr=subprocess.DEVNULL,
    )
    behind = replace(server, url=f"http://127.0.0.1:{port}", port=port)
    try:
        eventually(lambda: is_up(behind))
        yield behind
    finally:
        process.kill()
        process.wait()


def is_up(server: Server) -> bool:
    with suppress(OSError):
        return call(server, "GET", "/health")[0] == 200
    return False


LARGE = b" " * 100_000
# Each is answered before it is read to its end, or never comes to one.
SPOILERS = {
    "too large": HEAD + b"Content-Length: 100000\r\n\r\n" + LARGE,
    "far too large": HEAD + b"Content-Length: 3000000\r\n\r\n" + LARGE * 30,
    "too large in chunks": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n186a0\r\n%b\r\n0\r\n\r\n" % LARGE,
    "nowhere": HEAD.replace(b"contact", b"nothing")
    + b"Content-Length: 100000\r\n\r\n"
    + LARGE,
    "another method": HEAD.replace(b"POST", b"PUT")
    + b"Content-Length: 100000\r\n\r\n"
    + LARGE,
    "bad trailer": HEAD.replace(b"Host", b"Trailer: Host, TE\r\nHost")
    + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nHost: y\r\nTE: x\r\n\r\n",
    "half a body": HEAD + b"Content-Length: 62\r\n\r\n" + FORM[:20],
}


def test_a_spoiled_request_costs_no_other_visitor_anything(proxied: Server) -> None:
    over = threading.Event()
    spoiled: Counter[bytes] = Counter()

    def spoil() -> None:
        while not over.is_set():
            for data in SPOILERS.values():
                with suppress(OSError), raw(proxied) as sock:
                    sock.settimeout(0.2)
                    sock.sendall(data)
                    spoiled[sock.recv(65536)[9:12]] += 1

    threads = [threading.Thread(target=spoil) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        with Load(proxied, kinds=(contact,), clients=4, pause=0) as load:
            eventually(lambda: load.answers.total() >= size(300, 1500))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert load.failures == {}
    assert load.unanswered == []
    assert set(spoiled) <= {b"404", b"405", b"413", b"422", b"429"}
    print(f"{load.answers.total()} answered, {spoiled.total()} spoiled")


def memory(server: Server) -> int:
    """Return the bytes that the workers hold."""
    pages = [Path(f"/proc/{pid}/statm").read_text().split() for pid in workers(server)]
    return sum(int(fields[1]) for fields in pages) * 4096


def test_the_server_is_well_after_all_this(server: Server) -> None:
    assert eventually(lambda: call(server, "GET", "/health")[0] == 200)
    assert call(server, "POST", *contact(), **BROWSER)[0] == 200
    assert "Traceback" not in server.log
