"""Start the process that looks into an ONNX file before the file is at hand: while its libraries load, so do those of its caller.

It imports nothing of what it starts, nor NumPy.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from argosy.confine.confine import Waiting, start_ahead

__all__ = ["ENVIRONMENT", "examiner_ahead", "take_examiner"]

ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "4"}
"""Nothing there is computed by NumPy; and what each thread reserves would count, on a machine of many processors."""

_LIBRARIES: Final = (
    "onnx",
    "argosy.importers.golden_run",
    "argosy.importers.graph",
    "argosy.rows.axis",
)
"""Not ONNX Runtime: it starts a thread when it is imported."""
_started: Final[list[Waiting]] = []


@contextmanager
def examiner_ahead() -> Generator[None, None, None]:
    """While this is entered, the next process that looks into an ONNX file has been started already."""
    process = start_ahead(_LIBRARIES, env=ENVIRONMENT)
    _started.append(process)
    try:
        yield
    finally:
        if process in _started:
            _started.remove(process)
            process.close()


def take_examiner() -> Waiting:
    """Give the process that was started ahead, or a new one."""
    try:
        return _started.pop()
    except IndexError:
        return start_ahead(_LIBRARIES, env=ENVIRONMENT)
