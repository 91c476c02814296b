"""`train`: check what is asked for, find the framework, and run the loop."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from argosy.errors import InputError
from argosy.frameworks.base import Framework, Precision, framework_of, get_framework, loader_framework, name_kind
from argosy.frameworks.own_training import check_training
from argosy.group.ship import pack
from argosy.optim import GradientFreeOptimizer
from argosy.optim.schedules import check_count
from argosy.train.average import Ema
from argosy.train.checkpoint import Checkpoints
from argosy.train.crew import Crew, count_cores
from argosy.train.data import count_taken
from argosy.train.elements import Columns
from argosy.train.listening import Hooks, Taken, check_callbacks, describe_callbacks
from argosy.train.member import Shipment
from argosy.train.moving import describe_optimizers, find_frozen, resolve_optimizers
from argosy.train.objective import describe_function, open_objective
from argosy.train.opening import Opened, open_data
from argosy.train.result import Epoch, Settings, TrainResult
from argosy.train.source import is_stream, keep_numbers
from argosy.train.start import Start, read_start
from argosy.train.task import Task
from argosy.train.tuner import Tuner

__all__ = ["count_steps", "train"]

_BATCH_SIZE: Final = 32


def train(
    model: Any,
    data: Any,
    *,
    loss: Any = None,
    loss_weights: Any = None,
    class_weights: Mapping[Any, float] | None = None,
    labels: Any = None,
    step: Callable[[Any, Any, Any], Any] | None = None,
    optimizer: Any = None,
    freeze: Sequence[str] | str = (),
    start: Start | str | None = None,
    targets: str | Sequence[str] | None = None,
    weights: str | None = None,
    batch_size: int | None = None,
    epochs: int | None = 10,
    tolerance: float | None = None,
    patience: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    validation_split: float = 0.0,
    validation_data: Any = None,
    metrics: Sequence[Any] | Mapping[str, Any] | None = None,
    average: Ema | None = None,
    rescue: bool = True,
    micro_batch_size: int | None = None,
    precision: Precision | None = None,
    checkpoints: Checkpoints | str | os.PathLike[str] | None = None,
    resume: bool | Literal["restart"] = False,
    tensorboard: str | os.PathLike[str] | None = None,
    workers: int | Literal["auto"] = 1,
    num_threads: int | None = None,
    progress: bool | None = None,
    on_step: Callable[[Taken], bool | None] | None = None,
    on_epoch: Callable[[Epoch], bool | None] | None = None,
    on_end: Callable[[TrainResult], object] | None = None,
    callbacks: Sequence[Any] = (),
) -> TrainResult:
    """Fit a model to data by mini-batch descent.

    The same model (with the same weights), data and options give the same weights, bit for bit, on one machine
    with one version of the framework and one number of threads; also when the run is killed and resumed.

    Args:
        model: of a framework of `frameworks.FRAMEWORKS`; fitted in place. Inputs and outputs are one tensor, several in a tuple,
            or by name in a dict (a *tree*; a model takes a dict as keywords).
        data: a pair (x, y) of arrays, one row each, or (x, y, w) with weights of the rows; x and y may be trees of arrays; a
            dict by column, see `targets`; a loader that gives such: a torch DataLoader, a tf.data.Dataset, a keras
            PyDataset, an mx.io.NDArrayIter or a Gluon DataLoader; or a stream of `argosy.data`. Numbers with a fraction are
            taken in the type of the model's weights.
        loss: `cross_entropy` (y: class numbers or names; the model gives logits), `binary_cross_entropy` (y: 0..1; the
            model gives logits), `mse` or `half_mse`; a mean over the rows. Or a loss of the framework's own; or any function
            `loss(outputs, targets)` of its tensors that gives a scalar or a number for each row, and takes `weights` third if it
            wants those of the rows. Of several outputs: one of ours for all of them, a tree of losses in the outputs' form (a
            dict may leave some out), or a function of all. Default: that which a Keras model was compiled with, else
            `cross_entropy`; with a `step`, None.
        loss_weights: a number for each loss, in their form; the loss is the weighted sum.
        class_weights: a number for each class, by which the loss of its rows is multiplied; classes not named have 1. The loss is
            the mean over rows, not over weights.
        labels: names of the classes in their order, where y holds names; of several outputs a dict by output. Default: those
            in y, sorted; a loader needs them. `TrainResult.publish` names the outputs by them.
        step: a step of your own, `step(model, batch, fit) -> loss`, with batches as the loader gives them (of arrays: tensors in
            the form of `data`); see `frameworks.fitting.Fit`.
        optimizer: a name of `optim.OPTIMIZERS`, an optimizer with its parameters set, or one of the framework's own; with a
            `step` also a dict of several, each by the part of the model or the pattern of names whose weights it moves. Default:
            that which a Keras model was compiled with, else `adam`.
        freeze: patterns of names of weights, or parts of the model, that stay as they are; layers of which all weights do run
            as they are served.
        start: a version of the store, `NAME@3`, whose weights the model takes by name before the first step; or `Start`, which
            says for which parts.
        targets: of data by column, the name of the column, or names, that is the target; the rest are inputs.
        weights: of data by column, the name of the column of weights.
        batch_size: rows of a step, default 32; the last batch of an epoch has the rows that are left. A loader has its own.
        epochs: passes over the data; None: until `tolerance` or `patience` ends the run.
        tolerance: the run has converged, and ends, when the training loss changed by at most this part of itself in each
            of three epochs in a row.
        patience: end after so many epochs without a better validation loss (without validation rows: training loss),
            and give the model the weights of the best epoch.
        shuffle: take the rows in a new order every epoch. A loader has its own.
        seed: of the order, of the validation split and of the framework's own random numbers, such as dropout's.
        validation_split: part of the rows, in [0, 1), that is kept from training and measured after each epoch.
        validation_data: what is measured after each epoch, in any form of `data`; not together with `validation_split`.
        metrics: names of `losses.METRICS`, or the framework's own; or a dict of functions by name, each of outputs and targets
            (arrays, in their forms) and giving a number; or of lists by output. Default: those which a Keras model was compiled
            with, else what suits our loss (`accuracy`, `mae`), none for the framework's own. One that is no mean over the rows,
            such as the area under a curve or a function, is measured on validation rows alone.
        average: `Ema(decay=0.999)`: validate and end with averaged weights.
        rescue: where the loss is not finite, or 20 times the largest so far, go back to the state before that batch, leave it
            out, and go on with half the learning rate. False: end the run at what is not finite.
        micro_batch_size: rows of one forward and backward pass: a larger batch goes in pieces whose gradients are
            averaged, and needs less memory. Batch normalisation then sees the pieces. Not with a `step`.
        precision: `bfloat16` for mixed precision where the framework has it.
        checkpoints: a folder, or `Checkpoints(folder=...)` with how often: all that is needed to go on after a kill; or with
            another run as its parent.
        resume: go on from the newest checkpoint of the folder, if it has one. `"restart"`: begin anew, and remove them.
        tensorboard: a folder for TensorBoard's event files.
        workers: processes that share the rows of each batch, and so take the steps of one; the first is this one. `auto`: as many
            as make the steps fastest, found out by the first ones, which count.
        num_threads: of the framework, in each worker; default: its own choice, and of several workers a share of the cores. Small
            models train best with one: with more, each step waits for the slowest core (7 s became 37 s on two cores with
            other work on them).
        progress: False shows nothing; else a bar on a terminal and a line an epoch elsewhere, on stderr.
        on_step: is called with each `Taken` step; where it gives True, the run ends there.
        on_epoch: is called with each `Epoch` once it is measured; where it gives True, the run ends there.
        on_end: is called with the result.
        callbacks: of Keras, for a Keras model: they run as in its own `fit`, each call before that of the functions above.

    Returns:
        The model with its history; `publish` takes it into the store.

    Raises:
        InputError: `bad_data`, `bad_option`, `bad_loss`, `unknown_choice`, `bad_checkpoint`, `bad_start`; `own_training`, the
            model says itself how it is trained; the model is as it was.
        ConflictError: `checkpoints_exist`, `run_active`.
        ModelError: `not_finite`, a loss, a gradient or a weight; names the step and the layer; `loss_rose`.
        FaultError: `worker_lost`, `worker_failed`, `group_differs`, one of several workers.
        StoreError: `disk_full`, `write_failed`, a checkpoint.
    """
    if workers != "auto":
        check_count("workers", workers)
    functions = {"step": step, "on_step": on_step, "on_epoch": on_epoch, "on_end": on_end}
    _check_functions(functions, average)
    framework = framework_of(model)
    check_training(framework, model)
    own_loss, own_optimizer = framework.get_compiled(model)
    objective = open_objective(
        framework,
        loss if step is not None else _choose(loss, own_loss, "cross_entropy"),
        loss_weights=framework.get_compiled_weights(model) if loss is None and loss_weights is None else loss_weights,
        class_weights=class_weights,
        labels=labels,
        metrics=framework.list_compiled_metrics(model) or None if metrics is None and step is None else metrics,
        is_own_step=step is not None,
    )
    rule = resolve_optimizers(_choose(optimizer, own_optimizer, "adam"), framework)
    heard = check_callbacks(framework, callbacks)
    if workers != 1:
        _check_shareable(rule, heard)
    columns = Columns.read(targets, weights)
    beginning = None if start is None else read_start(framework, model, start)
    task = Task(
        framework=framework,
        model=model,
        rule=rule,
        frozen=find_frozen(framework, model, freeze),
        beginning=beginning,
        step=step,
        average=average,
        plan=checkpoints if isinstance(checkpoints, Checkpoints | None) else Checkpoints(folder=checkpoints),
        resume=resume,
        tensorboard=None if tensorboard is None else Path(tensorboard),
        is_shown=progress is not False,
        hooks=Hooks(on_step, on_epoch),
        callbacks=heard,
        is_tuned=workers == "auto",
    )
    settings = Settings(
        loss=objective.describe(),
        metrics=(),
        optimizer=describe_optimizers(rule, framework),
        batch_size=_choose_batch_size(batch_size, data),
        epochs=epochs,
        tolerance=tolerance,
        patience=patience,
        shuffle=shuffle,
        seed=seed,
        validation_split=validation_split,
        precision=precision,
        micro_batch_size=micro_batch_size,
        num_threads=num_threads,
        class_weights=class_weights,
        own_metrics=objective.describe_metrics() or None,
        step=None if step is None else describe_function(framework, step),
        columns={"targets": columns.targets, "weights": columns.weights} if columns.are_named else None,
        frozen=((freeze,) if isinstance(freeze, str) else tuple(freeze)) or None,
        average=None if average is None else average.describe(),
        start=None if beginning is None else beginning.describe(),
        rescue=rescue,
        callbacks=describe_callbacks(framework, heard),
        workers=None if workers == 1 else workers,
    )
    share = _share_threads(num_threads, workers)
    with keep_numbers(), _open_session(framework, seed, num_threads, share):
        opened = open_data(framework, model, data, validation_data, objective, settings, columns, is_raw=step is not None)
        result = _run(task, opened, settings, workers, share)
    if is_stream(data):
        result = replace(result, preprocess=tuple(getattr(data, "preprocess", ())))
    if on_end is not None:
        on_end(result)
    return result


def count_steps(num_rows: int, *, batch_size: int, epochs: int, validation_split: float = 0.0) -> int:
    """Give how many steps `train` takes with these options on so many rows; for a schedule's `steps`."""
    return epochs * math.ceil((num_rows - count_taken(num_rows, validation_split)) / batch_size)


def _share_threads(num_threads: int | None, workers: int | Literal["auto"]) -> int | None:
    """Give the threads of each worker; None where that is not fixed before."""
    if num_threads is not None or workers in (1, "auto"):
        return num_threads
    return max(count_cores() // workers, 1)


@contextmanager
def _open_session(framework: Framework, seed: int, num_threads: int | None, share: int | None) -> Generator[None]:
    """Open a session with the threads that the user wants, or else a share of the cores, if they can still be changed."""
    with ExitStack() as stack:
        try:
            stack.enter_context(framework.session(seed, share))
        except InputError:
            if num_threads is not None:
                raise
            stack.enter_context(framework.session(seed, None))
        yield


def _run(task: Task, opened: Opened, settings: Settings, workers: int | Literal["auto"], num_threads: int | None) -> TrainResult:
    if workers == 1:
        return task.run(opened, settings)

    def write(path: Path) -> None:
        pack(Shipment.of(task, opened, settings), path, [name_framework, task.framework.reduce])

    def name_framework(part: Any) -> Any:
        """Let every process have its own."""
        return (get_framework, (task.framework.name,)) if part is task.framework else None

    tuner = Tuner(max(count_cores() // (num_threads or 1), 1)) if workers == "auto" else None
    with Crew(1 if workers == "auto" else workers, write, num_threads, tuner) as crew:
        crew.set_threads = task.framework.set_threads
        return task.run(opened, settings, crew)


def _choose(given: Any, own: Any, default: Any) -> Any:
    if given is not None:
        return given
    return default if own is None else own


def _check_shareable(rule: Any, callbacks: Sequence[Any]) -> None:
    if callbacks:
        expected = "none with several workers; on_step and on_epoch are called in the first"
        raise InputError("bad_option", option="callbacks", got=name_kind(callbacks[0]), expected=expected)
    if isinstance(rule, GradientFreeOptimizer):
        raise InputError("bad_option", option="workers", got="several", expected=f"1 with {rule.name}, which has no gradients")


def _check_functions(functions: Mapping[str, object], average: object) -> None:
    for option, function in functions.items():
        if function is not None and not callable(function):
            raise InputError("bad_option", option=option, got=name_kind(function), expected="a function")
    if average is not None and not isinstance(average, Ema):
        raise InputError("bad_option", option="average", got=name_kind(average), expected="argosy.Ema(decay=0.999), or None")


def _choose_batch_size(given: int | None, data: object) -> int | None:
    if loader_framework(data) is None:
        return _BATCH_SIZE if given is None else given
    if given is not None:
        raise InputError("bad_option", option="batch_size", got=given, expected="None with a loader, which has its own")
    return None
