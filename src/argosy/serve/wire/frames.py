"""What travels between a front and a worker: small frames over a socket, tensors in shared memory.

One SOCK_SEQPACKET pair per front and worker. Tensors stand in arenas: anonymous memory files that the
front makes, seals against resizing and passes as descriptors. A batch occupies one slot; a slot has one
arena for inputs and one for outputs. An output that does not fit comes in a descriptor of its own.

    front -> worker   ARENA  flags, slot, two descriptors   (before the first batch of that size)
                      BATCH  slot, form (FORM_...), rows, sequence, input tensors
    worker -> front   HELLO  credits
                      ARENA  flags, slot    (whether it has them, where it was asked)
                      REPLY  slot, rows, sequence, nanoseconds in the runtime, output tensors
                      ERROR  flags, slot, sequence, text    (the batch failed, the worker lives)

Who has no descriptor or memory left for an arena refuses that batch alone, and the next one brings arenas anew: of the link
itself nothing depends on them.

STREAMS passes one end of a socket pair, once: raw requests travel as `stream_frames.py` says.

NumPy and the standard library only: any interpreter can host a worker.
"""

from __future__ import annotations

import array
import fcntl
import math
import mmap
import os
import socket
import struct
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import DTYPES, MAX_RANK, OBJECT

__all__ = [
    "ASKED",
    "FORM_COUNTED",
    "FORM_RAW",
    "FORM_TENSORS",
    "FRAME_BYTES",
    "HEADER",
    "INPUT_FAULT",
    "MAX_EMPTY_PRODUCT",
    "MAX_TENSORS",
    "NANOSECONDS",
    "NO_ROOM",
    "NO_ROOM_FOR_ANSWER",
    "NUM_SLOTS",
    "Arena",
    "Kind",
    "Layout",
    "LinkError",
    "Tensor",
    "flatten_bytes",
    "make_arena",
    "make_output",
    "map_arena",
    "pack_tensors",
    "place_tensors",
    "read_elements",
    "read_frame",
    "read_tensor",
    "unpack_tensors",
]

FRAME_BYTES: Final = 64 * 1024
NUM_SLOTS: Final = 2
MAX_TENSORS: Final = 256
_ALIGNMENT: Final = 64
_MAX_LAYOUTS: Final = 256
MAX_EMPTY_PRODUCT: Final = 1 << 40
"""A tensor without elements costs nothing to send, so its other dimensions are bounded here: NumPy refuses larger ones."""
_RESIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

HEADER: Final = struct.Struct("<BBHIQ")  # kind, flags, slot, rows (or tensors), sequence
NANOSECONDS: Final = struct.Struct("<Q")

# What a batch is made of.
FORM_TENSORS: Final = 0
"""The tensors of the signature."""
FORM_RAW: Final = 1
"""Those that the worker preprocesses: texts and pictures."""
FORM_COUNTED: Final = 2
"""As FORM_RAW; the answer then ends with one more output, the tokens of each row, INT64."""
INPUT_FAULT: Final = 1
"""Flag of ERROR: a row of the batch is not what the version takes, and its sender is at fault."""
ASKED: Final = 1
"""Flag of ARENA: the front waits to hear whether the worker has them, before it hands a batch over."""
NO_ROOM: Final = 2
"""Flag of ERROR, and of the worker's ARENA: it has no descriptor or memory left for arenas, and keeps none for the slot. A batch
has not run."""
NO_ROOM_FOR_ANSWER: Final = 4
"""Flag of ERROR: the same, of a batch that has run."""


class Kind:
    """Frame kinds."""

    ARENA = 1
    BATCH = 2
    HELLO = 3
    REPLY = 4
    ERROR = 5
    STREAMS = 6


class LinkError(Exception):
    """The peer broke the protocol or is gone: the link is of no use any more."""


class Tensor(NamedTuple):
    """Where a tensor stands in an arena."""

    offset: int
    num_bytes: int
    code: int
    shape: tuple[int, ...]


class Layout(NamedTuple):
    """Tensors in an arena."""

    views: list[NDArray[Any]]
    """Of the arena's memory, one a tensor; bytes where the tensor is BYTES."""
    described: bytes
    """For a frame."""


class Arena:
    """An arena as one process maps it. Batches of the same shapes come again and again: what was made for one is kept.

    Args:
        memory: the mapping.

    Attributes:
        layouts: what was kept, by whatever tells shapes apart.
    """

    __slots__ = ("layouts", "memory", "num_bytes")

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.num_bytes = len(memory)
        self.layouts: dict[Hashable, Layout] = {}

    def view(self, tensors: Sequence[Tensor]) -> Layout:
        """Make views that tensors are written to."""
        views = [
            np.frombuffer(self.memory, np.uint8, tensor.num_bytes, tensor.offset)
            if tensor.code == OBJECT
            else read_tensor(self.memory, tensor)
            for tensor in tensors
        ]
        return Layout(views, pack_tensors(tensors))

    def keep(self, key: Hashable, layout: Layout) -> None:
        """Remember a layout; the number of those is bounded, for clients choose the shapes."""
        if len(self.layouts) >= _MAX_LAYOUTS:
            self.layouts.clear()
        self.layouts[key] = layout


def place_tensors(kinds: Iterable[tuple[int, int, tuple[int, ...]]]) -> tuple[list[Tensor], int]:
    """Place tensors side by side, each at the beginning of a cache line.

    Args:
        kinds: bytes, code and shape of each.

    Returns:
        The tensors, and the bytes that they take together.
    """
    tensors: list[Tensor] = []
    offset = 0
    for num_bytes, code, shape in kinds:
        tensors.append(Tensor(offset, num_bytes, code, shape))
        offset = (offset + num_bytes + _ALIGNMENT - 1) & -_ALIGNMENT
    return tensors, offset


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
        head: tuple[int, int, int, int] = _TENSOR_HEAD.unpack_from(frame, pos)
        offset, num_bytes, code, rank = head
        pos += _TENSOR_HEAD.size
        if rank > MAX_RANK or code > OBJECT or end - pos < 8 * rank:
            raise LinkError("frame describes an impossible tensor")
        shape = struct.unpack_from(f"<{rank}Q", frame, pos)
        pos += 8 * rank
        if offset + num_bytes > arena_bytes or (code != OBJECT and math.prod(shape) * DTYPES[code].itemsize != num_bytes):
            raise LinkError("frame describes a tensor outside its arena")
        if 0 in shape and math.prod(dim for dim in shape if dim) > MAX_EMPTY_PRODUCT:
            raise LinkError("frame describes an empty tensor of impossible dimensions")
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
    """Serialise a BYTES tensor, whose elements are all `bytes`: each is a 4-byte little-endian length and its bytes."""
    parts: list[bytes] = []
    for item in array_.ravel().tolist():
        parts += (len(item).to_bytes(4, "little"), item)
    return b"".join(parts)


def make_arena(size_bytes: int) -> tuple[int, Arena]:
    """Make a sealed anonymous memory file and map it; returns its descriptor and the arena."""
    return _make_memory("argosy-arena", size_bytes)


def make_output(size_bytes: int) -> tuple[int, Arena]:
    """A memory file for an output that does not fit the arena; sealed, so that it cannot shrink under the front."""
    return _make_memory("argosy-output", size_bytes)


def _make_memory(name: str, size_bytes: int) -> tuple[int, Arena]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        # Unsealed, a process that truncates the file would kill the other one with SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _RESIZE_SEALS | fcntl.F_SEAL_SEAL)
        return fd, Arena(mmap.mmap(fd, size_bytes))
    except BaseException:
        os.close(fd)
        raise


def map_arena(fd: int, access: int = mmap.ACCESS_WRITE) -> Arena:
    """Map an arena that the peer sent, and close its descriptor.

    Raises:
        LinkError: it can still be resized, or is empty.
        OSError: there is no memory for it.
    """
    try:
        try:
            seals, size_bytes = fcntl.fcntl(fd, fcntl.F_GET_SEALS), os.fstat(fd).st_size
        except OSError as error:
            raise LinkError(f"arena is no memory file: {error}") from error
        if seals & _RESIZE_SEALS != _RESIZE_SEALS:
            raise LinkError("arena is not sealed")
        if size_bytes == 0:
            raise LinkError("arena is empty")
        return Arena(mmap.mmap(fd, size_bytes, access=access))
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
