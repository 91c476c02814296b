"""Turn a file of another framework into what Argosy serves: the confined child of an import.

    python -m argosy.importers.convert REQUEST.json

It loads the file with its framework, answers sample rows with it, exports it to ONNX and holds the export against those
answers; what does not convert is kept in its framework's own form, loaded by the runtime that will serve it, and held
against them, too. The folder of the request gets `answer.json`; and, if it worked, `examples.npz` and a folder with the
artifact's files that is called as its runtime is.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec
from numpy.typing import NDArray

from argosy.errors import ArgosyError, InputError, ModelError
from argosy.frameworks.agreement import Differs, Evidence, Fails, Roundings, hold_against, measure_difference
from argosy.frameworks.onnx import declare_shapes
from argosy.frameworks.trials import Trial, draw_trials
from argosy.importers.answer import Refusal, refuse_error
from argosy.importers.formats.base import FORMATS, ForeignModel, Source, load, refuse
from argosy.importers.formats.sample import count_rows, is_batched, name_sample, synthesise
from argosy.importers.golden_run import answer_alone
from argosy.runtimes.base import Runtime, lacks_memory, load_runtime_class
from argosy.signature import Arrays, Signature, TensorSpec, datatype_of
from argosy.store.golden import decode_golden, encode_golden

__all__ = [
    "ANSWER_FILE",
    "EXAMPLES_FILE",
    "ONNX_FILE",
    "TOLERANCE",
    "ConvertAnswer",
    "ConvertRequest",
    "main",
]

ANSWER_FILE: Final = "answer.json"
EXAMPLES_FILE: Final = "examples.npz"
"""Sample rows, each with the answer to it alone: the framework's own, or if the artifact is not ONNX, the artifact's."""
ONNX_FILE: Final = "model.onnx"

TOLERANCE: Final = 1e-5
"""Largest difference of an artifact's answers from the framework's, relative to their largest magnitude.

float32 kernels that sum in another order differ by 1e-7 to 1e-6; a wrong operator by 1e-2 and more."""

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
    dynamic: dict[str, tuple[int, ...]] = {}
    """Axes of any length that the user names, by input."""
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
    far_difference: float
    """The same, of rows that are unlike the sample."""
    rounding: float
    """The same, of rows on which rounding moves the model itself as far; 0 if there are none."""
    num_rows: int
    """That it was measured on."""
    kinds: tuple[str, ...]
    """Of these rows, see `frameworks/trials.py`."""
    framework: str
    versions: dict[str, str]
    reason: str = ""
    """Why the artifact is not ONNX."""


def main() -> None:
    """Carry out the request in the first argument."""
    request = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ConvertRequest)
    try:
        answer: ConvertAnswer | Refusal = _convert(request)
    except ArgosyError as error:
        answer = refuse_error(error)
    except Exception as error:  # The edge of the process: a library raises anything on a damaged file.
        answer = Refusal(_summarise(error), is_out_of_memory=lacks_memory(error))
    Path(request.folder, ANSWER_FILE).write_bytes(msgspec.json.encode(answer))
    sys.stdout.flush()
    # Libraries that were interrupted by a damaged file may crash when they are torn down.
    os._exit(0)


def _summarise(error: Exception) -> str:
    """Give what an error says, without the trace through a library's own source that some append."""
    lines = str(error).strip().splitlines() or ["it says no more"]
    told = itertools.takewhile(lambda line: not line.lstrip().startswith(_TRACES), lines)
    return f"{type(error).__name__}: {' '.join(line.strip() for line in told)}"[:_MAX_TOLD]


def _convert(request: ConvertRequest) -> ConvertAnswer:
    chosen = FORMATS[request.format]
    if not chosen.is_pickle and not request.code:
        _forbid_pickles(chosen.title)
    folder, code = Path(request.folder), Path(request.code) if request.code else None
    model = load(Source(request.format, Path(request.path), code, request.function))
    sample = _read_sample(Path(request.sample), is_named=request.is_sample_named) if request.sample else None
    model.dynamic = request.dynamic
    inputs = _choose_form(model, synthesise(model, request.format) if sample is None else name_sample(sample, model))
    _check_rows(model, inputs)
    _check_dynamic(model, inputs)
    reason, runtime, entry = "", "onnx", ONNX_FILE
    try:
        answer, evidence, inputs, reason = _make_any_onnx(model, inputs, folder / runtime)
    except ModelError as error:
        reason, runtime = error.message, model.runtime
        if not runtime:
            raise ModelError("not_convertible", title=chosen.title, framework=model.framework, detail=reason) from error
        answer, evidence, entry = _make_native(model, inputs, folder / runtime)
    # ONNX files are run once more by who takes them, and held against the framework's own answers.
    examples = answer_alone(model.predict if runtime == "onnx" else answer, inputs, has_rows=is_batched(model))
    (folder / EXAMPLES_FILE).write_bytes(encode_golden(examples))
    return ConvertAnswer(
        runtime=runtime,
        entry=entry,
        signature=_describe_tensors(model, inputs, evidence),
        is_synthetic=sample is None,
        difference=evidence.difference,
        far_difference=evidence.far_difference,
        rounding=evidence.rounding,
        num_rows=evidence.num_rows,
        kinds=evidence.kinds,
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


def _choose_form(model: ForeignModel, inputs: Arrays) -> Arrays:
    """Give inputs in the first of their types that the model takes: clusters that were found in float64 take no float32.

    Raises:
        InputError: `bad_sample`, it takes none.
    """
    try:
        model.predict(inputs)
    except InputError:
        form = next((form for form in model.list_forms(inputs) if _takes(model, form)), None)
        if form is None:
            raise
        return form
    return inputs


def _takes(model: ForeignModel, inputs: Arrays) -> bool:
    try:
        model.predict(inputs)
    except InputError:
        return False
    return True


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


def _check_dynamic(model: ForeignModel, inputs: Arrays) -> None:
    """Hold the axes that the user names against the inputs.

    Raises:
        InputError: `bad_option`.
    """
    first = 1 if is_batched(model) else 0
    for name, axes in model.dynamic.items():
        if name not in inputs or not all(first <= axis < inputs[name].ndim for axis in axes):
            shapes = ", ".join(f"{known} of shape {list(array.shape)}" for known, array in inputs.items())
            expected = f"axes of the inputs from {first} on; there are: {shapes}"
            raise InputError("bad_option", option="dynamic", got=f"{name}={list(axes)}", expected=expected)


def _make_any_onnx(model: ForeignModel, inputs: Arrays, folder: Path) -> tuple[_Run, Evidence, Arrays, str]:
    """Make an ONNX file for inputs of these types, or else of others that the model takes; and say why the latter.

    Where none answers as the model does, one may differ by as much as rounding its numbers moves the model itself.

    Raises:
        ModelError: as `_make_onnx`, of the first.
    """
    try:
        return *_make_onnx(model, inputs, folder), inputs, ""
    except ModelError as error:
        first = error
    forms = [form for form in model.list_forms(inputs) if _takes(model, form)]
    alike = [form for form in forms if not math.isinf(measure_difference(model.predict(inputs), model.predict(form)))]
    for form in alike:
        with contextlib.suppress(ModelError):
            return *_make_onnx(model, form, folder), form, first.message
    for form in (inputs, *alike) if model.is_of_doubles else ():
        with contextlib.suppress(ModelError):
            return *_make_onnx(model, form, folder, model.draw_roundings), form, "" if form is inputs else first.message
    if len(alike) < len(forms):
        detail = f"{first.message}; and rounded to float32 the model itself gives other labels to the sample"
        raise ModelError("export_failed", detail=detail)
    raise first


def _make_onnx(model: ForeignModel, inputs: Arrays, folder: Path, round_model: Roundings = tuple) -> tuple[_Run, Evidence]:
    folder.mkdir(exist_ok=True)
    try:
        model.export_onnx(inputs, folder / ONNX_FILE)
        answer, evidence = _open("onnx", folder, ONNX_FILE, model, inputs, round_model)
    except ModelError:
        (folder / ONNX_FILE).unlink(missing_ok=True)
        raise
    if is_batched(model):
        declare_shapes(folder / ONNX_FILE, evidence.shapes)
    return answer, evidence


def _make_native(model: ForeignModel, inputs: Arrays, folder: Path) -> tuple[_Run, Evidence, str]:
    folder.mkdir()
    entry = model.save_native(inputs, folder)
    return *_open(model.runtime, folder, entry, model, inputs), entry


def _open(
    kind: str, folder: Path, entry: str, model: ForeignModel, inputs: Arrays, round_model: Roundings = tuple
) -> tuple[_Run, Evidence]:
    """Load an artifact as a worker does, and hold its answers against the framework's.

    Raises:
        ModelError: `export_failed` or `save_failed`, it does not load or run; `export_differs`.
    """
    key = "export_failed" if kind == "onnx" else "save_failed"
    runtime: Runtime = load_runtime_class(kind)()
    has_rows = is_batched(model)
    try:
        names = {"inputs": list(inputs), "outputs": list(model.predict(inputs))}
        runtime.load(folder, entry, names if has_rows else names | {"has_rows": False})
    except Exception as error:  # The edge of a runtime: it may raise anything.
        raise ModelError(key, detail=f"what was written does not load: {error}") from error
    edges = model.draw_edges(inputs)
    trials = itertools.chain(
        draw_trials(inputs, model.free_axes, has_rows=has_rows), [] if edges is None else [Trial("edges", edges)]
    )
    try:
        evidence = hold_against(runtime.infer, model.predict, trials, TOLERANCE, has_rows=has_rows, round_model=round_model)
    except Fails as error:
        raise ModelError(key, detail=f"of what was written, {error}") from error
    except Differs as error:
        raise ModelError("export_differs", rows=error.kind, got=error.difference, allowed=error.allowed) from error
    return runtime.infer, evidence


def _describe_tensors(model: ForeignModel, inputs: Arrays, evidence: Evidence) -> Signature:
    """Give the tensors as the file tells them, or else as they are seen here."""
    seen, has_rows = model.predict(inputs), is_batched(model)

    def describe(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(name, datatype_of(array.dtype), (-1, *shape[1:]) if has_rows else shape)

    told = {spec.name: spec.shape for spec in (*model.inputs, *model.outputs)}
    free = model.free_axes

    def shape_of(name: str, array: NDArray[Any]) -> tuple[int, ...]:
        return tuple(-1 if axis in free[name] else length for axis, length in enumerate(array.shape))

    return Signature(
        tuple(describe(name, array, told.get(name) or shape_of(name, array)) for name, array in inputs.items()),
        tuple(describe(name, array, told.get(name) or evidence.shapes[name]) for name, array in seen.items()),
    )


def _list_versions(model: ForeignModel) -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in model.packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


if __name__ == "__main__":
    main()
