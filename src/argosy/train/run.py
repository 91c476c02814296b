"""Fit a model: mini-batches, epochs, validation. Knows no framework and no file."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.base import Framework, Step, fail_not_finite, framework_of
from argosy.optim import Optimizer, get_optimizer
from argosy.train.data import Dataset, check_dataset, count_taken, iterate_batches, split_rows
from argosy.train.lineage import describe_data
from argosy.train.losses import get_loss, get_metric, prepare_targets
from argosy.train.progress import Progress, open_progress
from argosy.train.result import NUM_GOLDEN, Epoch, Settings, TrainResult

__all__ = ["count_steps", "train"]


def train(
    model: Any,
    data: object,
    *,
    loss: str = "cross_entropy",
    optimizer: str | Optimizer = "adam",
    batch_size: int = 32,
    epochs: int = 10,
    shuffle: bool = True,
    seed: int = 0,
    validation_split: float = 0.0,
    validation_data: object = None,
    metrics: Sequence[str] | None = None,
    num_threads: int | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Fit a model to data by mini-batch descent.

    The same model (with the same weights), data and options give the same weights, bit for bit, on one machine
    with one version of the framework and one number of threads.

    Args:
        model: of a framework of `frameworks.FRAMEWORKS`, with one input and one output; fitted in place.
        data: a pair of arrays (x, y), one row each. Floats are taken as float32.
        loss: `cross_entropy` (y: class numbers; the model gives logits), `binary_cross_entropy` (y: 0..1; the
            model gives logits) or `mse`; a mean over the rows.
        optimizer: a name of `optim.OPTIMIZERS`, or an optimizer with its parameters set.
        batch_size: rows of a step. The last batch of an epoch has the rows that are left.
        epochs: passes over the data.
        shuffle: take the rows in a new order every epoch.
        seed: of the order, of the validation split and of the framework's own random numbers, such as dropout's.
        validation_split: part of the rows, in [0, 1), that is kept from training and measured after each epoch.
        validation_data: a pair of arrays to measure after each epoch; not together with `validation_split`.
        metrics: names of `losses.METRICS`; default: `accuracy`, for the loss `mse` `mae`.
        num_threads: of the framework; default: its own choice. Small models train best with one: with more,
            each step waits for the slowest core (7 s became 37 s on two cores with other work on them).
        progress: False shows nothing; else a bar on a terminal and a line an epoch elsewhere, on stderr.

    Returns:
        The model with its history; `publish` takes it into the store.

    Raises:
        InputError: `bad_data`, `bad_option`, `unknown_choice`; the model is as it was.
        ModelError: `not_finite`, a loss, a gradient or a weight; names the step and the layer.
    """
    settings = Settings(
        loss=loss,
        metrics=get_loss(loss).metrics[:1] if metrics is None else tuple(metrics),
        optimizer=get_optimizer(optimizer),
        batch_size=batch_size,
        epochs=epochs,
        shuffle=shuffle,
        seed=seed,
        validation_split=validation_split,
        num_threads=num_threads,
    )
    framework = framework_of(model)
    given = check_dataset(data)
    training, validation = _choose_validation(given, settings, validation_data)
    num_steps = count_steps(len(training.x), batch_size=batch_size, epochs=epochs)
    with framework.session(seed, num_threads), open_progress(progress is not False, epochs, num_steps) as shown:
        output_shape = framework.predict(model, training.x[:1]).shape
        prepared = Dataset(training.x, prepare_targets(loss, training.y, output_shape))
        if validation:
            validation = Dataset(validation.x, prepare_targets(loss, validation.y, output_shape))
        step = framework.build_step(model, loss, settings.optimizer)
        history = _fit(framework, model, step, prepared, validation, settings, shown)
    _check_weights(framework, model, num_steps, settings.optimizer)
    return TrainResult(model, framework, settings, history, describe_data(given), given.x[:NUM_GOLDEN].copy())


def count_steps(num_rows: int, *, batch_size: int, epochs: int, validation_split: float = 0.0) -> int:
    """Give how many steps `train` takes with these options on so many rows; for an optimizer's `decay_steps`."""
    return epochs * math.ceil((num_rows - count_taken(num_rows, validation_split)) / batch_size)


def _choose_validation(data: Dataset, settings: Settings, validation_data: object) -> tuple[Dataset, Dataset | None]:
    if validation_data is not None:
        if settings.validation_split:
            expected = "0 when validation_data is given"
            raise InputError("bad_option", option="validation_split", got=settings.validation_split, expected=expected)
        return data, check_dataset(validation_data)
    return split_rows(data, settings.validation_split, settings.seed) if settings.validation_split else (data, None)


def _fit(
    framework: Framework,
    model: Any,
    step: Step,
    data: Dataset,
    validation: Dataset | None,
    settings: Settings,
    progress: Progress,
) -> tuple[Epoch, ...]:
    history: list[Epoch] = []
    for number in range(1, settings.epochs + 1):
        started_s = time.perf_counter()
        loss, metrics = _fit_epoch(step, data, settings, number, progress)
        validation_loss, validation_metrics = None, dict[str, float]()
        if validation:
            outputs = framework.predict(model, validation.x)
            validation_loss = get_loss(settings.loss).compute(outputs, validation.y)
            validation_metrics = {name: get_metric(name).compute(outputs, validation.y) for name in settings.metrics}
        duration_s = time.perf_counter() - started_s
        history.append(Epoch(number, loss, metrics, validation_loss, validation_metrics, duration_s))
        progress.end_epoch(history[-1])
    return tuple(history)


def _fit_epoch(step: Step, data: Dataset, settings: Settings, epoch: int, progress: Progress) -> tuple[float, dict[str, float]]:
    """Take the steps of one epoch; give the means of loss and metrics over its rows."""
    computes = {name: get_metric(name).compute for name in settings.metrics}
    sums = np.zeros(1 + len(computes))
    num_rows = 0
    batches = iterate_batches(len(data.x), settings.batch_size, shuffle=settings.shuffle, seed=settings.seed, epoch=epoch)
    for rows in batches:
        x, y = data.x[rows], data.y[rows]
        loss, outputs = step(x, y)
        sums += len(rows) * np.array([loss, *(compute(outputs, y) for compute in computes.values())])
        num_rows += len(rows)
        progress.end_step(sums[0] / num_rows)
    means = [float(value) for value in sums / num_rows]
    return means[0], dict(zip(computes, means[1:], strict=True))


def _check_weights(framework: Framework, model: Any, num_steps: int, optimizer: Optimizer) -> None:
    """A step checks what the step before made of the weights; only the last one is left to check."""
    for name, weight in framework.get_weights(model).items():
        if not np.isfinite(weight).all():
            raise fail_not_finite(step=num_steps, what="weight", layer=name, learning_rate=optimizer.learning_rate)
