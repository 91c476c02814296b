"""The models that the benchmarks serve, rows to ask them, and what bare ONNX Runtime answers."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import argosy
from argosy.importers.onnx import import_onnx

LAYERS = (64, 256, 256, 10)
IMAGE = (3, 224, 224)
NUM_ROWS = 16
MIN_LENGTH, MAX_LENGTH = 8, 128
Row = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model with rows to ask it.

    Attributes:
        model: its name in Argosy's store.
        file: the ONNX file that every rival loads.
        home: an ARGOSY_HOME in which it is published.
        rows: inputs by name, each of shape (1, ...).
        answers: what ONNX Runtime answers to each row alone, of shape (1, ...).
        tolerance: absolute, of one number of an answer in float32.
    """

    model: str
    file: Path
    home: Path
    rows: list[Row]
    answers: list[np.ndarray]
    tolerance: float


def make_mlp(path: Path, layers: Sequence[int] = LAYERS) -> Path:
    """A multilayer perceptron, 64-256-256-10, with random weights: input `x`, output `y`."""
    random = np.random.default_rng(7)
    nodes, weights, current = [], [], "x"
    for index, (rows, columns) in enumerate(itertools.pairwise(layers)):
        weights.append(numpy_helper.from_array((random.standard_normal((rows, columns)) / rows**0.5).astype("f4"), f"w{index}"))
        weights.append(numpy_helper.from_array((random.standard_normal(columns) * 0.1).astype("f4"), f"b{index}"))
        is_last = index == len(layers) - 2
        output = "y" if is_last else f"g{index}"
        nodes.append(helper.make_node("Gemm", [current, f"w{index}", f"b{index}"], [output]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [output], [f"r{index}"]))
            current = f"r{index}"
    return _save("mlp", path, nodes, ["N", layers[0]], ["N", layers[-1]], weights)


def make_pixels(path: Path) -> Path:
    """The mean of each channel of an image: input `x` of shape (N, 3, 224, 224), output `y` of shape (N, 3)."""
    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    return _save("pixels", path, [mean], ["N", *IMAGE], ["N", IMAGE[0]], [])


def _save(name: str, path: Path, nodes: list, shape: list, output_shape: list, weights: list) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)
    graph = helper.make_graph(nodes, name, [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def _publish_onnx(name: str, make: Callable[[Path], Path]) -> Callable[[argosy.Store, Path], Path]:
    def publish(store: argosy.Store, folder: Path) -> Path:
        path = make(folder / "model.onnx")
        import_onnx(store, path, name)
        return path

    return publish


def _publish_minilm(store: argosy.Store, folder: Path) -> Path:
    """The sentence encoder of examples/minilm.py, with its lengths declared as ragged."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from minilm import publish_minilm

    publish_minilm(store, folder)
    return folder / "model.onnx"


def _draw_floats(shape: tuple[int, ...]) -> list[Row]:
    # Four digits, as clients send them in JSON.
    values = np.random.default_rng(11).standard_normal((NUM_ROWS, 1, *shape)).astype("f4").round(4)
    return [{"x": value} for value in values]


def _draw_tokens(lengths: list[int]) -> list[Row]:
    random = np.random.default_rng(11)
    start, end, words = 101, 102, (1000, 30000)
    rows = []
    for length in lengths:
        ids = random.integers(*words, (1, length))
        ids[0, 0], ids[0, -1] = start, end
        rows.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return rows


def _spread_lengths() -> list[int]:
    lengths = np.linspace(MIN_LENGTH, MAX_LENGTH, NUM_ROWS).astype(int)
    return np.random.default_rng(13).permutation(lengths).tolist()


@dataclass(frozen=True)
class _Recipe:
    model: str
    publish: Callable[[argosy.Store, Path], Path]
    draw: Callable[[], list[Row]]
    tolerance: float


_RECIPES: Mapping[str, _Recipe] = {
    "mlp": _Recipe("mlp", _publish_onnx("mlp", make_mlp), lambda: _draw_floats(LAYERS[:1]), 1e-5),
    "pixels": _Recipe("pixels", _publish_onnx("pixels", make_pixels), lambda: _draw_floats(IMAGE), 1e-5),
    # Embeddings of length 1; kernels sum in another order for other batch sizes and lengths.
    "minilm": _Recipe("minilm", _publish_minilm, lambda: _draw_tokens([32] * NUM_ROWS), 1e-4),
    "lengths": _Recipe("minilm", _publish_minilm, lambda: _draw_tokens(_spread_lengths()), 1e-4),
}


def make_case(name: str, folder: Path) -> Case:
    """Make and publish a model below a folder: `mlp`, `pixels`, `minilm` (32 tokens) or `lengths` (8 to 128)."""
    recipe = _RECIPES[name]
    folder.mkdir()
    file = recipe.publish(argosy.Store(folder / "home"), folder)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    rows = recipe.draw()
    answers = [np.asarray(session.run(None, row)[0]) for row in rows]
    return Case(recipe.model, file, folder / "home", rows, answers, recipe.tolerance)
