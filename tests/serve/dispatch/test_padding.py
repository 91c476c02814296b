"""Rows of different lengths and forms over a link: padded, answered, cut; and replies that do not fit them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.errors import ModelError
from argosy.serve.wire.frames import FORM_COUNTED, FORM_TENSORS, HEADER, Kind
from tests.serve.dispatch.played import Asked, Front, Played
from tests.serve.dispatch.samples import RAGGED, SERVICE, TEXT, make_rows, make_text


def put(front: Front, *asked: Asked) -> None:
    """Queue requests in one turn of the loop."""
    for call in asked:
        front.lane.put(call)
    front.spin()


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


@pytest.mark.parametrize(
    "answer",
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
def test_counted_answer_that_lacks_its_count_fails_its_batch(make_front: Any, answer: Any) -> None:
    front = make_front(signature=TEXT, can_pad=True)
    put(front, call := Asked(front, make_text(b"a", b"b"), form=FORM_COUNTED))
    played = Played(front, "w0")
    played.answer(played.take(), answer(np.zeros((2, 4), np.float32)))
    assert front.lost == []
    assert call.answers == []
    assert [type(error) for error in call.errors] == [ModelError]


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


def test_reply_of_another_length_fails_its_batch(make_front: Any) -> None:
    front = make_front(signature=RAGGED, can_pad=True, service=SERVICE)
    put(front, *(asked := [Asked(front, make_rows(1, length=length)) for length in (4, 5)]))
    played = Played(front, "w0")
    played.answer(played.take(), [np.zeros((2, 4), np.float32)])
    # Each runs again alone, and is answered.
    answer_all(front, played)
    for call, length in zip(asked, (4, 5), strict=True):
        np.testing.assert_array_equal(call.answers[0][0], make_rows(2, length=length))
    assert front.lost == []


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
