"""The files of a data set: found, put in order, and held to be what they were when they were found."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from argosy.errors import InputError

__all__ = ["File", "Paths", "digest_files", "find_files", "open_file", "read_range"]

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

MAX_FILES: Final = 10_000_000
"""More are no data set but a loop of folders, or a mistake."""


class File(NamedTuple):
    """A file as it was when the data set was opened."""

    path: Path
    name: str
    """Below the folder that all have in common, so that a data set may be moved."""
    size: int
    changed_ns: int
    """When it was last written to."""


def find_files(given: Paths, suffixes: Iterable[str]) -> tuple[File, ...]:
    """Find the files that paths name.

    Args:
        given: a file, a folder (all files below it that have one of the suffixes, but those whose name or folder begins
            with `.` or `_`), a pattern as of a shell (`**` for any folders), or several of these.
        suffixes: lower case, with the dot.

    Returns:
        At least one; those of a folder or pattern in the order of their names.

    Raises:
        InputError: `bad_file`: a path names nothing, something that is no file, or a link that leads out of its folder.
    """
    parts = [given] if isinstance(given, str | os.PathLike) else list(given)
    found: list[Path] = []
    for part in parts:
        found += _expand(Path(part), tuple(suffixes))
    if not found:
        raise InputError("bad_file", path=str(given), detail="no path is given")
    if len(set(found)) != len(found):
        twice = next(path for path in found if found.count(path) > 1)
        raise InputError("bad_file", path=repr(str(twice)), detail="it is named twice")
    folder = Path(os.path.commonpath([path.absolute().parent for path in found]))
    return tuple(_look_at(path, folder) for path in found)


def _expand(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if path.is_dir():
        found = list(_list_folder(path, suffixes))
        if not found:
            detail = f"the folder has no file whose name ends in {', '.join(suffixes)}"
            raise InputError("bad_file", path=repr(str(path)), detail=detail)
        return found
    if os.path.lexists(path) or not glob.has_magic(str(path)):
        return [path]
    fixed = Path(*_take_plain(path.parts))
    found = sorted(name for name in fixed.glob(str(path.relative_to(fixed))) if not name.is_dir())
    if not found:
        raise InputError("bad_file", path=repr(str(path)), detail="no file has a name of this pattern")
    for name in found:
        _check_link(name, fixed.resolve())
    return found


def _take_plain(parts: Sequence[str]) -> Iterator[str]:
    """Give the parts of a pattern's path before the first that is a pattern itself."""
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _list_folder(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    real, count = folder.resolve(), 0
    # Folders that are links are not gone into: they may lead in a circle.
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        for name in sorted(names):
            if name.startswith((".", "_")) or not name.lower().endswith(suffixes):
                continue
            count += 1
            if count > MAX_FILES:
                raise InputError("bad_file", path=repr(str(folder)), detail=f"the folder has more than {MAX_FILES} files")
            path = Path(place, name)
            _check_link(path, real)
            yield path


def _check_link(path: Path, folder: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(folder):
        detail = f"it is a link that leads out of the folder {str(folder)!r}: name the file itself, if it is meant"
        raise InputError("bad_file", path=repr(str(path)), detail=detail)


def _look_at(path: Path, folder: Path) -> File:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise InputError("bad_file", path=repr(str(path)), detail=detail) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError("bad_file", path=repr(str(path)), detail="it is no regular file")
    name = os.path.relpath(path.absolute(), folder)
    return File(path, name, status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def open_file(file: File) -> Generator[int]:
    """Open a file to read it; give its descriptor.

    Raises:
        InputError: `data_changed`: when it is opened, or when the reader is done, it is not what it was.
    """
    try:
        # A pipe that stands in its place now would be waited for.
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InputError("data_changed", path=repr(str(file.path)), detail=error.strerror) from error
    try:
        _check_same(file, descriptor)
        try:
            yield descriptor
        finally:
            # First of all: what a reader stumbles over is the fault of whoever writes to the file.
            _check_same(file, descriptor)
    finally:
        os.close(descriptor)


def _check_same(file: File, descriptor: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise InputError("data_changed", path=repr(str(file.path)), detail="it is no regular file any more")
    if status.st_size != file.size:
        detail = f"it had {file.size} bytes and has {status.st_size}"
        raise InputError("data_changed", path=repr(str(file.path)), detail=detail)
    if status.st_mtime_ns != file.changed_ns:
        raise InputError("data_changed", path=repr(str(file.path)), detail="it was written to")


def read_range(file: File, descriptor: int, place: int, size: int) -> bytes:
    """Read bytes of a file that has them.

    Raises:
        InputError: `data_changed`, it ends before.
    """
    parts: list[bytes] = []
    while size:
        part = os.pread(descriptor, size, place)
        if not part:
            raise InputError("data_changed", path=repr(str(file.path)), detail=f"it ends before byte {place + size}")
        parts.append(part)
        place, size = place + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def digest_files(files: Sequence[File], columns: Iterable[str]) -> str:
    """Name a data set by the names and sizes of its files and by its columns; no file is read for it."""
    digest = hashlib.sha256()
    for part in (*(f"{file.name}\0{file.size}" for file in files), *columns):
        digest.update(part.encode(errors="surrogateescape") + b"\0\0")
    return f"sha256:{digest.hexdigest()}"
