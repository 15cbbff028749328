"""How a process starts, whichever server it is, and what happens at its end."""

from __future__ import annotations

import codecs
import io
import locale
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frontdesk.database import Database, StorageError, open_database
from frontdesk.settings import Settings, SettingsError, sqlite_path
from frontdesk.tables import prepare

log = logging.getLogger("frontdesk")

# What gunicorn's workers end with where another try would end in the same way; with any
# other status its master would start them again and again (Arbiter.WORKER_BOOT_ERROR).
CANNOT_START = 3
UNUSABLE: tuple[type[Exception], ...] = (OSError, *StorageError)


@contextmanager
def or_end() -> Iterator[None]:
    """End the process with a line for each problem, where a server cannot start."""
    try:
        yield
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr, flush=True)
        sys.exit(CANNOT_START)
    _end_by_sigterm()
    _write_utf8()


def environment() -> Settings:
    """Return the environment's settings, and log what in it looks odd.

    Raises SettingsError.
    """
    settings = Settings.from_environ(os.environ)
    for hint in settings.hints:
        log.warning(hint)
    return settings


def ready_database(settings: Settings) -> Database:
    """Return the database with its schema, entered by this thread.

    Raises SettingsError where it cannot be used. All files are this user's only.
    """
    os.umask(0o077)
    try:
        database = open_database(settings.database_url, settings.threads)
        database.calendar = settings.calendar
        prepare(database)
    except UNUSABLE as error:
        path = sqlite_path(settings.database_url)
        reason = str(error).partition("\n")[0]
        problem = (
            f"DATABASE_URL: cannot use {path or 'the Postgres database'}: {reason}"
        )
        raise SettingsError([problem + (_whose(path) if path else "")]) from error
    return database


def _whose(path: Path) -> str:
    """Return owner and mode of a file that cannot be used, as far as they are seen."""
    try:
        found = path if path.exists() else path.parent
        status = found.stat()
        if status.st_uid == os.geteuid() or os.geteuid() == 0:
            return ""
        owner, mode = found.owner(), status.st_mode & 0o777
    except (OSError, KeyError):
        return ""
    return f" ({found} is {owner}'s, mode {mode:o}, and this is user {os.geteuid()})"


def _end_by_sigterm() -> None:
    """Let SIGTERM end the process as any other end, where the server leaves it alone.

    Without a handler it ends without the functions that atexit knows, which hand back
    what is being delivered. uWSGI and mod_wsgi have handlers that Python does not see.
    """
    if sys.modules.keys() & {"uwsgi", "mod_wsgi"}:
        return
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _write_utf8() -> None:
    """Read and write text in UTF-8, as Python itself does in the locale C (PEP 538).

    A server that embeds Python leaves it with ASCII there: uWSGI, and Apache on Debian.
    """
    if codecs.lookup(locale.getencoding()).name != "ascii":
        return
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def without_threads(settings: Settings) -> bool:
    """Tell whether no thread of our own may run: in uWSGI it must be told so."""
    uwsgi = sys.modules.get("uwsgi")
    stopped = uwsgi and not {"enable-threads", "threads"} & {*uwsgi.opt}
    return settings.outbox == "request" or bool(stopped)
