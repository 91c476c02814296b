"""What `tf.data` gives, epoch by epoch, and where its random order stands."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Final

from argosy.errors import InputError
from argosy.frameworks.trees import list_leaves

__all__ = ["place_dataset", "read_dataset"]

tf: Any = importlib.import_module("tensorflow")

_IGNORE: Final = 1
"""TensorFlow's number for: what operators keep beside the iterator is left out of its state."""


def place_dataset(data: Any, state: bytes, *, is_same: bool) -> tuple[Any, bytes]:
    """Begin an epoch: see `base.Framework.place_loader`.

    A dataset draws the seeds of an epoch from those of the epoch before. An iterator that has given nothing yet holds them, and
    tells them in a few kilobytes.
    """
    iterator = iter(data)
    if state:
        try:
            restored = tf.io.parse_tensor(state, tf.variant)
            tf.raw_ops.DeserializeIterator(resource_handle=iterator._iterator_resource, serialized=restored)
        except tf.errors.OpError as error:
            detail = f"the Dataset does not go on from the state of its random order: {str(error)[:200]}"
            raise InputError("bad_checkpoint", detail=detail) from error
        if is_same:
            return iterator, state
        iterator = iter(data)  # It follows the one that was restored.
    try:
        saved = tf.raw_ops.SerializeIterator(resource_handle=iterator._iterator_resource, external_state_policy=_IGNORE)
    except tf.errors.OpError:  # It has an operator that tells no state.
        return iterator, b""
    return iterator, bytes(tf.io.serialize_tensor(saved).numpy())


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
