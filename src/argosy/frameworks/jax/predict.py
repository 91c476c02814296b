"""Run a flax.nnx model on rows, as it would be served."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, Final

import numpy as np

from argosy.frameworks.jax.state import Leaves, Parts, Structure, open_precision, prepare, take_apart
from argosy.frameworks.trees import Tree, check_answer, fail_rows, map_tree, predict_rows

__all__ = ["TRACE_ERRORS", "answer", "predict"]

jax: Any = importlib.import_module("jax")

TRACE_ERRORS: Final = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What the code of a model raises while JAX traces it."""


def answer(model: Any, inputs: Tree) -> Tree:
    """See `base.Framework.answer`."""
    return _run(take_apart(model, is_training=False), inputs)


def predict(model: Any, inputs: Tree) -> Tree:
    """See `base.Framework.predict`."""
    return predict_rows(inputs, partial(_run, take_apart(model, is_training=False)))


def _run(parts: Parts, inputs: Tree) -> Tree:
    with open_precision(is_double=parts.is_double):
        given = map_tree(lambda array: prepare(np.asarray(array), "x"), inputs)
        try:
            outputs = _answer(parts.structure, parts.trained, parts.random, parts.rest, given)
        except Exception as error:  # The edge of a model's own code.
            raise fail_rows(inputs, error) from error
        outputs = map_tree(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, outputs)
    check_answer(outputs)
    return outputs


@partial(jax.jit, static_argnums=0)
def _answer(structure: Structure, trained: Leaves, random: Leaves, rest: Leaves, inputs: Any) -> Any:
    return structure.run(trained, random, rest, inputs)[0]
