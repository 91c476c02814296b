"""What goes into a model and what comes out: names, datatypes, shapes.

A shape's -1 stands for any length. Where the first axis of every input and output is -1, the first axis counts rows, unless the
signature says that it does not (`Signature.is_batched`). Whether rows of several requests may be joined, a `JoinVerdict` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.datatypes import DATATYPES, MAX_RANK, learn_bfloat16
from argosy.errors import InputError, list_choices

__all__ = [
    "PREPROCESS_KINDS",
    "Arrays",
    "JoinVerdict",
    "Preprocess",
    "Ragged",
    "RaggedInput",
    "Signature",
    "TensorSpec",
    "check_name",
    "datatype_of",
    "pack_bytes",
    "unpack_bytes",
]

Arrays = dict[str, NDArray[Any]]

# Whoever knows signatures computes with their tensors.
learn_bfloat16()
PREPROCESS_KINDS: Final = ("image", "row", "text")
_NAMES: Final = {dtype: name for name, dtype in DATATYPES.items()}
_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_name(name: str, kind: str = "Model") -> str:
    """Return `name` if it may name a model, deployment or alias.

    Raises:
        InputError: it does not match `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`.
    """
    if not _NAME_PATTERN.fullmatch(name):
        raise InputError("bad_name", kind=kind, got=name[:200])
    return name


def datatype_of(dtype: np.dtype[Any]) -> str:
    """Return the V2 datatype of a NumPy dtype; strings of any kind are BYTES.

    Raises:
        InputError: no V2 datatype stands for it.
    """
    name = _NAMES.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if name is None and dtype.kind in "SU":
        return "BYTES"
    if name is None:
        raise InputError("unsupported_type", tensor="?", got=dtype, known=list_choices(DATATYPES))
    return name


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One input or output tensor."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 stands for any length."""
    unit: str | None = None
    """Physical unit of the values, such as `m/s`."""
    labels: tuple[str, ...] | None = None
    """Names of the last axis' entries, such as class names."""

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES:
            raise InputError("unsupported_type", tensor=self.name, got=self.datatype, known=list_choices(DATATYPES))
        if len(self.shape) > MAX_RANK or any(dim < -1 for dim in self.shape):
            raise InputError("bad_option", option=f"shape of {self.name}", got=self.shape, expected="dimensions >= -1")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the elements."""
        return DATATYPES[self.datatype]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Say whether a tensor of this shape fits."""
        return len(shape) == len(self.shape) and all(want in (-1, got) for want, got in zip(self.shape, shape, strict=True))


class RaggedInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input whose length along one axis may differ between the requests of a batch."""

    axis: int
    """Which axis is as long as the request has it; not 0, the rows."""
    pad: float = 0.0
    """What fills a shorter row up: the mask's 0, the vocabulary's padding token, an image's background."""


class Ragged(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What allows requests of different lengths into one batch: each is padded to the longest.

    A row must answer as it does alone, whatever it is padded to, so the model needs a mask among its inputs or must
    not care; warm-up proves it before requests are joined so.
    """

    inputs: dict[str, RaggedInput]
    """Every input that has the ragged axis; all have the same length there."""
    outputs: dict[str, int] = {}
    """Outputs that have the axis as well, and which of theirs it is: they are cut to the request's length."""


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A step in the worker that makes tensors of what people have in hand."""

    kind: str
    """`image`: PNG, JPEG ... to pixels; `text`: UTF-8 to tokens; `row`: a line of CSV or a JSON object to numbers."""
    name: str
    """Of the input that a client may send instead: BYTES, one element a row."""
    inputs: tuple[str, ...]
    """The tensors that are made of it."""
    options: dict[str, Any] = {}
    """Of the kind, such as size and mean, or the tokenizer's file in the artifact."""

    def __post_init__(self) -> None:
        if self.kind not in PREPROCESS_KINDS:
            raise InputError("unknown_choice", kind="preprocessing", got=self.kind, known=list_choices(PREPROCESS_KINDS))


class JoinVerdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whether the answer to a row may depend on the rows that share its batch, as far as the version itself tells."""

    kind: Literal["independent", "dependent", "unknown"] = "unknown"
    """`dependent` rows are never joined; `unknown` ones where trials find no difference, and are watched then."""
    reason: str = "there is no graph to look into"
    edition: int = 0
    """Of the proof that judged the graph (`rows/edition.py`); 0 where none did, or one that did not tell."""


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The input and output tensors of a version."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ragged: Ragged | None = None
    preprocess: tuple[Preprocess, ...] = ()
    has_rows: bool = True
    """False where first axes of any length do not count rows, but boxes of a detector, nodes of a graph, samples of a sound."""

    def __post_init__(self) -> None:
        for specs in (self.inputs, self.outputs):
            known: set[str] = set()
            for spec in specs:
                if spec.name in known:
                    raise InputError("duplicate_tensor", tensor=spec.name)
                known.add(spec.name)
        if self.ragged is not None:
            self._check_axes("input", self.inputs, {name: item.axis for name, item in self.ragged.inputs.items()})
            self._check_axes("output", self.outputs, self.ragged.outputs)
        self._check_preprocess()

    def _check_axes(self, kind: str, specs: tuple[TensorSpec, ...], axes: Mapping[str, int]) -> None:
        known = {spec.name: spec for spec in specs}
        for name, axis in axes.items():
            spec = known.get(name)
            if spec is None or not 0 < axis < len(spec.shape) or spec.shape[axis] != -1:
                expected = f"an {kind} with an axis {axis} of any length, beside that of the rows"
                raise InputError("bad_option", option="ragged", got=name, expected=expected)

    def _check_preprocess(self) -> None:
        made = [name for step in self.preprocess for name in step.inputs]
        known = {spec.name for spec in self.inputs}
        for name in made:
            if name not in known or made.count(name) > 1:
                raise InputError("bad_option", option="preprocess", got=name, expected="inputs of the signature, each made once")
        names = [step.name for step in self.preprocess] + [spec.name for spec in self.inputs]
        if len(set(names)) != len(names):
            raise InputError("bad_option", option="preprocess", got=", ".join(names), expected="different names")
        if self.preprocess and not self.is_batched:
            raise InputError(
                "bad_option", option="preprocess", got=self.preprocess[0].name, expected="none without an axis of rows"
            )

    @property
    def raw_inputs(self) -> tuple[TensorSpec, ...]:
        """What a client sends where the worker preprocesses: each step's own input, and the tensors that none makes."""
        made = {name for step in self.preprocess for name in step.inputs}
        steps = tuple(TensorSpec(step.name, "BYTES", (-1,)) for step in self.preprocess)
        return steps + tuple(spec for spec in self.inputs if spec.name not in made)

    @property
    def is_batched(self) -> bool:
        """True when the first axis of every tensor counts rows, so that requests can be joined."""
        specs = self.inputs + self.outputs
        return self.has_rows and bool(self.inputs) and all(spec.shape and spec.shape[0] == -1 for spec in specs)

    @property
    def free_axes(self) -> dict[str, list[int]]:
        """The axes of each input whose length a request chooses: the ragged one, else all that are open but that of the rows."""
        if self.ragged is not None:
            axes = self.ragged.inputs
            return {spec.name: [axes[spec.name].axis] if spec.name in axes else [] for spec in self.inputs}
        first = 1 if self.is_batched else 0
        return {spec.name: [axis for axis, dim in enumerate(spec.shape) if dim == -1 and axis >= first] for spec in self.inputs}

    @staticmethod
    def from_arrays(inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> Signature:
        """Derive a signature from one example: the first axis is rows, the other axes are as seen."""

        def specs(arrays: Mapping[str, NDArray[Any]]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(name, datatype_of(a.dtype), (-1, *a.shape[1:])) for name, a in arrays.items())

        return Signature(specs(inputs), specs(outputs))


def pack_bytes(array: NDArray[Any], tensor: str = "?") -> bytes:
    """Serialise a BYTES tensor as V2 does: each element is a 4-byte little-endian length and its bytes.

    Raises:
        InputError: `bad_value`, an element is neither bytes nor text.
    """
    parts: list[bytes] = []
    for item in array.ravel().tolist():
        raw = item if type(item) is bytes else _encode_element(item, tensor)
        parts.append(len(raw).to_bytes(4, "little"))
        parts.append(raw)
    return b"".join(parts)


def _encode_element(item: Any, tensor: str) -> bytes:
    try:
        # Not `bytes` of anything: of the number 5 that is five zeros.
        if isinstance(item, str):
            return item.encode()
        return bytes(memoryview(item))
    except (TypeError, UnicodeEncodeError) as error:
        detail = error.reason if isinstance(error, UnicodeEncodeError) else f"an element is {type(item).__name__}"
        raise InputError("bad_value", tensor=tensor, datatype="BYTES", detail=f"{detail}, expected bytes or text") from None


def unpack_bytes(buffer: bytes | memoryview, num_elements: int, tensor: str = "?") -> NDArray[Any]:
    """Read `num_elements` length-prefixed elements; the inverse of `pack_bytes`, flat.

    Raises:
        InputError: the buffer holds more or fewer elements than `num_elements`.
    """
    view = memoryview(buffer)
    out = np.empty(num_elements, dtype=object)
    pos = 0
    for index in range(num_elements):
        end = pos + 4
        size = int.from_bytes(view[pos:end], "little") if end <= len(view) else -1
        if size < 0 or end + size > len(view):
            raise InputError("size_mismatch", tensor=tensor, got=index, expected=num_elements, shape=(num_elements,))
        out[index] = bytes(view[end : end + size])
        pos = end + size
    if pos != len(view):
        raise InputError("bytes_mismatch", tensor=tensor, got=len(view), expected=pos, shape=(num_elements,), datatype="BYTES")
    return out
