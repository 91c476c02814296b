"""The store's SQLite database: the truth about versions, aliases, measurements and history.

Every operation opens its own connection (0.25 ms) and closes it: nothing is shared between threads, and
nothing crosses a fork, which SQLite does not survive.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from argosy.errors import StoreError
from argosy.store.temporary import WRITE_KEYS

__all__ = ["BUSY_TIMEOUT_S", "SCHEMA_VERSION", "Database"]

SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 30.0
"""How long a writer waits for another one. Commits take milliseconds; blobs are written before."""

# `next_number` only ever grows, whatever happens to the rows of `versions`. `blobs` says which versions need a blob.
# The triggers keep history append-only.
_SCHEMA: Final = """
CREATE TABLE models (
    name TEXT PRIMARY KEY,
    next_number INTEGER NOT NULL CHECK (next_number >= 1)
) STRICT;
CREATE TABLE versions (
    model TEXT NOT NULL REFERENCES models (name),
    number INTEGER NOT NULL CHECK (number >= 1),
    digest TEXT NOT NULL,
    image_bytes INTEGER NOT NULL,
    manifest BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    created TEXT NOT NULL,
    PRIMARY KEY (model, number)
) STRICT;
CREATE TABLE blobs (
    digest TEXT NOT NULL,
    model TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (digest, model, number),
    FOREIGN KEY (model, number) REFERENCES versions (model, number) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE TABLE aliases (
    model TEXT NOT NULL,
    alias TEXT NOT NULL CHECK (alias <> 'latest' AND alias GLOB '*[^0-9]*'),
    number INTEGER NOT NULL,
    PRIMARY KEY (model, alias),
    FOREIGN KEY (model, number) REFERENCES versions (model, number)
) STRICT;
CREATE TABLE measurements (
    model TEXT NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (model, number, name),
    FOREIGN KEY (model, number) REFERENCES versions (model, number) ON DELETE CASCADE
) STRICT;
CREATE TABLE history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    created TEXT NOT NULL,
    event TEXT NOT NULL,
    model TEXT NOT NULL,
    number INTEGER NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX history_by_model ON history (model, id);
CREATE TRIGGER history_no_update BEFORE UPDATE ON history BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
CREATE TRIGGER history_no_delete BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
"""

_WRITE_FAULTS: Final = frozenset({"SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM"})
_FULL_FAULTS: Final = frozenset({"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"})
"""The second is said of the shared memory beside the file, which could not be made longer."""
_BUSY_FAULTS: Final = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED"})
_DAMAGES: Final = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})


class Database:
    """One SQLite file, opened anew for each operation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._uri = path.absolute().as_uri()
        self._thread = threading.local()

    def create(self, *, is_new: bool) -> bool:
        """Make the tables if they are not there. The caller holds the store's lock. Returns whether it made them.

        Args:
            is_new: the store holds nothing yet. A database that is not there is made for such a store alone: for another, an
                empty one would say that there never was a version.

        Raises:
            StoreError: `store_too_new`, `missing_database`, `damaged_database`, or the disk refuses.
        """
        if self.is_there() and self.check():
            return False
        if not is_new:
            raise StoreError("missing_database", path=self.path)
        with self._connect("rwc") as connection:
            # The journal's mode stays with the file; the script commits whole or not at all.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            return True

    def is_there(self) -> bool:
        """Say whether there is a file that may be the database."""
        return os.path.exists(self.path)  # noqa: PTH110 - a folder that may not be entered is no fault of its own

    def check(self) -> bool:
        """Say whether the file has the tables; without making any.

        Raises:
            StoreError: `store_too_new`, `missing_database`, `damaged_database`, or the disk refuses.
        """
        with self.snapshot() as connection:
            (got,) = connection.execute("PRAGMA user_version").fetchone()
        if got > SCHEMA_VERSION:
            raise StoreError("store_too_new", path=self.path, got=got, known=SCHEMA_VERSION)
        return got == SCHEMA_VERSION

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection, None, None]:
        """Give a connection inside BEGIN IMMEDIATE; commit at the end, or roll back if the block raises.

        Raises:
            StoreError: `store_busy` after `BUSY_TIMEOUT_S`, `disk_full`, `damaged_database`.
            RuntimeError: this thread is inside another transaction and would wait for itself.
        """
        if getattr(self._thread, "is_inside", False):
            raise RuntimeError("a transaction of the store is open in this thread; it cannot contain another one")
        self._thread.is_inside = True
        try:
            with self._connect() as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        finally:
            self._thread.is_inside = False

    @contextmanager
    def snapshot(self) -> Generator[sqlite3.Connection, None, None]:
        """Give a connection that sees one moment of the database, for reading only.

        Also while the disk is full or read-only, where SQLite cannot make the shared memory that stands beside the file.
        """
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(self._read("rw"))
            except StoreError as error:
                if error.key not in WRITE_KEYS:
                    raise
                connection = stack.enter_context(self._read_in_need(error))
            yield connection

    @contextmanager
    def _read(self, mode: str, *, is_alone: bool = False) -> Generator[sqlite3.Connection, None, None]:
        with self._connect(mode) as connection:
            if is_alone:
                # One that has the file for itself keeps in its own memory what it would share with others.
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA query_only = ON")
            connection.execute("BEGIN")
            # What cannot be read is known here, before anybody relies on it.
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            yield connection

    @contextmanager
    def _read_in_need(self, fault: StoreError) -> Generator[sqlite3.Connection, None, None]:
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(self._read("rw", is_alone=True))
            except StoreError:
                # A file that nobody can lock, for nobody can write it. What is not in the file itself yet would be missed.
                how = self._read_copy(fault) if self._has_journal() else self._read("ro&immutable=1")
                connection = stack.enter_context(how)
            yield connection

    @contextmanager
    def _read_copy(self, fault: StoreError) -> Generator[sqlite3.Connection, None, None]:
        """Read what a writer that was killed has left in its journal, where the file itself cannot take it in any more."""
        with tempfile.TemporaryDirectory(prefix="argosy-") as folder:
            copy = Path(folder) / self.path.name
            try:
                for suffix in ("", "-wal"):
                    shutil.copyfile(f"{self.path}{suffix}", f"{copy}{suffix}")
            except OSError:
                raise fault from None
            with Database(copy)._read("rw") as connection:
                yield connection

    def _has_journal(self) -> bool:
        try:
            return self.path.with_name(f"{self.path.name}-wal").stat().st_size > 0
        except FileNotFoundError:
            return False

    @contextmanager
    def _connect(self, mode: str = "rw") -> Generator[sqlite3.Connection, None, None]:
        # A file that has gone is told, and not made anew: an empty one would say that there never was a version.
        if mode != "rwc" and not self.is_there():
            raise StoreError("missing_database", path=self.path)
        try:
            connection = sqlite3.connect(f"{self._uri}?mode={mode}", timeout=BUSY_TIMEOUT_S, isolation_level=None, uri=True)
            try:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
                yield connection
            finally:
                # Closing rolls back what is not committed.
                connection.close()
        except sqlite3.DatabaseError as error:
            raise self._explain(error) from error

    def _find_refusal(self) -> str:
        """Why the file cannot be written, as the kernel says it; SQLite says that it cannot be opened."""
        # Not tried: to close a descriptor of it would free the locks of this process' other connections.
        for path in (self.path.parent, self.path):
            with contextlib.suppress(OSError):
                if os.statvfs(path).f_flag & os.ST_RDONLY:
                    return os.strerror(errno.EROFS)
                if not os.access(path, os.W_OK):
                    return os.strerror(errno.EACCES)
        return ""

    def _is_full(self) -> bool:
        """Say whether the disk has no room, or no place for one more file."""
        try:
            found = os.statvfs(self.path.parent)
        except OSError:
            return False
        return not found.f_bavail or (found.f_files > 0 and not found.f_favail)

    def _explain(self, error: sqlite3.DatabaseError) -> Exception:
        """Turn faults of the machine into StoreError; a wrong statement or a broken constraint stays as it is."""
        name = str(getattr(error, "sqlite_errorname", ""))
        fault = "_".join(name.split("_")[:2])
        if name in _FULL_FAULTS or fault in _WRITE_FAULTS:
            refusal = self._find_refusal()
            # SQLite says of a full disk alone what it was doing, where it was not writing to the file itself.
            if not refusal and (name in _FULL_FAULTS or self._is_full()):
                return StoreError("disk_full", what=self.path, detail=os.strerror(errno.ENOSPC))
            return StoreError("write_failed", what=self.path, detail=refusal or f"{error} ({name})")
        if fault in _BUSY_FAULTS:
            return StoreError("store_busy", path=self.path, timeout_s=BUSY_TIMEOUT_S)
        if fault in _DAMAGES:
            return StoreError("damaged_database", path=self.path, detail=f"{error} ({name})")
        if str(error).startswith("no such table"):
            # Something else has been put in its place.
            return StoreError("damaged_database", path=self.path, detail=str(error))
        return error
