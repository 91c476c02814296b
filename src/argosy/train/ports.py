"""What a live model takes and gives, found out by its sample: names, rows, and axes of any length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import Framework
from argosy.frameworks.ports import Ports
from argosy.frameworks.trees import Tree, count_rows, list_leaves, name_tree, pack, take_rows, unpack
from argosy.signature import Arrays, Ragged, datatype_of
from argosy.train.data import check_rows

__all__ = ["Names", "find_ports", "read_sample"]

Names = str | Sequence[str] | None
"""One name: of the only tensor, or what the names of several in order begin with; several: of all; None: the model's own."""

_NUM_TRIED: Final = 8
"""Rows of a call that is to tell whether first axes count rows."""
_SIZES: Final = (1, 2, 3)
"""Numbers of rows that are tried: an output that is as long as a sample by chance is not so long for all of these."""


def read_sample(framework: Framework, model: Any, sample: object) -> Tree:
    """Give a sample as a tree of arrays: an array, a tuple or a dict of samples; None for an input that is not given.

    A dict gets the order in which the model takes its inputs.

    Raises:
        InputError: `bad_data`, something in it is no tensor of numbers.
    """
    dtype = framework.float_dtype(model)
    tree = _read(sample, "x", dtype)
    if not list_leaves(tree):
        raise InputError("bad_data", detail="the sample holds no tensor, expected an array, or several in a tuple or a dict")
    if isinstance(tree, dict):
        named = cast("dict[str, Any]", tree)
        known = [name for name in framework.list_arguments(model) if name in named]
        return {name: named[name] for name in (*known, *(name for name in named if name not in known))}
    return tree


def _read(value: object, place: str, dtype: np.dtype[Any]) -> Tree:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {str(name): _read(item, f"x[{name!r}]", dtype) for name, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, tuple):
        items = cast("tuple[Any, ...]", value)
        return tuple(_read(item, f"{place}[{number}]", dtype) for number, item in enumerate(items))
    array = _to_array(value)
    try:
        # A number among other tensors has no axis.
        return check_rows(array, dtype) if array.ndim or place == "x" else check_rows(array[None], dtype)[0, ...]
    except InputError as error:
        if error.key != "bad_data" or place == "x":
            raise
        raise InputError("bad_data", detail=f"{place}: {error.fields['detail']}") from error


def _to_array(value: Any) -> NDArray[Any]:
    """Make an array of anything that is one tensor: of a framework, too.

    Raises:
        InputError: `bad_data`.
    """
    try:
        if hasattr(value, "detach"):
            value = value.detach()
        return np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)
    except Exception as error:  # Frameworks refuse with what they like: for a device, a type, a sparse layout.
        detail = f"NumPy makes no array of a {type(value).__qualname__}: {error}; several inputs are given as a tuple or a dict"
        raise InputError("bad_data", detail=detail) from error


def find_ports(
    framework: Framework,
    model: Any,
    sample: Tree,
    *,
    input_name: Names = None,
    output_name: Names = None,
    dynamic: Mapping[str, Sequence[int]] | None = None,
    ragged: Ragged | None = None,
) -> tuple[Ports, Arrays]:
    """Run a model on its sample, and say what its tensors are.

    First axes count rows if all tensors have as many there, for every number of rows that is tried.

    Returns:
        The ports, and the outputs for the sample, of its first rows if there are rows.

    Raises:
        InputError: `bad_data`, the model fails on the sample, or gives what is no tensor; `bad_option`, the names or axes.
    """
    inputs = _name_inputs(framework, model, sample, input_name)
    arrays = unpack(sample, inputs)
    outputs, has_rows = _try_rows(framework, model, sample)
    _check_dynamic(arrays, dynamic or {}, first=1 if has_rows else 0)
    names = name_tree(outputs, "output_name", *_choose(output_name, "output"))
    made = unpack(outputs, names)
    for name, array in made.items():
        try:
            datatype_of(array.dtype)
        except InputError as error:
            raise InputError("unsupported_type", tensor=name, got=array.dtype, known=error.fields["known"]) from error
    if dynamic is not None:
        axes = {name: tuple(dynamic.get(name, ())) for name in arrays}
    else:
        axes = dict(zip(arrays, framework.list_free_axes(model, sample), strict=True))
    if dynamic is None and not has_rows:
        axes = {name: (*_try_first(framework, model, arrays, inputs, name), *own) for name, own in axes.items()}
    if ragged is not None:
        _check_ragged(arrays, made, ragged, has_rows=has_rows)
        axes |= {name: (*axes[name], item.axis) for name, item in ragged.inputs.items()}
    free = {name: tuple(sorted({*own})) for name, own in axes.items()}
    return Ports(inputs=inputs, outputs=names, free=free, has_rows=has_rows), made


def _choose(names: Names, stem: str) -> tuple[str, Sequence[str] | None]:
    """Give what names begin with, and the names themselves, if there are several."""
    if names is None or isinstance(names, str):
        return stem if names is None else names, None
    # A user may give anything, which is no name then.
    return stem, list(cast("Iterable[str]", names)) if isinstance(cast("object", names), Iterable) else [cast("str", names)]


def _name_inputs(framework: Framework, model: Any, sample: Tree, input_name: Names) -> Tree:
    items = cast("tuple[Any, ...]", sample) if isinstance(sample, tuple) else ()
    arguments = framework.list_arguments(model)
    if input_name is None and len(list_leaves(sample)) > 1 and 0 < len(items) <= len(arguments):
        named = name_tree(dict(zip(arguments, items, strict=False)), "input_name", "input")
        return tuple(cast("dict[str, Any]", named).values())
    return name_tree(sample, "input_name", *_choose(input_name, "input"))


def _try_rows(framework: Framework, model: Any, sample: Tree) -> tuple[Tree, bool]:
    """Give the outputs, and whether the first axis of every tensor counts rows."""
    try:
        num_rows = count_rows(sample)
    except InputError:
        num_rows = 0
    if not num_rows:
        return framework.answer(model, sample), False
    # The sample itself may fail; other numbers of rows may not.
    size = min(num_rows, _NUM_TRIED)
    try:
        outputs = framework.answer(model, take_rows(sample, slice(size)))
    except InputError:
        if size == num_rows:
            raise
        return framework.answer(model, sample), False
    wanted = [leaf.shape[1:] for leaf in list_leaves(outputs)]
    for count in (size, *_SIZES):
        try:
            found = list_leaves(framework.answer(model, take_rows(sample, np.arange(count) % num_rows)))
        except InputError:
            found = []
        if [leaf.shape for leaf in found] != [(count, *shape) for shape in wanted]:
            return framework.answer(model, sample), False
    return outputs, True


def _try_first(framework: Framework, model: Any, arrays: Arrays, inputs: Tree, name: str) -> tuple[int, ...]:
    """Say whether the first axis of an input may be longer, alone or together with all that are as long."""
    if not arrays[name].ndim:
        return ()
    same = [other for other, array in arrays.items() if array.shape[:1] == arrays[name].shape[:1]]
    for moved in (same, [name]):
        longer = {other: np.concatenate([arrays[other], arrays[other][:1]]) for other in moved}
        try:
            framework.answer(model, pack(arrays | longer, inputs))
        except InputError:
            continue
        return (0,)
    return ()


def _check_dynamic(arrays: Arrays, dynamic: Mapping[str, Sequence[int]], *, first: int) -> None:
    """See that axes are named that there are.

    Raises:
        InputError: `bad_option`.
    """
    for name, axes in dynamic.items():
        rank = arrays[name].ndim if name in arrays else 0
        known = isinstance(axes, list | tuple) and all(type(axis) is int and first <= axis < rank for axis in axes)
        if not known or len(set(axes)) != len(axes):
            raise _fail_axes("dynamic", {name: axes}, arrays, first)


def _check_ragged(arrays: Arrays, outputs: Arrays, ragged: Ragged, *, has_rows: bool) -> None:
    """See that there are such axes, which are all as long in the sample.

    Raises:
        InputError: `bad_option`.
    """
    if not has_rows:
        expected = "tensors whose first axis counts rows, as that of every input and output must"
        raise InputError("bad_option", option="ragged", got=list(ragged.inputs), expected=expected)
    if not ragged.inputs:
        raise InputError("bad_option", option="ragged", got=[], expected=f"inputs of {list_choices(arrays)}")
    for known, axes in ((arrays, {name: item.axis for name, item in ragged.inputs.items()}), (outputs, ragged.outputs)):
        for name, axis in axes.items():
            if name not in known or type(axis) is not int or not 0 < axis < known[name].ndim:
                raise _fail_axes("ragged", {name: axis}, known, 1)
    lengths = {name: arrays[name].shape[item.axis] for name, item in ragged.inputs.items()}
    if len(set(lengths.values())) > 1:
        raise InputError("bad_option", option="ragged", got=lengths, expected="axes that are equally long in the sample")


def _fail_axes(option: str, got: object, known: Arrays, first: int) -> InputError:
    shown = ", ".join(f"{name!r} of shape {list(array.shape)}" for name, array in known.items())
    expected = f"axes from {first} on by a tensor's name; there are {shown}"
    return InputError("bad_option", option=option, got=got, expected=expected)
