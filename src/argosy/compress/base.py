"""Compress a version: make it smaller and faster, measure what that cost, and publish it if it cost little enough.

A method (`quantize.py` ...) turns one ONNX file into another and knows nothing of the store, of accuracy or of
guards; those are here, the same for all methods.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from argosy.compress.judge import Evidence, Guard, Score, judge_outputs, run_in_batches
from argosy.compress.kind import find_meaning
from argosy.compress.measure import Cost, Gain, measure_batch_difference, measure_cost
from argosy.errors import ConflictError, InputError, list_choices
from argosy.frameworks.onnx import OnnxModel
from argosy.rows.axis import judge_file
from argosy.signature import Arrays, Signature
from argosy.store.golden import Golden
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.store.preprocess import list_step_files
from argosy.train.data import check_rows, digest_arrays
from argosy.train.lineage import describe_environment

__all__ = ["METHODS", "CompressResult", "Method", "compress", "get_method"]


class Method(Protocol):
    """One way to compress: a frozen data class whose fields are its parameters."""

    name: str
    precision: str
    """What the weights are afterwards, such as `int8`; for the lineage."""
    needs_calibration: bool

    def apply(self, model: bytes, calibration: Arrays) -> bytes:
        """Compress an ONNX model.

        Args:
            model: the file's content.
            calibration: representative inputs by name, first axis rows; empty when none are needed.

        Returns:
            The new file's content: same inputs and outputs.

        Raises:
            InputError: `nothing_to_compress`, `missing_extra`.
        """
        ...


METHODS: Final[dict[str, str]] = {"int8": "argosy.compress.quantize:Int8"}
"""Where each method's class is, imported when it is asked for."""


def get_method(method: str | Method) -> Method:
    """Give a method by name with its default parameters, or as it is.

    Raises:
        InputError: `unknown_choice`.
    """
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise InputError("unknown_choice", kind="compression method", got=method, known=list_choices(METHODS))
    module, _, kind = METHODS[method].partition(":")
    return cast("Method", getattr(importlib.import_module(module), kind)())


@dataclass(frozen=True, eq=False)
class CompressResult:
    """What compressing a version came to."""

    parent: Version
    version: Version | None
    """What was published, None if that was not wanted."""
    method: dict[str, Any]
    """Name and parameters."""
    guard: Guard
    """As it was given, with the metric that was chosen."""
    score: Score
    before: Cost
    after: Cost
    batch_difference: float
    """Largest difference between a row's answer alone and in a batch of 32, relative to the largest answer."""
    model: bytes
    """The compressed ONNX file."""

    @property
    def gain(self) -> Gain:
        """What became smaller or larger, faster or slower."""
        return Gain(self.before, self.after)

    def describe(self) -> dict[str, Any]:
        """Give everything but the file and the versions, as JSON data."""
        return {
            "method": self.method,
            "guard": dataclasses.asdict(self.guard),
            "score": dataclasses.asdict(self.score),
            "before": dataclasses.asdict(self.before),
            "after": dataclasses.asdict(self.after),
            "gains": self.gain.gains,
            "losses": self.gain.losses,
            "batch_difference": self.batch_difference,
        }


def compress(
    reference: str | Version,
    *,
    method: str | Method = "int8",
    calibration: object = None,
    guard: Guard | None = None,
    evaluation: tuple[object, object] | None = None,
    needs_gain: bool = True,
    publish: bool = True,
    store: Store | None = None,
) -> CompressResult:
    """Compress an ONNX version of the store and publish the result as the next version of its model.

    Args:
        reference: the version, or NAME, NAME@VERSION, NAME@ALIAS.
        method: a name of `METHODS`, or a method with its parameters set.
        calibration: representative rows, such as those of training, never those of `evaluation`; an array, or
            one for each input by name.
        guard: how much may be lost of what; default: 0.01 of what the version was trained for (accuracy, or R2 of values),
            and of the fidelity to the original where nothing says what its outputs are.
        evaluation: rows and targets to measure that on, before and after: rows as for `calibration`; targets one a row, or by
            output name, or None. Without targets the answers are held against the parent's; without rows, on its golden
            examples.
        needs_gain: refuse what is larger, and what is neither smaller nor faster. False publishes it all the same.
        publish: False measures only.
        store: default: that of ARGOSY_HOME.

    Raises:
        ConflictError: `guard_failed`, too much was lost; `no_gain`; nothing was published.
        InputError: `needs_calibration`, `bad_data`, `bad_option`, `unknown_choice`, `already_compressed`,
            `not_compressible`, `nothing_to_compress`, `missing_extra`.
        NotFoundError: no such version.
        StoreError: the parent's files are damaged.
    """
    store = store or Store()
    guard = guard or Guard()
    chosen = get_method(method)
    parent = store.get_version(reference) if isinstance(reference, str) else reference
    _check_parent(parent)
    if publish:
        store.check_writable()
    rows = _check_calibration(parent, chosen, calibration)
    tested = _take_evaluation(parent.manifest.signature, evaluation)
    golden = store.load_golden(parent) if parent.manifest.num_golden else None
    original = (store.open_artifact(parent) / parent.manifest.entry).read_bytes()
    compressed = chosen.apply(original, rows)
    before, after = OnnxModel(original), OnnxModel(compressed)
    score = judge_outputs(_run(parent, chosen, (before, after), tested, golden), find_meaning(parent), guard)
    if not score.loss <= guard.max_loss:
        basis = f"{score.num_rows} {score.basis} rows"
        fields: dict[str, Any] = {"metric": score.metric, "before": score.before, "after": score.after, "basis": basis}
        raise ConflictError("guard_failed", **fields, allowed=guard.max_loss, reason=score.reason)
    inputs = tested[0] if tested else (golden.inputs if golden else rows)
    costs = measure_cost((before, original), (after, compressed), inputs)
    result = CompressResult(
        parent=parent,
        version=None,
        method={"name": chosen.name, **dataclasses.asdict(cast("Any", chosen))},
        guard=dataclasses.replace(guard, metric="accuracy" if score.metric == "agreement" else score.metric),
        score=score,
        before=costs[0],
        after=costs[1],
        batch_difference=measure_batch_difference(after, inputs),
        model=compressed,
    )
    if not publish:
        return result
    if needs_gain and not result.gain.is_one:
        reference = f"{parent.name}@{parent.number}"
        raise ConflictError("no_gain", method=chosen.name, reference=reference, found=result.gain.describe())
    own = Golden(golden.inputs, after.run_alone(golden.inputs)) if golden else None
    return dataclasses.replace(result, version=_publish(store, result, chosen.precision, rows, own))


def _check_parent(parent: Version) -> None:
    """Refuse what no method can compress."""
    lineage: dict[str, Any] = parent.manifest.lineage
    if "compression" in lineage:
        made_by = lineage["compression"]["method"]["name"]
        origin = f"{lineage['parent']['name']}@{lineage['parent']['number']}"
        raise InputError("already_compressed", name=parent.name, version=parent.number, method=made_by, parent=origin)
    if parent.manifest.runtime != "onnx":
        raise InputError("not_compressible", name=parent.name, version=parent.number, runtime=parent.manifest.runtime)
    if not parent.manifest.signature.is_batched:
        expected = "a version whose tensors all have rows as first axis"
        raise InputError("bad_option", option="version", got=f"{parent.name}@{parent.number}", expected=expected)


def _run(
    parent: Version,
    method: Method,
    models: tuple[OnnxModel, OnnxModel],
    evaluation: tuple[Arrays, Arrays] | None,
    golden: Golden | None,
) -> Evidence:
    """Answer the rows that the guard is to be measured on."""
    before, after = models
    if evaluation:
        inputs, targets = evaluation
        return Evidence(run_in_batches(before, inputs), run_in_batches(after, inputs), targets, "evaluation")
    if golden:
        expected = {name: golden.outputs[name] for name in before.output_names}
        return Evidence(expected, after.run_alone(golden.inputs), {}, "golden")
    raise InputError("needs_calibration", method=method.name, what="evaluation rows or golden examples", name=parent.name)


def _take_evaluation(signature: Signature, evaluation: object) -> tuple[Arrays, Arrays] | None:
    """Name and check evaluation rows, and their targets by output name."""
    if evaluation is None:
        return None
    got = type(evaluation).__qualname__
    pair = tuple(cast("Sequence[object]", evaluation)) if isinstance(evaluation, tuple | list) else ()
    if len(pair) != 2:
        detail = f"evaluation is a {got}, expected a pair of rows and targets; None for no targets"
        raise InputError("bad_data", detail=detail)
    inputs, targets = _take_inputs(signature, pair[0]), pair[1]
    if targets is None:
        return inputs, {}
    names = [spec.name for spec in signature.outputs]
    given: Mapping[str, object] = cast("Any", targets) if isinstance(targets, Mapping) else {names[0]: targets}
    if not given or not set(given) <= set(names):
        raise InputError("bad_data", detail=f"there are targets for {list_choices(given)}, the model gives {list_choices(names)}")
    return inputs, {name: np.asarray(target) for name, target in given.items()}


def _check_calibration(parent: Version, method: Method, calibration: object) -> Arrays:
    if calibration is not None:
        return _take_inputs(parent.manifest.signature, calibration)
    if method.needs_calibration:
        raise InputError("needs_calibration", method=method.name, what="calibration rows", name=parent.name)
    return {}


def _take_inputs(signature: Signature, rows: object) -> Arrays:
    """Name, check and convert inputs: one array, or one for each input by name."""
    if isinstance(rows, Mapping):
        given = dict(cast("Mapping[str, NDArray[Any]]", rows))
    else:
        given = {signature.inputs[0].name: cast("NDArray[Any]", rows)}
    names = [spec.name for spec in signature.inputs]
    if set(given) != set(names):
        raise InputError("bad_data", detail=f"there are arrays for {list_choices(given)}, the model takes {list_choices(names)}")
    arrays: Arrays = {}
    for spec in signature.inputs:
        array = check_rows(given[spec.name])
        if not spec.accepts(array.shape) or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            got = f"type {array.dtype} and shape {array.shape}"
            raise InputError("bad_data", detail=f"input {spec.name!r} has {got}, expected {spec.dtype} and {spec.shape}")
        arrays[spec.name] = array.astype(spec.dtype, copy=False)
    if len({len(array) for array in arrays.values()}) != 1:
        raise InputError("bad_data", detail="the inputs have different numbers of rows")
    return arrays


def _publish(store: Store, result: CompressResult, precision: str, calibration: Arrays, golden: Golden | None) -> Version:
    parent = result.parent
    lineage: dict[str, Any] = {
        "kind": "compression",
        "precision": precision,
        "parent": {"name": parent.name, "number": parent.number, "digest": parent.digest},
        "compression": result.describe(),
        "environment": describe_environment(("argosy", "numpy", "onnx", "onnxruntime")),
    }
    if calibration:
        num_rows = len(next(iter(calibration.values())))
        lineage["calibration"] = {"rows": num_rows, "digest": digest_arrays(*calibration.values())}
    # What the parent was trained on and by which recipe holds for its child too.
    lineage |= {key: parent.manifest.lineage[key] for key in ("data", "recipe") if key in parent.manifest.lineage}
    entry = parent.manifest.entry
    step_files = list_step_files(parent.manifest.signature)
    folder = store.open_artifact(parent) if step_files else Path()
    return store.publish(
        parent.name,
        {entry: result.model} | {name: folder / name for name in step_files},
        signature=parent.manifest.signature,
        entry=entry,
        repeatable=parent.manifest.repeatable,
        golden=golden,
        golden_is_synthetic=parent.manifest.golden_is_synthetic and golden is not None,
        joining=judge_file(result.model, parent.manifest.signature),
        lineage=lineage,
        measurements={
            result.score.metric: result.score.after,
            "size_bytes": result.after.size_bytes,
            "batch_difference": result.batch_difference,
        },
        options=parent.manifest.options,
    )
