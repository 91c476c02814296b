"""Operators that work element by element, and those that compute with shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from argosy.rows.arithmetic import NUMBERS, compute, convert, dim_of
from argosy.rows.dims import MAX_BITS, Dim, fixed
from argosy.rows.values import MAX_CONTENT, Node, Shape, Value, broadcast, handles, mixed, rows_of, unknown

__all__ = ["content_of", "spread_to"]


def _keep(value: Value, content: tuple[Dim, ...] | None) -> Value:
    """The value with its content, if that is small and no row's own."""
    if value.is_rows or content is None or len(content) > MAX_CONTENT:
        return value._replace(content=None)
    if any(dim.number.numerator.bit_length() > MAX_BITS for dim in content):
        return value._replace(content=None)
    return value._replace(content=content, is_counted=any(dim.is_tainted for dim in content))


def _spread(values: Sequence[Value]) -> list[tuple[Dim, ...]] | None:
    """The contents of several tensors, one number of each for each element, where that needs no more than repeating one."""
    contents = [value.content for value in values]
    if any(content is None for content in contents):
        return None
    sizes = {len(content) for content in contents if content is not None} - {1}
    if len(sizes) > 1 or any(len(value.shape or ()) > 1 for value in values):
        return None
    size = sizes.pop() if sizes else 1
    return [content * size if len(content) == 1 else content for content in contents if content is not None]


_NAMES: Final = frozenset({"float32", "float64", "int32", "int64", "bool"})
"""NumPy's names of the datatypes whose numbers are computed with."""
_UNARY: Final = """
Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf
IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh
ThresholdedRelu
"""
_NARY: Final = """
Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Clip Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or
PRelu Pow Sub Sum Where Xor
"""


@handles(*_UNARY.split(), *_NARY.split())
@handles("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "BiasAdd", domain="com.microsoft")
def _map(node: Node) -> Value:
    values = [value for value in node.inputs if value is not None]
    result = broadcast(values)
    if node.op == "Identity":
        return values[0]
    contents = _spread(values)
    if contents is not None and not result.is_rows:
        return _keep(result, compute(node.op, contents))
    return result


@handles("Cast", "CastLike")
def _cast(node: Node) -> Value:
    value, kind = node.take(0), node.get("to")
    if value.content is None or kind not in NUMBERS:
        return value._replace(content=None)
    found = [convert(dim, kind) for dim in value.content]
    return _keep(value, tuple(dim for dim in found if dim is not None) if None not in found else None)


@handles("Dropout")
def _drop_out(node: Node) -> list[Value]:
    training = node.find(2)
    if training is not None and training.integers != [0]:
        unknown("it may draw random numbers")
    value = node.take(0)
    return [value, rows_of(value, value.known_shape, value.axis)]


# shapes


@handles("Shape")
def _shape(node: Node) -> Value:
    dims = node.take(0).known_shape
    start, end = node.get("start", 0), node.get("end")
    found = dims[slice(start, end)]
    return _keep(Value((fixed(len(found)),)), found)


@handles("Size")
def _size(node: Node) -> Value:
    total = fixed(1)
    for dim in node.take(0).known_shape:
        total = total.times(dim)
    return _keep(Value(()), (total,))


@handles("ConstantOfShape")
def _fill(node: Node) -> Value:
    value = node.take(0)
    number = node.get("value")
    result = spread_to(content_of(value, "shape"))
    if result.is_rows or number is None:
        return result
    size = math.prod(dim.value or MAX_CONTENT + 1 for dim in result.known_shape)
    dim = dim_of(number.ravel()[0].item()) if number.dtype.name in _NAMES else None
    return _keep(result, (dim,) * size if dim is not None and size <= MAX_CONTENT else None)


@handles("Expand")
def _expand(node: Node) -> Value:
    value = node.take(0)
    if value.shape is None and not value.is_rows:
        return Value(None, is_counted=value.is_counted)
    shape = content_of(node.take(1), "shape")
    # A target of 1 leaves an axis as it is.
    return broadcast([value._replace(content=None), Value(shape)])


@handles("Range")
def _range(node: Node) -> Value:
    values = [node.take(index) for index in range(3)]
    if any(value.is_rows for value in values):
        mixed("its length depends on data")
    numbers = [value.integers for value in values]
    (start, limit, delta) = (found[0] if found and len(found) == 1 else None for found in numbers)
    if start is not None and limit is not None and delta:
        found = tuple(fixed(item) for item in range(start, limit, delta)[: MAX_CONTENT + 1])
        return _keep(Value((fixed(len(range(start, limit, delta))),)), found)
    limits = values[1].content
    is_simple = start == 0 and delta == 1 and limits is not None and limits[0].is_length
    length = limits[0] if is_simple and limits is not None else node.fresh(0, 0)
    if any(value.is_counted for value in values):
        # Whose element is used for which row, nobody can say from here on.
        return Value((length,), is_counted=True)
    return Value((length,))


def content_of(value: Value, what: str) -> tuple[Dim, ...]:
    """The numbers of a tensor that says how an operator works.

    Raises:
        Fault: they depend on rows, or are not known.
    """
    if value.is_rows:
        mixed(f"its {what} depends on data")
    if value.content is None:
        unknown(f"its {what} is not known")
    return value.content


def spread_to(shape: Shape) -> Value:
    """A tensor that is the same for each row, of a shape that may have an axis for them.

    Raises:
        Fault: two of its axes would have rows.
    """
    axes = [index for index, dim in enumerate(shape) if dim.is_tainted]
    if len(axes) > 1 or any(not shape[axis].has_rows for axis in axes):
        unknown("its shape depends on the number of rows in more than one way")
    return Value(shape, axes[0] if axes else -1)
