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
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from functools import lru_cache
from itertools import chain
from typing import Any

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
from gunicorn.http.unreader import IterUnreader
from gunicorn.workers.base import Worker

from frontdesk.settings import BROKEN, TWO_LINES

BUSY_MILLISECONDS = 1  # for a client's next request; then the thread serves others
READ_SECONDS = 8  # for a request's head and body together, from its first byte
ANSWER_SECONDS = 20  # for the system to take an answer that its thread has left
STREAM_SECONDS = 5  # for the system to take some bytes of an answer in many parts
LINGER_SECONDS = 0.5  # for a client to close after the last answer
STOP_SECONDS = 2  # for an idle client's request that is on its way at the end
HAND_BACK_SECONDS = 5  # for the delivery under way, after SIGTERM

READ_BYTES = 16 * 1024  # at once
HEAD_BYTES = 64 * 1024
SMALL_BYTES = 64 * 1024  # of a body: all forms have less
BODY_BYTES = 2**20  # Mailjet's events have less; what is longer is not received
ALL_BYTES = 32 * 2**20  # of all requests with bodies that are not small
SEND_BYTES = 256 * 1024  # that the system keeps of an answer for a slow client

# RFC 9112, 7.1; longer extensions and more zeros are hostile.
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,4096})?\r\n")

FAILED = (
    "HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\nCache-Control: no-store"
    "\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}"
)


class Phase(IntEnum):
    """What a connection without a thread waits for; the lower, the sooner it goes."""

    LEAVING = 0  # for the client to close; what it still sends is thrown away
    IDLE = 1  # for the next request
    SENDING = 2  # for the client to take its answer
    RECEIVING = 3  # for the rest of a request


class Connection:
    """A client's connection, with what has come and what is to go."""

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any) -> None:
        sock.setblocking(False)
        self.cfg, self.sock, self.client, self.server = cfg, sock, client, server
        self.key: str | None = None  # what its client's connections are counted by
        self.received = bytearray()  # behind the head, once that is parsed
        self.out = bytearray()
        self.ends = self.gone = False  # we, or the client, send no more
        self.expect()

    def wait(self, phase: Phase, seconds: float) -> None:
        """Let the client take so long for what comes next."""
        self.phase, self.since = phase, time.monotonic()
        self.deadline = self.since + seconds

    def expect(self) -> None:
        """Get ready for the next request."""
        self.request: Any = None  # gunicorn's, once its head has come
        self.is_ready = self.has_sent = False
        self.is_cut = False  # no more of it is received
        self.end = 0  # of the chunks that have come
        self.size = 0  # of its body, once that is in the request

    # --- receiving ---

    def receive(self) -> None:
        """Take what has come."""
        try:
            data = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.received += data
        self.gone = self.is_cut = not data

    def has_request(self) -> bool:
        """Tell whether a request has come that can be answered, or be refused."""
        if self.is_ready or not (self.received or self.request):
            return self.is_ready
        try:
            if self.request or self.read_head():
                self.is_ready = self.read_body()
        except Exception:  # whatever gunicorn's parser finds
            line = f"{BROKEN} / HTTP/1.1\r\nConnection: close\r\n\r\n".encode()
            self.request = Request(self.cfg, IterUnreader([line]), None)
            self.is_ready = True
        return self.is_ready

    def read_head(self) -> bool:
        """Parse a request's head; return whether it is whole."""
        if len(self.received) > HEAD_BYTES:
            raise LimitRequestHeaders("head")
        source = IterUnreader([bytes(self.received)])
        try:
            # Without its peer: gunicorn would look up each time whether to trust it
            # with the URL's scheme, which nobody reads.
            request = Request(self.cfg, source, None)
        except NoMoreData:
            return False
        if request.version > (1, 1):
            raise InvalidHTTPVersion(request.version)
        apply_policy(request)
        self.request, self.received = request, bytearray(source.take_buffered())
        return True

    def read_body(self) -> bool:
        """Give the request its body; return whether that is whole, or cut."""
        request, reader = self.request, self.request.body.reader
        sized = isinstance(reader, LengthReader)
        whole = len(self.received) >= reader.length if sized else self.has_last_chunk()
        size = reader.length if sized else self.end
        if not whole:
            if not self.is_cut and max(size, len(self.received)) <= BODY_BYTES:
                self.invite()
                return False
            size = len(self.received)
        body, self.received = bytes(self.received[:size]), self.received[size:]
        self.size, request._expected_100_continue = size, False
        if whole and sized:
            request.body = io.BytesIO(body)
            return True
        # In pieces as from a socket: for each chunk gunicorn copies the rest of one.
        pieces = (body[at : at + READ_BYTES] for at in range(0, size, READ_BYTES))
        request.unreader.iter = pieces
        if not whole or size > SMALL_BYTES:
            request.force_close()
        else:
            request.body = io.BytesIO(request.body.read())
            if request.unreader.read():
                raise InvalidChunkSize(b"")
        return True

    def has_last_chunk(self) -> bool:
        """Go on over the chunks that have come, to the end of the last one.

        Raises InvalidChunkSize. What is in them is gunicorn's to check.
        """
        while match := CHUNK_SIZE.match(self.received, self.end):
            size = int(match[1], 16)
            if size == 0:
                end = self.received.find(b"\r\n\r\n", match.end() - 2)
                self.end = end + 4 if end >= 0 else self.end
                return end >= 0
            if len(self.received) < match.end() + size + 2:
                return False
            self.end = match.end() + size + 2
        if b"\n" in self.received[self.end : self.end + 5000]:
            raise InvalidChunkSize(b"")
        return False

    def invite(self) -> None:
        """Tell a client that asks first to send the body (RFC 9110, 10.1.1)."""
        if self.request._expected_100_continue:
            self.request._expected_100_continue = False
            with suppress(OSError):
                self.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- sending ---

    def sendall(self, data: bytes) -> None:
        """Keep what is to go: an answer's head leaves with the begin of its body."""
        self.out += data

    def flush(self) -> bool:
        """Give the system what it takes; return whether that was all."""
        try:
            if self.out:
                del self.out[: self.sock.send(self.out)]
                self.has_sent = True
        except BlockingIOError:
            pass
        except OSError:
            self.drop()
        return not self.out

    def drop(self) -> None:
        """Give a client up."""
        self.out.clear()
        self.ends = self.gone = True

    def await_room(self) -> None:
        """Wait, before an answer's next part, until its client has taken the last.

        Only the owner's exports come in parts. Raises TimeoutError, ConnectionError.
        """
        while not self.flush() and len(self.out) > READ_BYTES:
            if not is_able(self.sock, select.POLLOUT, STREAM_SECONDS * 1000):
                raise TimeoutError
        if self.gone and self.ends:
            raise ConnectionError


def is_able(sock: socket.socket, event: int, milliseconds: int) -> bool:
    """Wait until one can send or receive; return whether one can."""
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(milliseconds))


class Answer(wsgi.Response):  # type: ignore[misc]
    """An answer whose headers are few, known and looked at all at once.

    gunicorn tries two patterns on each, which takes a twentieth of a short request.
    """

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        """Keep the application's headers; raises InvalidResponseHeader."""
        text = "".join(chain.from_iterable(headers))
        if "\r" in text or "\n" in text:
            raise InvalidResponseHeader("a line break")
        if self.req.method == BROKEN:  # nobody knows which page it came from
            headers = [h for h in headers if not h[0].lower().startswith("access-")]
        self.headers = headers
        length = next((v for k, v in headers if k.lower() == "content-length"), None)
        self.response_length = None if length is None else int(length)


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
        self.resting: set[Connection] = set()  # those that no thread has
        # Around the poller's list of sockets: one that is closed while it is added
        # leaves its number to the next connection.
        self.lock = threading.Lock()
        self.waiting: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.poller = selectors.DefaultSelector()
        for listener in self.sockets:
            listener.setblocking(False)
            # Connections inherit these: what is sent to who never reads has an end.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
            with suppress(OSError, AttributeError):  # a Unix socket, another system
                patience = (socket.TCP_USER_TIMEOUT, ANSWER_SECONDS * 1000)
                listener.setsockopt(socket.IPPROTO_TCP, *patience)
            self.poller.register(listener, selectors.EVENT_READ)
        # Else each is looked up by a function, 27 times a request.
        self.cfg.__dict__.update({k: v.get() for k, v in self.cfg.settings.items()})

    # --- the poller ---

    def run(self) -> None:
        """Take connections, and hand on requests."""
        self.poller.register(self.PIPE[0], selectors.EVENT_READ)  # signals write to it
        rounded_at = 0.0
        while self.alive and os.getppid() == self.ppid:
            self.poll(1.0)
            if time.monotonic() > rounded_at + 1:
                rounded_at = time.monotonic()
                self.notify()
                self.look_round()
        self.finish()

    def poll(self, seconds: float) -> None:
        """Deal with what happens next, with new connections last.

        For them an idle one may have to give way; if it had asked meanwhile, closing
        it with its bytes unread would reset it.
        """
        events = self.poller.select(seconds)
        for key, _ in sorted(events, key=lambda event: event[0].data is None):
            if key.fileobj == self.PIPE[0]:
                os.read(self.PIPE[0], 64)
            elif key.data is None:
                self.accept(key.fileobj)
            elif key.data in self.resting:  # and was not closed since
                self.attend(key.data)

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
            many = conn.key and sum(c.key == conn.key for c in [*self.connections])
            if (many or 0) >= most // 10 and not self.make_room(1, conn.key):
                sock.close()
                return
            self.connections.add(conn)
            self.settle(conn)

    def make_room(self, count: int, key: str | None = None) -> int:
        """Close resting connections (of one client), return how many.

        Not those of the last second: while all others are slow to send or to read,
        who has just come and is about to ask would be the only idle one.
        """
        recently = time.monotonic() - 1

        def worth(conn: Connection) -> tuple[bool, int, float]:
            is_new = conn.phase != Phase.LEAVING and conn.since > recently
            return is_new, 0 if is_new else conn.phase, conn.since

        candidates = [c for c in [*self.resting] if key in (None, c.key)]
        chosen = heapq.nsmallest(count, candidates, worth)
        return sum(self.take_up(conn) and self.close(conn) for conn in chosen)

    def take_up(self, conn: Connection) -> bool:
        """Take a connection from the poller, if it is there."""
        with self.lock:
            if conn not in self.resting:
                return False
            self.resting.remove(conn)
            self.poller.unregister(conn.sock)
            return True

    def attend(self, conn: Connection) -> None:
        """Go on with a resting connection whose client has sent or taken something."""
        if conn.phase == Phase.SENDING:
            goes_on = conn.flush()
        else:
            conn.receive()
            if conn.phase == Phase.LEAVING:
                conn.received.clear()
            elif conn.phase == Phase.IDLE:
                conn.wait(Phase.RECEIVING, READ_SECONDS)
            if len(conn.received) > SMALL_BYTES:
                held = sum(len(c.received) + c.size for c in [*self.connections])
                conn.is_cut |= held > ALL_BYTES
            goes_on = conn.has_request() or conn.gone
        if goes_on and self.take_up(conn):
            self.settle(conn)

    def look_round(self) -> None:
        """End the waiting for who had time enough."""
        now = time.monotonic()
        for conn in [c for c in [*self.resting] if c.deadline <= now]:
            conn.is_cut = True  # the application says what is wrong with it
            is_late = conn.phase == Phase.RECEIVING and conn.has_request()
            if self.take_up(conn):
                self.settle(conn) if is_late else self.close(conn)

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
            for conn in [*self.resting]:
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
        """Send a connection, that is new or was served, where it belongs."""
        if conn.out:
            self.rest(conn, Phase.SENDING, ANSWER_SECONDS)
        elif not conn.ends and conn.has_request():
            self.enqueue(conn)
        elif conn.gone:
            self.close(conn)
        elif conn.ends:
            with suppress(OSError):
                conn.sock.shutdown(socket.SHUT_WR)
            # Closed at once, what the client still sends would reset the connection,
            # and take the answer away from it (RFC 9112, 9.6).
            self.rest(conn, Phase.LEAVING, LINGER_SECONDS)
        elif conn.received or conn.request:
            self.rest(conn, Phase.RECEIVING, READ_SECONDS)
        else:
            self.rest(conn, Phase.IDLE, self.cfg.keepalive)

    def rest(self, conn: Connection, phase: Phase, seconds: float) -> None:
        """Give a connection to the poller."""
        conn.wait(phase, seconds)
        sending = phase == Phase.SENDING
        event = selectors.EVENT_WRITE if sending else selectors.EVENT_READ
        try:
            with self.lock:
                self.poller.register(conn.sock, event, conn)
                self.resting.add(conn)
        except (OSError, ValueError, KeyError):  # it has no room, or has stopped
            self.close(conn)

    def enqueue(self, conn: Connection) -> None:
        """Let a connection wait for a thread, a new one if all are busy."""
        self.waiting.put(conn)
        busy = len(self.connections) - len(self.resting)
        if len(self.threads) < min(self.cfg.threads, busy):
            thread = threading.Thread(target=self.serve_all, daemon=True)
            with suppress(RuntimeError):  # no room for one more: the others serve
                thread.start()
                self.threads.append(thread)

    def close(self, conn: Connection) -> bool:
        """Close a connection for good."""
        conn.sock.close()
        self.connections.discard(conn)
        return True

    # --- the threads that answer ---

    def serve_all(self) -> None:
        """Serve one connection after the other."""
        while (conn := self.waiting.get()) is not None:
            while self.answer(conn) and self.is_next(conn):
                pass
            self.settle(conn)

    def is_next(self, conn: Connection) -> bool:
        """Tell whether to stay with a client: while nobody else waits for a thread.

        The way through the poller and back to a thread costs more than to answer.
        """
        if not self.alive or self.waiting.qsize():
            return False
        if conn.has_request():
            return True
        if is_able(conn.sock, select.POLLIN, BUSY_MILLISECONDS):
            conn.receive()
        return conn.has_request()

    def answer(self, conn: Connection) -> bool:
        """Answer a request; return whether the next one may be answered."""
        try:
            conn.ends = self.respond(conn)
        except OSError:  # the client has gone, or does not read
            conn.drop()
        except Exception as error:  # an export that fails
            self.log.warning("failed, or cut short: %s", type(error).__name__)
            conn.ends = True
            if not conn.has_sent:
                conn.out[:] = failed()
        # gunicorn's reader of chunks is a circle, and would hold them for long.
        conn.request.unreader.iter = None
        conn.expect()
        return conn.flush() and not conn.ends

    def respond(self, conn: Connection) -> bool:
        """Let the application answer; return whether this is the last answer."""
        resp, env = wsgi.create(
            conn.request, conn, conn.client, conn.server, self.cfg, Answer
        )
        env["wsgi.multithread"] = True
        if not self.alive:
            resp.force_close()
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
        return bool(resp.should_close())


def failed() -> bytes:
    """Return the answer where the application gives none."""
    from frontdesk import answers  # loaded with the application, not by the master

    body = json.dumps(answers.error_body(answers.plain_error(500)))
    return FAILED.format(len(body), body).encode()


def apply_policy(request: Request) -> None:
    """Mark a request with two X-Forwarded-For lines, and one that says it is the last.

    WSGI would join the two. gunicorn knows only "Connection: close" in the first
    line, not a list or a second line (RFC 9112, 9.6).
    """
    lines = ",".join(value for name, value in request.headers if name == "CONNECTION")
    if "close" in [option.strip(" \t") for option in lines.lower().split(",")]:
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
