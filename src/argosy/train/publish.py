"""Make a live model of any framework a version: exported to ONNX where that works, else as its framework saves it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Framework, count_weights, framework_of
from argosy.frameworks.onnx import OnnxModel, check_export
from argosy.signature import Signature
from argosy.store.golden import Golden
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.store.preprocess import Steps, add_steps
from argosy.train.data import check_rows
from argosy.train.lineage import describe_code, describe_environment

__all__ = ["NUM_GOLDEN", "publish"]

NUM_GOLDEN: Final = 8
"""Golden examples of a published version: enough to tell a wrong artifact, few enough to run in milliseconds."""

_MODEL_FILE: Final = "model.onnx"


def publish(
    model: Any,
    name: str,
    store: Store | None = None,
    *,
    sample: object,
    measurements: Mapping[str, float] = {},
    lineage: Mapping[str, object] = {},
    input_name: str = "input",
    output_name: str = "output",
    labels: Sequence[str] | None = None,
    preprocess: Steps = (),
    native: bool = False,
) -> Version:
    """Make a live model a version of the store.

    The model is exported to ONNX, and the export is run and held against the model. A model that ONNX has no words
    for is kept as its framework saves it and served by the framework's own runtime; `lineage["export"]` says why.

    Args:
        model: of a framework of `frameworks.FRAMEWORKS`, with one input and one output.
        name: of the model; its next version is made.
        store: default: that of ARGOSY_HOME.
        sample: real rows, at least one; the first 8 become golden examples, each with the artifact's own answer to it alone.
        measurements: what is known of it, such as the accuracy on test rows.
        lineage: where it comes from, JSON data; added to what the model tells.
        input_name: of the tensor that goes in.
        output_name: of the tensor that comes out.
        labels: names of the output's last axis, such as class names.
        preprocess: what makes tensors of pictures and text in the worker, see `argosy.store.preprocess.add_steps`.
        native: do not try ONNX; serve it by its framework.

    Raises:
        ModelError: `save_failed`, neither ONNX nor the framework's own form takes it; nothing was published.
        InputError: `bad_data`, the sample; `bad_option`, no model, or the labels; `bad_preprocess`; `bad_name` and
            more from the store.

    >>> import numpy as np, torch
    >>> publish(torch.nn.Linear(4, 2), "example", sample=np.zeros((1, 4), np.float32)).number  # doctest: +SKIP
    1
    """
    framework = framework_of(model)
    rows = check_rows(sample, framework.float_dtype(model))[:NUM_GOLDEN]
    expected = framework.predict(model, rows)
    if labels is not None and len(labels) != expected.shape[-1]:
        expected_labels = f"{expected.shape[-1]} names, one for each entry of the output's last axis"
        raise InputError("bad_option", option="labels", got=list(labels), expected=expected_labels)
    with tempfile.TemporaryDirectory(prefix="argosy-export-") as folder:
        path = Path(folder, _MODEL_FILE)
        try:
            if native:
                raise ModelError("export_failed", detail="it was not tried")
            framework.export_onnx(model, rows, path, input_name=input_name, output_name=output_name)
            exported = OnnxModel(path)
            export: dict[str, object] = {"format": "onnx", "difference": check_export(exported, rows, expected)}
            answers, entry, runtime, files = exported.run_alone({input_name: rows})[output_name], _MODEL_FILE, "onnx", [path]
        except ModelError as error:
            if error.key not in ("export_failed", "export_differs"):
                raise
            entry, files = _save_native(framework, model, rows, Path(folder, "native"))
            export = {"format": framework.name, "reason": error.message[:500]}
            answers, runtime = np.concatenate([framework.predict(model, row[None]) for row in rows]), framework.name
        golden = Golden({input_name: rows}, {output_name: answers})
        signature, step_files = add_steps(_derive_signature(golden, labels), preprocess)
        return (store or Store()).publish(
            name,
            {path.name: path for path in files} | step_files,
            signature=signature,
            runtime=runtime,
            entry=entry,
            golden=golden,
            options={} if runtime == "onnx" else {"inputs": [input_name], "outputs": [output_name]},
            lineage=_describe(framework, model) | {"export": export} | dict(lineage),
            measurements={"size_bytes": sum(path.stat().st_size for path in files), **measurements},
        )


def _save_native(framework: Framework, model: Any, rows: NDArray[Any], folder: Path) -> tuple[str, list[Path]]:
    folder.mkdir()
    entry = framework.save_native(model, rows, folder)
    return entry, sorted(folder.iterdir())


def _derive_signature(golden: Golden, labels: Sequence[str] | None) -> Signature:
    signature = Signature.from_arrays(golden.inputs, golden.outputs)
    if labels is None:
        return signature
    (output,) = signature.outputs
    return Signature(signature.inputs, (msgspec.structs.replace(output, labels=tuple(labels)),))


def _describe(framework: Framework, model: Any) -> dict[str, object]:
    return {
        "kind": "live model",
        "framework": framework.name,
        "precision": str(framework.float_dtype(model)),
        "code": describe_code(type(model)) | {"num_weights": count_weights(framework, model)},
        "environment": describe_environment(("argosy", "numpy", *framework.packages, "onnx", "onnxruntime")),
    }
