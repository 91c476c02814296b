"""What is kept of the requests that arrive while somebody records them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from argosy.errors import OverloadedError
from argosy.serve.dispatch import recorder
from argosy.serve.dispatch.admit import Admit
from argosy.serve.dispatch.recorder import KEEP_S, Recorder, unpack_arrivals
from tests.serve.dispatch.made_up import Asked, Front
from tests.serve.dispatch.samples import RAGGED, make_rows


@pytest.fixture
def front() -> Front:
    return Front(RAGGED, max_queue_rows=3)


@pytest.fixture
def admit(front: Front) -> Admit:
    return Admit(front.counters, 1 << 20, num_fronts=1)


def test_moment_rows_and_length_of_each_request_are_kept(front: Front, admit: Admit) -> None:
    kept = Recorder(admit, front.clock)
    assert kept.take("a", "m") == {"arrivals": b"", "num_missed": 0}
    for rows, length in ((1, 9), (2, 3), (1, 4)):
        front.clock.now_s += 0.25
        # The last one is more than may wait: what is refused has arrived as well.
        with pytest.raises(OverloadedError) if front.lane.queued_rows + rows > 3 else nullcontext():
            admit.submit(Asked(front, make_rows(1, rows, length)))
    expected = [(1000.25, 1, 9), (1000.5, 2, 3), (1000.75, 1, 4)]
    assert unpack_arrivals(kept.take("a", "m")["arrivals"]) == expected
    assert unpack_arrivals(kept.take("a", "m")["arrivals"]) == []


def test_recordings_do_not_take_from_each_other(front: Front, admit: Admit) -> None:
    kept = Recorder(admit, front.clock)
    for recording, name in (("a", "m"), ("b", "m"), ("c", "other")):
        kept.take(recording, name)
    admit.submit(Asked(front, make_rows(1)))
    assert [len(unpack_arrivals(kept.take(recording, "m")["arrivals"])) for recording in "abc"] == [1, 1, 0]


def test_recording_is_bounded_and_ends_when_nobody_asks(front: Front, admit: Admit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_ARRIVALS", 1)
    kept = Recorder(admit, front.clock)
    kept.take("a", "m")
    for _ in range(2):
        admit.submit(Asked(front, make_rows(1)))
    found = kept.take("a", "m")
    assert (len(unpack_arrivals(found["arrivals"])), found["num_missed"]) == (1, 1)
    assert kept.take("a", "m")["num_missed"] == 0
    for passed_s, is_watched in ((KEEP_S - 0.1, True), (0.2, False)):
        front.clock.now_s += passed_s
        kept.expire(front.clock())
        assert (admit.watch is not None) == is_watched
