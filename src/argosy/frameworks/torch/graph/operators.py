"""What operators of ONNX compute, in torch: those with weights, activations, pooling, reductions, comparisons."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

__all__ = ["OPERATORS", "Call"]

torch: Any = importlib.import_module("torch")
F: Any = importlib.import_module("torch.nn.functional")


class Call(NamedTuple):
    """One node's work."""

    inputs: Sequence[Any]
    """Tensors; None for one that is left out."""
    attributes: Mapping[str, Any]
    opset: int
    num_outputs: int

    def get(self, index: int) -> Any:
        """Give an input, None for one that is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def get_either(self, index: int, name: str) -> Any:
        """Give what later opsets take as an input, and earlier ones as an attribute, as Python's numbers."""
        given = self.get(index)
        return self.attributes.get(name) if given is None else given.tolist()


Operator = Callable[[Call], Any]


def _pad_for(call: Call, x: Any, kernel: Sequence[int], value: float) -> tuple[Any, list[int]]:
    """Pad by hand what torch's symmetric padding does not say; returns the rest for torch."""
    rank = len(kernel)
    strides = call.attributes.get("strides", [1] * rank)
    dilations = call.attributes.get("dilations", [1] * rank)
    mode = call.attributes.get("auto_pad", b"NOTSET").decode()
    pads = list(call.attributes.get("pads", [0] * 2 * rank))
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        for axis in range(rank):
            size, reach = x.shape[2 + axis], (kernel[axis] - 1) * dilations[axis] + 1
            total = max(0, (math.ceil(size / strides[axis]) - 1) * strides[axis] + reach - size)
            less, more = total // 2, total - total // 2
            pads[axis], pads[axis + rank] = (less, more) if mode == "SAME_UPPER" else (more, less)
    if pads[:rank] == pads[rank:] and value == 0.0:
        return x, pads[:rank]
    widths = [width for axis in reversed(range(rank)) for width in (pads[axis], pads[axis + rank])]
    return (F.pad(x, widths, value=value) if any(widths) else x), [0] * rank


def _convolve(call: Call) -> Any:
    x, weight, bias = call.inputs[0], call.inputs[1], call.get(2)
    rank = weight.ndim - 2
    x, padding = _pad_for(call, x, weight.shape[2:], 0.0)
    options = {name: list(call.attributes.get(plural, [1] * rank)) for name, plural in _STEPS.items()}
    return _CONVOLVE[rank](x, weight, bias, padding=padding, groups=call.attributes.get("group", 1), **options)


def _convolve_back(call: Call) -> Any:
    attributes, weight, rank = call.attributes, call.inputs[1], call.inputs[1].ndim - 2
    pads = list(attributes.get("pads", [0] * 2 * rank))
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in attributes or pads[:rank] != pads[rank:]:
        raise ValueError("operator ConvTranspose has a padding that is not known here")
    options = {name: list(attributes.get(plural, [1] * rank)) for name, plural in _STEPS.items()}
    more = list(attributes.get("output_padding", [0] * rank))
    back = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    groups = attributes.get("group", 1)
    return back(call.inputs[0], weight, call.get(2), padding=pads[:rank], output_padding=more, groups=groups, **options)


_STEPS: Final = {"stride": "strides", "dilation": "dilations"}
_CONVOLVE: Final = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _pool_max(call: Call) -> Any:
    kernel = list(call.attributes["kernel_shape"])
    if call.num_outputs > 1:
        raise ValueError("operator MaxPool gives places")
    x, padding = _pad_for(call, call.inputs[0], kernel, float("-inf"))
    rank = len(kernel)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    options = {name: list(call.attributes.get(plural, [1] * rank)) for name, plural in _STEPS.items()}
    return pool(x, kernel, padding=padding, ceil_mode=bool(call.attributes.get("ceil_mode", 0)), **options)


def _pool_mean(call: Call) -> Any:
    kernel = list(call.attributes["kernel_shape"])
    rank, counts_pads = len(kernel), bool(call.attributes.get("count_include_pad", 0))
    x, padding = _pad_for(call, call.inputs[0], kernel, 0.0)
    if x is not call.inputs[0] and not counts_pads:
        raise ValueError("operator AveragePool has a padding that is not known here")
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    strides = list(call.attributes.get("strides", [1] * rank))
    is_ceil = bool(call.attributes.get("ceil_mode", 0))
    return pool(x, kernel, stride=strides, padding=padding, ceil_mode=is_ceil, count_include_pad=counts_pads)


def _multiply_matrices(call: Call) -> Any:
    a, b, c = call.inputs[0], call.inputs[1], call.get(2)
    a = a.T if call.attributes.get("transA", 0) else a
    b = b.T if call.attributes.get("transB", 0) else b
    product = a @ b * call.attributes.get("alpha", 1.0)
    return product if c is None else product + call.attributes.get("beta", 1.0) * c


def _normalize_batch(call: Call) -> Any:
    # As it is served: with the mean and variance that training has left.
    x, scale, bias, mean, variance = call.inputs[:5]
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=call.attributes.get("epsilon", 1e-5))


def _normalize_layer(call: Call) -> Any:
    x, axis = call.inputs[0], call.attributes.get("axis", -1) % call.inputs[0].ndim
    if call.num_outputs > 1:
        raise ValueError("operator LayerNormalization gives means")
    return F.layer_norm(x, x.shape[axis:], call.inputs[1], call.get(2), call.attributes.get("epsilon", 1e-5))


def _normalize_instance(call: Call) -> Any:
    return F.instance_norm(call.inputs[0], weight=call.inputs[1], bias=call.inputs[2], eps=call.attributes.get("epsilon", 1e-5))


def _soften(function: Callable[..., Any]) -> Operator:
    def compute(call: Call) -> Any:
        x = call.inputs[0]
        if call.opset >= 13:
            return function(x, dim=call.attributes.get("axis", -1))
        axis = call.attributes.get("axis", 1) % x.ndim
        return function(x.reshape(math.prod(x.shape[:axis]), -1), dim=1).reshape(x.shape)

    return compute


def _reduce(function: Callable[..., Any]) -> Operator:
    def compute(call: Call) -> Any:
        x, axes, keeps = call.inputs[0], call.get_either(1, "axes"), bool(call.attributes.get("keepdims", 1))
        if not axes:
            if call.attributes.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, tuple(axes), keeps)

    return compute


def _find_extreme(function: Callable[..., Any]) -> Operator:
    return lambda call: function(
        call.inputs[0], dim=call.attributes.get("axis", 0), keepdim=bool(call.attributes.get("keepdims", 1))
    )


def _clip(call: Call) -> Any:
    limits = [
        call.attributes.get(name) if call.get(place) is None else call.get(place) for place, name in enumerate(("min", "max"), 1)
    ]
    x = call.inputs[0]
    x = x if limits[0] is None else torch.maximum(x, torch.as_tensor(limits[0], dtype=x.dtype))
    return x if limits[1] is None else torch.minimum(x, torch.as_tensor(limits[1], dtype=x.dtype))


def _divide(call: Call) -> Any:
    a, b = call.inputs
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _activate_gelu(call: Call) -> Any:
    return F.gelu(call.inputs[0], approximate=call.attributes.get("approximate", b"none").decode())


def _fold(function: Callable[[Any, Any], Any]) -> Operator:
    """For operators of any number of inputs."""

    def compute(call: Call) -> Any:
        found = call.inputs[0]
        for other in call.inputs[1:]:
            found = function(found, other)
        return found

    return compute


def _take_norm(x: Any, axes: tuple[int, ...], keeps: bool) -> Any:
    return torch.linalg.vector_norm(x, dim=axes, keepdim=keeps)


def _sum_squares(x: Any, axes: tuple[int, ...], keeps: bool) -> Any:
    return torch.sum(x * x, axes, keeps)


def _rectify(x: Any, slope: Any) -> Any:
    return torch.where(x < 0, x * slope, x)


def _bend(x: Any, alpha: float, beta: float) -> Any:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def _plain(function: Callable[..., Any], **defaults: float) -> Operator:
    """For a function of the inputs, and of the attributes that are named, in this order, with their defaults."""

    def compute(call: Call) -> Any:
        return function(*call.inputs, *(call.attributes.get(name, value) for name, value in defaults.items()))

    return compute


OPERATORS: Final[dict[str, Operator]] = {
    "Conv": _convolve,
    "ConvTranspose": _convolve_back,
    "Gemm": _multiply_matrices,
    "MatMul": _plain(torch.matmul),
    "Einsum": lambda call: torch.einsum(call.attributes["equation"].decode(), *call.inputs),
    "BatchNormalization": _normalize_batch,
    "LayerNormalization": _normalize_layer,
    "InstanceNormalization": _normalize_instance,
    "MaxPool": _pool_max,
    "AveragePool": _pool_mean,
    "GlobalAveragePool": lambda call: call.inputs[0].mean(tuple(range(2, call.inputs[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda call: call.inputs[0].amax(tuple(range(2, call.inputs[0].ndim)), keepdim=True),
    "Softmax": _soften(torch.softmax),
    "LogSoftmax": _soften(torch.log_softmax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(_take_norm),
    "ReduceSumSquare": _reduce(_sum_squares),
    "ArgMax": _find_extreme(torch.argmax),
    "ArgMin": _find_extreme(torch.argmin),
    "Clip": _clip,
    "Div": _divide,
    "Gelu": _activate_gelu,
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Pow": _plain(torch.pow),
    "Mod": _plain(torch.remainder),
    "Sum": _fold(torch.add),
    "Min": _fold(torch.minimum),
    "Max": _fold(torch.maximum),
    "Sqrt": _plain(torch.sqrt),
    "Reciprocal": _plain(torch.reciprocal),
    "Exp": _plain(torch.exp),
    "Log": _plain(torch.log),
    "Neg": _plain(torch.neg),
    "Abs": _plain(torch.abs),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Cos": _plain(torch.cos),
    "Erf": _plain(torch.erf),
    "Floor": _plain(torch.floor),
    "Ceil": _plain(torch.ceil),
    "Round": _plain(torch.round),
    "Relu": _plain(torch.relu),
    "LeakyRelu": _plain(F.leaky_relu, alpha=0.01),
    "PRelu": _plain(_rectify),
    "Elu": _plain(F.elu, alpha=1.0),
    "Celu": _plain(F.celu, alpha=1.0),
    "Selu": _plain(F.selu),
    "Sigmoid": _plain(torch.sigmoid),
    "HardSigmoid": _plain(_bend, alpha=0.2, beta=0.5),
    "HardSwish": _plain(F.hardswish),
    "Mish": _plain(F.mish),
    "Tanh": _plain(torch.tanh),
    "Softplus": _plain(F.softplus),
    "Softsign": _plain(F.softsign),
    "Equal": _plain(torch.eq),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Not": _plain(torch.logical_not),
    "And": _plain(torch.logical_and),
    "Or": _plain(torch.logical_or),
    "IsNaN": _plain(torch.isnan),
    "Where": _plain(torch.where),
}
"""By ONNX's names; `shapes.py` has the rest."""
