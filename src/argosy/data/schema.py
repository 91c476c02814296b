"""The schema of a data set: the same in all files, and known before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from argosy.data.files import File
from argosy.errors import InputError

__all__ = ["check_names", "check_same_schema"]


def check_names(names: Sequence[str], file: File) -> None:
    """Refuse a file of which two columns have one name.

    Raises:
        InputError: `bad_file`.
    """
    if len(set(names)) != len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise InputError("bad_file", path=repr(str(file.path)), detail=f"two of its columns are called {twice!r}")


def check_same_schema(expected: Mapping[str, str], found: Mapping[str, str], first: File, file: File) -> None:
    """Hold the columns of a file against those of the first.

    Raises:
        InputError: `schema_differs`, naming the first column that is not alike.
    """
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            raise InputError(
                "schema_differs",
                path=repr(str(file.path)),
                first=repr(str(first.path)),
                column=name,
                got=found.get(name, "not there"),
                expected=expected.get(name, "no such column"),
            )
