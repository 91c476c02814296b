"""Where a study is kept: a file that is only ever appended to, written by one process at a time."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from argosy.errors import ConflictError, InputError
from argosy.frameworks.base import import_extra
from argosy.home import find_home
from argosy.store.temporary import explain_write, try_lock

__all__ = ["JOURNAL_FILE", "digest_file", "empty_folder", "find_folder", "hold_folder", "open_storage"]

JOURNAL_FILE: Final = "journal.log"
_LOCK_FILE: Final = "lock"


def find_folder(home: Path | str | None, name: str) -> Path:
    """Give where a search of a name is kept; default of the home: ARGOSY_HOME."""
    return find_home(home) / "search" / name


@contextmanager
def hold_folder(folder: Path, name: str, *, restart: bool = False) -> Generator[None]:
    """Hold a search's folder within the block, alone among all processes; whoever dies frees it.

    Args:
        folder: made if it is not there.
        name: of the search, for messages.
        restart: empty it first.

    Raises:
        ConflictError: `search_active`.
        StoreError: `disk_full`, `write_failed`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder / _LOCK_FILE)
    except OSError as error:
        raise explain_write(folder, error) from error
    if lock is None:
        raise ConflictError("search_active", name=name)
    try:
        if restart:
            empty_folder(folder)
        yield
    finally:
        os.close(lock)


def empty_folder(folder: Path) -> None:
    """Remove all that a search has kept; whoever holds it holds it still.

    Raises:
        StoreError: `write_failed`.
    """
    try:
        for path in folder.iterdir():
            if path.name == _LOCK_FILE:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise explain_write(folder, error) from error


def open_storage(path: Path | None, name: str) -> Any:
    """Open a journal as a storage of Optuna's; None gives one in memory.

    Raises:
        InputError: `missing_extra`; `bad_journal`, it is damaged.
        StoreError: `disk_full`, `write_failed`.
    """
    storages = import_extra("optuna.storages", feature="A search", extra="search")
    if path is None:
        return storages.InMemoryStorage()
    journal = import_extra("optuna.storages.journal", feature="A search", extra="search")
    try:
        _cut_torn_line(path)
        return storages.JournalStorage(_Backend(path, journal.JournalFileBackend(str(path), lock_obj=_FolderIsHeld())))
    except OSError as error:
        raise explain_write(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise InputError("bad_journal", name=name, detail=f"{type(error).__name__}: {error}") from error


def digest_file(path: Path) -> str:
    """Give a file's SHA-256."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


class _FolderIsHeld:
    """The lock that Optuna asks for at every write: the folder's own is held all the time, and a killed process frees that."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class _Backend:
    """Optuna's file of a journal, which stays whole when the disk is full."""

    def __init__(self, path: Path, inner: Any) -> None:
        self._path, self._inner = path, inner

    def read_logs(self, log_number_from: int) -> Any:
        return self._inner.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            self._inner.append_logs(logs)
        except OSError as error:
            _cut_torn_line(self._path)
            raise explain_write(self._path, error) from error


def _cut_torn_line(path: Path) -> None:
    """Remove what a process that was killed while it wrote has left of a line: the next line would be joined to it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            file.flush()
            os.fsync(file.fileno())
