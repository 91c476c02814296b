"""What a model gives, made the tensors that its signature promises; or refused by name, for this batch alone.

The rule, which docs/importing.md tells the authors of Python models:

- Arrays have a datatype of their own: it is the promised one, or NumPy calls the conversion safe (int32 to INT64, big-endian
  to little-endian; not float64 to FP32, which loses digits, and not float to integer). Arrays of other packages are NumPy's then.
- Python's numbers have none, alone, in lists or in object arrays: they are taken where the promised one holds them. Floats are
  rounded to it, but never to infinity, and are no integers; True and False are 1 and 0, but 1 and 0 are no BOOL.
- BYTES are `bytes`, or text, which is written as UTF-8. Numbers and None are neither.
- Shapes stay as they are given.

NumPy and the standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import DATATYPES, MAX_RANK, OPAQUE, is_bfloat16, learn_bfloat16, widen

__all__ = ["AnswerError", "Answers"]

_NUMBERS: Final = (int, float, np.integer, np.floating, np.bool_)
_BUFFERS: Final = (bytearray, memoryview)
_KINDS: Final = "biuf"
_ARRAY: Final = np.ndarray


class AnswerError(Exception):
    """The model's answer is not what its signature promises.

    Args:
        text: what is wrong.
        depends_on: of what the model was asked: `values`, `lengths` of free axes, or nothing of it, as with a name, a type and a
            rank, which are wrong for every request.
    """

    def __init__(self, text: str, *, depends_on: Literal["values", "lengths", "nothing"] = "values") -> None:
        super().__init__(text)
        self.depends_on = depends_on


class Answers:
    """Makes what one version's model gives the outputs of its signature.

    Args:
        outputs: the signature's, each with `name`, `datatype` and `shape`; BF16 is learnt if it is among them.
        is_batched: the first axis of each counts rows.
    """

    def __init__(self, outputs: Sequence[Mapping[str, Any]], *, is_batched: bool) -> None:
        if any(tensor["datatype"] == "BF16" for tensor in outputs):
            learn_bfloat16()
        self.names: list[str] = [tensor["name"] for tensor in outputs]
        self._dtypes = [DATATYPES[tensor["datatype"]] for tensor in outputs]
        self._shapes: list[tuple[int, ...]] = [tuple(tensor["shape"]) for tensor in outputs]
        self._is_batched = is_batched

    def convert(self, answer: object) -> dict[str, NDArray[Any]]:
        """Give those of the outputs that the model gave, of the datatypes that are promised.

        Raises:
            AnswerError: one cannot be converted, or they are no dict.
        """
        mapping = _as_mapping(answer)
        given = [(name, dtype, mapping.get(name)) for name, dtype in zip(self.names, self._dtypes, strict=True)]
        return {name: _convert(output, name, dtype) for name, dtype, output in given if output is not None}

    def order(self, answer: dict[str, Any]) -> list[NDArray[Any]]:
        """Put the outputs in the signature's order, as arrays of NumPy's own, whose datatypes and shapes `check` looks at.

        Raises:
            AnswerError: one is missing, or no array and cannot be converted.
        """
        if type(answer) is not dict:
            answer = _as_mapping(answer)
        arrays = [answer.get(name) for name in self.names]
        for output in arrays:
            if type(output) is not _ARRAY:
                return self._order_others(answer)
        return cast("list[NDArray[Any]]", arrays)

    def _order_others(self, answer: Mapping[str, Any]) -> list[NDArray[Any]]:
        """As `order`, where some output is missing or no array."""
        arrays: list[NDArray[Any]] = []
        for name, dtype in zip(self.names, self._dtypes, strict=True):
            output = answer.get(name)
            if output is None:
                got = ", ".join(sorted(map(str, answer))) or "none"
                raise AnswerError(f"output {name!r} is missing; got {got}", depends_on="nothing")
            arrays.append(output if type(output) is _ARRAY else _convert(output, name, dtype))
        return arrays

    def check(self, arrays: list[NDArray[Any]], rows: int) -> list[NDArray[Any]]:
        """Check shapes and number of rows, and have datatypes fit.

        Args:
            arrays: of `order`, and perhaps others after them, which are our own.
            rows: of the batch.

        Returns:
            The very list that was given, where nothing had to be converted.

        Raises:
            AnswerError: an output is not what the signature promises, and cannot be converted.
        """
        made = list(arrays)
        for index, (name, dtype, shape) in enumerate(zip(self.names, self._dtypes, self._shapes, strict=True)):
            got = made[index] = _fit_datatype(arrays[index], name, dtype)
            if len(got.shape) != len(shape) or any(want not in (-1, dim) for want, dim in zip(shape, got.shape, strict=True)):
                depends_on = "nothing" if len(got.shape) != len(shape) else "lengths"
                raise AnswerError(f"output {name!r} has shape {got.shape}, expected {shape}", depends_on=depends_on)
            if self._is_batched and got.shape[0] != rows:
                raise AnswerError(f"output {name!r} has {got.shape[0]} rows for {rows}; the model must keep the first axis")
        return arrays if all(one is other for one, other in zip(made, arrays, strict=True)) else made


def _as_mapping(answer: object) -> dict[str, Any]:
    if not isinstance(answer, Mapping):
        raise AnswerError(f"the model gives {_name(answer)}, expected a dict of outputs by their names", depends_on="nothing")
    return dict(cast("Mapping[str, Any]", answer))


def _convert(value: object, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Give an output, whatever it is, as an array of the promised datatype; object stands for BYTES."""
    if dtype.kind == "O" and isinstance(value, (list, tuple, str, bytes, *_BUFFERS)):
        return _read_texts(value, name)
    array = _as_array(value, name)
    if isinstance(value, (list, tuple, int, float)) and not isinstance(value, np.generic):
        if array.dtype.kind == "f" and dtype.kind in "iu":
            # NumPy makes floats of integers of which no type holds all; what they were is what counts.
            array = np.asarray(value, object)
        array = _fit_numbers(array, name, dtype)
    return _fit_datatype(array, name, dtype)


def _fit_datatype(array: NDArray[Any], name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Give an array in the promised datatype; one that has it, and holds `bytes` alone if that is BYTES, as it is."""
    if dtype.kind == "O":
        return _encode_elements(array, name)
    if array.dtype == dtype:
        return array
    if array.dtype.kind == "O":
        return _fit_numbers(array, name, dtype)
    is_number = array.dtype.kind in _KINDS or is_bfloat16(array.dtype)
    if OPAQUE in (array.dtype, dtype) or not (is_number and np.can_cast(array.dtype, dtype, "safe")):
        raise AnswerError(f"output {name!r} has type {array.dtype}, expected {dtype}", depends_on="nothing")
    return array.astype(dtype)


def _as_array(value: Any, name: str) -> NDArray[Any]:
    if type(value) is _ARRAY:
        return value
    # `np.ma` is imported by being named, and takes 2 MB: only what is made with it needs it here.
    if issubclass(type(value), _ARRAY) and np.ma.is_masked(value):
        raise AnswerError(f"output {name!r} has masked elements: fill them in")
    try:
        # torch's may ask for gradients, which NumPy has none of.
        return np.asarray(value.detach() if hasattr(value, "detach") else value)
    except Exception as error:  # a package's own conversion may raise anything; NumPy says ValueError of uneven lists
        raise AnswerError(f"output {name!r} is {_name(value)} that cannot be read as an array: {error}") from error


def _fit_numbers(array: NDArray[Any], name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert Python's numbers, by what they are."""
    values: list[Any] = array.ravel().tolist()
    for value in values:
        if not isinstance(value, _NUMBERS):
            raise _of_type(value, f"output {name!r} holds {_name(value)}, expected numbers for {dtype}")
    if dtype.kind == "b":
        _refuse_unless(all(isinstance(value, (bool, np.bool_)) for value in values), name, "a number", dtype)
    elif dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        _refuse_unless(all(isinstance(value, (int, np.integer, np.bool_)) for value in values), name, "a float", dtype)
        wrong = next((value for value in values if not bounds.min <= int(value) <= bounds.max), None)
        if wrong is not None:
            raise AnswerError(f"output {name!r} holds the number {str(wrong)[:40]}, expected what {dtype} holds")
    else:
        return _round_numbers(values, name, dtype).reshape(array.shape)
    return np.array(values, dtype).reshape(array.shape)


def _round_numbers(values: list[Any], name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        wide = np.array([float(value) for value in values], np.float64)
    except OverflowError:
        raise AnswerError(f"output {name!r} holds an integer beyond every float, expected {dtype}") from None
    _refuse_unless(dtype != OPAQUE, name, "Python's numbers, and ml_dtypes is not installed", dtype)
    with np.errstate(over="ignore"):
        rounded = wide.astype(dtype)
    lost = np.isinf(widen(rounded)) & ~np.isinf(wide)
    if lost.any():
        raise AnswerError(f"output {name!r} holds the number {wide[lost][0]:g}, which {dtype} does not hold")
    return rounded


def _refuse_unless(is_right: bool, name: str, what: str, dtype: np.dtype[Any]) -> None:
    if not is_right:
        raise AnswerError(f"output {name!r} holds {what}, expected what {dtype} holds", depends_on="nothing")


def _read_texts(value: Any, name: str) -> NDArray[Any]:
    """Read lists in lists; NumPy would cut zeros off the ends of texts, and take buffers for lists."""
    level: list[Any] = [value]
    shape: list[int] = []
    while len(shape) < MAX_RANK:
        level = [cast("Any", item.tolist()) if isinstance(item, np.ndarray) else item for item in level]
        if not level or not all(isinstance(item, (list, tuple)) for item in level):
            break
        lengths = {len(item) for item in level}
        if len(lengths) > 1:
            raise AnswerError(f"output {name!r} holds lists of different lengths: {sorted(lengths)}")
        shape += lengths
        level = [leaf for item in level for leaf in item]
    return _encode_items(level, name).reshape(shape)


def _encode_elements(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Have every element of a BYTES output be `bytes`; the array itself where all are."""
    if array.dtype.kind not in "OUST":
        raise AnswerError(f"output {name!r} has type {array.dtype}, expected bytes or text", depends_on="nothing")
    items: list[Any] = array.ravel().tolist()
    if array.dtype.kind == "O" and all(type(item) is bytes for item in items):
        return array
    return _encode_items(items, name).reshape(array.shape)


def _encode_items(items: list[Any], name: str) -> NDArray[Any]:
    out = np.empty(len(items), object)
    out[:] = [_encode(item, name) for item in items]
    return out


def _encode(item: Any, name: str) -> bytes:
    if isinstance(item, str):
        try:
            return item.encode()
        except UnicodeEncodeError as error:
            raise AnswerError(f"output {name!r} holds text that UTF-8 cannot write: {error.reason}") from None
    if isinstance(item, (bytes, *_BUFFERS)):
        return bytes(cast("bytes", item))
    raise _of_type(item, f"output {name!r} holds {_name(item)}, expected bytes or text")


def _of_type(value: object, text: str) -> AnswerError:
    """An element is of another type; None often stands for what some rows have nothing of."""
    return AnswerError(text, depends_on="values" if value is None else "nothing")


def _name(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
