"""What a candidate's answers must be before any metric looks at them: of the original's shapes, and numbers where these are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import is_float
from argosy.errors import FaultError
from argosy.signature import Arrays

__all__ = ["check_shapes", "count_lost"]

Array = NDArray[Any]


def check_shapes(before: Sequence[Arrays], after: Sequence[Arrays], title: str, kind: str) -> None:
    """See that answers have the shapes that the original's have: of lengths that no one tried, runtimes may make something else.

    Args:
        before: the original's.
        after: another model's, to the same requests.
        title: of that model.
        kind: of request, such as `golden example`.

    Raises:
        FaultError: `other_shape`.
    """
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        for name, array in old.items():
            if name not in new or new[name].shape != array.shape:
                got = f"shape {new[name].shape}" if name in new else "no shape, as it is missing"
                raise FaultError("other_shape", engine=title, output=name, kind=kind, place=place, got=got, expected=array.shape)


def count_lost(before: Sequence[Arrays], after: Sequence[Arrays]) -> int:
    """Count the requests that the original answers with numbers, and another model with what is none."""

    def is_lost(old: Array, new: Array) -> bool:
        if not is_float(old.dtype):
            return False
        return bool((np.isfinite(old.astype(np.float64)) & ~np.isfinite(new.astype(np.float64))).any())

    return sum(any(is_lost(array, new[name]) for name, array in old.items()) for old, new in zip(before, after, strict=True))
