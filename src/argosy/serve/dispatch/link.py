"""The front's end of the link to a worker: hands over batches while the worker grants credits, takes replies.

`argosy.serve.wire.frames` says what travels.
"""

from __future__ import annotations

import array
import math
import mmap
import os
import socket
import struct
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import CODES, OBJECT
from argosy.errors import UnavailableError
from argosy.serve.dispatch.call import Batch, Clock, OutputsError
from argosy.serve.dispatch.service import LATE_S
from argosy.serve.dispatch.streams import StreamPool
from argosy.serve.wire.frames import (
    ASKED,
    HEADER,
    INPUT_FAULT,
    NANOSECONDS,
    NO_ROOM,
    NO_ROOM_FOR_ANSWER,
    NUM_SLOTS,
    Arena,
    Kind,
    Layout,
    LinkError,
    flatten_bytes,
    make_arena,
    map_arena,
    place_tensors,
    read_frame,
    read_tensor,
    unpack_tensors,
)
from argosy.serve.wire.padding import fill_padded

__all__ = ["Held", "Link"]

MIN_ARENA_BYTES: Final = 64 * 1024
DOUBT_S: Final = 5.0
"""A batch of which nobody knows how long it takes leaves its worker ready for so long, though it may be right to take longer."""
MAX_LEARNT_BYTES: Final = 1 << 28
"""Outputs above this size always travel in descriptors of their own."""


class Held(NamedTuple):
    """What a worker is at."""

    held_s: float
    is_given_up: bool
    """It takes far longer than it should, and nobody waits for it any more."""


class _Slot:
    """Room for one batch in flight."""

    __slots__ = ("batch", "index", "input_bytes", "inputs", "num_asked", "output_bytes", "outputs")

    def __init__(self, index: int) -> None:
        self.index = index
        self.batch: Batch | None = None
        self.inputs: Arena | None = None
        self.outputs: Arena | None = None
        self.input_bytes = 0
        self.output_bytes = 0
        self.num_asked = 0
        """How often the worker was asked whether it has arenas, and has not said so yet."""

    def forget_arenas(self) -> None:
        """The worker has none: the next batch makes new ones."""
        self.inputs = self.outputs = None
        self.input_bytes = self.output_bytes = 0


class Link:
    """The front's end. Sends batches while it has credits, hands replies to the batch's lane.

    Args:
        loop: the front's event loop.
        sock: the front's end of the pair.
        worker: the worker's id.
        on_hello: called with this link once the worker can take batches, and whenever it has all arenas that `make_room` made.
        on_down: called with this link once, when the worker is gone or broke the protocol.
        clock: tells when batches are sent.
        is_loaded: the worker has its model already, and takes batches as soon as it looks at this link.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        worker: str,
        on_hello: Callable[[Link], None],
        on_down: Callable[[Link], None],
        clock: Clock = time.monotonic,
        *,
        is_loaded: bool = False,
    ) -> None:
        self.worker = worker
        self.num_in_flight = 0
        self.num_slots = 0
        """Batches that the worker takes at a time; 0 until it has said so."""
        self.is_late = False
        """The worker has worked on a batch for so long that it may hang; as of the last `watch`."""
        self.fault = ""
        """Why the link is down, once it is; "" where the worker has ended."""
        self.lacks_room = False
        """There was no descriptor or memory for its arenas, here or there, when they were made last."""
        self.unread: Batch | None = None
        """A batch that the worker has not looked at, once the link is down; others it may have."""
        self._last: Batch | None = None
        """What was sent last, where that is a batch."""
        self._loop = loop
        self._now = clock
        self._sock = sock
        self._on_hello = on_hello
        self._on_down = on_down
        self._slots = [_Slot(index) for index in range(NUM_SLOTS)]
        self._free: list[_Slot] = []
        self._sequence = 0
        self._running: Batch | None = None
        self._is_loaded = is_loaded
        # Since when the worker runs what it does, and when that was looked at last.
        self._running_s = self._watched_s = clock()
        self._oversize_bytes = 0
        self.streams = StreamPool(loop, worker, self._pass_streams, clock)
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._on_readable)

    @property
    def can_send(self) -> bool:
        """True when the worker has granted a credit that is not used."""
        return bool(self._free)

    @property
    def batches_in_flight(self) -> list[Batch]:
        """What the worker holds."""
        return [slot.batch for slot in self._slots if slot.batch is not None]

    @property
    def oldest_sent_s(self) -> float:
        """When the oldest batch in flight was sent; infinite where there is none."""
        return min([batch.sent_s for batch in self.batches_in_flight], default=math.inf)

    @property
    def arena_bytes(self) -> tuple[int, int]:
        """Of the largest arenas of inputs and of outputs."""
        return max(slot.input_bytes for slot in self._slots), max(slot.output_bytes for slot in self._slots)

    def make_room(self, input_bytes: int = 0, output_bytes: int = 0) -> bool:
        """Have arenas at least so large in each slot that is free, before a batch needs them.

        Returns:
            Whether the worker has them: it has yet to say so, or there is no descriptor or memory left, here or there.
        """
        self._oversize_bytes = max(self._oversize_bytes, output_bytes)
        try:
            for slot in self._free:
                self._reserve(slot, input_bytes, ASKED)
        except (OSError, MemoryError):
            self.lacks_room = True
            return False
        return self._has_room

    @property
    def _has_room(self) -> bool:
        return all(slot.inputs is not None and not slot.num_asked for slot in self._free)

    def watch(self, now: float, unknown_s: float) -> Held | None:
        """Look whether the worker hangs; to be called every second.

        Args:
            now: by the clock.
            unknown_s: what a batch hangs after of which nobody knows how long it takes.

        Returns:
            None where it does nothing.
        """
        running = min(self.batches_in_flight, key=lambda batch: batch.sequence, default=None)
        if running is not self._running:
            # When another one was looked at last, this one ran not yet, however long ago it was sent.
            self._running, self._running_s = running, now if running is None else max(running.sent_s, self._watched_s)
        self._watched_s = now
        is_awaited, limit_s, held_s = False, unknown_s, now - self._running_s
        doubt_s = min(unknown_s, DOUBT_S)
        if running is not None:
            is_awaited = not all(call.is_done for call in running.calls)
            times, size = running.lane.plan.times(running.form), (running.num_rows, running.length)
            limit_s, doubt_s = times.late_s(*size, unknown_s), times.late_s(*size, doubt_s)
        elif (stuck_s := self.streams.stuck_since_s) is not None:
            held_s = now - stuck_s
        elif self.num_slots or not self._is_loaded:
            self.is_late = False
            return None
        # Else it does not even say that it takes batches: those of a front that has died may keep it from that.
        self.is_late = held_s > (doubt_s if is_awaited else min(doubt_s, LATE_S))
        return Held(held_s, held_s > limit_s and not is_awaited)

    def _pass_streams(self, sock: socket.socket) -> None:
        """Give the worker its end of the socket on which streams are passed.

        Raises:
            OSError: the worker takes nothing now.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        self._sock.sendmsg([HEADER.pack(Kind.STREAMS, 0, 0, 0, 0)], rights)
        self._last = None

    def send(self, batch: Batch) -> None:
        """Write a batch's rows into a free slot and hand it to the worker."""
        slot = self._free.pop()
        slot.batch = batch
        self._sequence += 1
        batch.sequence = self._sequence
        batch.sent_s = self._now()
        self.num_in_flight += 1
        try:
            self._send_frame(slot, batch)
            self._last = batch
        except ConnectionError:
            # The batch stays in its slot: going down gives it back to its lane.
            self.unread = batch
            self._loop.call_soon(self.close)
        except (OSError, LinkError, MemoryError) as error:
            # No descriptor or memory is left, here: the worker has done nothing wrong, and has not got the batch.
            self._loop.call_soon(partial(self._refuse, slot, batch, str(error), has_run=False))

    def _refuse(self, slot: _Slot, batch: Batch, detail: str, *, has_run: bool) -> None:
        """Give a batch back for which there is no room; smaller ones may have it still."""
        if slot.batch is not batch:
            return  # the link went down meanwhile, and its lane has the batch again
        self._release(slot)
        lane = batch.lane
        error = UnavailableError("no_room", model=lane.name, version=lane.version, detail=detail)
        lane.take_refusal(batch, error, self.worker, has_run=has_run)

    def _send_frame(self, slot: _Slot, batch: Batch) -> None:
        calls = batch.calls
        first = calls[0].inputs
        key: Hashable
        if len(calls) == 1:
            key = (batch.form, *[array.shape for array in first])
        else:
            length = batch.length if batch.is_padded else 0
            key = (batch.form, batch.num_rows, length, *[array.shape[1:] for array in first])
        inputs = slot.inputs
        layout = inputs.layouts.get(key) if inputs is not None and self._oversize_bytes <= slot.output_bytes else None
        if layout is None:
            layout = self._write_new(slot, batch, key)
        elif len(calls) == 1:
            for view, array in zip(layout.views, first, strict=True):
                view[...] = array
        else:
            for index, view in enumerate(layout.views):
                self._write_column(view, [call.inputs[index] for call in calls], batch, index)
        header = HEADER.pack(Kind.BATCH, batch.form, slot.index, batch.num_rows, batch.sequence)
        self._sock.send(header + layout.described)

    def _write_column(self, view: NDArray[Any], column: list[NDArray[Any]], batch: Batch, index: int) -> None:
        """Write one input of all requests side by side along the first axis."""
        pad = batch.lane.pads[index] if batch.is_padded else None
        if pad is None:
            np.concatenate(column, out=view)
        else:
            fill_padded(view, column, *pad)

    def _write_new(self, slot: _Slot, batch: Batch, key: Hashable) -> Layout:
        """Write a batch whose shapes the slot has not had, or has forgotten."""
        columns = [[call.inputs[index] for call in batch.calls] for index in range(len(batch.calls[0].inputs))]
        kinds: list[tuple[int, int, tuple[int, ...]]] = []
        for index, column in enumerate(columns):
            first = column[0]
            shape = first.shape if len(column) == 1 else (batch.num_rows, *first.shape[1:])
            if batch.is_padded and (pad := batch.lane.pads[index]) is not None:
                shape = (*shape[: pad[0]], batch.length, *shape[pad[0] + 1 :])
            code = CODES[first.dtype]
            if code == OBJECT:
                column[:] = [np.frombuffer(b"".join(map(flatten_bytes, column)), np.uint8)]
                kinds.append((column[0].nbytes, code, shape))
            else:
                kinds.append((math.prod(shape) * first.itemsize, code, shape))
        tensors, num_bytes = place_tensors(kinds)
        arena = self._reserve(slot, num_bytes)
        layout = arena.view(tensors)
        for index, (view, column) in enumerate(zip(layout.views, columns, strict=True)):
            if len(column) == 1:
                view[...] = column[0]
            else:
                self._write_column(view, column, batch, index)
        if all(code != OBJECT for _, code, _ in kinds):
            arena.keep(key, layout)
        return layout

    def _reserve(self, slot: _Slot, input_bytes: int, flags: int = 0) -> Arena:
        """Make the slot's arenas large enough, and give the worker their descriptors; returns that of the inputs.

        Raises:
            OSError: no descriptor or memory is left, or the worker takes nothing now. The slot has the arenas that it had.
        """
        fits = slot.inputs is not None and input_bytes <= slot.input_bytes
        if slot.inputs is not None and fits and self._oversize_bytes <= slot.output_bytes:
            return slot.inputs
        try:
            self._make_arenas(slot, max(input_bytes, slot.input_bytes), max(self._oversize_bytes, slot.output_bytes), flags)
        except (OSError, MemoryError):
            # Larger outputs travel in descriptors of their own.
            if not fits:
                raise
        assert slot.inputs is not None
        return slot.inputs

    def _make_arenas(self, slot: _Slot, input_bytes: int, output_bytes: int, flags: int) -> None:
        input_bytes, output_bytes = _round_up(input_bytes), _round_up(output_bytes)
        input_fd, inputs = make_arena(input_bytes)
        try:
            output_fd, outputs = make_arena(output_bytes)
            try:
                frame = HEADER.pack(Kind.ARENA, flags, slot.index, 0, 0)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [input_fd, output_fd]))]
                self._sock.sendmsg([frame], rights)
                self._last = None
            finally:
                os.close(output_fd)
        finally:
            os.close(input_fd)
        # Only now: had the worker not got them, it would read and write the old ones.
        slot.inputs, slot.outputs, slot.input_bytes, slot.output_bytes = inputs, outputs, input_bytes, output_bytes
        slot.num_asked += flags == ASKED

    def _on_readable(self) -> None:
        try:
            self._read_one()
        except BlockingIOError:
            return
        except ConnectionResetError:
            # The worker died with frames unread. The kernel tells that first, and the loop calls only once:
            # the replies that the worker sent before are still there, and then the end.
            self.unread = self.unread or self._last
            self._read_rest()
        except Exception as error:  # the worker may say anything: whatever that leads to ends its link alone
            self._close_for(error)

    def _read_rest(self) -> None:
        try:
            while True:
                self._read_one()
        except Exception as error:  # as above
            self._close_for(error)

    def _close_for(self, error: Exception) -> None:
        if not isinstance(error, OSError):
            self.fault = str(error) or type(error).__name__
        if not isinstance(error, (OSError, LinkError, struct.error)):
            self._loop.call_exception_handler({"message": f"the link to {self.worker} failed", "exception": error})
        self.close()

    def _read_one(self) -> None:
        frame, fds = read_frame(self._sock)
        try:
            if not frame:
                raise ConnectionError("the worker's process died")
            self._take_frame(frame, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _take_frame(self, frame: bytes, fds: list[int]) -> None:
        head: tuple[int, int, int, int, int] = HEADER.unpack_from(frame)
        kind, flags, slot_index, count, sequence = head
        if kind == Kind.HELLO:
            if self.num_slots or not 0 < count <= NUM_SLOTS:
                raise LinkError("worker granted impossible credits, or for the second time")
            self._free = [slot for slot in self._slots[:count] if slot.batch is None]
            self.num_slots = count
            self._on_hello(self)
            return
        if slot_index >= NUM_SLOTS:
            raise LinkError("worker named an unknown slot")
        slot = self._slots[slot_index]
        batch = slot.batch
        if kind == Kind.ARENA:
            self._take_word(slot, has_arenas=flags != NO_ROOM)
            return
        if batch is None or batch.sequence != sequence:
            raise LinkError("worker answered a batch that it does not have")
        if kind == Kind.ERROR:
            detail = frame[HEADER.size :].decode(errors="replace")
            if flags in (NO_ROOM, NO_ROOM_FOR_ANSWER):
                slot.forget_arenas()
                self._refuse(slot, batch, f"worker {self.worker} has none ({detail})", has_run=flags != NO_ROOM)
                return
            self._release(slot)
            batch.lane.take_failure(batch, detail, is_input_fault=flags == INPUT_FAULT)
            return
        if kind != Kind.REPLY:
            raise LinkError("worker sent an unknown frame")
        (nanoseconds,) = NANOSECONDS.unpack_from(frame, HEADER.size)
        try:
            arena = self._find_outputs(fds) if flags else slot.outputs
            assert arena is not None
            outputs = self._read_outputs(batch, arena, frame[HEADER.size + NANOSECONDS.size :])
        except OutputsError as error:
            self._release(slot)
            batch.lane.take_failure(batch, str(error))
            return
        except (OSError, MemoryError) as error:
            self._refuse(slot, batch, str(error), has_run=True)
            return
        self.num_in_flight -= 1
        # The other slot's batch starts before these answers are written out.
        batch.lane.proceed()
        batch.lane.take_answers(batch, outputs, nanoseconds * 1e-9)
        slot.batch = None
        self._free.append(slot)
        batch.lane.proceed()

    def _take_word(self, slot: _Slot, *, has_arenas: bool) -> None:
        """The worker says whether it has arenas.

        Raises:
            LinkError: it was not asked.
        """
        if not slot.num_asked:
            raise LinkError("worker told of arenas that it was not asked for")
        slot.num_asked -= 1
        self.lacks_room = not has_arenas
        if has_arenas:
            if self._has_room:
                self._on_hello(self)
        elif slot.batch is None:
            slot.forget_arenas()

    def _find_outputs(self, fds: list[int]) -> Arena:
        """Map outputs that did not fit their arena.

        Raises:
            LinkError: it is no arena that can be read.
            OSError: no descriptor or memory is left for it.
        """
        if not fds:
            raise OSError("no descriptor is left for a large output")
        arena = map_arena(fds.pop(), mmap.ACCESS_READ)
        self._oversize_bytes = max(self._oversize_bytes, min(arena.num_bytes, MAX_LEARNT_BYTES))
        return arena

    def _read_outputs(self, batch: Batch, arena: Arena, described: bytes) -> list[NDArray[Any]]:
        """Read a reply's tensors, which must hold exactly what the batch asked for."""
        # All that the check depends on.
        key = (described, batch.num_rows, batch.form, batch.length if batch.is_padded else -1)
        layout = arena.layouts.get(key)
        if layout is not None:
            return layout.views
        tensors = unpack_tensors(described, 0, arena.num_bytes)
        batch.lane.check_outputs(batch, tensors)
        outputs = [read_tensor(arena.memory, tensor) for tensor in tensors]
        if all(tensor.code != OBJECT for tensor in tensors):
            arena.keep(key, Layout(outputs, described))
        return outputs

    def _release(self, slot: _Slot) -> None:
        slot.batch = None
        self.num_in_flight -= 1
        self._free.append(slot)

    def take_batches(self) -> list[Batch]:
        """Give back the batches in flight, oldest first; used when the link is down."""
        batches = sorted(self.batches_in_flight, key=lambda batch: batch.sequence)
        for slot in self._slots:
            slot.batch = None
        self._free = []
        self.num_in_flight = 0
        return batches

    def close(self) -> None:
        """Stop using the link; its owner is told once."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        # Each holds memory and a descriptor, and this link is freed only when garbage is collected, which may be hours later.
        for slot in self._slots:
            slot.inputs = slot.outputs = None
        self._on_down(self)


def _round_up(size_bytes: int) -> int:
    return 1 << (max(size_bytes, MIN_ARENA_BYTES) - 1).bit_length()
