"""Make a live model of any framework a version: exported to ONNX where that works, else as its framework saves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.adapters import merge_adapters
from argosy.frameworks.base import Framework, count_weights, framework_of
from argosy.frameworks.onnx import OnnxModel, check_export, declare_shapes
from argosy.rows.axis import judge_file
from argosy.signature import JoinVerdict, Ragged, Signature
from argosy.store.golden import Golden
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.store.preprocess import Steps, add_steps
from argosy.store.temporary import work_folder
from argosy.train.data import check_rows
from argosy.train.lineage import describe_code, describe_environment

__all__ = ["NUM_GOLDEN", "Made", "pick_sample", "publish", "write_files"]

NUM_GOLDEN: Final = 8
"""Golden examples of a published version: enough to tell a wrong artifact, few enough to run in milliseconds."""

_NUM_TRIED: Final = 64
"""Rows of a sample that are looked at: they show the spread of the data."""
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
    dynamic: Mapping[str, Sequence[int]] | None = None,
    ragged: Ragged | None = None,
) -> Version:
    """Make a live model a version of the store.

    The model is exported to ONNX, and the export is run and held against the model: on the sample, and on rows that may
    take other ways through it (`frameworks/trials.py`). A model that ONNX has no words for, or that branches on its data
    from Python, is kept as its framework saves it and served by the framework's own runtime; `lineage["export"]` says why,
    or on how many rows of which kinds the difference was measured. Adapters of PEFT, such as LoRA's, are merged into the
    weights of a copy first, which `lineage["adapters"]` says. Of ONNX the graph tells whether rows may share a batch.

    Args:
        model: of a framework of `frameworks.FRAMEWORKS`, with one input and one output.
        name: of the model; its next version is made.
        store: default: that of ARGOSY_HOME.
        sample: real rows, at least one; the first 8 become golden examples, each with the artifact's own answer to it alone.
            More of them, up to 64, show the spread of the data to the trials.
        measurements: what is known of it, such as the accuracy on test rows.
        lineage: where it comes from, JSON data; added to what the model tells.
        input_name: of the tensor that goes in.
        output_name: of the tensor that comes out.
        labels: names of the output's last axis, such as class names.
        preprocess: what makes tensors of pictures and text in the worker, see `argosy.store.preprocess.add_steps`.
        native: do not try ONNX; serve it by its framework.
        dynamic: the axes of the input that may have any length, by the input's name: `{"input": [1]}`; the rows are free
            without it. Other lengths are tried. None: those that the model itself leaves open, as `keras.Input((None,))`
            does; `{}` none.
        ragged: which axis may differ between the requests of a batch, and what fills shorter rows up; see
            `argosy.signature.Ragged`. It is dynamic without being named there.

    Raises:
        ModelError: `save_failed`, neither ONNX nor the framework's own form takes it; nothing was published.
        InputError: `bad_data`, the sample; `bad_option`, no model, the labels, or the axes; `bad_preprocess`; `bad_name` and
            more from the store.

    >>> import numpy as np, torch
    >>> publish(torch.nn.Linear(4, 2), "example", sample=np.zeros((1, 4), np.float32)).number  # doctest: +SKIP
    1
    """
    framework = framework_of(model)
    given = check_rows(sample, framework.float_dtype(model))[:_NUM_TRIED]
    rows = given[:NUM_GOLDEN]
    model, adapters = merge_adapters(framework, model, rows)
    free = _choose_free(framework, model, rows, input_name, dynamic, ragged)
    expected = framework.predict(model, rows)
    if labels is not None and len(labels) != expected.shape[-1]:
        expected_labels = f"{expected.shape[-1]} names, one for each entry of the output's last axis"
        raise InputError("bad_option", option="labels", got=list(labels), expected=expected_labels)
    names = (input_name, output_name)
    store = store or Store()
    store.check_writable()
    with work_folder("argosy-export-") as folder:
        made = write_files(framework, model, given, folder, names, free, native=native)
        golden = Golden({input_name: rows}, {output_name: made.answers})
        signature = _derive_signature(golden, free, made.output_shape, labels, ragged)
        _check_ragged(signature, lambda given: framework.predict(model, given), rows)
        verdict = judge_file(folder / _MODEL_FILE, signature) if made.runtime == "onnx" else JoinVerdict()
        signature, step_files = add_steps(signature, preprocess)
        return store.publish(
            name,
            {path.name: path for path in made.files} | step_files,
            signature=signature,
            runtime=made.runtime,
            entry=made.entry,
            golden=golden,
            joining=verdict,
            options=made.options,
            lineage=_describe(framework, model)
            | ({"adapters": adapters} if adapters else {})
            | {"export": made.export}
            | dict(lineage),
            measurements={"size_bytes": sum(path.stat().st_size for path in made.files), **measurements},
        )


def pick_sample(rows: NDArray[Any]) -> NDArray[Any]:
    """Give copies of the first rows, and of some of the rest, at even distances."""
    picked = np.unique(np.concatenate([np.arange(NUM_GOLDEN), np.linspace(0, len(rows) - 1, _NUM_TRIED - NUM_GOLDEN, dtype=int)]))
    return rows[picked[picked < len(rows)]].copy()


class Made(NamedTuple):
    """Files that answer as a model."""

    runtime: str
    entry: str
    files: list[Path]
    answers: NDArray[Any]
    """To the golden rows, each alone."""
    output_shape: tuple[int, ...]
    """-1 stands for any length."""
    export: dict[str, object]
    """For the lineage."""
    options: dict[str, Any]
    """Of the runtime."""


def write_files(
    framework: Framework,
    model: Any,
    given: NDArray[Any],
    folder: Path,
    names: tuple[str, str],
    free: Sequence[int],
    *,
    native: bool = False,
) -> Made:
    """Write a live model as ONNX, or as its framework saves it, and hold what was written against the model.

    Args:
        framework: the model's.
        model: with one input and one output.
        given: real rows.
        folder: for the files.
        names: of the input and of the output.
        free: axes of the input whose length is free, beside that of the rows.
        native: do not try ONNX.

    Raises:
        ModelError: `save_failed`.
    """
    try:
        if native:
            raise ModelError("export_failed", detail="it was not tried")
        return _make_onnx(framework, model, given, folder / _MODEL_FILE, names, free)
    except ModelError as error:
        if error.key not in ("export_failed", "export_differs"):
            raise
        return _make_native(framework, model, given, folder / "native", names, free, error.message[:500])


def _make_onnx(
    framework: Framework, model: Any, given: NDArray[Any], path: Path, names: tuple[str, str], free: Sequence[int]
) -> Made:
    input_name, output_name = names
    framework.export_onnx(model, given, path, input_name=input_name, output_name=output_name, free=free)
    evidence = check_export(OnnxModel(path), lambda rows: framework.predict(model, rows), given, free)
    declare_shapes(path, evidence.shapes)
    answers = OnnxModel(path).run_alone({input_name: given[:NUM_GOLDEN]})[output_name]
    export = {"format": "onnx", **evidence.describe()}
    return Made("onnx", path.name, [path], answers, evidence.shapes[output_name], export, {})


def _make_native(
    framework: Framework,
    model: Any,
    given: NDArray[Any],
    folder: Path,
    names: tuple[str, str],
    free: Sequence[int],
    reason: str,
) -> Made:
    folder.mkdir()
    try:
        entry, evidence = framework.save_native(model, given, folder, free)
    except ModelError as error:
        # Two ways are closed, and either may be the one to open.
        raise ModelError("save_failed", detail=f"{error.fields.get('detail', error.message)}. {reason}") from error
    answers = np.concatenate([framework.predict(model, row[None]) for row in given[:NUM_GOLDEN]])
    (output_shape,) = evidence.shapes.values()
    export: dict[str, object] = {"format": framework.name, "reason": reason, **evidence.describe()}
    options = {"inputs": [names[0]], "outputs": [names[1]]}
    return Made(framework.name, entry, sorted(folder.iterdir()), answers, output_shape, export, options)


def _choose_free(
    framework: Framework,
    model: Any,
    rows: NDArray[Any],
    input_name: str,
    dynamic: Mapping[str, Sequence[int]] | None,
    ragged: Ragged | None,
) -> tuple[int, ...]:
    """Give the free axes of the input: those that the user names, or else the model; a ragged one is free.

    Raises:
        InputError: `bad_option`, another input or axis.
    """
    named = {name: (item.axis,) for name, item in ragged.inputs.items()} if ragged is not None else {}
    for option, wanted in (("dynamic", dynamic or {}), ("ragged", named)):
        expected = f"axes of the input {input_name!r} by its name, from 1 to {rows.ndim - 1}, such as {{{input_name!r}: [1]}}"
        for name, axes in wanted.items():
            known = isinstance(axes, list | tuple) and all(type(axis) is int and 0 < axis < rows.ndim for axis in axes)
            if name != input_name or not known or len(set(axes)) != len(axes):
                raise InputError("bad_option", option=option, got={name: axes}, expected=expected)
    if ragged is not None and input_name not in ragged.inputs:
        raise InputError("bad_option", option="ragged", got=list(ragged.inputs), expected=f"the input {input_name!r}")
    chosen = framework.list_free_axes(model, rows) if dynamic is None else tuple(dynamic.get(input_name, ()))
    return tuple(sorted({*chosen, *named.get(input_name, ())}))


def _derive_signature(
    golden: Golden, free: Sequence[int], output_shape: tuple[int, ...], labels: Sequence[str] | None, ragged: Ragged | None
) -> Signature:
    signature = Signature.from_arrays(golden.inputs, golden.outputs)
    (given,), (made,) = signature.inputs, signature.outputs
    shape = tuple(-1 if axis in free else length for axis, length in enumerate(given.shape))
    told = tuple(labels) if labels is not None else None
    return Signature(
        (msgspec.structs.replace(given, shape=shape),),
        (msgspec.structs.replace(made, shape=output_shape, labels=told),),
        ragged=ragged,
    )


def _check_ragged(signature: Signature, predict: Callable[[NDArray[Any]], NDArray[Any]], rows: NDArray[Any]) -> None:
    """See that an output that is cut to the request's length is as long as the request.

    Raises:
        InputError: `bad_option`.
    """
    if signature.ragged is None:
        return
    for name, axis in signature.ragged.outputs.items():
        for spec in signature.inputs:
            along = signature.ragged.inputs[spec.name].axis
            size = rows.shape[along]
            for length in (size, size + 1):
                answer = predict(np.take(rows, [place % size for place in range(length)], axis=along))
                if answer.shape[axis] != length:
                    expected = f"an axis {axis} as long as that of the input, {length}; the model gives {answer.shape[axis]}"
                    raise InputError("bad_option", option="ragged", got=name, expected=expected)


def _describe(framework: Framework, model: Any) -> dict[str, object]:
    return {
        "kind": "live model",
        "framework": framework.name,
        "precision": str(framework.float_dtype(model)),
        "code": describe_code(type(model)) | {"num_weights": count_weights(framework, model)},
        "environment": describe_environment(("argosy", "numpy", *framework.packages, "onnx", "onnxruntime")),
    }
