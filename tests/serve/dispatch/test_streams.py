"""Raw requests on their streams: deadlines, workers that are gone, streams that are held; the worker's threads are played."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from argosy.errors import ArgosyError, DeadlineError, FaultError, UnavailableError
from argosy.serve.dispatch.link import Held
from argosy.serve.dispatch.streams import RawCall
from argosy.serve.wire import frames
from argosy.serve.wire.frames import HEADER, Kind
from argosy.serve.wire.stream_frames import DATA, END_FRAME, HEAD, OPEN, pack_frame
from tests.serve.dispatch.played import Front, Played

TIMEOUT_S = 30.0


class Raw(RawCall):
    """A raw request that remembers what it was told."""

    __slots__ = ("errors", "has_ended", "parts")

    def __init__(self, front: Front, body: bytes = b"") -> None:
        super().__init__(front.lane.streams, b"{}", body, front.clock())
        self.parts: list[bytes] = []
        self.errors: list[ArgosyError] = []
        self.has_ended = False

    def begin(self, data: bytes) -> None:
        self.has_begun = True

    def add(self, data: bytes) -> None:
        self.parts.append(data)

    def end(self, now: float) -> None:
        self.has_ended = self.is_done = True

    def fail(self, error: ArgosyError) -> None:
        self.errors.append(error)
        self.is_done = True


class Threads:
    """The worker's end of the streams of a link."""

    def __init__(self, played: Played) -> None:
        self.front = played.front
        self.sockets = [played.sock]

    def accept(self) -> socket.socket:
        """The stream that was opened next."""
        if len(self.sockets) == 1:
            frame, fds = frames.read_frame(self.sockets[0])
            assert HEADER.unpack_from(frame)[0] == Kind.STREAMS
            self._keep(fds)
        _, fds, _, _ = socket.recv_fds(self.sockets[1], 1, 1)
        return self._keep(fds)

    def _keep(self, fds: list[int]) -> socket.socket:
        (fd,) = fds
        self.sockets.append(socket.socket(fileno=fd))
        self.sockets[-1].settimeout(5.0)
        return self.sockets[-1]

    def say(self, stream: socket.socket, *said: bytes) -> None:
        stream.sendall(b"".join(said))
        self.front.spin()

    def die(self) -> None:
        """The kernel closes the sockets of a process that has died."""
        for sock in self.sockets:
            sock.close()
        self.front.spin()


def read_request(stream: socket.socket) -> bytes:
    """The body of a request."""
    head, body = OPEN.unpack(stream.recv(OPEN.size, socket.MSG_WAITALL))
    assert stream.recv(head, socket.MSG_WAITALL) == b"{}"
    return stream.recv(body, socket.MSG_WAITALL) if body else b""


class Stage(Front):
    """A front and the workers that it is given."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(max_streams=1, timeout_s=TIMEOUT_S, **fields)
        self.workers: list[Threads] = []

    def add(self, worker: str) -> Threads:
        self.workers.append(Threads(Played(self, worker)))
        return self.workers[-1]

    def close(self) -> None:
        for threads in self.workers:
            threads.die()
        super().close()


@pytest.fixture(params=[True])
def front(request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = Stage(is_repeatable=request.param)
    yield made
    made.close()
    assert made.faults == []


@pytest.fixture
def threads(front: Stage) -> Threads:
    return front.add("w0")


def put(front: Front, call: Raw) -> Raw:
    front.lane.streams.put(call)
    front.spin()
    return call


def test_stream_carries_one_request_after_the_other(front: Front, threads: Threads) -> None:
    first, second = put(front, Raw(front, b"one")), put(front, Raw(front, b"two"))
    stream = threads.accept()
    for call, body in ((first, b"one"), (second, b"two")):
        assert read_request(stream) == body
        threads.say(stream, pack_frame(HEAD, b"{}"), pack_frame(DATA, body * 2), END_FRAME)
        assert (call.parts, call.has_ended, call.errors) == ([body * 2], True, [])
    assert front.lane.num_open == 0


def test_answer_that_takes_longer_than_its_deadline_is_cut(front: Front, threads: Threads) -> None:
    call = put(front, Raw(front))
    stream = threads.accept()
    read_request(stream)
    threads.say(stream, pack_frame(HEAD, b"{}"), pack_frame(DATA, b"begun"))
    for passed_s, is_cut in ((TIMEOUT_S - 0.1, False), (0.2, True)):
        front.clock.now_s += passed_s
        front.router.expire_streams(front.clock())
        assert bool(call.errors) == is_cut
    assert call.parts == [b"begun"]
    assert [type(error) for error in call.errors] == [DeadlineError]
    assert stream.recv(1) == b""  # the worker is told
    threads.say(stream, pack_frame(DATA, b"late"))
    assert call.parts == [b"begun"]


def test_request_that_waits_for_a_stream_is_refused_when_its_deadline_passes(front: Front, threads: Threads) -> None:
    put(front, Raw(front))
    threads.accept()
    front.clock.now_s += 1.0
    waiting = put(front, Raw(front))
    front.clock.now_s += TIMEOUT_S - 0.5
    front.lane.expire(front.clock())
    assert (waiting.errors, front.lane.streams.num_waiting) == ([], 1)
    front.clock.now_s += 1.0
    front.lane.expire(front.clock())
    assert [type(error) for error in waiting.errors] == [DeadlineError]
    assert front.lane.streams.num_waiting == 0


def test_worker_that_lets_no_stream_go_hangs(front: Front, threads: Threads) -> None:
    call = put(front, Raw(front))
    stream = threads.accept()
    front.clock.now_s += TIMEOUT_S + 1.0
    front.router.expire_streams(front.clock())
    front.clock.now_s += 3.0
    (link,) = [played.link for played in front.played]
    assert link.watch(front.clock(), 4.0) == Held(3.0, is_given_up=False)
    assert link.watch(front.clock(), 2.0) == Held(3.0, is_given_up=True)
    assert not front.lane.is_ready
    # Nobody waits for the request any more, and the worker answers no other.
    other = put(front, Raw(front))
    assert (len(call.errors), other.stream) == (1, None)
    stream.close()
    front.spin()
    assert link.watch(front.clock(), 2.0) is None
    assert front.lane.is_ready
    assert other.stream is not None


def test_request_of_a_dead_worker_is_sent_again_once(front: Stage, threads: Threads) -> None:
    call = put(front, Raw(front, b"body"))
    for worker in (threads, front.add("w1")):
        assert call.errors == []
        assert read_request(worker.accept()) == b"body"
        worker.die()
    assert front.lost == ["w0", "w1"]
    assert [type(error) for error in call.errors] == [FaultError]
    assert "as one did before it" in str(call.errors[0])
    assert front.lane.num_open == 0


@pytest.mark.parametrize(("front", "has_begun"), [(True, True), (False, False)], indirect=["front"])
def test_answer_that_was_begun_or_may_not_run_twice_is_not_sent_again(front: Stage, threads: Threads, has_begun: bool) -> None:
    call = put(front, Raw(front))
    stream = threads.accept()
    if has_begun:
        threads.say(stream, pack_frame(HEAD, b"{}"))
    threads.die()
    assert [type(error) for error in call.errors] == [FaultError]
    assert "not declared repeatable" in str(call.errors[0])
    assert front.lane.num_open == 0


def test_version_that_lost_its_endpoint_refuses_what_its_dead_worker_had(front: Front, threads: Threads) -> None:
    call = put(front, Raw(front))
    front.lane.streams.max_streams = 0
    threads.die()
    assert [type(error) for error in call.errors] == [UnavailableError]
