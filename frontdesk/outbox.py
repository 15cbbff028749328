"""The delivery loop: takes what is due, hands it over, tries again or gives up.

It is told from outside what there is to deliver (a Queue) and how (one handler for
each kind); how a handler can fail is said by the exceptions here.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from frontdesk.database import Database, StorageError
from frontdesk.places import place_of

log = logging.getLogger("frontdesk")

# First try at once, then after these seconds, three days in all, then never again.
BACKOFF = (5, 15, 60, 300, 900, 1800, 3600, 7200, *[14400] * 6, *[28800] * 6)
LEASE = 60  # seconds, longer than the worst attempt: two requests
REST = 9  # times the work of a delivery: a tenth of a core is its share
MAX_REST = 0.1  # seconds, for who waits for the end
QUIET = 1  # seconds without a visitor, after which no rest is needed
PAUSE = 20  # seconds between tries while Mailjet refuses our keys
IDLE = 30  # seconds between looks for what another worker left due
TROUBLE = 5  # seconds to wait when the database does not answer
MAX_RETRY_AFTER = 3600


class Refused(Exception):
    """It will never be taken."""


class KeysRefused(Exception):
    """Our keys are not taken: the owner's trouble, nothing is lost."""


class TryLater(Exception):
    """The network or the other side is in trouble.

    retry_after: the least seconds to wait.
    """

    def __init__(self, reason: str, retry_after: float = 0) -> None:
        super().__init__(reason)
        self.retry_after = min(retry_after, MAX_RETRY_AFTER)


class NoAnswer(TryLater):
    """Nobody is there, for this delivery as for the next one."""


class Claimed(Protocol):
    """A delivery that is leased to this outbox."""

    id: Any
    kind: Any
    ref: Any
    attempts: Any

    def done(self, now: float) -> None:
        """Forget it: it was taken."""

    def put_back(self, due_at: float | None, error: str, attempts: int) -> None:
        """Try again at a time, or never (None)."""


class Queue(Protocol):
    """Where deliveries come from."""

    def claim(self, now: float, seconds: float) -> Any:
        """Lease the delivery that is due for longest (a Claimed), or return None."""

    def next_due(self) -> float | None:
        """Return when the next delivery is due, None when there is none."""


Handler = Callable[[str], None]  # of what a delivery refers to


class Outbox:
    """Delivers what the database holds, in a thread of each worker.

    Workers and machines share the rows by leases: who dies with one leaves it to the
    others when the lease ends.

    handlers: for each kind of delivery what hands it over, given the delivery's ref;
    it raises Refused, KeysRefused or TryLater.
    rounds: done after each drain (they know themselves how often there is work).
    sleep: how to rest for some seconds.
    """

    def __init__(
        self,
        database: Database,
        queue: Queue,
        handlers: Mapping[str, Handler],
        rounds: Sequence[Callable[[float], None]] = (),
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._database = database
        self._queue = queue
        self._handlers = handlers
        self._rounds = rounds
        self._clock = clock
        self._sleep = sleep
        self._visitor_at = -math.inf  # of time.monotonic()
        self._wake = threading.Event()
        self._stopping = False
        self._give_up_at = 0.0  # of time.monotonic()
        self._thread: threading.Thread | None = None
        self._holding: Claimed | None = None
        self.paused_until = 0.0

    def visitor_came(self) -> None:
        """Say that this process is serving a visitor."""
        self._visitor_at = time.monotonic()

    def nudge(self) -> None:
        """Say that something may be due."""
        if self._clock() >= self.paused_until:
            self._wake.set()

    def start(self) -> None:
        """Start delivering in the background; again is harmless."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="outbox", daemon=True
            )
            self._thread.start()

    def stop(self, seconds: float) -> None:
        """Finish the delivery under way, or hand it back when that takes too long.

        A second call waits for no more than what the first one has left.
        """
        if not self._stopping:
            self._give_up_at = time.monotonic() + seconds
            self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(max(0.0, self._give_up_at - time.monotonic()))
            held = self._holding
            if self._thread.is_alive() and held is not None:
                self._database.enter()
                held.put_back(self._clock(), "handed back", held.attempts - 1)

    def _run(self) -> None:
        self._database.enter()
        while not self._stopping:
            self._wake.clear()
            try:
                self.drain()
                # After: a clean-up that fails must keep no mail waiting.
                self.go_round()
                wait = self._seconds_to_next()
            except StorageError as error:
                log.error("outbox: database trouble (%s)", type(error).__name__)
                wait = TROUBLE
            except Exception as error:
                log.error("outbox: %s", place_of(error))
                wait = IDLE
            finally:
                self._database.release()
            self._wake.wait(wait)
        self._database.hang_up()

    def _seconds_to_next(self) -> float:
        now = self._clock()
        due = max(self._queue.next_due() or now + IDLE, self.paused_until)
        return min(max(due - now, 0.0), IDLE)

    def go_round(self) -> None:
        """Do what is to be done from time to time."""
        self._database.enter()
        for work in self._rounds:
            work(self._clock())

    def drain(self) -> None:
        """Deliver everything that is due."""
        self._database.enter()
        while not self._stopping:
            # 1. Look whether anything is due, without a write.
            now, due_at = self._clock(), self._queue.next_due()
            if now < self.paused_until or due_at is None or now < due_at:
                return
            # 2. Lease the oldest; another worker may have been faster.
            delivery = self._queue.claim(now, LEASE)
            if delivery is None:
                continue
            # 3. Hand it over, and write down what became of it.
            self._holding = delivery
            started = time.thread_time()
            self._deliver(delivery)
            self._holding = None
            # 4. Rest while there are visitors: they share the interpreter's lock.
            if time.monotonic() - self._visitor_at < QUIET:
                self._sleep(min(REST * (time.thread_time() - started), MAX_REST))

    def _deliver(self, delivery: Claimed) -> None:
        try:
            self._handlers[delivery.kind](delivery.ref)
        except KeysRefused as error:
            now = self._clock()
            self.paused_until = now + PAUSE
            log.error("outbox: paused, %s: check the Mailjet keys", error)
            # Due at once: this thread waits, and a restart with better keys does not.
            delivery.put_back(now, str(error), delivery.attempts - 1)
        except TryLater as error:
            if isinstance(error, NoAnswer):
                self.paused_until = self._clock() + BACKOFF[0]
            self._later(delivery, str(error), error.retry_after)
        except Refused as error:
            self._bury(delivery, str(error))
        except StorageError:
            raise
        except Exception as error:
            log.error("outbox: %s %s, %s", delivery.kind, delivery.id, place_of(error))
            self._later(delivery, type(error).__name__, 0)
        else:
            delivery.done(self._clock())

    def _later(self, delivery: Claimed, reason: str, retry_after: float) -> None:
        if delivery.attempts > len(BACKOFF):
            self._bury(delivery, f"{reason}, for three days")
            return
        wait = max(BACKOFF[delivery.attempts - 1], retry_after)
        log.warning("outbox: %s %s later, %s", delivery.kind, delivery.id, reason)
        delivery.put_back(self._clock() + wait, reason, delivery.attempts)

    def _bury(self, delivery: Claimed, reason: str) -> None:
        log.error("outbox: %s %s is dead, %s", delivery.kind, delivery.id, reason)
        delivery.put_back(None, reason, delivery.attempts)
