"""Python objects for other processes of the same program: code by name if it can be imported, arrays in a shared file.

Only files that a process of our own wrote are read: what they hold runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import mmap
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from argosy.errors import InputError

__all__ = ["Reduce", "pack", "unpack"]

Reduce = Callable[[Any], Any]
"""Says how an object is packed, as `__reduce__` would; None where it has nothing to say."""

_LARGE: Final = 1 << 16
"""Bytes from which memory is laid beside the rest, to be shared by all who read it."""
_ALIGNED: Final = 64


def pack(made: Any, path: Path, reduces: Sequence[Reduce] = ()) -> None:
    """Write objects to a file that other processes of this host, or another, can read.

    Args:
        made: any; what cannot be packed is named.
        path: of a file in a private folder.
        reduces: for objects that pack themselves badly.

    Raises:
        InputError: `cannot_ship`, something cannot be given to another process; `missing_extra`.
    """
    cloudpickle = _import_cloudpickle()
    buffers: list[pickle.PickleBuffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Say whether it is to lie in the stream."""
        try:
            is_small = buffer.raw().nbytes < _LARGE
        except BufferError:  # Not contiguous.
            return True
        if not is_small:
            buffers.append(buffer)
        return is_small

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            for reduce in reduces:
                if (reduced := reduce(obj)) is not None:
                    return reduced
            return super().reducer_override(obj)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    stream = io.BytesIO()
    try:
        Pickler(stream, protocol=5, buffer_callback=keep).dump(made)
    except Exception as error:
        raise InputError("cannot_ship", detail=f"{type(error).__name__}: {error}"[:400]) from error
    head = pickle.dumps(([buffer.raw().nbytes for buffer in buffers], stream.getbuffer().nbytes))
    with path.open("xb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.write(stream.getbuffer())
        for buffer in buffers:
            file.write(b"\0" * (-file.tell() % _ALIGNED))
            file.write(buffer.raw())


def unpack(path: Path) -> Any:
    """Read what `pack` wrote. Large arrays lie in the file until somebody writes to them: all processes share that memory."""
    with path.open("rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))
    start = 8 + int.from_bytes(whole[:8], "little")
    sizes, length = pickle.loads(whole[8:start])  # noqa: S301 - our own file
    end = start + length
    stream, buffers = whole[start:end], list[memoryview]()
    for size in sizes:
        end += -end % _ALIGNED
        buffers.append(whole[end : end + size])
        end += size
    return pickle.loads(stream, buffers=buffers)  # noqa: S301


def _import_cloudpickle() -> Any:
    if importlib.util.find_spec("cloudpickle") is None:
        raise InputError("missing_extra", feature="Training with several workers", package="cloudpickle", extra="workers")
    return importlib.import_module("cloudpickle")
