"""Postgres connections that never wait for long: psycopg 3, through peewee's pool.

A stopped server keeps its connections open, and so does the system under it: nothing
but a deadline of our own ends the wait for its answer.
"""

from __future__ import annotations

import select
import threading
import time
from typing import Any

import psycopg
from peewee import OperationalError, Psycopg3Adapter
from playhouse.pool import MaxConnectionsExceeded, PooledPostgresqlDatabase
from psycopg.errors import _WaitTimeout
from psycopg.pq import TransactionStatus

from frontdesk.times import Deadline

STATEMENT_SECONDS = 4.0  # that one may take, where no deadline was set for several
CONNECT_SECONDS = 1.5  # to connect
CHECK_SECONDS = 1.0  # to find out whether an idle connection lives
FRESH_SECONDS = 1.0  # after its last use, while that check (a round trip) is left out
POOL_SECONDS = 1.0  # for a connection that another thread gives back
# A wait in vain for so long means that the server keeps silent: if it were alive, a
# lock would have ended with an error by then (SERVER_TIMEOUTS).
SILENT_SECONDS = 3.5
REST_SECONDS = 2.0  # after that: nobody else waits meanwhile
# The server ends, too, what we have given up on; a lock may be somebody else's.
SERVER_TIMEOUTS = "SET lock_timeout = '3s'; SET statement_timeout = '60s'"

patience = Deadline()  # for Postgres


class Connection(psycopg.Connection[Any]):
    """A connection that is given up on when its server keeps silent."""

    pool: Pool | None = None
    used_at = 0.0  # of time.monotonic()

    def wait(self, gen: Any, interval: float = 0.1, timeout: Any = None) -> Any:
        """Wait for an answer; raises psycopg's OperationalError at the deadline."""
        seconds = patience.left(STATEMENT_SECONDS)
        try:
            return super().wait(gen, interval, seconds)
        except _WaitTimeout:
            self.pgconn.finish()  # an answer that comes now belongs to no statement
            if self.pool and seconds > SILENT_SECONDS:
                self.pool.fell_silent()
            raise psycopg.OperationalError("Postgres did not answer in time") from None

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> Any:  # it is private: pin psycopg
        # connect_timeout is whole seconds, and for each address of a host.
        deadline = time.monotonic() + min(CONNECT_SECONDS, patience.left())
        steps = super()._connect_gen(conninfo)
        try:
            step = next(steps)
            while True:
                ready = yield step
                if time.monotonic() > deadline:
                    raise psycopg.OperationalError("Postgres did not answer in time")
                step = steps.send(ready)
        except StopIteration as end:
            return end.value

    def has_ended(self) -> bool:
        """Tell whether it is closed, or may be: bytes are there that nobody asked for.

        That is how a server's end shows before any statement is sent.
        """
        if self.closed:
            return True
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))


class Adapter(Psycopg3Adapter):
    """What peewee asks of psycopg, without its own import (see frontdesk/__init__)."""

    txn_idle = TransactionStatus.IDLE
    txn_inerror = TransactionStatus.INERROR
    txn_unknown = TransactionStatus.UNKNOWN

    def check_driver(self) -> None:
        """Do nothing: it is there."""

    def connect(self, db: Any, **params: Any) -> Connection:
        """Connect by a URL."""
        connection = Connection.connect(db.database, autocommit=True, **params)
        connection.execute(SERVER_TIMEOUTS)
        connection.pool = db
        return connection


class Pool(PooledPostgresqlDatabase):  # type: ignore[misc]
    """A pool whose threads do not queue for a server that keeps silent.

    Who waited in vain tells the others: for some seconds they fail at once, then one
    of them asks again.
    """

    psycopg2_adapter = psycopg3_adapter = Adapter

    def __init__(self, url: str, threads: int) -> None:
        self._silent_until = 0.0  # of time.monotonic(); 0: it answers
        self._in_vain = False  # did the last thread wait for a connection in vain?
        self._asking = 0  # the thread that asks a silent server again
        super().__init__(
            url.replace("postgres://", "postgresql://", 1),  # peewee knows only this
            # Two threads are left for pages that need no database.
            max_connections=max(2, threads - 2),
            stale_timeout=300,
            timeout=POOL_SECONDS,
            # A host that vanished is noticed while nobody asks, too.
            keepalives_idle=30,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=10_000,  # ms
        )

    def connect(self, reuse_if_open: bool = False) -> bool:
        """Take a connection; raises OperationalError where there is none to be had."""
        if self._silent_until:
            if time.monotonic() < self._silent_until:
                raise OperationalError("Postgres keeps silent")
            self._asking = threading.get_ident()
            self._silent_until = time.monotonic() + REST_SECONDS
        # After a wait in vain nobody waits, until a connection comes back.
        self._wait_timeout = None if self._in_vain else POOL_SECONDS
        try:
            opened = bool(super().connect(reuse_if_open))
        except MaxConnectionsExceeded:
            self._in_vain = True
            raise OperationalError("all connections to Postgres are busy") from None
        self._in_vain = False
        return opened

    def _connect(self) -> Any:
        # Who comes here has waited for the pool's lock: in vain, if it fell silent.
        if self._silent_until and self._asking != threading.get_ident():
            raise psycopg.OperationalError("Postgres keeps silent")
        started = time.monotonic()
        try:
            connection = super()._connect()
        except psycopg.OperationalError:
            self._silent_until = 0.0
            if time.monotonic() - started > CHECK_SECONDS * 0.9:  # not refused: silence
                self.fell_silent()
            raise
        self._silent_until = 0.0
        return connection

    def _can_reuse(self, conn: Connection) -> bool:
        conn.used_at = time.monotonic()
        return bool(super()._can_reuse(conn))

    def _is_closed(self, conn: Connection) -> bool:
        started = time.monotonic()
        if started - conn.used_at < FRESH_SECONDS and not conn.has_ended():
            return False
        with patience.within(min(CHECK_SECONDS, patience.left())):
            closed = bool(super()._is_closed(conn))
        if closed and time.monotonic() - started > CHECK_SECONDS * 0.9:
            raise psycopg.OperationalError("Postgres keeps silent")
        return closed

    def fell_silent(self) -> None:
        """Let nobody else wait for some time."""
        self._asking = 0
        self._silent_until = time.monotonic() + REST_SECONDS
