"""One request that nobody sent, for a version without golden examples: before clients ask it, it has answered something.

What comes of it is told, and refuses nothing where it may be for what is made up here: the version may need other values, or
other lengths. An output that no values and no lengths would make the signature's is the model's own, for every client: it is
refused (`AnswerError.depends_on`).
Python code is asked in a copy of the worker: what takes too long is cut off there, and half an import, or half of what a model
makes at its first request, stays in no process that answers clients.
NumPy and the standard library only.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import DATATYPES
from argosy.serve.worker.answers import AnswerError
from argosy.serve.worker.bounds import Bounds, TrialTooLong
from argosy.serve.worker.cores import run_apart

__all__ = ["try_request"]

LIMIT_S: Final = 2.0
"""Of the request: a load waits for it, also of a worker that takes the place of one that died."""
PATIENCE_S: Final = 0.5
"""Longer than the limit a copy is waited for, which may be in a library, or wait for threads that it has not."""
MAX_ELEMENTS: Final = 1 << 24
FREE_LENGTH: Final = 8
"""Of an axis of any length, but for the first, which has one row: too short for few models, and too long for none."""
_TEXT: Final = b"0"
_WHAT: Final = "a made-up request of zeros"
_TOO_LONG: Final = f"{_WHAT} was not answered within {LIMIT_S:g} s"

Arrays = dict[str, NDArray[Any]]


def try_request(answer: Callable[[Arrays], object], inputs: Sequence[dict[str, Any]], *, is_apart: bool) -> str:
    """Ask for one row of zeros, and say what came of it.

    Args:
        answer: runs a request, and raises what it must not be answered with.
        inputs: the tensors that the version takes, as its signature has them.
        is_apart: a copy of this process is asked.

    Raises:
        AnswerError: the model's outputs are not those of its signature, whatever it is asked.
    """
    shapes = {tensor["name"]: _choose_shape(tensor["shape"]) for tensor in inputs}
    if sum(map(math.prod, shapes.values())) > MAX_ELEMENTS:
        return f"{_WHAT} was not tried, for it would be large"
    made = {tensor["name"]: _make_zeros(shapes[tensor["name"]], tensor["datatype"]) for tensor in inputs}
    has_lengths = any(length < 0 for tensor in inputs for length in tensor["shape"][1:])
    if is_apart:
        before_s = time.perf_counter()
        found = run_apart(lambda: json.dumps(_ask(answer, made, has_lengths)).encode(), LIMIT_S + PATIENCE_S)
        if not found:
            return _TOO_LONG if time.perf_counter() - before_s > LIMIT_S else f"{_WHAT} ended the process"
        text, is_refused = json.loads(found)
    else:
        text, is_refused = _ask(answer, made, has_lengths)
    if is_refused:
        raise AnswerError(text, depends_on="nothing")
    return text


def _ask(answer: Callable[[Arrays], object], made: Arrays, has_lengths: bool) -> tuple[str, bool]:
    """Say what came of it, and whether that is so for whatever a client sends."""
    before_s = time.perf_counter()
    try:
        with Bounds(LIMIT_S):
            answer(made)
    except TrialTooLong:
        return _TOO_LONG, False
    except AnswerError as error:
        if error.depends_on == "nothing" or (error.depends_on == "lengths" and not has_lengths):
            return f"{_WHAT} was answered with what the signature does not have: {error}", True
        return f"{_WHAT} failed, which may be for its {error.depends_on}: {_describe(error)}", False
    except BaseException as error:  # the model's own code
        return f"{_WHAT} failed, which may be for its values: {_describe(error)}", False
    return f"{_WHAT} was answered in {(time.perf_counter() - before_s) * 1e3:.3g} ms", False


def _choose_shape(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple((FREE_LENGTH if axis else 1) if length < 0 else length for axis, length in enumerate(shape))


def _make_zeros(shape: tuple[int, ...], datatype: str) -> NDArray[Any]:
    return np.full(shape, _TEXT, np.object_) if datatype == "BYTES" else np.zeros(shape, DATATYPES[datatype])


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}".removesuffix(": ")
    except Exception:  # the model's own exception, which may fail at telling what it is
        return type(error).__name__
