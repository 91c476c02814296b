"""Traces: a file of JSON lines, one for each request, in the order of arrival; `argosy record` writes one.

    {"at_s": 0.0, "rows": 1, "length": 17}
    {"at_s": 0.013}

`at_s` is seconds since any moment; `rows` (default 1) and `length` (default: the examples' own) describe the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from argosy.deploy.spec import Arrival
from argosy.errors import InputError
from argosy.output_file import OutputFile

__all__ = ["MAX_ARRIVALS", "TraceFile", "read_trace"]

MAX_ARRIVALS: Final = 1_000_000


class TraceFile:
    """A trace that is being written; what was added is in the file, whatever happens next.

    Args:
        path: a file that is not there.
        overwrite: replace one that is.

    Attributes:
        num_arrivals: how many it holds.
        seconds: from the first to the last.

    Raises:
        InputError: `file_exists`, `unwritable`.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.num_arrivals = 0
        self.seconds = 0.0
        self._path, self._first_s = path, 0.0
        self._file = OutputFile(path, overwrite=overwrite).open()

    def add(self, arrivals: Sequence[Arrival]) -> None:
        """Write arrivals, none of them before those that were added earlier; their times are counted from the first one.

        Raises:
            InputError: `unwritable`.
        """
        arrivals = arrivals[: MAX_ARRIVALS - self.num_arrivals]
        if not arrivals:
            return
        if not self.num_arrivals:
            self._first_s = arrivals[0].at_s
        counted = [msgspec.structs.replace(arrival, at_s=round(arrival.at_s - self._first_s, 6)) for arrival in arrivals]
        try:
            self._file.write(b"".join(msgspec.json.encode(arrival) + b"\n" for arrival in counted))
            self._file.flush()
        except OSError as error:
            raise InputError("unwritable", path=self._path, detail=error.strerror) from error
        self.num_arrivals += len(counted)
        self.seconds = counted[-1].at_s

    def close(self) -> None:
        """Add nothing more."""
        self._file.close()


def read_trace(path: Path) -> tuple[Arrival, ...]:
    """Read a trace; see the module's docstring.

    Raises:
        InputError: `missing_file`; `bad_trace`, a line is no arrival, or they are not in order.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError("missing_file", path=path, detail=error.strerror) from error
    arrivals: list[Arrival] = []
    for number, line in enumerate(lines, 1):
        try:
            arrival = msgspec.json.decode(line, type=Arrival)
        except (msgspec.DecodeError, ValueError) as error:
            raise InputError("bad_trace", path=path.name, line=number, detail=error) from error
        if arrivals and arrival.at_s < arrivals[-1].at_s:
            raise InputError("bad_trace", path=path.name, line=number, detail="it arrives before the line above it")
        arrivals.append(arrival)
    if not 2 <= len(arrivals) <= MAX_ARRIVALS or arrivals[-1].at_s == arrivals[0].at_s:
        detail = f"it holds {len(arrivals)} arrivals, expected 2 to {MAX_ARRIVALS} at different moments"
        raise InputError("bad_trace", path=path.name, line=len(arrivals), detail=detail)
    return tuple(arrivals)
