"""The OCI image layout on disk: content-addressed blobs, and the folders in which a version's files are found.

    HOME/store/oci-layout  index.json  lock
               blobs/sha256/HEX          read-only, named by their content
               unpacked/HEX/NAME ...     hard links to the blobs of one version

Hard links, because ONNX Runtime resolves symbolic ones before it looks for external data, and copies would
double 2 GB. Nothing here believes a file: whatever is given out was hashed in the same call.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from argosy.errors import InputError, StoreError
from argosy.store.manifest import FILE_PATH, Descriptor, ImageManifest
from argosy.store.staging import Staged, StagedBlob, check_file_name, copy_hashed, digest_of_temp
from argosy.store.temporary import (
    WRITE_KEYS,
    explain_write,
    find_private_folder,
    fsync_folder,
    hold_lock,
    link_file,
    list_dead,
    remove,
    temp_folder,
)

__all__ = ["Blobs", "list_files"]

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'

_Inode = tuple[int, int]  # device and number


class Blobs:
    """The folder HOME/store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._unpacked = folder / "unpacked"

    def create(self) -> None:
        """Make the layout if it is not there. The caller holds the store's lock.

        Raises:
            StoreError: `disk_full`, `write_failed`.
        """
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._unpacked.mkdir(exist_ok=True)
            if (self.folder / "oci-layout").exists():
                return
            for folder in (self._blobs, self._blobs.parent, self.folder):
                fsync_folder(folder)
        except OSError as error:
            raise explain_write(self.folder, error) from error
        # Last, since its presence says that the rest is there.
        self.replace("oci-layout", _LAYOUT)

    def is_empty(self) -> bool:
        """Say whether no version was ever published here."""
        return not any(_DIGEST.fullmatch(f"sha256:{path.name}") for path in self._blobs.iterdir())

    def sweep(self, take_back: Callable[[set[str]], bool]) -> None:
        """Remove what dead writers left under temporary names.

        Args:
            take_back: removes blobs that no version needs, if it can; called with a blob that a writer gave its
                name before it died, perhaps before it committed.
        """
        # What cannot be removed, as on a disk that is read-only now, is there for the next one.
        with contextlib.suppress(OSError):
            for path in list_dead(self._unpacked):
                remove(path)
            for path in list_dead(self._blobs):
                digest = digest_of_temp(path)
                # Its name stays when the blob could not be removed, so that the next one to open the store tries again.
                if not digest or not self._is_same(digest, path) or take_back({digest}):
                    remove(path)

    def lock(self) -> AbstractContextManager[None]:
        """Give the lock of this layout, for all threads and processes."""
        return hold_lock(self.folder / "lock")

    @contextmanager
    def stage(self) -> Generator[Staged, None, None]:
        """Give an empty `Staged`; what is not published by the end of the block is removed.

        Raises:
            StoreError: `disk_full`, `write_failed`.
        """
        try:
            # It may have been left out where the store was copied to, and not been made since, as the disk took nothing.
            self._unpacked.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_write(self._unpacked, error) from error
        with temp_folder(self._unpacked) as folder:
            staged = Staged(self._blobs, folder)
            try:
                yield staged
            finally:
                staged.close()

    def find_damaged(self, staged: Staged) -> set[str]:
        """Say which of the staged blobs the layout has already, but damaged."""
        damaged: set[str] = set()
        for digest, blob in staged.blobs.items():
            try:
                self._check(digest, blob.size_bytes, "")
            except StoreError as error:
                if error.key == "corrupt_blob":
                    damaged.add(digest)
        return damaged

    def adopt(self, staged: Staged, blob: Descriptor) -> StagedBlob | None:
        """Stage a blob that the layout has already, whole; None if it has not."""
        try:
            self._check(blob.digest, blob.size, "")
        except StoreError:
            return None  # a damaged one is replaced by what is staged instead
        return staged.adopt_blob(self._path(blob.digest), blob.digest, blob.size)

    def open(self, blob: Descriptor, what: str) -> BinaryIO:
        """Open a blob that has just been checked.

        Raises:
            StoreError: `missing_blob`, `corrupt_blob`.
        """
        self._check(blob.digest, blob.size, what)
        try:
            return self._path(blob.digest).open("rb", buffering=0)
        except OSError as error:
            raise StoreError("missing_blob", digest=blob.digest, what=what) from error

    def keep(self, staged: Staged, damaged: set[str]) -> None:
        """Give staged blobs their names, durably. Blobs that exist stay as they are, damaged ones are replaced.

        Called inside the commit's transaction, so that nobody can take a blob for unused before its version is there.
        """
        for digest, blob in staged.blobs.items():
            target = self._path(digest)
            try:
                if digest in damaged:
                    blob.path.replace(target)
                else:
                    link_file(blob.path, target)
                    staged.created.add(digest)
            except FileExistsError:
                pass
            except OSError as error:
                raise explain_write(target, error) from error
        try:
            fsync_folder(self._blobs)
        except OSError as error:
            raise explain_write(self._blobs, error) from error

    def remove(self, digest: str) -> None:
        """Remove a blob. The caller is inside a transaction, in which no version refers to it."""
        self._path(digest).unlink(missing_ok=True)

    def read(self, digest: str, what: str) -> bytes:
        """Read a small blob whole, checked.

        Raises:
            StoreError: `missing_blob`, `corrupt_blob`.
        """
        try:
            data = self._path(digest).read_bytes()
        except OSError as error:
            raise StoreError("missing_blob", digest=digest, what=what) from error
        got = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if got != digest:
            raise StoreError("corrupt_blob", digest=digest, what=what, got=got)
        return data

    def verify(self, image: ImageManifest, what: str) -> dict[str, _Inode]:
        """Hash the config and every layer. Returns the inode of each file, by its name in the artifact.

        Raises:
            StoreError: `missing_blob`, `corrupt_blob`, `bad_manifest`.
        """
        self._check(image.config.digest, image.config.size, what)
        files = list_files(image, what)
        return {name: self._check(layer.digest, layer.size, f"{what}, file {name}") for name, layer in files.items()}

    def unpack(self, digest: str, image: ImageManifest, what: str) -> Path:
        """Give a folder with the version's files under their own names, each just verified.

        Where the layout cannot be written, as on a disk that is read-only, they are copies among this user's temporary files.

        Raises:
            StoreError: `missing_blob`, `corrupt_blob`, `bad_manifest`, `no_hard_links`, `unpack_failed`.
        """
        inodes = self.verify(image, what)
        folder = self._unpacked / self._path(digest).name
        if _holds(folder, inodes):
            return folder
        try:
            return self._link_out(digest, image, inodes, what)
        except StoreError as error:
            if error.key not in WRITE_KEYS:
                raise
            return self._copy_elsewhere(digest, image, what, error)

    def _link_out(self, digest: str, image: ImageManifest, inodes: Mapping[str, _Inode], what: str) -> Path:
        folder = self._unpacked / self._path(digest).name
        with self.lock(), temp_folder(self._unpacked) as temp, temp_folder(self._unpacked) as trash:
            if _holds(folder, inodes):
                return folder  # another process was faster
            try:
                for name, layer in list_files(image, what).items():
                    target = temp / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_file(self._path(layer.digest), target)
                if not _holds(temp, inodes):
                    raise StoreError("corrupt_blob", digest=digest, what=what, got="another one, a moment after it was checked")
                _replace_folder(folder, temp, trash)
            except OSError as error:
                raise explain_write(folder, error) from error
        return folder

    def _copy_elsewhere(self, digest: str, image: ImageManifest, what: str, fault: StoreError) -> Path:
        """Have copies where the layout takes nothing. They stay, for workers that start later, and are checked each time."""
        place = "the folder of temporary files"
        try:
            place = find_private_folder()
            folder = place / self._path(digest).name
            with hold_lock(place / "lock"):
                for path in list_dead(place):
                    remove(path)
                if not _has_copies(folder, list_files(image, what)):
                    with temp_folder(place) as temp, temp_folder(place) as trash:
                        self.copy_out(image, temp, what)
                        _replace_folder(folder, temp, trash)
        except (StoreError, OSError) as error:
            if isinstance(error, StoreError) and error.key not in WRITE_KEYS:
                raise
            detail = error.message if isinstance(error, StoreError) else error.strerror or error
            raise StoreError("unpack_failed", what=what, fault=fault.message, place=place, detail=detail) from error
        return folder

    def copy_out(self, image: ImageManifest, folder: Path, what: str) -> None:
        """Copy the files of an artifact into a folder; what was written is what was hashed.

        Raises:
            StoreError: `missing_blob`, `corrupt_blob`, `bad_manifest`, `disk_full`, `write_failed`.
        """
        for name, layer in list_files(image, what).items():
            target = folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._path(layer.digest).open("rb", buffering=0) as blob, target.open("x+b", buffering=0) as copy:
                    got, _ = copy_hashed(blob.fileno(), copy.fileno())
            except FileNotFoundError as error:
                raise StoreError("missing_blob", digest=layer.digest, what=what) from error
            except OSError as error:
                raise explain_write(target, error) from error
            if got != layer.digest:
                raise StoreError("corrupt_blob", digest=layer.digest, what=f"{what}, file {name}", got=got)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file of the layout whole or not at all. The caller holds the lock.

        Raises:
            StoreError: `disk_full`, `write_failed`.
        """
        target = self.folder / name
        temp = self.folder / f".{name}.new"  # one name is enough under the lock, and a dead writer's is overwritten
        try:
            with temp.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temp.replace(target)
            fsync_folder(self.folder)
        except OSError as error:
            raise explain_write(target, error) from error

    def _path(self, digest: str) -> Path:
        # Digests come from the database and from image manifests, which a registry may have sent.
        if not _DIGEST.fullmatch(digest):
            raise StoreError("missing_blob", digest=digest[:200], what="an artifact")
        return self._blobs / digest.removeprefix("sha256:")

    def _is_same(self, digest: str, path: Path) -> bool:
        try:
            return self._path(digest).samefile(path)
        except (OSError, StoreError):
            return False

    def _check(self, digest: str, size_bytes: int, what: str) -> _Inode:
        try:
            fd = os.open(self._path(digest), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise StoreError("missing_blob", digest=digest, what=what) from error
        try:
            with os.fdopen(fd, "rb", buffering=0) as file:
                stat = os.fstat(fd)
                # Hashed each time: size and time of change say nothing about bits that rot on the disk.
                got = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise StoreError("corrupt_blob", digest=digest, what=what, got=f"none ({error.strerror})") from error
        if got != digest or stat.st_size != size_bytes:
            raise StoreError("corrupt_blob", digest=digest, what=what, got=f"{got} and {stat.st_size} bytes")
        return stat.st_dev, stat.st_ino


def list_files(image: ImageManifest, what: str) -> dict[str, Descriptor]:
    """Give the layers of an artifact by their files' names, which are safe to use.

    Raises:
        StoreError: `bad_manifest`, a layer has no name, an unsafe one, or one that another layer has.
    """
    files: dict[str, Descriptor] = {}
    for layer in image.layers:
        name = (layer.annotations or {}).get(FILE_PATH, "")
        try:
            check_file_name(name)
        except InputError as error:
            raise StoreError("bad_manifest", what=what, detail=error.message) from error
        if name in files:
            raise StoreError("bad_manifest", what=what, detail=f"two layers are called {name!r}")
        files[name] = layer
    return files


def _replace_folder(folder: Path, new: Path, trash: Path) -> None:
    """Give a folder its name. Who has files of the old one open keeps them."""
    if folder.exists():
        # Not what it should be, or of a blob that was replaced since.
        folder.rename(trash / "old")
    new.rename(folder)


def _has_copies(folder: Path, files: Mapping[str, Descriptor]) -> bool:
    """Say whether each file in the folder has the content that it should have."""
    for name, layer in files.items():
        try:
            with (folder / name).open("rb", buffering=0) as file:
                if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != layer.digest:
                    return False
        except OSError:
            return False
    return True


def _holds(folder: Path, inodes: Mapping[str, _Inode]) -> bool:
    """Say whether each file in the folder is the very blob: what was hashed is then what a runtime will read."""
    for name, inode in inodes.items():
        try:
            stat = (folder / name).lstat()
        except OSError:
            return False
        if (stat.st_dev, stat.st_ino) != inode:
            return False
    return True
