"""Run a flax.nnx model on rows, as it would be served."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, Final

import numpy as np

from argosy.frameworks.jax.state import Leaves, Structure, open_precision, prepare, take_apart
from argosy.frameworks.trees import Tree, fail_rows, map_tree, predict_rows

__all__ = ["TRACE_ERRORS", "predict"]

jax: Any = importlib.import_module("jax")

TRACE_ERRORS: Final = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What the code of a model raises while JAX traces it."""


def predict(model: Any, inputs: Tree) -> Tree:
    """See `base.Framework.predict`."""
    parts = take_apart(model, is_training=False)

    def answer(rows: Tree) -> Tree:
        given = map_tree(lambda array: prepare(np.asarray(array), "x"), rows)
        try:
            outputs = _answer(parts.structure, parts.trained, parts.random, parts.rest, given)
        except TRACE_ERRORS as error:
            raise fail_rows(rows, error) from error
        return map_tree(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, outputs)

    with open_precision(is_double=parts.is_double):
        return predict_rows(inputs, answer)


@partial(jax.jit, static_argnums=0)
def _answer(structure: Structure, trained: Leaves, random: Leaves, rest: Leaves, inputs: Any) -> Any:
    return structure.run(trained, random, rest, inputs)[0]
