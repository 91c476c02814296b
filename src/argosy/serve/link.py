"""The front's link to a worker: batches of rows through shared memory, small frames over a socket.

One SOCK_SEQPACKET pair per front and worker. Tensors stand in arenas: anonymous memory files that the
front makes, seals against resizing and passes as descriptors. A batch occupies one slot; a slot has one
arena for inputs and one for outputs. An output that does not fit comes in a descriptor of its own.

    front -> worker   ARENA  slot, two descriptors      (before the first batch of that size)
                      BATCH  slot, rows, sequence, input tensors
    worker -> front   HELLO  credits
                      REPLY  slot, rows, sequence, nanoseconds in the runtime, output tensors
                      ERROR  slot, sequence, text       (the batch failed, the worker lives)

The worker's side (`worker.py`) imports the frame functions from here: NumPy and the standard library only.
"""

from __future__ import annotations

import array
import fcntl
import math
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from argosy.serve.batcher import Batch

__all__ = [
    "FRAME_BYTES",
    "Kind",
    "Link",
    "LinkError",
    "Tensor",
    "align",
    "make_arena",
    "map_arena",
    "pack_tensors",
    "read_elements",
    "read_frame",
    "read_tensor",
    "unpack_tensors",
    "write_tensor",
]

FRAME_BYTES: Final = 64 * 1024
NUM_SLOTS: Final = 2
MIN_ARENA_BYTES: Final = 64 * 1024
MAX_TENSORS: Final = 256
MAX_RANK: Final = 16
_ALIGNMENT: Final = 64
_RESIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

HEADER: Final = struct.Struct("<BBHIQ")  # kind, flags, slot, rows (or tensors), sequence
NANOSECONDS: Final = struct.Struct("<Q")

# Codes of the element types on the wire; BYTES travel as length-prefixed elements.
DTYPES: Final = tuple(np.dtype(code) for code in ("?", "u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", "O"))
CODES: Final = {dtype: code for code, dtype in enumerate(DTYPES)}
OBJECT: Final = len(DTYPES) - 1


class Kind:
    """Frame kinds."""

    ARENA = 1
    BATCH = 2
    HELLO = 3
    REPLY = 4
    ERROR = 5


class LinkError(Exception):
    """The peer broke the protocol or is gone: the link is of no use any more."""


class Tensor(NamedTuple):
    """Where a tensor stands in an arena."""

    offset: int
    num_bytes: int
    code: int
    shape: tuple[int, ...]


def align(offset: int) -> int:
    """Round up to the next cache line."""
    return (offset + _ALIGNMENT - 1) & -_ALIGNMENT


@lru_cache(maxsize=4096)
def _tensor_struct(ranks: tuple[int, ...]) -> struct.Struct:
    return struct.Struct("<" + "".join(f"QQBB{rank}Q" for rank in ranks))


def pack_tensors(tensors: Sequence[Tensor]) -> bytes:
    """Describe tensors for a frame."""
    fields: list[int] = []
    for tensor in tensors:
        fields += (tensor.offset, tensor.num_bytes, tensor.code, len(tensor.shape), *tensor.shape)
    return _tensor_struct(tuple(len(tensor.shape) for tensor in tensors)).pack(*fields)


_TENSOR_HEAD: Final = struct.Struct("<QQBB")


def unpack_tensors(frame: bytes, pos: int, arena_bytes: int) -> list[Tensor]:
    """Read tensor descriptions from `frame[pos:]`, and check that each lies within the arena.

    Raises:
        LinkError: a length, offset, rank or type is impossible.
    """
    tensors: list[Tensor] = []
    end = len(frame)
    while pos < end:
        if end - pos < _TENSOR_HEAD.size or len(tensors) == MAX_TENSORS:
            raise LinkError("frame is cut, or holds too many tensors")
        offset, num_bytes, code, rank = _TENSOR_HEAD.unpack_from(frame, pos)
        pos += _TENSOR_HEAD.size
        if rank > MAX_RANK or code > OBJECT or end - pos < 8 * rank:
            raise LinkError("frame describes an impossible tensor")
        shape = struct.unpack_from(f"<{rank}Q", frame, pos)
        pos += 8 * rank
        if offset + num_bytes > arena_bytes or (code != OBJECT and math.prod(shape) * DTYPES[code].itemsize != num_bytes):
            raise LinkError("frame describes a tensor outside its arena")
        tensors.append(Tensor(offset, num_bytes, code, shape))
    return tensors


def read_tensor(memory: mmap.mmap, tensor: Tensor) -> NDArray[Any]:
    """View a tensor in an arena without a copy (BYTES are copied out as an object array)."""
    if tensor.code == OBJECT:
        return read_elements(memory[tensor.offset : tensor.offset + tensor.num_bytes], tensor.shape)
    return np.frombuffer(memory, DTYPES[tensor.code], math.prod(tensor.shape), tensor.offset).reshape(tensor.shape)


def read_elements(data: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read a BYTES tensor: each element is a 4-byte little-endian length and its bytes.

    Raises:
        LinkError: the data is shorter than the shape says.
    """
    count = math.prod(shape)
    if 4 * count > len(data):
        raise LinkError("a BYTES tensor is shorter than its shape says")
    out = np.empty(count, dtype=object)
    pos = 0
    for index in range(count):
        size = int.from_bytes(data[pos : pos + 4], "little")
        pos += 4
        if pos + size > len(data):
            raise LinkError("an element of a BYTES tensor is cut")
        out[index] = data[pos : pos + size]
        pos += size
    return out.reshape(shape)


def flatten_bytes(array_: NDArray[Any]) -> bytes:
    """Serialise a BYTES tensor: each element is a 4-byte little-endian length and its bytes."""
    parts: list[bytes] = []
    for item in array_.ravel().tolist():
        raw = item.encode() if isinstance(item, str) else bytes(item)
        parts += (len(raw).to_bytes(4, "little"), raw)
    return b"".join(parts)


def write_tensor(memory: mmap.mmap, tensor: Tensor, parts: Sequence[NDArray[Any]]) -> None:
    """Write arrays side by side along the first axis into one contiguous tensor."""
    target = np.frombuffer(memory, DTYPES[tensor.code], math.prod(tensor.shape), tensor.offset).reshape(tensor.shape)
    if len(parts) == 1:
        target[...] = parts[0]
    else:
        np.concatenate(parts, out=target)


def make_arena(size_bytes: int) -> tuple[int, mmap.mmap]:
    """Make a sealed anonymous memory file and map it; returns its descriptor and the mapping."""
    fd = os.memfd_create("argosy-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        # Unsealed, a worker that truncates the file would kill the front with SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _RESIZE_SEALS | fcntl.F_SEAL_SEAL)
        return fd, mmap.mmap(fd, size_bytes)
    except BaseException:
        os.close(fd)
        raise


def map_arena(fd: int, access: int = mmap.ACCESS_WRITE) -> mmap.mmap:
    """Map an arena that the peer sent, and close its descriptor.

    Raises:
        LinkError: it can still be resized, or is empty.
    """
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _RESIZE_SEALS != _RESIZE_SEALS:
            raise LinkError("arena is not sealed")
        size_bytes = os.fstat(fd).st_size
        if size_bytes == 0:
            raise LinkError("arena is empty")
        return mmap.mmap(fd, size_bytes, access=access)
    except OSError as error:
        raise LinkError(f"arena cannot be mapped: {error}") from error
    finally:
        os.close(fd)


def read_frame(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive one frame and its descriptors; an empty frame means that the peer is gone."""
    data, ancillary, _, _ = sock.recvmsg(FRAME_BYTES, 64, socket.MSG_CMSG_CLOEXEC)
    if not ancillary:
        return data, []
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % 4])
    return data, list(fds)


class _Slot:
    """Room for one batch in flight."""

    __slots__ = ("batch", "index", "input_bytes", "inputs", "output_bytes", "outputs")

    def __init__(self, index: int) -> None:
        self.index = index
        self.batch: Batch | None = None
        self.inputs: mmap.mmap | None = None
        self.outputs: mmap.mmap | None = None
        self.input_bytes = 0
        self.output_bytes = 0


class Link:
    """The front's end. Sends batches while it has credits, hands replies to the batch's lane.

    Args:
        loop: the front's event loop.
        sock: the front's end of the pair.
        worker: the worker's id.
        on_hello: called with this link once the worker can take batches.
        on_down: called with this link once, when the worker is gone or broke the protocol.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        worker: str,
        on_hello: Callable[[Link], None],
        on_down: Callable[[Link], None],
    ) -> None:
        self.worker = worker
        self.credits = 0
        self.is_up = False
        self.num_in_flight = 0
        self._loop = loop
        self._sock = sock
        self._on_hello = on_hello
        self._on_down = on_down
        self._slots = [_Slot(index) for index in range(NUM_SLOTS)]
        self._free: list[_Slot] = []
        self._sequence = 0
        self._oversize_bytes = 0
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._on_readable)

    @property
    def can_send(self) -> bool:
        """True when the worker has granted a credit that is not used."""
        return bool(self._free)

    @property
    def oldest_sent_s(self) -> float | None:
        """When the oldest batch in flight was sent, on the loop's clock."""
        sent = [slot.batch.sent_s for slot in self._slots if slot.batch is not None]
        return min(sent, default=None)

    def send(self, batch: Batch) -> None:
        """Write a batch's rows into a free slot and hand it to the worker."""
        slot = self._free.pop()
        slot.batch = batch
        self._sequence += 1
        batch.sequence = self._sequence
        batch.sent_s = self._loop.time()
        self.num_in_flight += 1
        try:
            self._send_frame(slot, batch)
        except (OSError, LinkError):
            # The batch stays in its slot: going down gives it back to its lane.
            self._loop.call_soon(self.close)

    def _send_frame(self, slot: _Slot, batch: Batch) -> None:
        tensors: list[Tensor] = []
        columns: list[list[NDArray[Any]]] = []
        offset = 0
        for index in range(len(batch.calls[0].inputs)):
            column = [call.inputs[index] for call in batch.calls]
            first = column[0]
            shape = first.shape if len(column) == 1 else (batch.num_rows, *first.shape[1:])
            code = CODES[first.dtype]
            if code == OBJECT:
                packed = np.frombuffer(b"".join(flatten_bytes(part) for part in column), np.uint8)
                column = [packed]
                num_bytes = packed.nbytes
            else:
                num_bytes = first.nbytes if len(column) == 1 else math.prod(shape) * first.itemsize
            tensors.append(Tensor(offset, num_bytes, code, shape))
            columns.append(column)
            offset = align(offset + num_bytes)
        self._reserve(slot, offset)
        assert slot.inputs is not None
        for tensor, column in zip(tensors, columns, strict=True):
            if tensor.code == OBJECT:
                write_tensor(slot.inputs, Tensor(tensor.offset, tensor.num_bytes, 1, (tensor.num_bytes,)), column)
            else:
                write_tensor(slot.inputs, tensor, column)
        header = HEADER.pack(Kind.BATCH, 0, slot.index, batch.num_rows, batch.sequence)
        self._sock.send(header + pack_tensors(tensors))

    def _reserve(self, slot: _Slot, input_bytes: int) -> None:
        """Make the slot's arenas large enough, and give the worker their descriptors."""
        if slot.inputs is not None and input_bytes <= slot.input_bytes and self._oversize_bytes <= slot.output_bytes:
            return
        slot.input_bytes = _round_up(max(input_bytes, slot.input_bytes))
        slot.output_bytes = _round_up(max(self._oversize_bytes, slot.output_bytes))
        input_fd, slot.inputs = make_arena(slot.input_bytes)
        try:
            output_fd, slot.outputs = make_arena(slot.output_bytes)
            try:
                frame = HEADER.pack(Kind.ARENA, 0, slot.index, 0, 0)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [input_fd, output_fd]))]
                self._sock.sendmsg([frame], rights)
            finally:
                os.close(output_fd)
        finally:
            os.close(input_fd)

    def _on_readable(self) -> None:
        try:
            self._read_one()
        except BlockingIOError:
            return
        except ConnectionResetError:
            # The worker died with frames unread. The kernel tells that first, and the loop calls only once:
            # the replies that the worker sent before are still there, and then the end.
            self._read_rest()
        except (OSError, LinkError, struct.error):
            self.close()

    def _read_rest(self) -> None:
        try:
            while True:
                self._read_one()
        except (OSError, LinkError, struct.error):
            self.close()

    def _read_one(self) -> None:
        frame, fds = read_frame(self._sock)
        try:
            if not frame:
                raise LinkError("worker is gone")
            self._take_frame(frame, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _take_frame(self, frame: bytes, fds: list[int]) -> None:
        kind, flags, slot_index, count, sequence = HEADER.unpack_from(frame)
        if kind == Kind.HELLO:
            self.is_up = True
            self.credits = min(count, NUM_SLOTS)
            self._free = [slot for slot in self._slots[: self.credits] if slot.batch is None]
            self._on_hello(self)
            return
        slot = self._slots[slot_index] if slot_index < NUM_SLOTS else None
        batch = slot.batch if slot is not None else None
        if slot is None or batch is None or batch.sequence != sequence:
            raise LinkError("worker answered a batch that it does not have")
        if kind == Kind.ERROR:
            self._release(slot)
            batch.lane.take_failure(batch, frame[HEADER.size :].decode(errors="replace"))
            return
        if kind != Kind.REPLY:
            raise LinkError("worker sent an unknown frame")
        (nanoseconds,) = NANOSECONDS.unpack_from(frame, HEADER.size)
        if flags:
            memory = map_arena(fds.pop(), mmap.ACCESS_READ) if fds else None
            if memory is None:
                raise LinkError("worker sent no descriptor for a large output")
            self._oversize_bytes = max(self._oversize_bytes, min(len(memory), 1 << 28))
        else:
            memory = slot.outputs
            assert memory is not None
        tensors = unpack_tensors(frame, HEADER.size + NANOSECONDS.size, len(memory))
        batch.lane.check_outputs(batch, tensors)
        outputs = [read_tensor(memory, tensor) for tensor in tensors]
        self.num_in_flight -= 1
        # The other slot's batch starts before these answers are written out.
        batch.lane.flush()
        batch.lane.take_answers(batch, outputs, nanoseconds * 1e-9)
        slot.batch = None
        self._free.append(slot)
        batch.lane.flush()

    def _release(self, slot: _Slot) -> None:
        slot.batch = None
        self.num_in_flight -= 1
        self._free.append(slot)

    def take_batches(self) -> list[Batch]:
        """Give back the batches in flight, oldest first; used when the link is down."""
        batches = sorted((slot.batch for slot in self._slots if slot.batch is not None), key=lambda batch: batch.sequence)
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
        self.is_up = False
        self._on_down(self)


def _round_up(size_bytes: int) -> int:
    return 1 << (max(size_bytes, MIN_ARENA_BYTES) - 1).bit_length()
