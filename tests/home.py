"""An ARGOSY_HOME to serve from, and small models of the form y = factor * x that fill it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import argosy
from argosy.importers.python import publish_python
from argosy.signature import JoinVerdict, Signature, TensorSpec
from argosy.store.golden import Golden

WIDTH = 4
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, WIDTH)),), (TensorSpec("y", "FP32", (-1, WIDTH)),))


def make_scale_model(path: Path, factor: float, *, bias: float = 0.0) -> Path:
    """Write an ONNX file that answers y = factor * x + bias."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["scaled"]), helper.make_node("Add", ["scaled", "bias"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        [
            helper.make_tensor("factor", TensorProto.FLOAT, [], [factor]),
            helper.make_tensor("bias", TensorProto.FLOAT, [], [bias]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


class Home:
    """One ARGOSY_HOME with its store, and ways to fill it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = path / "files"
        self.files.mkdir(parents=True)
        self.store = argosy.Store(path / "home")

    def publish_scale(self, name: str = "scale", factor: float = 2.0) -> argosy.Version:
        """Publish y = factor * x as the next version: what an import would, without a process that finds it out."""
        path = make_scale_model(self.files / f"{factor}.onnx", factor)
        x = np.random.default_rng(0).standard_normal((8, WIDTH)).astype(np.float32)
        return self.store.publish(
            name,
            {path.name: path},
            signature=SIGNATURE,
            entry=path.name,
            golden=Golden({"x": x}, {"y": x * np.float32(factor)}),
            golden_is_synthetic=True,
            joining=JoinVerdict("independent", "each row of the outputs is made of one row of the inputs, operator by operator"),
            lineage={"source_file": path.name, "producer": "", "opsets": {"ai.onnx": 17}, "num_weights": 2, "precision": "fp32"},
        )

    def publish_code(
        self,
        body: str,
        name: str = "code",
        *,
        load: str = "",
        repeatable: bool = True,
        golden: Golden | None = None,
        signature: Signature = SIGNATURE,
    ) -> argosy.Version:
        """Publish a Python model whose `infer` has this body, and whose `load` does this as well; `x` is its input."""
        lines, more = ("\n        ".join(text.strip().splitlines()) for text in (body, load))
        source = (
            "import os, time\nimport numpy as np\n\n\nclass Model:\n    def load(self, folder):\n        self.count = 0\n"
            f"        {more}\n\n"
            f"    def infer(self, inputs):\n        x = inputs['x']\n        {lines}\n"
        )
        path = self.files / "model.py"
        path.write_text(source)
        return publish_python(self.store, path, name, signature=signature, golden=golden, repeatable=repeatable)

    def serve(self, *references: str, **settings: Any) -> Any:
        """Start a server on free ports."""
        return argosy.serve(*references, home=self.store.home, **settings)


def golden_scale(factor: float = 2.0, rows: int = 4) -> Golden:
    """Examples of y = factor * x."""
    x = np.arange(rows * WIDTH, dtype=np.float32).reshape(rows, WIDTH)
    return Golden({"x": x}, {"y": x * np.float32(factor)})


def row(value: float, rows: int = 1) -> np.ndarray:
    """A request's input: rows filled with one value."""
    return np.full((rows, WIDTH), value, np.float32)
