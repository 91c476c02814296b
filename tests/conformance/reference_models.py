"""What the reference server has: models, what they answer, and how it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np

from argosy.conformance.model import FREE, INVERSE, OCTETS, RELOAD, TWO
from argosy.conformance.tensors import Array


class Refusal(Exception):
    """A wrong request."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


def describe_tensors(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs of a model, as its metadata has them."""

    def tensor(each: str, datatype: str, *shape: int) -> dict[str, Any]:
        return {"name": each, "datatype": datatype, "shape": list(shape)}

    if name == TWO:
        first, second = ("FP32", -1, 2), ("INT64", -1, 3)
        outputs = [tensor("first_out", *first), tensor("second_out", *second), tensor("total", "INT64", -1)]
        return [tensor("first", *first), tensor("second", *second)], outputs
    special = {
        "mine": ("FP32", -1, 4),
        FREE: ("FP32", -1, -1),
        INVERSE: ("FP32", -1, 4),
        RELOAD: ("FP32", -1, 4),
        OCTETS: ("BYTES", -1, 4),
    }
    kind = special.get(name) or (name.removeprefix("conformance-").upper(), -1, 4)
    return [tensor("x", *kind)], [tensor("y", *kind)]


def compute(name: str, inputs: dict[str, Array]) -> dict[str, Array]:
    """What a model answers."""
    if name == TWO:
        first, second = inputs["first"], inputs["second"]
        return {"first_out": first, "second_out": second, "total": second.sum(axis=1)}
    with np.errstate(divide="ignore"):
        return {"y": 1 / inputs["x"] if name == INVERSE else inputs["x"]}
