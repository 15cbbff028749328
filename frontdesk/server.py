"""The server's connections: who is served, who waits, and for how long."""

from __future__ import annotations

import json
import os
import queue
import secrets
import select
import selectors
import socket
import struct
import threading
import time
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from gunicorn import util
from gunicorn.http import RequestParser, wsgi
from gunicorn.http.errors import InvalidResponseHeader, NoMoreData
from gunicorn.workers.base import Worker

from frontdesk.settings import TWO_LINES

BUSY_MILLISECONDS = 1  # for a client's next request; then the thread serves others
READ_SECONDS = 8  # for a request's head and body together, and its wait for a thread
READ_BYTES = 16 * 1024  # at once; with gunicorn's 1 MiB each thread keeps several
WRITE_SECONDS = 5  # for the system to take some bytes of an answer
LINGER_SECONDS = 0.5  # for a client to close after the last answer
STOP_SECONDS = 2  # for an idle client's request that is on its way at the end
HAND_BACK_SECONDS = 5  # for the delivery under way, after SIGTERM


class Connection:
    """A client's connection; at its deadline (of time.monotonic()) reading ends.

    What it has sent by then is answered, and nothing after: where a body is cut off,
    the rest of it would be taken for the next request.
    """

    __slots__ = ("client", "deadline", "has_ended", "parser", "server", "sock")

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any) -> None:
        self.sock, self.client, self.server = sock, client, server
        self.deadline, self.has_ended = 0.0, False
        sock.setblocking(True)
        patience = struct.pack("ll", WRITE_SECONDS, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        self.parser = RequestParser(cfg, sock, client)
        self.parser.unreader.max_body_chunk = READ_BYTES

    def allow(self, seconds: float) -> None:
        """Let the client take so long for what comes next."""
        self.deadline = time.monotonic() + seconds

    def has_more(self) -> bool:
        """Tell whether bytes of the next request were read with the last one."""
        return bool(self.parser.unreader.buf.getvalue())

    def answers_soon(self) -> bool:
        """Wait a moment for the next request of a client that asks on and on."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(BUSY_MILLISECONDS))

    def stop_reading(self) -> None:
        """End a blocked read, or an idle wait."""
        # First: to Linux it is no end, what comes later can still be read.
        self.has_ended = True
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RD)


class Answer(wsgi.Response):  # type: ignore[misc]
    """An answer whose head and body leave together: each send is a system call.

    Our headers are few and known: what would split an answer is looked for in all of
    them at once, where gunicorn tries two patterns on each.
    """

    headers_sent: bool
    _head = b""

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        """Keep the application's headers."""
        self.headers = headers
        length = next((v for k, v in headers if k.lower() == "content-length"), None)
        self.response_length = None if length is None else int(length)

    def send_headers(self) -> None:
        """Make the head, and keep it until the body comes."""
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
        self._head = f"{head}\r\n\r\n".encode("latin-1")
        self.headers_sent = True

    def _emit_body(self, data: bytes) -> None:
        head, self._head = self._head, b""
        if self.chunked:
            data = b"%X\r\n%b\r\n" % (len(data), data)
        self.sock.sendall(head + data)

    def close(self) -> None:
        """Send what is left."""
        self.send_headers()
        rest = self._head + (b"0\r\n\r\n" if self.chunked else b"")
        if rest:
            self.sock.sendall(rest)


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return str(util.http_date(second))


class Threads(Worker):  # type: ignore[misc]
    """A gunicorn worker: threads that serve, and a poller for clients that do not talk.

    gunicorn's own has no deadlines: as many half-sent requests as threads stop it. It
    closes connections gently (2 s each) in the thread that serves all others, takes no
    new one while idle ones fill it, and spends a third of a short request's time on
    the way between the poller and its threads.

    A connection is idle, and in the poller, or busy, and in the hands of a thread:
    only that one ever closes it.
    """

    def init_process(self) -> None:
        """Set up, and run until told to stop."""
        self.connections: set[Connection] = set()
        self.busy: set[Connection] = set()
        self.waiting: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.poller = selectors.DefaultSelector()
        # Else each is looked up by a function, 27 times a request.
        self.cfg.__dict__.update({k: v.get() for k, v in self.cfg.settings.items()})
        super().init_process()

    # --- the thread that waits ---

    def run(self) -> None:
        """Take connections, and hand on those that talk."""
        self.poller.register(self.PIPE[0], selectors.EVENT_READ)  # signals write to it
        for listener in self.sockets:
            listener.setblocking(False)
        listening, rounded_at = False, 0.0
        while self.alive:
            if listening != (len(self.connections) < self.cfg.worker_connections):
                listening = not listening
                self.listen(listening)
            self.poll(1.0)
            if time.monotonic() > rounded_at + 1:
                rounded_at = time.monotonic()
                self.notify()
                self.look_round()
                if os.getppid() != self.ppid:
                    break
        if listening:
            self.listen(False)
        self.finish()

    def listen(self, listening: bool) -> None:
        """Take new connections, or leave them to the system's queue."""
        for listener in self.sockets:
            if listening:
                self.poller.register(listener, selectors.EVENT_READ)
            else:
                self.poller.unregister(listener)

    def poll(self, seconds: float) -> None:
        """Deal with what happens next."""
        for key, _ in self.poller.select(seconds):
            if key.data is not None:
                self.poller.unregister(key.fileobj)
                self.hand_on(key.data)
            elif key.fileobj == self.PIPE[0]:
                os.read(self.PIPE[0], 64)
            else:
                self.accept(key.fileobj)

    def accept(self, listener: Any) -> None:
        """Take a connection."""
        with suppress(OSError):  # another process was faster, or the client has gone
            sock, client = listener.accept()
            conn = Connection(self.cfg, sock, client, listener.getsockname())
            self.connections.add(conn)
            self.wait_for(conn)

    def wait_for(self, conn: Connection) -> None:
        """Let a connection wait for its client's next word without a thread."""
        conn.allow(self.cfg.keepalive)
        self.busy.discard(conn)
        try:
            self.poller.register(conn.sock, selectors.EVENT_READ, conn)
        except (OSError, ValueError):  # it has no room, or has stopped
            self.close(conn)

    def close(self, conn: Connection) -> None:
        """Close a connection; until then its thread is busy."""
        util.close_graceful(conn.sock, timeout=LINGER_SECONDS)
        self.connections.discard(conn)
        self.busy.discard(conn)

    def hand_on(self, conn: Connection) -> None:
        """Give a connection that has something to say to a thread."""
        # The time in the queue counts: who stands there behind slow clients waits
        # for one deadline, however many they are.
        conn.allow(READ_SECONDS)
        self.busy.add(conn)
        self.waiting.put(conn)
        if len(self.threads) < min(self.cfg.threads, len(self.busy)):
            thread = threading.Thread(target=self.serve_all, daemon=True)
            with suppress(RuntimeError):  # no room for one more: the others serve
                thread.start()
                self.threads.append(thread)

    def look_round(self) -> None:
        """Stop reading from who had time enough, and make room when it gets tight."""
        most, now = self.cfg.worker_connections, time.monotonic()
        everyone = list(self.connections)
        if len(everyone) > 0.9 * most:
            idle = [conn for conn in everyone if conn not in self.busy]
            for conn in sorted(idle, key=lambda conn: conn.deadline)[: most // 4]:
                conn.deadline = now
        for conn in everyone:
            if conn.deadline <= now:
                conn.stop_reading()

    def finish(self) -> None:
        """Answer what is under way, while the outbox stops; wait little for idlers."""
        for listener in self.sockets:  # who comes now is refused, or another worker's
            listener.close()
        stop = threading.Thread(target=self.wsgi.outbox.stop, args=(HAND_BACK_SECONDS,))
        with suppress(RuntimeError):  # no room: worker_exit() will do it, later
            stop.start()
        now = time.monotonic()
        # A second before the master's patience ends.
        last, end = now + STOP_SECONDS, now + self.cfg.graceful_timeout - 1
        while self.connections and time.monotonic() < end:
            self.notify()
            for conn in self.connections - self.busy:
                conn.deadline = min(conn.deadline, last)
            self.look_round()
            self.poll(0.1)
        for _ in self.threads:
            self.waiting.put(None)
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))
        self.poller.close()

    # --- the threads that serve ---

    def serve_all(self) -> None:
        """Serve one connection after the other."""
        while (conn := self.waiting.get()) is not None:
            goes_on = self.serve(conn)
            while goes_on and self.is_next(conn):
                conn.allow(READ_SECONDS)
                goes_on = self.serve(conn)
            if not goes_on:
                self.close(conn)
            elif conn.has_more():
                conn.allow(READ_SECONDS)
                self.waiting.put(conn)
            else:
                self.wait_for(conn)

    def is_next(self, conn: Connection) -> bool:
        """Tell whether to stay with a client: while nobody else waits for a thread.

        The way through the poller and back to a thread costs more than to answer.
        """
        if not self.alive or self.waiting.qsize():
            return False
        return conn.has_more() or conn.answers_soon()

    def serve(self, conn: Connection) -> bool:
        """Serve one request; return whether the connection stays open."""
        try:
            req = next(conn.parser)
            mark_two_lines(req)
            resp, env = wsgi.create(
                req,
                conn.sock,
                conn.client,
                conn.server,
                self.cfg,
                response_class=Answer,
            )
        except (StopIteration, NoMoreData, OSError):  # the client has gone
            return False
        except Exception as error:
            self.refuse(conn, HTTPStatus.BAD_REQUEST, error)
            return False
        try:
            self.respond(resp, env)
            # The next request starts where an unread rest of the body ends.
            whole = not resp.should_close() and conn.parser.finish_body(max_bytes=65536)
            return whole and not conn.has_ended
        except OSError:
            return False
        except Exception as error:  # an export that fails half way, a broken rest
            if resp.headers_sent:
                self.log.warning("cut short: %s", type(error).__name__)
            else:
                self.refuse(conn, HTTPStatus.INTERNAL_SERVER_ERROR, error)
            return False

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
        with suppress(OSError):
            util.write_nonblock(conn.sock, "\r\n".join([*lines, "", body]).encode())

    def respond(self, resp: Any, env: dict[str, Any]) -> None:
        """Let the application answer."""
        env["wsgi.multithread"] = True
        if not self.alive:
            resp.force_close()
        parts = self.wsgi(env, resp.start_response)
        try:
            for part in parts:
                resp.write(part)
            resp.close()
        finally:
            if hasattr(parts, "close"):
                parts.close()


def mark_two_lines(req: Any) -> None:
    """Mark a request with two X-Forwarded-For lines: WSGI would join them."""
    if [name for name, _ in req.headers].count("X-FORWARDED-FOR") > 1:
        rest = [(n, v) for n, v in req.headers if n != "X-FORWARDED-FOR"]
        req.headers = [*rest, ("X-FORWARDED-FOR", TWO_LINES)]
