"""Look at a zip archive before any library opens it: what its entries are called, and how large they would become."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Final

from argosy.errors import InputError, TooLargeError
from argosy.store.staging import check_file_name

__all__ = ["is_archive", "list_entries"]

_MAX_DIRECTORY_BYTES: Final = 8 << 20
"""Of the list of entries: about 100,000 of them; Python holds ten times as much while it reads it."""
_MAX_GROWTH: Final = 20
"""How many times larger than the archive its content may be; weights compress by less than two."""
_FREE_BYTES: Final = 256 << 20
"""Growth that is always allowed: small files of text compress well."""

_LOCAL_HEADER: Final = b"PK\x03\x04"
_END: Final = b"PK\x05\x06"
_END_BYTES: Final = 22
_MAX_COMMENT_BYTES: Final = 0xFFFF
_LOCATOR: Final = b"PK\x06\x07"
_LOCATOR_BYTES: Final = 20
_SEE_ZIP64: Final = 0xFFFFFFFF
_IS_ENCRYPTED: Final = 1
_HEAD_BYTES: Final = 8

_FAULTS: Final = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError),
    *(ValueError, OSError, EOFError, LookupError, OverflowError),
)
"""What Python's reader raises on damaged archives."""


def is_archive(head: bytes) -> bool:
    """Say whether a file that begins so is a zip archive to every program that reads such."""
    return head.startswith(_LOCAL_HEADER)


def list_entries(path: Path, name: str) -> dict[str, bytes]:
    """List the files in an archive, each with its first bytes.

    Args:
        path: of the archive.
        name: as the user calls it, for messages.

    Raises:
        InputError: `bad_archive`, it is damaged or encrypted, or a name is no plain path or stands twice.
        TooLargeError: `model_file_too_large`, it has too many entries, or would unpack to more than 20 times its size.
    """
    size_bytes = path.stat().st_size
    limit = _FREE_BYTES + _MAX_GROWTH * size_bytes
    try:
        if (got := _measure_directory(path, size_bytes)) > _MAX_DIRECTORY_BYTES:
            raise TooLargeError("model_file_too_large", path=name, what="a list of entries", got=got, limit=_MAX_DIRECTORY_BYTES)
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if (got := sum(entry.file_size for entry in entries)) > limit:
                raise TooLargeError("model_file_too_large", path=name, what="unpacked content", got=got, limit=limit)
            heads: dict[str, bytes] = {}
            for entry in entries:
                if check_file_name(entry.filename) in heads or entry.flag_bits & _IS_ENCRYPTED:
                    raise ValueError(f"entry {entry.filename[:200]!r} stands twice or is encrypted")
                with archive.open(entry) as file:
                    heads[entry.filename] = file.read(_HEAD_BYTES)
    except InputError as error:
        raise InputError("bad_archive", path=name, detail=error.message) from error
    except _FAULTS as error:
        raise InputError("bad_archive", path=name, detail=f"{type(error).__name__}: {error}") from error
    return heads


def _measure_directory(path: Path, size_bytes: int) -> int:
    """Give the length of the list of entries, which Python reads as a whole before it looks at it."""
    with path.open("rb") as file:
        start = max(0, size_bytes - _END_BYTES - _MAX_COMMENT_BYTES - _LOCATOR_BYTES)
        file.seek(start)
        tail = file.read()
        position = tail.rfind(_END)
        (length,) = struct.unpack_from("<12xI", tail, position) if position >= 0 else (0,)
        locator = position - _LOCATOR_BYTES
        if length != _SEE_ZIP64 and not (locator >= 0 and tail.startswith(_LOCATOR, locator)):
            return length
        (offset,) = struct.unpack_from("<8xQ", tail, locator)
        file.seek(offset)
        (wide,) = struct.unpack("<40xQ8x", file.read(56))
        return max(wide, length if length != _SEE_ZIP64 else 0)
