"""Compute with the numbers of shapes, as every runtime does in every datatype, or not at all.

Which datatype a number has is not kept. So a result is known only if it is the same in all that it may have: where floats
round, integers wrap or are cut, it becomes a name of its own, or nothing is known of it. What was cast to a float has a name
that says so, for a float and an integer are divided otherwise. That two numbers are the same, or that one is below zero, is
believed of small ones alone.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Final

from argosy.rows.dims import ROWS, Dim, combine, fixed

__all__ = ["NUMBERS", "Contents", "compute", "compute_all", "convert", "dim_of", "is_exact"]

Contents = Sequence[Sequence[Dim]]
_INT32: Final = 6  # of TensorProto
_INT64: Final = 7
_BOOL: Final = 9
_BITS: Final = {_INT32: 31, _INT64: 63}
NUMBERS: Final = frozenset({1, 11, *_BITS, _BOOL})
"""Datatypes whose numbers are known and computed with, those of shapes and scales: the others are floats of 32 and 64 bits."""
_MANTISSA: Final = 24
_MAX_BITS: Final = 31
"""Of a result: floats of 32 bits hold it, and so do integers."""
_SMALL: Final = 64
"""A factor of lengths that leaves their product far from where integers wrap and floats round."""
_MAX_NAME: Final = 64
"""Characters of a name whose number is small: what is made of many others has a longer one."""
_FLOAT: Final = "float#"
"""Begins the name of a length that was cast to a float."""


def dim_of(number: float) -> Dim | None:
    """A number of a tensor; None for what is no finite one."""
    return fixed(Fraction(number)) if isinstance(number, int) or math.isfinite(number) else None


def is_exact(number: Fraction) -> bool:
    """True for a number that a float of 32 bits holds, and an integer of as many if it is whole."""
    top, bottom = abs(number.numerator), number.denominator
    if bottom & (bottom - 1) or bottom.bit_length() > _MANTISSA or top.bit_length() > _MAX_BITS:
        return False
    return not top or (top // (top & -top)).bit_length() <= _MANTISSA


def _is_float(dim: Dim) -> bool:
    return dim.number.denominator != 1 or any(_FLOAT in name for name in dim.names)


def _is_small(dim: Dim) -> bool:
    """True for a length, or two that are axes of one tensor, times a small number: no datatype rounds it, or begins anew."""
    names = dim.names
    is_one = len(names) == 1 or (len(names) == 2 and ROWS in names and names != (ROWS, ROWS))
    is_plain = all(len(name) <= _MAX_NAME and "*" not in name and "product" not in name for name in names)
    return not names or (is_one and is_plain and abs(dim.number) <= _SMALL and Dim(abs(dim.number), names).is_length)


def _settle(kind: str, found: Dim, *dims: Dim) -> Dim | None:
    """A result, or a name for it where floats may round it on the way."""
    if not found.names:
        return found if is_exact(found.number) else None
    if not _is_float(found) or (_is_small(_whole(found)) and len(found.names) == 1):
        return found
    return combine(kind, *dims, is_length=False)


def _whole(dim: Dim) -> Dim:
    """The dim with the numerator of its number alone, where its denominator is a small power of two."""
    bottom = dim.number.denominator
    return Dim(Fraction(dim.number.numerator), dim.names) if bottom <= _SMALL and not bottom & (bottom - 1) else dim


def _name(kind: str, *dims: Dim) -> Dim:
    """A name for a number; sums and extremes of lengths are lengths again."""
    return combine(kind, *dims, is_length=kind in ("add", "min", "max") and all(dim.is_length for dim in dims))


def _add(a: Dim, b: Dim) -> Dim | None:
    if a.names == b.names and (not a.names or (_is_small(a) and _is_small(b))):
        total = a.number + b.number
        return _settle("add", Dim(total, a.names if total else ()), *sorted((a, b)))
    if not b.number:
        return a
    return b if not a.number else _name("add", *sorted((a, b)))


def _subtract(a: Dim, b: Dim) -> Dim | None:
    return _add(a, Dim(-b.number, b.names))


def _multiply(a: Dim, b: Dim) -> Dim | None:
    if not (a.number and b.number) and not (a.is_length and b.is_length):
        # What is no length may be infinite, and that times 0 is no number.
        return fixed(0) if not (a.names or b.names) else None
    return _settle("mul", a.times(b), *sorted((a, b)))


def _divide(a: Dim, b: Dim) -> Dim | None:
    """A quotient. Integers are cut and floats are not: where that matters, it is known if it is named so."""
    if b.names and not (_strip(b) or b).is_own:
        # It may be 0, and what is infinite is no number any more once it is subtracted from itself.
        return None
    found = a.over(b) if _is_small(_whole(a)) and _is_small(_whole(b)) else None
    if found is not None and (found.number.denominator == 1 or _is_float(a) or _is_float(b)):
        return _settle("div", found, a, b)
    if not (a.names or b.names) or not b.number:
        return None
    return combine("div", a, b, is_length=a.is_length and b.is_length and not (_is_float(a) or _is_float(b)))


def _compare(test: Callable[[Any, Any], bool], a: Dim, b: Dim) -> Dim | None:
    """A comparison of numbers; that of a length with a number below 0 is known, too."""
    if not (a.names or b.names):
        return fixed(test(a.number, b.number))
    if not (_is_small(a) and _is_small(b)):
        return None
    if a == b:
        return fixed(test(0, 0))
    if not b.names and b.number < 0 and a.is_length:
        return fixed(test(0, -1))
    return fixed(test(-1, 0)) if not a.names and a.number < 0 and b.is_length else None


def _select(a: Dim, b: Dim, kind: str) -> Dim:
    if a == b:
        return a
    if not a.names and not b.names:
        return fixed(min(a.number, b.number) if kind == "min" else max(a.number, b.number))
    return _name(kind, *sorted((a, b)))


def _root(a: Dim) -> Dim | None:
    # Of a number below 0 there is none, and what is no number does not equal itself.
    return _name("Sqrt", a) if a.is_length else None


def _round(op: str, a: Dim) -> Dim | None:
    return fixed(_ROUNDED[op](a.number)) if not a.names else a if a.is_length else _name(op, a)


def _choose(op: str, items: Sequence[Dim]) -> Dim:
    chosen = items[0]
    for item in items[1:]:
        chosen = _select(chosen, item, op.lower())
    return chosen


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
_BINARY: Final = {"Add": _add, "Sub": _subtract, "Mul": _multiply, "Div": _divide}


def compute(op: str, contents: Contents) -> tuple[Dim, ...] | None:
    """What an operator makes of numbers that are known; None where that is not needed for shapes, or not known."""
    found = [_compute_one(op, [content[index] for content in contents]) for index in range(len(contents[0]))]
    return tuple(dim for dim in found if dim is not None) if None not in found else None


def compute_all(op: str, numbers: Sequence[Dim]) -> tuple[Dim] | None:
    """What an operator of two makes of several, one after the other."""
    found: Dim | None = numbers[0]
    for number in numbers[1:]:
        found = _compute_one(op, [found, number]) if found is not None else None
    return (found,) if found is not None else None


def _compute_one(op: str, items: Sequence[Dim]) -> Dim | None:
    a, b = items[0], items[1] if len(items) > 1 else items[0]
    if op in _BINARY:
        return _BINARY[op](a, b)
    if op in _TESTS:
        return _compare(_TESTS[op], a, b)
    if op == "Not":
        return fixed(not a.number) if not a.names else None
    if op == "Neg":
        return Dim(-a.number, a.names) if a.names or is_exact(a.number) else None
    if op in _ROUNDED:
        return _round(op, a) if a.names or is_exact(a.number) else None
    if op == "Sqrt":
        return _root(a)
    if op == "Mod" and not b.names and not a.names and a.number >= 0 < b.number:
        return _settle("mod", fixed(a.number % b.number), a, b)
    if op in ("Min", "Max"):
        return _choose(op, items)
    return items[1 if a.number else 2] if op == "Where" and not a.names else None


def convert(dim: Dim, kind: int) -> Dim | None:
    """A number in another datatype; None where it may not be the same there."""
    if kind == _BOOL:
        return fixed(bool(dim.number)) if not dim.names else None
    if not dim.names:
        found = fixed(math.trunc(dim.number)) if kind in _BITS else dim
        is_held = abs(dim.number) < 1 << _BITS[kind] if kind in _BITS else is_exact(dim.number)
        return found if is_held else None
    bare = _strip(dim)
    if kind in _BITS:
        if bare is not None and bare.number.denominator == 1:
            return bare
        return combine(f"int{kind}", dim, is_length=dim.is_length) if _is_float(dim) else dim
    if bare is not None and _is_small(bare) and len(bare.names) == 1:
        return Dim(bare.number, combine(f"{_FLOAT}{kind}", Dim(Fraction(1), bare.names)).names)
    return combine(f"{_FLOAT}{kind}", dim, is_length=dim.is_length)


def _strip(dim: Dim) -> Dim | None:
    """The number with an axis' own length in place of one that was cast to a float; None where that is not all that it is."""
    names = [name.removeprefix("~") for name in dim.names]
    if len(names) == 1 and names[0].startswith(_FLOAT) and names[0].endswith(")"):
        _, _, inner = names[0].removesuffix(")").partition("(")
        return Dim(dim.number, (inner,)) if "(" not in inner else None
    return dim if dim.is_own else None
