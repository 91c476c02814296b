"""Make a live model of any framework a version: exported to ONNX where that works, else as its framework saves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError, list_choices
from argosy.frameworks.adapters import merge_adapters
from argosy.frameworks.agreement import Fails, Run
from argosy.frameworks.base import Framework, count_weights, framework_of
from argosy.frameworks.onnx import OnnxModel, check_export, declare_shapes
from argosy.frameworks.ports import Ports
from argosy.frameworks.trees import Tree, unpack
from argosy.rows.axis import judge_file
from argosy.signature import Arrays, JoinVerdict, Preprocess, Ragged, Signature, TensorSpec, datatype_of
from argosy.store.golden import Golden
from argosy.store.local import Store
from argosy.store.manifest import WEIGHTS_FILE, Version
from argosy.store.preprocess import Steps, add_steps
from argosy.store.temporary import work_folder
from argosy.train.kept import write_kept
from argosy.train.lineage import describe_code, describe_environment
from argosy.train.places import Place, get_part
from argosy.train.ports import Names, find_ports, read_sample

__all__ = ["NUM_GOLDEN", "Labels", "Made", "pick_sample", "publish", "write_files"]

NUM_GOLDEN: Final = 8
"""Golden examples of a published version: enough to tell a wrong artifact, few enough to run in milliseconds."""

_NUM_TRIED: Final = 64
"""Rows of a sample that are looked at: they show the spread of the data."""
_MODEL_FILE: Final = "model.onnx"

Labels = Sequence[str] | Mapping[str, Sequence[str]] | Mapping[Place, Sequence[str]] | None
"""Of the only output; or by output, by its name or by where it stands in what the model gives."""


def publish(
    model: Any,
    name: str,
    store: Store | None = None,
    *,
    sample: object,
    measurements: Mapping[str, float] = {},
    lineage: Mapping[str, object] = {},
    input_name: Names = None,
    output_name: Names = None,
    labels: Labels = None,
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

    Where the first axis of every input and output counts rows, requests may share a batch. Otherwise, as for a scalar, states
    that are no rows, or nodes and edges of a graph, one request is run at a time; the sample is one.

    Args:
        model: of a framework of `frameworks.FRAMEWORKS`, with any inputs and outputs.
        name: of the model; its next version is made.
        store: default: that of ARGOSY_HOME.
        sample: what the model is called with: an array; several in order as a tuple; by name as a dict, which become keywords
            unless the model takes a dict; None for an optional input that is not given. Real rows, at least one; the first 8
            become golden examples, each with the artifact's own answer to it alone. More of them, up to 64, show the spread of
            the data to the trials.
        measurements: what is known of it, such as the accuracy on test rows.
        lineage: where it comes from, JSON data; added to what the model tells.
        input_name: of the tensor that goes in; or the names of all, in order. None: those of the dict, of Keras' inputs or
            of the arguments; for one that which steps of `preprocess` have for it, or `input`. A single name for several in order
            is followed by their numbers: `x_0`, `x_1`.
        output_name: of the tensor that comes out; or the names of all, in order. None: those of the dict, or `output`, of
            several in order `output_0`, `output_1`.
        labels: names of the output's last axis, such as class names; of several outputs a dict of them by output.
        preprocess: what makes tensors of pictures and text in the worker, see `argosy.store.preprocess.add_steps`.
        native: do not try ONNX; serve it by its framework.
        dynamic: the axes that may have any length, by input: `{"input": [1]}`; the rows are free without it. Other lengths are
            tried, of all inputs at once. None: those that the model itself leaves open, as `keras.Input((None,))` does, and
            without rows the first axes along which it takes another length; `{}` none.
        ragged: which axis may differ between the requests of a batch, and what fills shorter rows up; see
            `argosy.signature.Ragged`. It is dynamic without being named there.

    Raises:
        ModelError: `save_failed`, neither ONNX nor the framework's own form takes it; nothing was published.
        InputError: `bad_data`, the sample, or what the model makes of it; `bad_option`, no model, the names, labels or axes;
            `unsupported_type`, of an output; `bad_preprocess`; `bad_name` and more from the store.

    >>> import numpy as np, torch
    >>> publish(torch.nn.Linear(4, 2), "example", sample=np.zeros((1, 4), np.float32)).number  # doctest: +SKIP
    1
    """
    framework = framework_of(model)
    tree = read_sample(framework, model, sample)
    model, adapters = merge_adapters(framework, model, tree)
    if input_name is None and isinstance(tree, np.ndarray):
        input_name = _find_name(preprocess)
    names: dict[str, Names] = {"input_name": input_name, "output_name": output_name}
    ports, outputs = find_ports(framework, model, tree, **names, dynamic=dynamic, ragged=ragged)
    inputs = ports.take_rows(unpack(tree, ports.inputs), slice(_NUM_TRIED))
    told = _check_labels(labels, outputs, ports.outputs)
    if ragged is not None:
        _check_ragged(ragged, ports.run(partial(framework.answer, model)), ports.take_rows(inputs, slice(NUM_GOLDEN)))
    store = store or Store()
    store.check_writable()
    with work_folder("argosy-export-") as folder:
        made = write_files(framework, model, inputs, folder, ports, native=native)
        signature = _derive_signature(inputs, outputs, ports, made.shapes, told, ragged)
        verdict = JoinVerdict()
        if made.runtime == "onnx":
            settled, verdict = judge_file(folder / _MODEL_FILE, signature)
            signature = signature if ragged is not None else settled
        try:
            golden = _make_golden(made.answer, inputs, has_rows=signature.is_batched)
        except Fails as error:
            raise ModelError("save_failed", detail=str(error)) from error
        signature, step_files = add_steps(signature, preprocess)
        kept = Path(folder, WEIGHTS_FILE)
        write_kept(framework.get_weights(model), kept, made.files)
        return store.publish(
            name,
            {path.name: path for path in (*made.files, kept)} | step_files,
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


def _find_name(steps: Steps) -> str | None:
    """Give the name of the only tensor, if steps have one for it."""
    names: set[str] = set()
    for step in steps:
        table: Mapping[str, Any] = {"inputs": step.inputs} if isinstance(step, Preprocess) else step
        columns = cast("Sequence[Mapping[str, object]]", table.get("columns", ()))
        named = (*cast("Sequence[object]", table.get("inputs", ())), *(column.get("input") for column in columns))
        names.update(str(name) for name in named if name is not None)
    return names.pop() if len(names) == 1 else None


def pick_sample(rows: NDArray[Any]) -> NDArray[Any]:
    """Give copies of the first rows, and of some of the rest, at even distances."""
    picked = np.unique(np.concatenate([np.arange(NUM_GOLDEN), np.linspace(0, len(rows) - 1, _NUM_TRIED - NUM_GOLDEN, dtype=int)]))
    return rows[picked[picked < len(rows)]].copy()


class Made(NamedTuple):
    """Files that answer as a model."""

    runtime: str
    entry: str
    files: list[Path]
    answer: Run
    """What they answer."""
    shapes: dict[str, tuple[int, ...]]
    """Of the outputs; -1 stands for any length."""
    export: dict[str, object]
    """For the lineage."""
    options: dict[str, Any]
    """Of the runtime."""


def write_files(framework: Framework, model: Any, inputs: Arrays, folder: Path, ports: Ports, *, native: bool = False) -> Made:
    """Write a live model as ONNX, or as its framework saves it, and hold what was written against the model.

    Args:
        framework: the model's.
        model: of any inputs and outputs.
        inputs: real ones.
        folder: for the files.
        ports: of the model.
        native: do not try ONNX.

    Raises:
        ModelError: `save_failed`.
    """
    try:
        if native:
            raise ModelError("export_failed", detail="it was not tried")
        if both := {*ports.input_names} & {*ports.output_names}:
            detail = f"ONNX has no room for an input and an output of one name, {list_choices(both)}; call the output otherwise"
            raise ModelError("export_failed", detail=detail)
        return _make_onnx(framework, model, inputs, folder / _MODEL_FILE, ports)
    except ModelError as error:
        if error.key not in ("export_failed", "export_differs"):
            raise
        return _make_native(framework, model, inputs, folder / "native", ports, error.message[:500])


def _make_onnx(framework: Framework, model: Any, inputs: Arrays, path: Path, ports: Ports) -> Made:
    framework.export_onnx(model, inputs, path, ports)
    evidence = check_export(OnnxModel(path), ports.run(partial(framework.answer, model)), inputs, ports)
    declare_shapes(path, evidence.shapes)
    return Made("onnx", path.name, [path], OnnxModel(path).run, evidence.shapes, {"format": "onnx", **evidence.describe()}, {})


def _make_native(framework: Framework, model: Any, inputs: Arrays, folder: Path, ports: Ports, reason: str) -> Made:
    folder.mkdir()
    try:
        entry, evidence, options = framework.save_native(model, inputs, folder, ports)
    except ModelError as error:
        # Two ways are closed, and either may be the one to open.
        raise ModelError("save_failed", detail=f"{error.fields.get('detail', error.message)}. {reason}") from error
    answer = ports.run(partial(framework.answer, model))
    export: dict[str, object] = {"format": framework.name, "reason": reason, **evidence.describe()}
    return Made(framework.name, entry, sorted(folder.iterdir()), answer, evidence.shapes, export, options)


def _make_golden(answer: Run, inputs: Arrays, *, has_rows: bool) -> Golden:
    """Make golden examples: of rows the first, each alone; otherwise the sample as the one request that it is.

    Rows whose answers have other shapes than that of the first are no examples: they do not fit beside it.
    """
    if not has_rows:
        return Golden(*({name: array[None] for name, array in arrays.items()} for arrays in (inputs, answer(inputs))))
    pieces = [
        {name: array[row : row + 1] for name, array in inputs.items()}
        for row in range(min(len(next(iter(inputs.values()))), NUM_GOLDEN))
    ]
    pairs = [(piece, answer(piece)) for piece in pieces]
    shapes = {name: array.shape for name, array in pairs[0][1].items()}
    fitting = [pair for pair in pairs if {name: array.shape for name, array in pair[1].items()} == shapes]
    return Golden(
        {name: np.concatenate([piece[name] for piece, _ in fitting]) for name in inputs},
        {name: np.concatenate([found[name] for _, found in fitting]) for name in shapes},
    )


def _check_labels(labels: Labels, outputs: Arrays, tree: Tree) -> dict[str, tuple[str, ...]]:
    """Give the labels by output; `tree` has the names of the outputs where these stand.

    Raises:
        InputError: `bad_option`, there is no such output, or it has another number of entries.
    """
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        if len(outputs) != 1:
            expected = f"a dict of labels by output, of {list_choices(outputs)}"
            raise InputError("bad_option", option="labels", got=labels, expected=expected)
        labels = dict.fromkeys(outputs, labels)
    named = {(get_part(tree, key) if isinstance(key, tuple) else key): words for key, words in labels.items()}
    for name, words in named.items():
        if name not in outputs:
            raise InputError("bad_option", option="labels", got=name, expected=f"outputs of {list_choices(outputs)}")
        length = outputs[name].shape[-1] if outputs[name].ndim else 0
        if isinstance(words, str) or len(words) != length:
            expected = f"{length} names, one for each entry of the last axis of the output {name!r}"
            raise InputError("bad_option", option="labels", got=words, expected=expected)
    return {name: tuple(words) for name, words in named.items()}


def _derive_signature(
    inputs: Arrays,
    outputs: Arrays,
    ports: Ports,
    shapes: Mapping[str, tuple[int, ...]],
    labels: Mapping[str, tuple[str, ...]],
    ragged: Ragged | None,
) -> Signature:
    given = tuple(
        TensorSpec(
            name, datatype_of(array.dtype), tuple(-1 if dim is None else dim for dim in ports.open_shape(name, array.shape))
        )
        for name, array in inputs.items()
    )
    made = tuple(
        TensorSpec(name, datatype_of(array.dtype), shapes[name], labels=labels.get(name)) for name, array in outputs.items()
    )
    return Signature(given, made, ragged=ragged, has_rows=ports.has_rows)


def _check_ragged(ragged: Ragged, answer: Run, rows: Arrays) -> None:
    """See that an output that is cut to the request's length is as long as the request.

    Raises:
        InputError: `bad_option`.
    """
    axes = {name: item.axis for name, item in ragged.inputs.items()}
    size: int = next(rows[name].shape[axis] for name, axis in axes.items())
    for length in (size, size + 1) if ragged.outputs else ():
        places = np.arange(length) % size
        longer = {name: np.take(rows[name], places, axis=axis) for name, axis in axes.items()}
        try:
            found = answer(rows | longer)
        except Fails as error:
            raise InputError("bad_data", detail=str(error)) from error
        for name, axis in ragged.outputs.items():
            if found[name].shape[axis] != length:
                expected = f"an axis {axis} as long as that of the inputs, {length}; the model gives {found[name].shape[axis]}"
                raise InputError("bad_option", option="ragged", got=name, expected=expected)


def _describe(framework: Framework, model: Any) -> dict[str, object]:
    return {
        "kind": "live model",
        "framework": framework.name,
        "precision": str(framework.float_dtype(model)),
        "code": describe_code(type(model)) | {"num_weights": count_weights(framework, model)},
        "environment": describe_environment(("argosy", "numpy", *framework.packages, "onnx", "onnxruntime")),
    }
