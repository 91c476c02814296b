"""Files that a user names for a result: one that is there is replaced only if the user says so; none is left half written.

Whatever a command or a function writes where its user says goes through here: recordings, reports, plots, pictures, settings.
What stays inside of ARGOSY_HOME is the business of the store.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO, Final

from argosy.errors import InputError

__all__ = ["OutputFile"]

_MODE: Final = 0o666
"""Less what the process's umask takes away, as for any new file."""


class OutputFile:
    """A file to write to, found to be writable before the work for it begins.

    Args:
        path: its name. A link stands for what it leads to; a device or a pipe holds nothing that could be lost.
        overwrite: replace a file that is there.

    Raises:
        InputError: `file_exists`; `unwritable`, its folder is not there or cannot be written to.
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        try:
            found = self.path.stat()
        except FileNotFoundError:
            found = None
        except OSError as error:
            raise self._explain(error) from error
        self._is_stream = found is not None and not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode))
        # What /dev/stdout leads to may have no name.
        self._real = self.path if self._is_stream else Path(os.path.realpath(path))
        if self._is_stream:
            return
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise InputError("unwritable", path=self.path, detail="it is a folder")
        if found is not None and not overwrite:
            raise InputError("file_exists", path=self.path)
        if not self._real.parent.is_dir():
            raise InputError("unwritable", path=self.path, detail=f"there is no folder {self._real.parent}")
        if not os.access(self._real.parent, os.W_OK | os.X_OK):
            raise InputError("unwritable", path=self.path, detail=f"folder {self._real.parent} cannot be written to")

    def write(self, content: str | bytes) -> None:
        """Write the whole content: under another name, made durable, and renamed.

        Raises:
            InputError: `file_exists`, it has come since; `unwritable`. What was there stays.
        """
        data = content.encode() if isinstance(content, str) else content
        if self._is_stream:
            with self.open() as file:
                file.write(data)
            return
        part = self._real.with_name(f".argosy-{secrets.token_hex(8)}.part")
        try:
            mode = stat.S_IMODE(self._real.stat().st_mode) if self._overwrite and self._real.exists() else None
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE), "wb") as file:  # noqa: PTH123
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._name(part)
        except OSError as error:
            raise self._explain(error) from error
        finally:
            part.unlink(missing_ok=True)

    def open(self) -> BinaryIO:
        """Open it, to be written bit by bit; what is written is there, whatever happens next.

        Raises:
            InputError: `file_exists`, it has come since; `unwritable`.
        """
        try:
            return self._real.open("wb" if self._overwrite or self._is_stream else "xb")
        except OSError as error:
            raise self._explain(error) from error

    def _name(self, part: Path) -> None:
        if self._overwrite:
            part.replace(self._real)
            return
        try:
            # Unlike a rename, a link replaces nothing.
            os.link(part, self._real)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if self._real.exists():
                raise FileExistsError from None
            part.rename(self._real)

    def _explain(self, error: OSError) -> InputError:
        if isinstance(error, FileExistsError):
            return InputError("file_exists", path=self.path)
        return InputError("unwritable", path=self.path, detail=error.strerror or error)
