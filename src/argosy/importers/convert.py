"""Turn a file of another framework into what Argosy serves: the confined child of an import.

    python -m argosy.importers.convert REQUEST.json

It loads the file with its framework, answers sample rows with it, exports it to ONNX and holds the export against those
answers; what does not convert is kept in its framework's own form, loaded by the runtime that will serve it, and held
against them, too. The folder of the request gets `answer.json`; and, if it worked, `examples.npz` and a folder with the
artifact's files that is called as its runtime is.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.errors import ArgosyError, ModelError
from argosy.importers.formats.base import FORMATS, ForeignModel, Source, load, refuse
from argosy.importers.formats.sample import count_rows, is_batched, name_sample, synthesise
from argosy.runtimes.base import Runtime, load_runtime_class
from argosy.signature import Arrays, Signature, TensorSpec, datatype_of
from argosy.store.golden import Golden, decode_golden, encode_golden

__all__ = [
    "ANSWER_FILE",
    "EXAMPLES_FILE",
    "ONNX_FILE",
    "TOLERANCE",
    "ConvertAnswer",
    "ConvertRequest",
    "Refusal",
    "answer_alone",
    "main",
    "measure_difference",
]

ANSWER_FILE: Final = "answer.json"
EXAMPLES_FILE: Final = "examples.npz"
"""Sample rows, each with the answer to it alone: the framework's own, or if the artifact is not ONNX, the artifact's."""
ONNX_FILE: Final = "model.onnx"

TOLERANCE: Final = 1e-5
"""Largest difference of an artifact's answers from the framework's, relative to their largest magnitude.

float32 kernels that sum in another order differ by 1e-7 to 1e-6; a wrong operator by 1e-2 and more."""

_CHECKED_ROWS: Final = (1, 2, 7)
"""Batch sizes of the check: one, a few, and one that nothing was traced with."""

_MAX_DETAIL: Final = 1000
_MAX_TOLD: Final = 400
"""Characters of what a library says: the point comes first."""
_TRACES: Final = ("Stack trace", "Traceback", "Exception raised from", "[bt]")


_Run = Callable[[Arrays], Arrays]


class ConvertRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked of the child."""

    format: str
    path: str
    """Of the file's copy."""
    folder: str
    """To write to; empty."""
    sample: str = ""
    """File of golden examples' form; "" stands for random rows."""
    is_sample_named: bool = True
    """The sample is arrays by input name; otherwise one array."""
    code: str = ""
    """The user's program, "" for none."""
    function: str = ""


class ConvertAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the child made."""

    runtime: str
    entry: str
    signature: Signature
    is_synthetic: bool
    """The sample rows are random."""
    difference: float
    """Of the artifact's answers from the framework's, as for `TOLERANCE`."""
    framework: str
    versions: dict[str, str]
    reason: str = ""
    """Why the artifact is not ONNX."""


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why the child made nothing: an error's key and fields, or what a library raised."""

    detail: str
    key: str = ""
    fields: dict[str, str | int | float] = {}


def main() -> None:
    """Carry out the request in the first argument."""
    request = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ConvertRequest)
    try:
        answer: ConvertAnswer | Refusal = _convert(request)
    except ArgosyError as error:
        fields = {
            name: value if isinstance(value, int | float) else str(value)[:_MAX_DETAIL] for name, value in error.fields.items()
        }
        answer = Refusal(error.message[:_MAX_DETAIL], error.key, fields)
    except Exception as error:  # The edge of the process: a library raises anything on a damaged file.
        answer = Refusal(_summarise(error))
    Path(request.folder, ANSWER_FILE).write_bytes(msgspec.json.encode(answer))
    sys.stdout.flush()
    # Libraries that were interrupted by a damaged file may crash when they are torn down.
    os._exit(0)


def _summarise(error: Exception) -> str:
    """Give what an error says, without the trace through a library's own source that some append."""
    lines = str(error).strip().splitlines() or ["it says no more"]
    told = itertools.takewhile(lambda line: not line.lstrip().startswith(_TRACES), lines)
    return f"{type(error).__name__}: {' '.join(line.strip() for line in told)}"[:_MAX_TOLD]


def measure_difference(expected: Arrays, got: Arrays) -> float:
    """Give the largest difference of two sets of answers, relative to the largest magnitude of each output.

    What is no number with a fraction has to be equal: otherwise the difference is infinite, as for other names or shapes.
    But a label may be another one where the two largest probabilities are as good as equal.
    """
    if expected.keys() != got.keys():
        return math.inf
    undecided = _find_ties(expected.get("probabilities"))
    return max(
        (_measure_one(want, got[name], undecided if name == "label" else None) for name, want in expected.items()),
        default=math.inf,
    )


def _find_ties(probabilities: NDArray[Any] | None) -> NDArray[Any] | None:
    if probabilities is None or probabilities.ndim != 2 or probabilities.shape[1] < 2:
        return None
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    return np.asarray(first - second <= TOLERANCE)


def _measure_one(want: NDArray[Any], got: NDArray[Any], ignored: NDArray[Any] | None) -> float:
    if want.shape != got.shape or (want.dtype.kind == "f") != (got.dtype.kind == "f"):
        return math.inf
    if ignored is not None and ignored.shape == want.shape:
        want, got = want[~ignored], got[~ignored]
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(want, got) else math.inf
    one, other = want.astype(np.float64), got.astype(np.float64)
    # Equal infinities and NaN in both are no difference.
    is_same = (one == other) | (np.isnan(one) & np.isnan(other))
    finite = np.abs(one[np.isfinite(one)])
    scale = max(float(np.max(finite, initial=0.0)), float(np.finfo(np.float32).tiny))
    with np.errstate(invalid="ignore"):
        apart = np.where(is_same, 0.0, np.nan_to_num(np.abs(one - other), nan=math.inf))
    return float(np.max(apart, initial=0.0)) / scale


def _convert(request: ConvertRequest) -> ConvertAnswer:
    chosen = FORMATS[request.format]
    if not chosen.is_pickle and not request.code:
        _forbid_pickles(chosen.title)
    folder, code = Path(request.folder), Path(request.code) if request.code else None
    model = load(Source(request.format, Path(request.path), code, request.function))
    sample = _read_sample(Path(request.sample), is_named=request.is_sample_named) if request.sample else None
    inputs = synthesise(model, request.format) if sample is None else name_sample(sample, model)
    _check_rows(model, inputs)
    reason, runtime, entry = "", "onnx", ONNX_FILE
    try:
        answer, difference = _make_onnx(model, inputs, folder / runtime)
    except ModelError as error:
        reason, runtime = error.message, model.runtime
        if not runtime:
            raise ModelError("not_convertible", title=chosen.title, framework=model.framework, detail=reason) from error
        answer, difference, entry = _make_native(model, inputs, folder / runtime)
    # ONNX files are run once more by who takes them, and held against the framework's own answers.
    examples = answer_alone(model.predict if runtime == "onnx" else answer, inputs, has_rows=is_batched(model))
    (folder / EXAMPLES_FILE).write_bytes(encode_golden(examples))
    return ConvertAnswer(
        runtime=runtime,
        entry=entry,
        signature=_describe_tensors(model, inputs),
        is_synthetic=sample is None,
        difference=difference,
        framework=model.framework,
        versions=_list_versions(model),
        reason=reason[:_MAX_DETAIL],
    )


def _forbid_pickles(title: str) -> None:
    """Let no library open a pickle in this process any more, whatever file it comes from."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            detail = f"it holds a pickle that asks for {arguments[0]}.{arguments[1]}"
            raise refuse(title, detail)

    sys.addaudithook(look)


def _read_sample(path: Path, *, is_named: bool) -> Arrays | NDArray[Any]:
    inputs = decode_golden(path.read_bytes(), "the sample").inputs
    return inputs if is_named else next(iter(inputs.values()))


def _check_rows(model: ForeignModel, inputs: Arrays) -> None:
    """See that each row gets an answer of its own.

    Raises:
        InputError: `bad_model_file`.
    """
    if not is_batched(model):
        return
    for name, array in model.predict(inputs).items():
        if not array.ndim or len(array) != count_rows(inputs):
            detail = f"for {count_rows(inputs)} rows its output {name!r} has shape {array.shape}, expected as many rows"
            raise refuse("a model of rows", detail)


def _make_onnx(model: ForeignModel, inputs: Arrays, folder: Path) -> tuple[_Run, float]:
    folder.mkdir()
    model.export_onnx(inputs, folder / ONNX_FILE)
    answer, difference = _open("onnx", folder, ONNX_FILE, model, inputs)
    if is_batched(model):
        _tell_shapes(folder / ONNX_FILE, [answer(_pick(inputs, num_rows)) for num_rows in _CHECKED_ROWS])
    return answer, difference


def _tell_shapes(path: Path, seen: Sequence[Arrays]) -> None:
    """Write the lengths of the outputs' axes, which some exporters leave open, if the inputs' are told."""
    onnx: Any = importlib.import_module("onnx")
    written = onnx.load(str(path), load_external_data=False)
    if any(not dim.HasField("dim_value") for tensor in written.graph.input for dim in tensor.type.tensor_type.shape.dim[1:]):
        return
    for tensor in written.graph.output:
        dims, shapes = tensor.type.tensor_type.shape.dim, {answers[tensor.name].shape[1:] for answers in seen}
        if len(shapes) == 1 and len(dims) == len(seen[0][tensor.name].shape):
            for dim, length in zip(dims[1:], *shapes, strict=True):
                dim.dim_value = length
    onnx.save(written, str(path))


def _make_native(model: ForeignModel, inputs: Arrays, folder: Path) -> tuple[_Run, float, str]:
    folder.mkdir()
    entry = model.save_native(inputs, folder)
    return *_open(model.runtime, folder, entry, model, inputs), entry


def _open(kind: str, folder: Path, entry: str, model: ForeignModel, inputs: Arrays) -> tuple[_Run, float]:
    """Load an artifact as a worker does, and hold its answers against the framework's.

    Raises:
        ModelError: `export_failed` or `save_failed`, it does not load or run; `export_differs`.
    """
    key = "export_failed" if kind == "onnx" else "save_failed"
    runtime: Runtime = load_runtime_class(kind)()
    worst = 0.0
    sizes = _CHECKED_ROWS if is_batched(model) else (None,)
    expected: Arrays = {}
    for num_rows in sizes:
        picked = _pick(inputs, num_rows)
        expected = model.predict(picked)
        try:
            if num_rows == sizes[0]:
                runtime.load(folder, entry, {"inputs": list(inputs), "outputs": list(expected)})
            got = runtime.infer({name: array.copy() for name, array in picked.items()})
        except Exception as error:  # The edge of a runtime: it may raise anything.
            rows = "" if num_rows is None else f" on {num_rows} rows"
            raise ModelError(key, detail=f"what was written does not run{rows}: {error}") from error
        difference = measure_difference(expected, got)
        if math.isinf(difference):
            shapes = {name: array.shape for name, array in got.items()}
            raise ModelError(key, detail=f"what was written gives other shapes, integers or text than the model: {shapes}")
        if not difference <= TOLERANCE:
            raise ModelError("export_differs", got=difference, allowed=TOLERANCE)
        worst = max(worst, difference)
    return runtime.infer, worst


def _pick(inputs: Arrays, num_rows: int | None) -> Arrays:
    if num_rows is None:
        return inputs
    picked = np.arange(num_rows) % count_rows(inputs)
    return {name: array[picked] for name, array in inputs.items()}


def answer_alone(answer: _Run, inputs: Arrays, *, has_rows: bool) -> Golden:
    """Record what is answered to each row alone; where rows are not counted, to the one request that the inputs are."""
    if not has_rows:
        return Golden(*({name: array[None] for name, array in arrays.items()} for arrays in (inputs, answer(inputs))))
    answers = [answer({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(count_rows(inputs))]
    return Golden(inputs, {name: np.concatenate([one[name] for one in answers]) for name in answers[0]})


def _describe_tensors(model: ForeignModel, inputs: Arrays) -> Signature:
    """Give the tensors as the file tells them, or else as they are seen here."""
    seen = model.predict(inputs)

    def describe(arrays: Arrays, told: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        shapes = {spec.name: spec.shape for spec in told}
        free = (-1,) if is_batched(model) else ()
        return tuple(
            TensorSpec(name, datatype_of(array.dtype), shapes.get(name, free + array.shape[len(free) :]))
            for name, array in arrays.items()
        )

    return Signature(describe(inputs, model.inputs), describe(seen, model.outputs))


def _list_versions(model: ForeignModel) -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in model.packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


if __name__ == "__main__":
    main()
