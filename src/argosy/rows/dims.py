"""Lengths of axes as products: a number times names, such as 12 * batch * tokens.

A file may multiply lengths as often as it likes: what grows beyond some factors or digits becomes a name of its own, too.

One name is ROWS, the number of rows of the batch. What is no product (a sum, a rounded quotient) becomes a name of its own, made
of what it is made of, so that equal expressions stay equal; it is marked where the number of rows is part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from fractions import Fraction
from typing import Final, NamedTuple

__all__ = ["ONE", "ROWS", "Dim", "combine", "fixed", "named", "product"]

ROWS: Final = "rows"
_TAINT: Final = "~"
"""Begins the name of what depends on the number of rows, and is no product of it."""
_NUMBER: Final = "?"
"""Begins the name of what need be no length: it may be below zero, or no whole number."""


MAX_FACTORS: Final = 16
MAX_BITS: Final = 256
"""Of the number of a product: no length is as large, and powers of powers soon are."""
MAX_NAME: Final = 200
"""Characters of what a name is made of; a longer one is known by its digest."""


class Dim(NamedTuple):
    """A product."""

    number: Fraction
    names: tuple[str, ...] = ()
    """Sorted; a name that stands in it twice is a factor twice."""

    @property
    def value(self) -> int | None:
        """The length, where no name is part of it."""
        return int(self.number) if not self.names and self.number.denominator == 1 else None

    @property
    def has_rows(self) -> bool:
        """True for a length that is a multiple of the number of rows."""
        return ROWS in self.names

    @property
    def is_tainted(self) -> bool:
        """True for a number that depends on how many rows there are, in any way."""
        return any(name == ROWS or name.startswith(_TAINT) for name in self.names)

    @property
    def is_length(self) -> bool:
        """True for what is no fraction, nor below zero, whatever its names stand for."""
        names = (name.removeprefix(_TAINT) for name in self.names)
        return self.number >= 0 and self.number.denominator == 1 and not any(name.startswith(_NUMBER) for name in names)

    @property
    def is_own(self) -> bool:
        """True for a product of axes' own lengths, which are 1 at least but of an empty tensor."""
        return self.number >= 1 and self.number.denominator == 1 and not any("(" in name for name in self.names)

    def times(self, other: Dim) -> Dim:
        """The product of both."""
        if not (self.number and other.number):
            return Dim(Fraction(0))
        names = tuple(sorted(self.names + other.names))
        bits = sum(part.bit_length() for dim in (self, other) for part in (dim.number.numerator, dim.number.denominator))
        if len(names) > MAX_FACTORS or bits > MAX_BITS:
            return combine("product", self, other)
        return Dim(self.number * other.number, names)

    def over(self, other: Dim) -> Dim | None:
        """The quotient, where it is a product again; None where it is not, or `other` is 0."""
        names = list(self.names)
        for name in other.names:
            if name not in names:
                return None
            names.remove(name)
        return Dim(self.number / other.number, tuple(names)) if other.number else None

    def __str__(self) -> str:
        return "*".join([str(self.number), *self.names]) if self.number != 1 or not self.names else "*".join(self.names)


ONE: Final = Dim(Fraction(1))


def fixed(length: int | Fraction) -> Dim:
    """A number."""
    return Dim(Fraction(length))


def named(name: str) -> Dim:
    """A length that is known by its name alone."""
    return Dim(Fraction(1), (name,))


def product(dims: Iterable[Dim]) -> Dim:
    """The product of many; 1 of none."""
    total = ONE
    for dim in dims:
        total = total.times(dim)
    return total


def combine(kind: str, *dims: Dim, is_length: bool = True) -> Dim:
    """A name for a function of lengths that is no product of them.

    Args:
        kind: of the function.
        dims: what it is of.
        is_length: it is no fraction, nor below zero.
    """
    name = f"{kind}({','.join(map(str, dims))})"
    if len(name) > MAX_NAME:
        name = f"{kind}({hashlib.sha256(name.encode()).hexdigest()})"
    name = name if is_length else _NUMBER + name
    return named(_TAINT + name if any(dim.is_tainted for dim in dims) else name)
