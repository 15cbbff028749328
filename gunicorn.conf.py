"""The server: one process (or WEB_CONCURRENCY), threads, and the outbox beside them."""

import contextlib
import functools
import itertools
import logging
import os
import select
import selectors
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from gunicorn import glogging, util
from gunicorn.workers.gthread import _DEFER, STOP_KEEPALIVE_LINGER, ThreadWorker

from settings import TWO_LINES, Settings, SettingsError, sqlite_path

BUSY_MILLISECONDS = 1  # for a client's next request; then the thread serves others
SILENT_SECONDS = 0.02  # for the first byte; then a connection waits without a thread
READ_SECONDS = 8  # for a request's head and body together, and its wait for a thread
READ_BYTES = 16 * 1024  # at once; with gunicorn's 1 MiB each thread keeps several
WRITE_SECONDS = 5  # for a client to take some bytes of an answer
LINGER_SECONDS = 0.5  # for a client to close after the last answer
HAND_BACK_SECONDS = 5  # for the delivery under way, after SIGTERM


def _stop(problems):
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1)


if os.environ.pop("GUNICORN_CMD_ARGS", None):
    # These win over this file, and Render's own hold --preload (a thread and a SQLite
    # connection do not survive a fork) and --bind (whatever PORT says): start again.
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 # the command we came from

try:
    _settings = Settings.from_environ(os.environ)
except SettingsError as error:
    _stop(error.problems)

_path = sqlite_path(_settings.database_url)
if _path is not None:
    # peewee would import the Postgres driver whenever it is installed: 150 ms, 12 MB.
    sys.modules["psycopg"] = None
import models  # noqa: E402

wsgi_app = "api:create_app()"
bind = f"0.0.0.0:{_settings.port}"
workers = _settings.workers
threads = _settings.threads
worker_connections = 1000
# Routers keep connections for 90 s: ours must live longer.
keepalive = 100
timeout = 60
graceful_timeout = 12  # platforms kill after 30
preload_app = False  # a thread and a SQLite connection do not survive a fork
control_socket_disable = True
# FORWARDED_ALLOW_IPS=* (Heroku) would let any client's SCRIPT_NAME rewrite the path.
forwarder_headers = ""
http_parser = "python"  # the fast one takes heads with bare line feeds
limit_request_line = 8190
if Path("/dev/shm").is_dir():  # noqa: S108 # gunicorn's own advice
    worker_tmp_dir = "/dev/shm"  # noqa: S108


class logger_class(glogging.Logger):
    """The application writes the one line a request; this one would show queries."""

    def access(self, resp, req, environ, request_time):
        """Write nothing, whatever GUNICORN_CMD_ARGS says (Heroku sets it)."""


class worker_class(ThreadWorker):
    """gunicorn's thread worker with deadlines for slow and lingering clients.

    The stock one waits for ever for the rest of a head or body: as many sockets as
    threads stop the service. It also closes connections gently (2 s each) in the
    thread that serves all others, takes no new one while the idle ones fill it, and
    makes all threads wait for that one thread at each request.
    Leans on private methods: pinned, and tested in tests/faults/.
    """

    def init_process(self):
        self.deadlines = {}
        # Else each is looked up by a function, 27 times a request.
        vars(self.cfg).update({k: v.get() for k, v in self.cfg.settings.items()})
        super().init_process()

    def enqueue_req(self, conn):
        # The time in the queue counts: who stands there behind slow clients waits
        # for one deadline, however many they are.
        self.deadlines[conn] = time.monotonic() + READ_SECONDS
        served = self.tpool.submit(self.handle, conn)
        served.add_done_callback(functools.partial(self.after_request, conn))

    def handle(self, conn):
        if not conn.initialized:
            if not conn.wait_for_data(SILENT_SECONDS):
                return _DEFER
            seconds = struct.pack("ll", WRITE_SECONDS, 0)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
            conn.init()
            conn.parser.unreader.max_body_chunk = READ_BYTES
        result = super().handle(conn)
        while result is True and self.next_comes(conn):
            self.deadlines[conn] = time.monotonic() + READ_SECONDS
            result = super().handle(conn)
        if result is False:
            util.close_graceful(conn.sock, timeout=LINGER_SECONDS)
        return result

    def next_comes(self, conn):
        """Wait for a busy client's next request, while nobody waits for a thread.

        The way through the poller and back to a thread costs more than to answer.
        """
        if not self.alive or self.tpool._work_queue.qsize():
            return False
        if conn.parser.unreader.buf.getvalue():  # it is here already
            return True
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        return bool(poll.poll(BUSY_MILLISECONDS))

    def after_request(self, conn, fs):
        """Give a connection that is kept alive back to the poller, from its own thread.

        To ask the thread that serves all others for it costs two system calls, and
        that one's time. It does the rest (finish_request).
        """
        kept = fs.exception() is None and fs.result() is True and self.alive
        if not kept or conn.parser.unreader.buf.getvalue():
            self.method_queue.defer(self.finish_request, conn, fs)
            return
        self.deadlines.pop(conn, None)
        conn.sock.setblocking(False)
        conn.set_timeout()
        self.keepalived_conns.append(conn)
        if not self.alive:  # it has stopped meanwhile, and may have missed this one
            conn.timeout = min(conn.timeout, time.monotonic() + STOP_KEEPALIVE_LINGER)
        readable = functools.partial(self.on_client_socket_readable, conn)
        with contextlib.suppress(OSError, ValueError, KeyError):  # stopped altogether
            self.poller.register(conn.sock, selectors.EVENT_READ, readable)

    def finish_request(self, conn, fs):
        self.deadlines.pop(conn, None)
        if fs.exception() is None and fs.result() is False:
            self.nr_conns -= 1  # closed by its own thread
        else:
            super().finish_request(conn, fs)

    def murder_pending(self):
        if self.nr_conns > 0.9 * self.worker_connections:
            for idle in (self.pending_conns, self.keepalived_conns):
                # A copy: the threads give connections back meanwhile.
                for conn in list(itertools.islice(idle, self.worker_connections // 10)):
                    conn.timeout = 0
            self.murder_keepalived()
        super().murder_pending()
        now = time.monotonic()
        for conn, deadline in list(self.deadlines.items()):
            if now > deadline:
                # The blocked read ends; what has come is served, and answered.
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RD)

    def _cap_keepalive(self, deadline):
        """Stop the outbox while the last requests are answered, wait for no idler."""
        outbox = self.wsgi.outbox
        threading.Thread(target=outbox.stop, args=(HAND_BACK_SECONDS,)).start()
        for conn in [*self.keepalived_conns, *self.pending_conns]:
            conn.timeout = min(conn.timeout, deadline)

    def handle_error(self, req, client, addr, exc):
        """Refuse what is no HTTP, without logging what was sent or by whom."""
        self.log.warning("not understood: %s", type(exc).__name__)
        body = (
            '{"ok": false, "success": false, "error": "This is not HTTP.", '
            '"message": "This is not HTTP.", "errors": '
            '[{"code": "MALFORMED", "message": "This is not HTTP."}]}'
        )
        head = (
            "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            util.write_nonblock(client, (head + body).encode())


def on_starting(server):
    """Make or update the schema before any worker starts."""
    try:
        models.migrate(_settings.database_url, _path)
    except (OSError, *models.StorageError) as error:
        reason = str(error).splitlines()[0]
        _stop(
            [f"DATABASE_URL: cannot use {_path or 'the Postgres database'}: {reason}"]
        )


def pre_request(worker, req):
    """Mark a request with two X-Forwarded-For lines: WSGI would join them."""
    if [name for name, _ in req.headers].count("X-FORWARDED-FOR") > 1:
        rest = [(n, v) for n, v in req.headers if n != "X-FORWARDED-FOR"]
        req.headers = [*rest, ("X-FORWARDED-FOR", TWO_LINES)]


def post_worker_init(worker):
    """Log to standard output, and start delivering."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    # Nobody reads these of a record (see "Optimization" in logging's documentation).
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = logging.logAsyncioTasks = False
    worker.wsgi.outbox.start()


def worker_exit(server, worker):
    """Hand back what is being delivered."""
    outbox = getattr(getattr(worker, "wsgi", None), "outbox", None)
    if outbox is not None:
        outbox.stop(HAND_BACK_SECONDS)
