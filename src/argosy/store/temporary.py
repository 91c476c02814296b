"""Names that last as long as their writer: temporary files, folders and locks.

A temporary name starts with `.incoming-`; its writer holds a lock (flock) on it as long as it lives. So whoever
gets that lock knows that the writer is dead, and may remove what it left: `list_dead`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from argosy.errors import FaultError, InputError, StoreError

__all__ = [
    "PREFIX",
    "WRITE_KEYS",
    "blame_disk",
    "explain_write",
    "find_private_folder",
    "fsync_folder",
    "hold_lock",
    "link_file",
    "list_dead",
    "remove",
    "remove_dead",
    "temp_file",
    "temp_folder",
    "try_lock",
    "work_folder",
]

PREFIX: Final = ".incoming-"

WRITE_KEYS: Final = ("disk_full", "write_failed")
"""Of errors that say that a file cannot be written, whatever it may be read."""

_ROOM_BYTES: Final = 16 << 20
"""Free space, below which the disk is to blame for what a library could not do."""
_BLAMED: Final = ("step_failed", "engine_failed", "load_failed", "server_failed")
"""Errors of libraries and processes, which say of a full disk whatever it made them do."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV})


def explain_write(what: object, error: OSError) -> StoreError:
    """Turn a failed write into `disk_full` or `write_failed`."""
    key = "disk_full" if error.errno in _FULL else "write_failed"
    return StoreError(key, what=what, detail=error.strerror or error)


@contextmanager
def work_folder(prefix: str) -> Generator[Path]:
    """Give a folder for temporary files, which ends with the context; that the disk has no room is told as that.

    Raises:
        StoreError: `temp_full`; `write_failed`, there is no place for such a folder.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=prefix)
    except OSError as error:
        raise explain_write("temporary files", error) from error
    with made as name, blame_disk(Path(name)):
        yield Path(name)


@contextmanager
def blame_disk(folder: Path, needed_bytes: int = 0) -> Generator[None]:
    """Tell what fails for want of room on a disk as that: who reads what was cut off there says that a file is damaged.

    Args:
        folder: that is worked in.
        needed_bytes: that the work may need, as far as is known.

    Raises:
        StoreError: `temp_full`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StoreError("temp_full", folder=folder.parent, detail=error.strerror) from error
    except (InputError, FaultError) as error:
        if error.key not in _BLAMED or (free := shutil.disk_usage(folder).free) >= needed_bytes + _ROOM_BYTES:
            raise
        raise StoreError("temp_full", folder=folder.parent, detail=f"{free >> 20} MiB are free; {error.message}") from error


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def hold_lock(path: Path) -> Generator[None, None, None]:
    """Hold the lock file `path` alone among all threads and processes; a holder's death frees it.

    Raises:
        StoreError: `disk_full`, `write_failed`: it cannot be opened.
    """
    try:
        fd = _open_lock(path)
    except OSError as error:
        raise explain_write(path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        try:
            # Of what can be read only, a lock that is there already.
            return os.open(path, os.O_RDONLY)
        except OSError:
            raise error from None


def try_lock(path: Path) -> int | None:
    """Take the lock file `path` if nobody holds it; its descriptor, which holds it until it is closed, else None.

    Raises:
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name.

    Raises:
        FileExistsError: `target` exists.
        StoreError: `no_hard_links`, the file system has none; `disk_full`.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise StoreError("no_hard_links", path=target.parent, detail=error.strerror) from error
        raise explain_write(target, error) from error


def list_dead(folder: Path) -> Generator[Path, None, None]:
    """Give each temporary file and folder whose writer is dead, to remove; it is locked until the next one."""
    for entry in os.scandir(folder):
        if not entry.name.startswith(PREFIX):
            continue
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # its writer has just finished
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # its writer lives
        else:
            yield Path(entry.path)
        finally:
            os.close(fd)


def remove_dead(folder: Path) -> None:
    """Remove the temporary files and folders whose writers are dead."""
    for path in list_dead(folder):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def find_private_folder(parent: Path | None = None) -> Path:
    """The folder of this user's files where temporary files are (TMPDIR), made if need be; nobody else can write to it.

    Args:
        parent: where it is instead, such as a file system in memory.

    Raises:
        StoreError: `disk_full`, `write_failed`; also where it is another user's.
    """
    user = os.geteuid()
    folder = (parent or Path(tempfile.gettempdir())) / f"argosy-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError as error:
        raise explain_write(folder, error) from error
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != user or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StoreError("write_failed", what=folder, detail="other users may change what is there")
    return folder


@contextmanager
def temp_folder(parent: Path) -> Generator[Path, None, None]:
    """Give an empty folder that is removed at the end, unless it was renamed away.

    Raises:
        StoreError: `disk_full`, `write_failed`.
    """
    path, fd = _new_temp(parent, is_folder=True)
    try:
        yield path
    finally:
        remove(path)
        os.close(fd)


def temp_file(parent: Path) -> tuple[Path, int]:
    """Make an empty file; whoever closes the descriptor removes the name before.

    Raises:
        StoreError: `disk_full`, `write_failed`.
    """
    return _new_temp(parent, is_folder=False)


def _new_temp(folder: Path, *, is_folder: bool) -> tuple[Path, int]:
    """Make a locked temporary file or folder; its lock lasts as long as the descriptor."""
    flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
    while True:
        path = folder / f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        try:
            if is_folder:
                path.mkdir(mode=0o700)
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and is_folder and folder.exists():
                continue  # swept between the two calls
            raise explain_write(folder, error) from error
        fcntl.flock(fd, fcntl.LOCK_EX)
        # A sweeper may have had the lock first and removed the name: then nobody else knows it, take another.
        if path.exists():
            return path, fd
        os.close(fd)
