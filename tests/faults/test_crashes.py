"""A 200 is a promise: what was acknowledged outlives every kind of end."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.conftest import (
    NO_LIMITS,
    Load,
    call,
    contact,
    deliver_rest,
    eventually,
    raw,
    read_all,
    rows,
    size,
    workers,
)
from tests.support.mailjet import Answer, StandIn, success
from tests.support.server import Server, mail_settings

HALF_A_BODY = (
    b"POST /contact HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100\r\n\r\n{"
)


def assert_kept(folder: Path, load: Load) -> None:
    """Nothing acknowledged is missing, nothing is half written."""
    assert rows(folder, "PRAGMA integrity_check") == [("ok",)]
    stored = {row[0] for row in rows(folder, "SELECT id FROM message")}
    assert set(load.ids) <= stored
    half = (
        "SELECT count(*) FROM message WHERE mailed_at IS NULL AND id NOT IN "
        "(SELECT ref FROM delivery WHERE kind = 'contact')"
    )
    assert rows(folder, half) == [(0,)]
    counted = rows(folder, "SELECT coalesce(sum(hits), 0) FROM page")[0][0]
    assert load.acknowledged("/hits") <= counted <= load.tried["/hits"]
    for pages in ("page <> '*'", "page = '*'"):  # each page's, and the whole site's
        sql = f"SELECT coalesce(sum(hits), 0) FROM hit WHERE {pages}"
        assert rows(folder, sql) == [(counted,)]


def assert_all_mailed(folder: Path, mailjet: StandIn, duplicates: int) -> None:
    """Everything stored is mailed, and hardly anything twice."""
    url = f"sqlite:///{folder}/frontdesk.db"
    deliver_rest(url, folder / "frontdesk.db", mailjet)
    times = Counter(mail["CustomID"] for mail in mailjet.mails)
    stored = [row[0] for row in rows(folder, "SELECT id FROM message")]
    assert set(times) == set(stored)
    assert times.total() - len(times) <= duplicates


def test_killed_workers_lose_nothing_acknowledged(
    serve: Callable[..., Server], mailjet: StandIn, tmp_path: Path
) -> None:
    kills = size(5, 20)
    server = serve(WEB_CONCURRENCY="2", **NO_LIMITS, **mail_settings(mailjet))
    with Load(server, clients=8) as load:
        for _ in range(kills):
            goal = len(load.ids) + size(60, 300)
            eventually(lambda goal=goal: len(load.ids) >= goal)
            os.kill(random.choice(workers(server)), signal.SIGKILL)
            eventually(lambda: len(workers(server)) == 2)
    assert server.stop() == 0
    assert_kept(tmp_path, load)
    assert load.failures == {}
    assert_all_mailed(tmp_path, mailjet, duplicates=kills)
    print(
        f"{kills} kills, {load.answers.total()} posts acknowledged at "
        f"{load.answers.total() / load.seconds:.0f}/s, {len(load.unanswered)} "
        f"unanswered; {len(load.ids)} messages, {len(mailjet.mails)} mails"
    )


def test_sigterm_to_all_processes_loses_nothing_acknowledged(
    serve: Callable[..., Server], mailjet: StandIn, tmp_path: Path
) -> None:
    slowest = 0.0
    ids: list[str] = []
    for _ in range(size(5, 20)):
        server = serve(WEB_CONCURRENCY="2", **NO_LIMITS, **mail_settings(mailjet))
        with Load(server, pause=0.07) as load:
            goal = size(10, 100)
            eventually(lambda load=load, goal=goal: len(load.ids) >= goal)
            started = time.monotonic()
            assert server.stop(15) == 0
            slowest = max(slowest, time.monotonic() - started)
        ids += load.ids
        assert load.failures == {}
        assert "Traceback" not in server.log
    stored = {row[0] for row in rows(tmp_path, "SELECT id FROM message")}
    assert set(ids) <= stored
    assert_all_mailed(tmp_path, mailjet, duplicates=0)
    print(f"out within {slowest:.1f} s, {len(ids)} acknowledged")


def test_a_request_under_way_at_sigterm_is_answered(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(**NO_LIMITS)
    for _ in range(20):  # what has ended must not count for what is under way
        assert call(server, "POST", *contact(), Connection="close")[0] == 200
    body = b'{"email": "ada@example.com", "message": "Late"}'
    head = HALF_A_BODY.replace(b"100", str(len(body)).encode())
    with raw(server, head) as sock:
        assert call(server, "GET", "/health")[0] == 200  # so the other one is in
        os.killpg(server.process.pid, signal.SIGTERM)
        server.wait_for_log("Handling signal: term")
        sock.sendall(body[1:])
        assert read_all(sock).startswith(b"HTTP/1.1 200")
    assert server.process.wait(15) == 0
    late = "SELECT count(*) FROM message WHERE message = 'Late'"
    assert rows(tmp_path, late) == [(1,)]


@pytest.mark.parametrize("slow_clients", size([8], [8, 0]))
def test_sigterm_hands_back_while_mailjet_hangs(
    serve: Callable[..., Server], mailjet: StandIn, tmp_path: Path, slow_clients: int
) -> None:
    hanging = threading.Event()
    mailjet.answer = lambda request: Answer(hang=hanging)
    server = serve(WEB_CONCURRENCY="2", **NO_LIMITS, **mail_settings(mailjet))
    try:
        for _ in range(3):
            assert call(server, "POST", *contact())[0] == 200
        for _ in range(40):  # what has ended must not count for what is under way
            assert call(server, "GET", "/", Connection="close")[0] == 200
        mailjet.wait(1)
        with ExitStack() as stack:
            for data in (b"", b"P", HALF_A_BODY[:40], HALF_A_BODY):
                for _ in range(slow_clients // 4):
                    stack.enter_context(raw(server, data))
            # Connections are accepted in their order: answered, so those are in.
            assert call(server, "GET", "/health")[0] == 200
            started = time.monotonic()
            assert server.stop(15) == 0
            seconds = time.monotonic() - started
        assert seconds < 12  # the workers ended by themselves, before graceful_timeout
        waiting = "SELECT count(*) FROM delivery WHERE due_at <= {} AND lease IS NULL"
        assert rows(tmp_path, waiting.format(time.time() + 6)) == [(3,)]
    finally:
        hanging.set()
    mailjet.requests.clear()
    mailjet.answer = success
    assert_all_mailed(tmp_path, mailjet, duplicates=0)
    print(f"out within {seconds:.1f} s")


def test_reloading_under_load_fails_no_request(
    serve: Callable[..., Server], mailjet: StandIn, tmp_path: Path
) -> None:
    server = serve(WEB_CONCURRENCY="2", **NO_LIMITS, **mail_settings(mailjet))
    with Load(server, pause=0.03) as load:
        for _ in range(3):
            old = set(workers(server))
            server.process.send_signal(signal.SIGHUP)
            eventually(
                lambda old=old: len(new := workers(server)) == 2 and not old & {*new}
            )
        goal = len(load.ids) + 20
        eventually(lambda: len(load.ids) >= goal)
    assert load.failures == {}
    assert load.unanswered == []
    assert server.stop() == 0
    assert_kept(tmp_path, load)
    assert_all_mailed(tmp_path, mailjet, duplicates=0)
