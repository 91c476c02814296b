"""Make golden examples of an ONNX file: what ONNX Runtime on the CPU answers to each example alone.

What takes a session runs in a confined process alone (`argosy.importers.examine`).
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import is_float, widen
from argosy.errors import InputError, list_choices
from argosy.runtimes.base import lacks_memory
from argosy.signature import Arrays, Signature, TensorSpec, datatype_of
from argosy.store.golden import Golden

__all__ = [
    "MAX_GOLDEN_BYTES",
    "NUM_SYNTHETIC",
    "Recorded",
    "answer_alone",
    "arrange_examples",
    "counts_rows",
    "make_run",
    "open_session",
    "pack_texts",
    "record_golden",
    "record_synthetic",
    "shapes_of_outputs",
    "to_array",
]

MAX_GOLDEN_BYTES: Final = 256 << 20
"""Of all examples of a version: they are read whole by whoever publishes, pulls or loads it."""

NUM_SYNTHETIC: Final = 8
"""Enough rows that a batch of them mixes values; few enough that a large model answers in seconds."""

_ATTEMPTS: Final = ((16, 100), (16, 10), (16, 2), (224, 100))
"""(length of free axes, bound of integers), tried in order: small vocabularies and types of two values follow,
then networks over images, which pooling makes too small at 16."""

_LOCALE: Final = re.compile(r"Failed to construct locale with name:([\w.@-]+)")

_MAX_ELEMENTS: Final = 1 << 26
"""Of one synthetic tensor, all examples together: 256 MiB of float32."""

_HEADER_BYTES: Final = 1024
"""Of an array in a file."""

_RTOL: Final = 1e-3
_ATOL: Final = 1e-4
"""How far two runs of the same example may differ: threads may add floats in another order. A model that samples differs more."""


def open_session(path: Path) -> Any:
    """Load an ONNX file as it is served, on the CPU.

    Raises:
        InputError: `bad_onnx`, ONNX Runtime cannot load it; `missing_locale`, not on this machine.
    """
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it has to say comes as the exception
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        importlib.import_module("argosy.runtimes.onnx").check_session(session)
        return session
    except Exception as error:  # its exceptions share no base class of their own
        if missing := _LOCALE.search(str(error)):
            raise InputError("missing_locale", path=path.name, locale=missing[1]) from error
        raise InputError("bad_onnx", path=path.name, detail=f"ONNX Runtime says: {error}") from error


def shapes_of_outputs(session: Any) -> dict[str, tuple[int, ...]]:
    """Return the outputs' shapes as ONNX Runtime infers them; () also stands for an unknown number of axes."""
    return {node.name: tuple(dim if isinstance(dim, int) else -1 for dim in node.shape) for node in session.get_outputs()}


class Recorded(NamedTuple):
    """Golden examples, and which of those that were given they are."""

    golden: Golden
    kept: tuple[int, ...]


def arrange_examples(inputs: Mapping[str, NDArray[Any]], signature: Signature, model: str) -> Arrays:
    """Give a user's examples as the signature has them: the first axis of each counts examples.

    Args:
        inputs: the first axis counts examples, as in `Golden`; of one whole request it may be missing.
        signature: of the file.
        model: its name, for messages.

    Raises:
        InputError: `bad_golden`, an input is missing or unknown, or their numbers of examples differ.
    """
    for spec in signature.inputs:
        if spec.name not in inputs:
            raise InputError("bad_golden", model=model, detail=f"input {spec.name!r} is missing; given: {list_choices(inputs)}")
    arrays = {spec.name: np.asarray(inputs[spec.name]) for spec in signature.inputs}
    unknown = set(inputs) - set(arrays)
    if not signature.is_batched and all(arrays[spec.name].ndim == len(spec.shape) > 0 for spec in signature.inputs):
        # One whole request, and no axis that counts examples.
        arrays = {name: array[np.newaxis] for name, array in arrays.items()}
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if unknown or len(set(lengths.values())) != 1 or not min(lengths.values()):
        detail = f"examples are {lengths}, expected one number above 0 for each of {list_choices(arrays)} and no other"
        raise InputError("bad_golden", model=model, detail=f"{detail}; unknown: {list_choices(unknown)}")
    return arrays


def record_golden(session: Any, inputs: Mapping[str, NDArray[Any]], signature: Signature, model: str) -> Recorded:
    """Run each example of a user alone and record the answers.

    Args:
        session: of `open_session`.
        inputs: as of `arrange_examples`, texts as bytes.
        signature: of the file.
        model: its name, for messages.

    Raises:
        InputError: `bad_golden`, the inputs do not fit the signature, the model refuses one of them, or its
            answers cannot be recorded.
    """
    arrays = arrange_examples(inputs, signature, model)
    try:
        return _run_each(session, arrays, signature)
    except _NoExampleError as error:
        raise InputError("bad_golden", model=model, detail=error) from error


def record_synthetic(session: Any, signature: Signature, seed: int = 0) -> tuple[Golden | None, dict[str, str]]:
    """Run random examples and record the answers.

    Returns:
        The examples, and nothing; or None and what the lineage says of it: `golden_error`, why there are none (the model refuses
        all that was tried, answers NaN, or answers the same example differently), or `example_error`, why it cannot run at all.
    """
    axes = [dim for spec in signature.inputs for dim in (spec.shape[1:] if signature.is_batched else spec.shape)]
    has_integers = any(spec.dtype.kind in "iu" for spec in signature.inputs)
    # Attempts that this signature cannot tell apart count once.
    attempts = dict.fromkeys((length if -1 in axes else 0, bound if has_integers else 0) for length, bound in _ATTEMPTS)
    errors: list[_NoExampleError] = []
    for free_length, bound in attempts:
        generator = np.random.default_rng(seed)
        try:
            inputs = {spec.name: _synthesise(spec, signature, generator, free_length, bound) for spec in signature.inputs}
            golden = _run_each(session, inputs, signature, may_leave_out=True).golden
            for name, array in golden.outputs.items():
                if is_float(array.dtype) and np.isnan(widen(array)).any():
                    raise _NoExampleError(f"output {name!r} is NaN on random inputs")
            return golden, {}
        except _NoExampleError as error:
            errors.append(error)
    if lack := next((error for error in errors if lacks_memory(error)), None):
        # Not what the model is, but what it may take here.
        raise MemoryError(str(lack)) from lack
    answered = [error for error in errors if not error.is_refusal]
    return None, {"golden_error": str(answered[0])} if answered else {"example_error": str(errors[0])}


def _count_bytes(arrays: Arrays) -> int:
    """Give the size of arrays in a file of examples, or a little more."""
    return sum(
        array.nbytes if array.dtype.kind != "O" else sum(4 + len(item) for item in array.ravel().tolist())
        for array in arrays.values()
    )


def counts_rows(session: Any, inputs: Arrays, signature: Signature) -> bool:
    """Say whether the outputs have a row for each row of the inputs, where the model runs several examples at once.

    Args:
        session: of `open_session`.
        inputs: examples; the first axis counts them.
        signature: of the file; first axes may count rows.
    """
    run = make_run(session, signature)
    total = min(len(array) for array in inputs.values())
    for count in dict.fromkeys(min(count, total) for count in (2, 3, total)):
        rows = {name: array[:count] for name, array in inputs.items()}
        try:
            answers = run(rows)
        except Exception:  # one that takes a single row has no other number of them
            return True
        if any(answer.shape[:1] != (count,) for answer in answers.values()):
            return False
    return True


class _NoExampleError(Exception):
    """Why something does not become a golden example.

    Args:
        detail: for the user.
        is_refusal: the model did not run.
    """

    def __init__(self, detail: object, *, is_refusal: bool = False) -> None:
        super().__init__(str(detail)[:500])
        self.is_refusal = is_refusal


def pack_texts(inputs: Mapping[str, NDArray[Any]], model: str) -> Arrays:
    """Give a user's examples with all text as arrays of bytes, which a file of examples can hold.

    Raises:
        InputError: `bad_golden`, objects that are no text.
    """
    arrays = {str(name): np.asarray(array) for name, array in inputs.items()}
    for name, array in arrays.items():
        if array.dtype.kind in "SUO":
            wrong = next((item for item in array.ravel().tolist() if not isinstance(item, str | bytes)), b"")
            if wrong != b"":
                detail = f"input {name!r} holds {type(wrong).__name__}, expected bytes or text"
                raise InputError("bad_golden", model=model, detail=detail)
            arrays[name] = _map_elements(array, _to_bytes)
        elif array.dtype.hasobject:
            raise InputError("bad_golden", model=model, detail=f"input {name!r} holds objects")
    return arrays


def answer_alone(answer: Callable[[Arrays], Arrays], inputs: Arrays, *, has_rows: bool) -> Golden:
    """Record what is answered to each row alone; where rows are not counted, to the one request that the inputs are."""
    if not has_rows:
        return Golden(*({name: array[None] for name, array in arrays.items()} for arrays in (inputs, answer(inputs))))
    num_rows = len(next(iter(inputs.values())))
    answers = [answer({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(num_rows)]
    return Golden(inputs, {name: np.concatenate([one[name] for one in answers]) for name in answers[0]})


def _to_bytes(item: str | bytes) -> bytes:
    return item.encode("utf-8", "surrogateescape") if isinstance(item, str) else bytes(item)


def _map_elements(array: NDArray[Any], function: Callable[[Any], bytes | str]) -> NDArray[Any]:
    out = np.empty(array.shape, dtype=object)
    out.ravel()[:] = [function(item) for item in array.ravel().tolist()]
    return out


def _run_each(session: Any, inputs: Arrays, signature: Signature, *, may_leave_out: bool = False) -> Recorded:
    """Run the examples one by one, and the first one again, for a model that samples has no golden answers.

    Of whole requests, whose answers may differ in shape, those are kept that have the shapes of the first one's. Where all
    together have too many bytes, `may_leave_out` keeps the first ones.
    """
    golden = Golden(inputs, {})
    answers: list[Arrays] = []
    room_bytes = MAX_GOLDEN_BYTES - _HEADER_BYTES * len(inputs | {spec.name: None for spec in signature.outputs})
    for index in range(golden.num_examples):
        answer = _run_one(session, golden, index, signature)
        room_bytes -= _count_bytes(golden.example(index, is_batched=signature.is_batched).inputs) + _count_bytes(answer)
        if room_bytes < 0:
            break
        answers.append(answer)
    if len(answers) < golden.num_examples:
        if not may_leave_out or not answers:
            what = "examples with their answers have" if answers else "one example with its answer has"
            raise _NoExampleError(f"{what} more than {MAX_GOLDEN_BYTES} bytes")
        inputs = {name: array[: len(answers)] for name, array in inputs.items()}
    again = _run_one(session, golden, 0, signature)
    kept = list(range(len(answers)))
    if not signature.is_batched:
        shapes = [[array.shape for array in answer.values()] for answer in answers]
        kept = [index for index in kept if shapes[index] == shapes[0]]
        inputs = {name: array[kept] for name, array in inputs.items()}
    outputs: Arrays = {}
    for spec in signature.outputs:
        rows = [answers[index][spec.name] for index in kept]
        if not _is_close(rows[0], again[spec.name]):
            raise _NoExampleError(f"output {spec.name!r} differs between two runs of the same example")
        if any(row.shape != rows[0].shape for row in rows):
            raise _NoExampleError(f"output {spec.name!r} has another shape for each example")
        outputs[spec.name] = np.concatenate(rows) if signature.is_batched else np.stack(rows)
    return Recorded(Golden(inputs, outputs), tuple(kept))


def make_run(session: Any, signature: Signature) -> Callable[[Arrays], Arrays]:
    """Give the function that answers by a session; it raises whatever the model's operators do."""
    run = importlib.import_module("argosy.runtimes.onnx").run_session
    names = [spec.name for spec in signature.outputs]
    return lambda inputs: dict(zip(names, map(np.asarray, run(session, names, inputs)), strict=True))


def _run_one(session: Any, golden: Golden, index: int, signature: Signature) -> Arrays:
    example = golden.example(index, is_batched=signature.is_batched)
    try:
        outputs = make_run(session, signature)(example.inputs)
    except Exception as error:  # whatever the model's operators raise is about this example
        raise _NoExampleError(error, is_refusal=True) from error
    for spec in signature.outputs:
        array = outputs[spec.name]
        if not spec.accepts(array.shape) or (signature.is_batched and len(array) != 1):
            raise _NoExampleError(f"output {spec.name!r} has shape {array.shape} for one example, declared is {spec.shape}")
    return outputs


def _name_example(number: int) -> bytes:
    return f"example {number}".encode()


def _is_close(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.shape != other.shape:
        return False
    one, other = widen(one), widen(other)
    if one.dtype.kind == "f":
        return bool(np.allclose(one, other, rtol=_RTOL, atol=_ATOL, equal_nan=True))
    return bool(np.array_equal(one, other))


def _synthesise(
    spec: TensorSpec, signature: Signature, generator: np.random.Generator, free_length: int, bound: int
) -> NDArray[Any]:
    """Make random values of all examples for one input, in the range that its datatype and name suggest."""
    axes = spec.shape[1:] if signature.is_batched else spec.shape
    shape = (NUM_SYNTHETIC, *(free_length if dim == -1 else dim for dim in axes))
    if math.prod(shape) > _MAX_ELEMENTS:
        raise _NoExampleError(f"random examples of input {spec.name!r} would have shape {shape}")
    kind = spec.dtype.kind
    if is_float(spec.dtype):
        return generator.standard_normal(shape).astype(spec.dtype)
    if kind == "O":
        return _map_elements(generator.integers(0, 100, shape), _name_example)
    name = spec.name.lower()
    if kind == "b" or "mask" in name or "type" in name:
        values = generator.integers(0, 2, shape)
        if "mask" in name and values.ndim > 1:
            values[..., 0] = 1  # a mask of zeros alone makes a softmax over nothing
        return values.astype(spec.dtype)
    return generator.integers(0, bound, shape).astype(spec.dtype)


def to_array(values: Any) -> NDArray[Any]:
    """Give a user's sample of one input as an array: text as bytes, lists of fractions as float32.

    Raises:
        InputError: `bad_sample`, it is not rectangular, or holds objects; `unsupported_type`.
    """
    try:
        array: NDArray[Any] = np.asarray(values)
    except ValueError as error:
        raise InputError("bad_sample", detail=f"it is not rectangular: {error}") from error
    if array.dtype.kind in "USO":
        items = array.ravel().tolist()
        if not all(isinstance(item, str | bytes) for item in items):
            raise InputError("bad_sample", detail="it holds objects that are neither numbers nor text")
        texts = np.empty(array.shape, object)
        texts.ravel()[:] = [item.encode() if isinstance(item, str) else item for item in items]
        return texts
    datatype_of(array.dtype)
    return array.astype(np.float32) if array.dtype == np.float64 and not isinstance(values, np.ndarray) else array
