"""The tensors that go into a model and come out of it: what each is called, where it stands, and which axes are of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.agreement import Fails, Run
from argosy.frameworks.trees import Tree, list_leaves, pack, unpack
from argosy.frameworks.trials import Free, Trial, draw_trials
from argosy.signature import Arrays

__all__ = ["Ports"]

_NUM_TRACED: Final = 2
"""Length of an axis of any length while a model is traced: a tracer takes 1 for a constant that broadcasts."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Between arrays by name, which clients, files and runtimes have, and the trees that a model takes and gives."""

    inputs: Tree
    """Names, in the form in which the model takes its tensors."""
    outputs: Tree
    """Names, in the form in which it gives them."""
    free: Free = field(default_factory=dict[str, Sequence[int]])
    """By input: its axes of any length, beside that of the rows."""
    has_rows: bool = True
    """The first axis of every tensor counts rows; otherwise a call is one request."""

    @property
    def input_names(self) -> list[str]:
        """In the order of the tree."""
        return list_leaves(self.inputs)

    @property
    def output_names(self) -> list[str]:
        """In the order of the tree."""
        return list_leaves(self.outputs)

    def pack(self, arrays: Any) -> Tree:
        """Give what the model takes."""
        return pack(arrays, self.inputs)

    def list_named(self, call: Callable[[Tree], Tree]) -> Callable[..., dict[str, Any]]:
        """Make a function of tensors in order, which gives tensors by name, of one that takes and gives trees."""

        def answer(*tensors: Any) -> dict[str, Any]:
            return unpack(call(self.pack(dict(zip(self.input_names, tensors, strict=True)))), self.outputs)

        return answer

    def flatten(self, call: Callable[[Tree], Tree]) -> Callable[..., tuple[Any, ...]]:
        """Make a function of tensors in order, which gives a tuple, of one that takes and gives trees."""
        named = self.list_named(call)
        return lambda *tensors: tuple(named(*tensors).values())

    def run(self, call: Callable[[Tree], Tree]) -> Run:
        """Make a function of arrays by name, for `agreement.hold_against`, of one that takes and gives trees.

        Where outputs have another form than before, what is written cannot follow: it raises `Fails`.
        """

        def answer(arrays: Arrays) -> Arrays:
            outputs = call(self.pack(arrays))
            try:
                return unpack(outputs, self.outputs)
            except InputError as error:
                raise Fails(f"the model's own output {error.fields['detail']}; no signature says that") from error

        return answer

    def list_open(self, name: str) -> tuple[int, ...]:
        """List all axes of an input that are of any length, that of the rows included."""
        return tuple(sorted({*self.free.get(name, ()), *((0,) if self.has_rows else ())}))

    def open_shape(self, name: str, shape: Sequence[int]) -> tuple[int | None, ...]:
        """Give a shape with None where the length is free."""
        return tuple(None if axis in self.list_open(name) else length for axis, length in enumerate(shape))

    def name_lengths(self, inputs: Arrays, *, is_shared: bool) -> dict[str, tuple[str | int, ...]]:
        """Give the shape of each input with names for its free lengths.

        Args:
            inputs: real ones.
            is_shared: lengths that are alike in the sample are one, as those of ids and their mask are.
        """
        names: dict[str, tuple[str | int, ...]] = {}
        for number, (name, array) in enumerate(inputs.items()):
            shape: list[str | int] = [*array.shape]
            for axis in self.list_open(name):
                shape[axis] = f"L{array.shape[axis]}" if is_shared else f"L{number}x{axis}"
            if self.has_rows:
                shape[0] = "B"
            names[name] = tuple(shape)
        return names

    def make_example(self, inputs: Arrays) -> Arrays:
        """Give two rows to trace, and as much along every other free axis that has but one."""
        return {name: self._fit(name, array) for name, array in inputs.items()}

    def _fit(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        for axis in self.list_open(name):
            length = _NUM_TRACED if self.has_rows and axis == 0 else max(array.shape[axis], _NUM_TRACED)
            if array.shape[axis] != length:
                array = np.take(array, np.arange(length) % array.shape[axis], axis=axis)
        return np.asarray(array, order="C")

    def draw_trials(self, inputs: Arrays) -> Iterator[Trial]:
        """See `trials.draw_trials`."""
        return draw_trials(inputs, self.free, has_rows=self.has_rows)

    def take_rows(self, inputs: Arrays, rows: slice) -> Arrays:
        """Give some rows; of one request, all of it."""
        return {name: array[rows] for name, array in inputs.items()} if self.has_rows else inputs
