"""The server: one process (or WEB_CONCURRENCY), threads, and the outbox beside them."""

import errno
import logging
import os
import resource
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from frontdesk.server import HAND_BACK_SECONDS, Threads, client_key
from frontdesk.settings import VERSION, Settings, SettingsError
from frontdesk.start import or_end, ready_database

if os.environ.pop("GUNICORN_CMD_ARGS", None):
    # These win over this file, and Render's own hold --preload (a thread and a SQLite
    # connection do not survive a fork) and --bind (whatever PORT says): start again.
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 # the command we came from

with or_end():
    _settings = Settings.from_environ(os.environ)


class worker_class(Threads):  # a setting of gunicorn's
    """Our worker, told whether clients connect to it themselves."""

    if not (_settings.trusted_hops or _settings.client_ip_header):
        key_of = staticmethod(client_key)


wsgi_app = "api:create_app()"
bind = f"0.0.0.0:{_settings.port}"
workers = _settings.workers
threads = _settings.threads
# Half of the files that may be open at most: the database needs some too.
_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
worker_connections = 1000 if _files < 0 else min(1000, _files // 2)
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


PATIENCE_SECONDS = 3  # for the service that ran before to give its port back


def _wait_for(address):
    """End with one sentence where another program has the port.

    gunicorn itself would say so in eleven lines.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(address)
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    return  # gunicorn says what it is
        if time.monotonic() > deadline:
            port = address[1]
            sentence = f"PORT: {port} is in use, try another: PORT={port + 1} make run"
            raise SettingsError([sentence])
        time.sleep(0.1)


def on_starting(server):
    """Make or update the schema before any worker starts."""
    # A socket that is handed down (a reload by USR2, systemd) is in use, by us.
    inherited = os.environ.keys() & {"GUNICORN_FD", "LISTEN_FDS"}
    with or_end():
        for address in () if inherited else server.cfg.address:
            if isinstance(address, tuple) and ":" not in address[0]:
                _wait_for(address)
        ready_database(_settings).close()


def post_worker_init(worker):
    """Log to standard output; deliver what is left over before the first request."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    # Nobody reads these of a record (see "Optimization" in logging's documentation).
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = logging.logAsyncioTasks = False
    worker.wsgi.outbox.start()
    if worker.age == 1:  # the first one of all
        with suppress(OSError):
            print(f"Frontdesk {VERSION} is ready: {_settings.public_url}", flush=True)


def worker_exit(server, worker):
    """Hand back what is being delivered."""
    outbox = getattr(getattr(worker, "wsgi", None), "outbox", None)
    if outbox is not None:
        outbox.stop(HAND_BACK_SECONDS)
