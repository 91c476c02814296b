"""What operators of ONNX compute, in torch: those that move numbers about, and tell shapes."""

from __future__ import annotations

import importlib
import math
from typing import Any, Final

import numpy as np

from argosy.frameworks.torch.graph.operators import Call, Operator

__all__ = ["SHAPE_OPERATORS", "to_tensor"]

torch: Any = importlib.import_module("torch")
F: Any = importlib.import_module("torch.nn.functional")
onnx: Any = importlib.import_module("onnx")


def to_tensor(tensor: Any) -> Any:
    """Make a tensor of ONNX one of torch."""
    return torch.from_numpy(np.array(onnx.numpy_helper.to_array(tensor)))


def _make_constant(call: Call) -> Any:
    (name, value), *_ = call.attributes.items()
    if name == "value":
        return to_tensor(value)
    return torch.tensor(value, dtype=torch.float32 if name.startswith("value_float") else torch.int64)


def _cast(call: Call) -> Any:
    kind = onnx.helper.tensor_dtype_to_np_dtype(call.attributes["to"])
    return call.inputs[0].to(torch.from_numpy(np.empty(0, kind)).dtype)


def _reshape(call: Call) -> Any:
    x, shape = call.inputs[0], call.inputs[1].tolist()
    if not call.attributes.get("allowzero", 0):
        shape = [x.shape[axis] if length == 0 else length for axis, length in enumerate(shape)]
    return x.reshape(shape)


def _flatten(call: Call) -> Any:
    x, axis = call.inputs[0], call.attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(call: Call) -> Any:
    x = call.inputs[0]
    return x.permute(call.attributes.get("perm", list(reversed(range(x.ndim)))))


def _squeeze(call: Call) -> Any:
    axes = call.get_either(1, "axes")
    return call.inputs[0].squeeze() if axes is None else call.inputs[0].squeeze(tuple(axes))


def _unsqueeze(call: Call) -> Any:
    x, axes = call.inputs[0], call.get_either(1, "axes")
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _split(call: Call) -> Any:
    x, axis, sizes = call.inputs[0], call.attributes.get("axis", 0), call.get_either(1, "split")
    if sizes is None:
        each = -(-x.shape[axis] // call.num_outputs)
        return torch.split(x, each, axis)
    return torch.split(x, sizes, axis)


def _slice(call: Call) -> Any:
    x = call.inputs[0]
    starts, ends = call.get_either(1, "starts"), call.get_either(2, "ends")
    axes, steps = call.get_either(3, "axes"), call.get_either(4, "steps")
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = (place if axes is None else axes[place]), 1 if steps is None else steps[place]
        picked = range(x.shape[axis])[slice(start, end if step > 0 or end >= -x.shape[axis] else None, step)]
        x = x.index_select(axis, torch.tensor(picked, dtype=torch.int64)) if step != 1 else x.narrow(axis, *_bound(picked))
    return x


def _bound(picked: range) -> tuple[int, int]:
    return (picked.start if len(picked) else 0), len(picked)


def _gather(call: Call) -> Any:
    x, places = call.inputs[0], call.inputs[1]
    axis = call.attributes.get("axis", 0) % x.ndim
    found = x.index_select(axis, places.reshape(-1).to(torch.int64) % x.shape[axis])
    return found.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def _gather_elements(call: Call) -> Any:
    x, places = call.inputs[0], call.inputs[1].to(torch.int64)
    axis = call.attributes.get("axis", 0) % x.ndim
    return torch.gather(x, axis, places % x.shape[axis])


def _expand(call: Call) -> Any:
    x = call.inputs[0]
    return x.expand(torch.broadcast_shapes(x.shape, tuple(call.inputs[1].tolist())))


def _fill(call: Call) -> Any:
    value = to_tensor(call.attributes["value"]) if "value" in call.attributes else torch.zeros(1)
    return value.reshape(()).expand(tuple(call.inputs[0].tolist())).clone()


def _pad(call: Call) -> Any:
    x, pads, axes = call.inputs[0], call.get_either(1, "pads"), call.get_either(3, "axes")
    mode = call.attributes.get("mode", b"constant").decode()
    whole = [0] * 2 * x.ndim
    chosen = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    for place, axis in enumerate(chosen):
        whole[2 * (x.ndim - 1 - axis)], whole[2 * (x.ndim - 1 - axis) + 1] = pads[place], pads[place + len(chosen)]
    if mode == "constant":
        value = call.get(2)
        return F.pad(x, whole, value=call.attributes.get("value", 0.0) if value is None else value.item())
    while len(whole) > 2 and whole[-2:] == [0, 0]:
        whole = whole[:-2]
    return F.pad(x, whole, mode={"edge": "replicate"}.get(mode, mode))


def _keep_triangle(call: Call) -> Any:
    shift = 0 if call.get(1) is None else int(call.inputs[1])
    return (torch.triu if call.attributes.get("upper", 1) else torch.tril)(call.inputs[0], shift)


SHAPE_OPERATORS: Final[dict[str, Operator]] = {
    "Constant": _make_constant,
    "Identity": lambda call: call.inputs[0],
    "Dropout": lambda call: call.inputs[0],
    "Cast": _cast,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda call: torch.cat(list(call.inputs), call.attributes["axis"]),
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Shape": lambda call: torch.tensor(call.inputs[0].shape, dtype=torch.int64)[
        call.attributes.get("start", 0) : call.attributes.get("end", None)
    ],
    "Expand": _expand,
    "ConstantOfShape": _fill,
    "Pad": _pad,
    "Tile": lambda call: call.inputs[0].repeat(call.inputs[1].tolist()),
    "Range": lambda call: torch.arange(*(part.item() for part in call.inputs), dtype=call.inputs[0].dtype),
    "Trilu": _keep_triangle,
    "CumSum": lambda call: torch.cumsum(call.inputs[0], int(call.inputs[1])),
}
