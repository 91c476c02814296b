"""Metrics of a run: which are measured, of which output, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import Framework
from argosy.frameworks.trees import Tree, is_named, is_ordered
from argosy.train.elements import describe_form
from argosy.train.losses import METRICS, Criterion, get_metric, resolve_loss
from argosy.train.places import Place, get_part, list_places

__all__ = ["Measure", "Metrics", "sort_metrics"]


class Measure(NamedTuple):
    """A metric as it is measured."""

    name: str
    is_mean: bool
    """A mean over rows, so that means of mini-batches make that of an epoch; others are measured on validation rows alone."""
    compute: Callable[[Tree, Tree], float]
    """From all outputs and targets."""


@dataclass(frozen=True)
class Metrics:
    """Those that a user names."""

    plain: Any = ()
    """Of any output: names, and metrics of the framework's own."""
    by_output: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, "tuple[Any, ...]"])
    """Those that were named for an output."""
    own: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict[str, "Callable[[Any, Any], Any]"])
    """Functions of the user's own, of all outputs and targets."""
    is_default: bool = True
    """None were named."""

    def list_measures(self, framework: Framework, criteria: Tree) -> tuple[Measure, ...]:
        """Give the metrics that are measured with such losses.

        Raises:
            InputError: `bad_option`, one does not suit its loss, or its output has none.
        """
        places = list_places(criteria)
        outputs = {str(place[0]): place[0] for place, _ in places if place}
        if strange := self.by_output.keys() - outputs.keys():
            expected = f"names of outputs that have losses: {list_choices(outputs)}"
            raise InputError("bad_option", option="metrics", got=list_choices(strange), expected=expected)
        found = [
            measure
            for place, criterion in places
            for measure in _list_at(place, self._choose(framework, place, criterion), is_default=self.is_default)
        ]
        return (*found, *(Measure(name, False, _measure_own(name, function)) for name, function in self.own.items()))

    def _choose(self, framework: Framework, place: Place, criterion: Criterion) -> Criterion:
        chosen = self.by_output.get(str(place[0]), ()) if place else ()
        if not chosen:
            return criterion
        named = resolve_loss(criterion.loss, framework, metrics=chosen)
        return replace(criterion, chosen=named.chosen, own_metrics=named.own_metrics)


def sort_metrics(metrics: Any) -> Metrics:
    """Tell metrics apart that are named for an output, functions of the user's own, and those for any output.

    Raises:
        InputError: `bad_option`, a dict holds something else.
    """
    if not is_named(metrics):
        return Metrics(() if metrics is None else metrics, is_default=metrics is None)
    by_output: dict[str, tuple[Any, ...]] = {}
    own: dict[str, Callable[[Any, Any], Any]] = {}
    plain: list[Any] = []
    for key, value in metrics.items():
        if is_ordered(value):
            by_output[str(key)] = tuple(value)
        elif callable(value):
            own[str(key)] = value
        elif isinstance(value, str) and key == value:
            plain.append(value)
        else:
            expected = "a dict of functions (outputs, targets) by name, or of lists of metrics by output"
            raise InputError("bad_option", option="metrics", got={key: value}, expected=expected)
    return Metrics(tuple(plain), by_output, own, is_default=False)


def _list_at(place: Place, criterion: Criterion, *, is_default: bool) -> list[Measure]:
    """List what is measured of one output."""
    names = criterion.chosen
    if is_default and not names:
        names = criterion.metrics[:1] if criterion.is_ours else ()
    for name in names:
        if name not in criterion.metrics and name not in criterion.own_metrics:
            expected = f"metrics that suit the loss {criterion.name}: {', '.join(criterion.metrics)}"
            raise InputError("bad_option", option="metrics", got=name, expected=expected)
    return [
        Measure("_".join(map(str, (*place, name))), criterion.is_mean(name), _measure_at(criterion, name, place))
        for name in names
    ]


def _measure_at(criterion: Criterion, name: str, place: Place) -> Callable[[Tree, Tree], float]:
    if name in METRICS and criterion.is_ours:
        compute = get_metric(name).compute
    elif name in criterion.own_metrics:
        compute = criterion.own_metrics[name].compute
    else:

        def compute(outputs: Any, targets: Any, /) -> float:
            return criterion.get_metric(name, targets)(outputs, targets)

    return compute if not place else lambda outputs, targets: compute(get_part(outputs, place), get_part(targets, place))


def _measure_own(name: str, function: Callable[[Any, Any], Any]) -> Callable[[Tree, Tree], float]:
    def measure(outputs: Tree, targets: Tree) -> float:
        value = function(outputs, targets)
        try:
            if isinstance(value, str | bytes):
                raise TypeError("it is a text")
            return float(value)
        except (TypeError, ValueError) as error:
            expected = "functions of outputs and targets that give a number"
            raise InputError("bad_option", option=f"metrics[{name}]", got=describe_form(value), expected=expected) from error

    return measure
