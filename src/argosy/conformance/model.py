"""What the server says of a model, requests that fit it, and the models that the suite knows the answers of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from argosy.conformance.tensors import DATATYPES, Array, make_sample, to_json

__all__ = ["FREE", "INVERSE", "OCTETS", "PREFIX", "RELOAD", "TWO", "Model", "Tensor", "list_names", "make_request", "name_same"]

PREFIX: Final = "conformance-"
"""Models with this prefix belong to the suite: it knows their answers, and may unload them."""
TWO: Final = PREFIX + "two"
"""first FP32 [-1, 2] and second INT64 [-1, 3] to first_out and second_out, the same, and total, the sums of second's rows."""
FREE: Final = PREFIX + "free"
"""x FP32 [-1, -1] to y, the same."""
INVERSE: Final = PREFIX + "inverse"
"""x FP32 [-1, 4] to y = 1 / x, which is infinite at 0."""
OCTETS: Final = PREFIX + "octets"
"""x BYTES [-1, 4] to y, the same, whatever they are; `conformance-bytes` gets UTF-8 alone, which strings of ONNX are."""
RELOAD: Final = PREFIX + "reload"
"""x FP32 [-1, 4] to y, the same; it is unloaded and loaded."""

_NUM_ROWS: Final = 2
_FREE_DIM: Final = 4


def name_same(datatype: str) -> str:
    """The name of the model that answers x of a datatype, shape [-1, 4], with the same y."""
    return PREFIX + datatype.lower()


def list_names() -> list[str]:
    """All models of the suite."""
    return [*map(name_same, DATATYPES), TWO, FREE, INVERSE, OCTETS, RELOAD]


class Tensor(NamedTuple):
    """An input or output as the server's metadata describes it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 is any length."""


class Model(NamedTuple):
    """A model as the server's metadata describes it."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def fill(self, shape: Sequence[int], num_rows: int = _NUM_ROWS) -> tuple[int, ...]:
        """A shape with lengths for its -1."""
        return tuple(dim if dim >= 0 else _FREE_DIM if axis else num_rows for axis, dim in enumerate(shape))

    def make_inputs(self, seed: int = 0, num_rows: int = _NUM_ROWS) -> dict[str, Array]:
        """Input name -> array: small random values, the same for the same seed."""
        return {
            tensor.name: make_sample(tensor.datatype, self.fill(tensor.shape, num_rows), seed + place)
            for place, tensor in enumerate(self.inputs)
        }

    def answer(self, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
        """Output name -> array that the model must answer; None where the suite does not know the model."""
        if self.name == TWO:
            first, second = inputs["first"], inputs["second"]
            return {"first_out": first, "second_out": second, "total": second.sum(axis=1)}
        if self.name in list_names() and self.name != INVERSE:
            return {"y": inputs["x"]}
        return None


def make_request(model: Model, inputs: Mapping[str, Array] | None = None, **fields: Any) -> dict[str, Any]:
    """An inference request in JSON; `fields` are added to it."""
    arrays = model.make_inputs() if inputs is None else inputs
    tensors = [
        {
            "name": tensor.name,
            "shape": list(arrays[tensor.name].shape),
            "datatype": tensor.datatype,
            "data": to_json(arrays[tensor.name], tensor.datatype),
        }
        for tensor in model.inputs
    ]
    return {"inputs": tensors, **fields}
