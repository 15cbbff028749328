"""The delivery loop: takes what is due, hands it over, tries again or gives up.

It is told from outside how to hand over each kind of delivery (a handler); how that
can fail is said by the exceptions here.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module

from frontdesk.database import Database, StorageError
from frontdesk.deliveries import Delivery
from frontdesk.places import place_of
from frontdesk.times import Deadline

log = logging.getLogger("frontdesk")

# First try at once, then after these seconds, three days in all, then never again.
BACKOFF = (5, 15, 60, 300, 900, 1800, 3600, 7200, *[14400] * 6, *[28800] * 6)
REST = 9  # times the work of a delivery: a tenth of a core is its share
MAX_REST = 0.1  # seconds, for who waits for the end
LOAD_REST = 19  # times the work of loading something
QUIET = 1  # seconds without a visitor, after which no rest is needed
PAUSE = 20  # seconds between tries while Mailjet refuses our keys
ROUND_SECONDS = 60  # for the work of a round, on Postgres
IDLE = 30  # seconds between looks for what another worker left due
TROUBLE = 5  # seconds to wait when the database does not answer
MAX_RETRY_AFTER = 3600
# For the delivery under way, at the process's end: Apache kills after three.
STOP_SECONDS = 2
# Within a request (OUTBOX=request), after its answer:
MOST_AT_ONCE = 5
REQUEST_SECONDS = 5  # for all of them
LAST_SECONDS = 2  # of which no new one is begun

patience = Deadline()  # for deliveries within a request, which waits for Mailjet


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


Handler = Callable[[str], None]  # of what a delivery refers to


class Outbox:
    """Delivers what the database holds: in a thread of each process, or in requests.

    Workers and machines share the rows by leases: who dies with one leaves it to the
    others when the lease ends.

    handlers: for each kind of delivery what hands it over, given the delivery's ref;
    it raises Refused, KeysRefused or TryLater.
    rounds: done after each drain (they know themselves how often there is work).
    sleep: how to rest for some seconds.
    in_requests: no thread is ever started; see Delivering.
    loads: what the first requests would have to load, one after the other; the thread
    does it while nobody waits.
    modules: what the first delivery imports, one after the other.
    """

    def __init__(
        self,
        database: Database,
        handlers: Mapping[str, Handler],
        rounds: Sequence[Callable[[float], None]] = (),
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        in_requests: bool = False,
        loads: Iterable[Callable[[], object]] = (),
        modules: Iterable[str] = (),
    ) -> None:
        self.in_requests = in_requests
        self._loads = list(loads)
        self._modules = [] if in_requests else list(modules)
        self._look_at = 0.0  # of clock()
        self._alone = threading.Lock()
        self._pid = 0  # of the process that has the thread
        self._database = database
        self._handlers = handlers
        self._rounds = rounds
        self._clock = clock
        self._sleep = sleep
        self._visitor_at = -math.inf  # of time.monotonic()
        self._wake = threading.Event()
        self._stopping = False
        self._give_up_at = 0.0  # of time.monotonic()
        self._thread: threading.Thread | None = None
        self._holding: Delivery | None = None
        self.paused_until = 0.0

    def visitor_came(self) -> None:
        """Say that this process is serving a visitor."""
        self._visitor_at = time.monotonic()

    def nudge(self) -> None:
        """Say that something may be due."""
        if not self.is_paused():
            self._wake.set()

    def is_paused(self) -> bool:
        """Tell whether nothing is tried, since Mailjet refuses our keys or is away."""
        now = self._clock()
        return now < self.paused_until <= now + PAUSE  # else the clock was wrong

    def start(self) -> None:
        """Start delivering in the background; again is harmless.

        A thread does not survive a fork: each process starts its own.
        """
        if self._pid == os.getpid() or self.in_requests or self._stopping:
            return
        with self._alone:
            if self._pid != os.getpid():
                self._wake = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, name="outbox", daemon=True
                )
                self._thread.start()
                atexit.register(self.stop, STOP_SECONDS)
                self._pid = os.getpid()

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
        # uWSGI ends its workers in whichever thread the signal comes to: not this one.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._database.enter()
        while not self._stopping:
            until = time.monotonic() + self._work()
            while (left := until - time.monotonic()) > 0:
                rest = self._load_next() if self._loads else left
                if self._wake.wait(min(rest, left)):
                    break
        self._database.hang_up()

    def _load_next(self) -> float:
        """Load the next of what is used soon; return the seconds to rest after it.

        A twentieth of a core at most: the cheapest plans have a tenth.
        """
        if self._is_visited():
            return QUIET
        started = time.thread_time()
        try:
            self._loads.pop(0)()
        except Exception as error:  # who needs it will meet it again, and answer
            log.error("outbox: %s", place_of(error))
        finally:
            self._database.release()
        return LOAD_REST * (time.thread_time() - started)

    def _is_visited(self) -> bool:
        return time.monotonic() - self._visitor_at < QUIET

    def _work(self) -> float:
        """Deliver what is due, go round; return how many seconds may pass then."""
        self._wake.clear()
        try:
            self.drain()
            # After: a clean-up that fails must keep no mail waiting.
            self.go_round()
            return self._seconds_to_next()
        except StorageError as error:
            log.error("outbox: database trouble (%s)", type(error).__name__)
            return TROUBLE
        except Exception as error:
            log.error("outbox: %s", place_of(error))
            return IDLE
        finally:
            self._database.release()

    def deliver_now(self) -> None:
        """Deliver what is due within a request, for some seconds at most.

        One thread of a process at a time: the others have visitors to serve. What they
        have stored meanwhile is delivered by that one, too.
        """
        now = self._clock()
        is_time = self._wake.is_set() or not self._look_at - IDLE <= now < self._look_at
        with patience.within(REQUEST_SECONDS):
            while is_time and self._alone.acquire(blocking=False):
                try:
                    self._look_at = self._clock() + self._work()
                finally:
                    self._alone.release()
                is_time = self._wake.is_set() and patience.left() > LAST_SECONDS

    def _seconds_to_next(self) -> float:
        now = self._clock()
        due = Delivery.next_due() or now + IDLE
        if self.is_paused():
            due = max(due, self.paused_until)
        return min(max(due - now, 0.0), IDLE)

    def go_round(self) -> None:
        """Do what is to be done from time to time."""
        left = patience.left(ROUND_SECONDS)
        if left == 0:  # the next request will have some
            return
        self._database.enter(left)
        for work in self._rounds:
            work(self._clock())

    def _has_time(self, done: int) -> bool:
        left = patience.left()
        return left == math.inf or (left > LAST_SECONDS and done < MOST_AT_ONCE)

    def drain(self) -> None:
        """Deliver everything that is due, or what there is time for."""
        self._database.enter()
        Delivery.bring_forward(self._clock())
        done = 0
        while not self._stopping and self._has_time(done):
            # 1. Look whether anything is due, without a write.
            now, due_at = self._clock(), Delivery.next_due()
            if self.is_paused() or due_at is None or now < due_at:
                return
            self._import_bit_by_bit()
            # 2. Lease the oldest; another worker may have been faster.
            delivery = Delivery.claim(now)
            if delivery is None:
                continue
            # 3. Hand it over, and write down what became of it.
            self._holding = delivery
            started = time.thread_time()
            self._deliver(delivery)
            self._holding = None
            done += 1
            # 4. Rest while there are visitors: they share the interpreter's lock.
            if self._is_visited() and not self.in_requests:
                self._sleep(min(REST * (time.thread_time() - started), MAX_REST))

    def _import_bit_by_bit(self) -> None:
        """Import what the first delivery needs, and give others their time between.

        A plan of a tenth of a core lets a process that has used its share wait, with
        all its threads: after each import we rest as long as we were kept waiting.
        """
        while self._modules and not self._stopping:
            began, worked = time.monotonic(), time.thread_time()
            import_module(self._modules.pop(0))
            worked = time.thread_time() - worked
            self._sleep(max(0.0, time.monotonic() - began - worked))

    def _deliver(self, delivery: Delivery) -> None:
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

    def _later(self, delivery: Delivery, reason: str, retry_after: float) -> None:
        if delivery.attempts > len(BACKOFF):
            self._bury(delivery, f"{reason}, for three days")
            return
        wait = max(BACKOFF[delivery.attempts - 1], retry_after)
        log.warning("outbox: %s %s later, %s", delivery.kind, delivery.id, reason)
        delivery.put_back(self._clock() + wait, reason, delivery.attempts)

    def _bury(self, delivery: Delivery, reason: str) -> None:
        log.error("outbox: %s %s is dead, %s", delivery.kind, delivery.id, reason)
        delivery.bury(self._clock(), reason)


class Delivering:
    """An answer whose close() delivers; a server calls it after the end (PEP 3333)."""

    def __init__(self, parts: Iterable[bytes], outbox: Outbox) -> None:
        self._parts = parts
        self._outbox = outbox

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def close(self) -> None:
        """Close the answer itself, then deliver."""
        try:
            if hasattr(self._parts, "close"):
                self._parts.close()
        finally:
            self._outbox.deliver_now()
