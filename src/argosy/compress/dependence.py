"""Whether answers still depend on the input, as the original's do: whatever a metric counts, it counts nothing without that.

What is one for all rows, or nearly, or goes up and down without regard to the original, says nothing of its row, however near to
the original's it lies on average. Size and place of the answers are not looked at: some metrics let these move.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.compress.spread import find_least_spread, is_uneven, list_tables, tell_chances

__all__ = ["find_collapse"]

Array = NDArray[Any]

_LEAST: Final = 0.316
"""Correlation of answers with the original's over rows: a tenth of their spread."""
_HARDLY: Final = 1e-4
"""Part of the original's spread, beside the size of the answers, below which they hardly differ: a hundredth of it, squared."""
_ROUNDING: Final = 1e-12
"""Variance beside the mean square, below which answers count as one."""
_MOST_LEFT_OUT: Final = 2
"""Rows that weigh most, without which answers must have lost it, too: what one or two rows lose is for the metric to count."""
_LEFT_OUT: Final = 0.25
"""Of few rows, such as golden examples, no more than so many of them."""
_LEAST_ROWS: Final = 8
"""Over fewer, one entry goes up and down as another by chance: then it must be one for all rows to be lost."""
_HELD_NUMBERS: Final = 1 << 22
"""At once, in double precision."""


class _View(NamedTuple):
    """Answers as a table: samples by positions."""

    old: Array
    new: Array
    rows: Array
    """Of each sample, the row that it is of."""
    shape: tuple[int, ...]
    """Of the positions."""
    axes: tuple[int, ...]
    """What the shape's axes are called."""


class _Ties(NamedTuple):
    """Of each position."""

    scales: Array
    """Variance of the original's answers over samples."""
    squares: Array
    """Their mean square."""
    are_chances: Array
    kept: Array
    """Correlation of the other's answers with them; 0 where these are all one."""
    others: Array
    """Variance of the other's answers."""
    sizes: Array
    """Their mean square."""

    @property
    def is_one(self) -> bool:
        """The other's answers are all one."""
        return bool((self.others <= _ROUNDING * self.sizes).all())

    def gather(self, shape: tuple[int, ...], axis: int) -> _Ties:
        """Give those of the entries of an axis: of each, its positions' together."""
        others = tuple(other for other in range(len(shape)) if other != axis)
        scales, squares, are_chances, kept, moved, sizes = (values.reshape(shape) for values in self)
        whole: Array = scales.sum(axis=others)
        kept = (scales * kept).sum(axis=others) / np.where(whole > 0.0, whole, 1.0)
        means = [values.mean(axis=others) for values in (scales, squares, moved, sizes)]
        return _Ties(means[0], means[1], np.asarray(are_chances.all(axis=others)), kept, means[2], means[3])

    def pick(self, columns: Array) -> _Ties:
        """Give those of some positions."""
        return _Ties(*(values[columns] for values in self))

    def measure(self) -> float:
        """Give the correlation of all positions together, each by how much the original's answers spread there."""
        return float((self.scales * self.kept).sum() / self.scales.sum())

    def compare_spreads(self) -> float:
        """Give the spread of the other's answers, beside their size, as part of the original's."""
        own, other = self.scales.sum() / self.squares.sum(), self.others.sum() / self.sizes.sum()
        return float(other / own)


def find_collapse(before: Array, after: Array, *, has_one_unit: bool, is_retrained: bool = False) -> str:
    """Say which answers do not depend on the input any more, though the original's do; "" if all of them do.

    Args:
        before: the original's answers, numbers, first axis rows; or an array of arrays, one a row.
        after: another version's.
        has_one_unit: all have the same, such as scores of classes.
        is_retrained: the other may know better than the original; then it is only asked whether all rows get one answer.
    """
    for view in _list_views(before, after):
        ties = _tie(view.old, view.new)
        columns = np.flatnonzero(ties.scales > _find_least(ties, has_one_unit))
        is_suspect = len(columns) > 0 and _is_lost(ties.pick(columns), only_one=is_retrained)
        found = _find_lost(view, columns, has_one_unit, only_one=is_retrained) if is_suspect else None
        if found is not None:
            if found.is_one:
                return f"it gives all {len(before)} rows one answer, the original does not"
            return f"its answers do not depend on the input as the original's do: {_tell(found)}"
        if is_retrained:
            continue
        for place, axis in enumerate(view.axes):
            entries = ties.gather(view.shape, place)
            is_little = entries.others * entries.squares < _HARDLY * entries.scales * entries.sizes
            suspects = (entries.scales > _find_least(entries, has_one_unit)) & ((entries.kept < _LEAST) | is_little)
            places = np.unravel_index(np.arange(len(ties.kept)), view.shape)[place]
            for entry in np.flatnonzero(suspects).tolist() if view.shape[place] > 1 else ():
                columns = np.flatnonzero(places == entry)
                found = _find_lost(view, columns, has_one_unit, only_one=len(before) < _LEAST_ROWS)
                if found is not None:
                    name = f"entry {entry} of axis {axis} of its answers"
                    if found.is_one:
                        return f"{name} is the same for all rows, of the original's it is not"
                    return f"{name} does not depend on the input as the original's does: {_tell(found)}"
    return ""


def _tell(ties: _Ties) -> str:
    if ties.measure() >= _LEAST:
        return f"beside their size, their spread over rows is {ties.compare_spreads():.2g} of it, below {_HARDLY:g}"
    return f"their correlation over rows is {ties.measure():.3f}, below {_LEAST:g}"


def _list_views(before: Array, after: Array) -> Iterator[_View]:
    """Give answers as tables; where shapes differ from row to row, one for each axis that they have in common."""
    if not is_uneven(before):
        old, new = (outputs.reshape(len(outputs), -1) for outputs in (before, after))
        if old.size:
            yield _View(old, new, np.arange(len(old)), before.shape[1:], tuple(range(1, before.ndim)))
        return
    tables = list(zip(list_tables(before), list_tables(after), strict=True))
    for (axis, old), (_, new) in tables[1:] or tables:
        rows = np.repeat(np.arange(len(before)), [row.size // old.shape[1] for row in before])
        if old.size:
            yield _View(old, new, rows, old.shape[1:], (axis,))


def _tie(old: Array, new: Array) -> _Ties:
    """Look at each position, some at once."""
    step = max(1, _HELD_NUMBERS // len(old))
    parts = [_tie_some(old[:, start : start + step], new[:, start : start + step]) for start in range(0, old.shape[1], step)]
    return _Ties(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _tie_some(old: Array, new: Array) -> _Ties:
    old, new = (np.asarray(numbers, np.float64) for numbers in (old, new))
    squares: Array = np.mean(np.square(old), axis=0)
    apart, moved = old - old.mean(axis=0), new - new.mean(axis=0)
    scales: Array = np.mean(np.square(apart), axis=0)
    others: Array = np.mean(np.square(moved), axis=0)
    sizes: Array = np.mean(np.square(new), axis=0)
    are_one = others <= _ROUNDING * sizes
    kept = np.where(are_one | (scales <= 0.0), 0.0, (apart * moved).mean(axis=0) / np.sqrt(np.maximum(scales * others, 1e-300)))
    return _Ties(scales, squares, tell_chances(old), kept, others, sizes)


def _find_least(ties: _Ties, has_one_unit: bool) -> Array:
    return find_least_spread(ties.scales, ties.squares, ties.are_chances, has_one_unit=has_one_unit)


def _find_lost(view: _View, columns: Array, has_one_unit: bool, *, only_one: bool = False) -> _Ties | None:
    """Look at some positions together; None if they depend on the input, or if what is lost is that of very few rows."""
    old, new = (numbers if len(columns) == numbers.shape[1] else numbers[:, columns] for numbers in (view.old, view.new))
    ties = _tie(old, new)
    if not _is_lost(ties, only_one=only_one):
        return None
    weights = np.bincount(view.rows, weights=np.square(old - old.mean(axis=0)).sum(axis=1))
    num_left_out = min(_MOST_LEFT_OUT, int(_LEFT_OUT * len(weights)))
    is_in = ~np.isin(view.rows, np.argsort(weights)[len(weights) - num_left_out :])
    rest = _tie(old[is_in], new[is_in])
    is_wide = rest.scales.mean() > np.mean(_find_least(rest, has_one_unit))
    return ties if is_wide and _is_lost(rest, only_one=only_one) else None


def _is_lost(ties: _Ties, *, only_one: bool) -> bool:
    return ties.is_one if only_one else ties.measure() < _LEAST or ties.compare_spreads() < _HARDLY
