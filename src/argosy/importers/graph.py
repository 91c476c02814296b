"""Read an ONNX graph: its tensors, what it tells of itself, and which files its weights lie in. In a confined process alone."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from argosy.datatypes import DATATYPES
from argosy.errors import InputError, list_choices
from argosy.importers.examination import Facts
from argosy.signature import Signature, TensorSpec

__all__ = ["derive_signature", "describe", "infer_axes", "list_locations", "read_graph"]

_DATATYPES: Final = {
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "STRING": "BYTES",
    "BOOL": "BOOL",
    **{name: name for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")},
}
_EXTERNAL: Final = 1  # TensorProto.EXTERNAL
_MAX_COUNT: Final = 1 << 60
"""Of weights: their shapes may say anything."""


def read_graph(path: Path) -> Any:
    """Parse an ONNX file; weights in files of their own stay there.

    Raises:
        InputError: `bad_onnx`.
    """
    onnx = importlib.import_module("onnx")
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, of whichever of its implementations
        raise InputError("bad_onnx", path=path.name, detail=f"it cannot be parsed ({error})") from error
    # Nearly any short text parses as a message without fields.
    if model.ir_version < 1 or not model.graph.output or not model.graph.node:
        raise InputError("bad_onnx", path=path.name, detail="it holds no graph with nodes and outputs")
    return model


def list_locations(model: Any, path: Path) -> list[str]:
    """Give the names of all files that a graph's weights lie in, wherever in it these stand.

    Raises:
        InputError: `bad_external_data`, a tensor has no place, or two.
    """
    locations: set[str] = set()
    for tensor in _iterate_tensors(model):
        if tensor.data_location == _EXTERNAL or tensor.external_data:
            # Without a location, or with two, a reader may choose: refuse both.
            found = [entry.value for entry in tensor.external_data if entry.key == "location"]
            if len(found) != 1:
                raise InputError("bad_external_data", path=path.name, location=", ".join(found)[:200])
            locations.add(found[0])
    return sorted(locations)


def derive_signature(model: Any, path: Path, inferred: Mapping[str, tuple[int, ...]]) -> Signature:
    """Give the tensors that a graph takes and gives.

    Args:
        model: of `read_graph`.
        path: for messages.
        inferred: shapes of outputs, for those that the file does not declare, or declares to have no axes.

    Raises:
        InputError: `bad_onnx`, `unsupported_type`, `duplicate_tensor`.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    inputs = tuple(_derive_spec(info, path, {}) for info in graph.input if info.name not in weights)
    if not inputs:
        raise InputError("bad_onnx", path=path.name, detail="its graph has no inputs")
    return Signature(inputs, tuple(_derive_spec(info, path, inferred) for info in graph.output))


def _derive_spec(info: Any, path: Path, inferred: Mapping[str, tuple[int, ...]]) -> TensorSpec:
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        got = f"{str(kind).removesuffix('_type')} (export scikit-learn classifiers with zipmap=False)"
        raise InputError("unsupported_type", tensor=info.name, got=got, known=list_choices(_DATATYPES))
    tensor = info.type.tensor_type
    names = importlib.import_module("onnx").TensorProto.DataType
    element = names.Name(tensor.elem_type) if tensor.elem_type in names.values() else str(tensor.elem_type)
    if element not in _DATATYPES:
        raise InputError("unsupported_type", tensor=info.name, got=element, known=list_choices(DATATYPES))
    shape = _read_shape(tensor) or inferred.get(info.name, ())
    if not shape and not tensor.HasField("shape"):
        raise InputError("bad_onnx", path=path.name, detail=f"the number of axes of {info.name!r} is not declared")
    return TensorSpec(info.name, _DATATYPES[element], shape)


def _read_shape(tensor: Any) -> tuple[int, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else -1 for dim in tensor.shape.dim)


def infer_axes(model: Any) -> dict[str, tuple[int, ...]]:
    """Infer the shapes of outputs that are declared to have no axes, as some exporters do where they know none."""
    doubtful = [info.name for info in model.graph.output if not info.type.tensor_type.shape.dim]
    if not doubtful:
        return {}
    onnx: Any = importlib.import_module("onnx")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for info in copy.graph.output:
        if info.name in doubtful and info.type.WhichOneof("value") == "tensor_type":
            info.type.tensor_type.ClearField("shape")
    try:
        known = onnx.shape_inference.infer_shapes(copy).graph.output
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    shapes = {info.name: _read_shape(info.type.tensor_type) for info in known if info.name in doubtful}
    return {name: shape for name, shape in shapes.items() if shape}


def describe(model: Any) -> Facts:
    """Say what a file tells of itself."""
    names = importlib.import_module("onnx").TensorProto.DataType
    counts: Counter[str] = Counter()
    for tensor in _iterate_tensors(model):
        if tensor.data_type in names.values() and tensor.data_type:
            counts[names.Name(tensor.data_type)] += min(math.prod(tensor.dims), _MAX_COUNT)
    element = counts.most_common(1)[0][0] if counts else ""
    return Facts(
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        opsets={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        num_weights=min(sum(counts.values()), _MAX_COUNT),
        precision=_DATATYPES.get(element, element).lower(),
    )


def _iterate_tensors(model: Any) -> Iterator[Any]:
    """Give every tensor in any depth: weights, constants of nodes, defaults of functions. By what is there, not by its type."""
    waiting = [model]
    while waiting:
        message = waiting.pop()
        if message.DESCRIPTOR.name == "TensorProto":
            yield message
            continue
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                waiting.extend([value] if hasattr(value, "ListFields") else value)
