"""Run a flax.nnx model on rows, as it would be served."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.frameworks.base import fail_answer, fail_rows, name_kind
from argosy.frameworks.jax.state import Leaves, Structure, open_precision, prepare, take_apart

__all__ = ["TRACE_ERRORS", "predict"]

jax: Any = importlib.import_module("jax")

TRACE_ERRORS: Final = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What the code of a model raises while JAX traces it."""

_PREDICT_ROWS: Final = 256
"""Rows of one forward pass: bounds its memory, and is large enough to be fast."""


def predict(model: Any, x: NDArray[Any]) -> NDArray[Any]:
    """See `base.Framework.predict`."""
    parts = take_apart(model, is_training=False)
    answers: list[NDArray[Any]] = []
    with open_precision(is_double=parts.is_double):
        for start in range(0, len(x), _PREDICT_ROWS):
            rows = prepare(np.asarray(x[start : start + _PREDICT_ROWS]), "x")
            try:
                outputs = _answer(parts.structure, parts.trained, parts.random, parts.rest, rows)
            except TRACE_ERRORS as error:
                raise fail_rows(rows, error) from error
            if not isinstance(outputs, jax.Array) or outputs.shape[:1] != (len(rows),):
                shown = f"an array of shape {outputs.shape}" if isinstance(outputs, jax.Array) else name_kind(outputs)
                raise fail_answer(len(rows), shown)
            answers.append(np.asarray(outputs))
    return np.concatenate(answers)


@partial(jax.jit, static_argnums=0)
def _answer(structure: Structure, trained: Leaves, random: Leaves, rest: Leaves, rows: Any) -> Any:
    return structure.run(trained, random, rest, rows)[0]
