"""What a run makes small and what it is judged by: a loss for each output, their weights, names of classes, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import Batch, Framework, name_kind
from argosy.frameworks.trees import Tree, map_tree
from argosy.optim.schedules import check_number
from argosy.train.elements import describe_form
from argosy.train.losses import METRICS, Criterion, get_metric, resolve_loss

__all__ = ["Measure", "Objective", "choose_metrics", "describe_function", "list_places", "open_objective"]

Place = tuple[str | int, ...]
"""Where an output stands among several: names and numbers from the outside to the inside."""

_CLASSES: Final = ("binary_cross_entropy", "cross_entropy")


class Measure(NamedTuple):
    """A metric as it is measured."""

    name: str
    is_mean: bool
    """A mean over rows, so that means of mini-batches make that of an epoch; others are measured on validation rows alone."""
    compute: Callable[[Tree, Tree], float]
    """From all outputs and targets."""


@dataclass(frozen=True)
class Objective:
    """See above. Its losses are `Criterion`s, in a form that the outputs have, too."""

    framework: Framework
    criteria: Tree
    """None with a step of the user's own and no loss beside it."""
    factors: Tree = None
    """Of the losses, in their form."""
    labels: Mapping[Place, tuple[str, ...]] = field(default_factory=dict[Place, "tuple[str, ...]"])
    """Names of classes, where targets are names."""
    class_weights: Mapping[Any, float] | None = None
    by_output: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, "tuple[Any, ...]"])
    """Metrics that were named for an output."""
    own_metrics: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict[str, "Callable[[Any, Any], Any]"])
    is_default: bool = True
    """No metrics were named."""

    @property
    def loss(self) -> Tree:
        """What `Framework.build_step` is given."""
        return None if self.criteria is None else map_tree(lambda criterion: criterion.loss, self.criteria)

    @property
    def criterion(self) -> Criterion | None:
        """The only loss, if there is one alone."""
        return self.criteria if isinstance(self.criteria, Criterion) else None

    def describe(self) -> Any:
        """Give the losses as JSON data."""
        if self.criteria is None:
            return None
        described = map_tree(lambda criterion: criterion.describe(), self.criteria)
        return list(described) if isinstance(described, tuple) else described

    def fit_outputs(self, outputs: Tree) -> Objective:
        """Give the objective for a model that gives such outputs.

        Raises:
            InputError: `bad_option`, the losses have another form.
        """
        if self.criteria is None:
            return self
        return replace(self, criteria=_spread(self.criteria, outputs, "the model"), factors=self._fit_factors(outputs))

    def _fit_factors(self, outputs: Tree) -> Tree:
        if self.factors is None:
            return None
        criteria = _spread(self.criteria, outputs, "the model")
        return _match(self.factors, criteria)

    def prepare(self, targets: Tree, outputs: Tree, dtype: np.dtype[Any]) -> Tree:
        """Bring targets into the form that the losses take, and check ours against the model's outputs.

        Args:
            targets: arrays, in a form that holds that of the losses.
            outputs: of the model, for a few rows.
            dtype: of the model's numbers with a fraction.

        Raises:
            InputError: `bad_data`.
        """
        if self.criteria is None:
            return targets
        return self._prepare(self.criteria, targets, outputs, dtype, ())

    def _prepare(self, criteria: Tree, targets: Tree, outputs: Tree, dtype: np.dtype[Any], place: Place) -> Tree:
        if not isinstance(criteria, Criterion):
            _check_form(criteria, targets, "y")
            return _join(criteria, lambda key, part: self._prepare(part, targets[key], outputs[key], dtype, (*place, key)))
        if targets is None:
            if criteria.is_ours:
                raise InputError("bad_data", detail=f"there are no targets{_name(place)}, which the loss {criteria.name} takes")
            return None
        if not isinstance(targets, np.ndarray) or not isinstance(outputs, np.ndarray):
            if criteria.is_ours:
                got = describe_form(targets)
                raise InputError("bad_data", detail=f"y is {got}{_name(place)}, expected an array for the loss {criteria.name}")
            return map_tree(lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, targets)
        given = cast("NDArray[Any]", targets)
        if given.dtype.kind in "OUS":
            given = self._number(given, criteria, place)
        return criteria.prepare(given, cast("NDArray[Any]", outputs).shape, dtype)

    def _number(self, names: NDArray[Any], criterion: Criterion, place: Place) -> NDArray[Any]:
        """Give the numbers of classes that are named.

        Raises:
            InputError: `bad_data`.
        """
        known = self.labels.get(place)
        if known is None or (criterion.is_ours and criterion.name not in _CLASSES):
            hint = " or give their names as `labels`" if criterion.name in _CLASSES or not criterion.is_ours else ""
            raise InputError("bad_data", detail=f"y has type {names.dtype}{_name(place)}, expected numbers{hint}")
        numbers = {label: number for number, label in enumerate(known)}
        texts = [_to_text(name) for name in names.ravel()]
        if strange := {text for text in texts if text not in numbers}:
            detail = f"{list_choices(map(repr, strange), limit=3)} is no class{_name(place)}; there are {list_choices(known)}"
            raise InputError("bad_data", detail=detail)
        return np.array([numbers[text] for text in texts], np.int64).reshape(names.shape)

    def find_labels(self, targets: Tree) -> Objective:
        """Give the objective with the names of classes that targets hold: sorted, unless they were given."""
        if self.criteria is None or targets is None:
            return self
        found = dict(self.labels)

        def look(criteria: Tree, given: Tree, place: Place) -> None:
            if isinstance(criteria, Criterion):
                if isinstance(given, np.ndarray) and given.dtype.kind in "OUS" and place not in found:
                    found[place] = tuple(sorted({_to_text(name) for name in given.ravel()}))
                return
            _check_form(criteria, given, "y")
            _join(criteria, lambda key, part: look(part, given[key], (*place, key)))

        look(self.criteria, targets, ())
        return replace(self, labels=found)

    def weigh(self, batch: Batch, dtype: np.dtype[Any]) -> Batch:
        """Give a batch of prepared targets with the weights of their classes."""
        if self.class_weights is None:
            return batch
        targets = cast("NDArray[Any]", batch.targets)
        known = self.labels.get((), ())
        numbers = {label: number for number, label in enumerate(known)}
        classes: NDArray[Any] = np.rint(targets).astype(np.int64).reshape(len(targets), -1)[:, 0]
        weights = np.ones(len(targets), dtype)
        for label, weight in self.class_weights.items():
            weights[classes == numbers.get(label, label)] = weight
        return batch._replace(weights=weights if batch.weights is None else batch.weights * weights)

    def compute(self, outputs: Tree, targets: Tree, weights: NDArray[Any] | None = None) -> float:
        """Give the loss of outputs: the sum over the outputs."""
        return _compute(self.criteria, self.factors, outputs, targets, weights)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The metrics that are measured.

        Raises:
            InputError: `bad_option`, one does not suit its loss.
        """
        found: list[Measure] = []
        for place, criterion in list_places(self.criteria) if self.criteria is not None else ():
            chosen = tuple(self.by_output.get(str(place[0]), ())) if place and self.by_output else None
            if chosen:
                named = resolve_loss(criterion.loss, self.framework, metrics=chosen)
                criterion = replace(criterion, chosen=named.chosen, own_metrics=named.own_metrics)
            is_default = self.is_default and not self.by_output
            for name in choose_metrics(criterion, is_default=is_default):
                shown = "_".join(map(str, (*place, name)))
                found.append(Measure(shown, criterion.is_mean(name), _measure_at(criterion, name, place)))
        for name, function in self.own_metrics.items():
            found.append(Measure(name, False, _measure_own(name, function)))
        return tuple(found)

    def describe_metrics(self) -> dict[str, Any]:
        """Give the metrics of the user's own as JSON data: their code."""
        return {name: describe_function(self.framework, function) for name, function in self.own_metrics.items()}


def describe_function(framework: Framework, function: Any) -> dict[str, Any]:
    """Give a function of the user's as JSON data: its name, code and what it uses."""
    part = framework.describe_loss(function)
    return {"name": name_kind(function)} if part is None else {"name": part.name, **part.parameters}


def choose_metrics(criterion: Criterion, *, is_default: bool) -> tuple[str, ...]:
    """Give the names of the metrics that are measured of an output.

    Raises:
        InputError: `bad_option`, one does not suit the loss.
    """
    if is_default and not criterion.chosen:
        return criterion.metrics[:1] if criterion.is_ours else ()
    for metric in criterion.chosen:
        if metric not in criterion.metrics and metric not in criterion.own_metrics:
            expected = f"metrics that suit the loss {criterion.name}: {', '.join(criterion.metrics)}"
            raise InputError("bad_option", option="metrics", got=metric, expected=expected)
    return criterion.chosen


def open_objective(
    framework: Framework,
    loss: Any,
    *,
    loss_weights: Any = None,
    class_weights: Any = None,
    labels: Any = None,
    metrics: Any = None,
    is_own_step: bool = False,
) -> Objective:
    """Make an objective of what a user names.

    Args:
        framework: the model's.
        loss: see `train.run.train`; None with a step of the user's own.
        loss_weights: a number for each loss, in their form.
        class_weights: a number for each class.
        labels: names of classes in their order; of several outputs a dict by output.
        metrics: names, metrics of the framework's own; a dict of functions by name, or of lists by output.
        is_own_step: there is one, so that the loss is for validation alone.

    Raises:
        InputError: `bad_option`, `unknown_choice`.
    """
    by_output, own, plain = _sort_metrics(metrics)
    if loss is None and is_own_step:
        if plain or by_output:
            raise InputError("bad_option", option="metrics", got=metrics, expected="functions by name, with a step of one's own")
        return Objective(framework, None, own_metrics=own)
    criteria = _resolve(loss, framework, plain)
    weights = None if class_weights is None else _check_class_weights(class_weights)
    if weights is not None and (not isinstance(criteria, Criterion) or is_own_step):
        raise InputError("bad_option", option="class_weights", got=class_weights, expected="None but with a single loss")
    return Objective(
        framework,
        criteria,
        None if loss_weights is None else _check_factors(loss_weights),
        _read_labels(labels),
        weights,
        by_output,
        own,
        metrics is None,
    )


def _sort_metrics(metrics: Any) -> tuple[dict[str, tuple[Any, ...]], dict[str, Callable[[Any, Any], Any]], tuple[Any, ...]]:
    """Tell metrics apart that are named for an output, functions of the user's own, and those for any output."""
    if not isinstance(metrics, Mapping):
        return {}, {}, () if metrics is None else metrics
    by_output: dict[str, tuple[Any, ...]] = {}
    own: dict[str, Callable[[Any, Any], Any]] = {}
    plain: list[Any] = []
    for key, value in cast("Mapping[Any, Any]", metrics).items():
        if isinstance(value, tuple | list):
            by_output[str(key)] = tuple(cast("Sequence[Any]", value))
        elif callable(value):
            own[str(key)] = value
        elif isinstance(value, str) and key == value:
            plain.append(value)
        else:
            expected = "a dict of functions (outputs, targets) by name, or of lists of metrics by output"
            raise InputError("bad_option", option="metrics", got={key: value}, expected=expected)
    return by_output, own, tuple(plain)


def _resolve(loss: Any, framework: Framework, metrics: Any) -> Tree:
    if isinstance(loss, Mapping):
        parts = cast("Mapping[Any, Any]", loss).items()
        return {str(name): _resolve(part, framework, metrics) for name, part in parts}
    if isinstance(loss, tuple | list):
        return tuple(_resolve(part, framework, metrics) for part in cast("Sequence[Any]", loss))
    return resolve_loss(loss, framework, metrics=metrics)


def _check_class_weights(given: Any) -> dict[Any, float]:
    if not isinstance(given, Mapping) or not given:
        raise InputError("bad_option", option="class_weights", got=given, expected="a dict of a number for each class")
    weights = dict(cast("Mapping[Any, Any]", given))
    for weight in weights.values():
        check_number("class_weights", weight, "finite numbers, at least 0", lowest=0.0)
    return weights


def _check_factors(given: Any) -> Tree:
    def check(leaf: Any) -> float:
        check_number("loss_weights", leaf, "finite numbers, at least 0, in the form of the losses", lowest=0.0)
        return float(leaf)

    return map_tree(check, given)


def _read_labels(labels: Any) -> dict[Place, tuple[str, ...]]:
    if labels is None:
        return {}
    found: dict[Place, tuple[str, ...]] = {}
    named = cast("Mapping[Any, Any]", labels).items() if isinstance(labels, Mapping) else [((), labels)]
    for key, names in named:
        texts: tuple[Any, ...] = tuple(names) if isinstance(names, Sequence) and not isinstance(names, str) else ()
        if not texts or len(set(texts)) != len(texts) or not all(isinstance(text, str) for text in texts):
            raise InputError("bad_option", option="labels", got=names, expected="different names of classes, in their order")
        found[key if key == () else (key,)] = texts
    return found


def _spread(criteria: Tree, outputs: Tree, whose: str) -> Tree:
    """Give losses in a form that the outputs have: one of ours, named for several, is that of each."""
    if isinstance(criteria, Criterion):
        if criteria.is_ours and isinstance(outputs, Mapping | tuple):
            return map_tree(lambda leaf: criteria, outputs)
        return criteria
    _check_form(criteria, outputs, whose)
    return _join(criteria, lambda key, part: _spread(part, outputs[key], whose))


def _match(factors: Tree, criteria: Tree) -> Tree:
    """Hold factors against the form of the losses."""
    if isinstance(criteria, Criterion) != isinstance(factors, float):
        got = describe_form(factors) if not isinstance(factors, float) else factors
        raise InputError("bad_option", option="loss_weights", got=got, expected="numbers in the form of the losses")
    if isinstance(criteria, Criterion):
        return factors
    if isinstance(criteria, Mapping):
        filled = (
            {**dict.fromkeys(cast("Mapping[str, Any]", criteria), 1.0), **factors} if isinstance(factors, Mapping) else factors
        )
    else:
        filled = factors
    if len(filled) != len(criteria):
        raise InputError("bad_option", option="loss_weights", got=factors, expected="numbers in the form of the losses")
    _check_form(criteria, filled, "loss_weights")
    return _join(criteria, lambda key, part: _match(filled[key], part))


def _check_form(criteria: Tree, given: Tree, whose: str) -> None:
    """See that something has the parts that losses are for.

    Raises:
        InputError: `bad_option`.
    """
    if isinstance(criteria, Mapping):
        wanted = cast("Mapping[str, Any]", criteria)
        if isinstance(given, Mapping) and wanted.keys() <= cast("Mapping[str, Any]", given).keys():
            return
        expected = f"losses for what {whose} gives"
        raise InputError(
            "bad_option", option="loss", got=f"a dict for {list_choices(wanted)}", expected=f"{expected}: {_show(given)}"
        )
    if not isinstance(given, tuple) or len(cast("tuple[Any, ...]", given)) != len(criteria):
        expected = f"losses for what {whose} gives: {_show(given)}"
        raise InputError("bad_option", option="loss", got=f"a tuple of {len(criteria)}", expected=expected)


def _show(tree: Tree) -> str:
    return "nothing" if tree is None else describe_form(tree)


def _join(criteria: Tree, function: Callable[[Any, Any], Any]) -> Tree:
    """Give a tree of one level of the losses' form, of what a function makes of each key and part."""
    if isinstance(criteria, Mapping):
        return {key: function(key, part) for key, part in cast("Mapping[str, Any]", criteria).items()}
    return tuple(function(index, part) for index, part in enumerate(criteria))


def _compute(criteria: Tree, factors: Tree, outputs: Tree, targets: Tree, weights: NDArray[Any] | None) -> float:
    if isinstance(criteria, Criterion):
        factor = 1.0 if factors is None else factors
        if weights is None:
            return factor * criteria.compute(outputs, targets)
        return factor * criteria.compute_weighted(outputs, targets, weights)
    keys: Any = criteria if isinstance(criteria, Mapping) else range(len(criteria))
    return sum(_compute(criteria[key], factors and factors[key], outputs[key], targets[key], weights) for key in keys)


def list_places(criteria: Tree, place: Place = ()) -> list[tuple[Place, Criterion]]:
    """List the losses with where they stand."""
    if isinstance(criteria, Criterion):
        return [(place, criteria)]
    keys: Any = criteria if isinstance(criteria, Mapping) else range(len(criteria))
    return [found for key in keys for found in list_places(criteria[key], (*place, key))]


def _measure_at(criterion: Criterion, name: str, place: Place) -> Callable[[Tree, Tree], float]:
    if name in METRICS and criterion.is_ours:
        compute = get_metric(name).compute
        if not place:
            return compute
    elif name in criterion.own_metrics:
        compute = criterion.own_metrics[name].compute
    else:

        def compute(outputs: Any, targets: Any) -> float:
            return criterion.get_metric(name, targets)(outputs, targets)

    def measure(outputs: Tree, targets: Tree) -> float:
        for key in place:
            outputs, targets = outputs[key], targets[key]
        return compute(outputs, targets)

    return measure


def _measure_own(name: str, function: Callable[[Any, Any], Any]) -> Callable[[Tree, Tree], float]:
    def measure(outputs: Tree, targets: Tree) -> float:
        value = function(outputs, targets)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            expected = "functions of outputs and targets that give a number"
            raise InputError("bad_option", option=f"metrics[{name}]", got=describe_form(value), expected=expected) from error

    return measure


def _to_text(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _name(place: Place) -> str:
    return f" for output {'.'.join(map(str, place))}" if place else ""
