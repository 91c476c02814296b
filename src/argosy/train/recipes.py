"""Recipes: data, network and settings that go together, by name, so that a run is one word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import get_framework
from argosy.frameworks.describe import digest_arrays
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, Layer, MaxPool, Relu, draw_weights
from argosy.optim import GradientOptimizer, LinearDecay, Optimizer, get_optimizer
from argosy.optim.base import Form
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.train.datasets import Dataset, load_digits, load_mnist
from argosy.train.result import TrainResult
from argosy.train.run import count_steps, train

__all__ = ["DIGITS", "MNIST", "RECIPES", "Recipe", "RecipeRun", "count_confusion", "get_recipe", "load_data_for", "run_recipe"]

_PREFIX: Final = "recipe:"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a run but its seed."""

    name: str
    load: Callable[[], tuple[Dataset, Dataset]]
    """Gives the rows to train on and those to test on, the same ones every time."""
    layers: tuple[Layer, ...]
    loss: str
    batch_size: int
    epochs: int
    validation_split: float
    learning_rates: Mapping[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    """By an optimizer's name and form, where its default does not suit."""
    num_threads: int
    input_name: str
    output_name: str
    labels: tuple[str, ...]
    """Names of the classes."""


DIGITS: Final = Recipe(
    name="digits",
    load=load_digits,
    # 151,498 weights, 87 % of them in dense1: they dominate the file, so that int8 makes it about a quarter.
    layers=(
        Conv(32),
        BatchNorm(),
        Relu(),
        Conv(64),
        BatchNorm(),
        Relu(),
        MaxPool(),
        Flatten(),
        Dropout(0.3),
        Dense(128),
        Relu(),
        Dropout(0.3),
        Dense(10),
    ),
    loss="cross_entropy",
    batch_size=32,
    epochs=20,
    validation_split=0.05,
    num_threads=1,
    input_name="image",
    output_name="logits",
    labels=tuple("0123456789"),
)

MNIST: Final = Recipe(
    name="mnist",
    load=load_mnist,
    layers=(
        Conv(16),
        BatchNorm(),
        Relu(),
        MaxPool(),
        Conv(32),
        BatchNorm(),
        Relu(),
        MaxPool(),
        Flatten(),
        Dropout(0.3),
        Dense(64),
        Relu(),
        Dense(10),
    ),
    loss="cross_entropy",
    batch_size=32,
    epochs=8,
    validation_split=0.05,
    learning_rates={
        ("sgd", "common"): 0.1,
        ("sgd", "text"): 0.1,
        ("momentum", "common"): 0.01,
        ("momentum", "text"): 0.1,
    },
    num_threads=1,
    input_name="image",
    output_name="logits",
    labels=tuple("0123456789"),
)

RECIPES: Final[dict[str, Recipe]] = {recipe.name: recipe for recipe in (DIGITS, MNIST)}


@dataclass(frozen=True, eq=False)
class RecipeRun:
    """What running a recipe gives."""

    recipe: Recipe
    result: TrainResult
    test: dict[str, float]
    """Loss and metrics on the test rows."""
    confusion: NDArray[np.int64]
    """How many test rows of each class (first axis) were taken for each class (second axis)."""
    version: Version | None
    """What was published, None if nothing was."""


def get_recipe(name: str) -> Recipe:
    """Give a recipe by its name, `digits` or `recipe:digits`.

    Raises:
        InputError: `unknown_recipe`.
    """
    bare = name.removeprefix(_PREFIX)
    if bare not in RECIPES:
        raise InputError("unknown_recipe", got=bare, known=list_choices(RECIPES))
    return RECIPES[bare]


def run_recipe(
    name: str,
    *,
    framework: str = "torch",
    optimizer: str | Optimizer = "adam",
    form: Form = "common",
    learning_rate: float | None = None,
    epochs: int | None = None,
    seed: int = 0,
    publish_as: str | None = None,
    store: Store | None = None,
    progress: bool | None = None,
    **options: Any,
) -> RecipeRun:
    """Train a recipe's network on its data, test it, and publish it if a name is given.

    The first weights and the order of the rows are the same in every framework.

    Args:
        name: of the recipe.
        framework: which one builds and fits the network.
        optimizer: an optimizer, used as it is; or the name of one, whose learning rate then falls linearly to
            zero over the run.
        form: of an optimizer given by name.
        learning_rate: of an optimizer given by name; default: the recipe's for it.
        epochs: default: the recipe's.
        seed: of the first weights, the order of the rows and dropout. The test rows are the same for all seeds.
        publish_as: model to make a version of; with none, nothing is published.
        store: default: that of ARGOSY_HOME.
        progress: as for `train`.
        options: others of `train`, such as `checkpoints` and `resume`.

    Raises:
        InputError: `unknown_recipe`, `bad_option`, `missing_extra`, `bad_name`.
        ModelError: `not_finite`, `save_failed`.
    """
    recipe = get_recipe(name)
    if publish_as is not None:
        store = store or Store()
        store.check_writable()
    training, testing = recipe.load()
    builder = get_framework(framework)
    with builder.session(seed, recipe.num_threads):
        weights = draw_weights(recipe.layers, training.x.shape[1:], seed)
        model = builder.build_network(recipe.layers, training.x.shape[1:], weights)
    epochs = recipe.epochs if epochs is None else epochs
    if isinstance(optimizer, str):
        optimizer = _build_optimizer(recipe, optimizer, form, learning_rate, len(training.x), epochs)
    result = train(
        model,
        training,
        loss=recipe.loss,
        optimizer=optimizer,
        batch_size=recipe.batch_size,
        epochs=epochs,
        seed=seed,
        validation_split=recipe.validation_split,
        num_threads=recipe.num_threads,
        progress=progress,
        **options,
    )
    test = result.evaluate(*testing)
    confusion = count_confusion(testing.y, result.predict(testing.x).argmax(axis=1), len(recipe.labels))
    version = _publish(recipe, result, testing, test, publish_as, store) if publish_as is not None else None
    return RecipeRun(recipe, result, test, confusion, version)


def _build_optimizer(recipe: Recipe, name: str, form: Form, learning_rate: float | None, num_rows: int, epochs: int) -> Optimizer:
    """Let the rate of an optimizer given by name fall to zero over the run: without, the last steps' noise stays."""
    rule = get_optimizer(name)
    if not isinstance(rule, GradientOptimizer):
        if learning_rate is not None or form != "common":
            raise InputError("bad_option", option="optimizer", got=name, expected="one with a gradient, to have a form or a rate")
        return rule
    rate = learning_rate or recipe.learning_rates.get((name, form), rule.rate_at(1))
    steps = count_steps(num_rows, batch_size=recipe.batch_size, epochs=epochs, validation_split=recipe.validation_split)
    return get_optimizer(name, learning_rate=LinearDecay(rate, max(steps, 1)), form=form)


def _publish(
    recipe: Recipe, result: TrainResult, testing: Dataset, test: dict[str, float], name: str, store: Store | None
) -> Version:
    return result.publish(
        name,
        store,
        # Test rows: golden examples then show what the model does with rows that it has never seen.
        sample=testing.x,
        measurements=test,
        lineage={"recipe": {"name": recipe.name, "test_digest": digest_arrays(*testing)}},
        input_name=recipe.input_name,
        output_name=recipe.output_name,
        labels=recipe.labels,
    )


def load_data_for(version: Version) -> tuple[Dataset, Dataset] | None:
    """Load the rows that a version was trained on and those it is tested on, by its lineage.

    Returns:
        None for a version that was not made by a recipe of this Argosy.

    Raises:
        InputError: `bad_data`, the recipe gives other rows now than when the version was trained, so that a
            test on them could be one on training rows.
    """
    lineage: dict[str, Any] = version.manifest.lineage
    made_by: dict[str, Any] = lineage.get("recipe", {})
    recipe = RECIPES.get(made_by.get("name", ""))
    if recipe is None:
        return None
    training, testing = recipe.load()
    if [digest_arrays(*training), digest_arrays(*testing)] != [lineage["data"]["digest"], made_by["test_digest"]]:
        detail = f"recipe {recipe.name} gives other rows than those that {version.name}@{version.number} was trained on"
        raise InputError("bad_data", detail=detail)
    return training, testing


def count_confusion(labels: NDArray[Any], predicted: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """Count how often each class was taken for each.

    Args:
        labels: true class numbers, shape (rows,).
        predicted: the model's, shape (rows,).
        num_classes: both are below it.

    Returns:
        Counts of shape (num_classes, num_classes): true class first, predicted class second.
    """
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes).astype(np.int64)
