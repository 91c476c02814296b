"""A worker: hosts one replica of a version, and runs the batches that fronts hand it.

It loads its model, verifies and measures it, reports, and then answers batches one at a time in the order of
their arrival. It needs NumPy and the standard library only.
"""

from __future__ import annotations

import array
import gc
import math
import os
import select
import socket
import struct
import sys
import time
import traceback
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import CODES, OBJECT
from argosy.runtimes.base import NUM_TOKENS, StreamRuntime, lacks_memory
from argosy.serve.wire import frames
from argosy.serve.wire.channel import Channel
from argosy.serve.wire.control_messages import EXIT_REFUSED, Hello, JoinEnded, NewLink, Ready, Refused, fit_text
from argosy.serve.wire.frames import FORM_COUNTED
from argosy.serve.wire.stream_frames import MAX_ERROR_BYTES
from argosy.serve.worker import warmup
from argosy.serve.worker.bounds import end_first, limit_memory
from argosy.serve.worker.model import MAX_REFUSAL, LoadedModel
from argosy.serve.worker.watch import Watch

if TYPE_CHECKING:
    from argosy.serve.worker.streams import StreamThreads

__all__ = ["Worker", "run_worker"]

NUM_CREDITS: Final = 2

Arrays = dict[str, NDArray[Any]]
Message = dict[str, Any]


class _LinkEnd:
    """The worker's end of a link to a front: the arenas of each slot."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inputs: list[frames.Arena | None] = [None] * frames.NUM_SLOTS
        self.outputs: list[frames.Arena | None] = [None] * frames.NUM_SLOTS

    def take_arenas(self, slot: int, fds: list[int]) -> None:
        """Map a slot's arenas, and close their descriptors; where there is no room for them, the slot has none.

        Raises:
            LinkError: they are none that can be used.
        """
        self.inputs[slot] = self.outputs[slot] = None
        arenas: list[frames.Arena] = []
        for fd in fds:
            try:
                arenas.append(frames.map_arena(fd))
            except OSError as error:
                print(f"an arena cannot be mapped: {error}", file=sys.stderr, flush=True)
        # Descriptors that this process has no room for have not come.
        if len(arenas) == 2:
            self.inputs[slot], self.outputs[slot] = arenas


class Worker:
    """One replica.

    Args:
        channel: to the supervisor.
        spec: what to load, as the control process wrote it: `folder`, `entry`, `runtime`, `signature`,
            `golden` (file name or nothing), `options`, `max_batch_rows`, `num_fronts`.
    """

    def __init__(self, channel: Channel, spec: Message) -> None:
        self.channel = channel
        self.spec = spec
        self.model = LoadedModel(spec)
        self.answers = self.model.answers
        self.streams: StreamThreads | None = None
        self.poll = select.epoll()
        self.fronts: dict[int, _LinkEnd] = {}
        self.watch: Watch | None = None

    def load(self) -> Ready:
        """Load, verify and measure the model; returns the report."""
        limit_memory(self.spec["free_bytes"], must_be_free=True)
        report = self.model.load()
        limit_memory(self.spec["most_bytes"], must_be_free=False)
        self.watch = self.model.watch
        return report

    # serve

    def serve(self) -> None:
        """Answer batches until the supervisor is gone."""
        self.poll.register(self.channel.fileno(), select.EPOLLIN)
        while True:
            due_s = None if self.watch is None else self.watch.due_s
            events = self.poll.poll() if due_s is None else self.poll.poll(0)
            if due_s is not None and (not events or time.monotonic() > due_s):
                self._look_again()
            for fd, _ in events:
                front = self.fronts.get(fd)
                if front is not None:
                    self._take(front)
                elif not self._take_link():
                    return

    def _look_again(self) -> None:
        """Run a row again that was joined; if it was not its own, have no more joined."""
        assert self.watch is not None
        escape = self.watch.look()
        if escape is not None:
            self.watch = None
            print(f"rows are not joined any more: {escape.reason}", file=sys.stderr, flush=True)
            reason = f"a joined row, run again alone, answered differently: {escape.reason}"
            self.channel.send(JoinEnded(fit_text(reason, MAX_REFUSAL), escape.difference))

    def _take_link(self) -> bool:
        received = self.channel.receive()
        if received is None:
            return False
        if isinstance(received.message, NewLink) and received.fds:
            front = _LinkEnd(socket.socket(fileno=received.fds[0]))
            self.fronts[front.sock.fileno()] = front
            self.poll.register(front.sock.fileno(), select.EPOLLIN)
            # Two batches may be in flight in all: one runs, one stands ready.
            credit = max(1, NUM_CREDITS // self.spec["num_fronts"])
            self._send(front, frames.HEADER.pack(frames.Kind.HELLO, 0, 0, credit, 0))
        return True

    def _take(self, front: _LinkEnd) -> None:
        try:
            frame, fds = frames.read_frame(front.sock)
            if not frame:
                raise frames.LinkError("front is gone")
            kind, flags, slot, rows, sequence = frames.HEADER.unpack_from(frame)
            if slot >= frames.NUM_SLOTS:
                raise frames.LinkError("unknown slot")
            if kind == frames.Kind.ARENA:
                front.take_arenas(slot, fds)
                if flags == frames.ASKED:
                    lack = frames.NO_ROOM if front.inputs[slot] is None else 0
                    self._send(front, frames.HEADER.pack(frames.Kind.ARENA, lack, slot, 0, 0))
            elif kind == frames.Kind.BATCH:
                self._run(front, frame, flags, slot, rows, sequence)
            elif kind == frames.Kind.STREAMS and len(fds) < 2:
                # A descriptor that this process had no room for is closed by now, as the front finds out.
                if fds:
                    self._accept_streams(socket.socket(fileno=fds[0]))
            else:
                raise frames.LinkError("unknown frame")
        except (OSError, frames.LinkError, struct.error, ValueError) as error:
            print(f"link closed: {error}", file=sys.stderr, flush=True)
            self._drop(front)

    def _accept_streams(self, sock: socket.socket) -> None:
        """Answer the raw requests of a front, beside the batches."""
        # With threads and asyncio, which few workers need.
        from argosy.serve.worker.streams import StreamThreads

        if self.streams is None:
            self.streams = StreamThreads(cast(StreamRuntime, self.model.runtime).raw)
        self.streams.accept(sock)

    def _drop(self, front: _LinkEnd) -> None:
        if self.fronts.pop(front.sock.fileno(), None) is not None:
            self.poll.unregister(front.sock.fileno())
            front.sock.close()

    def _send(self, front: _LinkEnd, frame: bytes, fd: int = -1) -> None:
        """Send a frame, and with it a descriptor, which is closed."""
        try:
            if fd < 0:
                front.sock.send(frame, socket.MSG_NOSIGNAL)
            else:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                front.sock.sendmsg([frame], rights, socket.MSG_NOSIGNAL)
        except OSError:
            self._drop(front)
        finally:
            if fd >= 0:
                os.close(fd)

    def _run(self, front: _LinkEnd, frame: bytes, form: int, slot: int, rows: int, sequence: int) -> None:
        arena, outputs = front.inputs[slot], front.outputs[slot]
        if arena is None or outputs is None:
            self._send_no_room(front, frames.NO_ROOM, "its arenas could not be mapped", slot, sequence)
            return
        if form and (self.model.preprocessor is None or form > FORM_COUNTED):
            raise frames.LinkError("unknown form")
        names = self.model.raw_names if form else self.model.names
        inputs = dict(zip(names, _read_inputs(arena, frame[frames.HEADER.size :]), strict=True))
        runtime = self.model.runtime
        assert runtime is not None
        try:
            before = time.perf_counter_ns()
            answer = self.model.infer_form(inputs, form) if form else runtime.infer(inputs)
            nanoseconds = time.perf_counter_ns() - before
            given = arrays = self.answers.order(answer)
            if form == FORM_COUNTED:
                arrays.append(answer[NUM_TOKENS])
            # All that the check depends on.
            key = (rows, *[(output.dtype, output.shape) for output in arrays])
            layout = outputs.layouts.get(key)
            if layout is None:
                arrays = self.answers.check(given, rows)
        except BaseException as error:  # the model's own code: whatever it raises belongs to this batch alone
            self._send_failure(front, error, slot, sequence)
            return
        fd = -1
        if layout is None:
            # What had to be converted is looked at each time.
            try:
                fd, layout = _place_outputs(outputs, arrays, key if arrays is given else None)
            except (OSError, MemoryError) as error:
                self._send_no_room(front, frames.NO_ROOM_FOR_ANSWER, str(error), slot, sequence)
                return
            except Exception as error:  # what the model gave cannot be sent, and that belongs to this batch alone
                self._send_failure(front, error, slot, sequence)
                return
        else:
            for view, output in zip(layout.views, arrays, strict=True):
                view[...] = output
        head = frames.HEADER.pack(frames.Kind.REPLY, fd >= 0, slot, rows, sequence)
        self._send(front, head + frames.NANOSECONDS.pack(nanoseconds) + layout.described, fd)
        if self.watch is not None and rows > 1:
            self.watch.note(inputs, dict(zip(self.answers.names, arrays, strict=False)), form, rows)

    def _send_failure(self, front: _LinkEnd, error: BaseException, slot: int, sequence: int) -> None:
        flags, text = 0, type(error).__name__
        try:
            text = f"{text}: {error}"
            if getattr(error, "is_input_fault", False):
                flags, text = frames.INPUT_FAULT, str(error)
        except Exception as own:  # the model's own exception, which may fail at telling what it is
            print(f"{text} cannot be shown: {type(own).__name__}", file=sys.stderr, flush=True)
        # The client is told; the log is not for what clients send.
        if not flags:
            traceback.print_exception(error)
        data = text.encode(errors="replace")[:MAX_ERROR_BYTES]
        self._send(front, frames.HEADER.pack(frames.Kind.ERROR, flags, slot, 0, sequence) + data)

    def _send_no_room(self, front: _LinkEnd, flag: int, text: str, slot: int, sequence: int) -> None:
        """Refuse a batch for which there is no descriptor or memory left; its slot begins anew."""
        print(f"no room for a batch: {text}", file=sys.stderr, flush=True)
        front.inputs[slot] = front.outputs[slot] = None
        head = frames.HEADER.pack(frames.Kind.ERROR, flag, slot, 0, sequence)
        self._send(front, head + text.encode(errors="replace")[:MAX_ERROR_BYTES])


def _place_outputs(arena: frames.Arena, arrays: list[NDArray[Any]], key: Hashable | None) -> tuple[int, frames.Layout]:
    """Write outputs of shapes that their arena has not had, or has forgotten.

    Returns:
        The descriptor of an arena of their own where they do not fit, else -1; and where they stand.

    Raises:
        OSError: there is no descriptor or memory for that.
    """
    codes = [CODES[output.dtype] for output in arrays]
    columns = [
        np.frombuffer(frames.flatten_bytes(output), np.uint8) if code == OBJECT else output
        for code, output in zip(codes, arrays, strict=True)
    ]
    kinds = [(column.nbytes, code, output.shape) for column, code, output in zip(columns, codes, arrays, strict=True)]
    tensors, num_bytes = frames.place_tensors(kinds)
    fd = -1
    if num_bytes > arena.num_bytes:
        fd, arena = frames.make_output(num_bytes)
    try:
        layout = arena.view(tensors)
        for view, column in zip(layout.views, columns, strict=True):
            view[...] = column
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise
    if fd < 0 and key is not None and OBJECT not in codes:
        arena.keep(key, layout)
    return fd, layout


def _read_inputs(arena: frames.Arena, described: bytes) -> list[NDArray[Any]]:
    """View the tensors that a frame describes, which are checked once."""
    layout = arena.layouts.get(described)
    if layout is not None:
        # Views of their own: a model may reshape what it is given.
        return [view.view() for view in layout.views]
    tensors = frames.unpack_tensors(described, 0, arena.num_bytes)
    views = [frames.read_tensor(arena.memory, tensor) for tensor in tensors]
    if all(tensor.code != OBJECT for tensor in tensors):
        arena.keep(described, frames.Layout([view.view() for view in views], described))
    return views


def run_worker(channel: Channel, spec: Message) -> int:
    """Load and serve; returns the exit code."""
    channel.send(Hello())
    end_first()
    worker = Worker(channel, spec)
    try:
        report = worker.load()
    except Exception as error:  # the edge of the process: whatever the model raises is the reason it was refused
        traceback.print_exc()
        sys.stderr.flush()
        channel.send(_describe_refusal(error, spec["free_bytes"]))
        return EXIT_REFUSED
    channel.send(report)
    gc.freeze()
    worker.serve()
    return 0


def _describe_refusal(error: Exception, free_bytes: int) -> Refused:
    lack = f"it asks for more memory than the {free_bytes >> 20} MiB that are free for it: " if lacks_memory(error) else ""
    text = fit_text(f"{lack}{type(error).__name__}: {error}")
    if not isinstance(error, warmup.GoldenMismatch):
        return Refused(text)
    tensor, is_told = fit_text(error.tensor, 200), math.isfinite(error.got)
    return Refused(text, tensor, error.got if is_told else None, None if is_told else fit_text(error.how, 200), error.allowed)
