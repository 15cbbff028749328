"""Mailed links: only ours, each for its own purpose, and some for ever."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any

import pytest

from frontdesk.tables import DAY
from mail import CONFIRM_SECONDS
from tests.faults.conftest import size
from tests.support.desk import Desk

PATHS = {
    "confirm": "/newsletter/confirm/",
    "unsubscribe": "/newsletter/unsubscribe/",
    "not-me": "/newsletter/not-me/",
    "release": "/release/",
}
NEW, OLD = "n" * 32, "o" * 32


def tokens(desk: Desk) -> dict[str, str]:
    """Return a token of each purpose, as they are mailed."""
    desk.post("/newsletter", {"email": "bob@example.com"})
    form = {"email": "ada@example.com", "message": "Hello", "_gotcha": "x"}
    desk.post("/contact", form)
    desk.drain()
    desk.clock.advance(DAY)
    desk.app.outbox.go_round()
    text = "\n".join(mail["TextPart"] for mail in desk.drain())
    urls = [word for word in text.split() if word.startswith("https://desk.example/")]
    return {
        purpose: url.removeprefix("https://desk.example").removeprefix(path)
        for purpose, path in PATHS.items()
        for url in urls
        if path in url
    }


def state(desk: Desk) -> Any:
    messages = [(m["id"], m["held"]) for m in desk.messages()]
    return messages, [(s["email"], s["status"]) for s in desk.subscribers()]


def mutated(dice: random.Random, token: str) -> str:
    """Return another token: a character changed, gone, doubled, swapped or more."""
    alphabet = string.ascii_letters + string.digits + "-_.=~!é\ud800"
    result = token
    while result == token:
        at = dice.randrange(len(token))
        result = dice.choice(
            [
                token[:at] + dice.choice(alphabet) + token[at + 1 :],
                token[:at] + token[at + 1 :],
                token[:at] + dice.choice(alphabet) + token[at:],
                token[:at],
                token[at:],
                token + dice.choice(alphabet),
                token[:at] + token[at:].swapcase(),
                ".".join(dice.sample(token.split("."), 3)),
            ]
        )
    return result


def test_mutated_tokens_open_nothing(desk: Desk) -> None:
    good = tokens(desk)
    assert set(good) == set(PATHS)
    before = state(desk)
    dice = random.Random(4)
    for _ in range(size(150, 5000)):
        for purpose, token in good.items():
            bad = mutated(dice, token).encode(errors="surrogatepass")
            path = PATHS[purpose] + "".join(f"%{byte:02X}" for byte in bad)
            method = dice.choice(["GET", "POST"])
            answer = desk.client.simulate_request(method, path)
            assert answer.status_code == 404, (purpose, bad)
    assert state(desk) == before


@pytest.mark.parametrize("door", PATHS)
@pytest.mark.parametrize("purpose", [*PATHS, "ask"])
def test_a_token_opens_its_own_door_only(desk: Desk, purpose: str, door: str) -> None:
    good = tokens(desk)
    form = {"email": "ada@example.com", "message": "Hello http://a.example http://b.co"}
    page = desk.client.simulate_post(
        "/contact", params=form, headers={"Accept": "text/html"}
    )
    good["ask"] = page.text.partition('name="_frontdesk" value="')[2].partition('"')[0]
    before = state(desk)
    answer = desk.client.simulate_get(PATHS[door] + good[purpose])
    assert answer.status_code == (200 if purpose == door else 404)
    answer = desk.client.simulate_post(PATHS[door] + good[purpose])
    assert answer.status_code == (200 if purpose == door else 404)
    assert (state(desk) == before) == (purpose != door)


def test_keys_rotate_without_breaking_links(make_desk: Callable[..., Desk]) -> None:
    old = tokens(make_desk(secret_keys=(OLD,)))
    both = make_desk(secret_keys=(NEW, OLD))
    for purpose, token in old.items():
        assert both.client.simulate_get(PATHS[purpose] + token).status_code == 200
    both.post("/newsletter", {"email": "eve@example.com"})
    new = both.drain()[-1]["Headers"]["List-Unsubscribe"].strip("<>")
    path = new.removeprefix("https://desk.example")
    only_new = make_desk(secret_keys=(NEW,))
    assert only_new.client.simulate_get(path).status_code == 200
    for purpose, token in old.items():
        assert only_new.client.simulate_get(PATHS[purpose] + token).status_code == 404


def test_an_unsubscribe_link_works_after_five_years(desk: Desk) -> None:
    good = tokens(desk)
    assert desk.post(PATHS["confirm"] + good["confirm"], {}).status_code == 200
    for _ in range(10):
        desk.clock.advance(DAY * 365 / 2)
        desk.app.outbox.go_round()
    answer = desk.client.simulate_post(
        PATHS["unsubscribe"] + good["unsubscribe"], body="List-Unsubscribe=One-Click"
    )
    assert answer.status_code == 200
    assert [row["status"] for row in desk.subscribers()] == ["left"]


@pytest.mark.parametrize("late, status", [(0, 200), (1, 410)])
def test_a_confirmation_link_expires_to_the_second(
    desk: Desk, late: int, status: int
) -> None:
    desk.post("/newsletter", {"email": "bob@example.com"})
    [mail] = desk.drain()
    urls = [word for word in mail["TextPart"].split() if PATHS["confirm"] in word]
    desk.clock.advance(CONFIRM_SECONDS + late)
    answer = desk.post(urls[0].removeprefix("https://desk.example"), {})
    assert answer.status_code == status


def test_a_clock_two_seconds_behind_takes_a_fresh_link(desk: Desk) -> None:
    good = tokens(desk)
    desk.clock.advance(-DAY - 2)
    for purpose, token in good.items():
        assert desk.client.simulate_get(PATHS[purpose] + token).status_code == 200
