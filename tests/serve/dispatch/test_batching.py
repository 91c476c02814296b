"""How requests are joined: by measured times, deadlines, priority, form and length; and that everybody gets their own rows."""

from __future__ import annotations

import numpy as np
import pytest

from argosy.errors import DeadlineError
from argosy.serve.dispatch.batcher import CROWD, GATHER_TURNS
from argosy.serve.dispatch.plan import Plan
from argosy.serve.wire.frames import FORM_COUNTED, FORM_RAW, FORM_TENSORS
from tests.serve.dispatch.made_up import Asked, Front, Replica, join_rows
from tests.serve.dispatch.samples import RAGGED, SERVICE, TEXT, make_rows, make_text


def answer_crowd(front: Front, num_fronts: int) -> Replica:
    """Answer a batch of many requests, in one of so many fronts; returns the replica."""
    front.lane.num_fronts = num_fronts
    played = front.add("w0")
    front.put(*(Asked(front, make_rows(value)) for value in range(CROWD)))
    batch = played.take()
    played.answer(batch, join_rows(batch) * 2)
    return played


def ask_in_turns(front: Front, count: int) -> None:
    """Queue a request in each of the next turns of the loop."""
    front.lane.put(Asked(front, make_rows(count)))
    if count > 1:
        front.loop.call_soon(ask_in_turns, front, count - 1)


# sizes


def test_idle_replica_takes_all_that_waits() -> None:
    front = Front()
    front.put(*(Asked(front, make_rows(value)) for value in range(3)))
    played = front.add("w0")
    assert [len(x) for x in played.answer_all()] == [3]
    assert front.count_closed() == {"idle": 1}


def test_batch_has_no_more_rows_than_the_deployment_allows() -> None:
    front = Front()
    front.put(*(Asked(front, make_rows(value, rows=3)) for value in range(5)))
    played = front.add("w0")
    assert [len(x) for x in played.answer_all()] == [6, 6, 3]
    assert front.count_closed() == {"full": 2, "idle": 1}


def test_batch_is_no_larger_than_pays() -> None:
    # Each row takes as long as the first, from two on.
    times = ((1, 0, 0.010), (2, 0, 0.011), (4, 0, 0.022), (8, 0, 0.044))
    front = Front(service=times)
    front.put(*(Asked(front, make_rows(value)) for value in range(6)))
    played = front.add("w0")
    assert [len(x) for x in played.answer_all()] == [2, 2, 2]
    assert front.count_closed() == {"pays": 2, "idle": 1}


def test_size_that_pays_follows_what_batches_take() -> None:
    front = Front(service=((1, 0, 0.010), (2, 0, 0.011), (4, 0, 0.022), (8, 0, 0.044)))
    assert front.lane.plan.limit == 2
    played = front.add("w0")
    # Larger ones have become cheap; one in 31 batches is larger than pays, which is how that is found out.
    sizes: list[int] = []
    for _ in range(200):
        front.put(*(Asked(front, make_rows(value)) for value in range(8)))
        while front.lane.num_open:
            batch = played.take()
            sizes.append(batch.num_rows)
            played.answer(batch, join_rows(batch) * 2, service_s=0.011)
    assert sizes[0] == 2
    assert sizes[-1] == 8


def test_second_batch_stands_ready_while_a_worker_runs_the_first() -> None:
    front = Front(service=((1, 0, 0.010), (2, 0, 0.011), (4, 0, 0.022), (8, 0, 0.044)))
    played = front.add("w0")
    front.put(*(Asked(front, make_rows(value)) for value in range(5)))
    assert [played.take().num_rows, played.take().num_rows] == [2, 2]
    assert front.lane.queued_rows == 1


def test_rows_that_wait_are_shared_among_idle_replicas() -> None:
    # A batch of the half would take 24 % longer by the row.
    front = Front(service=((1, 0, 0.010), (2, 0, 0.013), (4, 0, 0.021), (8, 0, 0.036)))
    played = [front.add(f"w{index}") for index in range(2)]
    front.put(*(Asked(front, make_rows(value)) for value in range(8)))
    assert [each.take().num_rows for each in played] == [4, 4]
    assert front.count_closed() == {"shared": 1, "idle": 1}


def test_each_replica_of_a_slow_model_has_a_batch_ready() -> None:
    # From two rows on, a row takes nearly as long whatever the batch.
    times = ((1, 0, 0.010), (2, 0, 0.018), (4, 0, 0.034), (8, 0, 0.066))
    front = Front(service=times)
    played = [front.add(f"w{index}") for index in range(2)]
    front.put(*(Asked(front, make_rows(value)) for value in range(8)))
    first = [each.take() for each in played]
    second = [each.take() for each in played]
    assert [batch.num_rows for batch in (*first, *second)] == [2, 2, 2, 2]
    assert front.count_closed() == {"shared": 3, "idle": 1}
    # Under more load they are as large as pays.
    front.put(*(Asked(front, make_rows(value)) for value in range(40)))
    for each, batch in zip(played, first, strict=True):
        each.answer(batch, join_rows(batch) * 2, service_s=times[1][2])
        front.loop.spin()
    assert [each.take().num_rows for each in played] == [8, 8]


def test_model_that_became_fast_is_not_shared_out_any_more() -> None:
    plan = Plan()
    plan.configure(((1, 0, 0.010), (2, 0, 0.018), (4, 0, 0.034), (8, 0, 0.066)), 8, can_join=True)
    plan.share_out(8, num_slots=4)
    assert plan.limit == 2
    for number in range(64 * 5):
        rows = 1 << number % 4
        plan.learn(FORM_TENSORS, rows, 0, 10e-6 * rows)
    assert plan.limit == 8


def test_rows_of_a_fast_model_stay_together() -> None:
    front = Front(service=((1, 0, 10e-6), (2, 0, 12e-6), (4, 0, 14e-6), (8, 0, 20e-6)))
    played = [front.add(f"w{index}") for index in range(2)]
    front.put(*(Asked(front, make_rows(value)) for value in range(8)))
    rows = [each.take().num_rows for each in played if each.num_in_flight]
    assert rows == [8]


@pytest.mark.parametrize(("num_fronts", "expected"), [(1, [1, 4]), (2, [5])])
def test_where_fronts_share_the_cores_the_next_turns_join_a_large_batch(num_fronts: int, expected: list[int]) -> None:
    front = Front(max_batch_rows=64)
    played = answer_crowd(front, num_fronts)
    ask_in_turns(front, 5)
    front.loop.spin()
    assert [len(x) for x in played.answer_all()] == expected


def test_requests_do_not_wait_for_ever_for_others() -> None:
    front = Front(max_batch_rows=64)
    played = answer_crowd(front, num_fronts=2)
    ask_in_turns(front, 40)
    front.loop.spin()
    assert played.take().num_rows == 1 + GATHER_TURNS


def test_rows_that_must_not_be_joined_run_alone() -> None:
    front = Front(can_join=False)
    front.put(*(Asked(front, make_rows(value, rows)) for value, rows in enumerate((1, 3, 1))))
    played = front.add("w0")
    assert [len(x) for x in played.answer_all()] == [1, 3, 1]
    assert front.count_closed() == {"single": 2, "idle": 1}


# deadlines


def test_batch_that_would_come_too_late_is_split() -> None:
    front = Front(service=tuple((rows, 0, 0.1 + 0.1 * rows) for rows in (1, 2, 4, 8)))
    calm = [Asked(front, make_rows(value)) for value in range(6)]
    tight = Asked(front, make_rows(9), timeout_s=0.45)
    front.put(*calm, tight)
    played = front.add("w0")
    batches = played.answer_all()
    # Three rows take 0.4 s, four would take 0.5 s.
    assert [x[:, 0].tolist() for x in batches] == [[9, 0, 1], [2, 3, 4, 5]]
    assert front.count_closed() == {"deadline": 1, "idle": 1}
    assert all(len(call.answers) == 1 and not call.errors for call in (*calm, tight))


def test_request_that_cannot_make_it_is_refused_before_it_runs() -> None:
    front = Front(service=((1, 0, 0.5), (2, 0, 0.6)))
    hopeless, other = Asked(front, make_rows(1), timeout_s=0.4), Asked(front, make_rows(2))
    front.put(hopeless, other)
    played = front.add("w0")
    assert [x[:, 0].tolist() for x in played.answer_all()] == [[2]]
    assert [type(error) for error in hopeless.errors] == [DeadlineError]
    assert "its model takes about 0.500 s" in str(hopeless.errors[0])
    assert len(other.answers) == 1


def test_time_that_was_measured_too_long_is_forgotten() -> None:
    front = Front(service=((1, 0, 0.5), (2, 0, 0.6)))
    played = front.add("w0")
    for _ in range(100):
        call = Asked(front, make_rows(1), timeout_s=0.4)
        front.put(call)
        if not call.errors:
            break
    played.answer_all(service_s=0.01)
    assert len(call.answers) == 1


def test_request_that_waits_is_refused_when_its_deadline_passes() -> None:
    front = Front()
    played = front.add("w0", num_slots=1)
    front.put(Asked(front, make_rows(1)))
    running = played.take()
    front.put(late := Asked(front, make_rows(2), timeout_s=0.5), patient := Asked(front, make_rows(3), timeout_s=5.0))
    for passed_s, is_refused in ((0.4, False), (0.2, True)):
        front.clock.now_s += passed_s
        front.lane.expire(front.clock())
        assert bool(late.errors) == is_refused
    assert [type(error) for error in late.errors] == [DeadlineError]
    assert "0.500 s passed" in str(late.errors[0])
    assert (front.lane.queued_rows, front.lane.num_open) == (1, 2)
    played.answer(running, join_rows(running))
    assert [x[:, 0].tolist() for x in played.answer_all()] == [[3]]
    assert (len(patient.answers), late.answers) == (1, [])


def test_client_of_a_slow_batch_does_not_wait_beyond_its_deadline() -> None:
    front = Front()
    played = front.add("w0", num_slots=1)
    front.put(tight := Asked(front, make_rows(1), timeout_s=0.5), calm := Asked(front, make_rows(2)))
    batch = played.take()
    front.clock.now_s += 0.6
    front.lane.expire(front.clock())
    assert [type(error) for error in tight.errors] == [DeadlineError]
    # The worker is at it still: no other batch may be taken for a dead one's.
    assert (front.lane.num_open, played.num_in_flight) == (2, 1)
    played.answer(batch, join_rows(batch) * 2)
    assert (tight.answers, len(tight.errors), len(calm.answers)) == ([], 1, 1)
    assert front.lane.num_open == 0


def test_request_of_a_client_that_left_is_dropped() -> None:
    front = Front(can_join=False)
    played = front.add("w0", num_slots=1)
    front.put(*(asked := [Asked(front, make_rows(value)) for value in range(6)]))
    for call in asked[1:5]:
        call.is_done = True
    front.lane.expire(front.clock())
    assert (front.lane.queued_rows, front.lane.num_open) == (1, 2)
    assert [x[0, 0] for x in played.answer_all()] == [0, 5]


# priority


def test_urgent_request_goes_first_and_a_low_one_last() -> None:
    front = Front(can_join=False)
    front.put(*(Asked(front, make_rows(p), priority=p) for p in (3, 0, 1, 2, 9)))
    played = front.add("w0")
    assert [x[0, 0] for x in played.answer_all()] == [1, 0, 2, 3, 9]


def test_old_request_goes_before_an_urgent_one() -> None:
    front = Front(can_join=False, timeout_s=4.0)
    old = Asked(front, make_rows(5), waited_s=1.5)
    front.put(old, Asked(front, make_rows(1), priority=1), Asked(front, make_rows(2), waited_s=0.5))
    played = front.add("w0")
    # A step of priority is worth a quarter of the timeout, 1 s.
    assert [x[0, 0] for x in played.answer_all()] == [5, 1, 2]


def test_requests_of_all_priorities_share_a_batch() -> None:
    front = Front()
    front.put(*(Asked(front, make_rows(p), priority=p) for p in (3, 0, 1, 2)))
    played = front.add("w0")
    assert [x[:, 0].tolist() for x in played.answer_all()] == [[1, 0, 2, 3]]


# forms


def test_requests_of_different_forms_are_never_joined() -> None:
    front = Front(signature=TEXT, can_pad=True, service=SERVICE)
    asked = [
        Asked(front, make_rows(1, length=4)),
        Asked(front, make_text(b"abcd"), form=FORM_RAW),
        Asked(front, make_text(b"efgh", b"ijk"), form=FORM_COUNTED),
        Asked(front, make_text(b"lmno"), form=FORM_RAW),
    ]
    front.put(*asked)
    played = front.add("w0")
    forms: list[int] = []
    for _ in range(3):
        batch = played.take()
        forms.append(batch.form)
        y = np.full((batch.num_rows, 4), batch.form, np.float32)
        counts = [np.arange(batch.num_rows, dtype=np.int64)] if batch.form == FORM_COUNTED else []
        played.answer(batch, y, *counts)
    assert forms == [FORM_TENSORS, FORM_RAW, FORM_COUNTED]
    assert [[output.tolist() for output in call.answers[0]] for call in asked] == [
        [[[0.0] * 4]],
        [[[1.0] * 4]],
        [[[2.0] * 4] * 2, [0, 1]],
        [[[1.0] * 4]],
    ]


def test_texts_are_not_joined_where_padding_moves_answers() -> None:
    front = Front(signature=TEXT, can_pad=False)
    front.put(*(Asked(front, make_text(text), form=FORM_RAW) for text in (b"ab", b"cd", b"ef")))
    played = front.add("w0")
    for _ in range(3):
        batch = played.take()
        assert batch.num_rows == 1
        played.answer(batch, np.zeros((1, 4), np.float32))
    assert front.lane.num_open == 0


# lengths


def test_length_that_costs_more_padding_than_joining_saves_runs_apart() -> None:
    front = Front(signature=RAGGED, can_pad=True, service=SERVICE, max_batch_rows=64)
    front.put(*(Asked(front, make_rows(value, length=value)) for value in (20, 8, 100, 22, 9, 101)))
    played = front.add("w0")
    assert [sorted(x[:, 0].tolist()) for x in played.answer_all()] == [[20, 22], [8, 9], [100, 101]]
    assert front.count_closed() == {"shape": 2, "idle": 1}


def test_oldest_request_runs_next_whatever_its_length() -> None:
    front = Front(signature=RAGGED, can_pad=True, service=SERVICE)
    played = front.add("w0", num_slots=1)
    front.put(Asked(front, make_rows(0, length=8)))
    running = played.take()
    front.put(rare := Asked(front, make_rows(1, length=90), waited_s=0.001))
    front.put(*(Asked(front, make_rows(2, length=8)) for _ in range(20)))
    played.answer(running, join_rows(running))
    batch = played.take()
    assert join_rows(batch).shape == (1, 90)
    played.answer(batch, join_rows(batch))
    assert len(rare.answers) == 1


def test_unequal_lengths_are_not_joined_unless_padding_was_proved_harmless() -> None:
    front = Front(signature=RAGGED, can_pad=False)
    front.put(*(Asked(front, make_rows(length, length=length)) for length in (4, 5, 4)))
    played = front.add("w0")
    assert [x.shape for x in played.answer_all()] == [(2, 4), (1, 5)]
