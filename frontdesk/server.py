"""The server's connections: who is served, who waits, and for how long.

One thread, the poller, receives requests and sends what clients are slow to take. A
thread of the pool starts with a request when its head and body are there, gives the
answer to the system as far as that takes it, and goes on: no client holds a thread.
"""

from __future__ import annotations

import heapq
import io
import ipaddress
import json
import os
import queue
import re
import secrets
import select
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.http.body import LengthReader
from gunicorn.http.errors import (
    InvalidChunkSize,
    InvalidHTTPVersion,
    InvalidResponseHeader,
    LimitRequestHeaders,
    NoMoreData,
)
from gunicorn.http.message import Request
from gunicorn.http.unreader import Unreader
from gunicorn.workers.base import Worker

from frontdesk.settings import TWO_LINES

BUSY_MILLISECONDS = 1  # for a client's next request; then the thread serves others
READ_SECONDS = 8  # for a request's head and body together, from its first byte
ANSWER_SECONDS = 20  # for the system to take an answer that its thread has left
STREAM_SECONDS = 5  # for the system to take some bytes of an answer in many parts
LINGER_SECONDS = 0.5  # for a client to close after the last answer
STOP_SECONDS = 2  # for an idle client's request that is on its way at the end
HAND_BACK_SECONDS = 5  # for the delivery under way, after SIGTERM

READ_BYTES = 16 * 1024  # at once
HEAD_BYTES = 64 * 1024
BODY_BYTES = 2**20  # what Mailjet's events may have; forms have less
ALL_BYTES = 32 * 2**20  # of all requests that are coming in
SMALL_BYTES = 64 * 1024  # chunked bodies are checked whole before the application, ...
SEND_BYTES = 256 * 1024  # that the system keeps of an answer for a slow client

# RFC 9112, 7.1; longer extensions and more zeros are hostile.
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,4096})?\r\n")


class Phase(IntEnum):
    """What a connection without a thread waits for; the lower, the sooner it goes."""

    LEAVING = 0  # for the client to close; what it still sends is thrown away
    IDLE = 1  # for the next request
    SENDING = 2  # for the client to take its answer
    RECEIVING = 3  # for the rest of a request


class Received(Unreader):  # type: ignore[misc]
    """What was received of a request, as gunicorn's parser reads it.

    In pieces as from a socket: its reader of chunks copies the rest of a piece for
    each chunk.
    """

    def __init__(self, data: bytearray) -> None:
        super().__init__()
        self.data = data

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return the next piece, b"" at the end."""
        piece = bytes(self.data[:READ_BYTES])
        del self.data[: len(piece)]
        return piece


class Connection:
    """A client's connection, with what has come and what is to go."""

    __slots__ = (
        *("client", "counted", "cfg", "deadline", "has_sent", "key", "phase"),
        *("broken", "end", "ends", "is_cut", "out", "received", "request"),
        *("server", "sock"),
    )

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any) -> None:
        sock.setblocking(False)
        self.cfg, self.sock, self.client, self.server = cfg, sock, client, server
        self.key: str | None = None  # what its client's connections are counted by
        self.phase, self.deadline = Phase.IDLE, 0.0
        self.received = bytearray()  # behind the head, once that is parsed
        self.counted = 0  # bytes of it, in the sum of all connections
        self.out = bytearray()
        self.ends = False  # after what is to go
        self.expect()

    def allow(self, seconds: float) -> None:
        """Let the client take so long for what comes next."""
        self.deadline = time.monotonic() + seconds

    def expect(self) -> None:
        """Get ready for the next request."""
        self.request: Any = None  # gunicorn's, once its head has come
        self.end = 0  # of its body in what was received, as far as that is known
        self.is_cut = False  # the rest of it will not be read
        self.broken: Exception | None = None  # what makes it no request

    # --- receiving ---

    def receive(self) -> bool:
        """Take what has come; return False if the client sends no more."""
        try:
            data = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self.received += data
        return bool(data)

    def is_ready(self) -> bool:
        """Tell whether a request has come that can be answered, or be refused."""
        if not self.received and self.request is None:
            return False
        try:
            if self.request is None:
                self.read_head()
            return self.is_cut or self.has_body()
        except NoMoreData:
            return False
        except Exception as error:  # whatever gunicorn's parser finds
            self.broken = error
            return True

    def read_head(self) -> None:
        """Parse a request's head; raises NoMoreData while it is not whole."""
        if len(self.received) > HEAD_BYTES:
            raise LimitRequestHeaders("head")
        source = Received(self.received[:])
        request = Request(self.cfg, source, self.client)
        if request.version > (1, 1):
            raise InvalidHTTPVersion(request.version)
        apply_policy(request)
        self.received = bytearray(source.take_buffered()) + source.data
        source.data = bytearray()
        self.request = request

    def has_body(self) -> bool:
        """Tell whether the body is whole, or too long to wait for its end."""
        reader = self.request.body.reader
        if isinstance(reader, LengthReader):
            self.end = reader.length
            whole = len(self.received) >= self.end
        else:
            whole = self.has_last_chunk()
        if max(self.end, 0 if whole else len(self.received)) > BODY_BYTES:
            self.is_cut = True
        elif not whole and self.request._expected_100_continue:
            with suppress(OSError):
                self.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.request._expected_100_continue = False
        return whole or self.is_cut

    def has_last_chunk(self) -> bool:
        """Go on over the chunks that have come; their end is a chunk's begin.

        Raises InvalidChunkSize. What is in them is gunicorn's to check.
        """
        while match := CHUNK_SIZE.match(self.received, self.end):
            size = int(match[1], 16)
            if size == 0:
                end = self.received.find(b"\r\n\r\n", match.end() - 2)
                self.end = end + 4 if end >= 0 else self.end
                return end >= 0
            if len(self.received) < (end := match.end() + size + 2):
                return False
            self.end = end
        if b"\n" in self.received[self.end : self.end + 5000]:
            raise InvalidChunkSize(b"")
        return False

    def take(self) -> Request:
        """Return the request, its body made ready to be read without waiting.

        Raises what gunicorn finds in chunks: then it is no request.
        """
        request, source = self.request, self.request.unreader
        request._expected_100_continue = False
        size = len(self.received) if self.is_cut else self.end
        source.data, self.received = self.received, self.received[size:]
        del source.data[size:]
        if self.is_cut:
            request.force_close()
        elif isinstance(request.body.reader, LengthReader):
            request.body = io.BytesIO(source.data)
        elif size > SMALL_BYTES:
            request.force_close()
        else:
            request.body = io.BytesIO(request.body.read())
            if source.read():
                raise InvalidChunkSize(b"")
        return request

    def asks_soon(self) -> bool:
        """Wait a moment for the next request of a client that asks on and on."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if poll.poll(BUSY_MILLISECONDS) and not self.receive():
            self.ends = True
        return self.is_ready()

    # --- sending ---

    def sendall(self, data: bytes) -> None:
        """Keep what is to go: an answer's head leaves with the begin of its body."""
        self.out += data

    def flush(self) -> bool:
        """Give the system what it takes; return whether that was all."""
        if self.out:
            with suppress(BlockingIOError):
                sent = self.sock.send(self.out)
                self.has_sent = True
                del self.out[:sent]
        return not self.out

    def await_room(self) -> None:
        """Wait, before an answer's next part, until its client has taken the last.

        Only the owner's exports come in parts. Raises TimeoutError.
        """
        while not self.flush() and len(self.out) > READ_BYTES:
            poll = select.poll()
            poll.register(self.sock, select.POLLOUT)
            if not poll.poll(STREAM_SECONDS * 1000):
                raise TimeoutError


class Answer(wsgi.Response):  # type: ignore[misc]
    """An answer with few and known headers: 7 us, where gunicorn's takes 23.

    What would split an answer is looked for in all headers at once; gunicorn tries two
    patterns on each.
    """

    headers_sent: bool

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        """Keep the application's headers."""
        self.headers = headers
        length = next((v for k, v in headers if k.lower() == "content-length"), None)
        self.response_length = None if length is None else int(length)

    def send_headers(self) -> None:
        """Send the head; raises InvalidResponseHeader."""
        if self.headers_sent:
            return
        lines = [
            f"HTTP/{self.req.version[0]}.{self.req.version[1]} {self.status}",
            f"Server: {self.version}",
            f"Date: {_date(int(time.time()))}",
            f"Connection: {'close' if self.should_close() else 'keep-alive'}",
            *[f"{name}: {value}" for name, value in self.headers],
        ]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        head = "\r\n".join(lines)
        if not head.count("\r") == head.count("\n") == len(lines) - 1:
            raise InvalidResponseHeader("a line break")
        self.sock.sendall(f"{head}\r\n\r\n".encode("latin-1"))
        self.headers_sent = True


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return str(util.http_date(second))


class Threads(Worker):  # type: ignore[misc]
    """A gunicorn worker: threads that answer, and a poller for all that takes time.

    gunicorn's own has no deadlines: as many half-sent requests as threads stop it. It
    closes connections gently (2 s each) in the thread that serves all others, takes no
    new one while idle ones fill it, and spends a third of a short request's time on
    the way between the poller and its threads.

    A connection rests, and belongs to the poller's thread, or it is in the hands of
    one of the threads that answer.
    """

    # What a peer's connections are counted by, None for those that may be many:
    # through a proxy all clients come from a few addresses. See client_key().
    key_of: Callable[[Any], str | None] = staticmethod(lambda peer: None)

    def init_process(self) -> None:
        """Set up, and run until told to stop."""
        self.set_up()
        super().init_process()

    def set_up(self) -> None:
        """Make what the threads share."""
        self.connections: set[Connection] = set()
        self.resting: dict[Connection, None] = {}  # those that no thread has
        self.clients: Counter[str | None] = Counter()  # connections of each
        self.incoming = 0  # bytes of requests that are not whole
        self.lock = threading.Lock()  # around these two
        self.waiting: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.poller = selectors.DefaultSelector()
        for listener in self.sockets:
            listener.setblocking(False)
            # The connections inherit it: what is sent to who never reads has an end.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
            self.poller.register(listener, selectors.EVENT_READ)
        # Else each is looked up by a function, 27 times a request.
        self.cfg.__dict__.update({k: v.get() for k, v in self.cfg.settings.items()})

    # --- the poller ---

    def run(self) -> None:
        """Take connections, and hand on requests."""
        self.poller.register(self.PIPE[0], selectors.EVENT_READ)  # signals write to it
        rounded_at = 0.0
        while self.alive:
            self.poll(1.0)
            if time.monotonic() > rounded_at + 1:
                rounded_at = time.monotonic()
                self.notify()
                self.look_round()
                if os.getppid() != self.ppid:
                    break
        self.finish()

    def poll(self, seconds: float) -> None:
        """Deal with what happens next."""
        for key, _ in self.poller.select(seconds):
            if key.data is not None:
                self.attend(key.data)
            elif key.fileobj == self.PIPE[0]:
                os.read(self.PIPE[0], 64)
            else:
                self.accept(key.fileobj)

    def accept(self, listener: Any) -> None:
        """Take a connection; if there are too many, others give way."""
        most = self.cfg.worker_connections
        if len(self.connections) >= most and not self.make_room(most // 20 + 1):
            time.sleep(0.001)  # all are being answered
            return
        with suppress(OSError):  # another process was faster, or the client has gone
            sock, client = listener.accept()
            conn = Connection(self.cfg, sock, client, listener.getsockname())
            conn.key = self.key_of(client)
            over = conn.key is not None and self.clients[conn.key] >= most // 10
            if over and not self.make_room(1, conn.key):
                sock.close()
                return
            with self.lock:
                self.clients[conn.key] += 1
            self.connections.add(conn)
            self.rest(conn)

    def make_room(self, count: int, key: str | None = None) -> int:
        """Close resting connections (of one client), return how many."""
        candidates = [c for c in list(self.resting) if key is None or c.key == key]
        chosen = heapq.nsmallest(count, candidates, lambda c: (c.phase, c.deadline))
        return sum(self.take_up(conn) and self.close(conn) for conn in chosen)

    def take_up(self, conn: Connection) -> bool:
        """Take a connection from the poller, unless its thread just brings it."""
        try:
            self.poller.unregister(conn.sock)
        except (KeyError, ValueError):
            return False
        del self.resting[conn]
        return True

    def attend(self, conn: Connection) -> None:
        """Go on with a resting connection whose client has sent or taken something."""
        if conn not in self.resting:  # closed since the poller saw it
            return
        if conn.phase == Phase.SENDING:
            if self.flush(conn) and self.take_up(conn):
                self.settle(conn)
            return
        more = conn.receive()
        if conn.phase == Phase.LEAVING:
            conn.end += len(conn.received)
            conn.received.clear()
            if (not more or conn.end > BODY_BYTES) and self.take_up(conn):
                self.close(conn)
        elif conn.is_ready():
            self.hand_on(conn)
        elif not more:
            self.cut(conn)
        elif conn.received:
            if conn.phase == Phase.IDLE:
                conn.phase = Phase.RECEIVING
                conn.allow(READ_SECONDS)
            self.count(conn)
            if self.incoming > ALL_BYTES:
                self.cut(max(list(self.resting), key=lambda c: len(c.received)))

    def count(self, conn: Connection) -> None:
        """Bring the sum of what was received up to date."""
        with self.lock:
            self.incoming += len(conn.received) - conn.counted
            conn.counted = len(conn.received)

    def cut(self, conn: Connection) -> None:
        """Read no more of a request: the application says what is wrong with it."""
        conn.is_cut = True
        if conn.is_ready():
            self.hand_on(conn)
        elif self.take_up(conn):
            self.close(conn)

    def hand_on(self, conn: Connection) -> None:
        """Give a resting connection that has a request to a thread."""
        if self.take_up(conn):
            self.enqueue(conn)

    def enqueue(self, conn: Connection) -> None:
        """Let a connection wait for a thread, a new one if all are busy."""
        self.waiting.put(conn)
        busy = len(self.connections) - len(self.resting)
        if len(self.threads) < min(self.cfg.threads, busy):
            thread = threading.Thread(target=self.serve_all, daemon=True)
            with suppress(RuntimeError):  # no room for one more: the others serve
                thread.start()
                self.threads.append(thread)

    def look_round(self) -> None:
        """End the waiting for who had time enough."""
        now = time.monotonic()
        for conn in list(self.resting):
            if conn.deadline > now:
                continue
            if conn.phase == Phase.RECEIVING:
                self.cut(conn)
            elif self.take_up(conn):
                self.close(conn)

    def finish(self) -> None:
        """Answer what is under way, while the outbox stops; wait little for idlers."""
        for listener in self.sockets:  # who comes now is refused, or another worker's
            self.poller.unregister(listener)
            listener.close()
        stop = threading.Thread(target=self.wsgi.outbox.stop, args=(HAND_BACK_SECONDS,))
        with suppress(RuntimeError):  # no room: worker_exit() will do it, later
            stop.start()
        now = time.monotonic()
        # A second before the master's patience ends.
        last, end = now + STOP_SECONDS, now + self.cfg.graceful_timeout - 1
        while self.connections and time.monotonic() < end:
            self.notify()
            for conn in list(self.resting):
                if conn.phase == Phase.IDLE:
                    conn.deadline = min(conn.deadline, last)
            self.look_round()
            self.poll(0.1)
        for _ in self.threads:
            self.waiting.put(None)
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))
        self.poller.close()

    # --- a connection's way, in any thread ---

    def settle(self, conn: Connection) -> None:
        """Send a connection, after its answer, where it belongs."""
        if conn.out:
            self.rest(conn, Phase.SENDING, ANSWER_SECONDS)
        elif conn.ends:
            with suppress(OSError):
                conn.sock.shutdown(socket.SHUT_WR)
            # Closed at once, what the client still sends would reset the connection,
            # and take the answer away from it (RFC 9112, 9.6).
            conn.received.clear()
            self.rest(conn, Phase.LEAVING, LINGER_SECONDS)
        elif conn.is_ready():
            self.enqueue(conn)
        elif conn.received or conn.request:
            self.rest(conn, Phase.RECEIVING, READ_SECONDS)
        else:
            self.rest(conn)

    def rest(
        self, conn: Connection, phase: Phase = Phase.IDLE, seconds: float | None = None
    ) -> None:
        """Give a connection to the poller."""
        conn.phase = phase
        conn.allow(self.cfg.keepalive if seconds is None else seconds)
        self.resting[conn] = None
        sending = phase == Phase.SENDING
        event = selectors.EVENT_WRITE if sending else selectors.EVENT_READ
        try:
            self.poller.register(conn.sock, event, conn)
        except (OSError, ValueError, KeyError):  # it has no room, or has stopped
            self.resting.pop(conn, None)
            self.close(conn)

    def flush(self, conn: Connection) -> bool:
        """Give the system what it takes of an answer; return whether that was all."""
        try:
            return conn.flush()
        except OSError:  # the client has gone
            conn.out.clear()
            conn.ends = True
            return True

    def close(self, conn: Connection) -> bool:
        """Close a connection for good."""
        with self.lock:
            self.incoming -= conn.counted
            self.clients[conn.key] -= 1
            if not self.clients[conn.key]:
                del self.clients[conn.key]
        if conn.out:  # the system would keep it for who never reads
            reset = struct.pack("ii", 1, 0)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        conn.sock.close()
        self.connections.discard(conn)
        return True

    # --- the threads that answer ---

    def serve_all(self) -> None:
        """Serve one connection after the other."""
        while (conn := self.waiting.get()) is not None:
            goes_on = self.answer(conn)
            while goes_on and self.is_next(conn):
                goes_on = self.answer(conn)
            self.settle(conn)

    def is_next(self, conn: Connection) -> bool:
        """Tell whether to stay with a client: while nobody else waits for a thread.

        The way through the poller and back to a thread costs more than to answer.
        """
        if not self.alive or self.waiting.qsize():
            return False
        return conn.is_ready() or conn.asks_soon()

    def answer(self, conn: Connection) -> bool:
        """Answer a request; return whether the next one may be answered."""
        conn.has_sent = False
        try:
            if conn.broken:
                raise conn.broken
            request = conn.take()
            resp, env = wsgi.create(
                request, conn, conn.client, conn.server, self.cfg, response_class=Answer
            )
        except Exception as error:
            self.refuse(conn, HTTPStatus.BAD_REQUEST, error)
        else:
            self.respond(conn, resp, env)
        if conn.request:
            # gunicorn's reader of chunks is a circle, and would hold them for long.
            conn.request.unreader.data.clear()
        conn.expect()
        if conn.counted:
            self.count(conn)
        return self.flush(conn) and not conn.ends

    def respond(self, conn: Connection, resp: Any, env: dict[str, Any]) -> None:
        """Let the application answer."""
        env["wsgi.multithread"] = True
        if not self.alive:
            resp.force_close()
        try:
            self.run_application(conn, resp, env)
            conn.ends = resp.should_close()
        except OSError:  # the client has gone, or does not read
            conn.out.clear()
            conn.ends = True
        except Exception as error:  # an export that fails half way
            if conn.has_sent:
                self.log.warning("cut short: %s", type(error).__name__)
                conn.ends = True
            else:
                conn.out.clear()
                self.refuse(conn, HTTPStatus.INTERNAL_SERVER_ERROR, error)

    def run_application(self, conn: Connection, resp: Any, env: dict[str, Any]) -> None:
        """Call the application and pass its answer on, part by part."""
        parts = self.wsgi(env, resp.start_response)
        try:
            for part in parts:
                if conn.out:
                    conn.await_room()
                resp.write(part)
            resp.close()
            conn.flush()  # before close(), where an application may do what takes time
        finally:
            if hasattr(parts, "close"):
                parts.close()

    def refuse(self, conn: Connection, status: HTTPStatus, error: Exception) -> None:
        """Answer, in the shape of all errors, what never reached the application."""
        from frontdesk import answers  # loaded with the application, not by the master

        request_id = secrets.token_hex(8)
        # Without what was sent, and by whom.
        self.log.warning("? - %d %s %s", status, type(error).__name__, request_id)
        body = json.dumps(answers.error_body(answers.plain_error(status)))
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Vary: Origin",
            "X-Content-Type-Options: nosniff",
            f"X-Request-ID: {request_id}",
        ]
        conn.sendall("\r\n".join([*lines, "", body]).encode())
        conn.ends = True


def apply_policy(request: Request) -> None:
    """Mark a request with two X-Forwarded-For lines, and one that says it is the last.

    WSGI would join the two. gunicorn knows only "Connection: close" in the first
    line, not a list or a second line (RFC 9112, 9.6).
    """
    lines = [value for name, value in request.headers if name == "CONNECTION"]
    if lines and "close" in [
        v.strip(" \t").lower() for v in ",".join(lines).split(",")
    ]:
        request.force_close()
    if [name for name, _ in request.headers].count("X-FORWARDED-FOR") > 1:
        rest = [(n, v) for n, v in request.headers if n != "X-FORWARDED-FOR"]
        request.headers = [*rest, ("X-FORWARDED-FOR", TWO_LINES)]


@lru_cache(maxsize=1024)
def client_key(peer: Any) -> str | None:
    """Return what a peer's connections are counted by: its address, or its /64.

    None for a Unix socket and for addresses that are no client's on the Internet:
    there stands a proxy, a container's gateway or the owner.
    """
    if not isinstance(peer, tuple):
        return None
    address = ipaddress.ip_address(peer[0].partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_global:
        return None
    bits = 32 if address.version == 4 else 64
    return str(ipaddress.ip_network((address, bits), strict=False))
