"""Small ONNX models whose answers the suite knows, for any server that is to be tested."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from argosy.conformance.model import FREE, INVERSE, RELOAD, TWO, name_same
from argosy.conformance.tensors import DATATYPES
from argosy.errors import InputError

__all__ = ["write_models"]

_ONNX_TYPES: Final = {"FP16": "FLOAT16", "BF16": "BFLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}
_OPSET: Final = 17
_IR_VERSION: Final = 8
"""As old as the opset allows, so that old servers read them."""

_Tensor = tuple[str, str, Sequence[int | str]]
"""Name, datatype and shape; words are free axes."""

_README: Final = """# Models for `argosy conformance`

Each folder is a model in the layout of Triton's model repository, which OpenVINO Model Server reads as well:
`NAME/1/model.onnx` and `NAME/config.pbtxt`. The suite finds them by their names; leave out what a server cannot load
(BF16 mostly), and the clauses that need it are skipped.

| model | inputs | outputs |
|---|---|---|
| `conformance-<datatype>` | `x`, [-1, 4] | `y` = x |
| `conformance-two` | `first` FP32 [-1, 2], `second` INT64 [-1, 3] | `first_out`, `second_out`; `total` INT64 [-1], row sums |
| `conformance-free` | `x` FP32 [-1, -1] | `y` = x |
| `conformance-inverse` | `x` FP32 [-1, 4] | `y` = 1 / x, infinite at 0 |
| `conformance-octets` | `x` BYTES [-1, 4] | `y` = x; not here, see below |
| `conformance-reload` | `x` FP32 [-1, 4] | `y` = x; it is unloaded and loaded again |

`conformance-octets` gets elements that are not UTF-8, which strings of ONNX are: give it to the server as a model of its own
kind, such as a Python model that returns what it gets.

Argosy:

    for model in conformance-*; do argosy import $model/1/model.onnx --name $model; done
    argosy serve conformance-*

Triton:

    tritonserver --model-repository=. --model-control-mode=explicit --load-model='*'

Any other server that takes ONNX files: give it the files under the names of their folders, with the tensors of the table in its
metadata. Then, from anywhere:

    argosy conformance http://HOST:8000 --grpc HOST:8001
"""


def write_models(folder: Path) -> list[str]:
    """Write the suite's models, and a README.md that says how servers are given them.

    Args:
        folder: to write to; it is made, and must be empty.

    Returns:
        Their names.

    Raises:
        InputError: `bad_option`, the folder holds files or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError("bad_option", option="--write-models", got=folder, expected="an empty folder, or a new one")
        (folder / "README.md").write_text(_README)
        models = _make_models()
        for name, (nodes, inputs, outputs, weights) in models.items():
            (folder / name / "1").mkdir(parents=True)
            _write_onnx(folder / name / "1" / "model.onnx", name, nodes, inputs, outputs, weights)
            (folder / name / "config.pbtxt").write_text(_describe(name, inputs, outputs))
    except OSError as error:
        expected = f"a folder that can be written to ({error.strerror})"
        raise InputError("bad_option", option="--write-models", got=folder, expected=expected) from error
    return list(models)


_Parts = tuple[list[Any], list[_Tensor], list[_Tensor], list[Any]]


def _make_models() -> dict[str, _Parts]:
    """Name -> nodes, inputs, outputs and weights."""
    make: Any = importlib.import_module("onnx").helper
    rows: list[int | str] = ["N", 4]
    names = {name_same(datatype): (datatype, rows) for datatype in DATATYPES}
    names |= {FREE: ("FP32", ["N", "K"]), RELOAD: ("FP32", rows)}
    models: dict[str, _Parts] = {
        name: ([make.make_node("Identity", ["x"], ["y"])], [("x", datatype, shape)], [("y", datatype, shape)], [])
        for name, (datatype, shape) in names.items()
    }
    models[INVERSE] = ([make.make_node("Reciprocal", ["x"], ["y"])], [("x", "FP32", rows)], [("y", "FP32", rows)], [])
    models[TWO] = (
        [
            make.make_node("Identity", ["first"], ["first_out"]),
            make.make_node("Identity", ["second"], ["second_out"]),
            make.make_node("ReduceSum", ["second", "axis"], ["total"], keepdims=0),
        ],
        [("first", "FP32", ["N", 2]), ("second", "INT64", ["N", 3])],
        [("first_out", "FP32", ["N", 2]), ("second_out", "INT64", ["N", 3]), ("total", "INT64", ["N"])],
        [make.make_tensor("axis", _onnx_type("INT64"), [1], [1])],
    )
    return models


def _onnx_type(datatype: str) -> int:
    return importlib.import_module("onnx").TensorProto.DataType.Value(_ONNX_TYPES.get(datatype, datatype))


def _write_onnx(
    path: Path, name: str, nodes: list[Any], inputs: list[_Tensor], outputs: list[_Tensor], weights: list[Any]
) -> None:
    onnx: Any = importlib.import_module("onnx")

    def infos(tensors: list[_Tensor]) -> list[Any]:
        return [onnx.helper.make_tensor_value_info(each, _onnx_type(datatype), shape) for each, datatype, shape in tensors]

    graph = onnx.helper.make_graph(nodes, name, infos(inputs), infos(outputs), weights)
    opsets = [onnx.helper.make_opsetid("", _OPSET)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION), str(path))


def _describe(name: str, inputs: list[_Tensor], outputs: list[_Tensor]) -> str:
    """A configuration for Triton; max_batch_size 0 leaves the axis of rows in the dims."""

    def tensors(kind: str, items: list[_Tensor]) -> str:
        return "".join(
            f'{kind} [ {{ name: "{each}" data_type: {"TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"} '
            f"dims: [ {', '.join(str(dim) if isinstance(dim, int) else '-1' for dim in shape)} ] }} ]\n"
            for each, datatype, shape in items
        )

    head = f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: 0\n'
    return head + tensors("input", inputs) + tensors("output", outputs)
