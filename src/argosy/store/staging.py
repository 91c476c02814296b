"""Files on their way into the store: copied, hashed and durable, but under temporary names until the commit."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from argosy.errors import InputError, StoreError
from argosy.store.manifest import FILE_PATH, OWN_FILES, Descriptor, media_type_of
from argosy.store.temporary import PREFIX, explain_write, link_file, temp_file

__all__ = ["Staged", "StagedBlob", "check_file_name", "copy_hashed", "digest_of_temp", "write_hashed"]

CHUNK_BYTES: Final = 4 << 20
"""Large enough that hashing, which releases the GIL, outweighs the call; small enough to stay in cache."""

_NO_RANGE_COPY: Final = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})
_MAX_COMPONENT_BYTES: Final = 255
_MAX_NAME_BYTES: Final = 1024


def check_file_name(name: str) -> str:
    """Return `name` if it may name a file of an artifact: a relative path of plain, printable components.

    Raises:
        InputError: `bad_file_name`.
    """
    parts = name.split("/")
    if not name.isprintable() or "\\" in name:
        detail = "it holds a control character, a backslash or an unpaired surrogate"
    elif any(part in ("", ".", "..") or part.startswith(PREFIX) for part in parts):
        detail = "an absolute path, an empty component, `.` and `..` are refused"
    elif len(name.encode()) > _MAX_NAME_BYTES or any(len(part.encode()) > _MAX_COMPONENT_BYTES for part in parts):
        detail = f"a component has at most {_MAX_COMPONENT_BYTES} bytes, the whole at most {_MAX_NAME_BYTES}"
    else:
        return name
    raise InputError("bad_file_name", got=name[:200], detail=detail)


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

    def add(self, name: str, source: Path | str | bytes) -> Descriptor:
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
        return self.add_own(name, Path(source) if isinstance(source, str) else source)

    def add_own(self, name: str, source: Path | bytes) -> Descriptor:
        """Add a file that the store writes itself, such as `argosy.json`."""
        self._check_free(name)
        return self._link(name, self.add_blob(source))

    def add_staged(self, name: str, blob: StagedBlob) -> Descriptor:
        """Give a blob that is staged already a name in the artifact.

        Raises:
            InputError: `bad_file_name`.
        """
        self._check_free(check_file_name(name))
        return self._link(name, blob)

    def _check_free(self, name: str) -> None:
        clashes = self._names & {str(parent) for parent in PurePosixPath(name).parents}
        if clashes or name in self._names or (self.folder / name).exists():
            raise InputError("bad_file_name", got=name, detail="another file of the artifact has that name, or a folder of it")

    def _link(self, name: str, blob: StagedBlob) -> Descriptor:
        target = self.folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_write(target, error) from error
        link_file(blob.path, target)
        self._names.add(name)
        layer = Descriptor(media_type_of(name), blob.digest, blob.size_bytes, annotations={FILE_PATH: name})
        self.layers.append(layer)
        return layer

    def add_blob(self, source: Path | bytes | Iterable[bytes]) -> StagedBlob:
        """Write content under a temporary name, hash what was written, and make it durable."""
        path, fd = temp_file(self._blobs_folder)
        try:
            digest, size_bytes = _write(source, fd)
            try:
                os.fchmod(fd, 0o444)
                os.fsync(fd)
                path = path.rename(path.with_name(f"{path.name}-{digest}"))
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

    def adopt_blob(self, source: Path, digest: str, size_bytes: int) -> StagedBlob | None:
        """Hold a blob of the store, which was just checked, under a temporary name; None if it has gone meanwhile."""
        while True:
            path = self._blobs_folder / f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}-{digest}"
            try:
                link_file(source, path)
                fd = os.open(path, os.O_RDONLY)
            except (StoreError, FileNotFoundError):
                path.unlink(missing_ok=True)
                if source.exists():
                    raise
                return None
            # Shared: several writers may hold one blob, and its name lasts as long as one of them lives.
            fcntl.flock(fd, fcntl.LOCK_SH)
            if path.exists():
                self.blobs[digest] = StagedBlob(path, fd, digest, size_bytes)
                return self.blobs[digest]
            os.close(fd)  # swept between the two calls

    def close(self) -> None:
        """Remove the temporary names and release their locks."""
        for blob in self.blobs.values():
            blob.path.unlink(missing_ok=True)
            os.close(blob.fd)
        self.blobs.clear()


def digest_of_temp(path: Path) -> str:
    """Return the digest in the name of a complete staged blob, "" of an incomplete one.

    With it can be found whether a writer died between giving the blob its name and committing its version.
    """
    _, found, digest = path.name.partition("-sha256:")
    return f"sha256:{digest}" if found else ""


def _write(source: Path | bytes | Iterable[bytes], target_fd: int) -> tuple[str, int]:
    if not isinstance(source, Path):
        return write_hashed([source] if isinstance(source, bytes) else source, target_fd)
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


def write_hashed(chunks: Iterable[bytes], target_fd: int) -> tuple[str, int]:
    """Write content that comes in pieces into an empty file; its digest and its size in bytes.

    Raises:
        StoreError: `disk_full`, `write_failed`.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    for chunk in chunks:
        digest.update(chunk)
        size_bytes += len(chunk)
        try:
            _write_all(target_fd, chunk)
        except OSError as error:
            raise explain_write("a blob", error) from error
    return f"sha256:{digest.hexdigest()}", size_bytes


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
