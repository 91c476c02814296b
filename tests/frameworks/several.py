"""Publish models of several inputs and outputs, and leave what they answer.

    python -m tests.frameworks.several FRAMEWORK HOME FOLDER [NATIVE]

puts versions of one framework into the store HOME, and the inputs and its own answers into FOLDER/NAME.npz, as `in:NAME` and
`out:NAME`; Keras' backend is that of KERAS_BACKEND. The models are

    pair      two inputs by name, a tuple of two outputs
    choice    a dict of outputs; branches on its second input
    states    outputs that are no rows: a sum, and states whose second axis counts rows

and with NATIVE they are kept as the framework saves them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import argosy
from argosy.frameworks.base import framework_of
from argosy.frameworks.trees import list_leaves
from argosy.store.local import Store

NUM_ROWS = 16


def make(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


A, B = make(4, 3), make(2, 3)


def build_torch() -> dict[str, Any]:
    import torch

    class Pair(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Parameter(torch.from_numpy(A)), torch.nn.Parameter(torch.from_numpy(B))

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mixed = left @ self.a + right @ self.b
            return mixed.tanh(), mixed.sum(1)

    class Choice(Pair):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            if right.mean() > 0:
                return {"mixed": left @ self.a + right @ self.b, "gate": right @ self.b}
            return {"mixed": left @ self.a - right @ self.b, "gate": right @ self.b}

    class States(Pair):
        def forward(self, left: torch.Tensor, right: torch.Tensor):
            mixed = left @ self.a + right @ self.b
            return mixed, (mixed.sum(), mixed[None])

    return {"pair": Pair(), "choice": Choice(), "states": States()}


def build_tensorflow() -> dict[str, Any]:
    import tensorflow as tf

    class Pair(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = tf.Variable(A), tf.Variable(B)

        def __call__(self, left: Any, right: Any) -> Any:
            mixed = left @ self.a + right @ self.b
            return tf.tanh(mixed), tf.reduce_sum(mixed, 1)

    class Choice(Pair):
        def __call__(self, left: Any, right: Any) -> Any:
            sign = tf.cond(tf.reduce_mean(right) > 0, lambda: 1.0, lambda: -1.0)
            return {"mixed": left @ self.a + sign * (right @ self.b), "gate": right @ self.b}

    class States(Pair):
        def __call__(self, left: Any, right: Any) -> Any:
            mixed = left @ self.a + right @ self.b
            return mixed, (tf.reduce_sum(mixed), mixed[None])

    return {"pair": Pair(), "choice": Choice(), "states": States()}


def build_jax() -> dict[str, Any]:
    import jax.numpy as jnp
    from flax import nnx

    class Pair(nnx.Module):
        def __init__(self) -> None:
            self.a, self.b = nnx.Param(jnp.asarray(A)), nnx.Param(jnp.asarray(B))

        def __call__(self, left: Any, right: Any) -> Any:
            mixed = left @ self.a + right @ self.b
            return jnp.tanh(mixed), mixed.sum(1)

    class Choice(Pair):
        def __call__(self, left: Any, right: Any) -> Any:
            sign = jnp.where(right.mean() > 0, 1.0, -1.0)
            return {"mixed": left @ self.a + sign * (right @ self.b), "gate": right @ self.b}

    class States(Pair):
        def __call__(self, left: Any, right: Any) -> Any:
            mixed = left @ self.a + right @ self.b
            return mixed, (mixed.sum(), mixed[None])

    return {"pair": Pair(), "choice": Choice(), "states": States()}


def build_keras() -> dict[str, Any]:
    import keras

    def mix(call: Callable[[Any, Any], Any]) -> Any:
        # The order in which it takes them is not that of their names.
        right, left = keras.Input((2,), name="right"), keras.Input((4,), name="left")
        from_left, from_right = keras.layers.Dense(3, use_bias=False), keras.layers.Dense(3, use_bias=False)
        model = keras.Model([right, left], call(from_left(left), from_right(right)))
        from_left.set_weights([A])
        from_right.set_weights([B])
        return model

    def choose(one: Any, other: Any) -> Any:
        sign = keras.ops.sign(keras.ops.mean(other))
        return {"mixed": one + sign * other, "gate": other}

    return {
        "pair": mix(lambda one, other: (keras.ops.tanh(one + other), keras.ops.sum(one + other, 1))),
        "choice": mix(choose),
        "states": mix(lambda one, other: (one + other, (keras.ops.sum(one + other), keras.ops.expand_dims(one + other, 0)))),
    }


def build_mxnet() -> dict[str, Any]:
    from argosy.frameworks.mxnet.library import mx

    class Pair(mx.gluon.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            dense = mx.gluon.nn.Dense
            self.a, self.b = dense(3, use_bias=False, in_units=4), dense(3, use_bias=False, in_units=2)
            self.initialize()
            self.a.weight.set_data(mx.nd.array(A.T))
            self.b.weight.set_data(mx.nd.array(B.T))

        def hybrid_forward(self, F: Any, left: Any, right: Any) -> Any:  # noqa: N803 - as Gluon has it
            mixed = self.a(left) + self.b(right)
            return mixed.tanh(), mixed.sum(axis=1)

    class Choice(Pair):
        def hybrid_forward(self, F: Any, left: Any, right: Any) -> Any:  # noqa: N803 - as above
            return {"mixed": self.a(left) + F.broadcast_mul(right.mean().sign(), self.b(right)), "gate": self.b(right)}

    class States(Pair):
        def hybrid_forward(self, F: Any, left: Any, right: Any) -> Any:  # noqa: N803 - as above
            mixed = self.a(left) + self.b(right)
            return mixed, (mixed.sum(), mixed.expand_dims(0))

    return {"pair": Pair(), "choice": Choice(), "states": States()}


BUILDERS: dict[str, Callable[[], dict[str, Any]]] = {
    "jax": build_jax,
    "keras": build_keras,
    "mxnet": build_mxnet,
    "tensorflow": build_tensorflow,
    "torch": build_torch,
}


def main(framework: str, home: Path, folder: Path, *, native: bool) -> None:
    sample = {"left": make(NUM_ROWS, 4), "right": make(NUM_ROWS, 2)}
    for name, model in BUILDERS[framework]().items():
        labels = {"mixed": ["x", "y", "z"]} if name == "choice" else None
        version = argosy.publish(model, name, Store(home), sample=sample, labels=labels, native=native)
        names = [spec.name for spec in version.manifest.signature.outputs]
        for num_rows in (1, 2, 7, NUM_ROWS):
            inputs = {key: array[:num_rows] for key, array in sample.items()}
            answers = framework_of(model).answer(model, inputs)
            arrays = {f"in:{key}": array for key, array in inputs.items()}
            arrays |= {f"out:{key}": array for key, array in zip(names, list_leaves(answers), strict=True)}
            np.savez(folder / f"{name}-{num_rows}.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), native=len(sys.argv) > 4)
