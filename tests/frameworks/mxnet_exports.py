"""Cases of `test_mxnet_files.py`: ONNX files and MXNet's own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from argosy.frameworks.base import Batch, FitOptions
from argosy.frameworks.mxnet.library import mx
from argosy.frameworks.onnx import OnnxModel
from argosy.optim import Adam
from tests.frameworks.mxnet_models import (
    CONVOLUTIONAL,
    FOLDER,
    FRAMEWORK,
    ROW,
    Eager,
    Embedding,
    Recurrent,
    build,
    case,
    make_rows,
    nn,
    print_cases,
    ready,
    refuse,
)
from tests.frameworks.one_tensor import check_one, export_one, save_one


def list_models() -> dict[str, tuple[Any, Any]]:
    rng = np.random.default_rng(8)
    image, row = rng.standard_normal((9, *ROW)), rng.standard_normal((9, 4))
    sentence = rng.integers(0, 50, (9, 5))
    return {
        "perceptron": (build(), row.astype(np.float32)),
        "convolutional": (build(CONVOLUTIONAL, ROW), image.astype(np.float32)),
        "recurrent": (ready(Recurrent(), 1, 5, 4), rng.standard_normal((9, 5, 4)).astype(np.float32)),
        "embedding": (ready(Embedding(), 1, 5), sentence),
        "embedding-int32": (ready(Embedding(), 1, 5), sentence.astype(np.int32)),
        "double": (build(dtype="float64"), row),
    }


@case
def onnx_exports() -> Any:
    found = {}
    for name, (model, rows) in list_models().items():
        path = FOLDER / f"{name}.onnx"
        # Names that MXNet gives to tensors inside.
        inner = next(iter(model.collect_params()))
        export_one(FRAMEWORK, model, rows, path, input_name=inner, output_name="data")
        exported = OnnxModel(path)
        difference = check_one(exported, partial(FRAMEWORK.predict, model), rows).difference
        found[name] = [difference, exported.input_names == [inner], exported.output_names]
    return found


@case
def exporter_is_left_as_it_was() -> Any:
    handlers, version = list(logging.root.handlers), onnx.defs.onnx_opset_version()
    model, rows = list_models()["perceptron"]
    export_one(FRAMEWORK, model, rows, FOLDER / "again.onnx", input_name="input", output_name="output")
    return [logging.root.handlers == handlers, onnx.defs.onnx_opset_version() == version]


@case
def export_refusals() -> Any:
    x, _ = make_rows()
    shaped = nn.HybridLambda(lambda ops, x: x.reshape((x.shape[0], -1)))
    # Its answers would not be repeatable. ONNX has the operator, and the check of the export finds out.
    noisy = nn.HybridLambda(lambda ops, x: ops.broadcast_add(x, ops.random.normal(shape=(1, 4))))
    unknown = nn.HybridLambda(lambda ops, x: ops.erfinv(x))
    calls: dict[str, Callable[[Any, Path], Any]] = {
        "onnx": lambda model, folder: export_one(FRAMEWORK, model, x, folder / "m.onnx", input_name="a", output_name="b"),
        "native": lambda model, folder: save_one(FRAMEWORK, model, x, folder),
    }
    models = {"eager": ready(Eager()), "shaped": shaped, "noisy": noisy, "unknown": unknown}
    found = {}
    for kind, name in (
        ("onnx", "eager"), ("onnx", "shaped"), ("onnx", "unknown"),
        ("native", "eager"), ("native", "shaped"), ("native", "noisy"),
    ):  # fmt: skip
        folder = FOLDER / f"refused-{kind}-{name}"
        folder.mkdir()
        found[f"{kind} {name}"] = refuse(lambda kind=kind, name=name, folder=folder: calls[kind](models[name], folder))
    return found


@case
def native_files() -> Any:
    found = {}
    for name, (model, rows) in list_models().items():
        folder = FOLDER / "native" / name
        folder.mkdir(parents=True)
        entry = save_one(FRAMEWORK, model, rows, folder).entry
        found[name] = [entry, sorted(path.name for path in folder.iterdir())]
        np.savez(FOLDER / "native" / f"{name}.npz", rows=rows, answers=FRAMEWORK.predict(model, rows))
    return found


@case
def symbol_block_trains_on() -> Any:
    """What MXNet's own loader makes of the files is a model, too."""
    folder = FOLDER / "imported"
    folder.mkdir()
    model = build(CONVOLUTIONAL, ROW)
    x, y = make_rows(12, ROW)
    save_one(FRAMEWORK, model, x, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = mx.gluon.SymbolBlock.imports(str(folder / "model-symbol.json"), ["data"], str(folder / "model-0000.params"))
    difference = float(np.abs(FRAMEWORK.predict(loaded, x) - FRAMEWORK.predict(model, x)).max())
    steps = [FRAMEWORK.build_step(part, "cross_entropy", Adam(), FitOptions(seed=2)) for part in (model, loaded)]
    return difference, abs(steps[0](Batch(x, y), 1)[0] - steps[1](Batch(x, y), 1)[0])


if __name__ == "__main__":
    print_cases()
