"""`train`: check what is asked for, find the framework, and run the loop."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ConflictError, InputError, list_choices
from argosy.frameworks.base import (
    FitOptions,
    Framework,
    Precision,
    Step,
    count_weights,
    fail_not_finite,
    framework_of,
    loader_framework,
    name_kind,
)
from argosy.frameworks.own_training import check_training
from argosy.optim import OPTIMIZERS, GradientFreeOptimizer, Optimizer, get_optimizer
from argosy.train.checkpoint import Checkpoints, Keeper, open_checkpoints
from argosy.train.data import Dataset, check_dataset, count_taken, split_rows
from argosy.train.free import FreeStep
from argosy.train.loop import Loop
from argosy.train.losses import Criterion, resolve_loss
from argosy.train.progress import open_progress
from argosy.train.publish import pick_sample
from argosy.train.result import Epoch, Settings, TrainResult
from argosy.train.source import ArraySource, LoaderSource, Source
from argosy.train.tensorboard import open_tensorboard

__all__ = ["count_steps", "train"]

_BATCH_SIZE: Final = 32


def train(
    model: Any,
    data: Any,
    *,
    loss: Any = None,
    optimizer: Any = None,
    batch_size: int | None = None,
    epochs: int | None = 10,
    tolerance: float | None = None,
    patience: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    validation_split: float = 0.0,
    validation_data: Any = None,
    metrics: Sequence[Any] | None = None,
    micro_batch_size: int | None = None,
    precision: Precision | None = None,
    checkpoints: Checkpoints | str | os.PathLike[str] | None = None,
    resume: bool | Literal["restart"] = False,
    tensorboard: str | os.PathLike[str] | None = None,
    workers: int = 1,
    num_threads: int | None = None,
    progress: bool | None = None,
    on_epoch: Callable[[Epoch], bool | None] | None = None,
) -> TrainResult:
    """Fit a model to data by mini-batch descent.

    The same model (with the same weights), data and options give the same weights, bit for bit, on one machine
    with one version of the framework and one number of threads; also when the run is killed and resumed.

    Args:
        model: of a framework of `frameworks.FRAMEWORKS`, with one input and one output; fitted in place.
        data: a pair of arrays (x, y), one row each; or a loader that gives such pairs: a torch DataLoader, a
            tf.data.Dataset, a keras PyDataset, an mx.io.NDArrayIter or a Gluon DataLoader. Numbers with a fraction are
            taken in the type of the model's weights.
        loss: `cross_entropy` (y: class numbers; the model gives logits), `binary_cross_entropy` (y: 0..1; the
            model gives logits), `mse` or `half_mse`; a mean over the rows. Or a loss of the framework's own, which runs as
            it is. Default: that which a Keras model was compiled with, else `cross_entropy`.
        optimizer: a name of `optim.OPTIMIZERS`, an optimizer with its parameters set, or one of the framework's own. Default:
            that which a Keras model was compiled with, else `adam`.
        batch_size: rows of a step, default 32; the last batch of an epoch has the rows that are left. A loader has its own.
        epochs: passes over the data; None: until `tolerance` or `patience` ends the run.
        tolerance: the run has converged, and ends, when the training loss changed by at most this part of itself in each
            of three epochs in a row.
        patience: end after so many epochs without a better validation loss (without validation rows: training loss),
            and give the model the weights of the best epoch.
        shuffle: take the rows in a new order every epoch. A loader has its own.
        seed: of the order, of the validation split and of the framework's own random numbers, such as dropout's.
        validation_split: part of the rows, in [0, 1), that is kept from training and measured after each epoch.
        validation_data: a pair of arrays to measure after each epoch; not together with `validation_split`.
        metrics: names of `losses.METRICS`, or the framework's own. Default: those which a Keras model was compiled with, else
            what suits our loss (`accuracy`, `mae`), none for the framework's own. One that is no mean over the rows, such as
            the area under a curve, is measured on validation rows alone.
        micro_batch_size: rows of one forward and backward pass: a larger batch goes in pieces whose gradients are
            averaged, and needs less memory. Batch normalisation then sees the pieces.
        precision: `bfloat16` for mixed precision where the framework has it.
        checkpoints: a folder, or `Checkpoints(folder=...)` with how often: all that is needed to go on after a kill; or with
            another run as its parent.
        resume: go on from the newest checkpoint of the folder, if it has one. `"restart"`: begin anew, and remove them.
        tensorboard: a folder for TensorBoard's event files.
        workers: training processes; one, here.
        num_threads: of the framework; default: its own choice. Small models train best with one: with more,
            each step waits for the slowest core (7 s became 37 s on two cores with other work on them).
        progress: False shows nothing; else a bar on a terminal and a line an epoch elsewhere, on stderr.
        on_epoch: is called with each `Epoch` once it is measured; where it gives True, the run ends there.

    Returns:
        The model with its history; `publish` takes it into the store.

    Raises:
        InputError: `bad_data`, `bad_option`, `unknown_choice`, `bad_checkpoint`; `own_training`, the model says itself how it
            is trained; the model is as it was.
        ConflictError: `checkpoints_exist`, `run_active`.
        ModelError: `not_finite`, a loss, a gradient or a weight; names the step and the layer.
    """
    if workers != 1:
        raise InputError("bad_option", option="workers", got=workers, expected="1")
    framework = framework_of(model)
    check_training(framework, model)
    own_loss, own_optimizer = framework.get_compiled(model)
    measured = framework.list_compiled_metrics(model) or None if metrics is None else metrics
    criterion = resolve_loss(_choose(loss, own_loss, "cross_entropy"), framework, metrics=() if measured is None else measured)
    rule = _resolve_optimizer(_choose(optimizer, own_optimizer, "adam"), framework)
    is_loader = loader_framework(data) is not None
    if is_loader and batch_size is not None:
        raise InputError("bad_option", option="batch_size", got=batch_size, expected="None with a loader, which has its own")
    settings = Settings(
        loss=criterion.describe(),
        metrics=_choose_metrics(criterion, is_default=measured is None),
        optimizer=rule.describe() if isinstance(rule, Optimizer) else framework.describe_optimizer(rule) or {},
        batch_size=None if is_loader else _choose(batch_size, None, _BATCH_SIZE),
        epochs=epochs,
        tolerance=tolerance,
        patience=patience,
        shuffle=shuffle,
        seed=seed,
        validation_split=validation_split,
        precision=precision,
        micro_batch_size=micro_batch_size,
        num_threads=num_threads,
    )
    if on_epoch is not None and not callable(on_epoch):
        raise InputError("bad_option", option="on_epoch", got=name_kind(on_epoch), expected="a function of an epoch")
    with framework.session(seed, num_threads):
        source, validation, sample = _open_data(framework, model, data, validation_data, criterion, settings)
        plan = checkpoints if isinstance(checkpoints, Checkpoints) or checkpoints is None else Checkpoints(folder=checkpoints)
        with contextlib.ExitStack() as stack:
            run = _describe_run(framework, model, source, settings) if plan is not None else {}
            keeper = stack.enter_context(open_checkpoints(plan, run))
            _check_folder(keeper, plan, resume)
            step = _build_step(framework, model, criterion, rule, settings)
            num_steps = None if source.num_batches is None or epochs is None else source.num_batches * epochs
            shown = stack.enter_context(open_progress(progress is not False, epochs, num_steps))
            logged = stack.enter_context(open_tensorboard(Path(tensorboard) if tensorboard is not None else None))
            watchers = [shown, logged] if logged else [shown]
            is_own_rule = not isinstance(rule, Optimizer)
            loop = Loop(framework, model, step, criterion, settings, keeper, watchers, on_epoch, is_own_rule=is_own_rule)
            if resume is True or (plan is not None and plan.parent is not None):
                loop.resume()
            history = loop.run(source, validation)
    _check_weights(framework, model, loop.num_steps, rule)
    checkpoint = keeper.latest if keeper else None
    return TrainResult(
        model, framework, criterion, settings, history, loop.num_steps, source.describe(), pick_sample(sample), checkpoint
    )


def count_steps(num_rows: int, *, batch_size: int, epochs: int, validation_split: float = 0.0) -> int:
    """Give how many steps `train` takes with these options on so many rows; for a schedule's `steps`."""
    return epochs * math.ceil((num_rows - count_taken(num_rows, validation_split)) / batch_size)


def _choose(given: Any, own: Any, default: Any) -> Any:
    if given is not None:
        return given
    return default if own is None else own


def _resolve_optimizer(optimizer: Any, framework: Framework) -> Any:
    """Give one of ours, or the framework's own as it is."""
    if isinstance(optimizer, str | Optimizer):
        return get_optimizer(optimizer)
    if framework.describe_optimizer(optimizer) is None:
        expected = f"a name ({list_choices(OPTIMIZERS)}), one of argosy.optim, or an optimizer of {framework.name}"
        raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected=expected)
    return optimizer


def _choose_metrics(criterion: Criterion, *, is_default: bool) -> tuple[str, ...]:
    if is_default:
        return criterion.metrics[:1] if criterion.is_ours else ()
    for metric in criterion.chosen:
        if metric not in criterion.metrics and metric not in criterion.own_metrics:
            expected = f"metrics that suit the loss {criterion.name}: {', '.join(criterion.metrics)}"
            raise InputError("bad_option", option="metrics", got=metric, expected=expected)
    return criterion.chosen


def _open_data(
    framework: Framework, model: Any, data: Any, validation_data: Any, criterion: Criterion, settings: Settings
) -> tuple[Source, Dataset | None, NDArray[Any]]:
    """Give the mini-batches, the rows to validate on, and some rows as a sample."""
    dtype = framework.float_dtype(model)
    owner = loader_framework(data)
    if settings.validation_split and (validation_data is not None or owner is not None):
        expected = "0 when validation_data is given" if owner is None else "0 with a loader; give validation_data"
        raise InputError("bad_option", option="validation_split", got=settings.validation_split, expected=expected)
    if owner is not None:
        loader = LoaderSource(data, owner, dtype, settings.seed)
        output_shape = framework.predict(model, loader.sample[:1]).shape
        loader.prepare(criterion, output_shape)
        validation = check_dataset(validation_data, dtype) if validation_data is not None else None
        return loader, _prepare(validation, criterion, output_shape, dtype), loader.sample
    given = check_dataset(data, dtype)
    training, validation = given, None
    if validation_data is not None:
        validation = check_dataset(validation_data, dtype)
    elif settings.validation_split:
        training, validation = split_rows(given, settings.validation_split, settings.seed)
    output_shape = framework.predict(model, given.x[:1]).shape
    prepared = Dataset(training.x, criterion.prepare(training.y, output_shape, dtype))
    assert settings.batch_size is not None
    source = ArraySource(given, prepared, batch_size=settings.batch_size, shuffle=settings.shuffle, seed=settings.seed)
    return source, _prepare(validation, criterion, output_shape, dtype), given.x


def _prepare(data: Dataset | None, criterion: Criterion, output_shape: tuple[int, ...], dtype: np.dtype[Any]) -> Dataset | None:
    return None if data is None else Dataset(data.x, criterion.prepare(data.y, output_shape, dtype))


def _describe_run(framework: Framework, model: Any, source: Source, settings: Settings) -> dict[str, Any]:
    """Say what a run must have in common with the one whose checkpoint it goes on from; it may be longer."""
    described = settings.describe()
    for free in ("epochs", "tolerance", "patience", "num_threads", "metrics"):
        del described[free]
    identity = {"framework": framework.name, "weights": count_weights(framework, model), "data": source.describe(), **described}
    return identity | {"program": framework.describe_program(model)}


def _check_folder(keeper: Keeper | None, plan: Checkpoints | None, resume: bool | str) -> None:
    if resume not in (True, False, "restart"):
        raise InputError("bad_option", option="resume", got=resume, expected="True, False or 'restart'")
    if keeper is None or plan is None:
        if resume:
            raise InputError("bad_option", option="resume", got=resume, expected="False without checkpoints")
        return
    if resume == "restart":
        keeper.clear()
    elif not resume and not keeper.is_empty:
        raise ConflictError("checkpoints_exist", folder=plan.folder)


def _build_step(framework: Framework, model: Any, criterion: Criterion, rule: Any, settings: Settings) -> Step:
    options = FitOptions(seed=settings.seed, precision=settings.precision, micro_batch_size=settings.micro_batch_size)
    if not isinstance(rule, GradientFreeOptimizer):
        return framework.build_step(model, criterion.loss, rule, options)
    for option in ("precision", "micro_batch_size"):
        if getattr(options, option) is not None:
            raise InputError("bad_option", option=option, got=getattr(options, option), expected=f"None with {rule.name}")
    return FreeStep(framework, model, criterion, rule, settings.seed)


def _check_weights(framework: Framework, model: Any, num_steps: int, rule: Any) -> None:
    """A step checks what the step before made of the weights; only the last one is left to check."""
    for name, weight in framework.get_weights(model).items():
        if not np.isfinite(weight).all():
            rate = getattr(rule, "learning_rate", None)
            raise fail_not_finite(step=num_steps, what="weight", layer=name, learning_rate=rate)
