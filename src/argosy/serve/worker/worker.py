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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import CODES, DATATYPES, OBJECT, learn_bfloat16
from argosy.runtimes.base import NUM_TOKENS, Runtime, StreamRuntime, load_runtime_class
from argosy.serve.wire import frames
from argosy.serve.wire.channel import Channel
from argosy.serve.wire.control_messages import EXIT_REFUSED, Hello, NewLink, Ready, Refused, fit_text
from argosy.serve.wire.frames import FORM_COUNTED
from argosy.serve.wire.stream_frames import MAX_ERROR_BYTES
from argosy.serve.worker import cores, padding_proof, warmup
from argosy.serve.worker.agreement import choose_measure

if TYPE_CHECKING:
    from argosy.runtimes.preprocess import Preprocessor
    from argosy.serve.worker.streams import StreamThreads

__all__ = ["Worker", "run_worker"]

NUM_CREDITS: Final = 2
MAX_REFUSAL: Final = 1000

Arrays = dict[str, NDArray[Any]]
Times = tuple[tuple[int, float], ...]
LengthTimes = tuple[tuple[int, int, float], ...]
Message = dict[str, Any]


class AnswerError(Exception):
    """The model's answer is not what its signature promises."""


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
        self.inputs: list[Message] = spec["signature"]["inputs"]
        self.outputs: list[Message] = spec["signature"]["outputs"]
        shapes = [tensor["shape"] for tensor in self.inputs + self.outputs]
        self.is_batched = all(shape and shape[0] == -1 for shape in shapes)
        if "BF16" in {tensor["datatype"] for tensor in self.inputs + self.outputs}:
            learn_bfloat16()
        self.output_dtypes = [DATATYPES[tensor["datatype"]] for tensor in self.outputs]
        self.names: list[str] = [tensor["name"] for tensor in self.inputs]
        self.output_names: list[str] = [tensor["name"] for tensor in self.outputs]
        steps: list[Message] = spec["signature"].get("preprocess", [])
        made = [name for step in steps for name in step["inputs"]]
        # As `Signature.raw_inputs`.
        self.raw_names = [step["name"] for step in steps] + [name for name in self.names if name not in made]
        self.ragged: Message | None = spec["signature"].get("ragged")
        self.preprocessor: Preprocessor | None = None
        self.runtime: Runtime | None = None
        self.streams: StreamThreads | None = None
        self.poll = select.epoll()
        self.fronts: dict[int, _LinkEnd] = {}

    # load

    def load(self) -> Ready:
        """Load, verify and measure the model; returns the report."""
        started = time.perf_counter()
        folder = Path(self.spec["folder"])
        golden = self.spec.get("golden")
        inputs, outputs = warmup.load_golden(folder / golden) if golden else ({}, {})
        threads = self._open(folder, inputs)
        load_s = time.perf_counter() - started
        measure = choose_measure(self.spec["precision"])
        difference = None
        if inputs:
            difference = warmup.verify_golden(self._infer, inputs, outputs, is_batched=self.is_batched, measure=measure)
        join_refusal, pad_refusal = "the signature has no axis of rows", None
        by_rows: Times = ()
        by_length: LengthTimes = ()
        if self.is_batched:
            join_refusal = warmup.prove_joining(self._infer, inputs, measure)
            pad_refusal = self._try_lengths(inputs, measure, join_refusal)
            if inputs:
                by_rows, by_length = self._measure(inputs, is_joined=not join_refusal)
        return Ready(
            load_s=load_s,
            warm_s=time.perf_counter() - started - load_s,
            threads=threads,
            memory_bytes=_own_memory_bytes(),
            golden_difference=difference,
            join_refusal=fit_text(join_refusal, MAX_REFUSAL),
            pad_refusal=None if pad_refusal is None else fit_text(pad_refusal, MAX_REFUSAL),
            service_s=by_rows,
            service=by_length,
        )

    def _try_lengths(self, inputs: Arrays, measure: warmup.Measure, join_refusal: str) -> str | None:
        """Find out whether rows of different lengths may be joined; and load what makes tensors of texts and pictures."""
        refusal = join_refusal
        if self.ragged and not refusal:
            refusal = padding_proof.prove_padding(self._infer, inputs, self.ragged, measure)
        signature = self.spec["signature"]
        if signature.get("preprocess"):
            from argosy.runtimes.preprocess import Preprocessor

            # Threads of the package tokenizers would take the cores that the runtime and the fronts work on.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            self.preprocessor = Preprocessor(signature, Path(self.spec["folder"]))
            self.preprocessor.can_pad = bool(self.ragged) and not refusal
        return refusal if self.ragged else None

    def _measure(self, inputs: Arrays, *, is_joined: bool) -> tuple[Times, LengthTimes]:
        """Measure batches: seconds by rows, and by rows and length."""
        limit = self.spec["max_batch_rows"] if is_joined else 1
        budget_s = warmup.MEASURE_S / 2 if self.ragged else warmup.MEASURE_S
        times = tuple(warmup.measure_service(self._infer, inputs, limit, budget_s).items())
        if not self.ragged:
            return times, tuple((rows, 0, seconds) for rows, seconds in times)
        lengths = padding_proof.measure_lengths(self._infer, inputs, self.ragged, budget_s)
        own = next(iter(padding_proof.list_lengths(inputs, self.ragged)), 0)
        by_length = [
            *((rows, own, seconds) for rows, seconds in times),
            *((1, length, seconds) for length, seconds in lengths.items()),
        ]
        return times, tuple(by_length)

    def _open(self, folder: Path, inputs: Arrays) -> int:
        """Load the artifact; returns the threads of one operator, which are found out where the deployment leaves them open."""
        options = self.spec["options"]
        kind = load_runtime_class(self.spec["runtime"])

        def load(threads: int) -> None:
            self.runtime = None  # what is replaced gives its memory back first
            runtime = kind()
            runtime.load(folder, self.spec["entry"], {**options, "threads": threads})
            self.runtime = runtime

        def choose() -> int:
            measure = partial(warmup.measure_row, self._infer, inputs, is_batched=self.is_batched)
            return cores.choose_threads(load, measure, options["max_threads"])

        is_open = not options["threads"] and options["max_threads"] > 1 and bool(inputs)
        if is_open and not kind.fixes_threads(folder):
            return choose()
        threads = cores.run_apart(choose) if is_open else options["threads"] or 1
        load(threads)
        return threads

    def _infer(self, inputs: Arrays) -> Arrays:
        assert self.runtime is not None
        return self.runtime.infer(inputs)

    def _infer_raw(self, inputs: Arrays, form: int) -> Arrays:
        assert self.preprocessor is not None
        return self.preprocessor.apply(inputs, self._infer, counts=form == FORM_COUNTED)

    # serve

    def serve(self) -> None:
        """Answer batches until the supervisor is gone."""
        self.poll.register(self.channel.fileno(), select.EPOLLIN)
        while True:
            for fd, _ in self.poll.poll():
                front = self.fronts.get(fd)
                if front is not None:
                    self._take(front)
                elif not self._take_link():
                    return

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
            elif kind == frames.Kind.BATCH:
                self._run(front, frame, flags, slot, rows, sequence)
            elif kind == frames.Kind.STREAMS and len(fds) == 1:
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
            self.streams = StreamThreads(cast(StreamRuntime, self.runtime).raw)
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
            self._send_no_room(front, "its arenas could not be mapped", slot, sequence)
            return
        if form and (self.preprocessor is None or form > FORM_COUNTED):
            raise frames.LinkError("unknown form")
        names = self.raw_names if form else self.names
        inputs = dict(zip(names, _read_inputs(arena, frame[frames.HEADER.size :]), strict=True))
        try:
            before = time.perf_counter_ns()
            answer = self._infer_raw(inputs, form) if form else self._infer(inputs)
            nanoseconds = time.perf_counter_ns() - before
            arrays = self._order(answer, form)
            # All that the check depends on.
            key = (rows, *[(output.dtype, output.shape) for output in arrays])
            layout = outputs.layouts.get(key)
            if layout is None:
                self._check(arrays, rows)
        except Exception as error:  # the model's own code: whatever it raises belongs to this batch alone
            self._send_failure(front, error, slot, sequence)
            return
        fd = -1
        if layout is None:
            try:
                fd, layout = _place_outputs(outputs, arrays, key)
            except (OSError, MemoryError) as error:
                self._send_no_room(front, str(error), slot, sequence)
                return
            except Exception as error:  # what the model gave cannot be sent, and that belongs to this batch alone
                self._send_failure(front, error, slot, sequence)
                return
        else:
            for view, output in zip(layout.views, arrays, strict=True):
                view[...] = output
        head = frames.HEADER.pack(frames.Kind.REPLY, fd >= 0, slot, rows, sequence)
        self._send(front, head + frames.NANOSECONDS.pack(nanoseconds) + layout.described, fd)

    def _send_failure(self, front: _LinkEnd, error: Exception, slot: int, sequence: int) -> None:
        text = f"{type(error).__name__}: {error}"
        flags = 0
        if getattr(error, "is_input_fault", False):
            # The client is told; the log is not for what clients send.
            flags, text = frames.INPUT_FAULT, str(error)
        else:
            traceback.print_exception(error)
        data = text.encode(errors="replace")[:MAX_ERROR_BYTES]
        self._send(front, frames.HEADER.pack(frames.Kind.ERROR, flags, slot, 0, sequence) + data)

    def _send_no_room(self, front: _LinkEnd, text: str, slot: int, sequence: int) -> None:
        """Fail a batch for which there is no descriptor or memory left; its slot begins anew."""
        print(f"no room for a batch: {text}", file=sys.stderr, flush=True)
        front.inputs[slot] = front.outputs[slot] = None
        head = frames.HEADER.pack(frames.Kind.ERROR, frames.NO_ROOM, slot, 0, sequence)
        self._send(front, head + text.encode(errors="replace")[:MAX_ERROR_BYTES])

    def _order(self, answer: Arrays, form: int) -> list[NDArray[Any]]:
        """Put the outputs in the signature's order."""
        arrays = [output for name in self.output_names if (output := answer.get(name)) is not None]
        if len(arrays) < len(self.output_names):
            missing = next(name for name in self.output_names if answer.get(name) is None)
            raise AnswerError(f"output {missing!r} is missing; got {', '.join(sorted(answer))}")
        if form == FORM_COUNTED:
            arrays.append(answer[NUM_TOKENS])
        return arrays

    def _check(self, arrays: list[NDArray[Any]], rows: int) -> None:
        """Check datatypes, shapes and number of rows; what is counted beside the outputs is our own."""
        for spec, dtype, got in zip(self.outputs, self.output_dtypes, arrays, strict=False):
            name, shape = spec["name"], spec["shape"]
            if got.dtype != dtype:
                raise AnswerError(f"output {name!r} has type {got.dtype}, expected {dtype}")
            if len(got.shape) != len(shape) or any(want not in (-1, dim) for want, dim in zip(shape, got.shape, strict=True)):
                raise AnswerError(f"output {name!r} has shape {got.shape}, expected {tuple(shape)}")
            if self.is_batched and got.shape[0] != rows:
                raise AnswerError(f"output {name!r} has {got.shape[0]} rows for {rows}; the model must keep the first axis")


def _place_outputs(arena: frames.Arena, arrays: list[NDArray[Any]], key: Hashable) -> tuple[int, frames.Layout]:
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
    if fd < 0 and OBJECT not in codes:
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


def _own_memory_bytes() -> int:
    """Memory that would be given back if this process ended: its private pages."""
    kinds = ("Private_Clean:", "Private_Dirty:")
    with open("/proc/self/smaps_rollup") as file:  # noqa: PTH123 - procfs, and pathlib is not imported for it elsewhere
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(kinds))


def run_worker(channel: Channel, spec: Message) -> int:
    """Load and serve; returns the exit code."""
    channel.send(Hello())
    worker = Worker(channel, spec)
    try:
        report = worker.load()
    except Exception as error:  # the edge of the process: whatever the model raises is the reason it was refused
        traceback.print_exc()
        sys.stderr.flush()
        channel.send(_describe_refusal(error))
        return EXIT_REFUSED
    channel.send(report)
    gc.freeze()
    worker.serve()
    return 0


def _describe_refusal(error: Exception) -> Refused:
    text = fit_text(f"{type(error).__name__}: {error}")
    if not isinstance(error, warmup.GoldenMismatch):
        return Refused(text)
    return Refused(text, fit_text(error.tensor, 200), error.got if math.isfinite(error.got) else None, error.allowed)
