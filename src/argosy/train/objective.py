"""What a run makes small and what it is judged by: a loss for each output, their weights, names of classes, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import Batch, Framework, name_kind
from argosy.frameworks.trees import Tree, is_array, is_named, is_ordered, map_tree
from argosy.optim.schedules import check_number
from argosy.train.elements import describe_form
from argosy.train.losses import Criterion, resolve_loss
from argosy.train.measures import Measure, Metrics, sort_metrics
from argosy.train.places import Place, check_form, get_part, join_parts, list_places, match_factors, name_place, spread_losses

__all__ = ["Objective", "describe_function", "open_objective"]

_CLASSES: Final = ("binary_cross_entropy", "cross_entropy")
_SINGLE: Final = "None but with a single loss"


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
    metrics: Metrics = field(default_factory=Metrics)

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
        return list(described) if is_ordered(described) else described

    def bind(self, outputs: Tree, targets: Tree) -> Objective:
        """Give the objective for a model that gives such outputs, with the names of classes that targets hold.

        Args:
            outputs: of the model, for a few rows.
            targets: all, as they are given; None if they are not at hand.

        Raises:
            InputError: `bad_option`, losses, their factors, names or weights of classes are for something else.
        """
        if self.criteria is None:
            return self
        criteria = spread_losses(self.criteria, outputs)
        factors = None if self.factors is None else match_factors(self.factors, criteria)
        known = {place for place, _ in list_places(criteria)}
        if strange := [place for place in self.labels if place not in known]:
            got, expected = list_choices(".".join(map(str, place)) for place in strange), "names for outputs that have losses"
            raise InputError("bad_option", option="labels", got=got or "one list", expected=expected)
        bound = replace(self, criteria=criteria, factors=factors)
        if targets is not None:
            bound = replace(bound, labels={**_find_labels(criteria, targets, ()), **self.labels})
        bound._check_classes()
        return bound

    def _check_classes(self) -> None:
        """Refuse weights of classes by names that no class has."""
        known = self.labels.get((), ())
        if self.class_weights is None:
            return
        if not isinstance(self.criteria, Criterion):
            raise InputError("bad_option", option="class_weights", got=self.class_weights, expected=_SINGLE)
        strange = [label for label in self.class_weights if isinstance(label, str) and label not in known]
        if strange:
            expected = f"classes by number, or by name: {list_choices(known)}"
            raise InputError("bad_option", option="class_weights", got=list_choices(strange), expected=expected)

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
            check_form(criteria, targets, "y")
            return join_parts(criteria, lambda key, part: self._prepare(part, targets[key], outputs[key], dtype, (*place, key)))
        if targets is None:
            if criteria.is_ours:
                raise InputError(
                    "bad_data", detail=f"there are no targets{name_place(place)}, which the loss {criteria.name} takes"
                )
            return None
        if not is_array(targets) or not is_array(outputs):
            if criteria.is_ours:
                got = describe_form(targets)
                raise InputError(
                    "bad_data", detail=f"y is {got}{name_place(place)}, expected an array for the loss {criteria.name}"
                )
            return map_tree(lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, targets)
        given = self._number(targets, criteria, place) if targets.dtype.kind in "OUS" else targets
        return criteria.prepare(given, outputs.shape, dtype)

    def _number(self, names: NDArray[Any], criterion: Criterion, place: Place) -> NDArray[Any]:
        """Give the numbers of classes that are named.

        Raises:
            InputError: `bad_data`.
        """
        known = self.labels.get(place)
        if known is None or (criterion.is_ours and criterion.name not in _CLASSES):
            hint = " or give their names as `labels`" if criterion.name in _CLASSES or not criterion.is_ours else ""
            raise InputError("bad_data", detail=f"y has type {names.dtype}{name_place(place)}, expected numbers{hint}")
        numbers = {label: number for number, label in enumerate(known)}
        texts = [_to_text(name) for name in names.ravel()]
        if strange := {text for text in texts if text not in numbers}:
            detail = (
                f"{list_choices(map(repr, strange), limit=3)} is no class{name_place(place)}; there are {list_choices(known)}"
            )
            raise InputError("bad_data", detail=detail)
        return np.array([numbers[text] for text in texts], np.int64).reshape(names.shape)

    def weigh(self, batch: Batch, dtype: np.dtype[Any]) -> Batch:
        """Give a batch of prepared targets with the weights of their classes."""
        if self.class_weights is None:
            return batch
        numbers = {label: number for number, label in enumerate(self.labels.get((), ()))}
        classes = _read_classes(batch.targets)
        weights = np.ones(len(classes), dtype)
        for label, weight in self.class_weights.items():
            weights[classes == numbers.get(label, label)] = weight
        return batch._replace(weights=weights if batch.weights is None else batch.weights * weights)

    def compute(self, outputs: Tree, targets: Tree, weights: NDArray[Any] | None = None) -> float:
        """Give the loss of outputs: the sum over the outputs."""
        return sum(
            (1.0 if self.factors is None else get_part(self.factors, place))
            * _compute(criterion, get_part(outputs, place), get_part(targets, place), weights)
            for place, criterion in list_places(self.criteria)
        )

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The metrics that are measured.

        Raises:
            InputError: `bad_option`, one does not suit its loss, or its output has none.
        """
        return self.metrics.list_measures(self.framework, self.criteria)

    def describe_metrics(self) -> dict[str, Any]:
        """Give the metrics of the user's own as JSON data: their code."""
        return {name: describe_function(self.framework, function) for name, function in self.metrics.own.items()}


def describe_function(framework: Framework, function: Any) -> dict[str, Any]:
    """Give a function of the user's as JSON data: its name, code and what it uses."""
    part = framework.describe_loss(function)
    return {"name": name_kind(function)} if part is None else {"name": part.name, **part.parameters}


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
    named = sort_metrics(metrics)
    if loss is None and is_own_step:
        if named.plain or named.by_output:
            raise InputError("bad_option", option="metrics", got=metrics, expected="functions by name, with a step of one's own")
        return Objective(framework, None, metrics=named)
    criteria = _resolve(loss, framework, named.plain)
    weights = None if class_weights is None else _check_class_weights(class_weights)
    if weights is not None and (not isinstance(criteria, Criterion) or is_own_step):
        raise InputError("bad_option", option="class_weights", got=class_weights, expected=_SINGLE)
    return Objective(
        framework,
        criteria,
        None if loss_weights is None else _check_factors(loss_weights),
        _read_labels(labels),
        weights,
        named,
    )


def _resolve(loss: Any, framework: Framework, metrics: Any) -> Tree:
    if is_named(loss):
        return {str(name): _resolve(part, framework, metrics) for name, part in loss.items()}
    if is_ordered(loss):
        return tuple(_resolve(part, framework, metrics) for part in loss)
    return resolve_loss(loss, framework, metrics=metrics)


def _check_class_weights(given: Any) -> dict[Any, float]:
    if not is_named(given) or not given:
        raise InputError("bad_option", option="class_weights", got=given, expected="a dict of a number for each class")
    for weight in given.values():
        check_number("class_weights", weight, "finite numbers, at least 0", lowest=0.0)
    return dict(given)


def _check_factors(given: Any) -> Tree:
    def check(leaf: Any) -> float:
        check_number("loss_weights", leaf, "finite numbers, at least 0, in the form of the losses", lowest=0.0)
        return float(leaf)

    return map_tree(check, given)


def _read_labels(labels: Any) -> dict[Place, tuple[str, ...]]:
    if labels is None:
        return {}
    if is_named(labels):
        return {(cast("str | int", key),): _read_names(names) for key, names in labels.items()}
    return {(): _read_names(labels)}


def _read_names(given: Any) -> tuple[str, ...]:
    names: tuple[Any, ...] = tuple(given) if _is_sequence(given) else ()
    if not names or len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
        raise InputError("bad_option", option="labels", got=given, expected="different names of classes, in their order")
    return names


def _is_sequence(given: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(given, Sequence) and not isinstance(given, str)


def _find_labels(criteria: Tree, targets: Tree, place: Place) -> dict[Place, tuple[str, ...]]:
    """Give the names of classes in targets, sorted."""
    if isinstance(criteria, Criterion):
        is_names = is_array(targets) and targets.dtype.kind in "OUS"
        return {place: tuple(sorted({_to_text(name) for name in targets.ravel()}))} if is_names else {}
    check_form(criteria, targets, "y")
    parts = join_parts(criteria, lambda key, part: _find_labels(part, targets[key], (*place, key)))
    found: dict[Place, tuple[str, ...]] = {}
    for part in parts.values() if is_named(parts) else parts:
        found.update(part)
    return found


def _read_classes(targets: Tree) -> NDArray[np.int64]:
    """Give the number of the class of each row.

    Raises:
        InputError: `bad_data`, targets are neither that nor one-hot.
    """
    if not is_array(targets):
        raise InputError("bad_data", detail=f"y is {describe_form(targets)}, expected an array of classes with `class_weights`")
    columns = np.rint(targets).astype(np.int64).reshape(len(targets), -1)
    if columns.shape[1] == 1:
        return columns[:, 0]
    if not ((columns == targets.reshape(columns.shape)).all() and (columns >= 0).all() and (columns.sum(axis=1) == 1).all()):
        detail = f"y has shape {targets.shape}, expected a class for each row, by number or one-hot, with `class_weights`"
        raise InputError("bad_data", detail=detail)
    return columns.argmax(axis=1)


def _compute(criterion: Criterion, outputs: Tree, targets: Tree, weights: NDArray[Any] | None) -> float:
    if weights is None:
        return criterion.compute(outputs, targets)
    return criterion.compute_weighted(outputs, targets, weights)


def _to_text(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
