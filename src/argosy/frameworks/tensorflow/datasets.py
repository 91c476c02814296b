"""What `tf.data` gives, epoch by epoch, and in which order."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Final

from argosy.errors import InputError
from argosy.frameworks.trees import list_leaves

__all__ = ["Epochs", "read_dataset"]

tf: Any = importlib.import_module("tensorflow")

_IGNORE: Final = 1
"""TensorFlow's number for: what operators keep beside the iterator is left out of its state."""


class Epochs:
    """The iterators of a dataset, one an epoch.

    A dataset draws the order of an iterator from where the one before left its random numbers, once it is made: an epoch is known
    by how many were made before. To go back, an iterator takes over the state of the first, that of the dataset with it.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self._num_opened = 0
        iterator = iter(data)
        try:
            self._first = tf.raw_ops.SerializeIterator(resource_handle=iterator._iterator_resource, external_state_policy=_IGNORE)
        except tf.errors.OpError:  # It has an operator that tells no state.
            self._first = None

    def open(self, epoch: int) -> Any:
        """Give the iterator of an epoch."""
        if epoch <= self._num_opened and self._first is not None:
            iterator = iter(self._data)
            tf.raw_ops.DeserializeIterator(resource_handle=iterator._iterator_resource, serialized=self._first)
            self._num_opened = 0
        iterator = iter(self._data)
        while self._num_opened < epoch - 1:
            self._num_opened += 1
            iterator = iter(self._data)
        self._num_opened = epoch
        return iterator


def read_dataset(data: Any) -> Iterator[Any]:
    """Give the elements of one epoch, or of an iterator.

    Raises:
        InputError: `bad_data`, the dataset never ends, or gives single rows.
    """
    if isinstance(data, tf.data.Dataset):
        if int(data.cardinality()) == int(tf.data.INFINITE_CARDINALITY):
            raise InputError("bad_data", detail="the Dataset never ends; give one epoch of it, such as .take(100)")
        _check_spec(data.element_spec)
    yield from data


def _check_spec(spec: Any) -> None:
    for leaf in list_leaves(spec):
        if not isinstance(leaf, tf.TensorSpec):
            detail = f"the Dataset gives {type(leaf).__name__}, expected tensors; .to_tensor() or tf.sparse.to_dense make such"
            raise InputError("bad_data", detail=detail)
        if leaf.shape.rank == 0:
            raise InputError("bad_data", detail="the Dataset gives single rows, expected batches of them; use .batch(32)")
