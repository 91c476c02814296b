"""How requests are joined: by measured times, deadlines, priority, form and length; and that everybody gets their own rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.errors import DeadlineError
from argosy.serve.dispatch.batcher import CROWD, GATHER_TURNS
from argosy.serve.dispatch.plan import Plan
from argosy.serve.wire.frames import FORM_COUNTED, FORM_RAW, FORM_TENSORS, HEADER, Kind
from argosy.signature import Preprocess, Ragged, RaggedInput, Signature, TensorSpec
from tests.serve.dispatch.played import Asked, Front, Played

RAGGED = Signature(
    (TensorSpec("x", "FP32", (-1, -1)),),
    (TensorSpec("y", "FP32", (-1, -1)),),
    ragged=Ragged({"x": RaggedInput(1, pad=-7.0)}, {"y": 1}),
)
# A batch costs 16 ms, and each place of a row 1 ms: joining may cost 4 places of padding.
SERVICE = tuple((rows, length, 0.016 + 0.001 * rows * length) for rows, length in ((1, 8), (2, 8), (4, 8), (1, 16), (1, 4)))


def make_rows(value: float, rows: int = 1, length: int = 4) -> np.ndarray:
    return np.full((rows, length), value, np.float32)


def put(front: Front, *asked: Asked) -> None:
    """Queue requests in one turn of the loop."""
    for call in asked:
        front.lane.put(call)
    front.spin()


def answer_crowd(front: Front, num_fronts: int) -> Played:
    """Answer a batch of many requests, in one of so many fronts; returns the replica."""
    front.lane.num_fronts = num_fronts
    played = Played(front, "w0")
    put(front, *(Asked(front, make_rows(value)) for value in range(CROWD)))
    batch = played.take()
    played.answer(batch, [batch.x * 2])
    return played


def ask_in_turns(front: Front, count: int) -> None:
    """Queue a request in each of the next turns of the loop."""
    front.lane.put(Asked(front, make_rows(count)))
    if count > 1:
        front.loop.call_soon(ask_in_turns, front, count - 1)


def answer_all(front: Front, played: Played, service_s: float = 1e-6) -> list[np.ndarray]:
    """Answer y = 2 x until nothing is open; the batches in their order."""
    batches: list[np.ndarray] = []
    while front.lane.num_open:
        batch = played.take()
        batches.append(batch.x)
        played.answer(batch, [batch.x * 2], service_s)
    return batches


def closed(front: Front) -> dict[str, int]:
    """Why batches were closed."""
    return {reason: count for reason, count in front.counters.summarize(0)["closed"].items() if count}


@pytest.fixture
def open_fronts() -> Iterator[list[Front]]:
    fronts: list[Front] = []
    yield fronts
    for front in fronts:
        assert front.faults == []
        front.close()


@pytest.fixture
def make_front(open_fronts: list[Front]) -> Any:
    def make(**fields: Any) -> Front:
        front = Front(**fields)
        open_fronts.append(front)
        return front

    return make


# sizes


def test_idle_replica_takes_all_that_waits(make_front: Any) -> None:
    front = make_front()
    put(front, *(Asked(front, make_rows(value)) for value in range(3)))
    played = Played(front, "w0")
    assert [len(x) for x in answer_all(front, played)] == [3]
    assert closed(front) == {"idle": 1}


def test_batch_has_no_more_rows_than_the_deployment_allows(make_front: Any) -> None:
    front = make_front()
    put(front, *(Asked(front, make_rows(value, rows=3)) for value in range(5)))
    played = Played(front, "w0")
    assert [len(x) for x in answer_all(front, played)] == [6, 6, 3]
    assert closed(front) == {"full": 2, "idle": 1}


def test_batch_is_no_larger_than_pays(make_front: Any) -> None:
    # Each row takes as long as the first, from two on.
    times = ((1, 0, 0.010), (2, 0, 0.011), (4, 0, 0.022), (8, 0, 0.044))
    front = make_front(service=times)
    put(front, *(Asked(front, make_rows(value)) for value in range(6)))
    played = Played(front, "w0")
    assert [len(x) for x in answer_all(front, played)] == [2, 2, 2]
    assert closed(front) == {"pays": 2, "idle": 1}


def test_size_that_pays_follows_what_batches_take(make_front: Any) -> None:
    front = make_front(service=((1, 0, 0.010), (2, 0, 0.011), (4, 0, 0.022), (8, 0, 0.044)))
    assert front.lane.plan.limit == 2
    played = Played(front, "w0")
    # Larger ones have become cheap; one in 31 batches is larger than pays, which is how that is found out.
    sizes: list[int] = []
    for _ in range(200):
        put(front, *(Asked(front, make_rows(value)) for value in range(8)))
        while front.lane.num_open:
            batch = played.take()
            sizes.append(batch.rows)
            played.answer(batch, [batch.x * 2], 0.011)
    assert sizes[0] == 2
    assert sizes[-1] == 8


def test_second_batch_stands_ready_while_a_worker_runs_the_first(make_front: Any) -> None:
    front = make_front(service=((1, 0, 0.010), (2, 0, 0.011), (4, 0, 0.022), (8, 0, 0.044)))
    played = Played(front, "w0")
    put(front, *(Asked(front, make_rows(value)) for value in range(5)))
    assert [played.take().rows, played.take().rows] == [2, 2]
    assert front.lane.queued_rows == 1


def test_rows_that_wait_are_shared_among_idle_replicas(make_front: Any) -> None:
    # A batch of the half would take 24 % longer by the row.
    front = make_front(service=((1, 0, 0.010), (2, 0, 0.013), (4, 0, 0.021), (8, 0, 0.036)))
    played = [Played(front, f"w{index}") for index in range(2)]
    put(front, *(Asked(front, make_rows(value)) for value in range(8)))
    assert [each.take().rows for each in played] == [4, 4]
    assert closed(front) == {"shared": 1, "idle": 1}


def test_each_replica_of_a_slow_model_has_a_batch_ready(make_front: Any) -> None:
    # From two rows on, a row takes nearly as long whatever the batch.
    times = ((1, 0, 0.010), (2, 0, 0.018), (4, 0, 0.034), (8, 0, 0.066))
    front = make_front(service=times)
    played = [Played(front, f"w{index}") for index in range(2)]
    put(front, *(Asked(front, make_rows(value)) for value in range(8)))
    first = [each.take() for each in played]
    second = [each.take() for each in played]
    assert [batch.rows for batch in (*first, *second)] == [2, 2, 2, 2]
    assert closed(front) == {"shared": 3, "idle": 1}
    # Under more load they are as large as pays.
    put(front, *(Asked(front, make_rows(value)) for value in range(40)))
    for each, batch in zip(played, first, strict=True):
        each.answer(batch, [batch.x * 2], times[1][2])
        front.spin()
    assert [each.take().rows for each in played] == [8, 8]


def test_model_that_became_fast_is_not_shared_out_any_more() -> None:
    plan = Plan()
    plan.configure(((1, 0, 0.010), (2, 0, 0.018), (4, 0, 0.034), (8, 0, 0.066)), 8, can_join=True)
    plan.share_out(8, num_slots=4)
    assert plan.limit == 2
    for number in range(64 * 5):
        rows = 1 << number % 4
        plan.learn(FORM_TENSORS, rows, 0, 10e-6 * rows)
    assert plan.limit == 8


def test_rows_of_a_fast_model_stay_together(make_front: Any) -> None:
    front = make_front(service=((1, 0, 10e-6), (2, 0, 12e-6), (4, 0, 14e-6), (8, 0, 20e-6)))
    played = [Played(front, f"w{index}") for index in range(2)]
    put(front, *(Asked(front, make_rows(value)) for value in range(8)))
    rows = [each.take().rows for each in played if each.link.num_in_flight]
    assert rows == [8]


@pytest.mark.parametrize(("num_fronts", "expected"), [(1, [1, 4]), (2, [5])])
def test_where_fronts_share_the_cores_the_next_turns_join_a_large_batch(
    make_front: Any, num_fronts: int, expected: list[int]
) -> None:
    front = make_front(max_batch_rows=64)
    played = answer_crowd(front, num_fronts)
    ask_in_turns(front, 5)
    front.spin()
    assert [len(x) for x in answer_all(front, played)] == expected


def test_requests_do_not_wait_for_ever_for_others(make_front: Any) -> None:
    front = make_front(max_batch_rows=64)
    played = answer_crowd(front, num_fronts=2)
    ask_in_turns(front, 40)
    front.spin()
    assert played.take().rows == 1 + GATHER_TURNS


def test_rows_that_must_not_be_joined_run_alone(make_front: Any) -> None:
    front = make_front(can_join=False)
    put(front, *(Asked(front, make_rows(value, rows)) for value, rows in enumerate((1, 3, 1))))
    played = Played(front, "w0")
    assert [len(x) for x in answer_all(front, played)] == [1, 3, 1]
    assert closed(front) == {"single": 2, "idle": 1}


# deadlines


def test_batch_that_would_come_too_late_is_split(make_front: Any) -> None:
    front = make_front(service=tuple((rows, 0, 0.1 + 0.1 * rows) for rows in (1, 2, 4, 8)))
    calm = [Asked(front, make_rows(value)) for value in range(6)]
    tight = Asked(front, make_rows(9), timeout_s=0.45)
    put(front, *calm, tight)
    played = Played(front, "w0")
    batches = answer_all(front, played)
    # Three rows take 0.4 s, four would take 0.5 s.
    assert [x[:, 0].tolist() for x in batches] == [[9, 0, 1], [2, 3, 4, 5]]
    assert closed(front) == {"deadline": 1, "idle": 1}
    assert all(len(call.answers) == 1 and not call.errors for call in (*calm, tight))


def test_request_that_cannot_make_it_is_refused_before_it_runs(make_front: Any) -> None:
    front = make_front(service=((1, 0, 0.5), (2, 0, 0.6)))
    hopeless, other = Asked(front, make_rows(1), timeout_s=0.4), Asked(front, make_rows(2))
    put(front, hopeless, other)
    played = Played(front, "w0")
    assert [x[:, 0].tolist() for x in answer_all(front, played)] == [[2]]
    assert [type(error) for error in hopeless.errors] == [DeadlineError]
    assert "its model takes about 0.500 s" in str(hopeless.errors[0])
    assert len(other.answers) == 1


def test_time_that_was_measured_too_long_is_forgotten(make_front: Any) -> None:
    front = make_front(service=((1, 0, 0.5), (2, 0, 0.6)))
    played = Played(front, "w0")
    for _ in range(100):
        call = Asked(front, make_rows(1), timeout_s=0.4)
        put(front, call)
        if not call.errors:
            break
    answer_all(front, played, service_s=0.01)
    assert len(call.answers) == 1


# priority


def test_urgent_request_goes_first_and_a_low_one_last(make_front: Any) -> None:
    front = make_front(can_join=False)
    put(front, *(Asked(front, make_rows(p), priority=p) for p in (3, 0, 1, 2, 9)))
    played = Played(front, "w0")
    assert [x[0, 0] for x in answer_all(front, played)] == [1, 0, 2, 3, 9]


def test_old_request_goes_before_an_urgent_one(make_front: Any) -> None:
    front = make_front(can_join=False, timeout_s=4.0)
    old = Asked(front, make_rows(5), waited_s=1.5)
    put(front, old, Asked(front, make_rows(1), priority=1), Asked(front, make_rows(2), waited_s=0.5))
    played = Played(front, "w0")
    # A step of priority is worth a quarter of the timeout, 1 s.
    assert [x[0, 0] for x in answer_all(front, played)] == [5, 1, 2]


def test_requests_of_all_priorities_share_a_batch(make_front: Any) -> None:
    front = make_front()
    put(front, *(Asked(front, make_rows(p), priority=p) for p in (3, 0, 1, 2)))
    played = Played(front, "w0")
    assert [x[:, 0].tolist() for x in answer_all(front, played)] == [[1, 0, 2, 3]]


# forms


TEXT = Signature(
    (TensorSpec("x", "FP32", (-1, -1)),),
    (TensorSpec("y", "FP32", (-1, 4)),),
    ragged=Ragged({"x": RaggedInput(1)}),
    preprocess=(Preprocess("text", "text", ("x",), {"tokenizer": "tokenizer.json"}),),
)


def make_text(*items: bytes) -> np.ndarray:
    return np.array(items, dtype=object)


def test_requests_of_different_forms_are_never_joined(make_front: Any) -> None:
    front = make_front(signature=TEXT, can_pad=True, service=SERVICE)
    asked = [
        Asked(front, make_rows(1, length=4)),
        Asked(front, make_text(b"abcd"), form=FORM_RAW),
        Asked(front, make_text(b"efgh", b"ijk"), form=FORM_COUNTED),
        Asked(front, make_text(b"lmno"), form=FORM_RAW),
    ]
    put(front, *asked)
    played = Played(front, "w0")
    forms: list[int] = []
    for _ in range(3):
        batch = played.take()
        forms.append(batch.form)
        y = np.full((batch.rows, 4), batch.form, np.float32)
        counts = [np.arange(batch.rows, dtype=np.int64)] if batch.form == FORM_COUNTED else []
        played.answer(batch, [y, *counts])
    assert forms == [FORM_TENSORS, FORM_RAW, FORM_COUNTED]
    assert [[output.tolist() for output in call.answers[0]] for call in asked] == [
        [[[0.0] * 4]],
        [[[1.0] * 4]],
        [[[2.0] * 4] * 2, [0, 1]],
        [[[1.0] * 4]],
    ]


@pytest.mark.parametrize(
    "lie",
    [
        lambda y: [y],
        lambda y: [y, np.zeros(3, np.int64)],
        lambda y: [y, np.zeros((2, 1), np.int64)],
        lambda y: [y, np.zeros(2, np.float32)],
        lambda y: [np.zeros(2, np.int64)],
        lambda y: [],
        lambda y: [y, y, np.zeros(2, np.int64)],
    ],
    ids=["no_count", "more_rows", "shape", "type", "count_alone", "nothing", "output_twice"],
)
def test_counted_answer_that_lacks_its_count_is_a_lie(make_front: Any, lie: Any) -> None:
    front = make_front(signature=TEXT, can_pad=True)
    put(front, call := Asked(front, make_text(b"a", b"b"), form=FORM_COUNTED))
    played = Played(front, "w0")
    played.answer(played.take(), lie(np.zeros((2, 4), np.float32)))
    assert front.lost == ["w0"]
    assert call.answers == []


def test_texts_are_not_joined_where_padding_moves_answers(make_front: Any) -> None:
    front = make_front(signature=TEXT, can_pad=False)
    put(front, *(Asked(front, make_text(text), form=FORM_RAW) for text in (b"ab", b"cd", b"ef")))
    played = Played(front, "w0")
    for _ in range(3):
        batch = played.take()
        assert batch.rows == 1
        played.answer(batch, [np.zeros((1, 4), np.float32)])
    assert front.lane.num_open == 0


# lengths


def test_shorter_rows_are_padded_and_their_answers_cut(make_front: Any) -> None:
    front = make_front(signature=RAGGED, can_pad=True, service=SERVICE)
    asked = [Asked(front, make_rows(value, rows, length)) for value, rows, length in ((1, 1, 5), (2, 2, 7), (3, 1, 6))]
    put(front, *asked)
    played = Played(front, "w0")
    (x,) = answer_all(front, played)
    pad = [-7.0] * 2
    assert sorted(x.tolist()) == sorted([[1.0] * 5 + pad, [2.0] * 7, [2.0] * 7, [3.0] * 6 + pad[:1]])
    for call, value, rows, length in zip(asked, (1, 2, 3), (1, 2, 1), (5, 7, 6), strict=True):
        np.testing.assert_array_equal(call.answers[0][0], make_rows(2 * value, rows, length))
    assert front.counters.summarize(0)["padding_share"] == pytest.approx(3 / 28)


def test_length_that_costs_more_padding_than_joining_saves_runs_apart(make_front: Any) -> None:
    front = make_front(signature=RAGGED, can_pad=True, service=SERVICE, max_batch_rows=64)
    put(front, *(Asked(front, make_rows(value, length=value)) for value in (20, 8, 100, 22, 9, 101)))
    played = Played(front, "w0")
    assert [sorted(x[:, 0].tolist()) for x in answer_all(front, played)] == [[20, 22], [8, 9], [100, 101]]
    assert closed(front) == {"shape": 2, "idle": 1}


def test_oldest_request_runs_next_whatever_its_length(make_front: Any) -> None:
    front = make_front(signature=RAGGED, can_pad=True, service=SERVICE)
    played = Played(front, "w0", num_credits=1)
    put(front, Asked(front, make_rows(0, length=8)))
    running = played.take()
    put(front, rare := Asked(front, make_rows(1, length=90), waited_s=0.001))
    put(front, *(Asked(front, make_rows(2, length=8)) for _ in range(20)))
    played.answer(running, [running.x])
    batch = played.take()
    assert batch.x.shape == (1, 90)
    played.answer(batch, [batch.x])
    assert len(rare.answers) == 1


def test_unequal_lengths_are_not_joined_unless_padding_was_proved_harmless(make_front: Any) -> None:
    front = make_front(signature=RAGGED, can_pad=False)
    put(front, *(Asked(front, make_rows(length, length=length)) for length in (4, 5, 4)))
    played = Played(front, "w0")
    assert [x.shape for x in answer_all(front, played)] == [(2, 4), (1, 5)]


def test_reply_of_another_length_is_a_lie(make_front: Any) -> None:
    front = make_front(signature=RAGGED, can_pad=True, service=SERVICE)
    put(front, *(Asked(front, make_rows(1, length=length)) for length in (4, 5)))
    played = Played(front, "w0")
    played.answer(played.take(), [np.zeros((2, 4), np.float32)])
    assert front.lost == ["w0"]


def test_one_long_row_does_not_blow_up_a_batch(make_front: Any) -> None:
    # Joining costs next to nothing by these times; 8 rows of 8 MiB would still be padded for one.
    front = make_front(signature=RAGGED, can_pad=True, service=((1, 8, 0.1), (2, 8, 0.1)), max_batch_rows=64)
    asked = [Asked(front, make_rows(value, length=1 if value else 4 << 20)) for value in range(12)]
    put(front, *asked)
    played = Played(front, "w0")
    batch = played.take()
    assert batch.x.nbytes <= 64 << 20
    assert closed(front) == {"bytes": 1}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_everybody_gets_their_own_rows(data: st.DataObject) -> None:
    front = Front(signature=RAGGED, can_pad=True, service=SERVICE, max_batch_rows=data.draw(st.integers(1, 9)))
    wanted = data.draw(
        st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(0, 4), st.booleans()), min_size=1, max_size=30)
    )
    asked = [Asked(front, make_rows(v, rows, n), priority=p) for v, (rows, n, p, _) in enumerate(wanted, start=1)]
    put(front, *asked[: len(asked) // 2])
    played = Played(front, "w0")
    put(front, *asked[len(asked) // 2 :])
    for call, (*_, is_gone) in zip(asked, wanted, strict=True):
        call.is_done = call.is_done or is_gone
    # A batch that fails is halved until the request at fault stands alone; one whose client left is no company.
    failures, failed = data.draw(st.integers(0, 3)), set[int]()
    while front.lane.num_open:
        batch = played.take()
        if failures and batch.rows > 2:
            failures -= 1
            waited_for = {value for value in map(int, batch.x[:, 0]) if not asked[value - 1].is_done}
            failed |= waited_for if len(waited_for) == 1 else set()
            played.say(HEADER.pack(Kind.ERROR, 0, batch.slot, 0, batch.sequence) + b"no")
        else:
            played.answer(batch, [batch.x * 2])
    for value, (call, (rows, length, _, is_gone)) in enumerate(zip(asked, wanted, strict=True), start=1):
        if is_gone:
            assert not call.answers
        elif not call.errors:
            np.testing.assert_array_equal(call.answers[0][0], make_rows(2 * value, rows, length))
        assert bool(call.answers) != bool(call.errors) or is_gone
        assert bool(call.errors) == (value in failed)
    assert (front.lane.queued_rows, front.lane.queued_bytes, front.faults) == (0, 0, [])
    front.close()


def test_times_of_a_new_table_replace_the_old(make_front: Any) -> None:
    front = make_front(service=((1, 0, 0.5),))
    table = front.table
    lane = msgspec.structs.replace(table.deployments[0].lanes[0], service=((1, 0, 0.1),))
    entry = msgspec.structs.replace(table.deployments[0], lanes=(lane,))
    front.router.apply(msgspec.structs.replace(table, epoch=2, deployments=(entry,)))
    assert front.lane.plan.times(FORM_TENSORS).estimate(1) == pytest.approx(0.1)
