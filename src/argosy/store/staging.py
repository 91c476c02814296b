"""Files on their way into the store, under temporary names until the commit.

A temporary name starts with `.incoming-`; its writer holds a lock (flock) on it as long as it lives. So whoever
gets that lock knows that the writer is dead, and may remove what it left: `sweep_dead`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from argosy.errors import InputError, StoreError
from argosy.store.manifest import FILE_PATH, OWN_FILES, Descriptor, media_type_of

__all__ = [
    "Staged",
    "StagedBlob",
    "check_file_name",
    "copy_hashed",
    "explain_write",
    "fsync_folder",
    "hold_lock",
    "link_file",
    "sweep_dead",
    "temp_folder",
]

CHUNK_BYTES: Final = 4 << 20
"""Large enough that hashing, which releases the GIL, outweighs the call; small enough to stay in cache."""

_PREFIX: Final = ".incoming-"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_RANGE_COPY: Final = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV})
_MAX_COMPONENT_BYTES: Final = 255
_MAX_NAME_BYTES: Final = 1024


def explain_write(what: object, error: OSError) -> StoreError:
    """Turn a failed write into `disk_full` or `write_failed`."""
    key = "disk_full" if error.errno in _FULL else "write_failed"
    return StoreError(key, what=what, detail=error.strerror or error)


def check_file_name(name: str) -> str:
    """Return `name` if it may name a file of an artifact: a relative path of plain, printable components.

    Raises:
        InputError: `bad_file_name`.
    """
    parts = name.split("/")
    if not name.isprintable() or "\\" in name:
        detail = "it holds a control character, a backslash or an unpaired surrogate"
    elif any(part in ("", ".", "..") or part.startswith(_PREFIX) for part in parts):
        detail = "an absolute path, an empty component, `.` and `..` are refused"
    elif len(name.encode()) > _MAX_NAME_BYTES or any(len(part.encode()) > _MAX_COMPONENT_BYTES for part in parts):
        detail = f"a component has at most {_MAX_COMPONENT_BYTES} bytes, the whole at most {_MAX_NAME_BYTES}"
    else:
        return name
    raise InputError("bad_file_name", got=name[:200], detail=detail)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def hold_lock(path: Path) -> Generator[None, None, None]:
    """Hold the lock file `path` alone among all threads and processes; a holder's death frees it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


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


def _new_temp(folder: Path, *, is_folder: bool) -> tuple[Path, int]:
    """Make a locked temporary file or folder; its lock lasts as long as the descriptor."""
    flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
    while True:
        path = folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
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


def sweep_dead(folder: Path) -> int:
    """Remove the temporary files and folders of dead writers. Returns how many there were."""
    num_swept = 0
    for entry in os.scandir(folder):
        if not entry.name.startswith(_PREFIX):
            continue
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # its writer has just finished
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(Path(entry.path))
            num_swept += 1
        except BlockingIOError:
            pass  # its writer lives
        finally:
            os.close(fd)
    return num_swept


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def temp_folder(parent: Path) -> Generator[Path, None, None]:
    """Give an empty folder that is removed at the end, unless it was renamed away."""
    path, fd = _new_temp(parent, is_folder=True)
    try:
        yield path
    finally:
        _remove(path)
        os.close(fd)


class StagedBlob(msgspec.Struct, frozen=True):
    """A complete, durable blob under its temporary name."""

    path: Path
    fd: int
    digest: str
    size_bytes: int


class Staged:
    """The files of a version to be, durable but not yet in the store.

    Their content is fixed from here on: `folder` shows what will be published, whatever happens to the sources.
    Use `Store.stage()` to make one; whatever was not published is removed at the end of its block.
    """

    def __init__(self, blobs_folder: Path, folder: Path) -> None:
        self.folder = folder
        """Holds the files under their own names, as hard links."""
        self.layers: list[Descriptor] = []
        self.blobs: dict[str, StagedBlob] = {}
        """By digest; the config and the image manifest are among them in the end."""
        self.created: set[str] = set()
        """Digests that the store did not have before."""
        self._blobs_folder = blobs_folder
        self._names: set[str] = set()

    @property
    def names(self) -> frozenset[str]:
        """The names of the files added so far."""
        return frozenset(self._names)

    def add(self, name: str, source: Path | bytes) -> Descriptor:
        """Copy a file of the publisher in.

        Args:
            name: what it is called in the artifact; see `check_file_name`.
            source: the file to copy, in pieces, or its content.

        Raises:
            InputError: `bad_file_name`; `missing_file`, the source is no readable regular file.
            StoreError: `disk_full`, `write_failed`.
        """
        check_file_name(name)
        if name in OWN_FILES:
            raise InputError("bad_file_name", got=name, detail="the store writes a file of that name itself")
        return self.add_own(name, source)

    def add_own(self, name: str, source: Path | bytes) -> Descriptor:
        """Add a file that the store writes itself, such as `argosy.json`."""
        target = self.folder / name
        clashes = self._names & {str(parent) for parent in PurePosixPath(name).parents}
        if clashes or name in self._names or target.exists():
            raise InputError("bad_file_name", got=name, detail="another file of the artifact has that name, or a folder of it")
        blob = self.add_blob(source)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_write(target, error) from error
        link_file(blob.path, target)
        self._names.add(name)
        layer = Descriptor(media_type_of(name), blob.digest, blob.size_bytes, annotations={FILE_PATH: name})
        self.layers.append(layer)
        return layer

    def add_blob(self, source: Path | bytes) -> StagedBlob:
        """Write content under a temporary name, hash what was written, and make it durable."""
        path, fd = _new_temp(self._blobs_folder, is_folder=False)
        try:
            digest, size_bytes = _write(source, fd)
            try:
                os.fchmod(fd, 0o444)
                os.fsync(fd)
            except OSError as error:
                raise explain_write(path, error) from error
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(fd)
            raise
        blob = StagedBlob(path, fd, digest, size_bytes)
        if digest in self.blobs:  # two files with one content
            path.unlink()
            os.close(fd)
            return self.blobs[digest]
        self.blobs[digest] = blob
        return blob

    def close(self) -> None:
        """Remove the temporary names and release their locks."""
        for blob in self.blobs.values():
            blob.path.unlink(missing_ok=True)
            os.close(blob.fd)
        self.blobs.clear()


def _write(source: Path | bytes, target_fd: int) -> tuple[str, int]:
    if isinstance(source, bytes):
        try:
            _write_all(target_fd, source)
        except OSError as error:
            raise explain_write("a blob", error) from error
        return f"sha256:{hashlib.sha256(source).hexdigest()}", len(source)
    try:
        # Not blocking: a named pipe would wait for its writer for ever.
        source_fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise InputError("missing_file", path=source, detail=error.strerror) from error
    try:
        if not stat.S_ISREG(os.fstat(source_fd).st_mode):
            raise InputError("missing_file", path=source, detail="it is not a regular file")
        return copy_hashed(source_fd, target_fd)
    except OSError as error:
        raise explain_write(f"a copy of {source}", error) from error
    finally:
        os.close(source_fd)


def copy_hashed(source_fd: int, target_fd: int) -> tuple[str, int]:
    """Copy a file in pieces into an empty one that is open for reading too.

    Returns:
        The digest of what stands in the target, read back piece by piece, and its size in bytes.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    size_bytes = 0
    while count := _copy_chunk(source_fd, target_fd):
        end = size_bytes + count
        while size_bytes < end:
            num_read = os.preadv(target_fd, [buffer[: end - size_bytes]], size_bytes)
            if not num_read:
                raise OSError(errno.EIO, "the copy is shorter than what was written")
            digest.update(buffer[:num_read])
            size_bytes += num_read
    return f"sha256:{digest.hexdigest()}", size_bytes


def _copy_chunk(source_fd: int, target_fd: int) -> int:
    """Copy at most `CHUNK_BYTES`, in the kernel where it can (a reflink where the file system has them)."""
    try:
        count = os.copy_file_range(source_fd, target_fd, CHUNK_BYTES)
    except OSError as error:
        if error.errno not in _NO_RANGE_COPY:
            raise
        count = 0
    # Zero is the end, or a file system that cannot: reading tells which.
    if count:
        return count
    data = os.read(source_fd, CHUNK_BYTES)
    _write_all(target_fd, data)
    return len(data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
