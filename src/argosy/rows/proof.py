"""Walk through an ONNX graph and say whether each row of its outputs is made of one row of its inputs.

The rows of the inputs lie along their first axes. At each operator it is known, of each tensor, along which axis they lie then,
or that the tensor is the same whatever the rows are; the table of operators (`values.HANDLERS`) says what comes out, or why that
is no longer so. Only the graph is read, and constants of a few numbers; no weight is.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from argosy.rows import arithmetic, control, elementwise, gathers, learned, moves, products, reductions
from argosy.rows.dims import ROWS, Dim, fixed, named
from argosy.rows.values import HANDLERS, MAX_CONTENT, Fault, Node, Value, unknown
from argosy.signature import JoinVerdict, Signature

__all__ = ["judge_rows"]

_MODULES: Final = (control, elementwise, gathers, learned, moves, products, reductions)
"""Imported for what they register."""
_RANDOM: Final = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})
_GRAPHS: Final = frozenset({"If", "Loop", "Scan"})
"""Operators whose inputs meet in the graphs that they hold, if at all."""
_OWN_COUNT: Final = frozenset({"Shape", "Size", "If", "Loop", "Scan", "Slice"})
"""Operators that look at lengths alone, or whose parts are followed one by one; of a slice its own rule says it."""
_SHAPES: Final = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Resize": 3, "Tile": 1}
"""By operator, which of its inputs is a shape."""
_EXTERNAL: Final = 1  # TensorProto.EXTERNAL
_ROW_AXIS: Final = named(ROWS)
MAX_DEPTH: Final = 24
MAX_AXES: Final = 64
MAX_NODES: Final = 100_000
"""Operators that are followed, each as often as loops and functions come by it: a few seconds' work."""


def judge_rows(model: Any, signature: Signature) -> tuple[JoinVerdict, bool]:
    """Say whether rows of a batch may influence one another, and whether they follow one another in time or space.

    Args:
        model: an `onnx.ModelProto`; weights in files of their own need not be loaded.
        signature: of the model; its first axes count rows.

    Returns:
        The verdict. `independent`: each row of each output is made of the same row of the inputs alone. `dependent`: it is not,
        and `reason` names the operator. `unknown`: nothing of the kind can be said, for the reason that is given. And True where
        an operator goes along the first axis in its order, which are no rows then.
    """
    walk = _Walk(model)
    scope: dict[str, Value] = {}
    graph = model.graph
    walk.read_weights(graph, scope)
    for info, spec in zip([info for info in graph.input if info.name not in scope], signature.inputs, strict=True):
        dims = [_ROW_AXIS, *[_read_dim(dim, f"{spec.name}.{axis}") for axis, dim in enumerate(spec.shape[1:], 1)]]
        scope[info.name] = Value(tuple(dims), 0)
    try:
        walk.run_nodes(graph.node, scope, 0)
        faults = [fault for info in graph.output if (fault := _check_output(scope.get(info.name))) is not None]
    except RecursionError:
        faults = [Fault("its graphs are nested too deep, or too large, to be looked into", is_mixed=False)]
    fault = next((fault for fault in faults if fault.is_mixed), faults[0] if faults else None)
    if fault is None:
        return JoinVerdict("independent", "each row of the outputs is made of one row of the inputs, operator by operator"), False
    return JoinVerdict("dependent" if fault.is_mixed else "unknown", fault.why), fault.is_ordered


def _read_dim(dim: int, name: str) -> Dim:
    return named(name) if dim < 0 else fixed(dim)


def _check_output(value: Value | None) -> Fault | None:
    if value is None:
        return Fault("an output is not found", is_mixed=False)
    if value.fault is not None:
        return value.fault
    if value.is_counted:
        return Fault("an output depends on the number of rows, or on their places", is_mixed=True)
    if not value.is_rows:
        return Fault("an output does not depend on the inputs", is_mixed=False)
    if value.axis or value.known_shape[0] != _ROW_AXIS:
        return Fault("the first axis of an output is not known to be that of the rows", is_mixed=False)
    return None


class _Walk:
    """A walk through a model's graphs."""

    def __init__(self, model: Any) -> None:
        self._helper: Any = importlib.import_module("onnx.helper")
        self._numpy: Any = importlib.import_module("onnx.numpy_helper")
        self._opsets: dict[str, int] = {_domain(opset.domain): opset.version for opset in model.opset_import}
        self._num_nodes = 0
        self._functions = {(_domain(each.domain), each.name, getattr(each, "overload", "")): each for each in model.functions}
        self._own_ops = {(domain, name) for domain, name, _ in self._functions}
        self._calls = 0
        self._path = ""
        """Before the names of what an inner graph makes: each call, branch and turn makes tensors of its own."""

    def read_weights(self, graph: Any, scope: dict[str, Value]) -> None:
        """Know the weights of a graph."""
        for tensor in graph.initializer:
            scope[tensor.name] = self._read_tensor(tensor)
        for sparse in graph.sparse_initializer:
            scope[sparse.values.name] = Value(tuple(fixed(dim) for dim in sparse.dims))

    def _read_tensor(self, tensor: Any) -> Value:
        shape = tuple(fixed(dim) for dim in tensor.dims)
        is_small = math.prod(tensor.dims) <= MAX_CONTENT and tensor.data_location != _EXTERNAL
        if not is_small or tensor.data_type not in arithmetic.NUMBERS:
            return Value(shape)
        try:
            numbers = self._numpy.to_array(tensor).ravel().tolist()
            content = [arithmetic.dim_of(number) for number in numbers]
        except (TypeError, ValueError):
            return Value(shape)
        return Value(shape, content=tuple(dim for dim in content if dim is not None) if None not in content else None)

    def run_nodes(self, nodes: Iterable[Any], scope: dict[str, Value], depth: int) -> None:
        """Follow the operators of a graph in their order, each after those that it depends on."""
        for proto in nodes:
            self._num_nodes += 1
            if depth > MAX_DEPTH or self._num_nodes > MAX_NODES:
                raise RecursionError
            inputs = [self._look_up(scope, name) if name else None for name in proto.input]
            try:
                found = self._run_node(proto, inputs, scope, depth)
            except Fault as fault:
                # What went wrong first is told, not what came of it.
                told = fault if any(value is not None and value.fault is fault for value in inputs) else _tell(proto, fault)
                found = [Value(None, fault=told)] * len(proto.output)
            except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
                # The graph is not what its operators ask for; ONNX Runtime took it all the same.
                fault = Fault(f"it is not understood ({type(error).__name__})", is_mixed=False)
                found = [Value(None, fault=_tell(proto, fault))] * len(proto.output)
            scope.update((name, value) for name, value in zip(proto.output, found, strict=False) if name)

    def _look_up(self, scope: Mapping[str, Value], name: str) -> Value:
        value = scope.get(name)
        return value if value is not None else Value(None, fault=Fault(f"tensor {name[:60]!r} is not found", is_mixed=False))

    def _run_node(self, proto: Any, inputs: Sequence[Value | None], scope: dict[str, Value], depth: int) -> Sequence[Value]:
        domain = _domain(proto.domain)
        faults = [value.fault for value in inputs if value is not None and value.fault is not None]
        if faults:
            raise next((fault for fault in faults if fault.is_mixed), faults[0])
        if domain == "" and proto.op_type == "Constant":
            return [self._read_constant(proto)]
        handler = HANDLERS.get((domain, proto.op_type))
        if (domain, proto.op_type) in self._own_ops:
            if handler is not None or domain in ("", "com.microsoft"):
                unknown("the file defines an operator anew that has this name")
            return self._call(proto, inputs, depth)
        attributes = {attribute.name: self._helper.get_attribute_value(attribute) for attribute in proto.attribute}
        if handler is None:
            return self._run_unknown(proto, inputs, attributes)

        def run(graph: Any, values: Sequence[Value]) -> list[Value]:
            inner = dict(scope)
            self.read_weights(graph, inner)
            inner.update(zip([info.name for info in graph.input], values, strict=True))
            self._run_apart(graph.node, inner, depth)
            return [self._look_up(inner, info.name) for info in graph.output]

        if "value" in attributes and proto.op_type == "ConstantOfShape":
            attributes["value"] = self._numpy.to_array(attributes["value"])
        outputs = [name and self._path + name for name in proto.output]
        node = Node(proto.op_type, inputs, attributes, outputs, self._opsets.get(domain, 1), run)
        found = handler(node)
        values = _count([found] if isinstance(found, Value) else found, proto.op_type, inputs)
        if proto.op_type not in _GRAPHS:
            _check_meeting(inputs)
        for value in values:
            _check_lengths(value)
        return values

    def _run_unknown(self, proto: Any, inputs: Sequence[Value | None], attributes: Mapping[str, Any]) -> list[Value]:
        """An operator that is not in the table makes the same of what is the same, unless it draws numbers or holds graphs."""
        if proto.op_type in _RANDOM:
            unknown("it draws random numbers")
        holds_graph = any(hasattr(value, "node") for value in attributes.values())
        if holds_graph or any(value is not None and (value.is_rows or value.is_counted) for value in inputs):
            unknown("nothing is known of this operator")
        return [Value(None)] * len(proto.output)

    def _read_constant(self, proto: Any) -> Value:
        (attribute,) = proto.attribute
        value = self._helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return self._read_tensor(value)
        if attribute.name == "sparse_value":
            return Value(tuple(fixed(dim) for dim in value.dims))
        if "string" in attribute.name:
            return Value((fixed(len(value)),) if attribute.name.endswith("s") else ())
        numbers = list(value) if attribute.name.endswith("s") else [value]
        content = [arithmetic.dim_of(number) for number in numbers]
        shape = (fixed(len(numbers)),) if attribute.name.endswith("s") else ()
        return Value(shape, content=tuple(dim for dim in content if dim is not None) if None not in content else None)

    def _call(self, proto: Any, inputs: Sequence[Value | None], depth: int) -> list[Value]:
        """Follow a function that the file defines itself."""
        function = self._functions.get((_domain(proto.domain), proto.op_type, getattr(proto, "overload", "")))
        if function is None:
            unknown("the function that it calls is not found")
        if any(self._opsets.get(_domain(opset.domain), opset.version) != opset.version for opset in function.opset_import):
            unknown("a function of another version of the operators is not looked into")
        if any(attribute.ref_attr_name for node in function.node for attribute in node.attribute) and len(proto.attribute):
            unknown("a function with attributes is not looked into")
        inner = {name: value for name, value in zip(function.input, inputs, strict=False) if value is not None}
        self._run_apart(function.node, inner, depth)
        return [self._look_up(inner, name) for name in function.output]

    def _run_apart(self, nodes: Iterable[Any], scope: dict[str, Value], depth: int) -> None:
        """Follow the operators of an inner graph: what it names has other lengths in another graph, call or turn."""
        self._calls += 1
        before, self._path = self._path, f"{self._calls}:"
        self.run_nodes(nodes, scope, depth + 1)
        self._path = before


def _check_meeting(inputs: Sequence[Value | None]) -> None:
    """Rows that meet have as many entries each: else those of one would meet those of another.

    Raises:
        Fault: they have not.
    """
    if len({value.known_shape[value.axis] for value in inputs if value is not None and value.is_rows}) > 1:
        unknown("it takes rows together that have other numbers of entries")


def _check_lengths(value: Value) -> None:
    """What a row is made of has lengths that no other row has a part in.

    Raises:
        Fault: a length depends on the number of rows, or there are too many.
    """
    if len(value.shape or ()) > MAX_AXES:
        unknown("it gives more axes than are looked into")
    for axis, dim in enumerate(value.shape or ()) if value.is_rows else ():
        per_row = dim.over(_ROW_AXIS) if axis == value.axis else dim
        if per_row is None or per_row.is_tainted or (axis == value.axis and not per_row.is_length):
            unknown("the length of an axis depends on the number of rows")


def _count(values: Sequence[Value], op: str, inputs: Sequence[Value | None]) -> list[Value]:
    """Let each output depend on the number of rows where an input does, whatever the operator is.

    That of known numbers is in them; and where they are a shape, in the lengths of the output.
    """
    shape = _SHAPES.get(op)
    is_counted = op not in _OWN_COUNT and any(
        value.depends_on_count
        for index, value in enumerate(inputs)
        if value is not None and (index != shape or value.content is None)
    )
    return [
        value._replace(is_counted=True) if value.content is None and (is_counted or _is_long(value)) else value
        for value in values
    ]


def _is_long(value: Value) -> bool:
    """True for what is the same for each row, but as long as there are rows: a sum of it is not."""
    return not value.is_rows and any(dim.is_tainted for dim in value.shape or ())


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _tell(proto: Any, fault: Fault) -> Fault:
    name = f" {proto.name[:60]!r}" if proto.name else ""
    return Fault(f"operator {proto.op_type}{name}: {fault.why}", is_mixed=fault.is_mixed, is_ordered=fault.is_ordered)
