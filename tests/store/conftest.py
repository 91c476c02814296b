"""What the tests of the store share: small artifacts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from argosy.signature import Signature, TensorSpec
from argosy.store.local import Store, Version

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))


@pytest.fixture
def publish(store: Store) -> Callable[..., Version]:
    """Publish a small artifact; every argument of `Store.publish` can be given instead of the default."""

    def publish(name: str = "iris", files: Any = None, **changes: Any) -> Version:
        arguments = {"signature": SIGNATURE, "entry": "model.onnx"} | changes
        return store.publish(name, files or {"model.onnx": b"weights"}, **arguments)

    return publish
