"""Networks with planted outliers: they answer as if there were none, and rounding one tensor to 8 bits ruins them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import helper

from argosy.bench.artifact import Artifact
from tests.compress.artifacts import make_artifact

__all__ = ["NETWORKS", "make_block", "make_convolutions", "make_layers"]

_SCALE: Final = 4000.0
_RANDOM_SEED: Final = 5


def make_layers(folder: Path, where: str) -> tuple[Artifact, Any]:
    """Four layers of 64 units; gives rows, too.

    Args:
        folder: for the file.
        where: `channel`, one hidden unit is larger than the others, and counts less; `layer`, all numbers between two layers
            stand far from 0, close together; `output`, one number of the answer is larger than the others.
    """
    random = np.random.default_rng(_RANDOM_SEED)
    widths = (16, 64, 64, 64, 4)
    weights: dict[str, Any] = {}
    for place in range(4):
        size = (widths[place], widths[place + 1])
        weights[f"w{place}"] = (random.normal(size=size) * (2 / size[0]) ** 0.5).astype(np.float32)
        weights[f"b{place}"] = (random.normal(size=size[1]) * 0.1).astype(np.float32)
    _plant(weights, where, "w1", "b1", "w2", "b2")
    if where == "output":
        weights["w3"][:, 0] *= _SCALE
        weights["b3"][0] *= _SCALE
    nodes: list[Any] = []
    for place in range(4):
        given = "x" if place == 0 else f"r{place - 1}"
        nodes.append(helper.make_node("Gemm", [given, f"w{place}", f"b{place}"], [f"h{place}"], name=f"layer{place}"))
        if place < 3:
            nodes.append(helper.make_node("Relu", [f"h{place}"], [f"r{place}"], name=f"relu{place}"))
    nodes[-1].output[0] = "y"
    rows = random.normal(size=(240, 16)).astype(np.float32)
    return make_artifact(folder, nodes, [("x", "FP32", ("rows", 16))], [("y", "FP32", ("rows", 4))], weights), rows


def make_convolutions(folder: Path, where: str) -> tuple[Artifact, Any]:
    """Four convolutions of 24 channels over 8 x 8 points, the last one gives 4 maps; as `make_layers`."""
    random = np.random.default_rng(_RANDOM_SEED)
    channels = (3, 24, 24, 24, 4)
    weights: dict[str, Any] = {}
    for place in range(4):
        shape = (channels[place + 1], channels[place], 3, 3)
        weights[f"w{place}"] = (random.normal(size=shape) * (2 / (9 * shape[1])) ** 0.5).astype(np.float32)
        weights[f"b{place}"] = (random.normal(size=shape[0]) * 0.1).astype(np.float32)
    if where == "channel":
        weights["w1"][0] *= _SCALE
        weights["b1"][0] *= _SCALE
        weights["w2"][:, 0] /= _SCALE
    if where == "output":
        weights["w3"][0] *= _SCALE
        weights["b3"][0] *= _SCALE
    nodes: list[Any] = []
    for place in range(4):
        given = "x" if place == 0 else f"r{place - 1}"
        inputs = [given, f"w{place}", f"b{place}"]
        nodes.append(helper.make_node("Conv", inputs, [f"h{place}"], name=f"layer{place}", pads=[1, 1, 1, 1]))
        if place < 3:
            nodes.append(helper.make_node("Relu", [f"h{place}"], [f"r{place}"], name=f"relu{place}"))
    nodes[-1].output[0] = "y"
    rows = random.normal(size=(160, 3, 8, 8)).astype(np.float32)
    signature = [("x", "FP32", ("rows", 3, 8, 8))], [("y", "FP32", ("rows", 4, 8, 8))]
    return make_artifact(folder, nodes, *signature, weights), rows


def make_block(folder: Path, where: str) -> tuple[Artifact, Any]:
    """Attention with one head and two layers behind it, on 6 tokens of 32 numbers; as `make_layers`."""
    random = np.random.default_rng(_RANDOM_SEED)
    weights: dict[str, Any] = {
        name: (random.normal(size=size) * size[0] ** -0.5).astype(np.float32)
        for name, size in {"q": (32, 32), "k": (32, 32), "v": (32, 32), "o": (32, 32), "up": (32, 96), "down": (96, 32)}.items()
    }
    weights |= {"bias": (random.normal(size=96) * 0.1).astype(np.float32), "base": np.zeros(32, np.float32)}
    weights |= {"gain": np.ones(32, np.float32), "shift": np.zeros(32, np.float32), "root": np.float32(32**-0.5)}
    _plant(weights, where, "up", "bias", "down", "base")
    nodes = [
        *(helper.make_node("MatMul", ["x", name], [f"x{name}"], name=f"layer_{name}") for name in "qkv"),
        helper.make_node("Transpose", ["xk"], ["turned"], perm=[0, 2, 1], name="turn"),
        helper.make_node("MatMul", ["xq", "turned"], ["products"], name="products"),
        helper.make_node("Mul", ["products", "root"], ["scaled"], name="scale"),
        helper.make_node("Softmax", ["scaled"], ["parts"], axis=-1, name="softmax"),
        helper.make_node("MatMul", ["parts", "xv"], ["mixed"], name="mix"),
        helper.make_node("MatMul", ["mixed", "o"], ["seen"], name="layer_o"),
        helper.make_node("Add", ["x", "seen"], ["sum1"], name="residual1"),
        helper.make_node("LayerNormalization", ["sum1", "gain", "shift"], ["even"], name="even"),
        helper.make_node("MatMul", ["even", "up"], ["wide"], name="layer_up"),
        helper.make_node("Add", ["wide", "bias"], ["moved"], name="bias"),
        helper.make_node("Relu", ["moved"], ["bent"], name="relu"),
        helper.make_node("MatMul", ["bent", "down"], ["narrow"], name="layer_down"),
        helper.make_node("Add", ["narrow", "base"], ["based"], name="base"),
        helper.make_node("Add", ["based", "even"], ["y"], name="residual2"),
    ]
    rows = random.normal(size=(160, 6, 32)).astype(np.float32)
    signature = [("x", "FP32", ("rows", 6, 32))], [("y", "FP32", ("rows", 6, 32))]
    return make_artifact(folder, nodes, *signature, weights), rows


def _plant(weights: dict[str, Any], where: str, first: str, bias: str, second: str, base: str) -> None:
    """Plant outliers in what Relu gives between two matrices, so that the second one's product stays as it was."""
    if where == "channel":
        weights[first][:, 0] *= _SCALE
        weights[bias][0] *= _SCALE
        weights[second][0] /= _SCALE
    if where == "layer":
        # Far from 0 Relu does nothing more: the network is another one, and as good.
        weights[bias] += np.float32(_SCALE / 10)
        weights[base] -= np.float32(_SCALE / 10) * weights[second].sum(axis=0)


NETWORKS: Final = {"layers": make_layers, "convolutions": make_convolutions, "block": make_block}
"""By name, each with places of outliers that ruin it."""
