"""Frames and arenas: what a peer may describe is checked before anything is read."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from argosy.datatypes import DTYPES, OBJECT
from argosy.serve.wire import frames
from argosy.serve.wire.frames import LinkError, Tensor
from tests.serve.wire.hostile import ARENA, GROW, SEAL, SHRINK, U64, make_file

SETTINGS = settings(max_examples=300, deadline=None, derandomize=True)


# frames


@pytest.fixture(scope="module")
def arena() -> Iterator[mmap.mmap]:
    fd, made = frames.make_arena(ARENA)
    made.memory[:] = bytes(range(256)) * (ARENA // 256)
    yield made.memory
    os.close(fd)


def check_frame(frame: bytes, arena: mmap.mmap) -> bool:
    """Every frame is refused, or describes tensors that can be read; nothing else happens. True when it can be read."""
    try:
        tensors = frames.unpack_tensors(frame, 0, len(arena))
    except LinkError:
        return False
    for tensor in tensors:
        assert 0 <= tensor.offset <= tensor.offset + tensor.num_bytes <= len(arena)
        assert len(tensor.shape) <= frames.MAX_RANK
        try:
            got = frames.read_tensor(arena, tensor)
        except LinkError:
            assert tensor.code == OBJECT  # only elements can be cut where the tensor is not
            continue
        assert got.shape == tensor.shape
        assert got.dtype == DTYPES[tensor.code]
        if tensor.code != OBJECT:
            assert got.tobytes() == arena[tensor.offset : tensor.offset + tensor.num_bytes]
    return True


@st.composite
def good_tensors(draw: st.DrawFn) -> list[Tensor]:
    tensors: list[Tensor] = []
    for _ in range(draw(st.integers(0, 5))):
        code = draw(st.integers(0, OBJECT - 1))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
        num_bytes = int(np.prod(shape, dtype=object)) * DTYPES[code].itemsize
        tensors.append(Tensor(draw(st.integers(0, ARENA - num_bytes)), num_bytes, code, shape))
    return tensors


@SETTINGS
@given(tensors=good_tensors())
def test_frame_says_what_was_packed(tensors: list[Tensor], arena: mmap.mmap) -> None:
    frame = frames.pack_tensors(tensors)
    assert frames.unpack_tensors(b"head" + frame, 4, ARENA) == tensors
    assert check_frame(frame, arena)


@SETTINGS
@given(tensors=good_tensors().filter(bool), data=st.data())
def test_cut_frame_is_refused(tensors: list[Tensor], data: st.DataObject) -> None:
    frame = frames.pack_tensors(tensors)
    whole = {len(frames.pack_tensors(tensors[:count])) for count in range(len(tensors) + 1)}
    cut = data.draw(st.integers(0, len(frame) - 1).filter(lambda size: size not in whole))
    with pytest.raises(LinkError):
        frames.unpack_tensors(frame[:cut], 0, ARENA)


@SETTINGS
@given(offset=U64, num_bytes=U64, code=st.integers(0, 255), shape=st.lists(U64, max_size=20))
@example(offset=0, num_bytes=0, code=10, shape=[0, 2**63])
@example(offset=0, num_bytes=0, code=10, shape=[2**64 - 1, 0])
@example(offset=0, num_bytes=0, code=10, shape=[2**62, 0, 2**62])
@example(offset=0, num_bytes=0, code=OBJECT, shape=[0, 2**64 - 1])
@example(offset=ARENA, num_bytes=0, code=10, shape=[0])
@example(offset=2**64 - 4, num_bytes=4, code=10, shape=[1])
@example(offset=0, num_bytes=0, code=10, shape=[2**32, 2**32])
@example(offset=0, num_bytes=4, code=10, shape=[2**63, 2, 2**62])
def test_impossible_tensor_is_refused(offset: int, num_bytes: int, code: int, shape: list[int], arena: mmap.mmap) -> None:
    frame = struct.pack(f"<QQBB{len(shape)}Q", offset, num_bytes, code, len(shape), *shape)
    is_readable = check_frame(frame, arena)
    if offset + num_bytes > ARENA or code > OBJECT or len(shape) > frames.MAX_RANK:
        assert not is_readable


@SETTINGS
@given(tensors=good_tensors().filter(bool), place=st.integers(0, 200), byte=st.integers(0, 255))
def test_frame_with_a_changed_byte_is_refused_or_read(tensors: list[Tensor], place: int, byte: int, arena: mmap.mmap) -> None:
    frame = bytearray(frames.pack_tensors(tensors))
    frame[place % len(frame)] = byte
    assert check_frame(bytes(frame), arena) in (True, False)


@SETTINGS
@given(frame=st.binary(max_size=200))
def test_random_frame_is_refused_or_read(frame: bytes, arena: mmap.mmap) -> None:
    assert check_frame(frame, arena) == (not frame) or frame


def test_frame_of_too_many_tensors_is_refused() -> None:
    one = frames.pack_tensors([Tensor(0, 1, 1, (1,))])
    assert len(frames.unpack_tensors(one * frames.MAX_TENSORS, 0, ARENA)) == frames.MAX_TENSORS
    with pytest.raises(LinkError):
        frames.unpack_tensors(one * (frames.MAX_TENSORS + 1), 0, ARENA)


@SETTINGS
@given(items=st.lists(st.binary(max_size=9), max_size=6), data=st.data())
def test_elements_are_read_or_refused_where_they_are_cut(items: list[bytes], data: st.DataObject) -> None:
    packed = frames.flatten_bytes(np.array([*items, None], object)[:-1])
    assert frames.read_elements(packed, (len(items),)).tolist() == items
    if packed:
        cut = data.draw(st.integers(0, len(packed) - 1))
        with pytest.raises(LinkError):
            frames.read_elements(packed[:cut], (len(items),))
    with pytest.raises(LinkError):
        frames.read_elements(packed, (len(items) + 1 + len(packed),))
    with pytest.raises(LinkError):
        frames.read_elements(packed, (2**40, 2**40))


# arenas


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_file(None),
        lambda: make_file(0),
        lambda: make_file(GROW),
        lambda: make_file(SHRINK),
        lambda: make_file(SEAL),
        lambda: make_file(GROW | SHRINK, size=0),
        lambda: os.open("/dev/null", os.O_RDWR),
        lambda: os.open("/dev/zero", os.O_RDWR),
        lambda: os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY),
        lambda: os.open(__file__, os.O_RDONLY),
        lambda: socket.socket(socket.AF_UNIX).detach(),
        lambda: os.pipe2(os.O_CLOEXEC)[0],
    ],
    ids=["unsealable", "unsealed", "grow", "shrink", "seal", "empty", "null", "zero", "folder", "file", "socket", "pipe"],
)
def test_arena_that_can_be_resized_is_refused_and_closed(make: Callable[[], int]) -> None:
    fd = make()
    with pytest.raises(LinkError, match="arena"):
        frames.map_arena(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_arena_cannot_be_resized_by_whoever_holds_it() -> None:
    fd, made = frames.make_arena(8192)
    mapped = frames.map_arena(os.dup(fd))
    for size in (0, 4096, 16384):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    mapped.memory[:4] = b"seen"
    assert made.memory[:4] == b"seen"
    os.close(fd)


def test_arena_keeps_a_bounded_number_of_layouts() -> None:
    fd, made = frames.make_arena(ARENA)
    os.close(fd)
    for rows in range(1, 1000):
        made.keep(rows, made.view([Tensor(0, rows, 1, (rows,))]))
        assert len(made.layouts) <= 256
        assert made.layouts[rows].views[0].shape == (rows,)
