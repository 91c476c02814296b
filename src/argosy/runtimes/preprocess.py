"""Make a model's tensors of what people have in hand, in the worker: pictures to pixels, text to tokens, rows to numbers.

A signature's `preprocess` names the steps (`preprocess_image.py`, `preprocess_text.py`, `preprocess_row.py`). Rows that come out
with different lengths are run in groups, so that little of what is computed is padding. NumPy and the standard library, and what
a step needs: a worker of any interpreter can do it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import NUM_TOKENS, BadInput

__all__ = ["BadStep", "Preprocessor", "Step", "group_lengths", "load_module"]

Arrays = dict[str, NDArray[Any]]
Infer = Callable[[Arrays], Arrays]
Spec = Mapping[str, Any]

CALL_TOKENS: Final = 32
"""What one more call of the model costs, in tokens. MiniLM on one thread: 3.3 ms and 0.23 ms a token, which is 14; smaller
models pay more. 64 rows of 6 to 127 tokens take 1.3 to 1.5 s with anything from 0 to 128, and 2.9 s all padded alike."""
MAX_CALL_TOKENS: Final = 16 * 1024
"""Of rows that are padded to one length: attention over more of them would take gigabytes."""
MAX_CALL_ELEMENTS: Final = 1 << 24
"""Of the largest tensor of other rows in one call: 64 MiB of FP32, 111 pictures of 224 x 224 pixels."""
_MAX_CUTS: Final = 16
"""Lengths at which a group may end, whatever the number of rows: finding the best of them takes 50 us."""


class BadStep(ValueError):
    """A step does not fit the signature, or a file of it cannot be used."""


class Made(NamedTuple):
    """What a step makes of its rows."""

    tensors: dict[str, list[NDArray[Any]]]
    """Input name -> one array a row, without the axis of rows."""
    counts: list[int]
    """Tokens of each row; empty where there are none."""


class Step(Protocol):
    """One way of making tensors.

    Its constructor takes the tensors that it makes (name -> `datatype`, `shape`, and `pad` of a ragged axis or None), the
    options and the artifact's folder, and raises `BadStep` where they do not fit.
    """

    def convert(self, name: str, rows: Sequence[bytes]) -> Made:
        """Make the tensors of some rows.

        Args:
            name: the step's input, for messages.
            rows: one element each, as a client sent it.

        Raises:
            BadInput: a row is not what the step takes; the message says which.
        """
        ...


def load_module(name: str, package: str, extra: str) -> Any:
    """Import what a step needs.

    Raises:
        BadStep: it is not installed in this interpreter.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadStep(f"the package {package} is not installed (pip install 'argosy[{extra}]'): {error}") from error


class Preprocessor:
    """The steps of one version.

    Args:
        signature: as `argosy.signature.Signature`, as plain data: `inputs`, `outputs`, `ragged`, `preprocess`.
        folder: the artifact's files.

    Attributes:
        can_pad: rows of different lengths may share a call; True where the signature is ragged.

    Raises:
        BadStep: a step does not fit the signature, a file of it cannot be used, or a package is missing.
    """

    def __init__(self, signature: Spec, folder: Path) -> None:
        specs: dict[str, Spec] = {spec["name"]: spec for spec in signature["inputs"]}
        ragged: Spec = signature.get("ragged") or {}
        self._axes: dict[str, tuple[int, float]] = {
            name: (item["axis"] - 1, item.get("pad", 0.0)) for name, item in ragged.get("inputs", {}).items()
        }
        self._cuts: dict[str, int] = dict(ragged.get("outputs", {}))
        self._steps: list[tuple[str, Step]] = []
        self._kinds = [step["kind"] for step in signature["preprocess"]]
        self._tokens: set[str] = set()
        made: set[str] = set()
        for step in signature["preprocess"]:
            inputs = {name: {**specs[name], "pad": self._axes.get(name, (0, None))[1]} for name in step["inputs"]}
            kind = importlib.import_module(f"argosy.runtimes.preprocess_{step['kind']}").STEP
            try:
                self._steps.append((step["name"], kind(inputs, step.get("options", {}), folder)))
            except BadStep as error:
                raise BadStep(f"step {step['name']!r} ({step['kind']}): {error}") from error
            made.update(inputs)
            self._tokens.update(inputs if step["kind"] == "text" else ())
        self._direct = [name for name in specs if name not in made]
        if self._axes and not any(set(self._axes) <= set(step["inputs"]) for step in signature["preprocess"]):
            raise BadStep(f"no single step makes all ragged inputs ({', '.join(self._axes)}): their lengths would differ")
        self._outputs: list[str] = [spec["name"] for spec in signature["outputs"]]
        self.can_pad = bool(self._axes)

    def apply(self, inputs: Arrays, infer: Infer, *, counts: bool = False) -> Arrays:
        """Answer rows as a client sent them.

        Args:
            inputs: those of `Signature.raw_inputs`; a step's own is an object array of `bytes`, shape (rows,).
            infer: runs the model on its tensors.
            counts: add the output `num_tokens`, INT64 (rows,): the tokens of each row that the model saw.

        Returns:
            The outputs, in the order of the rows. One that has the ragged axis is as long as the longest row, and 0
            beyond a shorter row's own end.

        Raises:
            BadInput: a row is not what its step takes.
        """
        made = self.convert({name: inputs[name].tolist() for name, _ in self._steps})
        tensors = made.tensors | {name: list(inputs[name]) for name in self._direct}
        num_rows = len(next(iter(tensors.values())))
        outputs = self._run(tensors, num_rows, infer)
        if counts:
            outputs[NUM_TOKENS] = np.array(made.counts or [0] * num_rows, np.int64)
        return outputs

    def convert(self, rows: Mapping[str, Sequence[bytes]]) -> Made:
        """Make the tensors of what clients sent for each step; the counts are those of all steps together.

        Raises:
            BadInput: a row is not what its step takes.
        """
        tensors: dict[str, list[NDArray[Any]]] = {}
        counts: list[int] = []
        for name, step in self._steps:
            made = step.convert(name, rows[name])
            tensors |= made.tensors
            if made.counts:
                counts = [sum(pair) for pair in zip(counts, made.counts, strict=True)] if counts else made.counts
        return Made(tensors, counts)

    def make_samples(self, usual: Mapping[str, bytes]) -> dict[str, list[bytes]]:
        """Give a row that each step can take.

        Args:
            usual: of the kinds whose steps do not say themselves what they can take.
        """
        samples: dict[str, list[bytes]] = {}
        for kind, (name, step) in zip(self._kinds, self._steps, strict=True):
            make = getattr(step, "make_sample", None)
            samples[name] = [make() if make is not None else usual[kind]]
        return samples

    def _run(self, tensors: dict[str, list[NDArray[Any]]], num_rows: int, infer: Infer) -> Arrays:
        lengths = self._measure(tensors, num_rows)
        groups = self._group(tensors, lengths, num_rows)
        if len(groups) == 1 and (not self._cuts or len(set(lengths)) == 1):
            # The common case: what the model answers is the answer, not copied.
            order = groups[0]
            answer = infer(self._join(tensors, order, lengths))
            return dict(answer) if order == list(range(num_rows)) else {k: a[np.argsort(order)] for k, a in answer.items()}
        whole: Arrays = {}
        for order in groups:
            answer = infer(self._join(tensors, order, lengths))
            for name in self._outputs:
                self._scatter(whole, name, answer[name], order, lengths)
        return whole

    def _measure(self, tensors: dict[str, list[NDArray[Any]]], num_rows: int) -> list[int]:
        """The length of each row along the ragged axis; 0 where the signature is not ragged."""
        for name, (axis, _) in self._axes.items():
            return [row.shape[axis] for row in tensors[name]]
        return [0] * num_rows

    def _group(self, tensors: dict[str, list[NDArray[Any]]], lengths: list[int], num_rows: int) -> list[list[int]]:
        """Say which rows run together, in which order."""
        alike: dict[tuple[object, ...], list[int]] = {}
        for row in range(num_rows):
            shapes: list[object] = []
            for name, arrays in tensors.items():
                shape = arrays[row].shape
                if self.can_pad and name in self._axes:
                    axis = self._axes[name][0]
                    shape = (*shape[:axis], *shape[axis + 1 :])
                shapes.append(shape)
            alike.setdefault(tuple(shapes), []).append(row)
        groups: list[list[int]] = []
        for rows in alike.values():
            for group in group_lengths([lengths[row] for row in rows]) if self.can_pad else [range(len(rows))]:
                members = [rows[index] for index in group]
                limit = self._limit_rows(tensors, members[0])
                groups += [members[start : start + limit] for start in range(0, len(members), limit)]
        return groups

    def _limit_rows(self, tensors: dict[str, list[NDArray[Any]]], longest: int) -> int:
        """How many rows like this one a call may have."""
        length = max((len(tensors[name][longest]) for name in self._tokens), default=0)
        size = max(arrays[longest].size for arrays in tensors.values())
        return max(1, min(MAX_CALL_TOKENS // max(1, length), MAX_CALL_ELEMENTS // max(1, size)))

    def _join(self, tensors: dict[str, list[NDArray[Any]]], order: Sequence[int], lengths: list[int]) -> Arrays:
        """Put rows side by side, each padded to the longest."""
        length = max(lengths[row] for row in order)
        joined: Arrays = {}
        for name, arrays in tensors.items():
            rows = [arrays[row] for row in order]
            if name not in self._axes or all(lengths[row] == length for row in order):
                joined[name] = np.stack(rows)
                continue
            axis, pad = self._axes[name]
            shape = (*rows[0].shape[:axis], length, *rows[0].shape[axis + 1 :])
            target = joined[name] = np.full((len(rows), *shape), pad, rows[0].dtype)
            before = (slice(None),) * axis
            for index, array in enumerate(rows):
                target[(index, *before, slice(array.shape[axis]))] = array
        return joined

    def _scatter(self, whole: Arrays, name: str, answer: NDArray[Any], order: Sequence[int], lengths: list[int]) -> None:
        """Write a group's rows of one output to their places."""
        if answer.ndim == 0 or len(answer) != len(order):
            raise ValueError(f"output {name!r} has shape {answer.shape} for {len(order)} rows")
        shape = list(answer.shape[1:])
        axis = self._cuts.get(name)
        if axis is not None:
            shape[axis - 1] = max(lengths)
        target = whole.get(name)
        if target is None:
            target = whole[name] = np.zeros((len(lengths), *shape), answer.dtype)
            if answer.dtype.kind == "O":
                target.fill(b"")
        if target.shape[1:] != tuple(shape):
            raise BadInput(f"rows of different lengths have outputs {name!r} of different shapes: send each in its own request")
        if axis is None:
            target[list(order)] = answer
            return
        before = (slice(None),) * (axis - 1)
        for index, row in enumerate(order):
            part = (*before, slice(lengths[row]))
            target[(row, *part)] = answer[(index, *part)]


def group_lengths(lengths: Sequence[int], call_tokens: int = CALL_TOKENS) -> list[list[int]]:
    """Divide rows into groups, each padded to its longest, so that calls and padding together cost least.

    Args:
        lengths: of the rows.
        call_tokens: what one more call costs, in tokens.

    Returns:
        Indexes of the rows, longest first in each group; of equal lengths in their order.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    sizes = [lengths[row] for row in order]
    # A group begins where the length changes, else a cut saves nothing; of too many such places an even choice.
    starts = [0, *(i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1])]
    if len(starts) > _MAX_CUTS:
        starts = [starts[i * len(starts) // _MAX_CUTS] for i in range(_MAX_CUTS)]
    ends = [*starts[1:], len(sizes)]
    best: list[tuple[int, int]] = [(0, 0)]  # cost of what stands before ends[i - 1], and where its last group starts
    for end in ends:
        costs = [(best[i][0] + call_tokens + (end - start) * sizes[start], i) for i, start in enumerate(starts[: len(best)])]
        best.append(min(costs))
    groups: list[list[int]] = []
    place = len(ends)
    while place:
        first = best[place][1]
        groups.append(order[starts[first] : ends[place - 1]])
        place = first
    return groups[::-1]
