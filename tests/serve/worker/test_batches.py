"""The worker's end of a link: batches are answered, each answer is checked, and a front that makes no sense is dropped."""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from argosy.datatypes import OBJECT
from argosy.serve.wire import frames
from argosy.serve.wire.channel import Channel
from argosy.serve.wire.control_messages import NewLink
from argosy.serve.wire.frames import HEADER, NANOSECONDS, Kind, Tensor
from argosy.serve.worker.worker import Worker
from tests.processes import wait_until


class Doubling:
    """A runtime."""

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * 2}


class Hosted:
    """A worker that serves in a thread, and the supervisor's end of its channel."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel, self._theirs = Channel(ours, "supervisor", "worker"), theirs
        tensors = {
            side: [{"name": name, "datatype": "FP32", "shape": [-1, 4]}] for side, name in (("inputs", "x"), ("outputs", "y"))
        }
        self.worker = Worker(Channel(theirs, "worker", "supervisor"), {"signature": tensors, "num_fronts": 1})
        self.worker.model.runtime = Doubling()  # type: ignore[assignment]
        self._thread = threading.Thread(target=self.worker.serve)
        self._thread.start()

    def close(self) -> None:
        self.channel.sock.close()
        self._thread.join(10)
        assert not self._thread.is_alive()
        for sock in [front.sock for front in self.worker.fronts.values()]:
            sock.close()
        self.worker.poll.close()
        self._theirs.close()


class Front:
    """A front's end of a link to a worker, with the arenas of one slot."""

    def __init__(self, hosted: Hosted, size: int = 4096) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(5.0)
        with theirs:
            hosted.channel.send(NewLink("front-0", "front", os.getpid()), [theirs.fileno()])
        assert frames.read_frame(self.sock)[0][0] == Kind.HELLO
        (input_fd, inputs), (output_fd, outputs) = frames.make_arena(size), frames.make_arena(size)
        self.inputs, self.outputs = inputs.memory, outputs.memory
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [input_fd, output_fd]))]
        self.sock.sendmsg([HEADER.pack(Kind.ARENA, 0, 0, 0, 0)], rights)
        os.close(input_fd)
        os.close(output_fd)

    def ask(self, x: np.ndarray, sequence: int) -> bytes:
        """The worker's reply to a batch."""
        self.inputs[: x.nbytes] = x.tobytes()
        body = frames.pack_tensors([Tensor(0, x.nbytes, 10, x.shape)])
        self.sock.send(HEADER.pack(Kind.BATCH, 0, 0, len(x), sequence) + body)
        frame, fds = frames.read_frame(self.sock)
        assert fds == []
        return frame

    def read(self, reply: bytes) -> np.ndarray:
        """The rows of a reply."""
        (tensor,) = frames.unpack_tensors(reply, HEADER.size + NANOSECONDS.size, len(self.outputs))
        return frames.read_tensor(self.outputs, tensor)


@pytest.fixture
def hosted() -> Iterator[Hosted]:
    made = Hosted()
    yield made
    made.close()


@pytest.fixture
def front(hosted: Hosted) -> Iterator[Front]:
    made = Front(hosted)
    yield made
    made.sock.close()


def test_worker_answers_a_batch(front: Front) -> None:
    reply = front.ask(np.full((1, 4), 3, np.float32), 5)
    assert HEADER.unpack_from(reply) == (Kind.REPLY, 0, 0, 1, 5)
    np.testing.assert_array_equal(front.read(reply), np.full((1, 4), 6))


class Reshaping:
    """A model that changes the shape of what it is given, in place."""

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        y = inputs["x"] * 2
        inputs["x"].shape = (-1,)
        return {"y": y}


def test_worker_answers_batches_of_the_same_shapes_again_and_again(hosted: Hosted, front: Front) -> None:
    hosted.worker.model.runtime = Reshaping()  # type: ignore[assignment]
    for sequence in range(12):
        x = np.full((1 + sequence % 3, 4), sequence, np.float32)
        reply = front.ask(x, sequence)
        assert HEADER.unpack_from(reply) == (Kind.REPLY, 0, 0, len(x), sequence)
        np.testing.assert_array_equal(front.read(reply), x * 2)


@pytest.mark.parametrize(
    ("y", "fault"),
    [
        pytest.param(np.zeros((2, 4)), "has type float64", id="datatype"),
        pytest.param(np.zeros((1, 4), np.float32), "has 1 rows for 2", id="rows"),
        pytest.param(np.zeros((2, 5), np.float32), "has shape (2, 5)", id="shape"),
        pytest.param(None, "'y' is missing", id="nothing"),
    ],
)
def test_worker_checks_each_answer_even_after_good_ones(hosted: Hosted, front: Front, y: np.ndarray | None, fault: str) -> None:
    for rows in (1, 2):
        assert front.ask(np.ones((rows, 4), np.float32), 1)[0] == Kind.REPLY
    hosted.worker.model.runtime = SimpleNamespace(infer=lambda _: {"y": y})  # type: ignore[assignment]
    reply = front.ask(np.ones((2, 4), np.float32), 2)
    assert reply[0] == Kind.ERROR
    assert fault in reply[HEADER.size :].decode()


BATCH = HEADER.pack(Kind.BATCH, 0, 0, 1, 5)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\2",
        bytes(300),
        bytes(range(256)),
        HEADER.pack(Kind.HELLO, 0, 0, 1, 0),
        HEADER.pack(Kind.BATCH, 0, 2, 1, 5),
        HEADER.pack(Kind.ARENA, 0, 0, 0, 0),
        BATCH,
        BATCH + bytes(7),
        BATCH + frames.pack_tensors([Tensor(0, 16, 10, (1, 4))] * 2),
        BATCH + frames.pack_tensors([Tensor(1 << 40, 16, 10, (1, 4))]),
        BATCH + frames.pack_tensors([Tensor(0, 16, 10, (1, 5))]),
        BATCH + frames.pack_tensors([Tensor(0, 0, 10, (0, 1 << 63))]),
        BATCH + frames.pack_tensors([Tensor(0, 0, 10, (0, (1 << 64) - 1))]),
        BATCH + frames.pack_tensors([Tensor(0, 3, OBJECT, (1,))]),
    ],
    ids=lambda frame: frame[:1].hex() + f"-{len(frame)}",
)
def test_worker_drops_a_front_that_makes_no_sense(
    hosted: Hosted, front: Front, frame: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    if frame:
        front.sock.send(frame)
    else:
        front.sock.shutdown(socket.SHUT_WR)
    assert front.sock.recv(100) == b""
    wait_until(lambda: hosted.worker.fronts == {})
    assert "link closed" in capfd.readouterr().err


def test_worker_whose_front_died_is_free_for_others(hosted: Hosted, front: Front) -> None:
    front.sock.close()
    other = Front(hosted)
    np.testing.assert_array_equal(other.read(other.ask(np.ones((1, 4), np.float32), 1)), np.full((1, 4), 2))
    wait_until(lambda: len(hosted.worker.fronts) == 1)
    other.sock.close()
