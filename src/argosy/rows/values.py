"""What is known of a tensor of a graph: its shape, which of its axes counts rows, its content where that is a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from argosy.rows.dims import ONE, ROWS, Dim, combine, fixed, named

__all__ = [
    "HANDLERS",
    "Fault",
    "Node",
    "Shape",
    "Value",
    "broadcast",
    "handles",
    "mixed",
    "rows_of",
    "unknown",
]

MAX_CONTENT: Final = 512
"""Numbers of a tensor that are kept: shapes, axes, pads and scales are shorter."""

Shape = tuple[Dim, ...]


class Fault(Exception):
    """Why the rows of a tensor are not known to be their own.

    Args:
        why: for the user.
        is_mixed: it is known that they are not.
        is_ordered: what was taken for rows follows one another in time or space.
    """

    def __init__(self, why: str, *, is_mixed: bool, is_ordered: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.is_mixed = is_mixed
        self.is_ordered = is_ordered


def mixed(why: str, *, is_ordered: bool = False) -> NoReturn:
    """Say that a row of the output is made of several rows."""
    raise Fault(why, is_mixed=True, is_ordered=is_ordered)


def unknown(why: str) -> NoReturn:
    """Say that this cannot be told."""
    raise Fault(why, is_mixed=False)


class Value(NamedTuple):
    """A tensor."""

    shape: Shape | None
    """None where not even the number of axes is known."""
    axis: int = -1
    """Whose entries belong each to a row of the batch, the rows in order, each as often; -1: the same for whatever rows."""
    content: tuple[Dim, ...] | None = None
    """The numbers, flat, where they are few and no row's own."""
    is_counted: bool = False
    """It depends on how many rows there are."""
    fault: Fault | None = None

    @property
    def depends_on_count(self) -> bool:
        """True where it depends on how many rows there are; of known numbers, where one of them does."""
        return self.is_counted if self.content is None else any(dim.is_tainted for dim in self.content)

    @property
    def is_rows(self) -> bool:
        """True where it depends on rows, each part of it on one."""
        return self.axis >= 0

    @property
    def known_shape(self) -> Shape:
        """The shape.

        Raises:
            Fault: the number of axes is not known.
        """
        if self.shape is None:
            unknown("a tensor's number of axes is not known")
        return self.shape

    @property
    def rank(self) -> int:
        """The number of axes; raises as `known_shape`."""
        return len(self.known_shape)

    @property
    def from_right(self) -> int:
        """Place of the axis of rows as broadcasting counts: 1 is the last one; raises as `known_shape`."""
        return self.rank - self.axis

    @property
    def integers(self) -> list[int] | None:
        """The content, where all of it is plain integers."""
        if self.content is None:
            return None
        values = [dim.value for dim in self.content]
        return None if None in values else [value for value in values if value is not None]


class Node:
    """An operator with what is known of its inputs.

    Args:
        op: its type.
        inputs: None stands for one that is left out.
        attributes: by name.
        outputs: their names, "" for one that is left out.
        opset: version of its domain.
        run: interprets a graph that is an attribute: (graph, values of its inputs) -> values of its outputs.
    """

    def __init__(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attributes: dict[str, Any],
        outputs: Sequence[str],
        opset: int,
        run: Callable[[Any, Sequence[Value]], list[Value]],
    ) -> None:
        self.op = op
        self.inputs = inputs
        self.attributes = attributes
        self.outputs = outputs
        self.opset = opset
        self.run = run

    def find(self, index: int) -> Value | None:
        """An input, or None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def take(self, index: int) -> Value:
        """An input that must be there."""
        value = self.find(index)
        if value is None:
            unknown("an input is missing")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def list_integers(self, name: str, index: int) -> list[int] | None:
        """Integers that are an attribute in old versions of an operator and an input in new ones; None where neither is there.

        Raises:
            Fault: the input is not known.
        """
        if name in self.attributes:
            return list(self.attributes[name])
        value = self.find(index)
        if value is None:
            return None
        if value.integers is None:
            unknown(f"its {name} are not known")
        return value.integers

    def fresh(self, output: int, axis: int) -> Dim:
        """A name for the length of an axis that is not computed: it may depend on whatever an input depends on."""
        name = self.outputs[output] if output < len(self.outputs) and self.outputs[output] else f"{self.outputs[:1]}{output}"
        found = named(f"{name}.{axis}")
        is_counted = any(value is not None and value.depends_on_count for value in self.inputs)
        return combine("fresh", found, named(ROWS)) if is_counted else found

    def the_rows(self, *indexes: int) -> Value | None:
        """The one input of these that depends on rows; None where none does.

        Raises:
            Fault: several do.
        """
        found = [value for index in indexes if (value := self.find(index)) is not None and value.is_rows]
        if len(found) > 1:
            unknown("several inputs depend on rows")
        return found[0] if found else None

    def only(self, index: int) -> Value:
        """An input, where none of the others depends on rows.

        Raises:
            Fault: another does.
        """
        self.allow_rows(index)
        return self.take(index)

    def allow_rows(self, *indexes: int) -> None:
        """Only these inputs may depend on rows.

        Raises:
            Fault: another does.
        """
        if any(value is not None and value.is_rows for index, value in enumerate(self.inputs) if index not in indexes):
            unknown("what should be a parameter depends on rows")


Handler = Callable[[Node], "Value | list[Value]"]
HANDLERS: Final[dict[tuple[str, str], Handler]] = {}
"""(domain, operator) -> what tells the outputs of it."""


def handles(*ops: str, domain: str = "") -> Callable[[Handler], Handler]:
    """Register what tells the outputs of these operators."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update({(domain, op): handler for op in ops})
        return handler

    return register


def rows_of(value: Value, shape: Shape, axis: int) -> Value:
    """A tensor that depends on rows as another one does, or is as much the same for all of them as it."""
    return Value(shape, axis if value.is_rows else -1, is_counted=value.is_counted)


def broadcast(values: Sequence[Value]) -> Value:
    """The tensor that NumPy's broadcasting makes of several.

    Raises:
        Fault: rows would meet other rows, or it cannot be told what meets.
    """
    rows = [value for value in values if value.is_rows]
    is_counted = any(value.is_counted for value in values)
    if not rows and any(value.shape is None for value in values):
        return Value(None, is_counted=is_counted)
    places = {value.from_right for value in rows}
    if len(places) > 1:
        mixed("rows of one tensor meet all rows of another")
    rank = max([value.rank for value in values], default=0)
    dims: list[Dim] = []
    for place in range(rank, 0, -1):
        found = {value.known_shape[-place] for value in values if value.rank >= place} - {ONE}
        if len(found) > 1 and place in places:
            unknown("an axis of rows meets one of another length")
        dims.append(found.pop() if len(found) == 1 else combine("broadcast", *sorted(found)) if found else ONE)
    axis = rank - places.pop() if places else -1
    if any(dim.is_tainted for index, dim in enumerate(dims) if index != axis):
        if axis >= 0 or sum(dim.has_rows for dim in dims) != 1:
            mixed("rows of one tensor meet all rows of another")
        # The same for each row, written once for each.
        axis = next(index for index, dim in enumerate(dims) if dim.has_rows)
    return Value(tuple(dims), axis, is_counted=is_counted)


def scalar(number: int) -> Value:
    """A known integer."""
    return Value((), content=(fixed(number),))
