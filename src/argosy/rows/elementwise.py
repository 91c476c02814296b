"""Operators that work element by element, and those that compute with shapes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Final

from argosy.rows.dims import MAX_BITS, Dim, combine, fixed
from argosy.rows.values import MAX_CONTENT, Node, Shape, Value, broadcast, handles, mixed, rows_of, unknown

__all__ = ["NUMBERS", "content_of", "dim_of", "spread_to"]

Contents = list[tuple[Dim, ...]]
_INT32: Final = 6  # of TensorProto
_INT64: Final = 7
_BOOL: Final = 9
_INTEGERS: Final = (_INT32, _INT64)
NUMBERS: Final = frozenset({1, 11, *_INTEGERS, _BOOL})
"""Datatypes whose numbers are known and computed with, those of shapes and scales: the others are floats of 32 and 64 bits."""


def dim_of(number: float) -> Dim | None:
    """A number of a tensor; None for what is no finite one."""
    return fixed(Fraction(number)) if math.isfinite(number) else None


def _keep(value: Value, content: tuple[Dim, ...] | None) -> Value:
    """The value with its content, if that is small and no row's own."""
    if value.is_rows or content is None or len(content) > MAX_CONTENT:
        return value._replace(content=None)
    if any(dim.number.numerator.bit_length() > MAX_BITS for dim in content):
        return value._replace(content=None)
    return value._replace(content=content, is_counted=any(dim.is_tainted for dim in content))


def _spread(values: Sequence[Value]) -> Contents | None:
    """The contents of several tensors, one number of each for each element, where that needs no more than repeating one."""
    contents = [value.content for value in values]
    if any(content is None for content in contents):
        return None
    sizes = {len(content) for content in contents if content is not None} - {1}
    if len(sizes) > 1 or any(len(value.shape or ()) > 1 for value in values):
        return None
    size = sizes.pop() if sizes else 1
    return [content * size if len(content) == 1 else content for content in contents if content is not None]


def _add(a: Dim, b: Dim) -> Dim | None:
    if a.names == b.names:
        return Dim(a.number + b.number, a.names if a.number + b.number else ())
    if not b.number:
        return a
    return b if not a.number else _combine("add", *sorted((a, b)))


def _combine(kind: str, *dims: Dim) -> Dim:
    """A name for a number; sums and extremes of lengths are lengths again."""
    return combine(kind, *dims, is_length=kind in ("add", "min", "max") and all(dim.is_length for dim in dims))


def _subtract(a: Dim, b: Dim) -> Dim | None:
    return _add(a, Dim(-b.number, b.names))


def _divide(a: Dim, b: Dim, is_integer: bool) -> Dim | None:
    found = a.over(b)
    if found is None or (is_integer and found.number.denominator != 1):
        # Integers are cut and floats are not, and which these are is not known.
        return combine("div", a, b, is_length=False) if b.number else None
    return found


def _compare(test: Callable[[Any, Any], bool], a: Dim, b: Dim) -> Dim | None:
    """A comparison of numbers; that of a length with a number below 0 is known, too."""
    if a.names == b.names:
        if a.names and a.number == b.number:
            return fixed(test(0, 0))
        return fixed(test(a.number, b.number)) if not a.names else None
    if not b.names and b.number < 0 and a.is_length:
        return fixed(test(0, -1))
    return fixed(test(-1, 0)) if not a.names and a.number < 0 and b.is_length else None


def _select(a: Dim, b: Dim, kind: str) -> Dim:
    if a == b:
        return a
    if not a.names and not b.names:
        return fixed(min(a.number, b.number) if kind == "min" else max(a.number, b.number))
    return _combine(kind, *sorted((a, b)))


_MAX_NUMBER: Final = 1 << 31
"""Of numbers that are computed here: beyond it, integers of a runtime may begin anew below zero."""
_ROUNDED: Final[dict[str, Callable[[Fraction], int | Fraction]]] = {
    "Abs": abs,
    "Ceil": math.ceil,
    "Floor": math.floor,
    "Round": round,
}
_TESTS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
}


def _compute(node: Node, contents: Contents) -> tuple[Dim, ...] | None:
    """What an operator makes of numbers that are known; None where that is not needed for shapes."""
    op = node.op
    found: list[Dim | None] = []
    for index in range(len(contents[0])):
        items = [content[index] for content in contents]
        a, b = items[0], items[1] if len(items) > 1 else items[0]
        if op == "Mul":
            found.append(a.times(b))
        elif op == "Add":
            found.append(_add(a, b))
        elif op == "Sub":
            found.append(_subtract(a, b))
        elif op == "Div":
            is_integer = all(dim.number.denominator == 1 for dim in items)
            found.append(_divide(a, b, is_integer))
        elif op in _TESTS:
            found.append(_compare(_TESTS[op], a, b))
        elif op == "Not":
            found.append(fixed(not a.number) if not a.names else None)
        elif op == "Neg":
            found.append(Dim(-a.number, a.names))
        elif op in _ROUNDED and not a.names:
            found.append(fixed(_ROUNDED[op](a.number)))
        elif op in (*_ROUNDED, "Sqrt"):
            found.append(a if a.is_length and op != "Sqrt" else _combine(op, a))
        elif op == "Mod" and not b.names and not a.names and a.number >= 0 < b.number:
            found.append(fixed(a.number % b.number))
        elif op in ("Min", "Max"):
            chosen = a
            for item in items[1:]:
                chosen = _select(chosen, item, op.lower())
            found.append(chosen)
        elif op == "Where" and not a.names:
            found.append(items[1] if a.number else items[2])
        else:
            return None
    is_whole = op in ("Where", "Min", "Max") or not any(dim is not None and abs(dim.number) >= _MAX_NUMBER for dim in found)
    return tuple(dim for dim in found if dim is not None) if is_whole and None not in found else None


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
        return _keep(result, _compute(node, contents))
    return result


@handles("Cast", "CastLike")
def _cast(node: Node) -> Value:
    value, kind = node.take(0), node.get("to")
    if value.content is None or kind not in NUMBERS:
        return value._replace(content=None)
    found = [_convert(dim, kind) for dim in value.content]
    return _keep(value, tuple(dim for dim in found if dim is not None) if None not in found else None)


def _convert(dim: Dim, kind: int) -> Dim | None:
    """A number in another datatype; None where it may not be the same there."""
    if kind == _BOOL:
        return fixed(bool(dim.number)) if not dim.names else None
    if not dim.names:
        found = fixed(math.trunc(dim.number)) if kind in _INTEGERS else dim
        return found if abs(dim.number) < (1 << 24) or kind == _INT64 else None
    if dim.is_length:
        return dim
    return combine("int" if kind in _INTEGERS else "float", dim, is_length=False)


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
    dim = dim_of(float(number.ravel()[0]))
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
    is_simple = start == 0 and delta == 1 and limits is not None
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
