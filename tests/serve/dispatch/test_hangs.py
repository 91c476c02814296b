"""When a worker hangs: far longer at a batch than such a one takes, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from argosy.errors import UnavailableError
from argosy.serve.dispatch.admit import Admit
from argosy.serve.dispatch.link import Held
from tests.serve.dispatch.made_up import Asked
from tests.serve.dispatch.played import Front, Played

UNKNOWN_S = 30.0


@pytest.fixture
def front() -> Iterator[Front]:
    # A batch of one row takes 0.5 s, of eight rows 1 s.
    made = Front(service=((1, 0, 0.5), (8, 0, 1.0)))
    yield made
    assert made.faults == []
    made.close()


def ask(front: Front, rows: int, timeout_s: float) -> Asked:
    call = Asked(front, np.ones((rows, 4), np.float32), timeout_s=timeout_s)
    front.lane.put(call)
    front.spin()
    return call


def watch(front: Front, played: Played, seconds: int = 0) -> Held | None:
    """What a front knows after so many seconds, at each of which it looks."""
    held = played.link.watch(front.clock(), UNKNOWN_S)
    for _ in range(seconds):
        front.clock.now_s += 1.0
        front.lane.expire(front.clock())
        held = played.link.watch(front.clock(), UNKNOWN_S)
    return held


def test_batch_that_is_waited_for_is_not_given_up_however_long_it_takes(front: Front) -> None:
    played = Played(front, "w0")
    ask(front, 1, timeout_s=100.0)
    assert watch(front, played, 50) == Held(50.0, is_given_up=False)
    # But it may hang, and readiness says so.
    assert not front.lane.is_ready
    assert watch(front, played, 51) == Held(101.0, is_given_up=True)


@pytest.mark.parametrize("end", ["deadline", "client"])
def test_batch_that_nobody_waits_for_is_given_up_after_twenty_times_its_time(front: Front, end: str) -> None:
    played = Played(front, "w0")
    call = ask(front, 1, timeout_s=3.0)
    if end == "client":
        call.is_done = True
    assert watch(front, played, 10) == Held(10.0, is_given_up=False)
    assert watch(front, played, 1) == Held(11.0, is_given_up=True)


def test_quick_batch_is_given_up_after_two_seconds() -> None:
    front = Front(service=((1, 0, 1e-4),))
    played = Played(front, "w0")
    ask(front, 1, timeout_s=1.0)
    assert watch(front, played, 2) == Held(2.0, is_given_up=False)
    assert watch(front, played, 1) == Held(3.0, is_given_up=True)
    front.close()


def test_batch_of_which_nothing_was_measured_is_given_up_after_the_time_that_the_settings_say() -> None:
    front = Front()
    played = Played(front, "w0")
    ask(front, 1, timeout_s=20.0)
    assert watch(front, played, 5) == Held(5.0, is_given_up=False)
    assert front.lane.is_ready
    assert watch(front, played, 24) == Held(29.0, is_given_up=False)
    # That it may be right is no reason to send more requests here.
    assert not front.lane.is_ready
    assert watch(front, played, 2) == Held(31.0, is_given_up=True)
    front.close()


def test_time_that_a_batch_waited_behind_another_is_not_its_own(front: Front) -> None:
    played = Played(front, "w0")
    slow = ask(front, 8, timeout_s=100.0)
    batch = played.take()
    left = ask(front, 8, timeout_s=1.0)
    assert len(played.link.batches_in_flight) == 2
    watch(front, played, 15)
    played.reply(batch, batch.x * 2)
    assert (len(slow.answers), len(left.errors)) == (1, 1)
    assert watch(front, played, 10) == Held(10.0, is_given_up=False)
    assert watch(front, played, 10) == Held(20.0, is_given_up=True)


def test_idle_worker_is_at_nothing(front: Front) -> None:
    played = Played(front, "w0")
    call = ask(front, 1, timeout_s=1.0)
    batch = played.take()
    played.reply(batch, batch.x * 2)
    assert call.answers
    assert watch(front, played, 100) is None
    assert front.lane.is_ready


def test_lane_that_no_replica_is_expected_for_refuses_at_once() -> None:
    front = Front(is_down=True)
    admit = Admit(front.counters, 1 << 20, 1)
    for priority in (0, 1):
        call = Asked(front, np.ones((1, 4), np.float32), priority=priority)
        with pytest.raises(UnavailableError) as caught:
            admit.submit(call)
        assert caught.value.status == 503
    # One that is there all the same answers.
    played = Played(front, "w0")
    call = Asked(front, np.ones((1, 4), np.float32))
    admit.submit(call)
    front.spin()
    batch = played.take()
    played.reply(batch, batch.x * 2)
    assert call.answers
    front.close()


def test_lane_whose_workers_cannot_be_linked_refuses_at_once_until_one_is(front: Front) -> None:
    (waiting,) = front.ask(1)
    for worker in [f"w{number}" for number in range(4)] * 2:
        assert waiting.errors == []
        front.router.lose_link(worker)
    assert [error.status for error in waiting.errors] == [503]
    admit = Admit(front.counters, 1 << 20, 1)
    with pytest.raises(UnavailableError):
        admit.submit(Asked(front, np.ones((1, 4), np.float32)))
    played = Played(front, "w2")
    (call,) = front.ask(2)
    batch = played.take()
    played.reply(batch, batch.x * 2)
    assert call.answers
