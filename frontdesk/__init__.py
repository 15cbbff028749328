"""The parts: each does one thing, and knows nothing of the files above."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_psycopg() -> Iterator[None]:
    """Hide the Postgres driver from what is imported meanwhile.

    peewee and playhouse import it wherever it is installed: 150 ms and 12 MB that
    SQLite has no use for. postgres.py imports it itself.
    """
    if "psycopg" in sys.modules:
        yield
        return
    sys.modules["psycopg"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["psycopg"]


with without_psycopg():
    import peewee  # noqa: F401
