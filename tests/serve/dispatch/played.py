"""A front's router and links in this process, with a clock and workers that a test plays."""

from __future__ import annotations

import array
import mmap
import os
import socket
from typing import Any, NamedTuple

import numpy as np
import uvloop

from argosy.datatypes import CODES
from argosy.serve.dispatch.link import Link
from argosy.serve.dispatch.router import Router
from argosy.serve.wire import frames
from argosy.serve.wire.frames import HEADER, NANOSECONDS, Kind, Tensor
from argosy.serve.wire.table import Table
from argosy.signature import Signature, TensorSpec
from tests.serve.dispatch.made_up import Asked, Clock, make_counters, make_entry


class Front:
    """A front's loop, router and lane; its workers are played by the test."""

    def __init__(
        self,
        shape: tuple[int, ...] = (-1, 4),
        datatype: str = "FP32",
        *,
        is_repeatable: bool = True,
        signature: Signature | None = None,
        **fields: Any,
    ) -> None:
        self.loop = uvloop.new_event_loop()
        self.faults: list[Any] = []
        self.loop.set_exception_handler(lambda loop, context: self.faults.append(context))
        self.counters, self.clock = make_counters(), Clock()
        self.router = Router(self.loop, self.counters, clock=self.clock)
        signature = signature or Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", datatype, shape),))
        self.table = Table(1, (make_entry(signature, is_repeatable=is_repeatable, **fields),))
        self.router.apply(self.table)
        self.lane = self.router.find("m")
        self.lost: list[str] = []
        self.played: list[Played] = []

    def spin(self) -> None:
        """Let the loop do all that it can do now."""
        for _ in range(10):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def lose(self, link: Link) -> None:
        self.lost.append(link.worker)
        self.router.remove_link(link)

    def ask(self, *values: float) -> list[Asked]:
        """Queue a request of one row for each value, in one turn of the loop."""
        asked = [Asked(self, np.full((1, 4), value, np.float32)) for value in values]
        for call in asked:
            self.lane.put(call)
        self.spin()
        return asked

    def close(self) -> None:
        for each in self.played:
            each.link.close()
            each.sock.close()
        self.spin()
        self.loop.close()


class Batch(NamedTuple):
    """What a worker was given."""

    slot: int
    rows: int
    sequence: int
    x: np.ndarray
    form: int = 0


class Played:
    """The worker's end of a link."""

    def __init__(self, front: Front, name: str, num_credits: int = 2) -> None:
        self.front = front
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(5.0)
        self.link = Link(front.loop, ours, name, front.router.add_link, front.lose, front.clock)
        self.arenas: dict[int, list[mmap.mmap]] = {}
        front.played.append(self)
        self.say(HEADER.pack(Kind.HELLO, 0, 0, num_credits, 0))

    def say(self, frame: bytes, *fds: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([frame], rights)
        for fd in fds:
            os.close(fd)
        self.front.spin()

    def take(self) -> Batch:
        while True:
            frame, fds = frames.read_frame(self.sock)
            kind, form, slot, rows, sequence = HEADER.unpack_from(frame)
            if kind == Kind.ARENA:
                self.arenas[slot] = [frames.map_arena(fd).memory for fd in fds]
                continue
            assert kind == Kind.BATCH
            inputs = self.arenas[slot][0]
            (tensor,) = frames.unpack_tensors(frame, HEADER.size, len(inputs))
            return Batch(slot, rows, sequence, frames.read_tensor(inputs, tensor).copy(), form)

    def reply(self, batch: Batch, y: np.ndarray, **changes: Any) -> None:
        """Write y into the arena and describe it, with some fields of the description changed."""
        header = {"kind": Kind.REPLY, "flags": 0, "slot": batch.slot, "rows": batch.rows, "sequence": batch.sequence}
        tensor = {"offset": 0, "num_bytes": y.nbytes, "code": CODES[y.dtype], "shape": y.shape}
        self.arenas[batch.slot][1][: y.nbytes] = y.tobytes()
        header |= {key: value for key, value in changes.items() if key in header}
        tensor |= {key: value for key, value in changes.items() if key in tensor}
        body = frames.pack_tensors([Tensor(**tensor)] * changes.get("copies", 1))
        self.say(HEADER.pack(*header.values()) + NANOSECONDS.pack(1000) + body, *changes.get("fds", ()))

    def answer(self, batch: Batch, outputs: list[np.ndarray], service_s: float = 1e-6) -> None:
        """Answer a batch that took so long."""
        tensors, offset = [], 0
        for y in outputs:
            self.arenas[batch.slot][1][offset : offset + y.nbytes] = y.tobytes()
            tensors.append(Tensor(offset, y.nbytes, CODES[y.dtype], y.shape))
            offset += -(-y.nbytes // 64) * 64
        self.front.clock.now_s += service_s
        header = HEADER.pack(Kind.REPLY, 0, batch.slot, batch.rows, batch.sequence)
        self.say(header + NANOSECONDS.pack(int(service_s * 1e9)) + frames.pack_tensors(tensors))

    @property
    def is_cut_off(self) -> bool:
        """True when the front has closed the link."""
        self.sock.setblocking(False)
        try:
            while self.sock.recv(frames.FRAME_BYTES):
                pass
            return True
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        finally:
            self.sock.settimeout(5.0)
