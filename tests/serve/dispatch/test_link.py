"""The front's end of a link: a worker that lies loses its link, and nobody gets another client's row."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.datatypes import OBJECT
from argosy.errors import FaultError, ModelError, PoisonError, UnavailableError
from argosy.serve.wire.frames import HEADER, NANOSECONDS, NO_ROOM, NO_ROOM_FOR_ANSWER, Kind
from tests.serve.dispatch.played import Batch, Front, Played
from tests.serve.wire.hostile import GROW, SEAL, SHRINK, U64, make_file


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def fill_gaps() -> list[int]:
    """Take descriptors until the next one is the highest of all, for a limit counts by their numbers."""
    taken = [os.dup(0)]
    while taken[-1] < max(int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists()):
        taken.append(os.dup(0))
    return taken


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front()
    yield made
    assert made.faults == []
    made.close()


def test_rows_of_a_joined_batch_go_to_their_own_requests(front: Front) -> None:
    played = Played(front, "w0")
    asked = front.ask(1, 2, 3)
    batch = played.take()
    np.testing.assert_array_equal(batch.x[:, 0], [1, 2, 3])
    played.reply(batch, batch.x * 10)
    assert [call.answers[0][0].tolist() for call in asked] == [[[10.0] * 4], [[20.0] * 4], [[30.0] * 4]]
    assert not played.is_cut_off
    assert front.lane.num_open == 0


ROW = np.ones((1, 4), np.float32)
NANS = NANOSECONDS.pack(1)
BAD_OUTPUTS: dict[str, Callable[[Played, Batch], None]] = {
    "no_output": lambda w, b: w.reply(b, ROW, copies=0),
    "output_twice": lambda w, b: w.reply(b, ROW, copies=2),
    "output_256_times": lambda w, b: w.reply(b, ROW, copies=256),
    "two_rows_for_one": lambda w, b: w.reply(b, np.ones((2, 4), np.float32)),
    "no_rows": lambda w, b: w.reply(b, np.ones((0, 4), np.float32)),
    "other_width": lambda w, b: w.reply(b, np.ones((1, 5), np.float32)),
    "other_rank": lambda w, b: w.reply(b, np.ones(4, np.float32)),
    "other_type": lambda w, b: w.reply(b, ROW.astype(np.float64)),
    "other_type_of_the_size": lambda w, b: w.reply(b, ROW.view(np.int32)),
    "text": lambda w, b: w.reply(b, ROW, code=OBJECT),
}
LIES: dict[str, Callable[[Played, Batch], None]] = {
    "unknown_type": lambda w, b: w.reply(b, ROW, code=200),
    "offset_past_the_arena": lambda w, b: w.reply(b, ROW, offset=1 << 40),
    "offset_wraps_around": lambda w, b: w.reply(b, ROW, offset=(1 << 64) - 8),
    "end_past_the_arena": lambda w, b: w.reply(b, ROW, offset=len(w.arenas[b.slot][1]) - 8),
    "fewer_bytes_than_the_shape": lambda w, b: w.reply(b, ROW, num_bytes=8),
    "more_bytes_than_the_shape": lambda w, b: w.reply(b, ROW, num_bytes=32),
    "dimension_of_64_bits": lambda w, b: w.reply(b, ROW, shape=((1 << 64) - 1, 4)),
    "product_wraps_around": lambda w, b: w.reply(b, ROW, shape=((1 << 62) + 1, 4)),
    "rank_17": lambda w, b: w.reply(b, ROW, shape=(1,) * 16 + (4,)),
    "unknown_slot": lambda w, b: w.reply(b, ROW, slot=2),
    "slot_65535": lambda w, b: w.reply(b, ROW, slot=65535),
    "slot_that_is_free": lambda w, b: w.reply(b, ROW, slot=1 - b.slot),
    "later_batch": lambda w, b: w.reply(b, ROW, sequence=b.sequence + 1),
    "earlier_batch": lambda w, b: w.reply(b, ROW, sequence=b.sequence - 1),
    "batch_of_64_bits": lambda w, b: w.reply(b, ROW, sequence=(1 << 64) - 1),
    "unknown_kind": lambda w, b: w.reply(b, ROW, kind=99),
    "kind_0": lambda w, b: w.reply(b, ROW, kind=0),
    "kind_of_a_front": lambda w, b: w.reply(b, ROW, kind=Kind.BATCH),
    "arena_of_a_front": lambda w, b: w.reply(b, ROW, kind=Kind.ARENA),
    "error_of_an_unknown_batch": lambda w, b: w.say(HEADER.pack(Kind.ERROR, 0, b.slot, 0, b.sequence + 7) + b"text"),
    "unsealed_descriptor": lambda w, b: w.reply(b, ROW, flags=1, fds=[make_file(0)]),
    "empty_descriptor": lambda w, b: w.reply(b, ROW, flags=1, fds=[make_file(GROW | SHRINK, size=0)]),
    "short_descriptor": lambda w, b: w.reply(b, ROW, flags=1, fds=[make_file(GROW | SHRINK, size=15)]),
    "descriptor_of_a_device": lambda w, b: w.reply(b, ROW, flags=1, fds=[os.open("/dev/zero", os.O_RDWR)]),
    "descriptor_of_a_socket": lambda w, b: w.reply(b, ROW, flags=1, fds=[socket.socket(socket.AF_UNIX).detach()]),
    "short_header": lambda w, b: w.say(HEADER.pack(Kind.REPLY, 0, b.slot, 1, b.sequence)[:-1]),
    "header_alone": lambda w, b: w.say(HEADER.pack(Kind.REPLY, 0, b.slot, 1, b.sequence)),
    "one_byte": lambda w, b: w.say(b"\4"),
    "cut_description": lambda w, b: w.say(HEADER.pack(Kind.REPLY, 0, b.slot, 1, b.sequence) + NANS + bytes(10)),
    "garbage": lambda w, b: w.say(bytes(range(256)) * 200),
    "zeros": lambda w, b: w.say(bytes(60_000)),
    "frame_longer_than_any": lambda w, b: w.say(HEADER.pack(Kind.REPLY, 0, b.slot, 1, b.sequence) + NANS + bytes(100_000)),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_worker_that_lies_loses_its_link_and_the_request_goes_to_another(
    front: Front, lie: Callable[[Played, Batch], None]
) -> None:
    liar = Played(front, "w0")
    (call,) = front.ask(7)
    lie(liar, liar.take())
    assert liar.is_cut_off
    assert front.lost == ["w0"]
    assert (call.answers, call.errors) == ([], [])
    honest = Played(front, "w1")
    batch = honest.take()
    np.testing.assert_array_equal(batch.x, np.full((1, 4), 7, np.float32))
    honest.reply(batch, batch.x * 2)
    assert [answer.tolist() for (answer,) in call.answers] == [[[14.0] * 4]]
    assert call.errors == []
    assert front.lane.num_open == 0


@pytest.mark.parametrize("reply", BAD_OUTPUTS.values(), ids=BAD_OUTPUTS)
def test_outputs_that_were_not_asked_for_fail_their_batch_alone(front: Front, reply: Callable[[Played, Batch], None]) -> None:
    played = Played(front, "w0")
    (bad,) = front.ask(1)
    batch = played.take()
    (good,) = front.ask(2)
    reply(played, batch)
    assert [type(error) for error in bad.errors] == [ModelError]
    batch = played.take()
    played.reply(batch, batch.x * 2)
    assert good.answers[0][0].tolist() == [[4.0] * 4]
    assert not played.is_cut_off
    assert front.lane.num_open == 0


def test_of_joined_rows_the_one_with_bad_outputs_fails_alone(front: Front) -> None:
    played = Played(front, "w0")
    asked = front.ask(*range(8))
    while front.lane.num_open:
        batch = played.take()
        played.reply(batch, np.ones((9, 4), np.float32) if 5 in batch.x else batch.x * 2)
    assert [len(call.answers) for call in asked] == [1, 1, 1, 1, 1, 0, 1, 1]
    assert [type(error) for error in asked[5].errors] == [ModelError]
    assert not played.is_cut_off


def test_output_whose_descriptor_did_not_arrive_is_refused_and_the_next_one_taken(front: Front) -> None:
    played = Played(front, "w0")
    (lost,) = front.ask(1)
    played.reply(played.take(), ROW, flags=1)
    assert [(type(error), error.status) for error in lost.errors] == [(UnavailableError, 503)]
    (call,) = front.ask(2)
    batch = played.take()
    played.reply(batch, batch.x * 2)
    assert call.answers[0][0].tolist() == [[4.0] * 4]
    assert not played.is_cut_off


def test_worker_without_room_for_an_arena_gets_it_anew_with_the_next_batch(front: Front) -> None:
    played = Played(front, "w0")
    (refused,) = front.ask(1)
    batch = played.take()
    del played.arenas[batch.slot]
    played.say(HEADER.pack(Kind.ERROR, NO_ROOM, batch.slot, 0, batch.sequence) + b"no memory")
    assert [error.status for error in refused.errors] == [503]
    (call,) = front.ask(2)
    batch = played.take()
    played.reply(batch, batch.x * 2)
    assert call.answers[0][0].tolist() == [[4.0] * 4]
    assert front.lane.num_open == 0


NO_ROOMS = {"not run": NO_ROOM, "run": NO_ROOM_FOR_ANSWER}


@pytest.mark.parametrize("how", NO_ROOMS)
@pytest.mark.parametrize("is_repeatable", [True, False], ids=["repeatable", "not repeatable"])
def test_batch_without_room_goes_to_another_worker_unless_it_ran_and_may_not_again(how: str, is_repeatable: bool) -> None:
    front = Front(is_repeatable=is_repeatable)
    narrow, other = Played(front, "w0"), Played(front, "w1")
    asked = front.ask(1, 2)
    batch = narrow.take()
    narrow.say(HEADER.pack(Kind.ERROR, NO_ROOMS[how], batch.slot, 0, batch.sequence) + b"no memory")
    if is_repeatable or how == "not run":
        batch = other.take()
        other.reply(batch, batch.x * 2)
        assert [call.answers[0][0].tolist() for call in asked] == [[[2.0] * 4], [[4.0] * 4]]
    else:
        assert [str(error) for call in asked for error in call.errors] == [str(asked[0].errors[0])] * 2
        assert "worker w0 has none (no memory)" in str(asked[0].errors[0])
    assert front.lane.num_open == 0
    front.close()


def test_batch_that_no_worker_has_room_for_is_refused_with_the_reason_of_the_last(front: Front) -> None:
    workers = [Played(front, name) for name in ("w0", "w1")]
    (call,) = front.ask(1)
    for worker in workers:
        batch = worker.take()
        worker.say(HEADER.pack(Kind.ERROR, NO_ROOM, batch.slot, 0, batch.sequence) + b"no memory")
    assert [error.status for error in call.errors] == [503]
    assert "worker w1 has none (no memory)" in str(call.errors[0])
    assert front.lane.num_open == 0


def test_batch_without_room_waits_for_another_worker_that_works_and_not_for_one_that_has_gone(front: Front) -> None:
    narrow, other = Played(front, "w0"), Played(front, "w1", num_credits=1)
    (first,) = front.ask(1)
    front.clock.now_s += 1.0
    (second,) = front.ask(2)
    refused, batch = narrow.take(), other.take()
    narrow.say(HEADER.pack(Kind.ERROR, NO_ROOM, refused.slot, 0, refused.sequence) + b"no memory")
    other.reply(batch, batch.x * 2)
    assert second.answers and not first.answers
    # It holds the first by now, and dies.
    other.sock.close()
    front.spin()
    batch = narrow.take()
    narrow.reply(batch, batch.x * 2)
    assert first.answers[0][0].tolist() == [[2.0] * 4]


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gaps = fill_gaps()
    # The loop takes two while it runs.
    resource.setrlimit(resource.RLIMIT_NOFILE, (gaps[-1] + 1 + 2, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in gaps:
            os.close(fd)


def test_batch_without_descriptors_for_its_arenas_is_refused_and_its_link_stays(front: Front) -> None:
    played = Played(front, "w0")
    with no_descriptors():
        (refused,) = front.ask(1)
    assert [(type(error), error.status) for error in refused.errors] == [(UnavailableError, 503)]
    assert "Too many open files" in str(refused.errors[0])
    (call,) = front.ask(2)
    batch = played.take()
    played.reply(batch, batch.x * 2)
    assert call.answers[0][0].tolist() == [[4.0] * 4]
    assert front.lane.num_open == 0


def test_batch_without_descriptors_for_larger_arenas_is_refused_and_smaller_ones_go_on(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("argosy.serve.dispatch.link.MIN_ARENA_BYTES", 16)
    played = Played(front, "w0", num_credits=1)
    (call,) = front.ask(1)
    batch = played.take()
    # They gather meanwhile.
    refused = front.ask(*range(2, 10))
    with no_descriptors():
        played.reply(batch, batch.x * 2)
        (small,) = front.ask(11)
        batch = played.take()
        played.reply(batch, batch.x * 2)
    assert {error.status for call in refused for error in call.errors} == {503}
    assert [each.answers[0][0].tolist() for each in (call, small)] == [[[2.0] * 4], [[22.0] * 4]]
    assert front.lane.num_open == 0


@pytest.mark.parametrize("lie", [name for name in LIES if "descriptor" in name])
def test_lies_leave_no_descriptor_behind(lie: str) -> None:
    gc.collect()  # a mapping holds a descriptor of its own
    before = count_descriptors()
    front = Front()
    liar = Played(front, "w0")
    front.ask(7)
    LIES[lie](liar, liar.take())
    assert liar.is_cut_off
    assert front.faults == []
    front.close()
    del front, liar
    gc.collect()
    assert count_descriptors() == before


def count_arenas() -> int:
    """Arenas that this process maps."""
    return Path("/proc/self/maps").read_text().count("argosy-arena")


def test_arenas_go_with_their_link_whatever_else_holds_it(front: Front) -> None:
    before = count_arenas()
    played = Played(front, "w0")
    front.ask(1)
    assert played.take().rows == 1
    assert count_arenas() == before + 4  # of inputs and outputs, here and at the worker's end
    played.arenas.clear()
    played.sock.close()
    front.spin()
    assert front.lost == ["w0"]
    assert count_arenas() == before


def test_request_that_two_workers_lied_about_is_refused(front: Front) -> None:
    (call,) = front.ask(7)
    for name in ("w0", "w1"):
        liar = Played(front, name)
        liar.reply(liar.take(), ROW, offset=1 << 40)
    assert call.answers == []
    assert [type(error) for error in call.errors] == [PoisonError]
    assert front.lost == ["w0", "w1"]
    assert front.lane.num_open == 0


@pytest.mark.parametrize("is_repeatable", [True, False], ids=["repeatable", "not repeatable"])
def test_request_that_dying_workers_have_not_looked_at_is_no_suspect(is_repeatable: bool) -> None:
    front = Front(is_repeatable=is_repeatable)
    first = Played(front, "w0")
    (call,) = front.ask(7)
    workers = [Played(front, f"w{number}") for number in range(1, 4)]
    for dying in (first, *workers[:2]):
        # It is there for the kernel, and does nothing any more.
        dying.sock.close()
        front.spin()
    assert front.lost == ["w0", "w1", "w2"]
    batch = workers[2].take()
    workers[2].reply(batch, batch.x * 2)
    assert (call.errors, call.answers[0][0].tolist()) == ([], [[14.0] * 4])
    assert front.lane.num_open == 0
    front.close()


def test_request_that_two_dying_workers_have_read_is_refused(front: Front) -> None:
    (call,) = front.ask(7)
    for name in ("w0", "w1"):
        dying = Played(front, name)
        dying.take()
        dying.sock.close()
        front.spin()
    assert [type(error) for error in call.errors] == [PoisonError]


def test_request_that_may_not_run_twice_is_refused_at_once() -> None:
    front = Front(is_repeatable=False)
    liar = Played(front, "w0")
    (call,) = front.ask(7)
    liar.reply(liar.take(), ROW, offset=1 << 40)
    assert [type(error) for error in call.errors] == [FaultError]
    assert "not declared repeatable" in str(call.errors[0])
    assert front.lane.num_open == 0
    front.close()


def test_lie_about_one_batch_sends_the_other_again_as_well(front: Front) -> None:
    liar = Played(front, "w0")
    running = front.ask(*range(8))
    ready = front.ask(*range(10, 18))
    first, second = liar.take(), liar.take()
    assert (first.rows, second.rows) == (8, 8)
    # The rows of one batch, under the name of the other.
    liar.reply(second, first.x * 2, sequence=first.sequence)
    assert liar.is_cut_off
    honest = Played(front, "w1")
    while front.lane.num_open:
        batch = honest.take()
        honest.reply(batch, batch.x * 2)
    for call, value in zip(running + ready, [*range(8), *range(10, 18)], strict=True):
        assert [answer.tolist() for (answer,) in call.answers] == [[[2.0 * value] * 4]]
        assert call.errors == []


def test_second_answer_to_one_batch_goes_to_nobody(front: Front) -> None:
    liar = Played(front, "w0")
    (first,) = front.ask(1)
    old = liar.take()
    liar.reply(old, old.x * 2)
    (second,) = front.ask(2)
    liar.take()
    liar.reply(old, old.x * 2)
    assert liar.is_cut_off
    assert (len(first.answers), second.answers) == (1, [])
    honest = Played(front, "w1")
    batch = honest.take()
    honest.reply(batch, batch.x * 2)
    assert [answer.tolist() for (answer,) in second.answers] == [[[4.0] * 4]]
    assert len(first.answers) == 1


def test_answers_are_copied_before_the_arena_is_used_again(front: Front) -> None:
    played = Played(front, "w0")
    (first,) = front.ask(1)
    batch = played.take()
    played.reply(batch, batch.x * 2)
    (kept,) = first.answers[0]
    (second,) = front.ask(50)
    batch = played.take()
    played.reply(batch, batch.x * 2)
    assert kept.tolist() == [[2.0] * 4]
    assert second.answers[0][0].tolist() == [[100.0] * 4]


def test_error_frame_fails_the_request_and_keeps_the_link(front: Front) -> None:
    played = Played(front, "w0")
    good, bad = front.ask(1, 2)
    batch = played.take()
    played.say(HEADER.pack(Kind.ERROR, 0, batch.slot, 0, batch.sequence) + b"ValueError: \xff")
    for _ in range(2):  # halved: each alone
        batch = played.take()
        if batch.x[0, 0] == 2:
            played.say(HEADER.pack(Kind.ERROR, 0, batch.slot, 0, batch.sequence) + b"ValueError: unlucky")
        else:
            played.reply(batch, batch.x * 2)
    assert good.answers[0][0].tolist() == [[2.0] * 4]
    assert [type(error) for error in bad.errors] == [ModelError]
    assert "ValueError: unlucky" in str(bad.errors[0])
    assert not played.is_cut_off
    assert front.lane.num_open == 0


def test_large_output_in_a_descriptor_of_its_own_is_read(front: Front) -> None:
    played = Played(front, "w0")
    (call,) = front.ask(1)
    batch = played.take()
    fd = make_file(GROW | SHRINK | SEAL, size=1 << 20)
    os.pwrite(fd, np.full((1, 4), 9, np.float32).tobytes(), 512 * 1024)
    played.reply(batch, ROW, flags=1, offset=512 * 1024, fds=[fd])
    assert call.answers[0][0].tolist() == [[9.0] * 4]
    assert not played.is_cut_off


@pytest.mark.parametrize("num_credits", [0, 3, (1 << 32) - 1])
def test_impossible_credits_are_a_lie(front: Front, num_credits: int) -> None:
    assert Played(front, "w0", num_credits).is_cut_off
    assert front.lost == ["w0"]
    assert "impossible credits" in front.played[0].link.fault


def test_credits_that_are_granted_again_are_a_lie(front: Front) -> None:
    played = Played(front, "w0")
    (call,) = front.ask(1)
    played.say(HEADER.pack(Kind.HELLO, 0, 0, 2, 0))
    assert played.is_cut_off
    assert (call.answers, call.errors, front.lane.num_open) == ([], [], 1)


@pytest.mark.parametrize("shape", [(1, 0, 1 << 63), (1, (1 << 64) - 1, 0), (1, 1 << 62, 0), (1, 1 << 33, 1 << 33)])
def test_dimensions_that_no_array_has_are_a_lie(shape: tuple[int, ...]) -> None:
    front = Front((-1, -1, -1))
    liar = Played(front, "w0")
    (call,) = front.ask(1)
    liar.reply(liar.take(), np.ones((0,), np.float32), shape=shape)
    assert liar.is_cut_off
    assert front.lost == ["w0"]
    assert (call.answers, call.errors, front.faults) == ([], [], [])
    front.close()


@pytest.mark.parametrize(
    "packed", [b"", b"\5\0\0\0abcd", b"\xff\xff\xff\xffabcd", b"\1\0\0"], ids=["none", "cut", "huge", "head"]
)
def test_elements_that_are_cut_are_a_lie(packed: bytes) -> None:
    front = Front((-1,), "BYTES")
    liar = Played(front, "w0")
    (call,) = front.ask(1)
    liar.reply(liar.take(), np.frombuffer(packed, np.uint8), code=OBJECT, shape=(1,))
    assert liar.is_cut_off
    assert (call.answers, call.errors, front.faults) == ([], [], [])
    front.close()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_frame_of_a_worker_breaks_a_front(data: st.DataObject) -> None:
    front = Front()
    liar = Played(front, "w0")
    (call,) = front.ask(7)
    batch = liar.take()
    y = batch.x * 2
    changes = {
        "kind": st.integers(0, 255),
        "flags": st.integers(0, 255),
        "slot": st.integers(0, 65535),
        "rows": st.integers(0, (1 << 32) - 1),
        "sequence": U64,
        "offset": U64,
        "num_bytes": U64,
        "code": st.integers(0, 255),
        "shape": st.lists(U64, max_size=5).map(tuple),
        "copies": st.integers(0, 3),
    }
    names = data.draw(st.sets(st.sampled_from(sorted(changes)), min_size=1, max_size=3))
    liar.reply(batch, y, **{name: data.draw(changes[name]) for name in sorted(names)})
    assert front.faults == []
    if not call.answers and not call.errors:
        assert liar.is_cut_off or front.lane.num_open == 1
        if liar.is_cut_off:
            honest = Played(front, "w1")
            batch = honest.take()
            honest.reply(batch, batch.x * 2)
    for (answer,) in call.answers:
        # Bytes from elsewhere in the worker's own arena are all that a lie can bring about.
        assert answer.shape == (1, 4)
    assert len(call.answers) <= 1
    front.close()
